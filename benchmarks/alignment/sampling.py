"""Pictures of an arm: many prompts in a batch, each picture from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from torch import Tensor

from asyndm_core.curves import CURVES
from asyndm_core.regions import Plan, make_plan
from asyndm_core.run import Snapshot
from demo.config import FACTOR
from demo.evaluate import to_pixels
from demo.model import DemoModel, FlowModel
from demo.sample import decode, sample_plan
from demo.world import Scene

from .arms import Arm
from .readings import Weigher
from .scenes import batches, drawn_regions, seen_regions

BATCH = 32
OWN = "the arm's own"
"""The name of a curve that only the run of its arm knows."""


def plan_of(arm: Arm, scenes: Sequence[Scene], shown: np.ndarray | None = None) -> Plan:
    """The plan of an arm for scenes with equally many groups. shown: the pictures of the arm that it is compared with."""
    regions = arm.timestep_map.regions
    if arm.painted == "no":
        regions = replace(regions, targets=arm.targets(len(scenes[0].groups)))
    elif arm.painted == "drawn":
        regions = replace(regions, mask=drawn_regions(scenes), mask_mode="replace")
    elif shown is None:
        raise ValueError(f"The arm {arm.name} paints its regions by the pictures of {arm.compare}: they are needed first.")
    else:
        regions = replace(regions, mask=seen_regions(shown), mask_mode="replace")
    size = (arm.settings.height // FACTOR, arm.settings.width // FACTOR)
    plan = make_plan(replace(arm.timestep_map, regions=regions), *size)
    return plan if arm.curve is None else replace(plan, regions=tuple(replace(r, curve=OWN) for r in plan.regions))


def latents_of(
    arm: Arm, model: DemoModel | FlowModel, scenes: Sequence[Scene], seeds: Sequence[int], shown: np.ndarray | None = None,
    on_step: Callable[[Snapshot], None] | None = None,
) -> Tensor:  # fmt: skip
    """The latents (B, 12, h, w) of scenes with equally many groups, by the core alone. shown: see ``plan_of``."""
    plan = plan_of(arm, scenes, shown)
    columns = arm.reading.columns(model, scenes, len(plan.words))
    with nullcontext() if arm.curve is None else patch.dict(CURVES, {OWN: arm.curve}):
        return sample_plan(
            model, [scene.prompt() for scene in scenes], columns, plan, seeds, arm.settings, on_step=on_step,
            weigh=Weigher(arm.reading), factor=arm.reading.factor,
        )  # fmt: skip


def sample_arm(
    arm: Arm, model: DemoModel | FlowModel, scenes: Sequence[Scene], seeds: Sequence[int], shown: np.ndarray | None = None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields batch by batch the indices of the scenes, and their pictures, uint8 (B, 128, 128, 3). shown: of all scenes."""
    for indices in batches(scenes, BATCH):
        chosen, drawn = [scenes[n] for n in indices], [seeds[n] for n in indices]
        if arm.peer is None:
            latents = latents_of(arm, model, chosen, drawn, None if shown is None else shown[indices])
        else:
            from .peers import peer_latents  # needs a ComfyUI

            latents = peer_latents(arm, model, chosen, drawn)
        yield indices, to_pixels(decode(model, latents).movedim(-1, 1))
