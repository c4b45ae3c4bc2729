"""The clock of every pixel: its state now, its state after the next step, and the noise level (sigma) of a state.

The state counts down to the end of the schedule (see ``curves``). ``Clock`` counts in intervals of the scheduler's own
table of sigmas, so that a pixel that keeps pace is at stock sampling's sigmas exactly; ``PaperClock`` counts in
timesteps as the authors' code does. Progress q (design's word) is the number of steps that a pixel has completed:
q = E - state / unit with E = N - 1, the last evaluation; the final step takes every pixel from E to N.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .curves import AUTHORS_CURVES, CURVES, Strength, Track
from .regions import SWITCH_OFF


@dataclass(frozen=True)
class NoiseGrid:
    """The noise levels that the model has timesteps for.

    sigmas: (G,) ascending, one for every timestep of the grid: a discrete model's own (G = 1000), or 1/1000 of the range
    of a continuous one. It bounds the number of distinct timesteps of a map, and so the cost of embedding them.
    """

    sigmas: Tensor

    def at(self, position: Tensor) -> Tensor:
        """The sigma of the grid's timestep nearest to ``position`` (any shape, in grid steps; half goes to even)."""
        last = self.sigmas.shape[0] - 1
        return self.sigmas[position.round().clamp(0, last).long()]

    def to(self, device: torch.device) -> NoiseGrid:
        """The same grid on another device."""
        return NoiseGrid(self.sigmas.to(device))


ClockT = TypeVar("ClockT", bound="Clock")


@dataclass(frozen=True)
class Clock:
    """Progress along a scheduler's table. Built by ``table_clock`` or ``paper_clock``.

    sigmas: (N + 1,) the scheduler's table, descending. positions: (N + 1,) where its entries lie on the grid, in grid
    steps (the model's timestep of each sigma). grid: see NoiseGrid. All float32 on one device.
    track: unit and end of the states. anchor: the progress that every pixel has before the first move.
    """

    sigmas: Tensor
    positions: Tensor
    grid: NoiseGrid
    track: Track
    anchor: int = 0
    curves = CURVES

    @property
    def steps(self) -> int:
        """N, the number of steps of the run."""
        return self.sigmas.shape[0] - 1

    def to(self: ClockT, device: torch.device) -> ClockT:
        """The same clock on another device."""
        return replace(self, sigmas=self.sigmas.to(device), positions=self.positions.to(device), grid=self.grid.to(device))

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """The state of every pixel before the first move: progress ``anchor``. Float32 of the given shape."""
        state = self.track.end + self.track.unit * (self.steps - 1 - self.anchor)
        return torch.full(shape, state, dtype=torch.float32, device=self.sigmas.device)

    def start_at(self, denoise: Tensor) -> Tensor:
        """The state where a run of ``denoise`` (any shape, in (0, 1]) starts: progress N (1 - denoise), E at the most."""
        rest = (self.steps * denoise - 1).clamp(min=0)
        return self.track.end + self.track.unit * rest

    def advance(self, state: Tensor, step: int, curve: str, strength: Strength) -> Tensor:
        """The state after the move of ``step`` along ``curve`` with ``strength``: never back, never past the end.

        The last interval ends at the end whatever the curve, so all pixels end level exactly.
        """
        rest = self.steps - 1 - step
        if rest <= 1:
            return torch.full_like(state, self.track.end)
        moved = self.curves[curve](state, rest, strength, self.track)
        return torch.minimum(moved.clamp(min=self.track.end), state)

    def progress(self, state: Tensor, step: int) -> Tensor:
        """q of the states at ``step``: steps completed, in [anchor, N]."""
        if step >= self.steps:
            return torch.full_like(state, float(self.steps))
        return self.steps - 1 - (state - self.track.end) / self.track.unit

    def sigma(self, state: Tensor, step: int) -> Tensor:
        """The noise levels of the states at ``step``, see ``level``."""
        if step >= self.steps:
            return self.sigmas[-1].expand_as(state)
        return self.level(self.progress(state, step).clamp(0, self.steps - 1))

    def level(self, q: Tensor) -> Tensor:
        """The noise levels of progress q (any shape, in [0, N]): exact at the table's entries, else on the model's grid.

        Between two entries it is linear in the timestep, snapped to the grid, and kept between the two entries' sigmas
        (an entry need not lie on the grid), so sigma never rises while progress does.
        """
        low = q.floor().clamp(max=self.steps - 1).long()
        share = q - low
        upper, lower = self.sigmas[low], self.sigmas[low + 1]
        position = torch.lerp(self.positions[low], self.positions[low + 1], share)
        between = torch.maximum(torch.minimum(self.grid.at(position), upper), lower)
        return torch.where(share == 0, upper, torch.where(share == 1, lower, between))


