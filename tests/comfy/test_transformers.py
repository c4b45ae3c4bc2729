"""Diffusion transformers of every family: a timestep for every token, exactly.

Three oracles that know nothing of how a timestep gets to its tokens: stock ComfyUI; with attention that lets nothing
through, every part of a picture is what it would be at its own noise level everywhere; and with attention, the network run
on one copy of the picture for each noise level, whose tokens are exchanged before every layer (see ``exchanged``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import clips
import comfy.sample
import comfy.supported_models
import comfyui_version
import pytest
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.grid import TokenGrid
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from asyndm_pack.nodes.comfy import families as known
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.families import family_of
from asyndm_pack.nodes.comfy.model import UnsupportedModelError
from asyndm_pack.nodes.comfy.network import network_of
from families import CLIPS, FAMILIES, LACKS, MODELS, NOT_ODD, empty, make_transformer, prompt, random, transformer
from tiny import asyn, difference, hooks_of, ksampler, node, painted, plain, same, second_lags
from torch import Tensor, nn

TOLERANCE = 1e-5
NO_STRENGTH = Regions((Target("fox", 0.0),), mask=torch.ones(1, 8, 8), mask_mode="replace")
NAMES = [pytest.param(name, marks=[pytest.mark.whole] if FAMILIES[name].whole else []) for name in FAMILIES]
every_family = pytest.mark.parametrize("name", NAMES)
VERSION = comfyui_version.__version__


def left(height: int, width: int, columns: int | None = None) -> Tensor:
    """A painted mask: the left half, or so many columns of latent pixels."""
    mask = torch.zeros(1, height, width)
    mask[..., : columns or width // 2] = 1
    return mask


def sampled(name: str, patched: Any, batch: int = 1, size: tuple[int, int] | None = None, **more: Any) -> Tensor:
    """A short run of the stock KSampler."""
    more = {"steps": 4, "cfg": 2.0, "scheduler": "simple", "positive": prompt(name), **more}
    return ksampler(patched, negative=prompt(name, 6), image=empty(name, batch, size), **more)


class Call(NamedTuple):
    """One evaluation of a network."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def rows(self) -> TimestepRows:
        return self.args[1]


@contextmanager
def calls_of(patched: Any) -> Iterator[list[Call]]:
    """The evaluations of a model's network while it lasts; of their inputs a copy."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        kept = [arg.clone() if isinstance(arg, Tensor) and not isinstance(arg, TimestepRows) else arg for arg in args]
        calls.append(Call(tuple(kept), dict(kwargs), output))

    handle = patched.model.diffusion_model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def nothing_attended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention lets nothing through: every token is alone. Everywhere in ComfyUI, as not all networks take an override."""
    for name, module in list(sys.modules.items()):
        for attention in ("optimized_attention", "optimized_attention_masked"):
            if name.startswith("comfy.ldm.") and hasattr(module, attention):
                own = getattr(module, attention)
                silent = lambda *args, _own=own, **kwargs: torch.zeros_like(_own(*args, **kwargs))  # noqa: E731
                monkeypatch.setattr(module, attention, silent)


