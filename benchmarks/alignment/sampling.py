"""Pictures of an arm: many prompts in a batch, each picture from its own seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from asyndm_core.regions import Plan, make_plan
from demo.config import FACTOR
from demo.evaluate import to_pixels
from demo.model import DemoModel
from demo.sample import decode, sample_plan
from demo.world import Scene

from .arms import Arm, targets
from .scenes import batches, drawn_regions, target_columns

BATCH = 32


def plan_of(arm: Arm, scenes: Sequence[Scene]) -> Plan:
    """The plan of an arm for scenes with equally many groups."""
    regions = arm.timestep_map.regions
    if arm.drawn:
        regions = replace(regions, mask=drawn_regions(scenes), mask_mode="replace")
    else:
        regions = replace(regions, targets=targets(len(scenes[0].groups)))
    size = (arm.settings.height // FACTOR, arm.settings.width // FACTOR)
    return make_plan(replace(arm.timestep_map, regions=regions), *size)


def latents_of(arm: Arm, model: DemoModel, scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
    """The latents (B, 12, h, w) of scenes with equally many groups, by the core alone."""
    plan = plan_of(arm, scenes)
    columns = target_columns(model, scenes)[..., : len(plan.words)]
    return sample_plan(model, [scene.prompt() for scene in scenes], columns, plan, seeds, arm.settings)


def sample_arm(
    arm: Arm, model: DemoModel, scenes: Sequence[Scene], seeds: Sequence[int]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields batch by batch the indices of the scenes, and their pictures, uint8 (B, 128, 128, 3)."""
    for indices in batches(scenes, BATCH):
        chosen, drawn = [scenes[n] for n in indices], [seeds[n] for n in indices]
        if arm.peer is None:
            latents = latents_of(arm, model, chosen, drawn)
        else:
            from .peers import peer_latents  # needs a ComfyUI

            latents = peer_latents(arm, model, chosen, drawn)
        yield indices, to_pixels(decode(model, latents).movedim(-1, 1))
