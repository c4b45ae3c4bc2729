"""ComfyUI's nested latents: a clip and its sound, which ComfyUI packs into one tensor (B, 1, N) while it samples them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.utils
from torch import Tensor

SHAPES = "latent_shapes"
"""What a model is told its packed latents' shapes by: those of the clip (B, C, T, H, W), then of what goes with it."""


def clip_of(packed: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """The clip (B, C, T, H, W) of packed latents, or of a map like them."""
    return comfy.utils.unpack_latents(packed, shapes)[0]


def clip_index(index: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The map of a clip's own pixels (B, T, H, W) in the map of all that a model is given, (B, N) where that is packed."""
    if index.ndim > 2:
        return index
    return clip_of(index[:, None], inputs[SHAPES])[:, 0]


def beside_index(index: Tensor) -> Tensor | None:
    """Of the same map, that of what goes with the clip, (B,): it has one noise level. None where nothing does."""
    return index[:, -1] if index.ndim == 2 else None
