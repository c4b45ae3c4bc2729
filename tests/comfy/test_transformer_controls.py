"""Transformers' ControlNets and model patches are told the timestep of every token, as the model is.

The oracles know nothing of how: stock ComfyUI, each picture of a batch alone, and, with attention that lets nothing through,
every part of a picture at its own noise level everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import comfy.cldm.dit_embedder
import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.hydit.controlnet
import comfy.ldm.lumina.controlnet
import comfy.ldm.qwen_image.controlnet
import comfy.ops
import comfy_extras.nodes_model_patch as model_patch
import pytest
import torch
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from families import FAMILIES, FLUX, QWEN, SD3, TEXT, TOKENS, empty, prompt, randomise, transformer, vae
from test_transformer_machines import in_fp8, in_quantised_tensors
from test_transformers import NO_STRENGTH, TOLERANCE, each_its_own, left, nothing_attended
from tiny import asyn, difference, hooks_of, ksampler, painted, patcher, plain, same
from torch import Tensor, nn

import nodes as comfy_nodes

__all__ = ["nothing_attended"]  # a fixture

LAYERS = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def made(network: nn.Module) -> nn.Module:
    """With random weights, also where training starts with zeros."""
    randomise(network)
    return network.eval()


def flux_xlabs() -> comfy.controlnet.ControlNet:
    network = made(comfy.ldm.flux.controlnet.ControlNetFlux(**FLUX, **LAYERS))
    return comfy.controlnet.ControlNet(network, extra_conds=["y", "guidance"])


def flux_union() -> comfy.controlnet.ControlNet:
    kinds = {"latent_input": True, "num_union_modes": 3, "control_latent_channels": 16}
    network = made(comfy.ldm.flux.controlnet.ControlNetFlux(**kinds, **FLUX, **LAYERS))
    control = comfy.controlnet.ControlNet(
        network, compression_ratio=1, latent_format=comfy.latent_formats.Flux(), extra_conds=["y", "guidance"]
    )
    control.set_extra_arg("control_type", [1])
    return control


def sd3() -> comfy.controlnet.ControlNet:
    network = made(comfy.cldm.mmdit.ControlNet(control_latent_channels=16, **{**SD3, "num_blocks": 2}, **LAYERS))
    return comfy.controlnet.ControlNet(network, compression_ratio=1, latent_format=comfy.latent_formats.SD3())


def sd35() -> comfy.controlnet.ControlNet:
    network = comfy.cldm.dit_embedder.ControlNetEmbedder(
        img_size=None, patch_size=2, in_chans=16, num_layers=2, main_model_double=2, double_y_emb=True, attention_head_dim=64,
        num_attention_heads=2, adm_in_channels=24, **LAYERS,
    )  # fmt: skip
    return comfy.controlnet.ControlNetSD35(made(network), compression_ratio=1, latent_format=comfy.latent_formats.SD3())


def qwen_instantx() -> comfy.controlnet.ControlNet:
    network = made(comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(**QWEN, **LAYERS))
    return comfy.controlnet.ControlNet(
        network, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), extra_conds=[]
    )  # fmt: skip


def qwen_fun() -> comfy.controlnet.ControlNet:
    kind = getattr(comfy.ldm.qwen_image.controlnet, "QwenImageFunControlNetModel", None)
    if kind is None:
        pytest.skip("this ComfyUI has no QwenImageFunControlNetModel")
    network = made(
        kind(
            inner_dim=64, num_attention_heads=2, attention_head_dim=32, num_control_blocks=2, main_model_double=2,
            injection_layers=(0, 1), **LAYERS,
        )
    )  # fmt: skip
    return comfy.controlnet.QwenFunControlNet(
        network, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), extra_conds=[]
    )


def hunyuan_dit() -> comfy.controlnet.ControlNet:
    network = comfy.ldm.hydit.controlnet.HunYuanControlNet(
        hidden_size=64, num_heads=2, mlp_ratio=2.0, text_states_dim=TEXT, text_states_dim_t5=48, text_len=TOKENS,
        text_len_t5=24, **LAYERS,
    )  # fmt: skip
    del network.blocks[1:]  # as many as the tiny model takes
    extra = ["text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5", "image_meta_size", "style"]
    return comfy.controlnet.ControlNet(
        made(network), compression_ratio=1, latent_format=comfy.latent_formats.SDXL(), extra_conds=extra
    )  # fmt: skip


CONTROLS: dict[str, tuple[str, Callable[[], Any], bool]] = {
    "Flux.1, of pictures": ("Flux.1 dev", flux_xlabs, False),
    "Flux.1, union, of latents": ("Flux.1 dev", flux_union, True),
    "Stable Diffusion 3": ("Stable Diffusion 3", sd3, True),
    "Stable Diffusion 3.5": ("Stable Diffusion 3", sd35, True),
    "Qwen-Image": ("Qwen-Image", qwen_instantx, True),
    "Qwen-Image Fun": ("Qwen-Image", qwen_fun, True),
    "HunyuanDiT": ("HunyuanDiT", hunyuan_dit, True),
}
"""The family, the control, and whether it is shown latents."""

HINT = torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(8))


@cache
def controlled(name: str) -> tuple[Any, list, list]:
    """A control, and positive and negative with it, as Apply ControlNet gives them."""
    family, make, latents = CONTROLS[name]
    control = make()
    encoder = vae(FAMILIES[family].latents[0], FAMILIES[family].framed) if latents else None
    apply = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet
    return control, *apply(prompt(family), prompt(family, 6), control, HINT, 1.0, 0.0, 1.0, vae=encoder)


def sampled(family: str, patched: Any, conds: tuple[list, list], batch: int = 1) -> Tensor:
    positive, negative = conds
    run = {"steps": 4, "cfg": 2.0, "scheduler": "simple", "image": empty(family, batch)}
    return ksampler(patched, positive=positive, negative=negative, **run)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_told_each_pictures_own_timestep(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said, nothing is left behind, and what asks for nothing is stock."""
    family, patched = CONTROLS[name][0], transformer(CONTROLS[name][0])
    control, *conds = controlled(name)
    stock = sampled(family, patched, conds)
    assert difference(sampled(family, patched, (prompt(family), prompt(family, 6))), stock) > 1e-3
    assert same(sampled(family, asyn(patched, NO_STRENGTH, strength=0.0), conds), stock)
    assert difference(sampled(family, plain(patched, NO_STRENGTH, strength=0.0), conds), stock) < TOLERANCE
    with caplog.at_level(logging.WARNING, "asyndm"):
        each_its_own(lambda change: sampled(family, change(patched), conds, 2))
    assert "one noise level" not in caplog.text
    assert not hooks_of(control.control_model) and same(sampled(family, patched, conds), stock)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.usefixtures("nothing_attended")
