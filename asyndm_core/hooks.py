"""Hooks of PyTorch modules for the time of a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """While it lasts, hooks are in place. ``hooks`` registers one whenever it is asked for the next."""
    placed: list[RemovableHandle] = []
    try:
        placed.extend(hooks)
        yield
    finally:
        for hook in placed:
            hook.remove()
