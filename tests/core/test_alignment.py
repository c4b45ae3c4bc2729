"""The alignment benchmark: many prompts in a batch are as each alone, and its statistics are the closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asyndm_core.attention import Attention
from asyndm_core.curves import Track
from asyndm_core.regions import Regions, Target, TimestepMap, make_plan, weights
from benchmarks.alignment.__main__ import chosen_arms, main
from benchmarks.alignment.arms import ARMS, ASYNCHRONOUS, Arm, at_once
from benchmarks.alignment.masks import figures
from benchmarks.alignment.readings import Reading, Weigher, automatic_strength
from benchmarks.alignment.report import compare, count_all, measure_all
from benchmarks.alignment.sampling import latents_of, plan_of
from benchmarks.alignment.scenes import batches, choose_scenes, drawn_regions, seen_regions
from demo.evaluate import to_pixels
from demo.model import LOADERS, load_transformer, sample
from demo.sample import Settings, sample_demo
from demo.scorer import read
from demo.world import PLACES, SEATS, draw


def test_scenes_are_held_out_and_reproducible() -> None:
    scenes = choose_scenes(12, 5)
    assert scenes == choose_scenes(12, 5) and scenes != choose_scenes(12, 6)
    assert all(any(scene.held_out_combinations()) for scene in scenes)
    assert not any(any(scene.held_out_combinations()) for scene in choose_scenes(12, 5, "common"))
    assert [len(scene.groups) for scene in scenes] == [1, 2] * 6
    assert all(len(scene.groups) == 2 for scene in choose_scenes(6, 5, "hard"))


def test_the_same_things_stand_in_all_places() -> None:
    scenes = choose_scenes(12, 5, "places")
    assert [scene.place for scene in scenes] == list(PLACES) * 2 and all(scene.place_named for scene in scenes)
    assert len({scene.groups for scene in scenes[:6]}) == 1 and scenes[0].groups != scenes[6].groups


def test_stacks_stand_on_what_nothing_stands_on_in_training() -> None:
    scenes = choose_scenes(30, 5, "stacks")
    assert scenes == choose_scenes(30, 5, "stacks")
    assert all(scene.links == ((0, "on", 1),) and scene.groups[1].kind not in SEATS for scene in scenes)
    hits = count_all(np.stack([draw(scene, np.random.default_rng(n)) for n, scene in enumerate(scenes)]), scenes)
    assert hits["whole"].all()


def test_a_lag_at_once() -> None:
    """Three of 20 steps after three, still so after six, none from step 12 on; and never back."""
    states = [torch.tensor([20.0])]
    for step in range(20):
        states.append(at_once(states[-1], 20 - step, torch.tensor([0.75]), Track(0.0, 1.0, 20)))
    lags = [float(state) - (20 - step) for step, state in enumerate(states)]
    wanted = [0, 1, 2, 3, 3, 3, 3, 2.5, 2, 1.5, 1, 0.5, *[0] * 9]
    assert lags == pytest.approx(wanted, abs=1e-5)
    late = [float(at_once(torch.tensor([state]), 10, 0.75, Track(0.0, 1.0, 20))) for state in (12.0, 9.25)]
    assert late == pytest.approx([9.5, 9.25])


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
        assert torch.equal(found, seen_regions(draw(scene, np.random.default_rng(0))[None])[0])


def test_true_drawings_count_as_right() -> None:
    scenes = choose_scenes(40, 5)
    hits = count_all(np.stack([draw(scene, np.random.default_rng(n)) for n, scene in enumerate(scenes)]), scenes)
    assert hits["whole"].mean() > 0.95
    assert hits["missing"].mean() < 0.05 and hits["bound_wrong"].mean() < 0.05
    swapped = count_all(np.stack([draw(scene, np.random.default_rng(0)) for scene in reversed(scenes)]), scenes)
    assert swapped["whole"].mean() < 0.1 and swapped["missing"].mean() > 0.8


def test_measures_of_true_drawings() -> None:
    """Things of a stack are three pixels apart, one above the other, as large as drawn; nothing where one is missing."""
    scenes = choose_scenes(20, 5, "stacks")
    pictures = np.stack([draw(scene, np.random.default_rng(n)) for n, scene in enumerate(scenes)])
    measured = measure_all(pictures, scenes)
    assert measured["likeness"].min() > 70
    assert measured["gap"].min() >= 0 and measured["gap"].max() < 12 and measured["aside"].max() < 6  # trunks have no colour
    things = [[thing for group in scene.groups for thing in group.things] for scene in scenes]
    wanted = np.array([100 * sum(t.width * t.height for t in each) / 128**2 for each in things])
    assert np.abs(measured["size"] / wanted - 1).max() < 0.25
    assert np.isnan(measure_all(pictures[1:], scenes[:-1])["gap"]).mean() > 0.8


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


PLAN = make_plan(TimestepMap(Regions((Target("a"), Target("b")), feather=1)), 4, 4)
SHAPE, CPU = (2, 4, 4), torch.device("cpu")


def of_all(shares: torch.Tensor) -> Attention:
    """Attention of words that are in every prompt."""
    return Attention(shares, torch.ones(1, shares.shape[1], 1, 1))


def attention_of(seed: int, words: int = 2) -> Attention:
    """Random attention (2, words, 4, 4)."""
    return of_all(torch.rand(2, words, 4, 4, generator=torch.Generator().manual_seed(seed)))


def test_a_plain_reading_is_the_packs_own() -> None:
    weigh = Weigher(Reading())
    for seed in range(3):
        seen = attention_of(seed)
        assert torch.equal(weigh(PLAN, seen, SHAPE, CPU), weights(PLAN, seen, SHAPE, CPU))


def test_memory_is_a_running_mean() -> None:
    seen = [attention_of(seed) for seed in range(3)]
    half, mean = Weigher(Reading(memory=0.5)), Weigher(Reading(memory=1))
    results = [(half(PLAN, each, SHAPE, CPU), mean(PLAN, each, SHAPE, CPU)) for each in seen]
    shares = torch.stack([each.shares for each in seen])
    expected = shares[0] / 4 + shares[1] / 4 + shares[2] / 2
    assert (results[-1][0] - weights(PLAN, of_all(expected), SHAPE, CPU)).abs().max() < 1e-6
    assert (results[-1][1] - weights(PLAN, of_all(shares.mean(0)), SHAPE, CPU)).abs().max() < 1e-6


def test_shares_do_not_see_what_all_words_have_in_common() -> None:
    seen, common = attention_of(1, 3).shares, attention_of(2, 1).shares
    for shares in ("targets", "prompt"):
        plain, scaled = (Weigher(Reading(shares=shares))(PLAN, of_all(s), SHAPE, CPU) for s in (seen, seen * common))
        assert torch.equal(plain, scaled)
        assert not torch.equal(plain, weights(PLAN, of_all(seen[:, :2]), SHAPE, CPU))


def test_a_window_trusts_only_its_steps_and_soft_regions_are_proportional() -> None:
    weigh = Weigher(Reading(trusted=(1, 2)))
    trusted = [bool(weigh(PLAN, attention_of(seed), SHAPE, CPU).any()) for seed in range(3)]
    assert trusted == [False, True, False]
    ramp = torch.linspace(0, 2, 16).view(1, 1, 4, 4).expand(2, 2, 4, 4)  # mean 1
    soft = Weigher(Reading(soft=True))(PLAN, of_all(ramp), SHAPE, CPU)
    assert (soft - ((ramp.movedim(1, 0) - 0.5) / 1.5).clamp(0, 1)).abs().max() < 1e-6


def test_an_inverse_reading_is_what_no_target_holds() -> None:
    seen = attention_of(1)
    plain, inverse = (Weigher(Reading(inverse=inverse))(PLAN, seen, SHAPE, CPU) for inverse in (False, True))
    assert torch.equal(inverse[0], 1 - plain.amax(dim=0)) and not inverse[1:].any()


def test_automatic_strengths_are_their_closed_forms() -> None:
    """A region of a quarter of the picture that holds a half of its word's attention; another word, seen half as much."""
    region = torch.zeros(2, 1, 4, 4)
    region[..., :2, :2] = 1
    spot = torch.where(region[0, 0] > 0, 3.0, 1.0)
    seen = torch.stack([spot, spot / 2])[None]
    values = [automatic_strength(PLAN, seen, region, kind).flatten() for kind in ("small", "sure", "neglected")]
    expected = torch.tensor([[0.75, 0.75], [1 / 3, 1 / 3], [0.5, 1.0]])
    assert (torch.stack(values) - expected).abs().max() < 1e-6
    both = of_all(seen.repeat(2, 1, 1, 1))
    scaled = Weigher(Reading(automatic="neglected"))(PLAN, both, SHAPE, CPU)
    plain = weights(PLAN, both, SHAPE, CPU)
    assert torch.equal(scaled, plain * expected[2].view(2, 1, 1, 1))


