"""A GPU as a stopwatch: how long its work took, how much it held, and when the host waited for it.

On any other device the same questions are answered by the host's clock, so that all of this can be rehearsed without one.
"""

from __future__ import annotations

import subprocess
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from ..real_comfyui import COMFYUI, ROOT
from .report import PLANTED

SYNCHRONIZES = "called a synchronizing CUDA operation"
"""What PyTorch warns with, see ``torch.cuda.set_sync_debug_mode``."""


class Card:
    """The device that is measured. name: as PyTorch writes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.real = torch.device(name).type == "cuda"

    def wait(self) -> None:
        """Until all that was queued is done."""
        if self.real:
            torch.cuda.synchronize()

    def mark(self) -> Any:
        """A moment of the device: when it has done what is queued so far."""
        if not self.real:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two moments that have passed."""
        return begin.elapsed_time(end) / 1000 if self.real else end - begin

    def held(self) -> int:
        """Bytes that tensors hold now. The peak counts from now on."""
        if not self.real:
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes that tensors held at once."""
        return torch.cuda.max_memory_allocated() if self.real else 0

    def described(self) -> dict[str, str]:
        """What was measured on, for the table."""
        import comfyui_version
        from comfy.ldm.modules.attention import optimized_attention

        found = {
            "card": torch.cuda.get_device_name() if self.real else "none: a rehearsal on the CPU",
            "driver": _driver() if self.real else "none",
            "PyTorch": torch.__version__,
            "ComfyUI": comfyui_version.__version__,
            "attention": optimized_attention.__name__,
            "comfy_kitchen": ", ".join(_kitchen()),
        }
        return {name: str(value) for name, value in found.items()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _kitchen() -> list[str]:
    """The backends of ComfyUI's own kernels that are there."""
    try:
        from comfy_kitchen import list_backends
    except ImportError:
        return ["none"]
    return [name for name, backend in list_backends().items() if backend["available"] and not backend["disabled"]]


class Waits:
    """Waits of the host for the device, noted while ``on``.

    places: where (file:line < its caller's < ...), and how often. late: seconds that the host was held up by numbers that
    were asked for earlier and had not arrived (see ``Transfer``).
    """

    def __init__(self) -> None:
        self.on = False
        self.places: Counter[str] = Counter()
        self.late: list[float] = []


def place() -> str:
    """Where the host is: in our code and ComfyUI's, the innermost frames first."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith((f"{ROOT}/", f"{COMFYUI}/"))]
    frames = [f for f in frames if "/site-packages/" not in f.filename and "/benchmarks/" not in f.filename]
    short = lambda name: name.removeprefix(f"{ROOT}/").removeprefix(f"{COMFYUI}/")  # noqa: E731
    return " < ".join(f"{short(f.filename)}:{f.lineno}" for f in frames[:-5:-1])


@contextmanager
def noticing(card: Card) -> Iterator[Waits]:
    """While it lasts, waits can be noted."""
    from asyndm_pack.asyndm_core.transfer import Transfer

    found, read, shown = Waits(), Transfer.read, warnings.showwarning

    def note(message: Any, *args: Any, **kwargs: Any) -> None:
        if SYNCHRONIZES not in str(message):
            shown(message, *args, **kwargs)
        elif found.on:
            found.places[place()] += 1

    def read_late(self: Any) -> Any:
        late, began = not self.ready, time.perf_counter()
        value = read(self)
        if late and found.on:
            found.late.append(time.perf_counter() - began)
        return value

    with warnings.catch_warnings(), patch.object(Transfer, "read", read_late):
        warnings.simplefilter("always")
        warnings.showwarning = note
        if card.real:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if card.real:
                torch.cuda.set_sync_debug_mode("default")


def planted(card: Card) -> int:
    """How many of PLANTED waits are noticed."""
    value = torch.ones(1, device=card.name)
    with noticing(card) as found:
        found.on = True
        for _ in range(PLANTED):
            value.item()
    return found.places.total()