def test_a_control_tells_each_token_its_own(name: str) -> None:
    """Without attention, the pixels of the left half are those of a run where all lag, those of the right keep pace."""
    family = CONTROLS[name][0]
    _, *conds = controlled(name)
    in_halves(lambda change: sampled(family, change(transformer(family)), conds))


def in_halves(run: Callable[[Callable[[Any], Any]], Tensor]) -> None:
    region = painted(left(12, 16))
    stock, ours = run(lambda m: m), run(lambda m: asyn(m, region))
    lagging = run(lambda m: asyn(m, region, mode="concave"))
    assert difference(lagging, stock) > 1e-3
    assert difference(ours[..., 8:], stock[..., 8:]) < TOLERANCE
    assert difference(ours[..., :8], lagging[..., :8]) < TOLERANCE


# --- model patches ---------------------------------------------------------------------------------------------------------


def z_image(**kind: Any) -> Any:
    size = {"dim": 256, "n_heads": 8, "n_kv_heads": 8, "multiple_of": 32}
    network = made(comfy.ldm.lumina.controlnet.ZImage_Control(**size, **kind, n_control_layers=2, **LAYERS))
    # one for each of the real model's 30 blocks: with fewer, as the tiny model has 2, one call's state would stay to the next
    network.n_control_layers = 30
    node = model_patch.ZImageFunControlnet()
    return node.diffsynth_controlnet(transformer("Z-Image"), patcher(network), vae(), HINT, 1.0)[0]


