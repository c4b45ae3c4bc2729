"""ComfyUI's nested latents: a clip and its sound, which ComfyUI packs into one tensor (B, 1, N) while it samples them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import comfy.utils
from torch import Tensor

from ...asyndm_core.grid import Grid, PackedGrid, TokenGrid
from .sampler import conds_of

SHAPES = "latent_shapes"
"""What a model is told its packed latents' shapes by: those of the clip (B, C, T, H, W), then of what goes along with it."""
Shapes = Sequence[Sequence[int]]


def shapes_of(guider: Any, latent: Tensor) -> Shapes | None:
    """The shapes of what is packed into the latents of a sampling, in which the guider is; None where they are not packed."""
    if latent.ndim != 3:
        return None
    told = (cond.get("model_conds", {}).get(SHAPES) for cond in conds_of(guider))
    return next((cond.cond for cond in told if cond is not None and len(cond.cond) > 1), None)


def check_placed(guider: Any) -> None:
    """ValueError where a prompt is for a part of packed latents, in a sampling of the guider: ComfyUI takes their length for a
    picture's size."""
    if any(cond.get(key) is not None for cond in conds_of(guider) for key in ("area", "mask")):
        raise ValueError(
            "A prompt is for a part of the picture (Conditioning (Set Area), (Set Mask) or kin), and the latents are a clip "
            "with sound: ComfyUI cannot place prompts in these. Bypass that node, or paint a region instead (connect mask to "
            "Cross-Attention Mask)."
        )


def clip_of(packed: Tensor, shapes: Shapes | None) -> Tensor:
    """The clip (B, C, T, H, W) of packed latents, or of a map like them; others as they are."""
    return packed if shapes is None else comfy.utils.unpack_latents(packed, shapes)[0]


def beside_of(packed: Tensor, shapes: Shapes) -> Tensor:
    """What follows the clip in packed latents, (B, 1, n)."""
    return packed[..., prod(shapes[0][1:]) :]


def grid_of(size: tuple[int, ...], patch: tuple[int, ...], shapes: Shapes | None) -> Grid:
    """How the tokens of pictures or clips of a size lie in latents."""
    tokens = TokenGrid(size, patch)
    return tokens if shapes is None else PackedGrid(tokens, shapes[0][1], sum(prod(shape[1:]) for shape in shapes[1:]))


def clip_index(index: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The map of a clip's own pixels (B, T, H, W) in the map of all that a model is given, (B, N) where that is packed."""
    return clip_of(index[:, None], inputs[SHAPES])[:, 0] if index.ndim == 2 else index


def beside_index(index: Tensor) -> Tensor | None:
    """Of the same map, that of what goes along, (B,): it has one noise level. None where nothing does."""
    return index[:, -1] if index.ndim == 2 else None
