"""The tokens of a picture or a clip: a transformer reads latent pixels in patches, and all pixels of one share a timestep."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenGrid(NamedTuple):
    """How latent pixels lie in tokens: in patches from the first corner. A UNet's tokens are single pixels.

    size: of the latents, (H, W), or (T, H, W) of a clip. patch: a token's extent along the last of these dimensions, 1 along
    those before. The last patches of a size that is no multiple are cut off by the edge; models pad them.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...] = (1, 1)

    @property
    def extents(self) -> tuple[int, ...]:
        """A token's extent along every dimension."""
        return (1,) * (len(self.size) - len(self.patch)) + self.patch

    @property
    def shape(self) -> tuple[int, ...]:
        """How many tokens there are along every dimension."""
        return tuple(-(-size // extent) for size, extent in zip(self.size, self.extents, strict=True))

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Maps of the tokens (..., *shape) with each value at all its pixels, (..., *size)."""
        for dim, (size, extent) in enumerate(zip(self.size, self.extents, strict=True), start=-len(self.size)):
            if extent > 1:
                maps = maps.repeat_interleave(extent, dim=dim).narrow(dim, 0, size)
        return maps

    def to_latents(self, maps: Tensor, beside: Tensor | float) -> Tensor:
        """Maps of the tokens (B, 1, *shape) at all that the latents hold, see ``PackedGrid``: pixels, (B, 1, *size)."""
        return self.to_pixels(maps)

    def mean(self, maps: Tensor) -> Tensor:
        """The mean of each token's pixels: maps (B, *size) -> (B, *shape)."""
        if max(self.extents) == 1:
            return maps
        pool = F.avg_pool3d if len(self.size) == 3 else F.avg_pool2d
        return pool(maps[:, None], self.extents, ceil_mode=True, count_include_pad=False)[:, 0]

    def most(self, maps: Tensor) -> Tensor:
        """The greatest of each token's pixels: maps (B, *size) -> (B, *shape)."""
        if max(self.extents) == 1:
            return maps
        pool = F.max_pool3d if len(self.size) == 3 else F.max_pool2d
        return pool(maps[:, None], self.extents, ceil_mode=True)[:, 0]


class PackedGrid(NamedTuple):
    """How the tokens of a clip lie in latents (B, 1, N) that the clip is packed into with what goes along, such as its sound.

    tokens: of the clip, whose C channels come first. beside: how many numbers follow it.
    """

    tokens: TokenGrid
    channels: int
    beside: int

    @property
    def size(self) -> tuple[int, ...]:
        """Of the clip, (T, H, W)."""
        return self.tokens.size

    @property
    def shape(self) -> tuple[int, ...]:
        """How many tokens the clip has along every dimension."""
        return self.tokens.shape

    def to_pixels(self, maps: Tensor) -> Tensor:
        """Maps of the tokens (..., *shape) with each value at all its pixels of the clip, (..., *size)."""
        return self.tokens.to_pixels(maps)

    def to_latents(self, maps: Tensor, beside: Tensor | float) -> Tensor:
        """Maps of the tokens (B, 1, *shape) at all that the latents hold, (B, 1, N). beside: the value of what goes along."""
        clip = self.tokens.to_pixels(maps).flatten(2).repeat(1, 1, self.channels)
        rest = torch.as_tensor(beside, dtype=maps.dtype, device=maps.device)
        return torch.cat([clip, rest.expand(clip.shape[0], 1, self.beside)], dim=-1)


Grid = TokenGrid | PackedGrid


def with_frames_outside(maps: Tensor, before: int, behind: int) -> Tensor:
    """Maps of clips (..., T, H, W) with so many frames of 0 before and behind their own."""
    return F.pad(maps, (0, 0, 0, 0, before, behind))


def without_frames_outside(maps: Tensor, before: int, behind: int) -> Tensor:
    """The frames of their own of maps of clips (..., T, H, W) that have so many before and behind them."""
    return maps[..., before : maps.shape[-3] - behind, :, :] if before or behind else maps
