"""The curves against the authors' numbers, their closed forms, and the properties of the paper's section 3.2."""

from __future__ import annotations

import math

import pytest
import torch
from golden import schedule_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.curves import AUTHORS_CURVES, CURVES, Track

NAMES = {"bin": "quadratic", "lin": "piecewise linear", "exp": "exponential"}
STEPS = st.integers(1, 60)
STRENGTHS = st.floats(0, 1)


def level(steps: int) -> Track:
    """Counting in intervals left, from N - 1 to 0."""
    return Track(end=0.0, unit=1.0, intervals=max(steps - 1, 1))


def follow(curve: str, strengths: Tensor, steps: int, curves: dict = CURVES) -> Tensor:
    """Progress (N, P) of P pixels whose strength at every move is strengths (N - 1, P); 0 is the background."""
    state = torch.full(strengths.shape[1:], steps - 1.0, dtype=torch.float64)
    path = [steps - 1 - state]
    for step, k in enumerate(strengths):
        moved = curves[curve](state, steps - 1 - step, k, level(steps))
        state = torch.where(k > 0, moved, curves["linear"](state, steps - 1 - step, 0.0, level(steps)))
        path.append(steps - 1 - state)
    return torch.stack(path)


def histories(steps: int, pixels: int, seed: int) -> Tensor:
    """Whether each of ``pixels`` belongs to a region at each move (N - 1, pixels): runs of random lengths."""
    random = torch.Generator().manual_seed(seed)
    flips = torch.rand(max(steps - 1, 0), pixels, generator=random) < torch.rand(pixels, generator=random)
    return (flips.cumsum(0) + torch.randint(2, (pixels,), generator=random)) % 2 == 1


