"""Inpainting: latents are given, and a mask says how much of each pixel is drawn: 1 all of it, 0 nothing (it is known).

ComfyUI's way (Avrahami et al. 2022, arXiv 2206.02779, section 4), with a map of noise levels in place of one: the model
is shown the known part at its pixel's noise level, and what it says of that part is replaced by the given latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Attention
from .embedding import Groups
from .hosts import Host
from .samplers import NoiseLaw, Prediction

DRAWN = 0.01
"""A pixel is known where less of it is drawn; rounding and compression leave that much of black in a mask."""


def drawn(mask: Tensor) -> Tensor:
    """How much of each pixel (B, *size) a mask (B, C or 1, *size) in [0, 1] draws: 0 where the pixel is known."""
    most = mask.amax(dim=1)
    return most.masked_fill(most < DRAWN, 0.0)


def blend(drawn: Tensor, given: Tensor, mask: Tensor) -> Tensor:
    """``drawn`` where the mask is 1, ``given`` where it is 0; all (B, C, *size), the mask may have one channel."""
    return drawn * mask + given * (1 - mask)


@dataclass(frozen=True)
class _Around:
    """What hosts around another one hand on of it: all of ``hosts.Host`` but how it denoises."""

    host: Host

    @property
    def law(self) -> NoiseLaw:
        """The model's."""
        return self.host.law

    def attention(self) -> Attention | None:
        """See ``hosts.Host``."""
        return self.host.attention()

    def acts(self, reference: Tensor) -> Tensor | None:
        """See ``hosts.Host``."""
        return self.host.acts(reference)


@dataclass(frozen=True)
class InpaintingHost(_Around):
    """A host that draws only what the mask says. Implements ``hosts.Host``.

    latent: given (B, C, *size). mask: (B, C or 1, *size) in [0, 1]. noised: sigmas (B, 1, *size) -> the given latents at them.
    """

    latent: Tensor
    mask: Tensor
    noised: Callable[[Tensor], Tensor]

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``."""
        seen = blend(x, self.noised(sigma), self.mask)
        prediction = self.host.denoise(seen, sigma, reference, watch, groups)
        return prediction._replace(denoised=blend(prediction.denoised, self.latent, self.mask))


@dataclass(frozen=True)
class HoldingHost(_Around):
    """A host that keeps every pixel as it is given until its own denoise begins. Implements ``hosts.Host``.

    latent: given (B, C, *size). until: (B, 1, *size), the sigma that each pixel is drawn from.
    """

    latent: Tensor
    until: Tensor

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``."""
        said, held = self.host.denoise(x, sigma, reference, watch, groups), sigma > self.until
        uncond = None if said.uncond is None else torch.where(held, self.latent, said.uncond)
        return Prediction(torch.where(held, self.latent, said.denoised), uncond)
