"""Inpainting: what the model is shown of known pixels, noised, clean or ahead, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from asyndm_core.clock import Clock
from asyndm_core.embedding import Groups
from asyndm_core.hosts import Host
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock
from asyndm_core.inpainting import InpaintingHost, blend, drawn
from asyndm_core.regions import KNOWN_PIXELS, Plan, Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Snapshot, generate
from asyndm_core.samplers import SAMPLERS, Prediction, find_sampler

STEPS = 8
HOLE = torch.zeros(1, 1, 16, 16)
HOLE[..., 2:11, 5:] = 1
WORDS = Regions((Target("moon"), Target("boat", 0.9)))
LAGS = TimestepMap(Regions(mask=HOLE[0], mask_mode="replace"), strength=0.8)
CLEAN = replace(LAGS, known_pixels="clean")
AHEAD = replace(LAGS, known_pixels="ahead", lead=0.25)
"""By two of the eight steps."""


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

    def acts(self, reference: Tensor) -> None:
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
        on_step=None if seen is None else seen.append, drawn=drawn(mask),
    )  # fmt: skip


def test_what_is_known() -> None:
    """Black, but for what rounding and compression leave of it; all channels count."""
    mask = torch.tensor([0.0, 2 / 255, 0.02, 0.5, 1.0]).view(1, 1, 1, 5)
    assert drawn(mask).flatten().tolist() == pytest.approx([0.0, 0.0, 0.02, 0.5, 1.0])
    assert (drawn(torch.cat([mask, torch.ones_like(mask)], dim=1)) == 1).all()


@pytest.mark.parametrize(
    "asked", [LAGS, CLEAN, replace(CLEAN, strength=0.0), AHEAD, replace(AHEAD, strength=0.0)],
    ids=["noised", "clean", "clean, no lag", "ahead", "ahead, no lag"],
)  # fmt: skip
def test_the_model_is_told_the_truth(clock: Clock, asked: TimestepMap) -> None:
    """Every pixel is shown at its sigma, with the same noise all along; known ones at the background's, or 2 steps on, or 0."""
    given, picture, unit = torch.randn(3, 2, 4, 16, 16).unbind()
    host, in_hole = Perfect(picture), HOLE[:, 0].bool().expand(2, -1, -1)
    got = inpainted(host, clock, asked, given, HOLE, unit)
    assert len(host.calls) == STEPS
    for step, (x, sigma) in enumerate(host.calls):
        level = {"noised": clock.sigmas[step], "clean": 0.0, "ahead": clock.sigmas[min(step + 2, STEPS)]}[asked.known_pixels]
        assert (sigma[:, 0][~in_hole] == level).all() and (sigma[:, 0][in_hole] >= clock.sigmas[step]).all()
        shown = (given + sigma * unit).movedim(1, -1)[~in_hole]
        torch.testing.assert_close(x.movedim(1, -1)[~in_hole], shown, rtol=0, atol=0)
    expected = blend(picture, given, HOLE)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if asked.known_pixels != "noised":
        assert torch.equal(got.movedim(1, -1)[~in_hole], given.movedim(1, -1)[~in_hole])


