"""A timestep of its own for every pixel of a UNet: embed the distinct timesteps once, gather per pixel in each block.

A UNet reads its timestep only as a vector that each residual block projects and adds to its features. Projecting the n
distinct timesteps of a map and gathering the results by pixel is the same, at the cost of at most n rows per block: a
block at 1/4 of the latents projects the timesteps that every fourth pixel has. The values are in such an order that those
are the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer import Transfer

STRIDES = (8, 4, 2, 1)
"""Of every how many rows and columns the blocks of a UNet take a pixel. Coarser blocks take a part of what those of 8 take."""


@dataclass(frozen=True, eq=False)
class PixelTimesteps:
    """A map of timesteps in n distinct values: values (n,) and index (B, *size) long into them. (UNets read pictures only.)

    index may be (1, *size) for a batch whose images all have the same map: it is then gathered once for all of them.
    counts: how many of the values, from the first, the pixels have that a block of each of STRIDES takes; None: unknown.
    """

    values: Tensor
    index: Tensor
    counts: tuple[int, ...] | None = None

    def rows(self, images: int) -> Tensor:
        """Each value once for each image, (n x images,): for a UNet that adds something of each image to them."""
        return self.values[:, None].expand(-1, images).flatten()

    def beside_rows(self, of_images: Tensor) -> Tensor:
        """Something of each image (images, C), in the order of ``rows``: (n x images, C)."""
        return of_images.expand(len(self.values), -1, -1).flatten(0, 1)

    def at_size(self, height: int, width: int) -> PixelTimesteps:
        """The same for the pixels of a block (see ``at_size``), without the values that none of them has.

        All values stay while torch.compile traces: it would compile the network anew whenever a count is another.
        """
        index = at_size(self.index, height, width).contiguous()
        stride = stride_of(self.index.shape, height, width)
        if torch.compiler.is_compiling() or stride is None or self.counts is None:
            return PixelTimesteps(self.values, index)
        return PixelTimesteps(self.values[: self.counts[STRIDES.index(min(stride, STRIDES[0]))]], index)


@dataclass(frozen=True, eq=False)
class Groups:
    """The pixels of a map in groups, one for each distinct value; first those with pixels that the coarsest blocks take.

    index (B, *size) long: the group of every pixel. members (B x H x W,) long: one pixel of each group; only the first
    ``count`` count. How many there are is on its way to the host since the groups were made (see ``Transfer``), so that
    reading it after the device was given other work holds nothing up.
    """

    index: Tensor
    members: Tensor
    summary: Transfer

    @property
    def counts(self) -> tuple[int, ...]:
        """How many groups have pixels that a block of each of STRIDES takes."""
        return tuple(int(last) + 1 for last in self.summary.read()[1:].tolist())

    @property
    def count(self) -> int:
        """n, the number of groups."""
        return self.counts[-1]

    @property
    def least(self) -> float:
        """The smallest value of the map that was grouped."""
        return float(self.summary.read()[0])

    def of(self, level: Tensor) -> PixelTimesteps:
        """Another map (B, *size) that is even within each group, by these groups."""
        counts = self.counts
        return PixelTimesteps(level.flatten()[self.members[: counts[-1]]], self.index, counts)

    def split(self, other: Groups) -> Groups:
        """The pixels that share both this group and ``other``'s: whatever is computed from both is even within them."""
        return grouped(self.index * self.index.numel() + other.index)


def grouped(level: Tensor) -> Groups:
    """The groups of a map (B, *size). No result has a size that depends on the values, so nothing waits for the device.

    The pixels are listed from the coarsest grid to all, and groups are numbered as they first occur in that list.
    """
    grids = [level[..., ::stride, ::stride].flatten() for stride in STRIDES]
    listed, order = torch.cat(grids).sort(stable=True)
    begins = F.pad(listed[1:] != listed[:-1], (1, 0), value=True)
    rank = begins.cumsum(0) - 1
    places = torch.arange(rank.shape[0], device=rank.device)
    numbers = torch.empty_like(begins).scatter_(0, order, begins).cumsum(0) - 1
    begin = torch.searchsorted(rank, places).clamp(max=rank.shape[0] - 1)
    number = numbers[order[begin]][rank]
    index = torch.empty_like(number).scatter_(0, order, number)[-level.numel() :]
    members = torch.empty_like(index).scatter_(0, index, places[: index.shape[0]])
    last = [numbers[end - 1 : end] for end in accumulate(grid.shape[0] for grid in grids)]
    return Groups(index.view(level.shape), members, Transfer(torch.cat([listed[:1].float(), *last])))


def stride_of(size: Sequence[int], height: int, width: int) -> int | None:
    """The stride 2^k of a block of height x width pixels on a map (..., H, W); None where its size is none that k
    convolutions of stride 2 make."""
    full_height, full_width = size[-2:]
    stride = 1
    while -(-full_height // stride) > height or -(-full_width // stride) > width:
        stride *= 2
    return stride if (-(-full_height // stride), -(-full_width // stride)) == (height, width) else None


def at_size(index: Tensor, height: int, width: int) -> Tensor:
    """The index map (B, H, W) at a block's size (B, height, width).

    A convolution of stride 2 centres its output i on input 2 i, so the block at 1/2^k of the latent takes every 2^k-th
    pixel; that is aligned for odd sizes too. Another size (a host that resizes features) takes the nearest pixel.
    """
    stride = stride_of(index.shape, height, width)
    if stride is not None:
        return index[..., ::stride, ::stride]
    full_height, full_width = index.shape[-2:]
    rows = torch.arange(height, device=index.device) * full_height // height
    columns = torch.arange(width, device=index.device) * full_width // width
    return index[..., rows[:, None], columns]


def gather(embedded: Tensor, pixels: PixelTimesteps) -> Tensor:
    """Embedded timesteps to the pixels of a block: (B, C, H, W).

    embedded: a row for each distinct timestep (n, C), or for each of each image (n x B, C), see ``PixelTimesteps.rows``.
    """
    index = pixels.index.flatten(1)[:, None]
    per_image = embedded.unflatten(0, (pixels.values.shape[0], -1)).permute(1, 2, 0)
    batch, channels = max(index.shape[0], per_image.shape[0]), per_image.shape[1]
    columns = per_image.expand(batch, -1, -1).gather(2, index.expand(batch, channels, -1))
    return columns.unflatten(2, pixels.index.shape[1:])


class BlockTimesteps:
    """The timesteps of a network's residual blocks: each projects those that its own pixels have, and gathers them.

    All blocks of one size share their pixels.
    """

    def __init__(self, pixels: PixelTimesteps) -> None:
        self._pixels = pixels
        self._at_size: dict[tuple[int, int], PixelTimesteps] = {}

    def to_project(self, embedded: Tensor, height: int, width: int) -> Tensor:
        """Of the embedded timesteps (see ``gather``) those of a block of height x width pixels."""
        images = embedded.shape[0] // self._pixels.values.shape[0]
        return embedded[: images * self._of(height, width).values.shape[0]]

    def to_pixels(self, projected: Tensor, height: int, width: int) -> Tensor:
        """What the block adds to its features, (B, C, height, width), from the projected rows."""
        return gather(projected, self._of(height, width))

    def _of(self, height: int, width: int) -> PixelTimesteps:
        if (height, width) not in self._at_size:
            self._at_size[height, width] = self._pixels.at_size(height, width)
        return self._at_size[height, width]
