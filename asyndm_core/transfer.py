"""Numbers on their way from the device to the host, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STREAMS: dict[str, Any] = {"cuda": torch.cuda}
"""Devices that copy in the background, by type: the module that knows their streams."""


class Transfer:
    """A tensor's copy for the CPU, begun now and read later.

    Where the device copies in the background, the copy is queued behind the work that makes the tensor, and nobody waits
    until it is read. Elsewhere it is made at once.
    """

    def __init__(self, tensor: Tensor) -> None:
        streams = STREAMS.get(tensor.device.type)
        self._copy = tensor.to("cpu", non_blocking=streams is not None)
        self._arrived = None if streams is None else streams.current_stream(tensor.device).record_event()

    @property
    def ready(self) -> bool:
        """Whether ``read`` would not wait."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> Tensor:
        """The copy. Waits for the work that was queued before it, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