@pytest.mark.parametrize("asked", [LAGS, CLEAN], ids=["noised", "clean"])
def test_a_grey_pixel_is_partly_drawn(clock: Clock, asked: TimestepMap) -> None:
    """Mask m: m of what the model says and 1 - m of what is given; at the pixel's own sigma if nothing runs ahead."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    grey = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    host = Perfect(picture)
    got = inpainted(host, clock, asked, given, grey, unit)
    expected = blend(picture, given, grey)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert all((sigma[..., 1:] >= clock.sigmas[step]).all() for step, (_, sigma) in enumerate(host.calls))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_grey_pixel_leads_in_part(clock: Clock, share: float) -> None:
    """Mask m: (1 - m) of the lead, told truly; the end is half drawn, half given. In a region: (1 - m) of the way from it."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    grey = HOLE.lerp(torch.full_like(HOLE, share), 0.5 * (HOLE == 0))
    drawn_share = float(grey.min())
    host = Perfect(picture)
    got = inpainted(host, clock, replace(AHEAD, strength=0.0), given, grey, unit)
    torch.testing.assert_close(got, blend(picture, given, grey), rtol=1e-5, atol=1e-5)
    for step, (_, sigma) in enumerate(host.calls):
        lead = (1 - drawn_share) * min(2, STEPS - step)
        expected = clock.level(torch.tensor(step + lead))
        assert (sigma[HOLE == 0] == expected).all() and (sigma[HOLE == 1] == clock.sigmas[step]).all()
        assert clock.sigmas[min(step + 2, STEPS)] < expected < clock.sigmas[step]
    everywhere = replace(AHEAD, regions=Regions(mask=torch.ones(1, 16, 16), mask_mode="replace"))
    seen: list[Snapshot] = []
    inpainted(Perfect(picture), clock, everywhere, given, grey, unit, seen=seen)
    for s in seen:
        own, part = s.progress[HOLE[:, 0] == 1], s.progress[HOLE[:, 0] == 0]
        target = min(s.step + 2, STEPS)
        torch.testing.assert_close(part, (own[0] + (1 - drawn_share) * (target - own[0])).expand_as(part))


@pytest.mark.parametrize("asked", [CLEAN, AHEAD], ids=["clean", "ahead"])
@pytest.mark.parametrize("sampler", [name for name, s in SAMPLERS.items() if not s.noise.startswith("brownian")])
def test_known_pixels_are_kept_bit_for_bit(host: DiffusersHost, clock: Clock, sampler: str, asked: TimestepMap) -> None:
    """With every sampler and a real model; the hole changes, and nothing is NaN."""
    given, unit = torch.randn(2, 1, 4, 16, 16).unbind()
    seen: list[Snapshot] = []
    got = inpainted(host, clock, replace(asked, regions=WORDS), given, HOLE, unit, sampler, seen)
    in_hole = HOLE[0, 0].bool()
    assert torch.equal(got[..., ~in_hole], given[..., ~in_hole]) and got.isfinite().all()
    assert not torch.isclose(got[..., in_hole], given[..., in_hole]).any(dim=1).all()
    for s in seen:
        assert (s.progress[:, ~in_hole] == (STEPS if asked is CLEAN else min(s.step + 2, STEPS))).all()
        assert (s.progress[:, in_hole] <= s.step).all()


def test_the_ends_of_the_lead(host: DiffusersHost, clock: Clock) -> None:
    """No lead is noised, the whole schedule is clean, bit for bit; between, the hole is drawn otherwise than by either."""
    given, unit = torch.randn(2, 1, 4, 16, 16).unbind()
    words = replace(AHEAD, regions=WORDS)

    def run(asked: TimestepMap) -> Tensor:
        return inpainted(host, clock, asked, given, HOLE, unit)

    noised, clean, ahead = (run(replace(words, known_pixels=how)) for how in KNOWN_PIXELS)
    assert torch.equal(run(replace(words, lead=0.0)), noised)
    assert torch.equal(run(replace(words, lead=1.0)), clean)
    hole = HOLE[0, 0].bool()
    assert min((ahead - other)[..., hole].abs().mean() for other in (noised, clean)) > 1e-3


