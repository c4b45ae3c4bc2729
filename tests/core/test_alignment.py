"""The alignment benchmark: many prompts in a batch are as each alone, and its statistics are the closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from asyndm_core.regions import Regions, TimestepMap
from benchmarks.alignment.__main__ import chosen_arms
from benchmarks.alignment.arms import ARMS, ASYNCHRONOUS, targets
from benchmarks.alignment.report import compare, count_all
from benchmarks.alignment.sampling import latents_of
from benchmarks.alignment.scenes import batches, choose_scenes, drawn_regions
from demo.config import WEIGHTS
from demo.model import load
from demo.sample import Settings, sample_demo
from demo.scorer import read
from demo.world import draw


def test_scenes_are_held_out_and_reproducible() -> None:
    scenes = choose_scenes(12, 5)
    assert scenes == choose_scenes(12, 5) and scenes != choose_scenes(12, 6)
    assert all(any(scene.held_out_combinations()) for scene in scenes)
    assert not any(any(scene.held_out_combinations()) for scene in choose_scenes(12, 5, "common"))
    assert [len(scene.groups) for scene in scenes] == [1, 2] * 6


def test_batches_hold_every_scene_once() -> None:
    scenes = choose_scenes(11, 5)
    parts = batches(scenes, 4)
    assert sorted(n for part in parts for n in part) == list(range(11))
    assert all(len(part) <= 4 and len({len(scenes[n].groups) for n in part}) == 1 for part in parts)


def test_drawn_regions_are_the_boxes_that_the_scorer_finds() -> None:
    scenes = choose_scenes(6, 5)
    for scene, region in zip(scenes, drawn_regions(scenes), strict=True):
        found = torch.zeros_like(region)
        for thing in read(draw(scene, np.random.default_rng(0))).things:
            left, top, right, bottom = thing.box
            found[top:bottom, left:right] = 1
        overlap = torch.minimum(found, region).sum() / torch.maximum(found, region).sum()
        assert overlap > 0.7


def test_true_drawings_count_as_right() -> None:
    scenes = choose_scenes(40, 5)
    hits = count_all(np.stack([draw(scene, np.random.default_rng(n)) for n, scene in enumerate(scenes)]), scenes)
    assert hits["whole"].mean() > 0.95
    assert hits["missing"].mean() < 0.05 and hits["bound_wrong"].mean() < 0.05
    swapped = count_all(np.stack([draw(scene, np.random.default_rng(0)) for scene in reversed(scenes)]), scenes)
    assert swapped["whole"].mean() < 0.1 and swapped["missing"].mean() > 0.8


def test_compare_is_mcnemar() -> None:
    arm, base = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool), np.array([0, 0, 0, 1, 1, 0, 1, 0], bool)
    pair = compare(arm, base)
    assert (pair.wins, pair.losses, pair.difference) == (3, 1, 0.25)
    assert pair.p == pytest.approx(2 * (1 + 4) / 2**4)
    assert pair.error == pytest.approx(np.std([1, 1, 1, 0, -1, 0, 0, 0]) / 8**0.5)
    assert compare(arm, arm).p == 1


def test_an_arm_brings_what_it_is_compared_with() -> None:
    assert [arm.name for arm in chosen_arms(["PAG"], False)] == ["synchronous", "PAG"]
    assert len(chosen_arms([], True)) > len(ARMS)
    with pytest.raises(ValueError, match="no arm 'SAG'"):
        chosen_arms(["SAG"], False)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the demo model's weights are not here")
def test_many_prompts_are_as_each_alone() -> None:
    """Each picture of a batch follows its own prompt's words."""
    model = load()
    scenes = [scene for scene in choose_scenes(6, 5) if len(scene.groups) == 2]
    arm = replace(ASYNCHRONOUS, settings=Settings(steps=6))
    together = latents_of(arm, model, scenes, [3, 4, 5])
    for n, scene in enumerate(scenes):
        nouns = ", ".join(group.noun for group in scene.groups)
        regions = Regions(tuple(replace(t, text=noun) for t, noun in zip(targets(2), nouns.split(", "), strict=True)))
        alone = sample_demo(model, scene.prompt(), TimestepMap(regions), [3 + n], arm.settings)
        assert (together[n] - alone.latents[0]).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 0.5