def qwen_image() -> Any:
    network = made(model_patch.QwenImageBlockWiseControlNet(num_layers=2, dim=64, **LAYERS))
    node = model_patch.QwenImageDiffsynthControlnet()
    return node.diffsynth_controlnet(transformer("Qwen-Image"), patcher(network), vae(frames=True), HINT, 1.0)[0]


def anima() -> Any:
    if not hasattr(model_patch, "AnimaLLLiteApply"):
        pytest.skip("this ComfyUI has no AnimaLLLiteApply")
    shapes = {"conv1": (8, 3, 4, 4), "conv3": (16, 8, 4, 4), "proj": (24, 16, 1, 1)}
    weights = {f"lllite_conditioning1.{name}.weight": torch.empty(shape) for name, shape in shapes.items()}
    for target in ("self_attn_q_proj", "self_attn_k_proj", "cross_attn_q_proj", "mlp_layer1"):
        for block in range(2):
            weights[f"lllite_dit_blocks_{block}_{target}.down.weight"] = torch.empty(12, 96)
            weights[f"lllite_dit_blocks_{block}_{target}.cond_to_film.weight"] = torch.empty(24, 24)
    network = made(comfy.ldm.anima.lllite.AnimaLLLite(weights, None, **LAYERS))
    return model_patch.AnimaLLLiteApply().apply_patch(transformer("Anima"), patcher(network), HINT, 1.0, 0.0, 1.0)[0]


PATCHES: dict[str, tuple[str, Callable[[], Any]]] = {
    "Z-Image, first version": ("Z-Image", z_image),
    "Z-Image, of the refiner too": ("Z-Image", lambda: z_image(additional_in_dim=17, refiner_control=True)),
    "Qwen-Image": ("Qwen-Image", qwen_image),
    "Anima": ("Anima", anima),
}  # fmt: skip
"""The family, and its MODEL with a patch, as ComfyUI's nodes make it."""


@cache
def with_patch(name: str) -> Any:
    return PATCHES[name][1]()


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
    """ComfyUI takes a patch off its model when the model goes: not while Python ends."""
    yield
    with_patch.cache_clear()


@pytest.mark.parametrize("name", PATCHES)
def test_a_model_patch_is_told_each_pictures_own_timestep(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It gets the network's own modulation; there is nothing to say."""
    family, patched = PATCHES[name][0], with_patch(name)
    conds = (prompt(family), prompt(family, 6))
    stock = sampled(family, patched, conds)
    assert difference(sampled(family, transformer(family), conds), stock) > 1e-3
    assert same(sampled(family, asyn(patched, NO_STRENGTH, strength=0.0), conds), stock)
    with caplog.at_level(logging.WARNING, "asyndm"):
        each_its_own(lambda change: sampled(family, change(patched), conds, 2))
    assert "one noise level" not in caplog.text


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.usefixtures("nothing_attended")
def test_a_model_patch_tells_each_token_its_own(name: str) -> None:
    family = PATCHES[name][0]
    in_halves(lambda change: sampled(family, change(with_patch(name)), (prompt(family), prompt(family, 6))))


def test_a_control_that_uses_the_models_own_quantised_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image's Fun ControlNet takes the timestep from the model's time embedding."""
    patched, kinds = in_fp8("Qwen-Image", monkeypatch)
    _, *conds = controlled("Qwen-Image Fun")
    each_its_own(lambda change: sampled("Qwen-Image", change(patched), conds, 2), tolerance=0.03)
    assert kinds and TimestepRows not in kinds
    patched = in_quantised_tensors("Qwen-Image")
    each_its_own(lambda change: sampled("Qwen-Image", change(patched), conds, 2), tolerance=0.03)