@pytest.mark.parametrize("curve", ["quadratic", "linear"])
def test_known_pixels_lead_the_whole_picture_in_mode_concave(clock: Clock, curve: str) -> None:
    """There is no background then: they lead the one region."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    seen: list[Snapshot] = []
    inpainted(Perfect(picture), clock, replace(AHEAD, mode="concave", curve=curve), given, HOLE, unit, seen=seen)
    for s in seen:
        drawn_at, known_at = s.progress[..., 3, 8], s.progress[..., 0, 0]
        torch.testing.assert_close(known_at, (drawn_at + 2).clamp(max=STEPS))
        assert (drawn_at < s.step).item() == (curve == "quadratic" and 0 < s.step < STEPS - 1)


def test_clean_is_what_a_background_denoise_of_zero_is(host: DiffusersHost, clock: Clock) -> None:
    """Two ways to the same: a mask with clean known pixels, or no mask and a background that is kept."""
    given, unit = torch.randn(2, 1, 4, 16, 16).unbind()
    clean = inpainted(host, clock, CLEAN, given, HOLE, unit)
    kept = inpainted(host, clock, replace(LAGS, background_denoise=0.0), given, torch.ones_like(HOLE), unit)
    assert torch.equal(clean, kept)
    ahead = inpainted(host, clock, AHEAD, given, HOLE, unit)
    held = inpainted(host, clock, replace(AHEAD, background_denoise=0.0), given, torch.ones_like(HOLE), unit)
    torch.testing.assert_close(ahead, held, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ahead, clean)


@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "heun"])
def test_what_is_kept_in_part_leads_until_it_is_drawn(clock: Clock, sampler: str) -> None:
    """Denoise d: (1 - d) of the lead, as it is given until progress N (1 - d), drawn from there on; told truly throughout."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    asked = replace(AHEAD, strength=0.0, background_denoise=0.5)
    outside = HOLE[:, 0] == 0

    class Stranger(Perfect):
        def denoise(self, x: Tensor, sigma: Tensor, *more: object, **options: object) -> Prediction:
            return super().denoise(x, sigma)._replace(uncond=-self.picture)

    host, seen = Stranger(picture), []
    got = inpainted(host, clock, asked, given, torch.ones_like(HOLE), unit, sampler, seen)
    for s in seen:
        q = s.progress[outside]
        torch.testing.assert_close(q, torch.full_like(q, s.step + 0.5 * min(2, STEPS - s.step)))
        held = bool((q < 4).all())
        expected = given if held else picture
        torch.testing.assert_close(s.denoised.movedim(1, -1)[outside], expected.movedim(1, -1)[outside], rtol=0, atol=0)
        if held or (s.step == 3 and sampler != "heun"):
            truly = (given + s.sigma * unit).movedim(1, -1)[outside]
            torch.testing.assert_close(s.x.movedim(1, -1)[outside], truly, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got, picture, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "asked", [CLEAN, replace(LAGS, background_denoise=0.0), AHEAD, replace(AHEAD, background_denoise=0.0)],
    ids=["mask", "background", "mask, ahead", "background, ahead"],
)  # fmt: skip
def test_what_is_kept_ends_as_noisy_as_the_rest(clock: Clock, asked: TimestepMap) -> None:
    """A table that ends above 0 leaves noise for a next sampler, on kept pixels too."""
    given, picture, unit = torch.randn(3, 1, 4, 16, 16).unbind()
    cut = replace(clock, sigmas=clock.sigmas[:-2], positions=clock.positions[:-2])
    got = inpainted(Perfect(picture), cut, asked, given, HOLE, unit)
    torch.testing.assert_close(got[..., 12:, :], (given + cut.sigmas[-1] * unit)[..., 12:, :], rtol=0, atol=0)


@pytest.mark.parametrize(
    "asked", [LAGS, CLEAN, AHEAD, replace(AHEAD, background_denoise=0.4)],
    ids=["noised", "clean", "ahead", "ahead, regional denoise"],
)  # fmt: skip
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
    assert make_plan(AHEAD, 16, 16).lead == 0.25 and make_plan(replace(AHEAD, known_pixels="noised"), 16, 16).lead == 0
    assert make_plan(replace(AHEAD, mode="synchronous"), 16, 16).lead == 0
    make_plan(replace(LAGS, lead=0.5, previous=LAGS), 16, 16)
    with pytest.raises(ValueError, match=r"disagree on lead \(0.25, 0.5\)"):
        make_plan(replace(AHEAD, lead=0.5, previous=AHEAD), 16, 16)
    with pytest.raises(ValueError, match=r"lead of Asynchronous Timestep Map is 1\.5: it is a number between 0 and 1"):
        replace(AHEAD, lead=1.5)
    with pytest.raises(ValueError, match="nor of pixels ahead: set known_pixels of Asynchronous Timestep Map to noised"):
        make_plan(replace(AHEAD, preset="paper"), 16, 16)
    with pytest.raises(ValueError, match=r"disagree on known_pixels \(clean, noised\)"):
        make_plan(replace(CLEAN, previous=LAGS), 16, 16)
    with pytest.raises(ValueError, match="set known_pixels of Asynchronous Timestep Map to noised"):
        make_plan(replace(CLEAN, preset="paper"), 16, 16)
