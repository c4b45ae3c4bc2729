"""Inpainting with ComfyUI's own nodes: latent noise masks, models made for it, Differential Diffusion, clean known pixels.

The map's path is held against stock ComfyUI: in a batch of a picture that keeps pace and one that lags everywhere, the
first is what the stock sampler makes of it, the second what it makes on the lagging pixels' sigmas (mode concave).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.timestep_map import TimestepMapNode
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from families import vae
from tiny import (
    LEFT,
    NEGATIVE,
    POSITIVE,
    ModelType,
    asyn,
    base_model,
    difference,
    flat,
    ksampler,
    latent,
    make_model,
    model,
    painted,
    patcher,
    plain,
    same,
    second_lags,
    unet_config,
    untouched,
)
from torch import Tensor

from nodes import InpaintModelConditioning, KSamplerAdvanced, SetLatentNoiseMask, VAEEncodeForInpaint

TOLERANCE = 2e-5
NO_STRENGTH = Regions((Target("fox", 0.0),))
PER_PICTURE = painted(torch.zeros(8, 8), torch.ones(8, 8))
KINDS = (ModelType.EPS, ModelType.V_PREDICTION, ModelType.EDM, ModelType.FLOW)

HOLE = torch.zeros(1, 64, 64)
HOLE[:, 16:56, 24:] = 1
IN_HOLE = HOLE[0, ::8, ::8].bool()
SOFT = torch.linspace(-0.2, 1.2, 48).clamp(0, 1).expand(1, 40, 48)
MASKS = {
    "hard": HOLE,
    "soft, of another size": SOFT,
    "one for each picture": torch.cat([HOLE, HOLE.flip(-1)]),
    "at the latents' size": HOLE[:, ::8, ::8],
}


def pictures(count: int = 2) -> Tensor:
    """An IMAGE."""
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(4))


@cache
def inpaint_model(kind: ModelType = ModelType.EPS) -> Any:
    """A model made for inpainting: mask and masked picture beside its latents, nine channels in all."""
    made = make_model(kind, in_channels=9)
    made.model.set_inpaint()
    return made


def as_stock(
    run: Callable[[Callable[[Any], Any]], Tensor], lags: Regions = PER_PICTURE, tolerance: float = TOLERANCE, **changes: Any
) -> None:
    """``run`` samples two pictures with what a change makes of its model: see the top of this file."""
    stock = second_lags(run, lags, tolerance, **changes)
    assert difference(run(lambda m: plain(m, NO_STRENGTH, strength=0.0, **changes)), stock) < tolerance
    assert same(run(lambda m: asyn(m, lags, mode="synchronous", **changes)), stock)


def masked(mask: Tensor, batch: int = 2) -> dict[str, Any]:
    """A LATENT with a noise mask, by ComfyUI's node."""
    return SetLatentNoiseMask().set_mask(latent(batch=batch, full=True), mask)[0]


# --- noise masks -----------------------------------------------------------------------------------------------------------


SOFTEST = next(name for name in MASKS if name.startswith("soft"))


@pytest.mark.parametrize("kind, name", [*((ModelType.EPS, name) for name in MASKS), *((kind, SOFTEST) for kind in KINDS[1:])])
def test_noise_masks(kind: ModelType, name: str) -> None:
    """Every kind of mask for eps; for the other predictions the soft one, where all of the blending is at work."""
    image, patched = masked(MASKS[name]), model(kind)
    as_stock(lambda change: ksampler(change(patched), scheduler="simple", steps=3, image=image))
    got, given = ksampler(asyn(patched), scheduler="simple", steps=3, image=image), image["samples"]
    if name == "hard":
        torch.testing.assert_close(got[..., ~IN_HOLE], given[..., ~IN_HOLE], rtol=1e-5, atol=1e-5)
    assert (got - given).abs().mean() > 0.1


# --- models made for inpainting -----------------------------------------------------------------------------------------

Prepared = tuple[list, list, dict[str, Any]]


def conditioned(noise_mask: bool) -> Prepared:
    """InpaintModelConditioning."""
    return InpaintModelConditioning().encode(POSITIVE, NEGATIVE, pictures(), vae(4), HOLE, noise_mask)


