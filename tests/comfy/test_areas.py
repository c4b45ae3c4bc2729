"""Where a prompt acts: areas, masks, strengths and ranges of steps, as ComfyUI weighs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.demo_model import load_demo_model
from tiny import (
    FOX_AND_HAT,
    LEFT,
    POSITIVE,
    WORDS,
    asyn,
    cond,
    difference,
    flat,
    ksampler,
    latent,
    node,
    same,
)
from torch import Tensor

import nodes as comfy_nodes

FOX = Regions((Target("fox"),))
SIZE = 16
COMBINE, AREA = comfy_nodes.ConditioningCombine, comfy_nodes.ConditioningSetArea
MASK, RANGE = comfy_nodes.ConditioningSetMask, comfy_nodes.ConditioningSetTimestepRange
FULL = torch.ones(1, SIZE, SIZE)
HALF = torch.cat([torch.ones(1, SIZE, SIZE // 2), torch.zeros(1, SIZE, SIZE // 2)], dim=-1)


def steps_of(positive: list, regions: Regions = FOX, steps: int = 4, **options: Any) -> list[Snapshot]:
    """A small run, step by step."""
    seen: list[Snapshot] = []
    changes = {name: options.pop(name) for name in ("preset", "region_denoise", "background_denoise") if name in options}
    patched = apply(flat(), TimestepMap(regions, **changes), Options(on_step=seen.append, eta=options.pop("eta", None)))
    ksampler(patched, steps=steps, positive=positive, image=latent(SIZE, SIZE), **options)
    assert len(seen) == steps
    return seen


def masked(positive: list, mask: Tensor, strength: float = 1.0, bounds: str = "default") -> list:
    return MASK().append(positive, mask, bounds, strength)[0]


def owned(snapshot: Snapshot) -> Tensor:
    """(H, W): the pixels of the first picture that a region moves."""
    return snapshot.owner[0] >= 0


# --- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_a_word_owns_nothing_outside_of_its_prompts_mask(bounds: str) -> None:
    """Not before it was seen either, when it owns all of the mask."""
    seen = steps_of(masked(POSITIVE, HALF, bounds=bounds), Regions((Target("fox"), Target("hat", 0.4)), grow=2))
    assert torch.equal(owned(seen[0]), HALF[0].bool())
    assert all(owned(snapshot)[:, :8].any() and not owned(snapshot)[:, 8:].any() for snapshot in seen)


def test_a_mask_of_ones_is_no_mask() -> None:
    """Whatever its strength."""
    plain = steps_of(POSITIVE, FOX_AND_HAT)
    for strength in (1.0, 0.25):
        for now, then in zip(steps_of(masked(POSITIVE, FULL, strength), FOX_AND_HAT), plain, strict=True):
            assert difference(now.x, then.x) < 1e-5 and torch.equal(now.owner, then.owner)


def test_a_prompt_without_strength_owns_nothing() -> None:
    """It has no part in the picture."""
    base = cond(3)
    for without in (masked(POSITIVE, FULL, 0.0), masked(POSITIVE, 0 * FULL), AREA().append(POSITIVE, 64, 64, 0, 0, 0.0)[0]):
        seen = steps_of(COMBINE().combine(without, base)[0], FOX_AND_HAT)
        assert not any(owned(snapshot).any() for snapshot in seen)


def weights_of(positive: list, **options: Any) -> Tensor:
    """How much the fox counts at every pixel in the first step: (H, W)."""
    (seen,) = steps_of(positive, steps=1, **options)
    return seen.attention.weight[0, 0].expand(SIZE, SIZE)


def test_prompts_with_the_same_word_count_as_comfyui_weighs_them() -> None:
    """Strength x mask strength x mask, summed, by hand; an area fades towards the rest of the picture, a mask does not."""
    grey = masked(POSITIVE, 0.5 * HALF, 0.6)
    area = AREA().append(cond(3, words={"fox": (9, 20)}), 64, 64, 0, 64, 2.0)[0]  # the lower left quarter
    other = cond(4)
    down = torch.tensor([0.5, 1, 1, 1, 1, 1, 1, 1])
    faded = torch.zeros(SIZE, SIZE)
    faded[8:, :8] = 2 * down[:, None] * down.flip(0)
    got = weights_of([*grey, *area, *other])
    torch.testing.assert_close(got, 0.3 * HALF[0] + faded)
    got = weights_of([*POSITIVE, *area, *other])
    torch.testing.assert_close(got, 1 + faded)
    both = node("nodes_hooks", "ConditioningSetDefaultAndCombine", grey, POSITIVE)
    torch.testing.assert_close(weights_of(both), torch.full((SIZE, SIZE), 0.3).where(HALF[0] > 0, 0) + (1 - 0.3 * HALF[0]))


def test_attention_is_the_weighted_mean_over_the_prompts() -> None:
    """Of two prompts, one of them in the left half with a third of the other's strength, from what each alone sees."""
    second = cond(3, words={"fox": (9, 20)})
    first, other = (steps_of(positive, steps=1)[0].attention.shares for positive in (POSITIVE, second))
    (both,) = steps_of([*POSITIVE, *masked(second, HALF, 1 / 3)], steps=1)
    large = [torch.nn.functional.interpolate(shares, size=(SIZE, SIZE), mode="bilinear") for shares in (first, other)]
    expected = torch.where(HALF > 0, (3 * large[0] + large[1]) / 4, large[0])
    assert difference(both.attention.shares, expected) < 1e-5


