"""Regions: thresholds, painted masks, overlap, chained maps, and the errors that artists meet."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.attention import Attention, nothing_seen
from asyndm_core.regions import (
    Ownership,
    Plan,
    Region,
    Regions,
    Target,
    TimestepMap,
    assign,
    check_strength,
    feather,
    first_assignment,
    fit_mask,
    grow,
    make_plan,
    threshold,
    weights,
)

CPU = torch.device("cpu")


def words(*strengths: float, **changes: object) -> Plan:
    """A plan of words a, b, c, ... with these strengths."""
    return Plan(tuple(Region(n, "quadratic", k, word=n, **changes) for n, k in zip("abcdef", strengths, strict=False)))


def seen(attention: Tensor | None, weight: Tensor | None = None) -> Attention | None:
    """Attention (B, words, h, w) of prompts that act everywhere, or by ``weight``."""
    if attention is None:
        return None
    return Attention(attention, torch.ones(1, attention.shape[1], 1, 1) if weight is None else weight)


def owner(plan: Plan, attention: Tensor | None, shape: tuple[int, int, int]) -> Ownership:
    """Weights and overlaps in one."""
    return assign(plan, weights(plan, seen(attention), shape, CPU))


def test_threshold_is_relative_to_the_spatial_mean_of_each_map() -> None:
    """1 where at least factor x mean, map by map."""
    maps = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.1, 0.1], [0.1, 0.1]]])
    assert threshold(maps, 1.0).tolist() == [[[0, 0], [1, 1]], [[1, 1], [1, 1]]]
    assert threshold(maps, 2.0).tolist() == [[[0, 0], [0, 1]], [[0, 0], [0, 0]]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3), st.floats(0.01, 100))
def test_threshold_does_not_depend_on_the_scale(seed: int, factor: float, scale: float) -> None:
    """Attention is small or large as the prompt is long or short; the region is the same."""
    attention = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(threshold(attention, factor), threshold(attention * scale, factor))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 10**6))
def test_overlaps(strengths: list[float], seed: int) -> None:
    """The greatest k x weight owns a pixel, the first listed among equals; nobody where all are 0."""
    plan = words(*strengths)
    random = torch.Generator().manual_seed(seed)
    # Few distinct values, so that ties are frequent.
    region_weights = torch.randint(0, 3, (len(strengths), 2, 4, 5), generator=random) / 2
    got = assign(plan, region_weights).owner
    for pixel in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        claims = [(torch.tensor(k) * region_weights[n][tuple(pixel)]).item() for n, k in enumerate(strengths)]
        wanted = claims.index(max(claims)) if max(claims) > 0 else -1
        assert got[tuple(pixel)].item() == wanted


def test_ties_go_to_the_first_listed() -> None:
    """Equal strengths are the usual case."""
    assert (assign(words(0.7, 0.7), torch.ones(2, 1, 2, 2)).owner == 0).all()
    assert (assign(words(0.4, 0.7), torch.ones(2, 1, 2, 2)).owner == 1).all()


def test_weights_threshold_after_enlarging_the_paper_before() -> None:
    """Our regions have smooth edges at latent size; the paper's are blocks of the attention's pixels."""
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., 1:3, 1:3] = 1
    blocks = weights(Plan(words(0.7).regions, paper=True), seen(attention), (1, 16, 16), CPU)[0, 0]
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 1
    assert torch.equal(blocks, expected)
    smooth = weights(words(0.7), seen(attention), (1, 16, 16), CPU)[0, 0]
    enlarged = torch.nn.functional.interpolate(attention, size=(16, 16), mode="bilinear")[0, 0]
    assert torch.equal(smooth, (enlarged >= enlarged.mean()).float())
    assert smooth[4, 4] != blocks[4, 4] or not torch.equal(smooth, blocks)


def test_before_the_first_evaluation_words_are_everywhere() -> None:
    """The greatest strength owns every pixel; in the paper preset the prompt's last target does."""
    shape = (2, 3, 3)
    assert (first_assignment(words(0.4, 0.7, 0.7), None, shape, CPU).owner == 1).all()
    assert (first_assignment(words(0.4, 0.7, 0.7), "a", shape, CPU).owner == 1).all()
    paper = Plan(words(0.4, 0.7, 0.7).regions, paper=True)
    assert (first_assignment(paper, "a", shape, CPU).owner == 0).all()
    assert (first_assignment(Plan(), None, shape, CPU).owner == -1).all()


# --- where no prompt with the word acts -------------------------------------------------------------------------------


def box(size: int, *bounds: int, value: float = 1.0) -> Tensor:
    """(1, 1, size, size): ``value`` in rows and columns from top, bottom, left, right; else 0."""
    top, bottom, left, right = bounds
    weight = torch.zeros(1, 1, size, size)
    weight[..., top:bottom, left:right] = value
    return weight