def exchanged(network: nn.Module, call: Call) -> Tensor:
    """What the network should have said: it is run on a copy of the pictures for each timestep, and before every layer each
    token of each copy is replaced by the one of the copy whose timestep it has; what is no token of the picture, by the
    reference's."""
    places, timesteps = call.rows.places, call.rows.every
    copies, batch, tokens = timesteps.shape[0], timesteps.shape[1], places.tokens
    context = call.kwargs.get("context", call.args[2] if len(call.args) > 2 else None)
    texts = {context.shape[1]} - {tokens} if context is not None else set()
    own = places.places.flatten(1).expand(batch, -1)
    picture = torch.arange(batch)[:, None]

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
            return torch.cat([value] * copies)
        return [copied(each) for each in value] if isinstance(value, list) else value

    def chosen(value: Tensor, rows: Tensor) -> Tensor:
        """Of (copies, B, L, ...) each token's own copy, in all of them."""
        one = value[rows.expand(batch, -1), picture, torch.arange(value.shape[2])]
        return torch.cat([one] * copies)

    def exchange(value: Any, of_references: bool) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return value
        shape = value.shape
        if shape[0] == copies * batch * tokens:  # a network of pixels has each token in its batch
            return chosen(value.reshape(copies, batch, tokens, -1), own).view(shape)
        if value.ndim == 5 and tuple(shape[:3]) == places.grid:  # Cosmos 1 has the batch behind the tokens
            first = value.movedim(3, 0)
            return exchange(first, of_references).movedim(0, 3) if first.shape[0] == copies * batch else value
        if shape[0] != copies * batch:
            return value
        apart = value.view(copies, batch, *shape[1:])
        if value.ndim == 3 and shape[1] > 16:
            if shape[1] < tokens or shape[1] in texts or of_references:
                return torch.cat([apart[0]] * copies)
            return chosen(apart, places.sequence(shape[1]))
        if value.ndim == 5 and tuple(shape[1:4]) in (places.grid, (1, *places.grid)):
            return chosen(apart.flatten(2, 4), own).view(shape)
        return value

    def before(of_references: bool) -> Callable:
        each = partial(exchange, of_references=of_references)
        return lambda module, args, kwargs: (tuple(map(each, args)), {key: each(value) for key, value in kwargs.items()})

    layers = {name: module for name, module in network.named_modules() if name and "distilled_guidance" not in name}
    handles = [layer.register_forward_pre_hook(before("ref_image" in name), with_kwargs=True) for name, layer in layers.items()]
    options = {key: value for key, value in call.kwargs["transformer_options"].items() if key in KEPT}
    kwargs = {key: copied(value) for key, value in call.kwargs.items()} | {"transformer_options": options}
    try:
        output = network(copied(call.args[0]), timesteps.flatten(0, 1), *map(copied, call.args[2:]), **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    rows = places.pixels[..., : output.shape[-1]]
    rows = rows.expand(batch, *rows.shape[1:])
    apart = output.view(copies, batch, *output.shape[1:])
    answer = torch.zeros_like(apart[0])
    for copy in range(copies):
        here = (rows == copy).view(batch, *[1] * (output.ndim - rows.ndim), *rows.shape[1:])
        answer = torch.where(here, apart[copy], answer)
    return answer


KEPT = ("sample_sigmas", "sigmas", "prefetch_dynamic_vbars", "rope_options", "optimized_attention_override")


@pytest.mark.skipif(VERSION not in LACKS, reason="it is not known what this ComfyUI has")
def test_the_families_that_this_comfyui_has() -> None:
    """As docs/compatibility.md says it."""
    every = {**FAMILIES, **CLIPS}
    assert {name for name in every if not hasattr(comfy.supported_models, every[name].kind)} == LACKS[VERSION]


@pytest.mark.whole
def test_every_row_has_a_tiny_model() -> None:
    """Every kind of network that is said to work is tested."""
    having = lambda models: [name for name in models if hasattr(comfy.supported_models, models[name].kind)]  # noqa: E731
    made = [*map(transformer, having({**FAMILIES, **CLIPS})), *map(clips.clip_model, having(clips.CLIPS))]
    rows = {id(family_of(patched.model.diffusion_model)) for patched in made}
    assert id(None) not in rows
    if not LACKS.get(VERSION, FAMILIES):
        assert rows == {id(family) for family in known.FAMILIES.values()}


@every_family
def test_what_asks_for_nothing_is_stock(name: str) -> None:
    patched = transformer(name)
    stock = sampled(name, patched)
    assert same(sampled(name, asyn(patched, NO_STRENGTH, strength=0.0)), stock)
    assert difference(sampled(name, plain(patched, NO_STRENGTH, strength=0.0)), stock) < TOLERANCE
    assert same(sampled(name, patched), stock)
    assert not hooks_of(patched.model.diffusion_model)


@every_family
@pytest.mark.usefixtures("nothing_attended")
def test_alone_every_token_is_at_its_own_timestep(name: str) -> None:
    """Without attention, the pixels of the left half are those of a run where all lag, those of the right keep pace."""
    patched = transformer(name)
    _, height, width = FAMILIES[name].latents
    region = painted(left(height, width))
    stock = sampled(name, patched)
    lagging = sampled(name, asyn(patched, region, mode="concave"))
    ours = sampled(name, asyn(patched, region))
    assert difference(lagging, stock) > 1e-3
    middle = width // 2
    assert difference(ours[..., middle:], stock[..., middle:]) < TOLERANCE
    assert difference(ours[..., :middle], lagging[..., :middle]) < TOLERANCE


@every_family
def test_two_regions_are_exact(name: str) -> None:
    """Every evaluation of a run with a map, for a batch of which each picture has its own; positive and negative at once."""
    patched = transformer(name)
    _, height, width = FAMILIES[name].latents
    region = painted(left(height, width), 1 - left(height, width))
    with calls_of(patched) as calls:
        sampled(name, asyn(patched, region), batch=2)
    mapped = [call for call in calls if isinstance(call.args[1], TimestepRows)]
    assert len(mapped) >= 1
    network = patched.model.diffusion_model
    for call in mapped:
        assert type(call.output) is Tensor
        assert difference(call.output, exchanged(network, call)) < TOLERANCE


@every_family
def test_a_uniform_map_given_as_rows_is_stock(name: str) -> None:
    """An evaluation of a stock run, once more with a map of three noise levels that are all its own."""
    patched = transformer(name)
    with calls_of(patched) as calls:
        sampled(name, patched, batch=2, steps=2)
    call, model = calls[0], patched.model
    kind = network_of(model, empty(name)["samples"])
    height, width = call.args[0].shape[-2:]
    index = TokenGrid((height, width), kind.patch).to_pixels(
        torch.randint(0, 3, (call.args[0].shape[0], height, width), generator=torch.Generator().manual_seed(2))
    )[..., :height, :width]
    level = call.kwargs["transformer_options"]["sigmas"][:1]
    with kind.told(model, PixelTimesteps(level.expand(3), index), index, dict(call.kwargs)):
        rows = model.process_timestep(model.model_sampling.timestep(level).float(), x=call.args[0], **call.kwargs)
        output = model.diffusion_model(call.args[0], rows, *call.args[2:], **call.kwargs)
    assert rows.every.unique().numel() == 1
    assert difference(output, call.output) < TOLERANCE


# --- reference pictures ----------------------------------------------------------------------------------------------------

REFERRING = (
    "Z-Image omni", "Flux.1 Kontext", "Qwen-Image-Edit", "Flux.2 with references", "Mage-Flow with references",
    "OmniGen2 with references", "Boogu", "JoyImage",
)  # fmt: skip
SIZES: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "larger": lambda height, width: [(height + 4, width + 2)],
    "as large": lambda height, width: [(height, width)],
    "smaller": lambda height, width: [(height - 4, width - 6)],
    "of three sizes": lambda height, width: [(height - 4, width), (height, width), (height + 2, width + 4)],
}


