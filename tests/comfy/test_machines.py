"""Where a model lives and how it computes: partly loaded, unloaded, in small number types, compiled; what Apple GPUs lack."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.ldm.modules.diffusionmodules.openaimodel as unet_module
import comfy.model_management
import pytest
import torch
import torchgen
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from comfy_api.torch_helpers import set_torch_compile_wrapper
from tiny import (
    CPU,
    FOX_AND_HAT,
    LEFT,
    asyn,
    base_model,
    difference,
    flat,
    ksampler,
    latent,
    make_model,
    painted,
    patcher,
    plain,
    same,
    unet_config,
)
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from benchmarks.speed.memory import attention_as_on_a_gpu, peak

ROOT = Path(__file__).resolve().parents[2]
NO_STRENGTH = Regions((Target("fox", 0.0),))
ONE_LEVEL: dict[str, Any] = {
    "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1],
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends


# --- partly loaded: --lowvram, --novram -----------------------------------------------------------------------------------


@contextmanager
def loading(share: float) -> Iterator[None]:
    """Models are loaded for ``share`` of their size, as with --novram (0) and --lowvram; the rest is cast when used."""
    original = comfy.model_management.LoadedModel.model_load

    def model_load(self: Any, lowvram_model_memory: float = 0, force_patch_weights: bool = False) -> Any:
        return original(self, max(0.1, share * self.model.model_size()), force_patch_weights)

    comfy.model_management.unload_all_models()
    comfy.model_management.LoadedModel.model_load = model_load
    try:
        yield
    finally:
        comfy.model_management.LoadedModel.model_load = original
        comfy.model_management.unload_all_models()


def lora(patched: Any) -> Any:
    """Weight patches on the very layers that AsynDM reads or changes, and on others."""
    names = ("attn2.to_q.weight", "attn2.to_k.weight", "emb_layers.1.weight", "in_layers.2.weight", "proj_in.weight")
    generator = torch.Generator().manual_seed(9)
    weights = {key: value for key, value in patched.model.state_dict().items() if key.endswith(names)}
    changed = patched.clone()
    changed.add_patches({k: (0.3 * w.std() * torch.randn(w.shape, generator=generator),) for k, w in weights.items()}, 0.8)
    return changed


@pytest.mark.parametrize("regions", [FOX_AND_HAT, painted(LEFT)], ids=["words", "painted"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_partly_loaded(share: float, regions: Regions) -> None:
    """Bit for bit as loaded whole, also with patches that are applied when a weight is used."""
    fresh = make_model(channels=64)
    whole = ksampler(asyn(lora(fresh), regions))
    assert difference(whole, ksampler(asyn(fresh, regions))) > 1e-3
    with loading(share):
        partly = ksampler(asyn(lora(fresh), regions))
        cast = sum(getattr(module, "comfy_cast_weights", False) for module in fresh.model.modules())
        assert fresh.model.model_lowvram and fresh.model.lowvram_patch_counter > 10 and cast > 100
    assert same(partly, whole)


def test_unloaded_between_two_runs() -> None:
    patched = asyn(make_model(**ONE_LEVEL))
    first = ksampler(patched)
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    assert same(ksampler(patched), first)
    ksampler(flat())
    comfy.model_management.free_memory(1e30, CPU)
    assert same(ksampler(patched), first)


# --- memory ------------------------------------------------------------------------------------------------------------------


GREY = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))
"""A timestep of its own for nearly every pixel."""
ASKED: dict[str, dict[str, Any]] = {
    "words": {},
    "words, soft and grown": {"regions": Regions((Target("fox"), Target("hat")), feather=2.0, grow=3)},
    "grey mask": {"regions": painted(GREY)},
    "grey mask, known pixels clean": {"regions": painted(GREY), "known_pixels": "clean"},
    "grey mask, known pixels ahead": {"regions": painted(GREY), "known_pixels": "ahead"},
}


def test_memory() -> None:
    """Within 1.05 of what stock sampling holds at its peak, on a UNet of a fifth of the usual width: the share of maps and
    of what is seen falls with the channels, and does not depend on the size of the picture."""
    lean = {"transformer_depth": [0, 0, 1], "transformer_depth_output": [1, 1, 0, 0, 0, 0]}
    model, mask = make_model(channels=64, **lean), torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    image = latent(32, 32, batch=2, full=True, noise_mask=mask)
    run = partial(ksampler, image=image, steps=2)
    with attention_as_on_a_gpu():
        stock = peak(partial(run, model))
        for name, changes in ASKED.items():
            share = peak(partial(run, asyn(model, **changes))) / stock
            assert 1 <= share < 1.05, f"{name}: {share:.3f}"


# --- number types -----------------------------------------------------------------------------------------------------------


def typed(weights: torch.dtype, compute: torch.dtype | None) -> Any:
    """The small model as ComfyUI's loader makes it for weights of a type; compute: the type they are cast to when used."""
    model = base_model(type(flat().model), unet_config(96, **ONE_LEVEL), flat().model.model_type, weights, compute)
    numbers = flat().model.diffusion_model.state_dict()
    model.diffusion_model.load_state_dict({name: value.to(weights) for name, value in numbers.items()})
    return patcher(model)


