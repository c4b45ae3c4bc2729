"""A run while it goes on, for a screen: small maps of bytes, a few times a second. Knows no server."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .pictures import lag, shade_lag, shown
from .record import chosen_steps, stretched
from .run import Snapshot
from .transfer import Transfer

LARGEST = 128
"""Pixels on a side of a map, or of each frame of a clip, at most."""
FRAMES = 48
"""Steps of a run that are shown, at most: evenly spread, the first and the last among them."""
PAUSE = 1 / 9
"""Seconds between two parcels; with the one at the end of a run there are at most ten in any second."""

LEVEL = 128
"""The byte of a pixel that is level with the background; 1 lags and 255 leads by a quarter of the run."""


class Frame(NamedTuple):
    """One step of the first image of a batch, as bytes on the CPU.

    planes: the shape of every map in the order of data. image (h, w, 3): what the model believes the picture to be;
    owner (h, w): index of the region + 1, 0 is nobody; progress (h, w): see ``LEVEL``; heat (words, h, w): attention. Of a
    clip, every map is of some of its frames, see ``pictures.shown``.
    """

    step: int
    planes: dict[str, tuple[int, ...]]
    data: Tensor


def progress_palette() -> Tensor:
    """The colour of every byte of a progress map: (256, 3) in [0, 1], as in ``pictures.progress_map``."""
    return shade_lag((LEVEL - torch.arange(256.0))[None] / (LEVEL - 1))[0]


def thin(maps: Tensor) -> Tensor:
    """Maps (..., h, w) of at most LARGEST pixels on a side: every n-th pixel."""
    every = -(-max(maps.shape[-2:]) // LARGEST)
    return maps[..., ::every, ::every]


def _bytes(values: Tensor) -> Tensor:
    """Values in [0, 1] as bytes."""
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)


def maps_of(snapshot: Snapshot, steps: int, to_rgb: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    """The maps of a frame (see ``Frame``), on the snapshot's device. to_rgb: latents (C, h, w) -> (h, w, 3) in [0, 1]."""
    maps = {}
    small = partial(_small, dims=snapshot.owner.ndim - 1)
    if to_rgb is not None:
        maps["image"] = _bytes(to_rgb(small(snapshot.denoised[0])))
    maps["owner"] = (small(snapshot.owner[0]) + 1).clamp(max=255).to(torch.uint8)
    lead = -lag(small(snapshot.progress[0]), snapshot.step, steps)
    maps["progress"] = (lead.clamp(-1, 1) * (LEVEL - 1) + LEVEL).round().to(torch.uint8)
    if snapshot.attention is not None:
        maps["heat"] = _bytes(stretched(small(snapshot.attention.shares[:1].float()))[0])
    return maps


def _small(maps: Tensor, dims: int) -> Tensor:
    """Maps of a picture or a clip for the screen."""
    return shown(thin(maps), dims)


class _Copy(NamedTuple):
    """A frame whose data are on their way to the CPU, all in one transfer."""

    step: int
    planes: dict[str, tuple[int, ...]]
    data: Transfer

    def frame(self) -> Frame:
        """The frame. Waits for its data."""
        return Frame(self.step, self.planes, self.data.read())


def _start_copy(step: int, maps: dict[str, Tensor]) -> _Copy:
    planes = {name: tuple(m.shape) for name, m in maps.items()}
    return _Copy(step, planes, Transfer(torch.cat([m.flatten() for m in maps.values()])))


class Live:
    """Give it to a run as ``on_step``, and use it as a context manager around the run: it sends the frames.

    steps: N of the run. send: takes some frames, in order. to_rgb: see ``maps_of``. clock: seconds. part: the steps of the
    run that it is given; None: all.
    """

    def __init__(
        self,
        steps: int,
        send: Callable[[list[Frame]], None],
        to_rgb: Callable[[Tensor], Tensor] | None = None,
        clock: Callable[[], float] = time.monotonic,
        part: range | None = None,
    ) -> None:
        self.steps = steps
        part = range(steps) if part is None else part
        self._send, self._to_rgb, self._clock = send, to_rgb, clock
        self._chosen = frozenset(part[step] for step in chosen_steps(len(part), FRAMES))
        self._under_way: list[_Copy] = []
        self._next = clock()

    def __call__(self, snapshot: Snapshot) -> None:
        """Take in one step; send what has arrived, if it is time."""
        if snapshot.step in self._chosen:
            self._under_way.append(_start_copy(snapshot.step, maps_of(snapshot, self.steps, self._to_rgb)))
        if self._clock() >= self._next:
            self._send_ready()

    def __enter__(self) -> Live:
        """The run begins."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """The run is over: send the rest. After an error or a cancel, nothing more."""
        if kind is not None:
            return
        self._send_first(len(self._under_way))

    def _send_ready(self) -> None:
        self._send_first(next((n for n, copy in enumerate(self._under_way) if not copy.data.ready), len(self._under_way)))

    def _send_first(self, count: int) -> None:
        if count == 0:
            return
        ready, self._under_way = self._under_way[:count], self._under_way[count:]
        self._next = self._clock() + PAUSE
        self._send([copy.frame() for copy in ready])
