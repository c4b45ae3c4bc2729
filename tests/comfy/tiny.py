"""Tiny random models in real ComfyUI objects, conditionings for them, and runs of the stock sampler on both.

The UNets have 96 channels: with 32 (one per norm group) a timestep that is the same everywhere would have no effect.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.host import WRAPPER_KEY
from asyndm_pack.nodes.comfy.sampling import Options, apply
from torch import Tensor

from nodes import common_ksampler

CONTEXT = 32
POOLED = 16
CPU = torch.device("cpu")
ModelType = comfy.model_base.ModelType

WORDS: dict[str, tuple[int, ...]] = {"fox": (3,), "hat": (5, 6)}
FOX_AND_HAT = Regions((Target("fox"), Target("hat", 0.4)))
LEFT = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=-1)
"""A painted mask: the left half."""


class TinyConfig(comfy.supported_models_base.BASE):
    """A model family of ComfyUI that has no checkpoint."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (ComfyUI's own name; it would set the heads)


def unet_config(channels: int = 96, **changes: Any) -> dict[str, Any]:
    """An SD1.5-like UNet: three levels, one residual block each, cross-attention at all of them."""
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels, "num_res_blocks": [1, 1, 1],
        "transformer_depth": [1, 1, 1], "transformer_depth_output": [1] * 6, "transformer_depth_middle": 1,
        "channel_mult": [1, 1, 1], "use_linear_in_transformer": False, "context_dim": CONTEXT, "num_heads": 4,
        "use_spatial_transformer": True, "legacy": False, "dtype": torch.float32, "adm_in_channels": None, **changes,
    }  # fmt: skip


