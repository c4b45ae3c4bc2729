"""A run in parts is the whole run, bit for bit; and what a part ends with is level, whatever its clock says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.attention import Attention
from asyndm_core.clock import Clock, NoiseGrid, paper_clock, table_clock
from asyndm_core.curves import CURVES
from asyndm_core.embedding import Groups
from asyndm_core.grid import TokenGrid
from asyndm_core.regions import Plan, Region, Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Pause, generate, go_on, holding, levelled, prepare
from asyndm_core.samplers import EXPLODING, NoiseLaw, Prediction, find_sampler

STEPS = 9
SHAPE = (2, 8, 8)
GRID = NoiseGrid(torch.linspace(0.03, 14.6, 1000))
POSITIONS = torch.linspace(999, 0, STEPS + 1)
TABLE = torch.cat([GRID.at(POSITIONS[:-1]), torch.zeros(1)])
LEFT = torch.cat([torch.ones(1, 8, 4), torch.full((1, 8, 4), 0.3)], dim=-1)
GIVEN, UNIT = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()
WORDS = Regions((Target("moon"), Target("boat", 0.9)), grow=1, feather=2.0)
PAINTED = Regions(mask=LEFT, mask_mode="replace")


@dataclass
class Toy:
    """A host whose every answer depends on every pixel and its sigma, and whose words are where its latents are great.

    target: what it always answers, if given.
    """

    words: int = 2
    target: Tensor | None = None
    law: NoiseLaw = EXPLODING
    seen: Tensor | None = None

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        scaled = x / (1 + sigma * sigma).sqrt()
        self.seen = scaled[:, : self.words].abs().cumsum(-1) if watch else None
        mixed = torch.tanh(scaled + 0.5 * scaled.roll(1, -1) - 0.3 * scaled.roll(1, -2) + sigma.log1p().mean())
        return Prediction(mixed if self.target is None else self.target)

    def attention(self) -> Attention | None:
        return None if self.seen is None else Attention(self.seen, torch.ones(1, self.words, 1, 1))

    def acts(self, reference: Tensor) -> Tensor | None:
        return None


def clock() -> Clock:
    return table_clock(TABLE, POSITIONS, GRID)


def noised(sigma: Tensor) -> Tensor:
    return GIVEN + sigma * UNIT


def in_parts(host: Toy, clock: Clock, plan: Plan, stops: Iterable[int], drawn: Tensor | None = None) -> Pause:
    """A run with euler, made in parts that end before the steps ``stops``."""
    sampler = find_sampler("euler")
    pause = prepare(host, clock, plan, SHAPE, sampler, noised, lambda _: no_noise, drawn=drawn)
    for stop in stops:
        held = holding(host, pause.now, noised, TokenGrid(SHAPE[1:]))
        pause = go_on(held, pause, stop, clock, plan, sampler, no_noise)
        assert pause.step == stop
    return pause


def no_noise(*_: Tensor) -> Tensor:
    raise AssertionError("euler draws no noise")


@given(
    stops=st.sets(st.integers(1, STEPS - 1)),
    curve=st.sampled_from(list(CURVES)),
    strength=st.floats(0, 1),
    regions=st.sampled_from([WORDS, PAINTED, replace(WORDS, update="fixed")]),
    background=st.sampled_from([1.0, 0.5, 0.0]),
    known=st.sampled_from(["noised", "clean", "ahead"]),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_run_in_parts_is_the_whole(
    stops: set[int], curve: str, strength: float, regions: Regions, background: float, known: str, masked: bool
) -> None:
    """Wherever it is cut, even between any two steps."""
    asked = TimestepMap(regions, curve, strength, background_denoise=background, known_pixels=known)
    plan, drawn = make_plan(asked, 8, 8), LEFT.expand(SHAPE).round() if masked else None
    whole = generate(Toy(), clock(), plan, SHAPE, find_sampler("euler"), noised, lambda _: no_noise, drawn=drawn)
    parts = in_parts(Toy(), clock(), plan, [*sorted(stops), STEPS], drawn)
    assert whole.isfinite().all() and torch.equal(levelled(parts, clock(), noised), whole)


def test_the_papers_clock_too() -> None:
    even = paper_clock(TABLE, POSITIONS, GRID)
    plan = make_plan(TimestepMap(WORDS, preset="paper"), 8, 8)
    whole = in_parts(Toy(), even, plan, [STEPS])
    assert torch.equal(in_parts(Toy(), even, plan, range(1, STEPS + 1)).x, whole.x)


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
@pytest.mark.parametrize(
    "changes",
    [{}, {"background_denoise": 0.4}, {"background_denoise": 0.0}, {"background_denoise": 0.3, "known_pixels": "ahead"}],
    ids=str,
)
def test_a_part_ends_level(changes: dict, stop: int) -> None:
    """With a model that always says the same, every pixel is on the line x = D + sigma n of its own noise n; where it is put
    level, it is at the table's sigma on it. What is kept, or ahead all along, is the given picture there."""
    plan = make_plan(TimestepMap(PAINTED, "piecewise linear", 1.0, **changes), 8, 8)
    host = Toy(target=GIVEN)
    pause = in_parts(host, clock(), plan, [stop])
    if 1 < stop < STEPS - 1 and not changes:
        assert pause.now.sigma.unique().numel() > 1
    torch.testing.assert_close(levelled(pause, clock(), noised), GIVEN + TABLE[stop] * UNIT, rtol=1e-4, atol=1e-4)


