"""The clocks: exact at the table's entries, monotone between them, and the authors' timesteps in the paper preset."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import schedule_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.clock import Clock, NoiseGrid, PaperClock, paper_clock, table_clock
from asyndm_core.curves import CURVES

NAMES = {"bin": "quadratic", "lin": "piecewise linear", "exp": "exponential"}


@pytest.fixture(scope="module")
def grid(alphas: Tensor) -> NoiseGrid:
    """Stable Diffusion's sigma of each of its 1000 timesteps."""
    return NoiseGrid(((1 - alphas) / alphas).sqrt())


def position_of(grid: NoiseGrid, sigmas: Tensor) -> Tensor:
    """Where sigmas lie on the grid, in timesteps with a fraction: linear in log sigma."""
    log_grid, log_sigmas = grid.sigmas.log(), sigmas.clamp(min=1e-9).log()
    low = (torch.searchsorted(log_grid, log_sigmas) - 1).clamp(0, len(log_grid) - 2)
    share = (log_sigmas - log_grid[low]) / (log_grid[low + 1] - log_grid[low])
    return (low + share).clamp(0, len(log_grid) - 1)


def karras(steps: int, grid: NoiseGrid, rounded: bool) -> Clock:
    """A clock on Karras et al.'s table (arXiv 2206.00364, eq. 5), whose entries lie between the grid's.

    ``rounded``: the model tells whole timesteps, as ComfyUI's discrete models do.
    """
    low, high = grid.sigmas[0].item() ** (1 / 7), grid.sigmas[-1].item() ** (1 / 7)
    sigmas = (high + torch.linspace(0, 1, steps) * (low - high)) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    positions = position_of(grid, sigmas)
    return table_clock(sigmas, positions.round() if rounded else positions, grid)


def paper(steps: int, grid: NoiseGrid) -> PaperClock:
    """The authors' timesteps of N steps (leading, offset 1), ending at timestep 0."""
    timesteps = torch.arange(steps).flip(0) * (1000 // steps) + 1
    positions = torch.cat([timesteps, torch.zeros(1)]).float()
    return paper_clock(grid.at(positions), positions, grid)


@pytest.mark.parametrize("case", ["target", "switch"])
def test_golden_table(grid: NoiseGrid, case: str) -> None:
    """Every row through ``paper_clock`` in float32, as a run computes it.

    States agree with the authors' float32 to 4 of its last bits (2.4e-4 at 1000; exponential and piecewise linear
    are written in another order of operations), and exactly for the quadratic, but that our last one is 1 exactly.
    Rounded timesteps are the authors', wherever they exist (the table flags timesteps above 999), and sigma is that of
    the rounded timestep.
    """
    for row in schedule_rows():
        steps, clock = row["N"], paper(row["N"], grid)
        inside = range(-1, steps) if case == "target" else range(steps // 4, steps // 2)
        state = clock.start((1,))
        for step in range(-1, steps):
            curve = NAMES[row["curve"]] if step in inside else "linear"
            state = clock.advance(state, step, curve, row["k"] if step in inside else 0.0)
            if step + 1 == steps:
                break
            wanted = row[case]["f32"][step + 1]
            exact = row["curve"] == "bin" and step + 1 < steps - 1
            tolerance = 0.0 if exact else 2.5e-4
            assert state.item() == pytest.approx(wanted, abs=tolerance), (row["N"], row["k"], row["curve"], step)
            timestep = row[case]["rounded"][step + 1]
            if row[case]["round_margin_f32"] > 2 * tolerance or exact:
                assert state.round().item() == timestep, row
                assert clock.sigma(state, step + 1).item() == grid.sigmas[min(timestep, 999)].item()
        assert clock.sigma(state, steps).item() == grid.sigmas[0].item()


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 57])
def test_sigma_is_exact_at_whole_steps(grid: NoiseGrid, steps: int, rounded: bool) -> None:
    """A pixel that keeps pace is at the table's own entries, bit for bit, though they are off the grid."""
    clock = karras(steps, grid, rounded)
    state = clock.start((2, 3, 3))
    for step in range(steps):
        assert torch.equal(clock.progress(state, step), torch.full((2, 3, 3), float(step)))
        assert torch.equal(clock.sigma(state, step), clock.sigmas[step].expand(2, 3, 3))
        state = clock.advance(state, step, "linear", 0.0)
    assert torch.equal(clock.progress(state, steps), torch.full((2, 3, 3), float(steps)))
    assert torch.equal(clock.sigma(state, steps), torch.zeros(2, 3, 3))


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 9, 20])
def test_sigma_is_monotone_in_progress(grid: NoiseGrid, steps: int, rounded: bool) -> None:
    """Over all progress, sigma never rises, stays between the neighbouring entries, and is a grid value or an entry."""
    clock = karras(steps, grid, rounded)
    q = torch.linspace(0, steps - 1, 4001)
    sigma = clock.sigma(steps - 1 - q, 0)
    assert (sigma.diff() <= 0).all()
    low = q.floor().long()
    assert (sigma <= clock.sigmas[low]).all()
    assert (sigma >= clock.sigmas[low + 1]).all()
    assert torch.isin(sigma, torch.cat([grid.sigmas, clock.sigmas])).all()
    assert sigma.unique().numel() > 3 * steps


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_levels_reach_the_end_of_the_table(grid: NoiseGrid, steps: int, rounded: bool) -> None:
    """Progress N is the table's last entry, E and before the same as for states, and between nothing rises."""
    clock = karras(steps, grid, rounded)
    assert torch.equal(clock.level(torch.arange(steps + 1.0)), clock.sigmas)
    fine = clock.level(torch.linspace(0, steps, 1000))
    assert (fine[1:] <= fine[:-1]).all() and fine.unique().numel() > 20


