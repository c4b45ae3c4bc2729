"""The demo transformer in ComfyUI's Flux against the same weights in diffusers' FluxTransformer2DModel, and as the node gives
it, against the plain sampling in diffusers."""

from __future__ import annotations

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_base
import comfy.ops
import comfy.supported_models
import comfy.utils
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.demo import config
from asyndm_pack.demo.model import FlowModel, build_transformer, flow_velocity, load_transformer, sample
from asyndm_pack.demo.sample import Settings, sample_demo
from asyndm_pack.nodes.comfy.families import family_of
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.demo_model import DemoModel, load_demo_model, transformer_state
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from comfy.ldm.flux.model import Flux

from nodes import CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode


@pytest.fixture(scope="module")
def reference() -> FlowModel:
    """Random weights, none of them zero."""
    torch.manual_seed(3)
    model = build_transformer()
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.transformer.requires_grad_(False)
    return model


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_flux_is_diffusers_flux(reference: FlowModel, height: int, width: int) -> None:
    flux = Flux(**config.comfy_transformer_config(), dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    flux.load_state_dict(transformer_state(reference.transformer.state_dict()))
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


PROMPT = "a green boat on the sea under two moons"


@pytest.fixture(scope="module")
def comfy_parts():
    """MODEL, CLIP and VAE, as the node gives them."""
    DemoModel.GET_SCHEMA()
    return DemoModel.execute("transformer").result


@pytest.fixture(scope="module")
def trained() -> FlowModel:
    """The same weights in diffusers and transformers."""
    return load_transformer()


def prompts(clip) -> tuple[list, list]:
    positive, negative = (CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
    return positive, negative


def test_the_text_is_the_transformers_own(comfy_parts, trained: FlowModel) -> None:
    """Its states are transformers', its pooled text is zeros; the other network's encoder has learned something else."""
    ((states, extra),) = prompts(comfy_parts[1])[0]
    torch.testing.assert_close(states, trained.encode_text([PROMPT]), atol=2e-5, rtol=1e-4)
    assert not extra["pooled_output"].any() and extra["pooled_output"].shape == (1, config.TEXT_WIDTH)
    assert (prompts(load_demo_model()[1])[0][0][0] - states).abs().mean() > 0.1


def test_stock_ksampler_draws_what_diffusers_draws(comfy_parts, trained: FlowModel) -> None:
    """CLIPTextEncode, Empty Latent Image (of 4 empty channels), KSampler, VAEDecode; on even steps from noise alone."""
    model, clip, vae = comfy_parts
    (out,) = KSampler().sample(model, 3, 8, 4.5, "euler", "simple", *prompts(clip), EmptyLatentImage().generate(128, 128, 1)[0])
    (picture,) = VAEDecode().decode(vae, out)
    expected = sample(trained, [PROMPT], 8, 4.5, 3).movedim(1, -1)
    assert expected.std() > 0.1
    torch.testing.assert_close(picture, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_asyndm_ksampler_without_strength_is_the_stock_one(comfy_parts, sampler: str) -> None:
    model, clip, _ = comfy_parts
    image = EmptyLatentImage().generate(128, 128, 2)[0]
    positive, negative = prompts(clip)
    (stock,) = KSampler().sample(model, 5, 4, 4.5, sampler, "simple", positive, negative, image)

    def ours(strength: float) -> torch.Tensor:
        mask = torch.zeros(1, 16, 16)
        mask[..., :8] = 1
        half = Regions((Target("boat", strength),), mask=mask, mask_mode="replace")
        AsynDMKSampler.GET_SCHEMA()
        settings = (TimestepMap(half, strength=strength), 5, 4, 4.5, sampler, "simple", positive, negative, image, 1.0)
        return AsynDMKSampler.execute(model, *settings).result[0]["samples"]

    assert torch.equal(ours(0.0), stock["samples"])
    assert (ours(0.7) - stock["samples"]).abs().max() > 0.1


def test_words_are_followed_as_without_comfyui(comfy_parts, trained: FlowModel) -> None:
    """Cross-Attention Mask, AsynDM KSampler and VAE Decode give the core's own run on diffusers' network, mask for mask."""
    model, clip, vae = comfy_parts
    CrossAttentionMask.GET_SCHEMA()
    positive, regions = CrossAttentionMask.execute(clip, PROMPT, "green boat, two moons:0.5", 1.0, "every step").result
    AsynDMKSampler.GET_SCHEMA()
    asked, image = TimestepMap(regions, strength=0.8), EmptyLatentImage().generate(128, 128, 1)[0]
    settings = (asked, 8, 6, 4.5, "euler", "simple", positive, prompts(clip)[1], image, 1.0)
    latent, masks = AsynDMKSampler.execute(model, *settings).result[:2]
    expected = sample_demo(trained, PROMPT, asked, [8], Settings(steps=6))
    torch.testing.assert_close(masks, expected.record.masks(16, 16)[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(VAEDecode().decode(vae, latent)[0], expected.images, atol=1e-3, rtol=1e-4)


def test_it_is_served(comfy_parts) -> None:
    """A row of the table is its: of an exact class, so that it is what ComfyUI runs."""
    assert family_of(comfy_parts[0].model.diffusion_model) is not None


def test_a_workflow_from_before_the_choice_has_the_unet() -> None:
    """The input is optional, and what is there without it is the UNet."""
    (network,) = DemoModel.define_schema().inputs
    assert network.optional and network.default == "unet"
    (without,) = DemoModel.execute().result[:1]
    assert isinstance(without.model.diffusion_model, comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel)
