"""Latents as a rough picture: the linear map that ComfyUI's latent formats carry for previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def latent_to_rgb(latent_format: Any) -> Callable[[Tensor], Tensor] | None:
    """A function from latents (C, h, w) to an image (h, w, 3) in [0, 1], on their device; None if the format has none."""
    if latent_format.latent_rgb_factors is None:
        return None
    factors = torch.tensor(latent_format.latent_rgb_factors)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0])

    def to_rgb(latents: Tensor) -> Tensor:
        nonlocal factors, bias
        factors, bias = factors.to(latents.device), bias.to(latents.device)
        return ((latents.movedim(0, -1).float() @ factors + bias + 1) / 2).clamp(0, 1)

    return to_rgb
