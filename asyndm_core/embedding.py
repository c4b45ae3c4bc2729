"""A timestep of its own for every pixel of a UNet: embed the distinct timesteps once, gather per pixel in each block.

A UNet reads its timestep only as a vector that each residual block projects and adds to its features. Projecting the n
distinct timesteps of a map and gathering the results by pixel is the same, at the cost of n rows per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PixelTimesteps:
    """A map of timesteps in n distinct values: values (n,) and index (B, H, W) long into them."""

    values: Tensor
    index: Tensor

    @property
    def rows(self) -> Tensor:
        """The values for every image of the batch, (B x n,): what the UNet is given as its timesteps."""
        return self.values.repeat(self.index.shape[0])


def distinct(timesteps: Tensor) -> PixelTimesteps:
    """The distinct values of a map (B, H, W). On a GPU this waits for the device once."""
    values, index = torch.unique(timesteps, return_inverse=True)
    return PixelTimesteps(values, index)


def at_size(index: Tensor, height: int, width: int) -> Tensor:
    """The index map (B, H, W) at a block's size (B, height, width).

    A convolution of stride 2 centres its output i on input 2 i, so the block at 1/2^k of the latent takes every 2^k-th
    pixel; that is aligned for odd sizes too. Another size (a host that resizes features) takes the nearest pixel.
    """
    full_height, full_width = index.shape[-2:]
    stride = 1
    while -(-full_height // stride) > height or -(-full_width // stride) > width:
        stride *= 2
    if (-(-full_height // stride), -(-full_width // stride)) == (height, width):
        return index[..., ::stride, ::stride]
    rows = torch.arange(height, device=index.device) * full_height // height
    columns = torch.arange(width, device=index.device) * full_width // width
    return index[..., rows[:, None], columns]


def gather(embedded: Tensor, index: Tensor) -> Tensor:
    """Rows of embedded timesteps (B x n, C), image by image, to pixels: index (B, h, w) -> (B, C, h, w)."""
    batch, height, width = index.shape
    per_image = embedded.unflatten(0, (batch, -1)).transpose(1, 2)
    flat = index.reshape(batch, 1, -1).expand(-1, per_image.shape[1], -1)
    return per_image.gather(2, flat).reshape(batch, -1, height, width)
