"""The demo models' parts in diffusers and transformers: tokenizer, text encoder, UNet or transformer, autoencoder.

`build()` makes them with fresh weights (for training), `load()` with the weights that ship in demo/weights.
`build_transformer()` and `load_transformer()` do the same for the second network of the same world and autoencoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from asyndm_core.hosts.diffusers_transformers import FAMILIES

from .config import (
    BETA_END,
    BETA_START,
    END,
    FACTOR,
    LATENT_CHANNELS,
    MAX_TOKENS,
    PICTURE_SIZE,
    START,
    TEXT_WIDTH,
    TOKENIZER,
    TRAIN_STEPS,
    TRANSFORMER_WEIGHTS,
    WEIGHTS,
    part_of,
    text_config,
    transformer_config,
    unet_config,
)
from .vae import DemoVAE
from .world import vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Parts:
    """What both demo models have. The latents have 12 channels, 1/8 of the picture's size and about unit spread."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: DemoVAE

    def to(self, device: str) -> Self:
        """The same model, on this device."""
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts -> token ids (B, 77)."""
        return tokenize(self.tokenizer, prompts)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> text states (B, 77, 128), after the final layer norm."""
        return self.text_encoder(input_ids=self.tokenize(prompts).to(self.text_encoder.device)).last_hidden_state


@dataclass
class DemoModel(Parts):
    """The demo model: a UNet that predicts v."""

    unet: UNet2DConditionModel


@dataclass
class FlowModel(Parts):
    """The second demo model: a flow-matching transformer with joint attention."""

    transformer: FluxTransformer2DModel


# --- tokenizer -----------------------------------------------------------------------------------------------------


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of bytes that byte-level BPE vocabularies use (GPT-2, CLIP)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + n for n in range(256 - len(plain))]
    return [chr(n) for n in [*plain, *others]]