def refer(monkeypatch: pytest.MonkeyPatch, name: str, sizes: list[tuple[int, int]], **more: Any) -> None:
    """Prompts of a family refer to pictures of these sizes while the test lasts, and have more entries."""
    given = {"reference_latents": None, **FAMILIES[name].more(), **more}
    channels, framed = FAMILIES[name].latents[0], FAMILIES[name].framed
    shapes = [(1, channels, *([1] if framed else []), *size) for size in sizes]
    given["reference_latents"] = [random(*shape, seed=3 + n) for n, shape in enumerate(shapes)]
    monkeypatch.setitem(MODELS, name, MODELS[name]._replace(more=lambda: dict(given)))


def check_exactness(name: str, batch: int, cfg: float) -> None:
    """Two regions against the exchanged copies, with reference pictures in sight."""
    patched = transformer(name)
    _, height, width = FAMILIES[name].latents
    region = painted(left(height, width), 1 - left(height, width))
    with calls_of(patched) as calls:
        sampled(name, asyn(patched, region), batch=batch, cfg=cfg)
    mapped = [call for call in calls if isinstance(call.args[1], TimestepRows)]
    assert len(mapped) >= 1
    for call in mapped:
        assert difference(call.output, exchanged(patched.model.diffusion_model, call)) < TOLERANCE


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "name", ["Qwen-Image-Edit 2511", "Krea 2 with references", *(pytest.param(n, marks=pytest.mark.whole) for n in REFERRING)]
)
def test_reference_pictures_of_any_size(name: str, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are at the reference row, and those that the model itself puts at timestep 0 stay there; of one picture too."""
    _, height, width = FAMILIES[name].latents
    refer(monkeypatch, name, SIZES[sizes](height, width))
    check_exactness(name, batch=1, cfg=1.0)
    check_exactness(name, batch=2, cfg=2.0)
    test_a_uniform_map_given_as_rows_is_stock(name)


@pytest.mark.parametrize("sizes", ["larger", "smaller"])
@pytest.mark.parametrize("name", ["Krea 2", "Mage-Flow"])
def test_reference_pictures_that_are_left_out(name: str, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Krea 2 takes none where no method of placing them is given; Mage-Flow needs none."""
    _, height, width = FAMILIES[name].latents
    without = sampled(name, asyn(transformer(name), painted(left(height, width))))
    refer(monkeypatch, name, SIZES[sizes](height, width))
    check_exactness(name, batch=1, cfg=2.0)
    given = sampled(name, asyn(transformer(name), painted(left(height, width))))
    assert same(given, without) == (name == "Krea 2")


@pytest.mark.parametrize("sizes", ["larger", "smaller"])
@pytest.mark.parametrize("method", ["offset", "index", "uxo", "negative_index", "index_timestep_zero"])
@pytest.mark.parametrize("name", ["Flux.1 Kontext", "Qwen-Image-Edit", "Flux.2 Klein", "Krea 2"])
@pytest.mark.whole
def test_methods_of_placing_reference_pictures(name: str, method: str, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (name, method) == ("Flux.1 Kontext", "index_timestep_zero"):
        pytest.skip("with guidance it has no room there for two pictures")
    _, height, width = FAMILIES[name].latents
    refer(monkeypatch, name, SIZES[sizes](height, width), reference_latents_method=method)
    check_exactness(name, batch=1, cfg=1.0)
    check_exactness(name, batch=1, cfg=2.0)


# --- batches, sizes, number types ------------------------------------------------------------------------------------------


def each_its_own(run: Callable[[Callable[[Any], Any]], Tensor], tolerance: float = TOLERANCE, **changes: Any) -> None:
    """Of two pictures the first keeps pace and equals stock, the second lags and equals a run where all lag (mode concave)."""
    second_lags(run, painted(torch.zeros(8, 8), torch.ones(8, 8)), tolerance, **changes)


@every_family
def test_pictures_of_a_batch_at_different_sigmas(name: str) -> None:
    """Text too is told each picture's own timestep."""
    each_its_own(lambda change: sampled(name, change(transformer(name)), batch=2))


@every_family
def test_odd_sizes(name: str) -> None:
    """The last tokens are cut off by the edge, as the network pads them."""
    _, height, width = FAMILIES[name].latents
    size = (height + 1, width - 1)
    odd = True
    try:
        sampled(name, transformer(name), size=size, steps=1)
    except (RuntimeError, AssertionError, ValueError):
        odd = False
    assert VERSION not in NOT_ODD or odd != (name in NOT_ODD[VERSION])
    if not odd:
        pytest.skip(f"{name} itself has no odd sizes")
    each_its_own(lambda change: sampled(name, change(transformer(name)), batch=2, size=size))


@every_family
def test_pictures_of_few_tokens(name: str) -> None:
    """Nine are enough: tables of parameters are smaller."""
    if name.startswith("PixArt") or name == "HiDream-E1":
        pytest.skip("it cannot place so small a picture, or is shown a larger one")
    height, width = network_of(transformer(name).model, empty(name)["samples"]).patch
    size = (3 * height, 3 * width)
    each_its_own(lambda change: sampled(name, change(transformer(name)), batch=2, size=size))


@every_family
def test_bfloat16(name: str) -> None:
    patched = make_transformer(name, torch.bfloat16)
    each_its_own(lambda change: sampled(name, change(patched), batch=2, steps=3), tolerance=0.03)


@pytest.mark.parametrize("name", ["Chroma", pytest.param("Chroma Radiance", marks=pytest.mark.whole)])
def test_a_large_modulation_a_few_timesteps_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what all at once give, and no more are held."""
    patched = make_transformer(name)
    _, height, width = FAMILIES[name].latents
    soft = painted(torch.linspace(0, 1, height * width).view(1, height, width))
    given: list[int] = []

    def note(module: nn.Module, args: tuple) -> None:
        if isinstance(args[0], TimestepRows):
            given.append(args[0].every.shape[:2].numel())

    patched.model.diffusion_model.distilled_guidance_layer.in_proj.register_forward_pre_hook(note)

    def at_once(most: int) -> Tensor:
        monkeypatch.setattr("asyndm_pack.nodes.comfy.transformer.AT_ONCE", most)
        given.clear()
        return sampled(name, asyn(patched, soft))

    whole = at_once(10**6)
    timesteps = list(given)
    assert max(timesteps) > 2 * 32
    for most in (32, 5):
        assert difference(at_once(most), whole) < TOLERANCE
        assert max(given) <= most and sum(given) == sum(timesteps)


# --- what else a run can ask for -------------------------------------------------------------------------------------------

KINDS = ("Flux.1 dev", "Qwen-Image")
HOLE = torch.zeros(1, 12, 16)
HOLE[:, 3:9, 5:] = 1
"""It begins and ends within patches."""


def masked(name: str, batch: int = 2) -> dict[str, Any]:
    image = empty(name, batch)
    return {"samples": random(*image["samples"].shape, seed=11), "noise_mask": HOLE}


def on_image(name: str, patched: Any, image: dict[str, Any], **more: Any) -> Tensor:
    return ksampler(
        patched, steps=4, cfg=2.0, scheduler="simple", positive=prompt(name), negative=prompt(name, 6), image=image, **more
    )


@pytest.mark.parametrize("name", [*KINDS, "Cosmos Predict2"])
def test_inpainting(name: str) -> None:
    """As the model has it: Cosmos is shown known pixels clean, and told a timestep by how much of the picture is drawn."""
    each_its_own(lambda change: on_image(name, change(transformer(name)), masked(name)))


@pytest.mark.parametrize("known", ["clean", "ahead"])
def test_where_the_map_says_how_noisy_known_pixels_are(known: str) -> None:
    """Cosmos is told every pixel's own timestep, whatever part of the picture is drawn."""
    name, patched = "Cosmos Predict2", transformer("Cosmos Predict2")
    seen: list[Snapshot] = []
    with calls_of(patched) as calls:
        on_image(name, asyn(patched, painted(left(12, 16)), on_step=seen.append, known_pixels=known), masked(name, 1))
    assert len(calls) == len(seen) == 4
    for call, snapshot in zip(calls, seen, strict=True):
        told = call.rows.every[:, 0].flatten().unique()
        sampling = patched.model.model_sampling
        expected = sampling.timestep(snapshot.sigma.flatten().clamp(min=sampling.sigmas[0])).unique()
        torch.testing.assert_close(told, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [*KINDS, "Cosmos Predict2"])
@pytest.mark.parametrize("known", ["clean", "ahead"])
def test_known_pixels(name: str, known: str) -> None:
    """Tokens of nothing but known pixels are at their own level, and end as they were given; the others are one level each."""
    seen: list[Snapshot] = []
    image = masked(name, 1)
    region = painted(left(12, 16))
    ours = on_image(name, asyn(transformer(name), region, on_step=seen.append, known_pixels=known), image)
    known_tokens = HOLE.view(1, 6, 2, 8, 2).amax(dim=(2, 4)) == 0
    pixels = known_tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for snapshot in seen:
        assert snapshot.denoised.ndim == 4 and snapshot.sigma.shape == (1, 1, 12, 16)
        patches = snapshot.sigma.view(1, 6, 2, 8, 2)
        assert (patches.amax(dim=(2, 4)) == patches.amin(dim=(2, 4))).all()
        assert snapshot.sigma[:, 0][pixels].max() < snapshot.sigma[:, 0][~pixels].min() or snapshot.step == 3
    if known == "clean":
        assert all(snapshot.sigma[:, 0][pixels].max() == 0 for snapshot in seen)
    flat = (HOLE == 0)[:, None]
    given = image["samples"].view(1, -1, 12, 16)
    assert difference((ours.view(1, -1, 12, 16) * flat), given * flat) < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_regional_denoise(name: str) -> None:
    """What is to be kept is kept, bit for bit but for the model's scaling of latents; the region is drawn anew."""
    image = {"samples": masked(name, 1)["samples"]}
    ours = on_image(name, asyn(transformer(name), painted(left(12, 16)), background_denoise=0.0, region_denoise=0.8), image)
    assert difference(ours[..., 8:], image["samples"][..., 8:]) < TOLERANCE
    assert difference(ours[..., :8], image["samples"][..., :8]) > 0.05


@pytest.mark.parametrize("name", KINDS)
def test_previews_get_latents_as_comfyui_has_them(name: str) -> None:
    """Of a map's run as of a stock one; its own watchers get single pictures."""
    shapes: list[tuple[int, ...]] = []
    seen: list[Snapshot] = []
    patched = asyn(transformer(name), painted(left(12, 16)), on_step=seen.append)
    samples = empty(name)["samples"]
    noise = comfy.sample.prepare_noise(samples, 7)
    comfy.sample.sample(
        patched, noise, 3, 1.0, "euler", "simple", prompt(name), prompt(name, 6), samples, seed=7, disable_pbar=True,
        callback=lambda step, denoised, x, steps: shapes.append((denoised.shape, x.shape)),
    )  # fmt: skip
    assert shapes == [(samples.shape, samples.shape)] * 3
    assert {snapshot.denoised.shape for snapshot in seen} == {(1, 16, 12, 16)}


NODES: dict[str, Callable[[Any], Any]] = {
    "CFGZeroStar": lambda m: node("nodes_cfg", "CFGZeroStar", m),
    "CFGNorm": lambda m: node("nodes_cfg", "CFGNorm", m, 1.0),
    "SkipLayerGuidanceDiT": lambda m: node("nodes_slg", "SkipLayerGuidanceDiT", m, 3.0, 0.0, 1.0, "1", "1"),
    "ModelSamplingAuraFlow": lambda m: node("nodes_model_advanced", "ModelSamplingAuraFlow", m, 1.7),
    "DifferentialDiffusion": lambda m: node("nodes_differential_diffusion", "DifferentialDiffusion", m),
    "RescaleCFG": lambda m: node("nodes_model_advanced", "RescaleCFG", m, 0.7),
}


@pytest.mark.parametrize("patch", NODES)
@pytest.mark.parametrize("name", KINDS)
def test_nodes_on_the_model(name: str, patch: str) -> None:
    patched, soft = NODES[patch](transformer(name)), torch.linspace(0, 1, 16).expand(1, 12, 16)
    image = masked(name) | ({"noise_mask": soft} if patch == "DifferentialDiffusion" else {})
    each_its_own(lambda change: on_image(name, change(patched), image), tolerance=2 * TOLERANCE)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_with_an_area(name: str) -> None:
    """It is shown its own part of the map."""
    area = [[tensor, {**more, "area": (12, 8, 0, 4), "strength": 1.0}] for tensor, more in prompt(name, 8)]
    positive = [*prompt(name), *area]

    def run(change: Callable[[Any], Any]) -> Tensor:
        return ksampler(change(transformer(name)), steps=4, cfg=2.0, scheduler="simple", positive=positive,
                        negative=prompt(name, 6), image=empty(name, 2))  # fmt: skip

    each_its_own(run)


USUAL = ("euler", "res_multistep", "er_sde", "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral")


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends
@pytest.mark.parametrize(
    "sampler", [*USUAL, *(pytest.param(each, marks=pytest.mark.whole) for each in SAMPLERS if each not in USUAL)]
)
def test_samplers_of_flow_models(sampler: str) -> None:
    patched = transformer("Flux.1 dev")
    stock = sampled("Flux.1 dev", patched, sampler=sampler)
    level = sampled("Flux.1 dev", plain(patched, NO_STRENGTH, strength=0.0), sampler=sampler)
    rounding = {"dpmpp_sde": 2e-4, "uni_pc": 5e-5}  # of the inner sigma the last bit; of D at sigma 0.001
    assert difference(level, stock) < next((most for name, most in rounding.items() if sampler.startswith(name)), 2e-5)
    ours = sampled("Flux.1 dev", asyn(patched, painted(left(12, 16))), sampler=sampler)
    assert difference(ours, stock) > 1e-3


def test_a_model_without_a_row_is_refused_by_name() -> None:
    network = type("Newest", (nn.Module,), {})()
    model = type("NewestModel", (), {"diffusion_model": network})()
    with pytest.raises(UnsupportedModelError, match=r"NewestModel \(Newest\).*Z-Image"):
        network_of(model, torch.zeros(1, 4, 8, 8))


def test_words_are_refused_where_they_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FAMILIES", {key: row._replace(reading=None) for key, row in known.FAMILIES.items()})
    positive = [[prompt("PixArt Sigma")[0][0], {ANNOTATION: Annotation({"fox": (3,)}, 19)}]]
    with pytest.raises(UnsupportedModelError, match=r"PixArt.*paint the regions"):
        ksampler(asyn(transformer("PixArt Sigma"), Regions((Target("fox"),))), positive=positive,
                 negative=prompt("PixArt Sigma"), image=empty("PixArt Sigma"))  # fmt: skip