def test_level_pixels_are_left_as_they_are() -> None:
    """Bit for bit: no sampler's result changes where nothing lags."""
    plan = make_plan(TimestepMap(PAINTED, strength=0.0), 8, 8)
    for stop in range(1, STEPS + 1):
        pause = in_parts(Toy(), clock(), plan, [stop])
        assert torch.equal(levelled(pause, clock(), noised), pause.x)


def test_a_part_of_one_step_lags_as_the_whole_does() -> None:
    """Alone, a run of one step could not: all its pixels end level."""
    plan = make_plan(TimestepMap(PAINTED, strength=0.9), 8, 8)
    sigmas = [in_parts(Toy(), clock(), plan, range(1, stop + 1)).now.sigma for stop in range(1, STEPS)]
    assert all((later < sooner).all() for sooner, later in pairwise(sigmas))
    for stop, sigma in enumerate(sigmas[:-1], start=1):
        assert (sigma[..., :4] > TABLE[stop]).all()


def test_what_a_later_map_may_change() -> None:
    """Curves and strengths; not the words, masks and what is known: those are where the pixels stand."""
    region = Region("moon", "quadratic", 0.7, "moon")
    plan = Plan((region, Region("painted", "linear", 0.5, mask=LEFT)))
    assert plan.same_regions(
        Plan((replace(region, strength=0.1, curve="exponential"), replace(plan.regions[1], mask=LEFT.clone())))
    )
    for other in (
        Plan((region,)),
        Plan((replace(region, word="boat"), plan.regions[1])),
        Plan((region, replace(plan.regions[1], mask=LEFT.flip(-1)))),
        Plan((region, replace(plan.regions[1], mask=None))),
        replace(plan, fixed=True),
        replace(plan, clean=True),
        replace(plan, background_denoise=0.5),
    ):
        assert not plan.same_regions(other) and not other.same_regions(plan)


def test_chained_maps_have_one_table() -> None:
    first = TimestepMap(WORDS, sigmas=TABLE)
    assert TimestepMap(PAINTED, previous=first).table is TABLE
    assert TimestepMap(PAINTED).table is None
    make_plan(TimestepMap(PAINTED, previous=first, sigmas=TABLE.clone()), 8, 8)
    for other in (TABLE[1:], 2 * TABLE):
        with pytest.raises(ValueError, match="disagree on sigmas"):
            make_plan(TimestepMap(PAINTED, previous=first, sigmas=other), 8, 8)
