"""A small convolutional autoencoder: pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 12, H/8, W/8) of unit spread."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LATENT_CHANNELS


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class DemoVAE(nn.Module):
    """Encoder and decoder by a factor of 8 without normalisation layers, so any multiple of 8 works.

    `mean` and `spread` (per channel) bring the latents to zero mean and unit standard deviation.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, finest: int = 32, fine: int = 64, coarse: int = 96, latent_channels: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            Residual(coarse),
            nn.SiLU(),
            nn.Conv2d(coarse, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, coarse, 3, padding=1),
            Residual(coarse),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            Residual(fine),
            Residual(fine),
            nn.SiLU(),
            nn.Conv2d(fine, 4 * finest, 3, padding=1),
            nn.PixelShuffle(2),
            Residual(finest),
            nn.SiLU(),
            nn.Conv2d(finest, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("spread", torch.ones(latent_channels))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> latents (B, 12, H/8, W/8)."""
        return (self.encoder(images) - self.mean[:, None, None]) / self.spread[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 12, h, w) -> images (B, 3, 8h, 8w), about [-1, 1]."""
        return self.decoder(latents * self.spread[:, None, None] + self.mean[:, None, None])