WAYS: dict[str, Callable[[], Prepared]] = {
    "InpaintModelConditioning": lambda: conditioned(True),
    "InpaintModelConditioning without noise_mask": lambda: conditioned(False),
    "VAEEncodeForInpaint": lambda: (POSITIVE, NEGATIVE, VAEEncodeForInpaint().encode(vae(4), pictures(), HOLE, 6)[0]),
    "Set Latent Noise Mask": lambda: (POSITIVE, NEGATIVE, masked(HOLE)),
    "no mask at all": lambda: (POSITIVE, NEGATIVE, latent(batch=2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_models_made_for_inpainting(way: str) -> None:
    """What is concatenated to the latents goes in as it is, whatever the pixel's noise level."""
    positive, negative, image = WAYS[way]()
    as_stock(lambda change: ksampler(change(inpaint_model()), steps=3, positive=positive, negative=negative, image=image))
    assert ("noise_mask" in image) == (way not in ("InpaintModelConditioning without noise_mask", "no mask at all"))


def test_the_mask_reaches_such_a_model() -> None:
    """The test above would be blind if the nine channels made no difference."""
    one, other = (
        ksampler(asyn(inpaint_model()), steps=2, positive=c[0], negative=c[1], image=latent(batch=2))
        for c in (conditioned(False), (POSITIVE, NEGATIVE))
    )
    assert difference(one, other) > 1e-2


@pytest.mark.parametrize("kind", [ModelType.V_PREDICTION, ModelType.FLOW], ids=lambda kind: kind.name)
def test_other_predictions_of_such_models(kind: ModelType) -> None:
    positive, negative, image = conditioned(True)
    patched = inpaint_model(kind)

    def run(change: Callable[[Any], Any]) -> Tensor:
        return ksampler(change(patched), scheduler="simple", steps=3, positive=positive, negative=negative, image=image)

    as_stock(run)


def test_a_model_for_edits_with_a_picture_beside_its_latents() -> None:
    """InstructPix2Pix: concatenated too."""
    import comfy.model_base

    patched = patcher(base_model(comfy.model_base.SD15_instructpix2pix, unet_config(in_channels=8), ModelType.EPS))
    beside = {"concat_latent_image": latent(full=True)["samples"]}
    positive, negative = ([[tensor, {**options, **beside}] for tensor, options in c] for c in (POSITIVE, NEGATIVE))
    as_stock(lambda change: ksampler(change(patched), steps=3, positive=positive, negative=negative, image=latent(batch=2)))


# --- known pixels, clean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_clean_is_what_a_background_denoise_of_zero_is(kind: ModelType, strength: float) -> None:
    """A mask with clean known pixels is the same as no mask and a background that is kept; the picture comes back whole."""
    patched, regions = model(kind), painted(HOLE, strength=strength)
    image = masked(HOLE, batch=1)
    clean = ksampler(asyn(patched, regions, strength=strength, known_pixels="clean"), scheduler="simple", image=image)
    changes = {"strength": strength, "background_denoise": 0.0}
    kept = ksampler(asyn(patched, regions, **changes), scheduler="simple", image=latent(full=True))
    assert difference(clean, kept) < 1e-6
    given = image["samples"][..., ~IN_HOLE]
    torch.testing.assert_close(clean[..., ~IN_HOLE], given, rtol=1e-6, atol=1e-6)
    noised = ksampler(asyn(patched, regions, strength=strength), scheduler="simple", image=image)
    assert difference(noised[..., IN_HOLE], clean[..., IN_HOLE]) > 1e-3


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "heun", "ddim", "lcm", "dpmpp_2m_cfg_pp"])
def test_clean_with_other_samplers(sampler: str) -> None:
    """The known part is kept, the hole is drawn, the same seed gives the same picture."""
    image = masked(HOLE, batch=1)
    patched = asyn(flat(), known_pixels="clean")
    got = ksampler(patched, sampler, image=image)
    torch.testing.assert_close(got[..., ~IN_HOLE], image["samples"][..., ~IN_HOLE], rtol=1e-6, atol=1e-6)
    assert (got - image["samples"])[..., IN_HOLE].abs().mean() > 0.1 and got.isfinite().all()
    assert same(ksampler(patched, sampler, image=image), got)


def test_clean_with_a_model_made_for_inpainting() -> None:
    positive, negative, image = conditioned(True)
    with untouched(flat()):
        got = ksampler(asyn(inpaint_model(), known_pixels="clean"), positive=positive, negative=negative, steps=3, image=image)
    torch.testing.assert_close(got[..., ~IN_HOLE], image["samples"][..., ~IN_HOLE], rtol=1e-5, atol=1e-5)
    assert (got - image["samples"])[..., IN_HOLE].abs().mean() > 0.01


def test_where_clean_has_nothing_to_do() -> None:
    """The stock sampler, bit for bit: in mode synchronous, or without a mask. Where nothing is known, but for rounding."""
    hard, all_drawn = masked(HOLE, batch=1), masked(torch.ones(1, 8, 8), batch=1)
    stock = ksampler(flat(), image=hard)
    assert same(ksampler(asyn(flat(), mode="synchronous", known_pixels="clean"), image=hard), stock)
    assert same(ksampler(asyn(flat(), NO_STRENGTH, strength=0.0), image=hard), stock)
    still = asyn(flat(), NO_STRENGTH, strength=0.0, known_pixels="clean")
    assert same(ksampler(still), ksampler(flat()))
    assert difference(ksampler(still, image=all_drawn), ksampler(flat(), image=all_drawn)) < TOLERANCE
    assert difference(ksampler(still, image=hard), stock) > 1e-3


def advanced(patched: Any, image: dict, noise: str, start: int, end: int, leftover: str) -> dict[str, Any]:
    """KSampler (Advanced)."""
    return KSamplerAdvanced().sample(
        patched, noise, 7, 6, 5.0, "euler", "karras", POSITIVE, NEGATIVE, image, start, end, leftover
    )[0]  # fmt: skip


def test_clean_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    """What is left over for a next sampler is as noisy as stock's; without noise of its own, it takes pixels as noised."""
    image = masked(HOLE, batch=1)
    clean = asyn(flat(), known_pixels="clean")
    first, stock = (advanced(m, image, "enable", 1, 3, "enable") for m in (clean, flat()))
    assert difference(first["samples"][..., ~IN_HOLE], stock["samples"][..., ~IN_HOLE]) < TOLERANCE
    with caplog.at_level(logging.WARNING, "asyndm"):
        second = advanced(clean, first, "disable", 3, 10000, "disable")
    assert "known_pixels is clean, but the sampler adds no noise" in caplog.text
    assert same(second["samples"], advanced(asyn(flat()), first, "disable", 3, 10000, "disable")["samples"])


# --- known pixels, ahead -------------------------------------------------------------------------------------------------


def told(patched: Any, seen: list[tuple[Tensor, Tensor]]) -> Any:
    """The model with a note of every call: its latents, and its timesteps' sigmas as told (one for all pixels: the scalar)."""

    def call(apply_model: Callable, args: dict) -> Tensor:
        seen.append((args["input"].clone(), args["timestep"].clone()))
        return apply_model(args["input"], args["timestep"], **args["c"])

    changed = patched.clone()
    changed.set_model_unet_function_wrapper(call)
    return changed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_ahead_tells_the_truth(kind: ModelType) -> None:
    """Known pixels are at the table's sigma two steps on, shown as the given latents at it; the hole at this step's."""
    patched, image, calls, seen = model(kind), masked(HOLE, batch=1), [], []
    regions = painted(HOLE, strength=0.0)
    got = ksampler(
        asyn(told(patched, calls), regions, seen.append, strength=0.0, known_pixels="ahead", lead=0.25),
        scheduler="simple", steps=8, image=image,
    )  # fmt: skip
    torch.testing.assert_close(got[..., ~IN_HOLE], image["samples"][..., ~IN_HOLE], rtol=1e-6, atol=1e-6)
    sampling = patched.get_model_object("model_sampling")
    table = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    given = patched.model.process_latent_in(image["samples"])
    noise = comfy.sample.prepare_noise(image["samples"], 7)
    assert [s.step for s in seen] == list(range(8))
    for s, (x, _) in zip(seen, calls, strict=True):
        known = table[min(s.step + 2, 8)]
        assert (s.sigma[0, 0][IN_HOLE] == table[s.step]).all() and (s.sigma[0, 0][~IN_HOLE] == known).all()
        shown = sampling.noise_scaling(known.view(1, 1, 1, 1), noise.clone(), given.clone())
        torch.testing.assert_close(x[:1, ..., ~IN_HOLE], shown[..., ~IN_HOLE], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_ends_of_the_lead(kind: ModelType) -> None:
    """No lead is the stock sampler or noised, bit for bit; the whole schedule is clean."""
    patched, image = model(kind), masked(HOLE, batch=1)

    def run(regions: Regions, **changes: Any) -> Tensor:
        return ksampler(asyn(patched, regions, **changes), scheduler="simple", image=image)

    still, fox = painted(HOLE, strength=0.0), painted(HOLE)
    stock = ksampler(patched, scheduler="simple", image=image)
    assert same(run(still, strength=0.0, known_pixels="ahead", lead=0.0), stock)
    assert same(run(fox, known_pixels="ahead", lead=0.0), run(fox))
    assert same(run(fox, known_pixels="ahead", lead=1.0), run(fox, known_pixels="clean"))
    assert same(run(fox, mode="synchronous", known_pixels="ahead"), stock)
    between = run(still, strength=0.0, known_pixels="ahead", lead=0.25)
    assert difference(between[..., IN_HOLE], stock[..., IN_HOLE]) > 1e-3


AHEAD = {"known_pixels": "ahead", "lead": 0.3}


NOISY = ("euler_ancestral", "lcm", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddim")
"""Their noise is of the whole batch's shape; ddim's, with which ComfyUI shows known pixels."""


@pytest.mark.parametrize("sampler", [*NOISY, "heun", "dpmpp_2m_cfg_pp"])
def test_ahead_with_other_samplers(sampler: str) -> None:
    """The known part is kept, the hole is drawn, two pictures of a batch are what each is alone."""
    image, patched = masked(MASKS["one for each picture"]), asyn(flat(), **AHEAD)
    got = ksampler(patched, sampler, image=image)
    for index, hole in enumerate((IN_HOLE, IN_HOLE.flip(-1))):
        given = image["samples"][index]
        torch.testing.assert_close(got[index][..., ~hole], given[..., ~hole], rtol=1e-6, atol=1e-6)
        assert (got[index] - given)[..., hole].abs().mean() > 0.1 and got.isfinite().all()
        alone = {"samples": image["samples"][index:][:1], "noise_mask": image["noise_mask"][index:][:1], "batch_index": [index]}
        if sampler not in NOISY:
            assert difference(got[index:][:1], ksampler(patched, sampler, image=alone)) < TOLERANCE


@pytest.mark.parametrize("way", ["InpaintModelConditioning", "VAEEncodeForInpaint", "Set Latent Noise Mask"])
def test_ahead_with_every_mask_node(way: str) -> None:
    """On a model made for inpainting, which sees mask and masked picture beside its latents; and it is untouched."""
    positive, negative, image = WAYS[way]()
    hole = torch.nn.functional.interpolate(image["noise_mask"].float(), size=(8, 8), mode="bilinear").amax(dim=(0, 1)) >= 0.01
    with untouched(flat()):
        got = ksampler(asyn(inpaint_model(), **AHEAD), positive=positive, negative=negative, image=image, steps=5)
    torch.testing.assert_close(got[..., ~hole], image["samples"][..., ~hole], rtol=1e-5, atol=1e-5)
    assert (got - image["samples"])[..., hole].abs().mean() > 0.01 and got.isfinite().all()
    noised = ksampler(asyn(inpaint_model()), positive=positive, negative=negative, image=image, steps=5)
    assert difference(got[..., hole], noised[..., hole]) > 1e-4


def test_ahead_with_a_soft_mask_and_differential_diffusion() -> None:
    """A pixel that is drawn by m leads by 1 - m, and is free by its own noise level, so earlier than without."""
    grey = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    image, patched = {**latent(full=True), "noise_mask": grey[0]}, differential(model())
    sampling = model().get_model_object("model_sampling")
    given = model().model.process_latent_in(image["samples"])
    free: dict[str, list[int]] = {}
    for how in ("noised", "ahead"):
        seen: list = []
        changes = {"strength": 0.0, "known_pixels": how, "lead": 0.25}
        got = ksampler(asyn(patched, NO_STRENGTH, seen.append, **changes), scheduler="simple", steps=8, image=image)
        assert torch.isclose(got[..., 0, 0], image["samples"][..., 0, 0], rtol=0, atol=1e-5).all() or how == "noised"
        first = sampling.timestep(seen[0].sigma.max()) if seen[0].sigma is not None else None
        free[how] = []
        for s in seen:
            frozen = torch.isclose(s.denoised, given, rtol=0, atol=1e-6).all(dim=1)[0]
            free[how].append(int((~frozen).sum()))
            if how == "ahead":
                drawn = grey[0, 0].masked_fill(grey[0, 0] < 0.01, 0)
                q = s.step + (1 - drawn) * min(2, 8 - s.step)
                torch.testing.assert_close(s.progress[0], q, rtol=1e-5, atol=1e-4)
                by_level = grey[0, 0] >= (sampling.timestep(s.sigma.flatten()) / first).view(8, 8)
                assert torch.equal(~frozen & (grey[0, 0] > 0), by_level & (grey[0, 0] > 0))
    assert all(a >= n for a, n in zip(free["ahead"], free["noised"], strict=True)) and sum(free["ahead"]) > sum(free["noised"])


def test_an_edit_runs_ahead_where_it_keeps() -> None:
    """Without a mask: what a background denoise of 0 keeps is what a mask keeps; 0.5 is kept for half of the schedule."""
    regions, image = painted(HOLE), latent(full=True)
    changes = {"known_pixels": "ahead", "lead": 0.25}
    kept = ksampler(asyn(flat(), regions, background_denoise=0.0, **changes), steps=8, image=image)
    known = ksampler(asyn(flat(), regions, **changes), steps=8, image=masked(HOLE, batch=1))
    assert difference(kept, known) < TOLERANCE
    torch.testing.assert_close(kept[..., ~IN_HOLE], image["samples"][..., ~IN_HOLE], rtol=1e-6, atol=1e-6)
    seen: list = []
    ksampler(asyn(flat(), regions, seen.append, background_denoise=0.5, **changes), steps=8, image=image)
    given = flat().model.process_latent_in(image["samples"])
    for s in seen:
        q = s.progress[0][~IN_HOLE]
        torch.testing.assert_close(q, torch.full_like(q, s.step + 0.5 * min(2, 8 - s.step)))
        held = torch.isclose(s.denoised, given, rtol=0, atol=1e-6).all(dim=1)[0][~IN_HOLE]
        assert held.all() if s.step < 3 else not held.any()


def test_ahead_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    """What is left over for a next sampler is as noisy as stock's; without noise of its own, it takes pixels as noised."""
    image, ahead = masked(HOLE, batch=1), asyn(flat(), **AHEAD)
    first, stock = (advanced(m, image, "enable", 1, 3, "enable") for m in (ahead, flat()))
    assert difference(first["samples"][..., ~IN_HOLE], stock["samples"][..., ~IN_HOLE]) < TOLERANCE
    with caplog.at_level(logging.WARNING, "asyndm"):
        second = advanced(ahead, first, "disable", 3, 10000, "disable")
    assert "known_pixels is ahead, but the sampler adds no noise" in caplog.text
    assert same(second["samples"], advanced(asyn(flat()), first, "disable", 3, 10000, "disable")["samples"])


def test_the_node_hands_the_lead_on() -> None:
    """Appended last, so that saved workflows keep their values; another number than a share is refused by name."""
    inputs = {"curve": "quadratic", "strength": 0.7, "mode": "asynchronous"}
    declared = TimestepMapNode.GET_NODE_INFO_V1()["input_order"]["optional"]
    assert declared[-3:] == ["known_pixels", "lead", "sigmas"]
    made = TimestepMapNode.execute(painted(LEFT), **inputs, known_pixels="ahead", lead=0.35).result[0]
    assert (made.known_pixels, made.lead) == ("ahead", 0.35)
    with pytest.raises(ValueError, match="lead of Asynchronous Timestep Map is 'far': it is a number between 0 and 1"):
        TimestepMapNode.execute(painted(LEFT), **inputs, known_pixels="ahead", lead="far")


def test_clean_is_refused_where_it_cannot_be() -> None:
    def node(**changes: Any) -> TimestepMap:
        inputs = {"curve": "quadratic", "strength": 0.7, "mode": "asynchronous", **changes}
        return TimestepMapNode.execute(painted(LEFT), **inputs).result[0]

    assert node(known_pixels="clean").known_pixels == "clean" and node().known_pixels == "noised"
    with pytest.raises(ValueError, match="disagree on known_pixels"):
        node(known_pixels="clean", previous=node())
    with pytest.raises(ValueError, match="set known_pixels of Asynchronous Timestep Map to noised"):
        node(known_pixels="clean", preset="paper")


# --- Differential Diffusion ------------------------------------------------------------------------------------------------


def differential(patched: Any, strength: float = 1.0) -> Any:
    """ComfyUI's node."""
    return DifferentialDiffusion.execute(patched, strength).result[0]


@pytest.mark.parametrize("kind, strength", [*((kind, 1.0) for kind in KINDS), (ModelType.EPS, 0.6)])
def test_differential_diffusion(kind: ModelType, strength: float) -> None:
    """Each picture's pixels are set free by its own noise level, as stock has it on that picture's sigmas."""
    image, patched = masked(SOFT), differential(model(kind), strength)
    as_stock(lambda change: ksampler(change(patched), scheduler="simple", image=image))
    assert difference(ksampler(patched, scheduler="simple", image=image), ksampler(model(kind), image=image)) > 1e-2


def test_a_pixel_is_free_by_its_own_noise_level() -> None:
    """Within one picture: mask m is free once the pixel's own timestep is at most m of the first one (arXiv 2306.00950)."""
    seen: list = []
    grey = torch.linspace(0, 0.99, 64).reshape(1, 1, 8, 8)
    image = {**latent(full=True), "noise_mask": grey[0]}
    half = asyn(differential(model()), painted(LEFT, strength=0.9), on_step=seen.append)
    ksampler(half, scheduler="simple", steps=8, image=image)
    sampling = model().get_model_object("model_sampling")
    given = model().model.process_latent_in(image["samples"])
    first = sampling.timestep(seen[0].sigma.max())
    lagging = 0
    for snapshot in seen:
        shares = sampling.timestep(snapshot.sigma.flatten()).view(1, 1, 8, 8) / first
        free = (grey >= shares)[0, 0]
        frozen = torch.isclose(snapshot.denoised, given, rtol=0, atol=1e-6).all(dim=1)[0]
        assert torch.equal(frozen, ~free)
        lagging += int((free[:, 4:] & ~free.flip(-1)[:, 4:]).sum())
    assert lagging > 10


def test_another_packs_mask_function_is_asked_for_every_level() -> None:
    """Whatever it is: once for each level of the map, with one level for all pictures, as ComfyUI asks."""
    asked: list[Tensor] = []

    def function(sigma: Tensor, denoise_mask: Tensor, extra_options: dict) -> Tensor:
        asked.append(sigma)
        assert extra_options["sigmas"].shape == (4,) and extra_options["model"].inner_model is not None
        return denoise_mask * (sigma[0] / 20).clamp(max=1)

    patched = flat().clone()
    patched.set_model_denoise_mask_function(function)
    image = masked(torch.ones(1, 8, 8))
    seen: list = []
    ksampler(apply(patched, TimestepMap(painted(LEFT)), Options(on_step=seen.append)), steps=3, image=image)
    levels = [snapshot.sigma.unique() for snapshot in seen]
    assert max(len(each) for each in levels) == 2
    by_step = torch.stack([sigma[0] for sigma in asked]).split([len(each) for each in levels])
    assert all(torch.equal(step.sort().values, each) for step, each in zip(by_step, levels, strict=True))
    assert all(sigma.shape == (2,) and (sigma == sigma[0]).all() for sigma in asked)
