"""The demo model in ComfyUI against the same weights in diffusers and transformers, and through stock nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asyndm_pack.demo import config
from asyndm_pack.demo.model import DemoModel, load
from asyndm_pack.demo.scorer import score
from asyndm_pack.demo.world import Claims, Promise
from asyndm_pack.nodes.demo_model import DemoModel as DemoModelNode
from asyndm_pack.nodes.demo_model import load_demo_model

from nodes import CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode, VAEDecodeTiled, VAEEncode

PROMPT = "a green boat on the sea under two moons"


@pytest.fixture(scope="module")
def comfy_parts():
    """MODEL, CLIP and VAE, as the node gives them."""
    return load_demo_model()


@pytest.fixture(scope="module")
def reference() -> DemoModel:
    """The same weights in diffusers and transformers."""
    return load()


def test_unet_is_diffusers_unet(comfy_parts, reference: DemoModel) -> None:
    model = comfy_parts[0]
    x = torch.randn(3, config.LATENT_CHANNELS, 16, 24, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([3.0, 450.0, 999.0])
    text = reference.encode_text([PROMPT, "", "three white cats in a room"])
    ours = model.model.diffusion_model(x, timesteps, context=text)
    torch.testing.assert_close(ours, reference.unet(x, timesteps, text).sample, atol=2e-5, rtol=1e-4)


def test_clip_is_transformers_text_model(comfy_parts, reference: DemoModel) -> None:
    for prompt in (PROMPT, "", "zebra, three cats!"):
        states = comfy_parts[1].encode_from_tokens(comfy_parts[1].tokenize(prompt))
        torch.testing.assert_close(states.float(), reference.encode_text([prompt]), atol=2e-5, rtol=1e-4)


def test_token_ids_weights_and_long_prompts(comfy_parts, reference: DemoModel) -> None:
    clip = comfy_parts[1]
    (chunk,) = clip.tokenize("a (green:1.3) boat", return_word_ids=True)["l"]
    expected = reference.tokenize(["a green boat"])[0].tolist()
    assert [token for token, _, _ in chunk] == expected
    assert [round(weight, 3) for _, weight, _ in chunk[:5]] == [1, 1, 1.3, 1, 1]
    plain, stressed = (clip.encode_from_tokens(clip.tokenize(text)) for text in ("a green boat", "a (green:1.3) boat"))
    assert not torch.allclose(plain, stressed)
    long = clip.tokenize(" ".join(["a red boat on the sea and"] * 20))["l"]
    assert [len(part) for part in long] == [config.MAX_TOKENS] * len(long) and len(long) > 1
    assert clip.encode_from_tokens({"l": long}).shape == (1, config.MAX_TOKENS * len(long), config.TEXT_WIDTH)


def test_vae_is_the_autoencoder(comfy_parts, reference: DemoModel) -> None:
    vae = comfy_parts[2]
    latents = torch.randn(2, config.LATENT_CHANNELS, 16, 12, generator=torch.Generator().manual_seed(2))
    (images,) = VAEDecode().decode(vae, {"samples": latents})
    expected = (reference.vae.decode(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-4)
    back = VAEEncode().encode(vae, images)[0]["samples"]
    torch.testing.assert_close(back, reference.vae.encode(images.movedim(-1, 1) * 2 - 1), atol=1e-4, rtol=1e-3)
    wide = torch.randn(1, config.LATENT_CHANNELS, 24, 24, generator=torch.Generator().manual_seed(3))
    (tiled,) = VAEDecodeTiled().decode(vae, {"samples": wide}, tile_size=128, overlap=64)
    assert (tiled - VAEDecode().decode(vae, {"samples": wide})[0]).abs().mean() < 0.02


def test_preview_colours_follow_the_picture(comfy_parts, reference: DemoModel) -> None:
    image = torch.zeros(1, 64, 64, 3)
    image[:, :, :32] = torch.tensor([0.9, 0.2, 0.2])
    image[:, :, 32:] = torch.tensor([0.2, 0.3, 0.9])
    latents = comfy_parts[2].encode(image)[0]
    form = comfy_parts[0].model.latent_format
    preview = latents.movedim(0, -1) @ torch.tensor(form.latent_rgb_factors) + torch.tensor(form.latent_rgb_factors_bias)
    left, right = preview[:, :4].mean((0, 1)), preview[:, 4:].mean((0, 1))
    assert left[0] > left[2] and right[2] > right[0]


def test_node_and_repeat_loads() -> None:
    DemoModelNode.GET_SCHEMA()
    first, second = (DemoModelNode.execute().result for _ in range(2))
    for a, b in zip(first[0].model.state_dict().values(), second[0].model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


EASY = [
    ("a red ball in a room", Claims("room", (Promise("ball", "red", 1),), ())),
    ("a white boat on the sea", Claims("sea", (Promise("boat", "white", 1),), ())),
    ("a green tree in a meadow", Claims("meadow", (Promise("tree", "green", 1),), ())),
    ("a white moon at night", Claims("night", (Promise("moon", "white", 1),), ())),
]


@pytest.mark.parametrize(("prompt", "claims"), EASY)
def test_stock_ksampler_shows_the_prompt(comfy_parts, prompt: str, claims: Claims) -> None:
    """CLIPTextEncode, Empty Latent Image (of 4 empty channels), KSampler, VAEDecode: 2 of 3 seeds at the least."""
    model, clip, vae = comfy_parts
    positive, negative = (CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
    latent = EmptyLatentImage().generate(128, 128, 1)[0]
    shown = 0
    for seed in (1, 2, 3):
        (out,) = KSampler().sample(model, seed, 20, 4.5, "euler", "normal", positive, negative, latent)
        assert out["samples"].shape == (1, config.LATENT_CHANNELS, 16, 16)
        picture = VAEDecode().decode(vae, out)[0][0]
        result = score((picture.numpy() * 255).round().astype(np.uint8), claims)
        shown += result.objects_right and result.place_right
    assert shown >= 2
