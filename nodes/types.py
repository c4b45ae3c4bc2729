"""The pack's own socket types, and what all schemas share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

CATEGORY = "AsynDM"
RegionsSocket = io.Custom("ASYNDM_REGIONS")
TimestepMapSocket = io.Custom("ASYNDM_TIMESTEP_MAP")

ADVANCED: dict[str, Any] = {"extra_dict": {"advanced": True}}
"""Marks a widget as advanced in a way that ComfyUI 0.8.0 accepts too (its inputs have no keyword ``advanced``)."""