def test_a_word_that_is_in_no_prompt_owns_nothing() -> None:
    """Its attention is 0 everywhere, and so its mean: 0 >= 0 is no region. Others are as without it."""
    attention = torch.rand(1, 2, 4, 4)
    attention[:, 0] = 0
    absent = Attention(attention, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
    for paper in (False, True):
        plan = Plan(words(0.9, 0.4).regions, paper=paper)
        got = weights(plan, absent, (1, 8, 8), CPU)
        assert not got[0].any()
        assert torch.equal(got[1], weights(plan, seen(attention), (1, 8, 8), CPU)[1])
        assert (assign(plan, got).owner != 0).all()
        nobody = weights(plan, nothing_seen(2, 2, CPU), (2, 8, 8), CPU)
        assert nobody.shape == (2, 2, 8, 8) and (assign(plan, nobody).owner == -1).all()


def test_before_anything_was_seen_a_word_owns_nothing_where_it_does_not_act() -> None:
    """The strongest of those that act there does, the paper's last word too."""
    acts = torch.cat([box(8, 0, 8, 0, 4), torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)], dim=1)
    got = first_assignment(words(0.7, 0.4, 0.9), None, (2, 8, 8), CPU, acts).owner
    assert (got[..., :4] == 0).all() and (got[..., 4:] == 1).all()
    paper = Plan(words(0.7, 0.4, 0.9).regions, paper=True)
    got = first_assignment(paper, "a", (1, 8, 8), CPU, acts).owner
    assert (got[..., :4] == 0).all() and (got[..., 4:] == -1).all()
    assert (first_assignment(paper, "c", (1, 8, 8), CPU, acts).owner == -1).all()


@pytest.mark.parametrize("side", [16, 12, 8, 4])
def test_the_mean_is_over_the_pixels_where_the_word_acts(side: int) -> None:
    """In a part of the picture, the region is what it would be if the part were the picture: nothing counts the outside."""
    inside = torch.rand(1, 1, side, side)
    attention, top = torch.zeros(1, 1, 16, 16), 16 - side
    attention[..., top:, top:] = inside
    acts = box(16, top, 16, top, 16)
    got = weights(words(0.7), seen(attention, acts), (1, 16, 16), CPU)[0, 0]
    alone = (inside >= inside.mean())[0, 0].float()
    assert torch.equal(got[top:, top:], alone)
    assert got.sum() == alone.sum()


def test_pixels_count_as_much_as_the_prompt_acts_there() -> None:
    """By hand: attention 1, 2, 3, 4 weighted 1, 1, 1, 7 has the mean 3.4, of which only the last has enough."""
    attention, acts = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 2), torch.tensor([1.0, 1.0, 1.0, 7.0]).view(1, 2, 2)
    assert threshold(attention, 1.0, acts).tolist() == [[[0, 0], [0, 1]]]
    assert threshold(attention, 1.0, acts / 100).tolist() == [[[0, 0], [0, 1]]]
    assert threshold(attention, 1.0).tolist() == [[[0, 0], [1, 1]]]
    acts[..., 1, 1] = 0
    assert threshold(attention, 1.0, acts).tolist() == [[[0, 1], [1, 0]]]
    assert threshold(attention, 0.0, acts).tolist() == [[[1, 1], [1, 0]]]


def test_a_region_does_not_grow_or_fade_out_of_where_its_word_acts() -> None:
    """Where the prompt acts everywhere with one strength, whatever it is, all is as without."""
    attention, left = torch.rand(1, 1, 16, 16), box(16, 0, 16, 0, 8)
    plan = words(0.7, grow=2, feather=3.0)
    got = weights(plan, seen(attention, left), (1, 16, 16), CPU)
    assert not got[..., 8:].any() and got[..., :8].any()
    even = torch.full((1, 1, 1, 1), 0.3)
    assert torch.equal(weights(plan, seen(attention, even), (1, 16, 16), CPU), weights(plan, seen(attention), (1, 16, 16), CPU))


def test_a_word_that_acts_no_more_hands_its_pixels_over() -> None:
    """What was seen of it before is kept, and comes back with it."""
    found = torch.ones(2, 1, 2, 2)
    plan = words(0.9, 0.4)
    for acts, owner in ((None, 0), (torch.tensor([1.0, 1.0]), 0), (torch.tensor([0.0, 1.0]), 1), (torch.zeros(2), -1)):
        got = assign(plan, found, None if acts is None else acts.view(1, 2, 1, 1))
        assert (got.owner == owner).all() and torch.equal(got.weights, found)
    painted = Plan((*plan.regions, Region("painted", "quadratic", 0.2)))
    assert (assign(painted, torch.ones(3, 1, 2, 2), torch.zeros(1, 2, 1, 1)).owner == 2).all()


# --- painted masks ----------------------------------------------------------------------------------------------------


