"""Where nothing lags, AsynDM is ComfyUI; where everything lags alike, it is ComfyUI on other sigmas."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.clock import NoiseGrid, table_clock
from asyndm_pack.asyndm_core.embedding import grouped
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap, make_plan
from asyndm_pack.asyndm_core.run import noise_table
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from asyndm_pack.nodes.comfy.model import ResidualBlocks, pixel_timesteps
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    Noise_RandomNoise,
    SamplerCustomAdvanced,
)
from tiny import (
    CONTEXT,
    LEFT,
    NEGATIVE,
    POSITIVE,
    ModelType,
    asyn,
    cond,
    custom,
    difference,
    flat,
    ksampler,
    latent,
    model,
    painted,
    plain,
    same,
)
from torch import Tensor

from nodes import KSamplerAdvanced

SCHEDULERS = ("karras", "normal", "simple", "ddim_uniform", "beta")
TOLERANCE = 1e-5
NO_STRENGTH = Regions((Target("fox"), Target("hat", 0.0)))

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends


def table(patched: Any, scheduler: str, steps: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), scheduler, steps)


# --- nothing asked for: the stock sampler, bit for bit -----------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_asks_for_nothing_is_stock(sampler: str, scheduler: str) -> None:
    stock = ksampler(flat(), sampler, scheduler, steps=2)
    assert same(ksampler(asyn(flat(), Regions()), sampler, scheduler, steps=2), stock)
    assert same(ksampler(asyn(flat(), NO_STRENGTH, strength=0.0), sampler, scheduler, steps=2), stock)
    assert same(ksampler(asyn(flat(), mode="synchronous"), sampler, scheduler, steps=2), stock)


def test_the_cases_that_must_differ_do() -> None:
    """The other tests of this file would be blind if nothing could make a difference."""
    stock = ksampler(model())
    assert difference(ksampler(asyn(model())), stock) > 0.01
    assert difference(ksampler(asyn(model(), mode="concave")), stock) > 0.01
    assert difference(ksampler(asyn(model(), painted(LEFT))), stock) > 0.01


def advanced(guider: Any, patched: Any, steps: int = 3) -> Tensor:
    sampler = comfy.samplers.sampler_object("dpmpp_2m_sde")
    sigmas = table(patched, "karras", steps)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, sampler, sigmas, latent(batch=2)).result[0]["samples"]


GUIDERS = {
    "CFGGuider": lambda m: CFGGuider.execute(m, POSITIVE, NEGATIVE, 5.0),
    "BasicGuider": lambda m: BasicGuider.execute(m, POSITIVE),
    "DualCFGGuider": lambda m: DualCFGGuider.execute(m, POSITIVE, cond(3), NEGATIVE, 5.0, 3.0, "regular"),
    "DualCFGGuider nested": lambda m: DualCFGGuider.execute(m, POSITIVE, cond(3), NEGATIVE, 5.0, 3.0, "nested"),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider(name: str) -> None:
    """SamplerCustomAdvanced: stock with the shortcut, our loop without it, and a map makes a difference."""

    def run(patched: Any) -> Tensor:
        return advanced(GUIDERS[name](patched).result[0], patched)

    stock = run(model())
    assert same(run(asyn(model(), mode="synchronous")), stock)
    assert same(run(asyn(model(), NO_STRENGTH, strength=0.0)), stock)
    assert difference(run(plain(model(), NO_STRENGTH, strength=0.0)), stock) < TOLERANCE
    assert difference(run(asyn(model())), stock) > 1e-3


def test_ksampler_advanced_in_two_parts() -> None:
    """Start and end steps with leftover noise."""

    def run(patched: Any) -> tuple[Tensor, Tensor]:
        def part(noise: str, image: dict, start: int, end: int, leftover: str) -> dict:
            return KSamplerAdvanced().sample(
                patched, noise, 7, 6, 5.0, "euler", "karras", POSITIVE, NEGATIVE, image, start, end, leftover
            )[0]

        first = part("enable", latent(), 0, 3, "enable")
        return first["samples"], part("disable", first, 3, 10000, "disable")["samples"]

    stock = run(model())
    for patched in (asyn(model(), mode="synchronous"), asyn(model(), NO_STRENGTH, strength=0.0)):
        assert all(map(same, run(patched), stock))
    assert max(map(difference, run(plain(model(), NO_STRENGTH, strength=0.0)), stock)) < TOLERANCE
    assert min(map(difference, run(asyn(model())), stock)) > 1e-3


# --- our own loop where nothing lags ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["karras", "normal"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_our_loop_on_level_pixels_is_stock(sampler: str, scheduler: str) -> None:
    stock = ksampler(flat(), sampler, scheduler, steps=4)
    ours = ksampler(plain(flat(), NO_STRENGTH, strength=0.0), sampler, scheduler, steps=4)
    assert difference(ours, stock) < TOLERANCE


@pytest.mark.parametrize("steps", [2, 6])
def test_inner_sigma_half_way_between_timesteps(steps: int) -> None:
    """The last bit of an inner sigma decides which of two timesteps the model is told."""
    stock = ksampler(flat(), "dpm_2_ancestral", "normal", steps=steps)
    ours = ksampler(plain(flat(), NO_STRENGTH, strength=0.0), "dpm_2_ancestral", "normal", steps=steps)
    assert difference(ours, stock) < TOLERANCE


@pytest.mark.parametrize("size, batch", [((17, 23), 3), ((33, 47), 1)])
def test_odd_sizes_and_batches(size: tuple[int, int], batch: int) -> None:
    image = latent(*size, batch=batch)
    stock = ksampler(model(), steps=2, image=image)
    assert difference(ksampler(plain(model(), NO_STRENGTH, strength=0.0), steps=2, image=image), stock) < TOLERANCE


INPAINT = latent(full=True, noise_mask=torch.cat([torch.ones(1, 64, 40), torch.zeros(1, 64, 24)], dim=-1))
LONG = cond(4, tokens=154, words={"fox": (100,), "hat": (5, 80)})
SETTINGS: dict[str, dict[str, Any]] = {
    "image to image": {"image": latent(full=True), "denoise": 0.6},
    "cfg 1": {"cfg": 1.0},
    "154 and 77 tokens": {"positive": LONG},
    "inpainting": {"image": INPAINT},
    "inpainting, ddim": {"image": INPAINT, "sampler": "ddim"},
    "inpainting, noisy sampler": {"image": INPAINT, "sampler": "euler_ancestral"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_sampler(name: str) -> None:
    setting = SETTINGS[name]
    stock = ksampler(model(), **setting)
    assert same(ksampler(asyn(model(), mode="synchronous"), **setting), stock)
    assert difference(ksampler(plain(model(), NO_STRENGTH, strength=0.0), **setting), stock) < TOLERANCE
    assert difference(ksampler(asyn(model()), **setting), stock) > 1e-3


MODELS: dict[str, tuple[ModelType, bool]] = {
    "SDXL-like": (ModelType.EPS, True),
    "v-prediction": (ModelType.V_PREDICTION, False),
    "EDM": (ModelType.EDM, False),
    "flow": (ModelType.FLOW, False),
}


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
@pytest.mark.parametrize("name", MODELS)
def test_kinds_of_models(name: str, sampler: str) -> None:
    patched = model(*MODELS[name])
    stock = ksampler(patched, sampler, "simple")
    assert same(ksampler(asyn(patched, mode="synchronous"), sampler, "simple"), stock)
    assert difference(ksampler(plain(patched, NO_STRENGTH, strength=0.0), sampler, "simple"), stock) < TOLERANCE


# --- maps that are level within each picture: the map's path against stock calls ----------------------------------------

PER_PICTURE = painted(torch.zeros(8, 8), torch.ones(8, 8))


@pytest.mark.parametrize("name", ["EPS", *MODELS])
def test_pictures_of_a_batch_at_different_sigmas(name: str) -> None:
    """The first picture keeps pace and equals stock; the second lags and equals a run where all lag (mode concave)."""
    patched = model(*MODELS.get(name, (ModelType.EPS, False)))
    image = latent(batch=2)
    together = ksampler(asyn(patched, PER_PICTURE), scheduler="simple", image=image)
    stock = ksampler(patched, scheduler="simple", image=image)
    concave = ksampler(asyn(patched, PER_PICTURE, mode="concave"), scheduler="simple", image=image)
    assert difference(stock[1:], concave[1:]) > 1e-3
    assert difference(together[:1], stock[:1]) < TOLERANCE
    assert difference(together[1:], concave[1:]) < TOLERANCE


@pytest.mark.parametrize("setting", ["image to image", "cfg 1", "154 and 77 tokens", "inpainting"])
def test_pictures_of_a_batch_in_other_settings(setting: str) -> None:
    options = dict(SETTINGS[setting])
    image = options.pop("image", latent())
    image = {**image, "samples": image["samples"].repeat(2, 1, 1, 1)}
    together = ksampler(asyn(model(), PER_PICTURE), image=image, **options)
    stock = ksampler(model(), image=image, **options)
    concave = ksampler(asyn(model(), PER_PICTURE, mode="concave"), image=image, **options)
    assert difference(stock[1:], concave[1:]) > 1e-3
    assert difference(together[:1], stock[:1]) < TOLERANCE
    assert difference(together[1:], concave[1:]) < TOLERANCE


# --- a timestep for every pixel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(17, 23), (12, 9)])
def test_a_map_is_every_pixel_embedded(size: tuple[int, int]) -> None:
    """Against the plain way: every pixel's timestep embedded and projected in every block, every 2^k-th one taken."""
    unet = model().model.diffusion_model
    generator = torch.Generator().manual_seed(21)
    timesteps = torch.randint(0, 1000, (2, *size), generator=generator)
    x, context = torch.randn(2, 4, *size, generator=generator), torch.randn(2, 77, CONTEXT, generator=generator)
    pixels = grouped(timesteps).of(timesteps.float())
    with pixel_timesteps(unet, ResidualBlocks()[unet], pixels):
        ours = unet(x, pixels.values, context=context)

    every = unet.time_embed(timestep_embedding(timesteps.flatten(), unet.model_channels))
    sizes = [size, *((-(-size[0] // s), -(-size[1] // s)) for s in (2, 4))]

    def hooks_of_block(block: ResBlock) -> list:
        seen: list[tuple[int, int]] = []

        def remember(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
            seen[:] = [tuple(output.shape[-2:])]

        def project(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            stride = 2 ** sizes.index(seen[0])
            embedded = module[1](module[0](every)).unflatten(0, (2, *size)).movedim(-1, 1)
            return embedded[..., ::stride, ::stride]

        layers = (block.in_layers[-1], remember), (block.emb_layers, project)
        return [layer.register_forward_hook(hook) for layer, hook in layers]

    handles = [handle for block in unet.modules() if isinstance(block, ResBlock) for handle in hooks_of_block(block)]
    try:
        plain_way = unet(x, timesteps[:, 0, 0].float(), context=context)
    finally:
        for handle in handles:
            handle.remove()
    assert difference(ours, plain_way) < TOLERANCE
    assert difference(unet(x, timesteps[:, 0, 0].float(), context=context), plain_way) > 0.01


# --- mode concave: stock sampling on the sigmas of the region's curve ----------------------------------------------------


def sigmas_of(patched: Any, sigmas: Tensor, curve: str, strength: float) -> Tensor:
    """The table that mode concave walks, from the core's own clock."""
    sampling = patched.get_model_object("model_sampling")
    positions = torch.stack([(s.clamp(min=1e-12).log() - sampling.sigmas.log()).abs().argmin() for s in sigmas])
    clock = table_clock(sigmas, positions.float(), NoiseGrid(sampling.sigmas))
    return noise_table(clock, make_plan(TimestepMap(Regions(), curve, strength, mode="concave"), 8, 8))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_concave_is_stock_on_other_sigmas(sampler: str) -> None:
    sigmas = table(flat(), "karras", 5)
    lagging = sigmas_of(flat(), sigmas, "quadratic", 0.7)
    assert (lagging[1:-2] > 1.05 * sigmas[1:-2]).all()
    kind = comfy.samplers.sampler_object(sampler)
    ours = custom(asyn(flat(), Regions(), mode="concave"), kind, sigmas)
    rounded = 2 if sampler.startswith("uni_pc") else 1  # ComfyUI's 1 - 1 / (1 + sigma^2), at sigma 0.001
    assert difference(ours, custom(flat(), kind, lagging)) < rounded * TOLERANCE
