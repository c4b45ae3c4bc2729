"""Whose code a function or an object is, as the user knows it: the folder of a pack of custom nodes."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import torch

COMFYUI = Path(comfy.samplers.__file__).resolve().parents[1]
OURS = Path(__file__).resolve().parents[2]
NO_GRAD = torch.no_grad()(lambda: None).__code__
"""The code of everything that ``torch.no_grad`` decorates."""


def place(file: str) -> str | None:
    """The pack of custom nodes that a file of code belongs to, or ``ComfyUI``; None for this pack and everything else."""
    paths = (Path(file).absolute(), Path(file).resolve())
    if any(path.is_relative_to(OURS) and path.relative_to(OURS).parts[0] in ("nodes", "asyndm_core") for path in paths):
        return None
    roots = [Path(root) for root in folder_paths.get_folder_paths("custom_nodes")]
    for path, root in itertools.product(paths, (*roots, *(root.resolve() for root in roots))):
        if path.is_relative_to(root):
            return path.relative_to(root).parts[0].removesuffix(".py")
    return "ComfyUI" if paths[1].is_relative_to(COMFYUI) else None


def uncompiled(network: torch.nn.Module) -> torch.nn.Module:
    """A network without what ``torch.compile`` puts around it. ComfyUI exchanges the two for the time of a call."""
    return getattr(network, "_orig_mod", network)


def undecorated(function: Any) -> Any:
    """A function without ``torch.no_grad`` around it."""
    while getattr(function, "__code__", None) is NO_GRAD:
        function = function.__wrapped__
    return function


def described(thing: Any) -> str:
    """A function by its name, an object by its class's; with the pack that it comes from, or else the module."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = undecorated(getattr(thing, "__func__", thing))
    if not isinstance(thing, (type, types.FunctionType)):
        thing = type(thing)
    name = thing.__qualname__.split("<locals>.")[-1]
    if isinstance(thing, types.FunctionType):
        file = thing.__code__.co_filename
    else:
        file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    return f"'{name}' of {place(file) or thing.__module__.rsplit('/')[-1]}"


def between(frames: Iterable[types.FrameType], last: types.CodeType) -> list[str]:
    """For each pack of custom nodes, and ComfyUI's own nodes, its innermost function on a stack up to the code ``last``."""
    found: dict[str, str] = {}
    for frame in frames:
        if frame.f_code is last:
            break
        file = frame.f_code.co_filename
        pack = place(file)
        if pack is not None and not Path(file).resolve().is_relative_to(COMFYUI / "comfy"):
            found.setdefault(pack, f"'{frame.f_code.co_name}' of {pack}")
    return list(found.values())
