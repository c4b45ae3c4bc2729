"""Whether a run's regions leave anything to run ahead: the context that the paper's regions wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .regions import Plan, Region
from .run import Snapshot
from .transfer import Transfer

ROOM = 0.1
"""The share of the pixels below which nothing can be said to run ahead."""
ROUNDING = 0.001
"""Steps by which rounding may put a pixel before the background."""
LEAST = 3
"""Steps without room that count as several. In long runs it is a quarter of them."""


def ahead(regions: Sequence[Region], snapshot: Snapshot) -> Tensor:
    """The share (B,) of the pixels that no lagging region holds back: the background, and known pixels that run ahead."""
    held = torch.zeros_like(snapshot.owner, dtype=torch.bool)
    for index, region in enumerate(regions):
        if region.strength > 0 and region.curve != "linear":
            held |= snapshot.owner == index
    held &= snapshot.progress <= snapshot.step + ROUNDING
    return 1 - held.float().flatten(1).mean(dim=1)


class Crowding:
    """Give it to a run as ``on_step``, and use it as a context manager around the run: it tells once if there is no room.

    The first step does not count, where words are everywhere because they were not seen yet. A picture of a batch counts
    alone, and a clip as a whole. It never waits for the GPU while the run goes on.

    steps: N of the run. tell: gets the mean share of the pixels that could run ahead in the steps without room.
    """

    def __init__(self, plan: Plan, steps: int, tell: Callable[[float], None]) -> None:
        self._regions, self._tell = plan.regions, tell
        self._several = max(min(LEAST, steps - 1), -(-steps // 4))
        self._under_way: list[Transfer] = []
        self._crowded: Tensor | int = 0
        self._ahead: Tensor | float = 0.0
        self._told = False

    def __call__(self, snapshot: Snapshot) -> None:
        """Take in one step."""
        if snapshot.step > 0 and not self._told:
            self._under_way.append(Transfer(ahead(self._regions, snapshot)))
        while self._under_way and self._under_way[0].ready:
            self._read()

    def __enter__(self) -> Crowding:
        """The run begins."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """The run is over: look at the rest. After an error or a cancel, no more."""
        while kind is None and self._under_way:
            self._read()

    def _read(self) -> None:
        """Look at one more step."""
        share = self._under_way.pop(0).read()
        crowded = share < ROOM
        self._crowded = self._crowded + crowded.int()
        self._ahead = self._ahead + share * crowded
        item = int(self._crowded.argmax())
        steps = int(self._crowded[item])
        if steps >= self._several and not self._told:
            self._told = True
            self._tell(float(self._ahead[item]) / steps)