def _merge(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte pair encoding of one word with ranked merges."""
    rank = {pair: n for n, pair in enumerate(merges)}
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        first, second = min(pairs, key=rank.__getitem__)
        merged: list[str] = []
        while pieces:
            if pieces[:2] == [first, second]:
                merged.append(first + second)
                pieces = pieces[2:]
            else:
                merged.append(pieces[0])
                pieces = pieces[1:]
        pieces = merged


def build_tokenizer_files(folder: Path) -> None:
    """Writes CLIP tokenizer files whose merges make every word of the world exactly one token."""
    folder.mkdir(parents=True, exist_ok=True)
    merges: list[tuple[str, str]] = []
    for word in sorted(vocabulary(), key=lambda word: (len(word), word)):
        pieces = _merge([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merge(pieces, merges)
    letters = _byte_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}, indent=0))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Prompts -> token ids (B, 77), padded with the end token, cut where longer."""
    batch = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch["input_ids"]


# --- the parts -----------------------------------------------------------------------------------------------------


def build_parts(tokenizer_folder: Path = TOKENIZER) -> tuple[CLIPTokenizer, CLIPTextModel, DemoVAE]:
    """Tokenizer, text encoder and autoencoder with fresh weights."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    return tokenizer, CLIPTextModel(CLIPTextConfig(**text_config(tokenizer_folder))), DemoVAE()


def build() -> DemoModel:
    """The demo model with fresh weights."""
    return DemoModel(*build_parts(), UNet2DConditionModel(**unet_config()))


def build_transformer() -> FlowModel:
    """The second demo model with fresh weights; its blocks begin as identities."""
    transformer = FluxTransformer2DModel(**transformer_config())
    modulations = [module for name, module in transformer.named_modules() if name.endswith(("norm.linear", "norm1.linear",
                   "norm1_context.linear", "norm_out.linear"))]  # fmt: skip
    for layer in [*modulations, transformer.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return FlowModel(*build_parts(), transformer)


def load(path: Path = WEIGHTS) -> DemoModel:
    """The demo model in float32, ready for use. Raises FileNotFoundError where the weights are missing."""
    model = build()
    state = load_file(path)
    _fill({"unet": model.unet, "text_encoder": model.text_encoder, "vae": model.vae}, state)
    return model


def load_transformer(path: Path = TRANSFORMER_WEIGHTS, vae_path: Path = WEIGHTS) -> FlowModel:
    """The second demo model in float32, with the autoencoder of the first. Raises FileNotFoundError likewise."""
    model = build_transformer()
    _fill({"transformer": model.transformer, "text_encoder": model.text_encoder}, load_file(path))
    _fill({"vae": model.vae}, load_file(vae_path))
    return model


LOADERS: dict[str, Callable[..., DemoModel | FlowModel]] = {"unet": load, "transformer": load_transformer}
"""By the name of their network."""


def _fill(parts: dict[str, nn.Module], state: dict[str, Tensor]) -> None:
    for name, part in parts.items():
        weights = part_of(state, name + ".")
        if "text_model.final_layer_norm.weight" in part.state_dict():  # the names of transformers before 5
            weights = {"text_model." + key: value for key, value in weights.items()}
        part.load_state_dict(weights)
        part.eval().requires_grad_(False)


def flow_prompt(states: Tensor) -> dict[str, Tensor]:
    """What the transformer is told of a text (B, 77, 128): its states, and zeros for pooled text."""
    return {"encoder_hidden_states": states, "pooled_projections": torch.zeros(len(states), TEXT_WIDTH, device=states.device)}


def flow_velocity(transformer: nn.Module, x: Tensor, times: Tensor, states: Tensor) -> Tensor:
    """The transformer's velocity (noise less picture) at noisy latents x (B, 12, h, w), times (B,) in [0, 1]."""
    return FAMILIES["FluxTransformer2DModel"].velocity(transformer, x, times, flow_prompt(states), 1)


# --- noise ---------------------------------------------------------------------------------------------------------


def alphas_cumprod() -> Tensor:
    """The cumulative product of 1 - beta, (1000,): 'scaled linear' betas as in latent diffusion."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def sigmas(steps: int) -> Tensor:
    """Noise levels of `steps` evenly spaced timesteps from 999 down, and a final 0: (steps + 1,)."""
    alphas = alphas_cumprod()
    table = ((1 - alphas) / alphas).sqrt()
    timesteps = torch.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1].round().long()
    return torch.cat([table[timesteps], torch.zeros(1)])


@torch.no_grad()
def sample(
    model: DemoModel | FlowModel, prompts: list[str], steps: int = 20, cfg: float = 4.5, seed: int = 0, shift: float = 1.0
) -> Tensor:
    """Plain synchronous sampling (Euler, classifier-free guidance): prompts -> images (B, 3, 128, 128) in [0, 1].

    shift: of the transformer's noise levels, s t / (1 + (s - 1) t); above 1 more steps are taken at high noise.
    """
    device = model.text_encoder.device
    noise = torch.randn(len(prompts), LATENT_CHANNELS, *2 * (PICTURE_SIZE // FACTOR,), generator=_generator(seed)).to(device)
    text = torch.cat([model.encode_text(prompts), model.encode_text([""]).expand(len(prompts), -1, -1)])
    x = _sample_flow(model, noise, text, steps, cfg, shift) if isinstance(model, FlowModel) else _sample_v(
        model, noise, text, steps, cfg)  # fmt: skip
    return (model.vae.decode(x) / 2 + 0.5).clamp(0, 1).cpu()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _guided(cond_and_uncond: Tensor, cfg: float) -> Tensor:
    cond, uncond = cond_and_uncond.chunk(2)
    return uncond + cfg * (cond - uncond)


def _sample_v(model: DemoModel, noise: Tensor, text: Tensor, steps: int, cfg: float) -> Tensor:
    levels = sigmas(steps).tolist()
    timesteps = torch.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1].round().long().tolist()
    x = noise * (1 + levels[0] ** 2) ** 0.5
    for sigma, following, timestep in zip(levels[:-1], levels[1:], timesteps, strict=True):
        scale = (1 + sigma**2) ** 0.5
        velocity = _guided(model.unet((x / scale).repeat(2, 1, 1, 1), timestep, text, return_dict=False)[0], cfg)
        denoised = x / scale**2 - velocity * sigma / scale
        x = denoised + (x - denoised) * (following / sigma)
    return x


def _sample_flow(model: FlowModel, x: Tensor, text: Tensor, steps: int, cfg: float, shift: float) -> Tensor:
    times = torch.linspace(1, 0, steps + 1)
    times = shift * times / (1 + (shift - 1) * times)
    for time, following in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        velocity = flow_velocity(
            model.transformer, x.repeat(2, 1, 1, 1), torch.full((2 * len(x),), time, device=x.device), text
        )
        x = x + (following - time) * _guided(velocity, cfg)
    return x