def test_between_entries_sigma_is_linear_in_the_timestep(grid: NoiseGrid) -> None:
    """Half way between timesteps 801 and 601 is timestep 701."""
    positions = torch.tensor([801.0, 601.0, 401.0, 0.0])
    clock = table_clock(grid.at(positions), positions, grid)
    assert clock.sigma(torch.tensor([1.5]), 0).item() == grid.sigmas[701].item()
    assert clock.sigma(torch.tensor([0.25]), 0).item() == grid.sigmas[451].item()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from(list(CURVES)), st.booleans(), st.integers(0, 10**6))
def test_a_run_of_any_masks(steps: int, strength: float, curve: str, as_paper: bool, seed: int) -> None:
    """What ``run.sample`` relies on, in float32: progress never falls, sigma never rises, all pixels end together.

    Untouched pixels keep pace, and no pixel overtakes the background.
    """
    random = torch.Generator().manual_seed(seed)
    sigmas = (torch.linspace(1, 0, 1000) * 7 + 0.01).flip(0)
    if as_paper and steps > 1:
        positions = torch.cat([torch.linspace(1000 - 1000 / steps + 1, 1, steps), torch.zeros(1)])
        clock: Clock = paper_clock(NoiseGrid(sigmas).at(positions), positions, NoiseGrid(sigmas))
    else:
        positions = torch.linspace(999, 0, steps + 1)
        clock = table_clock(NoiseGrid(sigmas).at(positions), positions, NoiseGrid(sigmas))
    state, level = clock.start((30,)), clock.start((30,))
    touched = torch.zeros(30, dtype=torch.bool)
    q_before, sigma_before = clock.progress(state, clock.anchor), None
    for step in range(clock.anchor, steps):
        inside = torch.rand(30, generator=random) < 0.4
        inside[0] = False
        touched |= inside
        moved = torch.where(inside, clock.advance(state, step, curve, strength), clock.advance(state, step, "linear", 0.0))
        level = clock.advance(level, step, "linear", 0.0)
        state = moved
        q = clock.progress(state, step + 1)
        assert (q >= q_before).all()
        assert torch.equal(state[~touched], level[~touched])
        assert (q <= clock.progress(level, step + 1) + 1e-4).all()
        if step + 1 >= 0:
            sigma = clock.sigma(state, step + 1)
            assert torch.isfinite(sigma).all()
            if sigma_before is not None:
                assert (sigma <= sigma_before).all()
            sigma_before = sigma
        q_before = q
        if step + 1 == steps - 1:
            assert torch.equal(q, torch.full((30,), steps - 1.0))
    assert torch.equal(clock.progress(state, steps), torch.full((30,), float(steps)))
    assert torch.equal(clock.sigma(state, steps), clock.sigmas[-1].expand(30))


def test_paper_clock_starts_one_interval_before(grid: NoiseGrid) -> None:
    """Timestep 1001 and progress -1, and a region lags already at the first evaluation."""
    clock = paper(10, grid)
    state = clock.start((1,))
    assert state.item() == 1001
    assert clock.progress(state, -1).item() == pytest.approx(-1)
    assert clock.advance(state, -1, "quadratic", 0.7).item() == 964


def test_paper_clock_refuses_uneven_tables(grid: NoiseGrid) -> None:
    """Karras's table is not the paper's, and neither is a single step."""
    table = karras(10, grid, rounded=True)
    with pytest.raises(ValueError, match="ddim_uniform"):
        paper_clock(table.sigmas, table.positions, grid)
    with pytest.raises(ValueError, match="at least 2 steps"):
        paper_clock(table.sigmas[-2:], table.positions[-2:], grid)


def test_a_table_needs_a_step(grid: NoiseGrid) -> None:
    """An empty schedule is refused."""
    with pytest.raises(ValueError, match="at least one step"):
        table_clock(torch.ones(1), torch.ones(1), grid)


def test_grid_rounds_half_to_even_and_clamps(grid: NoiseGrid) -> None:
    """As torch.round and the authors' code; timesteps beyond the grid are its ends."""
    picked = grid.at(torch.tensor([0.5, 1.5, 2.5, -3.0, 1200.0]))
    assert torch.equal(picked, grid.sigmas[[0, 2, 2, 0, 999]])


@pytest.mark.parametrize("build", [table_clock, paper_clock])
def test_a_table_that_rises_is_refused(build: Callable, grid: NoiseGrid) -> None:
    table = torch.tensor([3.0, 2.0, 2.5, 0.0])
    with pytest.raises(ValueError, match=r"rises in step 2 \(from 2 to 2.5\).*Flip Sigmas"):
        build(table, torch.tensor([900.0, 600.0, 300.0, 0.0]), grid)
