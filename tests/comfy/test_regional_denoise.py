"""Regional denoise in ComfyUI: an even one is KSampler's own, and what is kept is kept."""

from __future__ import annotations

import logging
from typing import Any

import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, TimestepMap
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from tiny import LEFT, NEGATIVE, POSITIVE, ModelType, asyn, difference, flat, ksampler, latent, make_model, model, painted, same
from torch import Tensor

from nodes import KSamplerAdvanced

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends

SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "heun", "lcm")


def node(regions: Regions, sampler: str = "euler", scheduler: str = "karras", steps: int = 6, denoise: float = 1.0,
         image: dict[str, Any] | None = None, **changes: Any) -> Tensor:  # fmt: skip
    """The node AsynDM KSampler on a full picture."""
    return AsynDMKSampler.execute(
        model(), TimestepMap(regions, **changes), 7, steps, 5.0, sampler, scheduler, POSITIVE, NEGATIVE,
        image or latent(full=True), denoise, preview=False,
    ).result[0]["samples"]  # fmt: skip


@pytest.mark.parametrize("scheduler", ["karras", "simple"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_even_denoise_is_ksamplers(sampler: str, scheduler: str) -> None:
    """Both at 0.6: the node equals KSampler with denoise 0.6; on a table of 10 steps Apply equals its last 6."""
    stock = ksampler(model(), sampler, scheduler, steps=6, image=latent(full=True), denoise=0.6)
    even = {"strength": 0.0, "region_denoise": 0.6, "background_denoise": 0.6}
    assert same(node(painted(LEFT, strength=0.0), sampler, scheduler, **even), stock)
    applied = asyn(model(), painted(LEFT, strength=0.0), **even)
    assert same(ksampler(applied, sampler, scheduler, steps=10, image=latent(full=True)), stock)


def test_it_is_a_share_of_the_samplers_own() -> None:
    """0.5 of KSampler's 0.8 is 0.4."""
    even = {"strength": 0.0, "region_denoise": 0.5, "background_denoise": 0.5}
    stock = ksampler(model(), steps=6, image=latent(full=True), denoise=0.4)
    assert same(node(painted(LEFT, strength=0.0), denoise=0.8, **even), stock)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_background_zero_keeps_the_background(sampler: str) -> None:
    """Its pixels come back as they were (but for ComfyUI's scaling of latents), the region is drawn anew."""
    image = latent(full=True)
    got = node(painted(LEFT), sampler, background_denoise=0.0, image=image)
    torch.testing.assert_close(got[..., 4:], image["samples"][..., 4:], rtol=1e-6, atol=1e-6)
    assert (got[..., :4] - image["samples"][..., :4]).abs().mean() > 0.1
    assert same(ksampler(asyn(model(), painted(LEFT), background_denoise=0.0), sampler, steps=6, image=image), got)


def test_all_at_zero_is_the_picture_itself() -> None:
    image, none = latent(full=True), {"region_denoise": 0.0, "background_denoise": 0.0}
    assert same(node(painted(LEFT), image=image, **none), image["samples"])
    got = ksampler(asyn(model(), painted(LEFT), **none), image=image)
    torch.testing.assert_close(got, image["samples"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM], ids=lambda kind: kind.name)
def test_a_start_is_that_of_the_stock_sampler(kind: ModelType) -> None:
    """Half of the picture at 0.5: its first latents are those of stock sampling that starts at the same sigma."""
    patched, image, seen = make_model(kind), latent(full=True), []
    changed = asyn(patched, painted(LEFT), on_step=seen.append, strength=0.0, region_denoise=1.0, background_denoise=0.5)
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 6)
    ksampler(changed, scheduler="simple", steps=6, image=image)
    starts: list[Tensor] = []
    for first in (0, 3):
        KSamplerAdvanced().sample(
            asyn(patched, Regions(), on_step=lambda s: starts.append(s.x) if s.step == 0 else None),
            "enable", 7, 6, 5.0, "euler", "simple", POSITIVE, NEGATIVE, image, first, 10000, "disable",
        )  # fmt: skip
    assert (seen[0].sigma[..., :4] == sigmas[0]).all() and (seen[0].sigma[..., 4:] == sigmas[3]).all()
    whole, half = starts
    assert difference(seen[0].x[..., :4], whole[..., :4]) < 1e-6
    assert difference(seen[0].x[..., 4:], half[..., 4:]) < 1e-6


def test_words_are_found_in_the_picture() -> None:
    """Without a painted mask: a part changes and a part is kept, and the model is as it was."""
    image = latent(16, 16, full=True)
    got = ksampler(asyn(flat(), background_denoise=0.0), image=image)
    kept = torch.isclose(got, image["samples"], rtol=1e-6, atol=1e-6).all(dim=1)
    assert 0.1 < kept.float().mean() < 0.9
    assert same(ksampler(asyn(flat(), background_denoise=0.0), image=image), got)


def test_without_noise_it_is_refused() -> None:
    """A sampler that adds no noise cannot start anything anywhere else."""
    patched = asyn(model(), painted(LEFT), background_denoise=0.3)
    with pytest.raises(ValueError, match="the sampler adds no noise"):
        KSamplerAdvanced().sample(
            patched, "disable", 7, 6, 5.0, "euler", "karras", POSITIVE, NEGATIVE, latent(full=True), 2, 10000, "disable"
        )


def test_an_empty_picture_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asyndm"):
        ksampler(asyn(flat(), painted(LEFT), background_denoise=0.3))
    assert "the latent image is empty" in caplog.text
