"""The pack's own socket types, and what all schemas share."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

CATEGORY = "AsynDM"
RegionsSocket = io.Custom("ASYNDM_REGIONS")
TimestepMapSocket = io.Custom("ASYNDM_TIMESTEP_MAP")


PLAIN = (str, int, float, list, tuple, dict, torch.Tensor)


def check_socket(value: Any, kind: type, name: str, node: str) -> None:
    """ValueError where an input gets something else than its kind, or nothing, as switches may give.

    kind: ``object`` for models and text encoders, which are of many classes: anything but plain data.
    """
    if value is None or not isinstance(value, kind) or (kind is object and isinstance(value, PLAIN)):
        got = "nothing" if value is None else f"a {type(value).__name__}"
        raise ValueError(
            f"The input {name} of {node} got {got}: check the node that is linked to it (a switch may give nothing)."
        )


ADVANCED: dict[str, Any] = {"extra_dict": {"advanced": True}}
"""Marks a widget as advanced in a way that ComfyUI 0.8.0 accepts too (its inputs have no keyword ``advanced``)."""
