"""The inpainting benchmark's peers against ComfyUI's own nodes: the same model, drawing, hole, noise and table of sigmas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from asyndm_pack.nodes.demo_model import load_demo_model
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

from asyndm_core.hosts.diffusers import make_clock
from benchmarks.inpainting.__main__ import sample_arm
from benchmarks.inpainting.arms import ARMS, PEERS, latent_holes
from benchmarks.inpainting.cases import Case, choose_cases
from benchmarks.inpainting.peers import soft_edge
from demo.config import LATENT_CHANNELS
from demo.model import alphas_cumprod, load
from demo.sample import Settings, seeded_noise, timesteps
from nodes import CLIPTextEncode, SetLatentNoiseMask, VAEEncode, VAEEncodeForInpaint

STEPS, CFG, SEED = 5, 4.5, 3

Given = tuple[Any, dict]
"""A MODEL and a LATENT."""


def set_latent_noise_mask(model: Any, vae: Any, image: torch.Tensor, case: Case) -> Given:
    hole = torch.from_numpy(case.mask()).float()[None]
    return model, SetLatentNoiseMask().set_mask(VAEEncode().encode(vae, image)[0], hole)[0]


def vae_encode_for_inpainting(model: Any, vae: Any, image: torch.Tensor, case: Case) -> Given:
    return model, VAEEncodeForInpaint().encode(vae, image, torch.from_numpy(case.mask()).float()[None], 6)[0]


def differential_diffusion(model: Any, vae: Any, image: torch.Tensor, case: Case) -> Given:
    latent = VAEEncode().encode(vae, image)[0]
    return DifferentialDiffusion.execute(model).result[0], {**latent, "noise_mask": soft_edge(latent_holes([case]))}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("synchronous, noised", set_latent_noise_mask),
        ("VAE Encode (for Inpainting)", vae_encode_for_inpainting),
        ("Differential Diffusion", differential_diffusion),
    ],
)
def test_an_arm_is_what_comfyui_does(name: str, make: Callable[..., Given]) -> None:
    (case,) = choose_cases("replace", 1, 8)
    (arm,) = [arm for arm in (*ARMS, *PEERS) if arm.name == name]
    with torch.no_grad():
        (ours,) = sample_arm(arm, load(), [case], [SEED], Settings(STEPS, CFG))
    model, clip, vae = load_demo_model()
    model, latent = make(model, vae, torch.tensor(case.drawing)[None] / 255, case)
    positive, negative = (CLIPTextEncode().encode(clip, text)[0] for text in (case.scene.prompt(), ""))
    noise = next(seeded_noise([SEED], (LATENT_CHANNELS, 16, 16)))
    sigmas = make_clock(alphas_cumprod(), timesteps(STEPS)).sigmas
    samples = comfy.sample.sample_custom(
        model, noise, CFG, comfy.samplers.sampler_object("euler"), sigmas, positive, negative, latent["samples"],
        noise_mask=latent["noise_mask"], disable_pbar=True,
    )  # fmt: skip
    theirs = (vae.decode(samples)[0].clamp(0, 1) * 255).round().numpy()
    off = np.abs(ours.astype(float) - theirs)
    assert off.mean() < 0.3 and off.max() <= 8
    other = ARMS[0] if arm is not ARMS[0] else PEERS[1]
    with torch.no_grad():
        (another,) = sample_arm(other, load(), [case], [SEED], Settings(STEPS, CFG))
    assert np.abs(ours.astype(float) - another).max() > 8
