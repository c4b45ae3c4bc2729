"""Work shared out over the processes that ``torchrun`` or ``accelerate launch`` starts, on GPUs and machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as distributed

PATIENCE = timedelta(days=7)
"""How long the processes wait at the end for the slowest."""

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all: rank in 0..count - 1, and local in those of its machine. Alone: 0 of 1."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports."""
        return self.rank == 0

    def mine(self, jobs: Sequence[T]) -> Sequence[T]:
        """This process's share: every ``count``-th job."""
        return jobs[self.rank :: self.count]

    def gathered(self, done: list[T]) -> list[T]:
        """What all processes have done, at the first one, which waits for them; nothing at the others."""
        if self.count == 1:
            return done
        everyone: list[list[T]] | None = [[] for _ in range(self.count)] if self.first else None
        distributed.gather_object(done, everyone)
        return [one for part in everyone or () for one in part]


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that a launcher has started, which its environment tells; this one alone where there is no launcher.

    Each takes the GPU of its place on its machine.
    """
    rank, count, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    if count <= 1:
        yield Processes()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, count, local)
    finally:
        distributed.destroy_process_group()
