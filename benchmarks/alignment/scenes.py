"""The prompts: scenes of the demo world with combinations that were never trained on, and their drawn regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from asyndm_core.attention import token_columns
from demo.config import MAX_TOKENS, PICTURE_SIZE
from demo.model import Parts
from demo.sample import token_positions
from demo.scorer import read
from demo.world import PLACES, Scene, sample_scene, sample_stack

KINDS_OF_PROMPT = {
    "stacks": "one thing on another that nothing stood on in training",
    "rare": "combinations that were never trained on",
    "common": "combinations as in training",
    "hard": "never trained on, all with two groups of things",
    "places": "never trained on, each in all six places",
}


def choose_scenes(count: int, seed: int, kind: str = "rare") -> list[Scene]:
    """``count`` scenes of a kind, in turn with one group of things (one to three of them) and two groups in a relation.

    The same scenes for the same seed. "places" shows the same things six times, and so gives a multiple of six scenes.
    """
    if kind == "stacks":
        rng = np.random.default_rng(seed)
        return [sample_stack(rng) for _ in range(count)]
    if kind == "hard":
        return [scene for scene in choose_scenes(2 * count, seed) if len(scene.groups) == 2]
    if kind == "places":
        things = choose_scenes(-(-count // len(PLACES)), seed)
        return [replace(scene, place=place, place_named=True) for scene in things for place in PLACES]
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=kind == "rare")
        if len(scene.groups) == 1 + len(scenes) % 2:
            scenes.append(scene)
    return scenes


def facts(scene: Scene) -> dict[str, object]:
    """What kind of prompt it is, for tables by kind."""
    rare = sorted({("", "", "colour", "place or relation")[len(found)] for found in scene.held_out_combinations()})
    return {
        "prompt": scene.prompt(),
        "place": scene.place,
        "groups": len(scene.groups),
        "things": sum(len(group.things) for group in scene.groups),
        "rare": rare,
    }


def batches(scenes: Sequence[Scene], size: int) -> list[list[int]]:
    """Indices of scenes that can be sampled together: at most ``size``, with equally many groups."""
    result = []
    for groups in sorted({len(scene.groups) for scene in scenes}):
        same = [n for n, scene in enumerate(scenes) if len(scene.groups) == groups]
        result += [same[start : start + size] for start in range(0, len(same), size)]
    return result


def target_columns(model: Parts, scenes: Sequence[Scene]) -> Tensor:
    """(B, tokens, groups): the columns of each scene's nouns, which are the targets."""
    return torch.stack([
        token_columns(token_positions(model, scene.prompt(), [group.noun for group in scene.groups]), MAX_TOKENS)
        for scene in scenes
    ])  # fmt: skip


def drawn_regions(scenes: Sequence[Scene]) -> Tensor:
    """(B, 128, 128): 1 in the boxes of a scene's things, as they stand in its drawing."""
    masks = torch.zeros(len(scenes), PICTURE_SIZE, PICTURE_SIZE)
    for mask, scene in zip(masks, scenes, strict=True):
        for thing in (thing for group in scene.groups for thing in group.things):
            left, top = round(thing.x - thing.width / 2), round(thing.y - thing.height / 2)
            right, bottom = round(thing.x + thing.width / 2), round(thing.y + thing.height / 2)
            mask[max(0, top) : bottom, max(0, left) : right] = 1
    return masks


def seen_regions(pictures: np.ndarray) -> Tensor:
    """(B, 128, 128): 1 in the boxes of the things that pictures, uint8 (B, 128, 128, 3), show, malformed ones too."""
    masks = torch.zeros(pictures.shape[:3])
    for mask, picture in zip(masks, pictures, strict=True):
        for left, top, right, bottom in (thing.box for thing in read(picture).things):
            mask[top:bottom, left:right] = 1
    return masks