@pytest.mark.parametrize("place", ["area", "mask", "mask bounds", "beside a whole prompt", "edge"])
def test_the_region_is_that_of_the_mean_where_the_prompt_acts(place: str) -> None:
    """From the attention and ComfyUI's weights: at least the weighted mean, in pixels of any weight."""
    positive = {
        "area": lambda: AREA().append(POSITIVE, 80, 96, 48, 32, 1.0)[0],
        "mask": lambda: masked(POSITIVE, HALF),
        "mask bounds": lambda: masked(POSITIVE, HALF, bounds="mask bounds"),
        "beside a whole prompt": lambda: [*cond(5), *masked(POSITIVE, HALF)],
        "edge": lambda: masked(POSITIVE, HALF * torch.linspace(0.1, 1, SIZE)),
    }[place]()
    seen = steps_of(positive, steps=5)
    for before, now in pairwise(seen):
        shares, weight = (maps[0, 0].double() for maps in before.attention)
        mean = (shares * weight).sum() / weight.sum()
        expected, sure = (shares >= mean) & (weight > 0), (shares - mean).abs() > 1e-6 * mean
        assert (
            torch.equal(owned(now)[sure], expected[sure])
            and 0.02 < expected.float().mean() < 0.95 * (weight > 0).float().mean()
        )


@pytest.mark.parametrize("batch", [2, 3])
def test_a_picture_of_a_batch_is_what_it_is_alone(batch: int) -> None:
    patched = asyn(flat(), FOX_AND_HAT)
    positive = [*masked(POSITIVE, HALF), *AREA().append(cond(3, words=WORDS), 64, 64, 32, 64, 1.0)[0]]
    image = latent(SIZE, SIZE, batch, batch_index=list(range(batch)))
    together = ksampler(patched, positive=positive, image=image)
    for number in range(batch):
        alone = ksampler(patched, positive=positive, image=latent(SIZE, SIZE, 1, batch_index=[number]))
        assert difference(together[number : number + 1], alone) < 2e-5


def test_strength_0_is_stock_bit_for_bit() -> None:
    positive = [*masked(POSITIVE, HALF), *AREA().append(cond(3, words=WORDS), 64, 64, 32, 64, 1.0)[0]]
    none = Regions((Target("fox", 0.0), Target("hat", 0.0)))
    run = {"positive": positive, "image": latent(SIZE, SIZE)}
    assert same(ksampler(asyn(flat(), none), **run), ksampler(flat(), **run))


