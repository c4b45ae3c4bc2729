"""Painted regions beside words, chained maps and overlaps in whole runs (the paper's distortion reduction)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import e, exp

import pytest
import torch
from torch import Tensor

from asyndm_core.clock import Clock
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock
from asyndm_core.regions import Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Snapshot, generate
from asyndm_core.samplers import find_sampler

STEPS = 9
LAST = STEPS - 1
"""E, the last evaluation."""

CLOSED: dict[str, Callable[[float, int], float]] = {
    "quadratic": lambda k, i: LAST - (LAST - i) * (1 + k * i / LAST),
    "piecewise linear": lambda k, i: max((1 - k) * i, LAST - (1 + k) * (LAST - i)),
    "exponential": lambda k, i: LAST - (1 - k) * (LAST - i) - k * LAST * (e - exp(i / LAST)) / (e - 1),
    "linear": lambda k, i: float(i),
}
"""Progress after i steps of a pixel that is in one region of strength k from the start: the recurrences solved."""


@pytest.fixture
def clock(alphas: Tensor) -> Clock:
    """Nine leading steps to sigma 0."""
    return make_clock(alphas, torch.arange(STEPS).flip(0) * (1000 // STEPS) + 1)


def run(host: DiffusersHost, clock: Clock, asked: TimestepMap, unit: Tensor) -> tuple[Tensor, list[Snapshot]]:
    """The latents that noise ``unit`` becomes, and what was seen at every step."""
    seen: list[Snapshot] = []
    plan = make_plan(asked, *unit.shape[-2:])
    got = generate(
        host, clock, plan, (unit.shape[0], *unit.shape[-2:]), find_sampler("euler"), lambda sigma: unit * sigma,
        lambda _: lambda *_: unit, on_step=seen.append,
    )  # fmt: skip
    return got, seen


def box(top: int, bottom: int, left: int, right: int, value: float = 1.0) -> Tensor:
    """A painted mask (1, 16, 16)."""
    mask = torch.zeros(1, 16, 16)
    mask[:, top:bottom, left:right] = value
    return mask


def painted(mask: Tensor, curve: str, strength: float, previous: TimestepMap | None = None) -> TimestepMap:
    """A map of one painted region."""
    return TimestepMap(Regions(mask=mask, mask_mode="replace"), curve, strength, previous=previous)


def progress_of(seen: list[Snapshot], row: int, column: int) -> list[float]:
    """The progress of one pixel at every step."""
    return [snapshot.progress[0, row, column].item() for snapshot in seen]


def test_three_chained_maps_that_overlap(host: DiffusersHost, clock: Clock) -> None:
    """The greater strength x weight owns a pixel, then the first map; each pixel goes its own region's curve to the end."""
    chain = painted(box(0, 10, 0, 10), "exponential", 0.6)
    chain = painted(box(4, 16, 0, 6), "quadratic", 0.9, chain)
    chain = painted(box(0, 6, 4, 16), "piecewise linear", 0.6, chain)
    _, seen = run(host, clock, chain, torch.randn(1, 4, 16, 16))
    expected = {
        (1, 1): ("exponential", 0.6),  # the first alone
        (6, 2): ("quadratic", 0.9),  # first and second: the stronger
        (2, 6): ("exponential", 0.6),  # first and third, equally strong: the first listed
        (5, 5): ("quadratic", 0.9),  # all three
        (14, 3): ("quadratic", 0.9),
        (2, 14): ("piecewise linear", 0.6),
        (14, 14): ("linear", 0.0),  # nobody's
    }
    for pixel, (curve, strength) in expected.items():
        wanted = [CLOSED[curve](strength, step) for step in range(STEPS)]
        torch.testing.assert_close(progress_of(seen, *pixel), wanted, rtol=0, atol=1e-4, msg=lambda m, p=pixel: f"{p}: {m}")
    assert all(snapshot.sigma is not None and snapshot.sigma.unique().numel() <= 4 for snapshot in seen)


def test_a_grey_region_yields_where_another_is_stronger(host: DiffusersHost, clock: Clock) -> None:
    """Strength x weight decides, and is the strength that the pixel goes with."""
    grey = box(0, 16, 0, 8, 0.5) + box(0, 16, 8, 16, 1.0)
    chain = painted(torch.ones(1, 16, 16), "quadratic", 0.6, painted(grey, "quadratic", 0.8))
    _, seen = run(host, clock, chain, torch.randn(1, 4, 16, 16))
    assert (seen[0].owner[..., :8] == 1).all() and (seen[0].owner[..., 8:] == 0).all()
    for column, strength in ((3, 0.6), (12, 0.8)):
        wanted = [CLOSED["quadratic"](strength, step) for step in range(STEPS)]
        torch.testing.assert_close(progress_of(seen, 5, column), wanted, rtol=0, atol=1e-4)


def test_a_painted_region_beside_words(host: DiffusersHost, clock: Clock) -> None:
    """Added to weaker words, the painted region has its pixels throughout, on its closed form; outside, the words move as
    they would without it. Added to stronger words, it has what they leave."""
    mask, unit = box(3, 9, 5, 15), torch.randn(1, 4, 16, 16)
    weaker = Regions((Target("moon", 0.3), Target("boat", 0.2)), mask=mask, mask_mode="add")
    _, seen = run(host, clock, TimestepMap(weaker, strength=0.8), unit)
    inside = mask[0].bool()
    assert all((snapshot.owner[0][inside] == 2).all() for snapshot in seen)
    for step, snapshot in enumerate(seen):
        level = torch.full((60,), CLOSED["quadratic"](0.8, step))
        torch.testing.assert_close(snapshot.progress[0][inside], level, rtol=0, atol=1e-4)
    outside = torch.cat([snapshot.owner[0][~inside] for snapshot in seen[1:]])
    assert set(outside.tolist()) == {-1, 0, 1}, "every word, and the background, has pixels somewhere"

    stronger = replace(weaker, targets=(Target("moon", 0.9), Target("boat", 0.9)))
    _, seen = run(host, clock, TimestepMap(stronger, strength=0.8), unit)
    assert set(seen[0].owner.flatten().tolist()) == {0}, "before any attention a word is everywhere"
    left = [snapshot.owner[0][inside] for snapshot in seen[1:]]
    assert all((owner >= 0).all() for owner in left) and {0, 2} <= set(torch.cat(left).tolist())


@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_a_batch_item_equals_its_solo_run(host: DiffusersHost, clock: Clock, update: str) -> None:
    """Words, a painted region beside them and a second map over both: each picture with masks of its own."""
    unit = torch.randn(3, 4, 16, 16)
    first = torch.cat([box(0, 8, 0, 8), box(4, 12, 4, 12, 0.6), box(8, 16, 0, 16)])
    second = torch.cat([box(6, 16, 6, 16), box(0, 16, 0, 3), box(0, 3, 0, 16)])

    def solo(rows: slice) -> Tensor:
        words = Regions((Target("moon"), Target("boat", 0.4)), update=update, mask=first[rows], mask_mode="add")
        return run(host, clock, painted(second[rows], "exponential", 0.9, TimestepMap(words)), unit[rows])[0]

    together = solo(slice(0, 3))
    assert not torch.equal(together[0], together[1])
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], solo(slice(index, index + 1)), rtol=1e-4, atol=1e-4)
