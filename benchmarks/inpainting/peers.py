"""Other ways to inpaint, on the same host: Differential Diffusion's threshold, and RePaint's resampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyndm_core.embedding import Groups
from asyndm_core.hosts.diffusers import sigma_of_alphas
from asyndm_core.inpainting import InpaintingHost
from asyndm_core.regions import feather, grow
from asyndm_core.samplers import History, Model, Noise, NoiseLaw, Prediction, Sampler, Step
from demo.config import TRAIN_STEPS
from demo.model import alphas_cumprod
from demo.sample import Settings

EDGE = 2
"""Latent pixels over which a soft edge fades, outside of the hole."""


def soft_edge(mask: Tensor) -> Tensor:
    """A mask (B, 1, h, w) that fades around its holes; inside it stays 1."""
    return torch.maximum(mask, feather(grow(mask[:, 0], EDGE // 2), EDGE)[:, None])


@dataclass(frozen=True)
class DifferentialHost(InpaintingHost):
    """Differential Diffusion (arXiv 2306.00950), as ComfyUI's node has it: a pixel of which the part m is drawn is free from
    where 1 - m of the timesteps are over, of its own where pixels have different ones. For runs of the whole schedule.
    """

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``."""
        table = sigma_of_alphas(alphas_cumprod()).log().to(sigma.device)
        left = torch.bucketize(sigma.log(), (table[1:] + table[:-1]) / 2) / (TRAIN_STEPS - 1)
        free = (self.mask >= left).to(self.mask)
        return InpaintingHost(self.host, self.latent, free, self.noised).denoise(x, sigma, reference, watch, groups)


@dataclass(frozen=True)
class Resampling(Sampler):
    """A sampler that goes back and takes each step anew, ``times`` in all, with fresh noise (RePaint, arXiv 2201.09865)."""

    times: int = 1

    def step(self, model: Model, x: Tensor, step: Step, history: History, noise: Noise, law: NoiseLaw) -> Tensor:
        """See ``Sampler``."""
        for _ in range(self.times - 1):
            moved = super().step(model, x, step, self.history(), noise, law)
            x = moved + (step.sigma**2 - step.sigma_next**2).sqrt() * noise(*step.clock)
        return super().step(model, x, step, history, noise, law)


@dataclass(frozen=True)
class Repeated(Settings):
    """Settings whose sampler takes each step several times."""

    times: int = 1

    @classmethod
    def of(cls, settings: Settings, times: int) -> Repeated:
        """The same settings, with each step taken ``times``."""
        return cls(**vars(settings), times=times)

    def made_sampler(self) -> Sampler:
        """See ``Settings``."""
        return Resampling(**vars(super().made_sampler()), times=self.times)