# --- when --------------------------------------------------------------------------------------------------------------


def edited(*ranges: tuple[list, float, float]) -> list:
    """Prompt editing: each prompt for a part of the steps."""
    return [entry for positive, start, end in ranges for entry in RANGE().set_range(positive, start, end)[0]]


BOTH = Regions((Target("fox"), Target("hat", 0.9)))
FOX_ONLY, BOTH_WORDS = cond(3, words={"fox": (3,)}), cond(4, words=WORDS)
HAT_ONLY = cond(5, words={"hat": (7,)})


def in_force(seen: list[Snapshot], word: int) -> list[bool]:
    """For each step, whether a prompt with the word is in force."""
    return [snapshot.attention is not None and bool((snapshot.attention.weight[:, word] > 0).any()) for snapshot in seen]


def owners(seen: list[Snapshot], region: int) -> list[bool]:
    return [bool((snapshot.owner == region).any()) for snapshot in seen]


def test_a_word_that_joins_half_way() -> None:
    """Before, the first word is followed as if the second were not named; after, it has pixels from the second step on."""
    seen = steps_of(edited((FOX_ONLY, 0.0, 0.5), (BOTH_WORDS, 0.5, 1.0)), BOTH, steps=8, scheduler="simple")
    joined = in_force(seen, 1).index(True)
    assert 2 < joined < 6 and all(in_force(seen, 1)[joined:]) and all(in_force(seen, 0))
    assert owners(seen, 1) == [step > joined for step in range(8)]
    alone = steps_of(edited((FOX_ONLY, 0.0, 0.5), (cond(4, words={"fox": (3,)}), 0.5, 1.0)), FOX, steps=8, scheduler="simple")
    for step in range(joined + 1):
        assert torch.equal(seen[step].owner, alone[step].owner)
        assert step == 0 or 0.1 < owned(seen[step]).float().mean() < 0.9


def test_halves() -> None:
    """Two prompts one after the other: in each half its own word, and a background throughout."""
    seen = steps_of(edited((FOX_ONLY, 0.0, 0.5), (HAT_ONLY, 0.5, 1.0)), BOTH, steps=8, scheduler="simple")
    change = in_force(seen, 1).index(True)
    assert in_force(seen, 0) == [step < change for step in range(8)]
    assert owners(seen, 0) == [step < change for step in range(8)]
    assert owners(seen, 1) == [step > change for step in range(8)]
    assert not owned(seen[change]).any(), "the second word was not seen yet, and the first is not in force"
    assert all(0.1 < owned(s).float().mean() < 0.9 for s in seen[1:change] + seen[change + 1 :])


def test_while_no_word_is_in_force_nobody_owns_anything() -> None:
    """At the start too, where words are not seen yet; a painted region beside them keeps its pixels."""
    seen = steps_of(edited((cond(6), 0.0, 0.5), (BOTH_WORDS, 0.5, 0.8), (cond(6), 0.8, 1.0)), BOTH, 10, scheduler="simple")
    known = in_force(seen, 0)
    assert not known[0] and not known[-1] and sum(known) >= 2
    assert [bool(owned(s).any()) for s in seen] == [now and before for now, before in zip(known, [False, *known], strict=False)]
    seen = steps_of(edited((cond(6), 0.0, 0.5), (BOTH_WORDS, 0.5, 1.0)), Regions(BOTH.targets, mask=LEFT, mask_mode="add"), 6)
    known = in_force(seen, 0)
    assert not all(known) and any(known)
    for snapshot, now in zip(seen, known, strict=True):
        assert (snapshot.owner[0, :, :8] >= 0).all() and (now or (snapshot.owner[0, :, 8:] == -1).all())