def base_model(
    family: type, config: dict[str, Any], kind: ModelType, weights: torch.dtype = torch.float32,
    compute: torch.dtype | None = None, **settings: Any,
) -> comfy.model_base.BaseModel:  # fmt: skip
    """A ComfyUI model of ``family`` with random weights from seed 0, of a type; compute: what they are cast to, or None."""
    tiny = TinyConfig(config)
    tiny.latent_format = comfy.latent_formats.SD15()
    tiny.sampling_settings = settings
    tiny.set_inference_dtype(weights, compute)
    tiny.custom_operations = comfy.ops.disable_weight_init if compute is None else comfy.ops.manual_cast
    model = family(tiny, kind, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = (0.8 * random / parameter[0].numel() ** 0.5).to(weights)
        else:
            parameter.data = (0.1 * random + (1.0 if "norm" in name and name.endswith("weight") else 0.0)).to(weights)
    for buffer in model.diffusion_model.buffers():  # ComfyUI leaves them as memory was, for a checkpoint to fill
        buffer.data = 0.1 * torch.randn(buffer.shape, generator=generator)
    return model.eval()


def patcher(model: comfy.model_base.BaseModel) -> comfy.model_patcher.ModelPatcher:
    """What a MODEL socket carries."""
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def make_model(kind: ModelType = ModelType.EPS, sdxl: bool = False, **changes: Any) -> comfy.model_patcher.ModelPatcher:
    """A new MODEL. sdxl: with a vector of its own beside the timestep (pooled text and sizes)."""
    family: type = comfy.model_base.BaseModel
    if sdxl:
        family, changes = comfy.model_base.SDXL, {"adm_in_channels": POOLED + 6 * 256, "num_classes": "sequential", **changes}
    return patcher(base_model(family, unet_config(**changes), kind))


@cache
def model(kind: ModelType = ModelType.EPS, sdxl: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The same, made once: for tests that leave it as it is (and so check that everybody does)."""
    return make_model(kind, sdxl)


@cache
def flat() -> comfy.model_patcher.ModelPatcher:
    """A quicker one, of one level: for tests that are about samplers."""
    return make_model(num_res_blocks=[1], channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1])


def cond(seed: int, tokens: int = 77, words: Mapping[str, tuple[int, ...]] | None = None, **options: Any) -> list:
    """A CONDITIONING of random numbers; with ``words``, annotated as by Cross-Attention Mask."""
    generator = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn(1, POOLED, generator=generator), **options}
    if words is not None:
        options[ANNOTATION] = Annotation(words, tokens)
    return [[2 * torch.randn(1, tokens, CONTEXT, generator=generator), options]]


POSITIVE = cond(1, words=WORDS)
NEGATIVE = cond(2)


def latent(height: int = 8, width: int = 8, batch: int = 1, full: bool = False, **more: Any) -> dict[str, Any]:
    """A LATENT: empty, or ``full`` of random numbers."""
    samples = torch.zeros(batch, 4, height, width)
    if full:
        samples = torch.randn(samples.shape, generator=torch.Generator().manual_seed(11))
    return {"samples": samples, **more}


def ksampler(
    patched: Any, sampler: str = "euler", scheduler: str = "karras", steps: int = 4, cfg: float = 5.0, seed: int = 7,
    positive: list = POSITIVE, negative: list = NEGATIVE, image: dict[str, Any] | None = None, **more: Any,
) -> Tensor:  # fmt: skip
    """The stock KSampler node on a small picture."""
    image = latent() if image is None else image
    return common_ksampler(patched, seed, steps, cfg, sampler, scheduler, positive, negative, image, **more)[0]["samples"]


def custom(
    patched: Any, sampler: comfy.samplers.KSAMPLER, sigmas: Tensor, image: dict[str, Any] | None = None, cfg: float = 5.0,
    seed: int = 7, positive: list = POSITIVE, negative: list = NEGATIVE,
) -> Tensor:  # fmt: skip
    """What the node SamplerCustom does."""
    image = latent() if image is None else image
    samples = image["samples"]
    noise = comfy.sample.prepare_noise(samples, seed)
    return comfy.sample.sample_custom(
        patched, noise, cfg, sampler, sigmas, positive, negative, samples, noise_mask=image.get("noise_mask"), seed=seed,
        disable_pbar=True,
    )  # fmt: skip


def asyn(patched: Any, regions: Regions = FOX_AND_HAT, on_step: Callable | None = None, **changes: Any) -> Any:
    """The MODEL with a timestep map (``changes`` are the map's)."""
    return apply(patched, TimestepMap(regions, **changes), Options(on_step=on_step))


def plain(patched: Any, regions: Regions = FOX_AND_HAT, **changes: Any) -> Any:
    """The same without the shortcut: our own loop even where the map asks for nothing."""
    return apply(patched, TimestepMap(regions, **changes), Options(shortcut=False))


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value expected; both must be finite, and expected alive."""
    assert actual.shape == expected.shape and actual.isfinite().all()
    assert 1e-3 < expected.std() < 1e6
    return float((actual - expected).abs().max() / expected.abs().max())


def same(actual: Tensor, expected: Tensor) -> bool:
    """Bit for bit."""
    return actual.shape == expected.shape and bool(expected.isfinite().all()) and torch.equal(actual, expected)


def painted(*masks: Tensor, strength: float = 0.7) -> Regions:
    """One painted region, for each picture of a batch its own."""
    return Regions((Target("fox", strength),), mask=torch.cat([mask.reshape(1, *mask.shape[-2:]) for mask in masks]),
                   mask_mode="replace")  # fmt: skip


def node(module: str, name: str, *values: Any, **named: Any) -> Any:
    """The first output of one of ComfyUI's nodes; the test is skipped where this version has it not."""
    try:
        found = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {name}")
    run = found.execute if hasattr(found, "execute") else getattr(found(), found.FUNCTION)
    outputs = run(*values, **named)
    return getattr(outputs, "result", outputs)[0]


@cache
def clip(embeddings: str | None = None) -> comfy.sd.CLIP:
    """A CLIP of SD1's kind with its real tokenizer, and a random text encoder as small as the UNets' context.

    embeddings: folder of textual inversions.
    """
    small = {"hidden_size": CONTEXT, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    made = comfy.sd.CLIP(
        target, embedding_directory=embeddings, model_options={"clip_l_model_config": small, "dtype": torch.float32}
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in made.cond_stage_model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def second_lags(run: Callable[[Callable[[Any], Any]], Tensor], lags: Regions, tolerance: float, **changes: Any) -> Tensor:
    """``run`` samples two pictures with what a change makes of its model; the second lags everywhere. Returns stock's.

    The first keeps pace and equals stock, the second equals a run where all lag (mode concave), which is another picture.
    """
    stock = run(lambda m: m)
    concave = run(lambda m: asyn(m, lags, mode="concave", **changes))
    together = run(lambda m: asyn(m, lags, **changes))
    assert difference(stock[1:], concave[1:]) > 1e-3
    assert difference(together[:1], stock[:1]) < tolerance
    assert difference(together[1:], concave[1:]) < tolerance
    return stock


def hooks_of(unet: torch.nn.Module) -> Sequence[str]:
    """The modules that have a hook."""
    return [
        name
        for name, module in unet.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ]


def plain_options(options: Any) -> Any:
    """model_options to compare: the same nested containers, without copies of their members."""
    if isinstance(options, dict):
        return {key: plain_options(value) for key, value in options.items()}
    if isinstance(options, list):
        return [plain_options(value) for value in options]
    return options


@contextmanager
def untouched(patched: Any, run: Callable[[Any], Tensor] = ksampler) -> Iterator[None]:
    """The stock picture, the modules and the options of a MODEL are after the block what they were before."""
    base, unet = patched.model, patched.model.diffusion_model
    stock = run(patched)
    sampling, options, hooks = base.model_sampling, plain_options(patched.model_options), hooks_of(unet)
    modules = {name: (type(module), module.__dict__.get("forward")) for name, module in base.named_modules()}
    wrappers = copy.copy(patched.wrappers)
    yield
    assert hooks_of(unet) == hooks
    assert base.model_sampling is sampling
    assert {n: (type(module), module.__dict__.get("forward")) for n, module in base.named_modules()} == modules
    assert plain_options(patched.model_options) == options
    assert patched.wrappers == wrappers
    assert not any(WRAPPER_KEY in keys for keys in patched.wrappers.values())
    assert same(run(patched), stock)
