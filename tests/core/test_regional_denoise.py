"""Regions and background that start at noise levels of their own: to change a part of a picture and keep the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.clock import Clock, NoiseGrid, table_clock
from asyndm_core.curves import CURVES
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock
from asyndm_core.regions import Ownership, Plan, Region, Regions, Target, TimestepMap, denoise_map, make_plan
from asyndm_core.run import Snapshot, generate, move, start
from asyndm_core.samplers import SAMPLERS, find_sampler

STEPS = 10
LEFT = torch.cat([torch.ones(1, 16, 8), torch.zeros(1, 16, 8)], dim=-1)
PAINTED = Regions(mask=LEFT, mask_mode="replace")
WORDS = Regions((Target("moon"), Target("boat", 0.9)))


@pytest.fixture
def clock(alphas: Tensor) -> Clock:
    """Ten leading steps to sigma 0."""
    return make_clock(alphas, torch.arange(STEPS).flip(0) * (1000 // STEPS) + 1)


@pytest.fixture
def host(unet: UNet2DConditionModel, alphas: Tensor) -> DiffusersHost:
    """The tiny UNet, with two words to follow."""
    cond, uncond = torch.randn(2, 1, 9, 24, generator=torch.Generator().manual_seed(3)).unbind()
    return DiffusersHost(unet, alphas, "epsilon", cond, uncond, 3.0, words=[[2], [5, 6]])


def edited(
    host: DiffusersHost, clock: Clock, plan: Plan, given: Tensor, sampler: str = "euler", seen: list[Snapshot] | None = None
) -> Tensor:
    """A run on the latents ``given``, with the same noise every time."""
    generator = torch.Generator().manual_seed(5)
    unit = torch.randn(given.shape, generator=generator)

    def noise(_: Plan):
        drawn = torch.Generator().manual_seed(6)
        return lambda *_: torch.randn(given.shape, generator=drawn)

    shape = (given.shape[0], *given.shape[-2:])
    on_step = None if seen is None else seen.append
    return generate(host, clock, plan, shape, find_sampler(sampler), lambda sigma: given + sigma * unit, noise, on_step=on_step)


def test_shares_of_the_greatest_denoise() -> None:
    """The greatest denoise is the run's; all others become shares of it. One clock for all pixels starts at the greatest."""
    both = TimestepMap(PAINTED, region_denoise=0.8, background_denoise=0.2)
    plan = make_plan(both, 16, 16)
    assert both.denoise == 0.8
    assert [r.denoise for r in plan.regions] == [1.0] and plan.background_denoise == 0.25
    assert not plan.level and not replace(plan, regions=()).idle
    chained = TimestepMap(WORDS, region_denoise=0.4, background_denoise=0.2, previous=both)
    assert [r.denoise for r in make_plan(chained, 16, 16).regions] == [1.0, 0.5, 0.5]
    for mode in ("synchronous", "concave"):
        assert make_plan(replace(both, mode=mode), 16, 16).level
    even = TimestepMap(PAINTED, strength=0.0, region_denoise=0.6, background_denoise=0.6)
    assert even.denoise == 0.6 and make_plan(even, 16, 16).idle


def test_what_cannot_be_is_said() -> None:
    """Chained maps have one background; the paper's run starts level."""
    one = TimestepMap(PAINTED, background_denoise=0.2)
    with pytest.raises(ValueError, match=r"disagree on background_denoise \(0\.2, 0\.3\)"):
        make_plan(TimestepMap(WORDS, background_denoise=0.3, previous=one), 16, 16)
    with pytest.raises(ValueError, match="paper preset starts all pixels at the same noise level"):
        make_plan(replace(one, preset="paper"), 16, 16)


def test_grey_edges_are_between() -> None:
    """Weight w of a painted region: w of the way from the background's denoise to the region's, exact at both ends."""
    grey = torch.tensor([[[0.0, 0.5, 1.0]]])
    plan = Plan((Region("painted", "quadratic", 0.0, mask=grey, denoise=0.9),), background_denoise=0.1)
    owned = Ownership(torch.tensor([[[-1, 0, 0]]]), grey[None])
    torch.testing.assert_close(denoise_map(plan, owned), torch.tensor([[[0.1, 0.5, 0.9]]]))


