"""Other ways to read regions from attention than the pack's own: what the sweeps try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from asyndm_core.attention import Attention, token_columns
from asyndm_core.regions import Plan, weights
from demo.config import MAX_TOKENS
from demo.model import Parts
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
    automatic: a strength of its own for every region and step, by what is seen (see ``automatic_strength``). Needs a
    timestep map with feathered regions.
    factor: the layers that are read, by how much smaller than the latents they are; None for the pack's choice.
    inverse: the regions are what no target holds, as one region, the first.
    """

    memory: float = 0.0
    shares: Literal["none", "targets", "prompt"] = "none"
    trusted: tuple[int, int] = (0, 1000)
    soft: bool = False
    automatic: Literal["none", "small", "sure", "neglected"] = "none"
    factor: int | None = None
    inverse: bool = False

    def columns(self, model: Parts, scenes: Sequence[Scene], words: int) -> Tensor:
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

    def __call__(self, plan: Plan, attention: Attention, shape: tuple[int, int, int], device: torch.device) -> Tensor:
        """The weights (R, B, H, W) of the regions after one more step's attention."""
        reading, count = self._reading, len(plan.words)
        seen = attention.shares[:, :count]
        if reading.shares == "targets":
            seen = seen / seen.sum(dim=1, keepdim=True)
        elif reading.shares == "prompt":
            seen = seen / attention.shares[:, count:]
        past = self._steps / (self._steps + 1) if reading.memory == 1 else reading.memory
        self._kept = seen if self._kept is None else torch.lerp(seen, self._kept, past)
        self._steps += 1
        if not reading.trusted[0] < self._steps <= reading.trusted[1]:
            return torch.zeros(len(plan.regions), *shape, device=device)
        kept = Attention(self._kept, attention.weight[:, :count])
        found = soft_weights(plan, self._kept, shape) if reading.soft else weights(plan, kept, shape, device)
        if reading.inverse:
            return torch.cat([1 - found.amax(dim=0, keepdim=True), torch.zeros_like(found[1:])])
        return found if reading.automatic == "none" else found * automatic_strength(plan, self._kept, found, reading.automatic)


def automatic_strength(plan: Plan, attention: Tensor, region_weights: Tensor, kind: str) -> Tensor:
    """What every word region's strength is multiplied by, (R, B, 1, 1) in [0, 1].

    attention: (B, words, h, w). region_weights: (R, B, H, W). small: the share of the picture that the region leaves free.
    sure: how much more of the word's attention the region holds than an even spread would put there. neglected: the
    smallest peak of attention among the words, divided by this word's: the word that is seen least keeps it all.
    """
    area = region_weights.mean(dim=(-2, -1), keepdim=True)
    if kind == "small":
        return 1 - area
    seen = of_regions(plan, attention)
    if kind == "sure":
        seen = F.interpolate(seen, size=region_weights.shape[-2:], mode="bilinear")
        held = (seen * region_weights).sum(dim=(-2, -1), keepdim=True) / seen.sum(dim=(-2, -1), keepdim=True)
        return ((held - area) / (1 - area).clamp(min=1e-6)).clamp(0, 1)
    peak = seen.amax(dim=(-2, -1), keepdim=True)
    return peak.amin(dim=0) / peak


def soft_weights(plan: Plan, attention: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The weight of every word region in proportion to its attention (B, words, h, w): (R, B, H, W) in [0, 1]."""
    seen = F.interpolate(attention, size=shape[1:], mode="bilinear")
    ratio = seen / seen.mean(dim=(-2, -1), keepdim=True)
    soft = ((ratio - FAINT) / (FULL - FAINT)).clamp(0, 1)
    return of_regions(plan, soft)


def of_regions(plan: Plan, attention: Tensor) -> Tensor:
    """The attention (B, words, h, w) of every word region's word: (R, B, h, w)."""
    words = [plan.words.index(region.word) for region in plan.regions if region.word is not None]
    return attention[:, words].transpose(0, 1)