def test_fixed_regions_own_nothing_while_their_word_is_not_in_force() -> None:
    regions = Regions(BOTH.targets, update="fixed")
    seen = steps_of(edited((FOX_ONLY, 0.0, 0.5), (HAT_ONLY, 0.5, 1.0)), regions, steps=8, scheduler="simple")
    fox, hat = owners(seen, 0), owners(seen, 1)
    assert fox == [not now for now in hat] and fox[0] and hat[-1]
    assert all(0.05 < owned(snapshot).float().mean() < 0.9 for snapshot in seen)


def test_the_paper_begins_with_the_last_word_that_is_in_force() -> None:
    late = edited((FOX_ONLY, 0.0, 0.5), (BOTH_WORDS, 0.5, 1.0))
    run = {"steps": 8, "sampler": "ddim", "scheduler": "ddim_uniform", "preset": "paper", "eta": 1.0}
    assert (steps_of(late, BOTH, **run)[0].owner == 0).all()
    assert (steps_of(BOTH_WORDS, BOTH, **run)[0].owner == 1).all()


def test_a_word_that_joins_later_has_its_denoise_from_the_start() -> None:
    """It is looked for in the given picture over all noise levels: else its pixels would be kept as they are."""
    picture = {"samples": torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))}
    seen: list[Snapshot] = []
    patched = apply(flat(), TimestepMap(BOTH, background_denoise=0.0), Options(on_step=seen.append))
    late = edited((cond(6), 0.0, 0.6), (BOTH_WORDS, 0.6, 1.0))
    got = ksampler(patched, steps=8, scheduler="simple", positive=late, image=picture)
    changed = ((got - picture["samples"]).abs() > 1e-4).any(dim=1)
    assert 0.1 < changed.float().mean() < 0.9 and torch.equal(changed, seen[0].sigma[:, 0] > 0)


# --- the demo model ----------------------------------------------------------------------------------------------------


@cache
def demo() -> tuple[Any, Any]:
    return load_demo_model()[:2]


def demo_steps(text: str, word: str, prepare: Callable[[list], list]) -> list[Snapshot]:
    """A run of the demo model at 128 pixels, 12 steps, with ``text`` prepared by a node."""
    model, clip = demo()
    positive, regions = CrossAttentionMask.execute(
        clip=clip, text=text, targets=word, threshold=1.0, update="every step"
    ).result
    negative, seen = comfy_nodes.CLIPTextEncode().encode(clip, "")[0], []
    image = comfy_nodes.EmptyLatentImage().generate(128, 128, 1)[0]
    patched = apply(model, TimestepMap(regions), Options(on_step=seen.append))
    comfy_nodes.common_ksampler(patched, 1, 12, 4.5, "euler", "normal", prepare(positive), negative, image)
    return seen


@pytest.mark.parametrize("part", [0.75, 0.5, 0.25])
def test_a_part_of_the_area_is_region_however_small_the_area(part: float) -> None:
    """With the outside counted as 0, all of a small area was."""
    area = comfy_nodes.ConditioningSetAreaPercentage()
    seen = demo_steps("a red ball in a room", "ball", lambda p: area.append(p, part, part, 0.0, 0.0, 1.0)[0])
    side = round(16 * part)
    covered = [float(owned(snapshot)[:side, :side].float().mean()) for snapshot in seen]
    assert covered[0] == 1 and 0.15 < sum(covered[1:]) / 11 < 0.65
    assert not any(owned(s)[side:].any() or owned(s)[:, side:].any() for s in seen)


def test_a_sun_in_the_left_half() -> None:
    """It is followed there, and has nothing of the right half."""
    left = torch.cat([torch.ones(1, 128, 64), torch.zeros(1, 128, 64)], dim=-1)
    seen = demo_steps("a red sun over a meadow", "sun", lambda positive: masked(positive, left))
    assert not any(owned(snapshot)[:, 8:].any() for snapshot in seen)
    assert all(0.05 < owned(snapshot)[:, :8].float().mean() < 0.7 for snapshot in seen[1:])
