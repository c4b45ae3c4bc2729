"""Transformers compiled, with quantised weights, and with LoRA in every way that ComfyUI applies one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.sd
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation, annotate, find_targets
from asyndm_pack.nodes.demo_model import load_demo_model
from comfy_api.torch_helpers import set_torch_compile_wrapper
from families import MODELS, make_transformer, prompt, transformer
from test_machines import BACKENDS
from test_transformers import TOLERANCE, calls_of, each_its_own, left, sampled
from tiny import asyn, difference, ksampler, painted, same
from torch import Tensor, nn

COMPILED = (
    "Flux.1 dev", "Z-Image", "Qwen-Image", "Qwen-Image-Edit 2511", "Stable Diffusion 3", "Flux.2 dev", "Krea 2", "Anima",
    "Chroma", "Wan 2.1 and 2.2 T2V",
)  # fmt: skip
MORE_GRAPHS = {"Anima": 5, "Chroma": 9}
"""These are compiled anew for some numbers of timesteps."""
QUANTISED = ("Flux.1 dev", "Z-Image", "Qwen-Image", "Stable Diffusion 3", "Krea 2")


def first_of(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """The first of them in every run, the others when all is tested."""
    return pytest.mark.parametrize("name", [names[0], *(pytest.param(name, marks=pytest.mark.whole) for name in names[1:])])


@pytest.fixture
def attention_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; what ComfyUI takes on a CPU asks for free memory, and breaks graphs."""
    for name, module in list(sys.modules.items()):
        for attention in ("optimized_attention", "optimized_attention_masked"):
            if name.startswith("comfy.ldm.") and hasattr(module, attention):
                monkeypatch.setattr(module, attention, comfy.ldm.modules.attention.attention_pytorch)


def check_compiled(model: Any, run: Callable[..., Tensor], regions: Regions, code: str = "no code", most: int = 3) -> None:
    """One graph where stock has one; with rows one more, and one for any number of them; then stock again.

    run: of a model and a number of steps. most: graphs for each of stock's.
    """
    graphs = 0

    def backend(graph: torch.fx.GraphModule, examples: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return BACKENDS[code](graph, examples)

    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend)
    torch.compiler.reset()
    stock = run(compiled, 4)
    of_stock = graphs
    assert of_stock and difference(stock, run(model, 4)) < TOLERANCE
    for steps in (4, 6, 8):
        ours = run(asyn(compiled, regions), steps)
        assert difference(ours, run(asyn(model, regions), steps)) < TOLERANCE
    assert difference(ours, run(model, steps)) > 1e-3
    assert graphs <= most * of_stock
    assert same(run(compiled, 4), stock)


def short_run(name: str) -> Callable[..., Tensor]:
    return lambda patched, steps: sampled(name, patched, steps=steps, cfg=1.0)


@first_of(COMPILED)
@pytest.mark.usefixtures("attention_of_pytorch")
def test_compiled(name: str) -> None:
    region = painted(left(*MODELS[name].latents[1:]))
    check_compiled(make_transformer(name), short_run(name), region, most=MORE_GRAPHS.get(name, 3))


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler (g++)")
@pytest.mark.parametrize("name", ["Flux.1 dev", "Wan 2.1 and 2.2 T2V"])
@pytest.mark.usefixtures("attention_of_pytorch")
def test_compiled_by_inductor(name: str) -> None:
    region = painted(left(*MODELS[name].latents[1:]))
    check_compiled(make_transformer(name), short_run(name), region, "inductor")


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's inductor needs a C++ compiler (g++)")
@pytest.mark.usefixtures("attention_of_pytorch")
def test_the_demo_transformer_compiled_by_inductor() -> None:
    """Its words are read, before a map too: one graph more. Without most of its blocks, which would take minutes to compile."""
    model, clip, _ = load_demo_model("transformer")
    del model.model.diffusion_model.single_blocks[1:]
    text = "a green boat on the sea under two moons"
    plain, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(each)) for each in (text, ""))
    targets, places, _ = find_targets(clip, text, "boat, moons")
    more: dict[str, Any] = {"positive": annotate(plain, places), "negative": negative, "scheduler": "simple"}
    image = {"samples": torch.zeros(1, 12, 16, 16)}
    run = lambda patched, steps: ksampler(patched, steps=steps, cfg=4.5, image=image, **more)  # noqa: E731
    check_compiled(model, run, Regions(targets), "inductor", most=4)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["Flux.1 dev", "Z-Image", "Qwen-Image", "Stable Diffusion 3", "PixArt Sigma"])