@dataclass(frozen=True)
class PaperClock(Clock):
    """The authors' clock: states are timesteps of an evenly spaced table, rounded half to even."""

    curves = AUTHORS_CURVES

    def sigma(self, state: Tensor, step: int) -> Tensor:
        """The sigma of the rounded timestep; the table's last entry after the last step."""
        if step >= self.steps:
            return self.sigmas[-1].expand_as(state)
        return self.grid.at(state)


def _check_table(sigmas: Tensor) -> None:
    """ValueError for a table without a step, of no numbers, or one that rises: no region could wait for its context."""
    if sigmas.shape[0] < 2:
        raise ValueError(f"The table of sigmas has {sigmas.shape[0]} entries: at least one step (2 entries) is needed.")
    if not sigmas.isfinite().all():
        raise ValueError(
            "The table of sigmas has values that are not numbers (kl_optimal gives such for a single step). Set more steps or "
            f"another scheduler, or {SWITCH_OFF}."
        )
    rises = (sigmas[1:] > sigmas[:-1]).nonzero().flatten().tolist()
    if rises:
        before, after = sigmas[rises[0] : rises[0] + 2].tolist()
        raise ValueError(
            f"The table of sigmas rises in step {rises[0] + 1} (from {before:.4g} to {after:.4g}): asynchronous sampling only "
            f"denoises. Sort the sigmas downwards (Flip Sigmas turns them), or {SWITCH_OFF}."
        )


def table_clock(sigmas: Tensor, positions: Tensor, grid: NoiseGrid) -> Clock:
    """The clock of our default: counts in intervals of the table, starts level with it (L = N - 1).

    Raises ValueError for a table without a step, or one that rises.
    """
    _check_table(sigmas)
    return Clock(sigmas, positions, grid, Track(end=0.0, unit=1.0, intervals=max(sigmas.shape[0] - 2, 1)))


def paper_clock(sigmas: Tensor, positions: Tensor, grid: NoiseGrid) -> PaperClock:
    """The clock of the paper preset: counts in timesteps, and regions lag from before the first evaluation.

    The first move is made at step -1, from one interval above the table's first timestep (1001 for N steps of 1000 / N
    down to 1), so L = N. Raises ValueError where the table is not evenly spaced in timesteps, has no step or rises.
    """
    _check_table(sigmas)
    evaluated = positions[:-1].tolist()
    steps = len(evaluated)
    unit = (evaluated[0] - evaluated[-1]) / max(steps - 1, 1)
    even = all(abs(evaluated[0] - i * unit - t) < 0.5 for i, t in enumerate(evaluated))
    if steps < 2 or not even:
        raise ValueError(
            "The paper preset needs at least 2 steps that are evenly spaced in timesteps, got timesteps "
            f"{[round(t) for t in evaluated[:6]]}... Set the scheduler to ddim_uniform, or the preset to default."
        )
    return PaperClock(sigmas, positions, grid, Track(end=evaluated[-1], unit=unit, intervals=steps), anchor=-1)