def test_mask_limits_words() -> None:
    """Words stay within the painted mask from the start."""
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    plan = make_plan(TimestepMap(Regions((Target("a"),), mask=mask, mask_mode="limit")), 8, 8)
    assert [r.name for r in plan.regions] == ["a"]
    got = owner(plan, None, (2, 8, 8)).owner
    assert (got[..., :4] == 0).all()
    assert (got[..., 4:] == -1).all()


def test_mask_is_added_or_replaces() -> None:
    """ "add" is one more region after the words; "replace" leaves no word to follow."""
    mask = torch.ones(8, 8)
    asked = Regions((Target("a", 0.2),), mask=mask, mask_mode="add")
    plan = make_plan(TimestepMap(asked, strength=0.5), 8, 8)
    assert [(r.name, r.word, r.strength) for r in plan.regions] == [("a", "a", 0.2), ("painted", None, 0.5)]
    assert plan.words == ("a",)
    replaced = make_plan(TimestepMap(Regions((Target("a"),), mask=mask, mask_mode="replace")), 8, 8)
    assert [(r.name, r.word) for r in replaced.regions] == [("painted", None)]
    assert replaced.words == ()
    assert replaced.uniform is None


def test_a_mode_without_a_mask_is_the_words_alone() -> None:
    """Replace and add do nothing until a mask is connected."""
    for mode in ("limit", "add", "replace"):
        plan = make_plan(TimestepMap(Regions((Target("a"),), mask_mode=mode)), 8, 8)
        assert [(r.word, r.mask) for r in plan.regions] == [("a", None)]


