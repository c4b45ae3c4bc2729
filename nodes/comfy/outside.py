"""Frames of a clip's latents that are no part of the clip: ComfyUI's nodes put them there, and cut them off in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .families import family_of
from .lightricks import keyframes_of

ANIMATE = "Wan Animate"


def outside_of(conds: Sequence[Mapping[str, Any]], model: Any, size: Sequence[int]) -> tuple[int, int]:
    """How many of the frames of clips of a size, (T, H, W), are before and behind the clip's own.

    conds: of a sampling, or what conditionings say beside their text. model: of ComfyUI.

    Before them: pictures that Wan's VACE and Animate refer to (``trim_latent`` of their nodes). Behind them: keyframes.
    """
    if len(size) != 3:
        return 0, 0
    return max((_referred(cond, model) for cond in conds), default=0), keyframes_of(conds, size)


def _referred(cond: Mapping[str, Any], model: Any) -> int:
    """How many of the first frames of a cond hold pictures that are referred to.

    WanVaceToVideo puts nothing, as its latents have it, where it puts what is to change in frames of the clip: no autoencoder
    makes exactly that of a picture. WanAnimateToVideo always puts one, and marks it as known.
    """
    if cond.get("vace_frames"):
        nothing = model.latent_format.process_out(torch.zeros(1, 16, 1, 1, 1))
        return max(_opening((given[:, 16:32] == nothing.to(given)).all(1)) for given in cond["vace_frames"])
    family = family_of(model.diffusion_model)
    known = cond.get("concat_mask")
    if family is None or family.name != ANIMATE or known is None:
        return 0
    return min(1, _opening((known == 0).all(1)))


def _opening(frames: Tensor) -> int:
    """Of how many of the first frames all is true, (B, T, H, W)."""
    return int(frames.all(-1).all(-1).all(0).long().cumprod(0).sum())
