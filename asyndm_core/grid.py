"""The tokens of a picture: a transformer reads latent pixels in patches, and all pixels of one share a timestep."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class TokenGrid(NamedTuple):
    """How latent pixels lie in tokens: in patches (height, width) from the top left. A UNet's tokens are single pixels.

    size: (H, W) of the latents. The last patches of a size that is no multiple are cut off by the edge; models pad them.
    """

    size: tuple[int, int]
    patch: tuple[int, int] = (1, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w), how many tokens there are."""
        return -(-self.size[0] // self.patch[0]), -(-self.size[1] // self.patch[1])

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Maps of the tokens (..., h, w) with each value at all its pixels, (..., H, W)."""
        if self.patch == (1, 1):
            return maps
        rows = maps.repeat_interleave(self.patch[0], dim=-2)[..., : self.size[0], :]
        return rows.repeat_interleave(self.patch[1], dim=-1)[..., : self.size[1]]

    def mean(self, maps: Tensor) -> Tensor:
        """The mean of each token's pixels: maps (B, H, W) -> (B, h, w)."""
        if self.patch == (1, 1):
            return maps
        return F.avg_pool2d(maps[:, None], self.patch, ceil_mode=True, count_include_pad=False)[:, 0]

    def most(self, maps: Tensor) -> Tensor:
        """The greatest of each token's pixels: maps (B, H, W) -> (B, h, w)."""
        if self.patch == (1, 1):
            return maps
        return F.max_pool2d(maps[:, None], self.patch, ceil_mode=True)[:, 0]
