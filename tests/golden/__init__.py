"""The authors' numbers (README.md beside this file), read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())
UNETS = ("U1", "U2")


def arrays(name: str) -> dict[str, Tensor]:
    """The arrays of one file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


def case(name: str) -> dict[str, Tensor]:
    """The arrays of a whole run: its inputs and what came of them, by step."""
    inputs = arrays("inputs")
    return {**inputs, "step_noise": inputs["step_noise"][: CASES[name]["num_steps"]], **arrays(name)}


def forward(unet: str) -> dict[str, Tensor]:
    """The arrays of one call of a UNet."""
    return {**arrays("forward"), **arrays(f"forward_{unet}")}


def config(unet: str) -> dict[str, Any]:
    """A UNet's configuration, as diffusers writes it."""
    return json.loads((FOLDER / f"{unet}.json").read_text())


def weights(unet: str) -> dict[str, Tensor]:
    """Its weights, float32, by diffusers' names. The file's are float16, which hold the weights of the runs exactly."""
    return {key: value.float() for key, value in arrays(unet).items()}


def schedule_rows() -> list[dict[str, Any]]:
    """The rows of the table of schedules."""
    return json.loads((FOLDER / "schedule_table.json").read_text())["rows"]
