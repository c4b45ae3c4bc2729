"""What is kept of a run for pictures: a few steps, and where the model looked, as a mean over the run."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import LINEAR, Attention, AttentionSum
from .grid import without_frames_outside
from .run import Snapshot


class Frame(NamedTuple):
    """One step that was kept, on the CPU: progress and owner (B, *size), see ``run.Snapshot``. Of clips, ``shown_frames``.

    denoised (B, C, *size): the latents as the model saw them finished, or None where previews were not asked for.
    """

    step: int
    progress: Tensor
    owner: Tensor
    denoised: Tensor | None


def chosen_steps(steps: int, count: int) -> tuple[int, ...]:
    """At most ``count`` of the steps 0..N-1, evenly spread, the first and the last among them."""
    count = min(steps, count)
    if count == 1:
        return (0,)
    return tuple(round(n * (steps - 1) / (count - 1)) for n in range(count))


def stretched(maps: Tensor) -> Tensor:
    """Each map (B, words, *size) stretched to [0, 1], of a clip as a whole. One that is the same everywhere is 0."""
    places = tuple(range(2, maps.ndim))
    low, high = maps.amin(dim=places, keepdim=True), maps.amax(dim=places, keepdim=True)
    spread = high - low
    return torch.where(spread > 1e-6 * high.abs(), (maps - low) / spread.clamp(min=1e-12), 0.0)


SHOWN = 4
"""How many frames of a clip are shown, at most: evenly spread, the first and the last among them."""


def shown_frames(maps: Tensor, dims: int) -> Tensor:
    """Some of the frames of clips' maps (..., T, h, w), ``dims`` 3; maps of pictures, ``dims`` 2, as they are."""
    if dims == 2:
        return maps
    return torch.stack([maps.select(-3, frame) for frame in chosen_steps(maps.shape[-3], SHOWN)], dim=-3)


class RunRecord:
    """Give it to ``run.sample`` as ``on_step``: it holds a few maps, however long the run is.

    It never waits for the GPU while the run goes on.

    steps: N of the run. count: frames to keep. previews: keep the denoised latents of those frames too.
    """

    def __init__(self, steps: int, count: int = 8, previews: bool = False) -> None:
        self.steps = steps
        self._chosen = frozenset(chosen_steps(steps, count))
        self._previews = previews
        self._frames: list[Frame] = []
        self._attention = AttentionSum()

    def __call__(self, snapshot: Snapshot) -> None:
        """Take in one step."""
        if snapshot.attention is not None:
            self._attention.add(snapshot.attention)
        if snapshot.step in self._chosen:
            some = partial(shown_frames, dims=snapshot.owner.ndim - 1)
            denoised = some(snapshot.denoised) if self._previews else None
            self._frames.append(Frame(snapshot.step, some(snapshot.progress), some(snapshot.owner), denoised))

    def frames(self) -> list[Frame]:
        """The frames that were kept, in order, on the CPU. Waits for the device: call it when the run is over."""
        return [
            Frame(f.step, f.progress.cpu(), f.owner.cpu(), None if f.denoised is None else f.denoised.cpu())
            for f in self._frames
        ]

    def attention(self) -> Attention | None:
        """The mean attention of the run, on its device, or None if no word was watched."""
        return self._attention.mean()

    def masks(self, *size: int, outside: tuple[int, int] = (0, 0)) -> Tensor | None:
        """The mean attention of the run at (B, words, *size), each map stretched to [0, 1]; on the CPU.

        outside: how many frames are no part of the clip, before and behind its own: they are left out.
        A map that is the same everywhere is 0. None if no word was watched.
        """
        mean = self.attention()
        if mean is None:
            return None
        maps = F.interpolate(mean.shares.float().cpu(), size=size, mode=LINEAR[len(size)])
        return stretched(without_frames_outside(maps, *outside))
