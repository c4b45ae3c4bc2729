"""A timestep of its own for every pixel of a UNet: embed the distinct timesteps once, gather per pixel in each block.

A UNet reads its timestep only as a vector that each residual block projects and adds to its features. Projecting the n
distinct timesteps of a map and gathering the results by pixel is the same, at the cost of at most n rows per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer import Transfer


@dataclass(frozen=True, eq=False)
class PixelTimesteps:
    """A map of timesteps in n distinct values: values (n,) and index (B, H, W) long into them.

    index may be (1, H, W) for a batch whose images all have the same map: it is then gathered once for all of them.
    """

    values: Tensor
    index: Tensor

    def rows(self, images: int) -> Tensor:
        """The values once for each image, (images x n,): for a UNet that adds something of each image to them."""
        return self.values.repeat(images)

    def at_size(self, height: int, width: int) -> PixelTimesteps:
        """The same for the pixels of a block, see ``at_size``."""
        return PixelTimesteps(self.values, at_size(self.index, height, width).contiguous())


@dataclass(frozen=True, eq=False)
class Groups:
    """The pixels of a map in groups, one for each distinct value, in ascending order.

    index (B, H, W) long: the group of every pixel. members (B x H x W,) long: one pixel of each group; only the first
    ``count`` count. How many there are is on its way to the host since the groups were made (see ``Transfer``), so that
    reading it after the device was given other work holds nothing up.
    """

    index: Tensor
    members: Tensor
    summary: Transfer

    @property
    def count(self) -> int:
        """n, the number of groups."""
        return int(self.summary.read()[0])

    @property
    def least(self) -> float:
        """The smallest value of the map that was grouped."""
        return float(self.summary.read()[1])

    def of(self, level: Tensor) -> PixelTimesteps:
        """Another map (B, H, W) that is even within each group, by these groups."""
        return PixelTimesteps(level.flatten()[self.members[: self.count]], self.index)

    def split(self, other: Groups) -> Groups:
        """The pixels that share both this group and ``other``'s: whatever is computed from both is even within them."""
        return grouped(self.index * self.index.numel() + other.index)


def grouped(level: Tensor) -> Groups:
    """The groups of a map (B, H, W). No result has a size that depends on the values, so nothing waits for the device."""
    ordered, order = level.flatten().sort(stable=True)
    rank = F.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))
    index = torch.empty_like(rank).scatter_(0, order, rank).view(level.shape)
    first = torch.searchsorted(rank, torch.arange(rank.shape[0], device=rank.device)).clamp(max=rank.shape[0] - 1)
    return Groups(index, order[first], Transfer(torch.stack([rank[-1].float() + 1, ordered[0].float()])))


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


def gather(embedded: Tensor, pixels: PixelTimesteps) -> Tensor:
    """Embedded timesteps to the pixels of a block: (B, C, H, W).

    embedded: a row for each distinct timestep (n, C), or for each of each image (B x n, C), see ``PixelTimesteps.rows``.
    """
    index = pixels.index.flatten(1)[:, None]
    per_image = embedded.unflatten(0, (-1, pixels.values.shape[0])).transpose(1, 2)
    batch, channels = max(index.shape[0], per_image.shape[0]), per_image.shape[1]
    columns = per_image.expand(batch, -1, -1).gather(2, index.expand(batch, channels, -1))
    return columns.unflatten(2, pixels.index.shape[1:])


class BlockTimesteps:
    """The timesteps of a network's residual blocks: gathered after a block's projection, or before it.

    Both give the same. A block with fewer pixels than there are timesteps projects those of its pixels alone. All blocks
    of one size share their pixels, and these rows.
    """

    def __init__(self, pixels: PixelTimesteps) -> None:
        self._pixels = pixels
        self._at_size: dict[tuple[int, int], PixelTimesteps] = {}
        self._embedded: Tensor | None = None
        self._early: dict[tuple[int, int], Tensor] = {}

    def to_project(self, embedded: Tensor, height: int, width: int) -> Tensor:
        """The rows that a block should project: ``embedded`` (see ``gather``), or those of its height x width pixels."""
        if embedded is not self._embedded:  # another call of the network
            self._embedded, self._early = embedded, {}
        images = max(self._pixels.index.shape[0], embedded.shape[0] // self._pixels.values.shape[0])
        if embedded.shape[0] <= images * height * width:
            return embedded
        if (height, width) not in self._early:
            own = gather(embedded, self._of(height, width))
            self._early[height, width] = own.movedim(1, -1).flatten(0, 2)
        return self._early[height, width]

    def to_pixels(self, projected: Tensor, height: int, width: int) -> Tensor:
        """What the block adds to its features, (B, C, height, width), from the projected rows."""
        if (height, width) not in self._early:
            return gather(projected, self._of(height, width))
        return projected.unflatten(0, (-1, height, width)).movedim(-1, 1).contiguous()

    def _of(self, height: int, width: int) -> PixelTimesteps:
        if (height, width) not in self._at_size:
            self._at_size[height, width] = self._pixels.at_size(height, width)
        return self._at_size[height, width]