def test_grey_masks_scale_and_batches_repeat() -> None:
    """Weights are the mask's values; fewer masks than images are repeated from the first."""
    masks = torch.stack([torch.full((4, 4), 0.25), torch.full((4, 4), 0.75)])
    plan = make_plan(TimestepMap(Regions(mask=masks, mask_mode="replace")), 4, 4)
    got = weights(plan, None, (5, 4, 4), CPU)[0, :, 0, 0]
    assert got.tolist() == [0.25, 0.75, 0.25, 0.75, 0.25]


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (512, 768), (1024, 17)])
def test_fit_mask_of_any_size(size: tuple[int, int]) -> None:
    """Brought to the latent's size, in [0, 1]; what is constant stays so; halves stay where they are."""
    fitted = fit_mask(torch.ones(size), 24, 36)
    assert fitted.shape == (1, 24, 36)
    torch.testing.assert_close(fitted, torch.ones(1, 24, 36))
    if min(size) >= 64:
        half = torch.zeros(2, *size)
        half[:, : size[0] // 2] = 1
        torch.testing.assert_close(fit_mask(half, 24, 36)[:, :12], torch.ones(2, 12, 36))
        torch.testing.assert_close(fit_mask(half, 24, 36)[:, 12:], torch.zeros(2, 12, 36))
    assert fit_mask(torch.full(size, 3.0), 8, 8).max() == 1
    assert fit_mask(torch.full(size, -3.0), 8, 8).min() == 0


def test_fit_mask_counts_covered_pixels() -> None:
    """A small blob is not lost between sampling points, as nearest or bilinear would lose it."""
    mask = torch.zeros(512, 512)
    mask[3:5, 3:5] = 1
    assert fit_mask(mask, 64, 64)[0, 0, 0].item() == pytest.approx(4 / 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_mask_refuses_what_is_not_a_number(value: float) -> None:
    """NaN would spread through the whole latent."""
    mask = torch.zeros(8, 8)
    mask[2, 2] = value
    with pytest.raises(ValueError, match="not numbers"):
        fit_mask(mask, 4, 4)


def test_fit_mask_refuses_other_shapes() -> None:
    """An image is not a mask."""
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 3\)"):
        fit_mask(torch.zeros(1, 8, 8, 3), 4, 4)


def test_grow_and_shrink() -> None:
    """One pixel grows to a square; a square shrinks to a pixel; the border of the picture is no edge."""
    dot = torch.zeros(1, 7, 7)
    dot[0, 3, 3] = 1
    square = torch.zeros(1, 7, 7)
    square[0, 1:6, 1:6] = 1
    assert torch.equal(grow(dot, 2), square)
    assert torch.equal(grow(square, -2), dot)
    assert torch.equal(grow(dot, 0), dot)
    full = torch.ones(1, 7, 7)
    assert torch.equal(grow(full, -3), full)


def test_feather_fades_over_about_its_width() -> None:
    """Half at the edge, nearly whole and nearly nothing a feather's width away, monotone between."""
    edge = torch.zeros(1, 40, 40)
    edge[:, :, 20:] = 1
    faded = feather(edge, 6.0)[0, 10]
    assert ((faded[:-1] - faded[1:]) <= 1e-6).all()
    assert faded[19].item() + faded[20].item() == pytest.approx(1, abs=1e-5)
    assert faded[13] < 0.05
    assert faded[26] > 0.95
    assert 0.2 < faded[18] < 0.5
    assert torch.equal(feather(edge, 0.0), edge)
    torch.testing.assert_close(feather(torch.ones(1, 9, 9), 4.0), torch.ones(1, 9, 9))


def test_chained_maps_keep_their_order_and_their_own_settings() -> None:
    """The earliest map's regions come first and win ties."""
    first = TimestepMap(Regions((Target("a"), Target("b", 0.9))), "exponential", 0.7)
    second = TimestepMap(Regions((Target("c"),), threshold=2.0), "quadratic", 0.3, previous=first)
    plan = make_plan(second, 8, 8)
    assert [(r.name, r.curve, r.strength, r.threshold) for r in plan.regions] == [
        ("a", "exponential", 0.7, 1.0), ("b", "exponential", 0.9, 1.0), ("c", "quadratic", 0.3, 2.0),
    ]  # fmt: skip
    assert plan.words == ("a", "b", "c")


def test_a_word_of_two_maps_is_watched_once() -> None:
    """Two regions of one word share its attention."""
    first = TimestepMap(Regions((Target("a"),), threshold=2.0), strength=1.0)
    plan = make_plan(TimestepMap(Regions((Target("a"),)), strength=0.2, previous=first), 8, 8)
    assert plan.words == ("a",)
    attention = torch.tensor([[[[1.0, 3.0], [0.5, 0.1]]]])
    assert owner(plan, attention, (1, 2, 2)).owner.tolist() == [[[-1, 0], [-1, -1]]]


@pytest.mark.parametrize("what", ["preset", "update"])
def test_chained_maps_must_agree(what: str) -> None:
    """A run has one preset, and one way to see words."""
    a, b = Regions((Target("a"),)), Regions((Target("b"),))
    if what == "preset":
        chain = TimestepMap(a, preset="paper", previous=TimestepMap(b))
    else:
        chain = TimestepMap(Regions((Target("a"),), update="fixed"), previous=TimestepMap(b))
    with pytest.raises(ValueError, match=f"disagree on {what}"):
        make_plan(chain, 8, 8)


def test_a_painted_map_has_no_say_in_update() -> None:
    """Where a mask stands in the place of the words, how words would be seen does not matter."""
    for words, painted in (("every step", "fixed"), ("fixed", "every step")):
        replaced = Regions((Target("b"),), update=painted, mask=torch.ones(8, 8), mask_mode="replace")
        chain = TimestepMap(replaced, previous=TimestepMap(Regions((Target("a"),), update=words)))
        assert make_plan(chain, 8, 8).fixed == (words == "fixed")


def test_modes() -> None:
    """Synchronous has no region; concave is one region of all pixels with the greatest strength."""
    asked = Regions((Target("a", 0.2), Target("b", 0.6)), mask=torch.zeros(8, 8))
    assert make_plan(TimestepMap(asked, mode="synchronous"), 8, 8) == Plan()
    concave = make_plan(TimestepMap(asked, "exponential", 0.4, mode="concave"), 8, 8)
    assert concave.words == ()
    assert concave.uniform is not None
    assert (concave.uniform.strength, concave.uniform.curve) == (0.6, "exponential")
    assert (owner(concave, None, (1, 8, 8)).owner == 0).all()
    assert make_plan(TimestepMap(Regions(), strength=0.4, mode="concave"), 8, 8).regions[0].strength == 0.4


def test_lags_tells_whether_a_region_can_fall_behind() -> None:
    """Strength 0 and the linear curve are stock sampling."""
    assert [r.lags for r in words(0.0, 0.1).regions] == [False, True]
    assert not Region("a", "linear", 1.0).lags


@pytest.mark.parametrize("strength", [-0.1, 1.1, 2.0, float("nan"), float("inf")])
def test_strength_errors_name_the_place(strength: float) -> None:
    """What came and what is allowed."""
    with pytest.raises(ValueError, match=r"the widget is .* between 0"):
        check_strength(strength, "the widget")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(-2, 3), st.floats(0, 4), st.floats(0.2, 2))
def test_weights_are_weights(seed: int, pixels: int, fade: float, factor: float) -> None:
    """For any attention and settings: in [0, 1], and lower thresholds give larger regions."""
    attention = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(seed))
    sizes = []
    for lower in (factor, factor / 2):
        plan = words(0.5, threshold=lower, grow=pixels, feather=fade)
        got = weights(plan, seen(attention), (2, 13, 17), CPU)
        assert got.shape == (1, 2, 13, 17)
        assert got.min() >= 0
        assert got.max() <= 1 + 1e-6
        sizes.append(got.sum().item())
    assert all(a <= b + 1e-3 for a, b in pairwise(sizes))
