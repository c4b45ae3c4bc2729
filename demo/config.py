"""The demo model's one configuration, in the words of transformers, diffusers and ComfyUI, and where its files are.

Imports nothing heavier than json: both `model.py` (diffusers) and the pack's node (ComfyUI) read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "weights"
WEIGHTS = FOLDER / "demo_model.safetensors"
TRANSFORMER_WEIGHTS = FOLDER / "demo_transformer.safetensors"
TOKENIZER = FOLDER / "tokenizer"

PICTURE_SIZE = 128
"""Width and height in pixels of the pictures it was trained on."""
FACTOR = 8
"""Pixels per latent pixel."""
LATENT_CHANNELS = 12

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
TEXT_WIDTH = 128
TEXT_LAYERS = 2
TEXT_HEADS = 4

CHANNELS = (56, 112)
LAYERS = 1
HEAD_CHANNELS = 28
NORM_GROUPS = 8

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012

HEADS = 4
HEAD_AXES = (8, 12, 12)
"""Of the transformer: channels of a head that turn with a token's index, row and column."""
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 6


def text_config(tokenizer_folder: Path = TOKENIZER) -> dict[str, Any]:
    """The text encoder's configuration, for transformers' CLIPTextConfig and for ComfyUI's SDClipModel alike."""
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    return {
        "vocab_size": len(vocab),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocab[START],
        "eos_token_id": vocab[END],
        "pad_token_id": vocab[END],
    }


def unet_config() -> dict[str, Any]:
    """The UNet's configuration, for diffusers' UNet2DConditionModel."""
    return {
        "sample_size": PICTURE_SIZE // FACTOR,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D",) * len(CHANNELS),
        "up_block_types": ("CrossAttnUpBlock2D",) * len(CHANNELS),
        "block_out_channels": CHANNELS,
        "layers_per_block": LAYERS,
        "cross_attention_dim": TEXT_WIDTH,
        # diffusers reads this as the number of heads of each level
        "attention_head_dim": tuple(channels // HEAD_CHANNELS for channels in CHANNELS),
        "norm_num_groups": NORM_GROUPS,
        "use_linear_projection": False,
    }


def comfy_unet_config() -> dict[str, Any]:
    """The same UNet, for ComfyUI's UNetModel (its GroupNorm must be told NORM_GROUPS by the operations class)."""
    levels = len(CHANNELS)
    return {
        "image_size": PICTURE_SIZE // FACTOR,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": CHANNELS[0],
        "channel_mult": [channels // CHANNELS[0] for channels in CHANNELS],
        "num_res_blocks": [LAYERS] * levels,
        "transformer_depth": [1] * (LAYERS * levels),
        "transformer_depth_output": [1] * ((LAYERS + 1) * levels),
        "transformer_depth_middle": 1,
        "num_heads": -1,
        "num_head_channels": HEAD_CHANNELS,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "context_dim": TEXT_WIDTH,
        "legacy": False,
        "adm_in_channels": None,
    }


def transformer_config() -> dict[str, Any]:
    """The transformer's configuration, for diffusers' FluxTransformer2DModel. It gets no pooled text: zeros."""
    return {
        "patch_size": 1,
        "in_channels": LATENT_CHANNELS,
        "num_layers": DOUBLE_BLOCKS,
        "num_single_layers": SINGLE_BLOCKS,
        "attention_head_dim": sum(HEAD_AXES),
        "num_attention_heads": HEADS,
        "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "guidance_embeds": False,
        "axes_dims_rope": HEAD_AXES,
    }


def comfy_transformer_config() -> dict[str, Any]:
    """The same transformer, for ComfyUI's Flux."""
    return {
        "image_model": "flux",
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "patch_size": 1,
        "hidden_size": HEADS * sum(HEAD_AXES),
        "num_heads": HEADS,
        "axes_dim": list(HEAD_AXES),
        "depth": DOUBLE_BLOCKS,
        "depth_single_blocks": SINGLE_BLOCKS,
        "context_in_dim": TEXT_WIDTH,
        "vec_in_dim": TEXT_WIDTH,
        "txt_ids_dims": [],
        "mlp_ratio": 4.0,
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": False,
    }


def part_of(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """One part of the weights' file: the tensors whose names begin with the prefix, without it, in float32."""
    return {name[len(prefix) :]: value.float() for name, value in state.items() if name.startswith(prefix)}