@given(
    denoise=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    steps=st.integers(1, 30),
    curve=st.sampled_from(list(CURVES)),
    strength=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_no_pixel_goes_back_and_all_arrive(denoise: list[float], steps: int, curve: str, strength: float) -> None:
    """From any start: progress never falls, and every pixel that is not kept is at E after the last move."""
    grid = NoiseGrid(torch.linspace(0.03, 14.6, 1000))
    positions = torch.linspace(999, 0, steps + 1)
    clock = table_clock(torch.cat([grid.at(positions[:-1]), torch.zeros(1)]), positions, grid)
    state = clock.start_at(torch.tensor([denoise]))
    progress = clock.progress(state, 0)
    wanted = (steps * (1 - torch.tensor([denoise]))).clamp(max=steps - 1)
    torch.testing.assert_close(progress, wanted, rtol=0, atol=1e-4)
    plan = Plan((Region("a", curve, strength),))
    owned = Ownership(torch.tensor([[0, -1, 0]]), torch.ones(1, 1, 3))
    for step in range(steps - 1):
        before, state = state, move(clock, plan, state, step, owned)
        assert (clock.progress(state, step + 1) >= clock.progress(before, step)).all()
        assert (clock.sigma(state, step + 1) <= clock.sigma(before, step)).all()
    assert (clock.progress(state, steps - 1) == steps - 1).all()


@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_the_model_is_told_the_truth(host: DiffusersHost, clock: Clock, strength: float) -> None:
    """At every evaluation x is the picture plus noise of exactly the pixel's sigma, kept pixels are clean and sigma 0."""
    target = torch.randn(1, 4, 16, 16)
    unit = torch.randn(target.shape, generator=torch.Generator().manual_seed(5))
    levels: list[Tensor] = []

    class Perfect(DiffusersHost):
        def denoise(self, x: Tensor, sigma: Tensor, *more: object, **options: object):
            torch.testing.assert_close(x, target + sigma * unit, rtol=1e-5, atol=1e-4)
            levels.append(sigma)
            return super().denoise(x, sigma, *more, **options)._replace(denoised=target)

    perfect = Perfect(host.unet, torch.linspace(0.99, 0.01, 1000), "epsilon", host.cond, host.uncond, 1.0, [[2], [5, 6]])
    middle = LEFT.roll(4, -1) * 0.5
    chain = TimestepMap(Regions(mask=middle, mask_mode="replace"), strength=strength, background_denoise=0.0)
    plan = make_plan(
        TimestepMap(PAINTED, strength=strength, background_denoise=0.0, region_denoise=0.4, previous=chain), 16, 16
    )
    got = edited(perfect, clock, plan, target)
    assert (levels[0] == 0).any() and (levels[0] == clock.sigmas[0]).sum() == 0
    assert levels[0].unique().numel() == 3
    assert torch.equal(got[..., 12:], target[..., 12:])
    torch.testing.assert_close(got, target, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sampler", [name for name, s in SAMPLERS.items() if not s.noise.startswith("brownian")])
def test_kept_pixels_are_kept_bit_for_bit(host: DiffusersHost, clock: Clock, sampler: str) -> None:
    """Background denoise 0, with every sampler; the region changes, and nothing is NaN."""
    given = torch.randn(1, 4, 16, 16)
    seen: list[Snapshot] = []
    got = edited(host, clock, make_plan(TimestepMap(PAINTED, background_denoise=0.0), 16, 16), given, sampler, seen)
    assert torch.equal(got[..., 8:], given[..., 8:])
    assert got.isfinite().all() and not torch.isclose(got[..., :8], given[..., :8]).any(dim=1).all()
    assert all((s.progress[..., 8:] == STEPS).all() and (s.progress[..., :8] < STEPS).all() for s in seen)


def test_an_even_share_starts_where_its_sigma_is(host: DiffusersHost, clock: Clock) -> None:
    """All pixels from half of the table: progress 5 to 9 in ten evaluations, the first at sigmas[5]."""
    seen: list[Snapshot] = []
    plan = Plan(background_denoise=0.5)
    edited(host, clock, plan, torch.randn(1, 4, 16, 16), seen=seen)
    assert seen[0].sigma is not None and (seen[0].sigma == clock.sigmas[5]).all()
    expected = [5 + 4 * step / 9 for step in range(STEPS)]
    torch.testing.assert_close([s.progress.mean().item() for s in seen], expected, rtol=1e-5, atol=1e-5)


def test_words_are_looked_for_in_the_picture_first(host: DiffusersHost, clock: Clock) -> None:
    """With unequal denoise the words' pixels are known at the start; another picture has other regions."""
    plan = make_plan(TimestepMap(WORDS, background_denoise=0.0), 16, 16)
    first: list[Tensor] = []
    for _ in range(2):
        seen: list[Snapshot] = []
        given = torch.randn(1, 4, 16, 16) * 3
        got = edited(host, clock, plan, given, seen=seen)
        kept = seen[0].progress == STEPS
        assert 0 < kept.sum() < kept.numel()
        assert torch.equal(kept, seen[0].owner == -1)
        assert torch.equal(got.movedim(1, -1)[kept], given.movedim(1, -1)[kept])
        first.append(kept)
    assert not torch.equal(*first)


def test_a_batch_item_equals_its_solo_run(host: DiffusersHost, clock: Clock) -> None:
    """Each picture of a batch is looked at for itself."""
    given = torch.randn(2, 4, 16, 16)
    plan = make_plan(TimestepMap(WORDS, region_denoise=0.9, background_denoise=0.3), 16, 16)
    unit = torch.randn(given.shape)

    def run(rows: slice) -> Tensor:
        x, n = given[rows], unit[rows]
        return generate(
            host, clock, plan, (x.shape[0], 16, 16), find_sampler("euler"), lambda sigma: x + sigma * n, lambda _: lambda *_: n
        )

    both = run(slice(0, 2))
    for index in range(2):
        torch.testing.assert_close(both[index : index + 1], run(slice(index, index + 1)), rtol=1e-4, atol=1e-4)


def test_one_region_of_two_strengths_and_none(clock: Clock) -> None:
    """A region of strength 0 with its own denoise owns its pixels, but not those of a stronger one."""
    right = 1 - LEFT
    plan = Plan(
        (Region("a", "quadratic", 0.0, mask=torch.ones(1, 16, 16), denoise=0.5), Region("b", "quadratic", 0.5, mask=right)),
        background_denoise=1.0,
    )
    begin = start(clock, plan, (1, 16, 16))
    assert (begin.owned.owner[..., :8] == 0).all() and (begin.owned.owner[..., 8:] == 1).all()
    assert (begin.sigma[..., :8] == clock.sigmas[5]).all() and (begin.sigma[..., 8:] == clock.sigmas[0]).all()
