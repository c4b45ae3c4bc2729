"""The demo transformer in ComfyUI's Flux against the same weights in diffusers' FluxTransformer2DModel."""

from __future__ import annotations

import comfy.model_base
import comfy.ops
import comfy.supported_models
import comfy.utils
import pytest
import torch
from asyndm_pack.demo import config
from asyndm_pack.demo.model import FlowModel, build_transformer, flow_velocity
from comfy.ldm.flux.model import Flux


@pytest.fixture(scope="module")
def reference() -> FlowModel:
    """Random weights, none of them zero."""
    torch.manual_seed(3)
    model = build_transformer()
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.transformer.requires_grad_(False)
    return model


def comfy_state(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights under ComfyUI's names, by its own table."""
    renamed = comfy.utils.flux_to_diffusers(config.comfy_transformer_config())
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, value in transformer.state_dict().items():
        place = renamed[name]
        target, offset, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
        start = offset[1] if offset else 0
        parts.setdefault(target, []).append((start, change(value) if change else value))
    return {name: torch.cat([value for _, value in sorted(found, key=lambda part: part[0])]) for name, found in parts.items()}


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_flux_is_diffusers_flux(reference: FlowModel, height: int, width: int) -> None:
    flux = Flux(**config.comfy_transformer_config(), dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    flux.load_state_dict(comfy_state(reference.transformer))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, config.LATENT_CHANNELS, height, width, generator=generator)
    text = torch.randn(3, config.MAX_TOKENS, config.TEXT_WIDTH, generator=generator)
    times = torch.tensor([0.02, 0.5, 1.0])
    expected = flow_velocity(reference.transformer, x, times, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(flux(x, times, text), expected, atol=1e-5, rtol=1e-5)


def test_flow_sampling_has_the_trained_times() -> None:
    """ComfyUI's FLOW of a multiplier 1 and shift 1: the model is told sigma itself, sigma 1 is noise alone."""
    settings = comfy.supported_models.FluxSchnell(config.comfy_transformer_config())
    sampling = comfy.model_base.model_sampling(settings, comfy.model_base.ModelType.FLOW)
    sigmas = torch.tensor([0.02, 0.5, 1.0])
    torch.testing.assert_close(sampling.timestep(sigmas), sigmas)
    assert sampling.sigma_max == 1
    noise, picture = torch.randn(2, 3, 12, 4, 4)
    noisy = sampling.noise_scaling(sigmas[:, None, None, None], noise, picture)
    torch.testing.assert_close(sampling.calculate_denoised(sigmas, noise - picture, noisy), picture)