@pytest.mark.usefixtures("attention_of_pytorch")
def test_words_are_read_in_a_compiled_network(name: str) -> None:
    """The regions are those that it has without."""
    compiled = make_transformer(name).clone()
    set_torch_compile_wrapper(model=compiled, backend=lambda graph, examples: graph.forward)
    torch.compiler.reset()
    words = Regions((Target("cat"),))
    prompts = [
        [tensor, {**options, ANNOTATION: Annotation({"cat": (5, 6)}, tensor.shape[1])}] for tensor, options in prompt(name)
    ]
    ours, plain = (
        sampled(name, asyn(model, words), steps=4, cfg=1.0, positive=prompts) for model in (compiled, transformer(name))
    )
    assert difference(plain, sampled(name, transformer(name), steps=4, cfg=1.0)) > 1e-3
    assert difference(ours, plain) < TOLERANCE


def linear_layers(patched: Any) -> list[nn.Module]:
    return [module for module in patched.model.diffusion_model.modules() if isinstance(module, nn.Linear)]


def in_fp8(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[type]]:
    """A MODEL whose layers compute in fp8, and the kinds of tensors that these will have seen."""
    patched = make_transformer(name, torch.bfloat16, comfy.ops.fp8_ops)
    for layer in linear_layers(patched):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    kinds: list[type] = []
    own = comfy.ops.fp8_linear

    def watched(layer: nn.Module, x: Tensor) -> Tensor | None:
        kinds.append(type(x))
        return own(layer, x)

    monkeypatch.setattr(comfy.ops, "fp8_linear", watched)
    return patched, kinds


def in_quantised_tensors(name: str) -> Any:
    """A MODEL with quantised weights; the test is skipped where this ComfyUI has none such."""
    quantised = getattr(comfy.ops, "QuantizedTensor", None)
    if quantised is None:
        pytest.skip("this ComfyUI has no quantised tensors")
    patched = make_transformer(name, torch.bfloat16, comfy.ops.manual_cast)
    for layer in linear_layers(patched):
        layer.weight = nn.Parameter(quantised.from_float(layer.weight.data, "TensorCoreFP8Layout"), requires_grad=False)
    return patched


@pytest.mark.whole
@pytest.mark.parametrize("name", QUANTISED)
def test_fp8_layers_stay_in_fp8(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that compute in fp8 see ordinary batches: none of them falls back."""
    patched, kinds = in_fp8(name, monkeypatch)
    each_its_own(lambda change: sampled(name, change(patched), batch=2, steps=3), tolerance=0.03)
    assert kinds and TimestepRows not in kinds


@pytest.mark.whole
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_tensors(name: str) -> None:
    patched = in_quantised_tensors(name)
    each_its_own(lambda change: sampled(name, change(patched), batch=2, steps=3), tolerance=0.03)


def with_lora(name: str) -> Any:
    """A new MODEL of a family with a LoRA on all its linear layers, as Load LoRA puts it there."""
    patched = make_transformer(name)
    weights = {}
    for key, weight in patched.model.diffusion_model.state_dict().items():
        if key.endswith(".weight") and weight.ndim == 2:
            generator = torch.Generator().manual_seed(len(weights))
            for part, shape in (("lora_down", (4, weight.shape[1])), ("lora_up", (weight.shape[0], 4))):
                weights[f"diffusion_model.{key[:-7]}.{part}.weight"] = torch.randn(shape, generator=generator) * 0.1
    changed, _ = comfy.sd.load_lora_for_models(patched, None, weights, 1.0, 0.0)
    assert len(changed.patches) == len(weights) // 2 > 4
    return changed


@first_of(QUANTISED)
@pytest.mark.parametrize("memory", ["loaded whole", "applied on the fly"])
def test_lora(name: str, memory: str) -> None:
    patched = with_lora(name)
    if memory == "applied on the fly":
        patched.model_size()
        comfy.model_management.load_models_gpu([patched])
        patched.partially_unload(torch.device("cpu"), 1e12)
    plain = sampled(name, transformer(name))
    assert difference(sampled(name, patched), plain) > 1e-3
    each_its_own(lambda change: sampled(name, change(patched), batch=2))
    _, height, width = MODELS[name].latents
    with calls_of(patched) as calls:
        sampled(name, asyn(patched, painted(left(height, width))))
    assert any(isinstance(call.args[1], TimestepRows) for call in calls)
