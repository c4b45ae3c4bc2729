"""Arms that other nodes of ComfyUI make: the demo model in real ComfyUI, patched by them, on the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from asyndm_core.hosts.diffusers import make_clock
from demo.config import FACTOR, LATENT_CHANNELS
from demo.model import Parts, alphas_cumprod
from demo.sample import seeded_noise, timesteps
from demo.world import Scene

from ..real_comfyui import load_pack
from .arms import Arm


@cache
def _demo_model() -> tuple[Any, Any]:
    """MODEL and CLIP of the node AsynDM Demo Model."""
    load_pack()
    from asyndm_pack.nodes.demo_model import load_demo_model

    return load_demo_model()[:2]


def _patched(model: Any, peer: str) -> Any:
    """The MODEL after the peer's node, with the node's default values."""
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    if peer == "pag":
        return PerturbedAttentionGuidance.execute(model, scale=3.0).result[0]
    if peer == "freeu":
        return FreeU_V2.execute(model, b1=1.3, b2=1.4, s1=0.9, s2=0.2).result[0]
    return model


def peer_latents(arm: Arm, model: Parts, scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
    """As ``sampling.latents_of``, sampled by ComfyUI: the same noise and sigmas, one row of the conditioning a scene."""
    patcher, clip = _demo_model()
    import comfy.sample
    import comfy.samplers

    settings = arm.settings
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(scene.prompt()))[0][0] for scene in scenes]
    positive = [[torch.cat(texts), {}]]
    negative = [[clip.encode_from_tokens_scheduled(clip.tokenize(settings.negative))[0][0], {}]]
    shape = (LATENT_CHANNELS, settings.height // FACTOR, settings.width // FACTOR)
    noise = next(seeded_noise(seeds, shape))
    sigmas = make_clock(alphas_cumprod(), timesteps(settings.steps)).sigmas
    return comfy.sample.sample_custom(
        _patched(patcher, arm.peer or ""), noise, settings.cfg, comfy.samplers.ksampler(settings.sampler), sigmas, positive,
        negative, torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip
