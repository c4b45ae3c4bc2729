"""The measurement: the error of a region's denoised latents, while everything else is some timesteps ahead of it.

The latents are of real pictures, so what they should be denoised to is known. Every pixel is noised to its own level and the
model is told the truth; only how noisy the surroundings are changes. What a lag of 0 gives is the ordinary sampler's view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from asyndm_core.hosts import Host

TIMESTEPS = (950, 875, 800, 600, 400)
"""Of the region, in thousandths of the model's range."""
LAGS = (50.0, 100.0, 200.0, 300.0, 400.0, inf)
"""By how much the surroundings are less noisy, in the same unit; inf: they are clean."""
DECIDED = 800
"""What stands in a region is decided above this timestep, in the first steps of a run: the lead is chosen by those rows."""


@dataclass(frozen=True)
class Changes:
    """How the error changes against a lag of 0: mean and standard error, each (timesteps, lags), as shares of that error."""

    mean: Tensor
    error: Tensor


def errors(
    host: Host, latents: Tensor, region: Tensor, table: Tensor, noised: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """The mean squared error in the region of each picture: (timesteps, 1 + lags, B), the first lag being 0.

    latents: (B, C, H, W). region: (B, 1, H, W), true inside. table: (G,) ascending, the sigmas of the model's timesteps.
    noised: sigmas (B, 1, H, W) -> the latents at them, with the same noise every time.
    """
    size, inside = table.shape[0] / 1000, region.to(latents.dtype)
    rows = []
    for timestep in TIMESTEPS:
        row = []
        for lag in (0.0, *LAGS):
            ahead = table[int((timestep - lag) * size)] if lag < timestep else table.new_zeros(())
            sigma = torch.where(region, table[int(timestep * size)], ahead)
            off = host.denoise(noised(sigma), sigma).denoised - latents
            row.append((off**2 * inside).mean(dim=1).sum(dim=(1, 2)) / inside.sum(dim=(1, 2, 3)))
        rows.append(torch.stack(row))
    return torch.stack(rows).cpu()


def changes(found: Tensor) -> Changes:
    """From errors (timesteps, 1 + lags, N): the ratio of means, and its standard error over the N pictures."""
    even, ahead = found[:, :1].double(), found[:, 1:].double()
    ratio = ahead.mean(dim=-1) / even.mean(dim=-1)
    rest = ahead - ratio[..., None] * even
    error = rest.std(dim=-1) / rest.shape[-1] ** 0.5 / even.mean(dim=-1)
    return Changes(ratio - 1, error)


def suggested_lead(measured: Changes) -> float:
    """The lag, as a share of the range, that lowers the error most in the first steps; 0 where none does beyond 2 errors.

    The shortest within one error of the best: what is gained late, or lost there, counts too.
    """
    early = [row for row, timestep in enumerate(TIMESTEPS) if timestep >= DECIDED]
    mean = measured.mean[early].mean(dim=0)
    error = (measured.error[early] ** 2).sum(dim=0).sqrt() / len(early)
    best = int(mean.argmin())
    if mean[best] > -2 * error[best]:
        return 0.0
    shortest = int((mean <= mean[best] + error[best]).nonzero()[0])
    return min(LAGS[shortest] / 1000, 1.0)
