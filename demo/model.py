"""The demo model's parts in diffusers and transformers: tokenizer, text encoder, UNet and autoencoder.

`build()` makes them with fresh weights (for training), `load()` with the weights that ship in demo/weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .config import (
    BETA_END,
    BETA_START,
    END,
    LATENT_CHANNELS,
    MAX_TOKENS,
    START,
    TOKENIZER,
    TRAIN_STEPS,
    WEIGHTS,
    part_of,
    text_config,
    unet_config,
)
from .vae import DemoVAE
from .world import vocabulary


@dataclass
class DemoModel:
    """The four parts. The latents have 12 channels, 1/8 of the picture's size and about unit spread."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: DemoVAE

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts -> token ids (B, 77)."""
        return tokenize(self.tokenizer, prompts)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> text states (B, 77, 128), after the final layer norm."""
        return self.text_encoder(input_ids=self.tokenize(prompts)).last_hidden_state


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


def build(tokenizer_folder: Path = TOKENIZER) -> DemoModel:
    """The four parts with fresh weights."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    text_encoder = CLIPTextModel(CLIPTextConfig(**text_config(tokenizer_folder)))
    return DemoModel(tokenizer, text_encoder, UNet2DConditionModel(**unet_config()), DemoVAE())


def load(path: Path = WEIGHTS) -> DemoModel:
    """The demo model in float32, ready for use. Raises FileNotFoundError where the weights are missing."""
    model = build()
    state = load_file(path)
    for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder), ("vae", model.vae)):
        weights = part_of(state, name + ".")
        if "text_model.final_layer_norm.weight" in part.state_dict():  # the names of transformers before 5
            weights = {"text_model." + key: value for key, value in weights.items()}
        part.load_state_dict(weights)
        part.eval().requires_grad_(False)
    return model


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
def sample(model: DemoModel, prompts: list[str], steps: int = 20, cfg: float = 4.5, seed: int = 0) -> Tensor:
    """Plain synchronous sampling (Euler, classifier-free guidance): prompts -> images (B, 3, 128, 128) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = model.unet.config.sample_size
    text = torch.cat([model.encode_text(prompts), model.encode_text([""]).expand(len(prompts), -1, -1)])
    levels = sigmas(steps)
    timesteps = torch.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1].round().long()
    x = torch.randn(len(prompts), LATENT_CHANNELS, size, size, generator=generator) * (1 + levels[0] ** 2).sqrt()
    for sigma, following, timestep in zip(levels[:-1], levels[1:], timesteps, strict=True):
        scale = (1 + sigma**2).sqrt()
        velocity = model.unet((x / scale).repeat(2, 1, 1, 1), timestep, text, return_dict=False)[0]
        cond, uncond = velocity.chunk(2)
        velocity = uncond + cfg * (cond - uncond)
        denoised = x / scale**2 - velocity * sigma / scale
        x = denoised + (x - denoised) * (following / sigma)
    return (model.vae.decode(x) / 2 + 0.5).clamp(0, 1)
