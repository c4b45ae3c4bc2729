"""Other ways to read regions from attention than the pack's own: what the sweeps try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from asyndm_core.attention import token_columns
from asyndm_core.regions import Plan, weights
from demo.config import MAX_TOKENS
from demo.model import DemoModel
from demo.sample import pieces
from demo.world import Scene

from .scenes import target_columns

FAINT, FULL = 0.5, 2.0
"""Soft regions: attention, as a multiple of its spatial mean, where strength begins and where it is whole."""


@dataclass(frozen=True)
class Reading:
    """How a run's attention becomes regions. Without changes it is the pack's own way.

    memory: share of the masks' past that stays at every step, in [0, 1]; 1 is the mean over all steps so far.
    shares: attention of a target divided by that of all targets, or of all words of the prompt, at the same pixel.
    trusted: the steps [first, last) whose regions count; outside of them nobody lags any further.
    soft: strength in proportion to attention, from FAINT to FULL. Needs a timestep map with feathered regions.
    factor: the layers that are read, by how much smaller than the latents they are; None for the pack's choice.
    """

    memory: float = 0.0
    shares: Literal["none", "targets", "prompt"] = "none"
    trusted: tuple[int, int] = (0, 1000)
    soft: bool = False
    factor: int | None = None

    def columns(self, model: DemoModel, scenes: Sequence[Scene], words: int) -> Tensor:
        """(B, tokens, words): whose attention is wanted; with one more at the end for all words of the prompt together."""
        columns = target_columns(model, scenes)[..., :words]
        if self.shares != "prompt":
            return columns
        every = [[[piece.position for piece in pieces(model, scene.prompt())]] for scene in scenes]
        whole = torch.stack([token_columns(positions, MAX_TOKENS) for positions in every])
        return torch.cat([columns, whole], dim=-1)


class Weigher:
    """A reading at work in one run; stands for ``regions.weights``."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._steps = 0
        self._kept: Tensor | None = None

    def __call__(self, plan: Plan, attention: Tensor, shape: tuple[int, int, int], device: torch.device) -> Tensor:
        """The weights (R, B, H, W) of the regions after one more step's attention (B, words, h, w)."""
        reading, count = self._reading, len(plan.words)
        seen = attention[:, :count]
        if reading.shares == "targets":
            seen = seen / seen.sum(dim=1, keepdim=True)
        elif reading.shares == "prompt":
            seen = seen / attention[:, count:]
        past = self._steps / (self._steps + 1) if reading.memory == 1 else reading.memory
        self._kept = seen if self._kept is None else torch.lerp(seen, self._kept, past)
        self._steps += 1
        if not reading.trusted[0] < self._steps <= reading.trusted[1]:
            return torch.zeros(len(plan.regions), *shape, device=device)
        return soft_weights(plan, self._kept, shape) if reading.soft else weights(plan, self._kept, shape, device)


def soft_weights(plan: Plan, attention: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The weight of every word region in proportion to its attention (B, words, h, w): (R, B, H, W) in [0, 1]."""
    seen = F.interpolate(attention, size=shape[1:], mode="bilinear")
    ratio = seen / seen.mean(dim=(-2, -1), keepdim=True)
    soft = ((ratio - FAINT) / (FULL - FAINT)).clamp(0, 1)
    return torch.stack([soft[:, plan.words.index(region.word)] for region in plan.regions if region.word is not None])
