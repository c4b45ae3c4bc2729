"""The schedules of the paper: how a pixel's state counts down, one interval at a time (arXiv 2510.04504, section 3.2).

A state ``s`` says how far a pixel still is from the end of its schedule. It counts down to ``track.end``,
``track.unit`` per interval for a pixel that keeps pace, and reaches the end when no interval is left. Two units
are in use (see ``clock``): intervals left (end 0, unit 1), and the model's timesteps (the paper's own).

Every curve maps the current state to the next one. It needs no memory: by the paper's Proposition 1 the shifted curve
through (now, s) always reaches the end, so a pixel may change its curve, or leave it, at every step.

In all functions: ``state`` (B, H, W) or any shape; ``rest`` >= 1 is the number of intervals left, r in the paper;
``strength`` is k in [0, 1], a number or a map like ``state``. The result has the shape of ``state``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Track(NamedTuple):
    """What all curves of a run share: the state at the end, the state's unit per interval, intervals in total (L)."""

    end: float
    unit: float
    intervals: int


Strength = float | Tensor
Curve = Callable[[Tensor, int, Strength, Track], Tensor]


def linear(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """The chord from the current state to the end: s' = s - (s - end) / r. Strength has no effect."""
    return state - (state - track.end) / rest


def quadratic(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """The parabola (the paper's equation 6): s' = s - (s - end) / r + k (unit / L) (r - 1)."""
    return linear(state, rest, strength, track) + strength * (track.unit / track.intervals * (rest - 1))


def piecewise_linear(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """Slow, then fast: s' = min(s - (1 - k) unit, end + (1 + k) unit (r - 1))."""
    slow = state - (1 - strength) * track.unit
    fast = track.end + (1 + strength) * (track.unit * (rest - 1))
    if isinstance(fast, Tensor):
        return torch.minimum(slow, fast)
    return slow.clamp(max=fast)


def exponential(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """s' = s - (1 - k) unit - (s - end - (1 - k) unit r) (e^(1/L) - 1) / (e^(r/L) - 1)."""
    straight = (1 - strength) * track.unit
    bend = math.expm1(1 / track.intervals) / math.expm1(rest / track.intervals)
    return state - straight - (state - track.end - straight * rest) * bend


CURVES: dict[str, Curve] = {
    "quadratic": quadratic,
    "piecewise linear": piecewise_linear,
    "exponential": exponential,
    "linear": linear,
}


def authors_linear(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """``linear`` in the order of operations of the authors' code: s' = s (1 - 1/r) + end / r."""
    return state * (1 - 1 / rest) + torch.full((), track.end, dtype=state.dtype, device=state.device) / rest


def authors_quadratic(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """``quadratic`` in the order of operations of the authors' code: the parabola by its vertex (x0, y0).

    Its states are often exact halves, which rounding to a timestep then breaks by the last bit of float32; only this
    order gives the authors' timesteps. It cancels badly for small k (1 / k goes to infinity), so those and a map of
    strengths take the stable form.
    """
    if isinstance(strength, Tensor) or strength < 1e-3:
        return quadratic(state, rest, strength, track)
    bend = -strength * (track.unit * track.intervals / (track.intervals * track.intervals))
    end = torch.full((), track.end, dtype=state.dtype, device=state.device)
    x0 = (bend * rest**2 - (end - state)) / (2 * bend * rest)
    y0 = state - bend * x0**2
    return bend * (1 - x0) ** 2 + y0


AUTHORS_CURVES: dict[str, Curve] = {**CURVES, "quadratic": authors_quadratic, "linear": authors_linear}
"""The curves as the paper preset needs them: equal to ``CURVES`` up to rounding."""