TYPES = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "fp16, cast to fp32": (torch.float16, torch.float32),
    "fp8_e4m3fn, cast to bf16": (torch.float8_e4m3fn, torch.bfloat16),
    "fp8_e5m2, cast to fp32": (torch.float8_e5m2, torch.float32),
}


@pytest.mark.parametrize("name", TYPES)
def test_number_types(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock where nothing lags; else as near to float32 as stock is, and told the very same timesteps, in float32."""
    told: list[Tensor] = []
    embed = unet_module.timestep_embedding

    def watched(timesteps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        told.append(timesteps)
        return embed(timesteps, *args, **kwargs)

    monkeypatch.setattr(unet_module, "timestep_embedding", watched)

    def timesteps_of(patched: Any) -> tuple[Tensor, Tensor]:
        told.clear()
        picture = ksampler(asyn(patched, painted(torch.linspace(0, 1, 8).expand(1, 8, 8))), steps=3)
        assert {timesteps.dtype for timesteps in told} == {torch.float32}
        return picture, torch.cat(told)

    small = typed(*TYPES[name])
    stock = ksampler(small, steps=3)
    error = difference(stock, ksampler(flat(), steps=3))
    assert 1e-6 < error < 0.1
    assert same(ksampler(asyn(small, mode="synchronous"), steps=3), stock)
    assert difference(ksampler(plain(small, NO_STRENGTH, strength=0.0), steps=3), stock) < 1e-5
    (ours, told_small), (exact, told_exact) = timesteps_of(small), timesteps_of(flat())
    assert torch.equal(told_small, told_exact) and told_exact.max() == 999 and told_exact.unique().numel() > 8
    assert difference(ours, exact) < 3 * error
    assert difference(ksampler(asyn(small), steps=3), ksampler(asyn(flat()), steps=3)) < 10 * error


def test_latents_in_half_precision() -> None:
    """ComfyUI before 0.33 samples float16 latents as they are; ours is at least as near to float32."""
    image = latent(full=True)
    half = {"samples": image["samples"].half()}
    exact = ksampler(flat(), image=image, denoise=0.7)
    error = difference(ksampler(flat(), image=half, denoise=0.7).float(), exact)
    ours = ksampler(plain(flat(), NO_STRENGTH, strength=0.0), image=half, denoise=0.7)
    assert difference(ours, exact) < 1.1 * error
    lagging = difference(
        ksampler(asyn(flat()), image=half, denoise=0.7).float(), ksampler(asyn(flat()), image=image, denoise=0.7)
    )
    assert lagging < 10 * error


# --- torch.compile ----------------------------------------------------------------------------------------------------------


BACKENDS: dict[str, Callable[[torch.fx.GraphModule, list], Callable]] = {
    "no code": lambda graph, examples: graph.forward,
    "inductor": compile_fx,
}


@pytest.mark.parametrize("name", ["no code", pytest.param("inductor", marks=pytest.mark.whole)])
@attention_as_on_a_gpu()  # one graph
def test_compiled(name: str) -> None:
    """As not compiled; compiled a few times in the first run, then for other maps no more; then stock again."""
    if name == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch's inductor needs a C++ compiler (g++)")
    graphs = 0

    def backend(graph: torch.fx.GraphModule, examples: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return BACKENDS[name](graph, examples)

    model = make_model(channels=32, **{**ONE_LEVEL, "transformer_depth_middle": -1, "transformer_depth_output": [0, 1]})
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend)
    torch.compiler.reset()
    stock = ksampler(compiled, steps=3)
    assert graphs == 1 and difference(stock, ksampler(model, steps=3)) < 1e-5
    for steps in (3, 5):  # other pixels, other numbers of timesteps, other uuids
        ours = ksampler(asyn(compiled), steps=steps)
        assert graphs <= 4  # for stock, and watched: level pixels, one timestep, several
        assert difference(ours, ksampler(asyn(model), steps=steps)) < 1e-5
    assert same(ksampler(compiled, steps=3), stock)
    assert graphs <= 4


# --- Apple GPUs: no float64, and not all operators ----------------------------------------------------------------------------


class OurOperators(TorchDispatchMode):
    """Notes the operators that the pack's own code calls, and refuses float64, which Apple GPUs do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while "/torch/" in (name := frame.f_code.co_filename) or name.startswith("<"):
            frame = frame.f_back
        if Path(name).is_relative_to(ROOT / "asyndm_core") or Path(name).is_relative_to(ROOT / "nodes"):
            self.called.add(func._schema.name.removeprefix("aten::") + (f".{func._overloadname}").replace(".default", ""))
            for value in result if isinstance(result, tuple | list) else (result,):
                assert getattr(value, "dtype", None) not in (torch.float64, torch.complex128), (
                    f"{func} in {name}:{frame.f_lineno}"
                )
        return result


@cache
def on_apple() -> Callable[[str], bool]:
    """Whether PyTorch has an operator for Apple GPUs, or makes it of others: by PyTorch's own table of operators."""
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    native = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    functions = {str(function.func.name): function for function in native.native_functions}
    keys = ("MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
    tables = [native.backend_indices[DispatchKey[key]] for key in keys]

    def has(name: str) -> bool:
        function = functions[name]
        delegate = function.structured_delegate
        return any(table.has_kernel(f) for table in tables for f in (function, functions[str(delegate or function.func.name)]))

    assert has("gather") and not has("mode") and not has("linalg_eig")
    return has


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_an_apple_gpu_cannot_do(sampler: str) -> None:
    """Not run on one: while sampling, our own code makes no float64 and calls only what PyTorch has for it."""
    number = list(SAMPLERS).index(sampler)
    words = Regions((Target("fox"), Target("hat", 0.4)), update=("every step", "fixed")[number % 2], grow=1, feather=2.0,
                    mask=torch.linspace(0.2, 1, 64).expand(1, 64, 64))  # fmt: skip
    image = latent(full=True, noise_mask=torch.ones(1, 8, 8))
    image["noise_mask"][..., :3] = 0.5
    curve = ("quadratic", "piecewise linear", "exponential")[number % 3]
    kept: dict[str, Any] = {"background_denoise": 0.5} if number % 4 == 1 else {}
    patched = asyn(flat(), words, curve=curve, on_step=lambda s: None, **kept)
    with OurOperators() as ours:
        ksampler(patched, sampler, "normal", steps=3, image=image, denoise=0.9)
    missing = {name for name in ours.called if not on_apple()(name)}
    assert len(ours.called) > 30 and not missing
