"""Inpainting: what the model is shown of known pixels, noised or clean, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from asyndm_core.clock import Clock
from asyndm_core.embedding import Groups
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock
from asyndm_core.inpainting import InpaintingHost, blend, known
from asyndm_core.regions import Plan, Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Host, Snapshot, generate
from asyndm_core.samplers import SAMPLERS, Prediction, find_sampler

STEPS = 8
HOLE = torch.zeros(1, 1, 16, 16)
HOLE[..., 2:11, 5:] = 1
WORDS = Regions((Target("moon"), Target("boat", 0.9)))
LAGS = TimestepMap(Regions(mask=HOLE[0], mask_mode="replace"), strength=0.8)
CLEAN = replace(LAGS, known_pixels="clean")


@pytest.fixture
def clock(alphas: Tensor) -> Clock:
    """Eight leading steps to sigma 0."""
    return make_clock(alphas, torch.arange(STEPS).flip(0) * (1000 // STEPS) + 1)


class Perfect:
    """A host that knows the picture, and keeps what it was shown."""

    law = DiffusersHost.law

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture
        self.calls: list[tuple[Tensor, Tensor]] = []

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        self.calls.append((x, sigma))
        return Prediction(self.picture)

    def attention(self) -> None:
        return None


def inpainted(
    host: Host, clock: Clock, asked: TimestepMap | Plan, given: Tensor, mask: Tensor, unit: Tensor, sampler: str = "euler",
    seen: list[Snapshot] | None = None,
) -> Tensor:  # fmt: skip
    """A run with the noise ``unit``, known pixels as the plan says; drawn pixels start as ``given`` with noise."""
    plan = asked if isinstance(asked, Plan) else make_plan(asked, *given.shape[-2:])

    def noised(sigma: Tensor) -> Tensor:
        return given + sigma * unit

    def noise(_: Plan):
        drawn = torch.Generator().manual_seed(6)
        return lambda *_: torch.randn(given.shape, generator=drawn)

    shape = (given.shape[0], *given.shape[-2:])
    return generate(
        InpaintingHost(host, given, mask, noised), clock, plan, shape, find_sampler(sampler), noised, noise,
        on_step=None if seen is None else seen.append, kept=known(mask) if plan.clean else None,
    )  # fmt: skip


def test_what_is_known() -> None:
    """Black, but for what rounding and compression leave of it; all channels count."""
    mask = torch.tensor([0.0, 2 / 255, 0.02, 0.5, 1.0]).view(1, 1, 1, 5)
    assert known(mask).flatten().tolist() == [True, True, False, False, False]
    assert known(torch.cat([mask, torch.ones_like(mask)], dim=1)).sum() == 0


@pytest.mark.parametrize("asked", [LAGS, CLEAN, replace(CLEAN, strength=0.0)], ids=["noised", "clean", "clean, no lag"])
def test_the_model_is_told_the_truth(clock: Clock, asked: TimestepMap) -> None:
    """Every pixel is shown at its sigma, with the same noise all along; known ones at the background's sigma, or at 0."""
    given, picture, unit = torch.randn(3, 2, 4, 16, 16).unbind()
    host, in_hole = Perfect(picture), HOLE[:, 0].bool().expand(2, -1, -1)
    got = inpainted(host, clock, asked, given, HOLE, unit)
    assert len(host.calls) == STEPS
    for step, (x, sigma) in enumerate(host.calls):
        level = 0.0 if asked.known_pixels == "clean" else clock.sigmas[step]
        assert (sigma[:, 0][~in_hole] == level).all() and (sigma[:, 0][in_hole] >= clock.sigmas[step]).all()
        shown = (given + sigma * unit).movedim(1, -1)[~in_hole]
        torch.testing.assert_close(x.movedim(1, -1)[~in_hole], shown, rtol=0, atol=0)
    expected = blend(picture, given, HOLE)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if asked.known_pixels == "clean":
        assert torch.equal(got.movedim(1, -1)[~in_hole], given.movedim(1, -1)[~in_hole])