@pytest.mark.parametrize("case", ["target", "switch"])
def test_golden_table_in_double_precision(case: str) -> None:
    """Every row of the authors' table, all steps: our simplified formulas are theirs to 1e-9 (timesteps, 1000 to 1)."""
    for row in schedule_rows():
        steps, k = row["N"], row["k"]
        track = Track(end=1.0, unit=1000 / steps, intervals=steps)
        inside = range(-1, steps) if case == "target" else range(steps // 4, steps // 2)
        for curves in (CURVES, AUTHORS_CURVES):
            state, path = torch.tensor(1001.0, dtype=torch.float64), []
            for step in range(-1, steps - 1):
                name, strength = (NAMES[row["curve"]], k) if step in inside else ("linear", 0.0)
                state = curves[name](state, steps - 1 - step, strength, track)
                path.append(state.item())
            assert path == pytest.approx(row[case]["f64"][:-1], rel=1e-9), row


def test_quadratic_is_a_parabola() -> None:
    """A region from the start: q(i) = i - k i (E - i) / L, for L = E."""
    for steps in (2, 7, 30):
        end = steps - 1
        i = torch.arange(steps, dtype=torch.float64)
        for k in (0.2, 0.7, 1.0):
            path = follow("quadratic", torch.full((end, 1), k, dtype=torch.float64), steps)[:, 0]
            torch.testing.assert_close(path, i - k * i * (end - i) / end, rtol=0, atol=1e-12)


def test_quadratic_of_any_history() -> None:
    """state_i = (E - i) (1 + K_i / L), where K_i sums the strengths of the moves so far: Proposition 1."""
    steps = 25
    strengths = histories(steps, 200, seed=1) * torch.rand(200, dtype=torch.float64)
    path = follow("quadratic", strengths, steps)
    used = torch.cat([torch.zeros(1, 200, dtype=torch.float64), strengths.cumsum(0)])
    left = (steps - 1 - torch.arange(steps, dtype=torch.float64))[:, None]
    torch.testing.assert_close(path, steps - 1 - left * (1 + used / (steps - 1)), rtol=0, atol=1e-10)


def test_piecewise_linear_has_two_slopes() -> None:
    """1 - k per step, then 1 + k, meeting in the middle."""
    moves = follow("piecewise linear", torch.full((20, 1), 0.4, dtype=torch.float64), 21)[:, 0].diff()
    torch.testing.assert_close(moves[:10], torch.full((10,), 0.6, dtype=torch.float64))
    torch.testing.assert_close(moves[10:], torch.full((10,), 1.4, dtype=torch.float64))


def test_exponential_in_closed_form() -> None:
    """(1 - k) i + k E (e^(i/L) - 1) / (e - 1), for a region from the start."""
    steps, k = 31, 0.8
    path = follow("exponential", torch.full((steps - 1, 1), k, dtype=torch.float64), steps)[:, 0]
    i = torch.arange(steps, dtype=torch.float64)
    expected = (1 - k) * i + k * (steps - 1) * torch.expm1(i / (steps - 1)) / math.expm1(1)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(STEPS, STRENGTHS, st.sampled_from(list(CURVES)), st.integers(0, 10**6))
def test_any_mask_history_stays_in_the_band(steps: int, strength: float, curve: str, seed: int) -> None:
    """q never falls, ends level, and lies between the straight line and the curve followed all the time."""
    inside = histories(steps, 40, seed)
    path = follow(curve, inside * torch.tensor(strength, dtype=torch.float64), steps)
    steepest = follow(curve, torch.full((max(steps - 1, 0), 1), strength, dtype=torch.float64), steps)
    straight = torch.arange(steps, dtype=torch.float64)[:, None]
    assert (path.diff(dim=0) >= -1e-9).all()
    assert (path <= straight + 1e-9).all()
    assert (path >= steepest - 1e-9).all()
    torch.testing.assert_close(path[-1], torch.full((40,), steps - 1.0, dtype=torch.float64), rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(STEPS, STRENGTHS, st.sampled_from(list(CURVES)), st.integers(0, 10**6))
def test_a_pixel_lags_only_because_of_its_mask(steps: int, strength: float, curve: str, seed: int) -> None:
    """Before a pixel's first masked move it is level exactly; from then on it lags, if its curve lags at all."""
    inside = histories(steps, 40, seed)
    path = follow(curve, inside * torch.tensor(strength, dtype=torch.float64), steps)
    straight = torch.arange(steps, dtype=torch.float64)[:, None].expand_as(path)
    touched = torch.cat([torch.zeros(1, 40, dtype=torch.bool), inside.cumsum(0) > 0])
    assert torch.equal(path[~touched], straight[~touched])
    if strength > 0.01 and curve != "linear":
        # The very last move ends level whatever the curve.
        assert (path[:-1][touched[:-1]] < straight[:-1][touched[:-1]]).all()


@settings(max_examples=100, deadline=None)
@given(STEPS, STRENGTHS, st.sampled_from(list(CURVES)), st.integers(0, 10**6))
def test_more_mask_means_more_lag(steps: int, strength: float, curve: str, seed: int) -> None:
    """Progress is monotone in the mask history: a superset of masked moves never is ahead at any step."""
    inside, more = histories(steps, 40, seed), histories(steps, 40, seed + 1)
    k = torch.tensor(strength, dtype=torch.float64)
    assert (follow(curve, (inside | more) * k, steps) <= follow(curve, inside * k, steps) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from(list(CURVES)), st.integers(0, 10**6))
def test_more_strength_means_more_lag(steps: int, curve: str, seed: int) -> None:
    """Progress is monotone in the strengths of a history too (the curves are ordered by k)."""
    inside = histories(steps, 40, seed)
    weak, strong = torch.rand(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).sort(0).values
    assert (follow(curve, inside * strong, steps) <= follow(curve, inside * weak, steps) + 1e-9).all()


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_map_of_strengths_is_each_number_in_turn(curve: str) -> None:
    """A tensor of strengths and a number give the same move (the two have separate code where clamps are involved)."""
    state, strengths = torch.rand(50) * 5 + 9, torch.rand(50)
    together = CURVES[curve](state, 9, strengths, Track(0.0, 1.0, 12))
    alone = [CURVES[curve](s, 9, k.item(), Track(0.0, 1.0, 12)) for s, k in zip(state, strengths, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))