def test_seen_regions_need_the_pictures_that_they_are_seen_in() -> None:
    scenes = choose_scenes(1, 5)
    arm = Arm("seen", TimestepMap(Regions()), painted="seen")
    picture = draw(scenes[0], np.random.default_rng(0))
    (region,) = plan_of(arm, scenes, picture[None]).regions
    assert region.mask is not None and region.mask.shape == (1, 16, 16)
    with pytest.raises(ValueError, match="pictures of synchronous"):
        plan_of(arm, scenes)


def test_figures_of_masks_are_shares() -> None:
    things = np.zeros((1, 4, 4), bool)
    things[0, :2] = True
    region = np.zeros((1, 4, 4), bool)
    region[0, 1:, :2] = True
    found, exact, covered, lag = figures(region, np.full((1, 4, 4), 3.0), things)[0]
    assert (found, exact, covered, lag) == (2 / 8, 2 / 6, 6 / 16, 3)
    assert np.isnan(figures(region & False, np.zeros((1, 4, 4)), things)[0, 1])


@pytest.mark.parametrize("network", LOADERS)
def test_many_prompts_are_as_each_alone(network: str) -> None:
    """Each picture of a batch follows its own prompt's words."""
    model = LOADERS[network]()
    scenes = [scene for scene in choose_scenes(6, 5) if len(scene.groups) == 2]
    arm = replace(ASYNCHRONOUS, settings=Settings(steps=6))
    together = latents_of(arm, model, scenes, [3, 4, 5])
    for n, scene in enumerate(scenes):
        nouns = ", ".join(group.noun for group in scene.groups)
        regions = Regions(tuple(replace(t, text=noun) for t, noun in zip(arm.targets(2), nouns.split(", "), strict=True)))
        alone = sample_demo(model, scene.prompt(), TimestepMap(regions), [3 + n], arm.settings)
        assert (together[n] - alone.latents[0]).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 0.5


def test_the_command_on_the_transformer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its pictures are those of that network; arms that only a UNet has are left out, and it says so."""
    arms = ["synchronous", "lag at once", "PAG", "layers of full size"]
    call = ["--network", "transformer", "--prompts", "1", "--arms", *arms, "--out", str(tmp_path)]
    assert main(call) == 0
    assert "Left out, as they are of a UNet: PAG, layers of full size." in capsys.readouterr().out
    (folder,) = (tmp_path / "pictures").iterdir()
    assert folder.name == "stacks_31_1_transformer" and (tmp_path / folder.name / "table.md").is_file()
    assert {path.stem for path in folder.iterdir()} == {"synchronous_1", "lag_at_once_1"}
    (shown,), (scene,) = np.load(folder / "synchronous_1.npz")["pictures"], choose_scenes(1, 31, "stacks")
    stock = to_pixels(sample(load_transformer(), [scene.prompt()], seed=10_000))[0]
    assert np.abs(shown - stock.astype(int)).max() <= 1