@pytest.mark.parametrize("asked", [LAGS, CLEAN], ids=["noised", "clean"])
def test_a_grey_pixel_is_partly_drawn(clock: Clock, asked: TimestepMap) -> None:
    """Mask m: m of what the model says and 1 - m of what is given, at the pixel's own sigma in both ways."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    grey = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    host = Perfect(picture)
    got = inpainted(host, clock, asked, given, grey, unit)
    expected = blend(picture, given, grey)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert all((sigma[..., 1:] >= clock.sigmas[step]).all() for step, (_, sigma) in enumerate(host.calls))


@pytest.mark.parametrize("sampler", [name for name, s in SAMPLERS.items() if not s.noise.startswith("brownian")])
def test_clean_pixels_are_kept_bit_for_bit(host: DiffusersHost, clock: Clock, sampler: str) -> None:
    """With every sampler and a real model; the hole changes, and nothing is NaN."""
    given, unit = torch.randn(2, 1, 4, 16, 16).unbind()
    seen: list[Snapshot] = []
    got = inpainted(host, clock, replace(CLEAN, regions=WORDS), given, HOLE, unit, sampler, seen)
    in_hole = HOLE[0, 0].bool()
    assert torch.equal(got[..., ~in_hole], given[..., ~in_hole]) and got.isfinite().all()
    assert not torch.isclose(got[..., in_hole], given[..., in_hole]).any(dim=1).all()
    assert all((s.progress[:, ~in_hole] == STEPS).all() and (s.progress[:, in_hole] < STEPS).all() for s in seen)


def test_clean_is_what_a_background_denoise_of_zero_is(host: DiffusersHost, clock: Clock) -> None:
    """Two ways to the same: a mask with clean known pixels, or no mask and a background that is kept."""
    given, unit = torch.randn(2, 1, 4, 16, 16).unbind()
    clean = inpainted(host, clock, CLEAN, given, HOLE, unit)
    kept = inpainted(host, clock, replace(LAGS, background_denoise=0.0), given, torch.ones_like(HOLE), unit)
    assert torch.equal(clean, kept)


@pytest.mark.parametrize("asked", [CLEAN, replace(LAGS, background_denoise=0.0)], ids=["mask", "background"])
def test_what_is_kept_ends_as_noisy_as_the_rest(clock: Clock, asked: TimestepMap) -> None:
    """A table that ends above 0 leaves noise for a next sampler, on kept pixels too."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    cut = replace(clock, sigmas=clock.sigmas[:-2], positions=clock.positions[:-2])
    got = inpainted(Perfect(picture), cut, asked, given, HOLE, unit)
    torch.testing.assert_close(got[..., 12:, :], (given + cut.sigmas[-1] * unit)[..., 12:, :], rtol=0, atol=0)


@pytest.mark.parametrize("asked", [LAGS, CLEAN], ids=["noised", "clean"])
@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_a_batch_item_equals_its_solo_run(host: DiffusersHost, clock: Clock, asked: TimestepMap, update: str) -> None:
    """Every picture has its own mask and its own words' pixels."""
    given, unit = torch.randn(2, 2, 4, 16, 16).unbind()
    masks = torch.cat([HOLE, HOLE.flip(-2)])
    asked = replace(asked, regions=replace(WORDS, update=update))

    def run(rows: slice) -> Tensor:
        return inpainted(host, clock, asked, given[rows], masks[rows], unit[rows])

    both = run(slice(0, 2))
    for index in range(2):
        torch.testing.assert_close(both[index : index + 1], run(slice(index, index + 1)), rtol=1e-4, atol=1e-4)


def test_a_run_has_one_way() -> None:
    """Chained maps agree; mode synchronous is stock sampling whatever else is set; the paper's run has no mask."""
    assert not make_plan(LAGS, 16, 16).clean and make_plan(CLEAN, 16, 16).clean
    assert not make_plan(replace(CLEAN, mode="synchronous"), 16, 16).clean
    assert make_plan(replace(CLEAN, mode="synchronous", previous=CLEAN), 16, 16).clean
    with pytest.raises(ValueError, match=r"disagree on known_pixels \(clean, noised\)"):
        make_plan(replace(CLEAN, previous=LAGS), 16, 16)
    with pytest.raises(ValueError, match="set known_pixels of Asynchronous Timestep Map to noised"):
        make_plan(replace(CLEAN, preset="paper"), 16, 16)
