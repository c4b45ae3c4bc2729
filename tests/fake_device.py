"""A device that is not there: tensors live "on" it, compute on the CPU, and every wait of the host for it is noted.

PyTorch's device "meta" lends its name, since it is in every build and has no memory of its own. What waits on a real
GPU (``torch.cuda.set_sync_debug_mode``) is noted here: values read by the host, results whose size depends on values,
and copies between host and device that are not ``non_blocking``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
HOST = torch.device("cpu")

READS = set("item _local_scalar_dense is_nonzero equal allclose tolist".split())
SIZED_BY_VALUES = set(
    "nonzero nonzero_numpy argwhere masked_select _unique _unique2 unique_dim unique_consecutive bincount".split()
)
COPIES = set("to _to_copy copy_ copy cpu".split())


class OnDevice(Tensor):
    """A tensor on the device; ``held`` is where it really is."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        """Wrap a tensor of the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Only ``Device`` computes."""
        raise RuntimeError(f"{func} on the device outside of a Device.")


class Wait(NamedTuple):
    """The host waited: in which evaluation of the model, for what, and where in the code."""

    evaluation: int
    what: str
    where: str


class Device(TorchDispatchMode):
    """While it lasts there is a device. ``waits`` is what the host waited for; ``evaluation`` is counted by ``watch``."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.evaluation = 0

    def watch(self, network: nn.Module) -> None:
        """Count the evaluations of a network, and put it on the device."""
        network.register_forward_pre_hook(self._count)
        move(network)

    def _count(self, module: nn.Module, inputs: tuple) -> None:
        self.evaluation += 1

    def wait(self, what: str) -> None:
        """Note that the host waits now."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        where = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in frames[:-4:-1])
        self.waits.append(Wait(self.evaluation, what, where))

    def within(self, first: int) -> list[Wait]:
        """The waits between evaluation ``first`` and the last one: what every step costs."""
        return [wait for wait in self.waits if first <= wait.evaluation < self.evaluation]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """One operation: on the CPU, noted if a device would have been waited for."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [isinstance(tensor, OnDevice) for tensor in tensors]
        if any(tensor.is_meta and not there for tensor, there in zip(tensors, here, strict=True)):
            raise RuntimeError(f"{func}: torch.tensor(..., device) copies from the host; the fake device cannot follow it.")
        target = self._target(name, args, kwargs, any(here))
        if name in COPIES:
            source = here[1] if name in ("copy_", "copy") else any(here)
            blocking = not (kwargs.get("non_blocking") or any(arg is True for arg in args[2:3]))
            if source != target and blocking and not (name == "copy_" and tensors[1].ndim == 0 and not here[1]):
                self.wait(f"copy to the {'device' if target else 'host'}")
        elif any(here):
            self._note(name, func, args, kwargs)

        originals = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnDevice)}

        def lower(leaf: Any) -> Any:
            if isinstance(leaf, OnDevice):
                return leaf.held
            return HOST if isinstance(leaf, torch.device) else leaf

        def lift(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return originals[id(leaf)] if id(leaf) in originals else OnDevice(leaf)

        result = func(*tree_map(lower, args), **tree_map(lower, kwargs))
        return tree_map(lift, result) if target else result

    @staticmethod
    def _target(name: str, args: tuple, kwargs: dict, any_here: bool) -> bool:
        """Whether the result is on the device."""
        named = [leaf for leaf in (kwargs.get("device"), *args) if isinstance(leaf, torch.device)]
        if named:
            return named[0] == DEVICE
        if name == "cpu":
            return False
        if name in ("copy_", "copy"):
            return isinstance(args[0], OnDevice)
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            return isinstance(args[1], OnDevice)
        return any_here

    def _note(self, name: str, func: Any, args: tuple, kwargs: dict) -> None:
        if name in READS | SIZED_BY_VALUES:
            self.wait(name)
        elif name == "repeat_interleave" and func._overloadname != "self_int" and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        elif name.startswith(("index", "_index")) and isinstance(args[0], OnDevice):
            indices = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.wait("indexing by a mask")
            elif any(not isinstance(index, OnDevice) for index in indices):
                self.wait("indexing by a tensor of the host")


def move(network: nn.Module) -> None:
    """Put parameters and buffers of a network on the device, within a ``Device``."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)


class _Event:
    """A point in the device's queue of work, by the evaluations that were queued before it."""

    def __init__(self, device: Device) -> None:
        self._device, self._at = device, device.evaluation

    def query(self) -> bool:
        """Whether the device is past it: as pessimistic as can be, the host is one evaluation ahead at most."""
        return self._device.evaluation > self._at

    def synchronize(self) -> None:
        """Waiting is free where the device has a whole evaluation to do after the event."""
        if not self.query():
            self._device.wait("an event with nothing queued after it")


@contextmanager
def fake_device(streams: dict[str, Any]) -> Iterator[Device]:
    """A device for the time of a test. streams: ``transfer.STREAMS`` of the module under test."""
    device = Device()

    class Streams:
        current_stream: Callable = staticmethod(lambda _: Streams)
        record_event: Callable = staticmethod(lambda: _Event(device))

    streams[DEVICE.type] = Streams
    try:
        with torch.inference_mode(), device:
            yield device
    finally:
        del streams[DEVICE.type]
