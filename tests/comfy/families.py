"""Tiny random diffusion transformers of ComfyUI's own classes, as ComfyUI makes them from a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taehv
import comfy.taesd.taesd
import pytest
import torch
from tiny import patcher
from torch import Tensor, nn

TOKENS, TEXT = 19, 40
"""Tokens of a prompt, and channels of each."""


class Tiny(NamedTuple):
    """A model of a family: the class of comfy.supported_models, its network, and latents (channels, height, width).

    framed: ComfyUI's latents of it have a dimension of frames; frames: how many. more: what its conditioning has besides the
    text. width: the channels of the text. whole: tested only when all is.
    """

    kind: str
    network: Mapping[str, Any]
    latents: tuple[int, int, int] = (16, 12, 16)
    framed: bool = False
    frames: int = 1
    more: Callable[[], dict[str, Any]] = dict
    width: int = TEXT
    tokens: int = TOKENS
    whole: bool = True


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pooled() -> dict[str, Any]:
    return {"pooled_output": random(1, 24, seed=2)}


def references(*shapes: tuple[int, ...], **more: Any) -> Callable[[], dict[str, Any]]:
    """Conditioning with reference latents of these shapes."""
    return lambda: {"reference_latents": [random(*shape, seed=3 + n) for n, shape in enumerate(shapes)], **more}


LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": TEXT, "n_layers": 2, "n_refiner_layers": 2,
    "qk_norm": True, "axes_lens": [300, 512, 512], "multiple_of": 32, "axes_dims": [8, 12, 12],
}  # fmt: skip
LUMINA2 = {**LUMINA, "dim": 96, "n_heads": 3, "n_kv_heads": 1, "ffn_dim_multiplier": 1.0}
Z_IMAGE = {
    **LUMINA, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "rope_theta": 256.0, "pad_tokens_multiple": 32,
}  # fmt: skip
Z_PIXEL = {
    **Z_IMAGE, "image_model": "zimage_pixel", "patch_size": 4, "in_channels": 3, "decoder_hidden_size": 24,
    "decoder_num_res_blocks": 2, "decoder_max_freqs": 4, "use_x0": True,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2.0,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [], "vec_in_dim": 24, "context_in_dim": TEXT,
}  # fmt: skip
FLUX2 = {
    **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "global_modulation": True,
    "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
    "txt_ids_dims": [3], "axes_dim": [8, 8, 8, 8], "vec_in_dim": None,
}  # fmt: skip
PLAIN_FLUX = {**FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
    "joint_attention_dim": TEXT, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 24,
    "num_patches": 4096, "pos_embed_max_size": 64, "pos_embed_scaling_factor": None, "qk_norm": "rms", "num_blocks": 3,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}},
}  # fmt: skip
KREA = {
    "image_model": "krea2", "features": 96, "tdim": 32, "txtdim": 20, "heads": 3, "kvheads": 1, "multiplier": 2, "layers": 3,
    "patch": 2, "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 96, "num_blocks": 2, "num_heads": 2,
    "concat_padding_mask": True, "crossattn_emb_channels": TEXT, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 16,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip
MAGE = {**QWEN, "image_model": "mage_flow", "in_channels": 128, "out_channels": 128}
HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12], "caption_channels": [TEXT, 44],
    "in_channels": 16, "llama_layers": [0, 1, 2, 1], "max_resolution": [128, 128], "num_activated_experts": 2,
    "num_attention_heads": 2, "num_layers": 2, "num_routed_experts": 4, "num_single_layers": 2, "out_channels": 16,
    "patch_size": 2, "text_emb_dim": 24,
}  # fmt: skip


def llama() -> dict[str, Any]:
    return {**pooled(), "conditioning_llama3": random(1, 3, 23, 44)}


OMNIGEN2 = {
    "image_model": "omnigen2", "axes_dim_rope": [8, 12, 12], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
    "hidden_size": 96, "in_channels": 16, "multiple_of": 32, "norm_eps": 1e-5, "num_attention_heads": 3, "num_kv_heads": 1,
    "num_layers": 2, "num_refiner_layers": 2, "out_channels": None, "patch_size": 2, "text_feat_dim": TEXT,
    "timestep_scale": 1000.0,
}  # fmt: skip
BOOGU = {
    **{key: value for key, value in OMNIGEN2.items() if key != "text_feat_dim"}, "image_model": "boogu",
    "num_double_stream_layers": 2, "instruction_feat_dim": TEXT,
}  # fmt: skip
EVERY_TOKEN = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}
CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2.0,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "txt_ids_dims": [], "vec_in_dim": None, "context_in_dim": TEXT, "in_dim": 64, "out_dim": 64, "hidden_dim": 80,
    "n_layers": 2,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 8, "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "linear",
    "nerf_embedder_dtype": torch.float32, "use_x0": True, "use_sequential_txt_ids": False,
}  # fmt: skip
HUNYUAN_IMAGE = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": TEXT,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 16],
    "theta": 256, "patch_size": [1, 1], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 96, "out_dim": 16, "num_heads": 2, "ffn_dim": 128, "num_layers": 2,
    "patch_size": (1, 2, 2), "freq_dim": 32, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    "in_dim": 16, "text_dim": TEXT,
}  # fmt: skip
KANDINSKY = {
    "image_model": "kandinsky5", "model_dim": 96, "ff_dim": 128, "in_text_dim": TEXT, "in_text_dim2": 24, "time_dim": 32,
    "num_text_blocks": 2, "num_visual_blocks": 2, "axes_dims": (8, 12, 12), "in_visual_dim": 16, "out_visual_dim": 16,
    "visual_embed_dim": 64,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "hidden_size": 72, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 4,
    "caption_channels": TEXT, "model_max_length": TOKENS, "micro_condition": False, "pe_interpolation": 1,
}  # fmt: skip
HUNYUAN_DIT = {
    "image_model": "hydit1", "hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": TEXT, "text_states_dim_t5": 48,
    "text_len": TOKENS, "text_len_t5": 24, "size_cond": True, "use_style_cond": True, "mlp_ratio": 2.0,
}  # fmt: skip


def two_encoders() -> dict[str, Any]:
    masks = {"attention_mask": torch.ones(1, TOKENS), "attention_mask_mt5xl": torch.ones(1, 24)}
    return {**masks, "conditioning_mt5xl": random(1, 24, 48)}


FAMILIES: dict[str, Tiny] = {
    "Z-Image": Tiny("ZImage", Z_IMAGE, whole=False),
    "Z-Image omni": Tiny(
        "ZImage", {**Z_IMAGE, "siglip_feat_dim": 20},
        more=references((1, 16, 10, 14), reference_latents_text_embeds=[random(1, 21, TEXT)]),
    ),
    "Z-Image pixel": Tiny("ZImagePixelSpace", Z_PIXEL, (3, 24, 32)),
    "Flux.1 dev": Tiny("Flux", FLUX, more=pooled, whole=False),
    "Flux.1 schnell": Tiny("FluxSchnell", {**FLUX, "guidance_embed": False}, more=pooled),
    "Flux.1, patch 1": Tiny("Flux", {**FLUX, "patch_size": 1}, more=pooled),
    "Flux.1 Kontext": Tiny("Flux", FLUX, more=lambda: {**pooled(), **references((1, 16, 12, 10))()}),
    "Flux.1 Fill": Tiny(
        "FluxInpaint", {**FLUX, "in_channels": 96},
        more=lambda: {**pooled(), "concat_latent_image": random(1, 16, 12, 16), "concat_mask": torch.ones(1, 1, 12, 16)},
    ),
    "LongCat-Image": Tiny("LongCatImage", PLAIN_FLUX),
    "Ovis-Image": Tiny("Flux", {**PLAIN_FLUX, "yak_mlp": True, "txt_norm": True}, more=pooled),
    "Qwen-Image": Tiny("QwenImage", QWEN, framed=True, whole=False),
    "Qwen-Image-Edit": Tiny("QwenImage", QWEN, framed=True, more=references((1, 16, 1, 12, 10), (1, 16, 1, 9, 12))),
    "Qwen-Image-Edit 2511": Tiny(
        "QwenImage", {**QWEN, "default_ref_method": "index_timestep_zero"}, framed=True, more=references((1, 16, 1, 12, 10))
    ),
    "Stable Diffusion 3": Tiny("SD3", SD3, more=pooled, whole=False),
    "Stable Diffusion 3.5 medium": Tiny("SD3", {**SD3, "x_block_self_attn_layers": [0, 1]}, more=pooled),
    "Flux.2 dev": Tiny("Flux2", FLUX2, (128, 12, 16), more=pooled, whole=False),
    "Flux.2 Klein": Tiny("Flux2", {**FLUX2, "guidance_embed": False}, (128, 12, 16), more=pooled),
    "Flux.2 with references": Tiny("Flux2", FLUX2, (128, 12, 16), more=references((1, 128, 8, 9), **pooled())),
    "Krea 2": Tiny("Krea2", KREA, framed=True, width=60, whole=False),
    "Krea 2 with references": Tiny(
        "Krea2", {**KREA, "default_ref_method": "index_timestep_zero"}, framed=True, width=60,
        more=references((1, 16, 1, 12, 10)),
    ),
    "Anima": Tiny("Anima", {**COSMOS, "image_model": "anima"}, framed=True),
    "Cosmos Predict2": Tiny("CosmosT2IPredict2", COSMOS, framed=True),
    "Mage-Flow": Tiny("MageFlow", MAGE, (128, 12, 16)),
    "Mage-Flow with references": Tiny("MageFlow", MAGE, (128, 12, 16), more=references((1, 128, 7, 9))),
    "HiDream-I1": Tiny("HiDream", HIDREAM, (16, 20, 24), more=llama),
    "HiDream-E1": Tiny(
        "HiDream", HIDREAM, (16, 20, 24), more=lambda: {**llama(), "concat_latent_image": random(1, 16, 20, 24)}
    ),
    "Lumina2": Tiny("Lumina2", LUMINA2),
    "NewBie": Tiny("Lumina2", {**LUMINA2, "clip_text_dim": 24}, more=pooled),
    "OmniGen2": Tiny("Omnigen2", OMNIGEN2, more=lambda: EVERY_TOKEN),
    "OmniGen2 with references": Tiny("Omnigen2", OMNIGEN2, more=references((1, 16, 10, 14), **EVERY_TOKEN)),
    "Boogu": Tiny("Boogu", BOOGU, more=references((1, 16, 10, 14), **EVERY_TOKEN)),
    "ERNIE-Image": Tiny("ErnieImage", {
        "image_model": "ernie", "hidden_size": 96, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 128,
        "in_channels": 128, "out_channels": 128, "text_in_dim": TEXT, "rope_axes_dim": (16, 16, 16),
    }, (128, 12, 16)),
    "Chroma": Tiny("Chroma", CHROMA, more=pooled),
    "Chroma Radiance": Tiny("ChromaRadiance", RADIANCE, (3, 48, 64), more=pooled),
    "HunyuanImage 2.1": Tiny("HunyuanImage21", HUNYUAN_IMAGE, (64, 12, 16)),
    "Kandinsky 5 Image": Tiny("Kandinsky5Image", KANDINSKY, more=pooled),
    "AuraFlow": Tiny("AuraFlow", {
        "cond_seq_dim": TEXT, "max_seq": 1024, "dim": 64, "n_layers": 4, "n_double_layers": 2, "n_heads": 2,
        "global_conddim": 64,
    }, (4, 12, 16)),
    "PixArt Sigma": Tiny("PixArtSigma", PIXART, (4, 40, 32)),
    "PixArt Alpha": Tiny("PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "micro_condition": True}, (4, 40, 32)),
    "HunyuanDiT": Tiny("HunyuanDiT1", HUNYUAN_DIT, (4, 12, 16), more=two_encoders),
    "PixelDiT": Tiny("PixelDiTT2I", {
        "image_model": "pixeldit_t2i", "hidden_size": 64, "num_groups": 2, "pixel_hidden_size": 8,
        "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 2, "patch_size": 8,
        "txt_embed_dim": TEXT,
    }, (3, 48, 64)),
    "Ideogram 4": Tiny("Ideogram4", {
        "image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
        "intermediate_size": 96, "adaln_dim": 24, "llm_features_dim": TEXT, "mrope_section": (8, 4, 4),
    }, (128, 12, 16)),
    "Lens": Tiny("Lens", {
        "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "enc_hidden_dim": 20, "axes_dims_rope": (8, 12, 12), "multi_layer_encoder_feature": True,
        "selected_layer_index": (0, 1),
    }, (128, 12, 16)),
    "Wan 2.1 and 2.2, a single frame": Tiny("WAN21_T2V", WAN, framed=True),
    "JoyImage": Tiny("JoyImage", {
        "image_model": "joyimage", "in_channels": 16, "hidden_size": 64, "num_attention_heads": 2, "text_dim": TEXT,
        "num_layers": 2, "rope_dim_list": [8, 12, 12], "patch_size": [1, 2, 2],
    }, framed=True, more=references((1, 16, 1, 10, 14))),
}  # fmt: skip
"""What docs/compatibility.md names."""

WAN_22 = {**WAN, "in_dim": 48, "out_dim": 48}
HUNYUAN_VIDEO = {
    **HUNYUAN_IMAGE,
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "axes_dim": [8, 12, 12],
    "patch_size": [1, 2, 2],
}
HUNYUAN_15 = {
    **HUNYUAN_VIDEO, "vec_in_dim": None, "patch_size": [1, 1, 1], "in_channels": 65, "out_channels": 32, "byt5": True,
    "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True, "guidance_embed": False,
}  # fmt: skip
COSMOS_1 = {
    **{key: value for key, value in COSMOS.items() if key not in ("min_fps", "max_fps", "rope_enable_fps_modulation")},
    "image_model": "cosmos", "block_config": "FA-CA-MLP", "pos_emb_learnable": False, "block_x_format": "THWBD",
    "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
    "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0, "rope_t_extrapolation_ratio": 2.0,
    "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 2.0,
}  # fmt: skip
COGVIDEO = {
    "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16, "out_channels": 16,
    "time_embed_dim": 32, "text_embed_dim": TEXT, "num_layers": 2, "max_text_seq_length": TOKENS, "patch_size": 2,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
MOCHI = {
    "image_model": "mochi_preview", "depth": 3, "patch_size": 2, "num_heads": 2, "hidden_size_x": 64, "hidden_size_y": 48,
    "mlp_ratio_x": 192.0, "mlp_ratio_y": 128.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
    "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True,
    "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": TEXT, "t5_token_length": TOKENS,
    "rope_theta": 10000.0,
}  # fmt: skip
FRAMES = 3


class Vision(NamedTuple):
    """What ComfyUI has of a picture that CLIP has seen."""

    penultimate_hidden_states: Tensor
    last_hidden_state: Tensor


def vision(**more: Any) -> Callable[[], dict[str, Any]]:
    """Conditioning with a picture that CLIP has seen."""
    seen = Vision(random(1, 257, 1280, seed=4), random(1, 30, 1152, seed=4))
    return lambda: {"clip_vision_output": seen, **more}


def clip(kind: str, network: Mapping[str, Any], channels: int = 16, **more: Any) -> Tiny:
    """A model of clips; three frames, if not said otherwise."""
    return Tiny(kind, network, (channels, 12, 16), framed=True, **{"frames": FRAMES, **more})


def frame(*shape: int) -> Tensor:
    return random(1, *shape, seed=3)


CLIPS: dict[str, Tiny] = {
    "Wan 2.1 and 2.2 T2V": clip("WAN21_T2V", WAN, whole=False),
    "Wan 2.1 and 2.2 I2V": clip(
        "WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, more=vision(concat_latent_image=frame(16, FRAMES, 12, 16))
    ),
    "Wan Fun with a reference": clip(
        "WAN21_FunControl2V", {**WAN, "in_dim": 32, "in_dim_ref_conv": 16}, more=references((1, 16, 1, 12, 16))
    ),
    "Wan Phantom": clip("WAN21_T2V", WAN, more=lambda: {"time_dim_concat": frame(16, 2, 12, 16)}),
    "Wan Bernini": clip("WAN21_T2V", WAN, more=lambda: {"context_latents": [frame(16, 1, 10, 14)]}),
    "Wan 2.2 5B": clip("WAN22_T2V", WAN_22, 48),
    "Wan VACE": clip("WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 2, "vace_in_dim": 96}),
    "Wan Camera": clip("WAN21_Camera", {**WAN, "model_type": "camera", "in_dim": 32}, more=vision()),
    "Wan Animate": clip(
        "WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5},
        more=vision(pose_video_latent=frame(16, FRAMES - 1, 12, 16)),
    ),
    "Wan HuMo": clip("WAN21_HuMo", {**WAN, "model_type": "humo"}, more=references((1, 16, 1, 12, 16))),
    "Wan S2V": clip(
        "WAN22_S2V", {**WAN, "model_type": "s2v", "audio_inject_layers": [0, 1], "audio_dim": 32},
        more=references((1, 16, 1, 12, 16)),
    ),
    "Wan SCAIL": clip(
        "WAN21_SCAIL", {**WAN, "model_type": "scail", "in_dim": 20},
        more=vision(reference_latents=[frame(16, 1, 12, 16)], pose_video_latent=frame(16, FRAMES, 6, 8)),
    ),
    "Wan SCAIL-2": clip(
        "WAN21_SCAIL2", {**WAN, "model_type": "scail2", "in_dim": 20},
        more=vision(
            reference_latents=[frame(16, 1, 12, 16)], pose_video_latent=frame(16, FRAMES, 6, 8),
            driving_mask_28ch=frame(FRAMES, 28, 6, 8), ref_mask_28ch=frame(FRAMES + 1, 28, 12, 16),
        ),
    ),
    "HunyuanVideo": clip("HunyuanVideo", HUNYUAN_VIDEO, more=pooled),
    "HunyuanVideo I2V, token replace": clip(
        "HunyuanVideo", {**HUNYUAN_VIDEO, "guidance_embed": False}, more=lambda: {**pooled(), "guiding_frame_index": 0}
    ),
    "HunyuanVideo 1.5": clip("HunyuanVideo15", HUNYUAN_15, 32, more=vision(conditioning_byt5small=frame(9, 1472), **pooled())),
    "Cosmos 1": clip("CosmosT2V", COSMOS_1),
    "Cosmos Predict2 Video": clip("CosmosT2IPredict2", COSMOS),
    "CogVideoX": clip("CogVideoX_T2V", COGVIDEO),
    "CogVideoX 1.5": clip("CogVideoX_T2V", {**COGVIDEO, "patch_size_t": 2}, frames=5),
    "Mochi": clip("GenmoMochi", MOCHI, 12, more=lambda: EVERY_TOKEN),
    "Kandinsky 5 Video": clip("Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, more=pooled),
    "Qwen-Image-Layered": clip(
        "QwenImage", {**QWEN, "use_additional_t_cond": True, "default_ref_method": "negative_index"},
        more=references((1, 16, 1, 12, 10)),
    ),
}  # fmt: skip
"""Of these too; their latents are clips, or layers."""

MODELS: dict[str, Tiny] = {
    **FAMILIES,
    **CLIPS,
    "Anima with T5's tokens": Tiny(
        "Anima", {**COSMOS, "image_model": "anima", "crossattn_emb_channels": 1024}, framed=True, width=1024,
        more=lambda: {"t5xxl_ids": torch.arange(5, 22, dtype=torch.int), "t5xxl_weights": torch.ones(17)},
    ),
    "HunyuanImage 2.1 with quoted text": Tiny(
        "HunyuanImage21", {**FAMILIES["HunyuanImage 2.1"].network, "byt5": True}, (64, 12, 16),
        more=lambda: {"conditioning_byt5small": random(1, 9, 1472)},
    ),
    "Z-Image with its text encoder": Tiny("ZImage", {**Z_IMAGE, "cap_feat_dim": 16}, width=16),
}  # fmt: skip
"""They, and some again with other texts: for the tests of words."""

LACKS: Mapping[str, frozenset[str]] = {
    "0.33.0": frozenset(),
    "0.8.0": frozenset({
        "Z-Image pixel", "LongCat-Image", "Krea 2", "Krea 2 with references", "Anima", "Mage-Flow", "Mage-Flow with references",
        "Boogu", "ERNIE-Image", "PixelDiT", "Ideogram 4", "Lens", "JoyImage", "Wan SCAIL", "Wan SCAIL-2",
        "CogVideoX", "CogVideoX 1.5",
    }),
}  # fmt: skip
"""The versions of ComfyUI that are tested, and the families that each has not."""
EVEN = frozenset({
    "HiDream-E1", "Chroma Radiance", "Kandinsky 5 Image", "PixArt Sigma", "PixArt Alpha", "Wan Fun with a reference",
    "Wan VACE", "Wan Animate", "Wan HuMo", "Wan S2V", "HunyuanVideo", "HunyuanVideo I2V, token replace", "Cosmos 1", "Mochi",
    "Kandinsky 5 Video",
})  # fmt: skip
NOT_ODD: Mapping[str, frozenset[str]] = {"0.33.0": EVEN, "0.8.0": EVEN | {"Cosmos Predict2", "Cosmos Predict2 Video"}}
"""The families that a version itself cannot sample at odd sizes (HiDream-E1: beside its picture, which has one size here)."""

ONE_AT_A_TIME: Mapping[str, frozenset[str]] = {"0.33.0": frozenset(), "0.8.0": frozenset({"HunyuanVideo I2V, token replace"})}
"""The families of which a version itself cannot sample two clips, or a prompt and its negative, at once."""


def randomise(network: nn.Module) -> None:
    """Weights from one seed, of a size that lets every part matter. ComfyUI leaves them as memory was."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        leaf = name.rsplit(".", 1)[-1]
        if not tensor.is_floating_point() or tensor.numel() == 0 or "freqs" in leaf or "inv_freq" in leaf:
            continue
        values = torch.randn(tensor.shape, generator=generator)
        table = any(part in name for part in ("table", "pos_embed", "_token")) or leaf in ("modulation", "lin")
        if tensor.ndim > 1:
            values *= 0.5 if table else tensor[0].numel() ** -0.5
        else:
            values = 1 + 0.1 * values if leaf in ("weight", "scale") else 0.2 * values
        tensor.data = values.to(tensor.dtype)


def make_transformer(
    name: str, dtype: torch.dtype = torch.float32, operations: Any = None
) -> comfy.model_patcher.ModelPatcher:  # fmt: skip
    """A new MODEL of a family, its layers of ``operations``; the test is skipped where this ComfyUI has none such."""
    tiny = MODELS[name]
    model = empty_model(name, tiny.kind, tiny.network, dtype, operations)
    randomise(model.diffusion_model)
    return patcher(model.eval())


def empty_model(
    name: str, kind: str, network: Mapping[str, Any], dtype: torch.dtype = torch.float32, operations: Any = None
) -> Any:
    """ComfyUI's model of a class of comfy.supported_models, its weights as memory was. The test is skipped without it."""
    known = getattr(comfy.supported_models, kind, None)
    if known is None:
        pytest.skip(f"this ComfyUI has no {name}")
    config = known(dict(network))
    config.unet_config.update(network)
    config.unet_config["dtype"] = dtype
    config.manual_cast_dtype, config.custom_operations = None, operations
    while True:
        try:
            return config.get_model({}, "")
        except TypeError as error:  # a keyword of newer networks
            config.unet_config.pop(str(error).rsplit("'", 2)[1])


@cache
def transformer(name: str) -> comfy.model_patcher.ModelPatcher:
    """The same, made once: for tests that leave it as it is."""
    return make_transformer(name)


def prompt(name: str, seed: int = 5) -> list:
    """A CONDITIONING for a family."""
    tiny = MODELS[name]
    return [[random(1, tiny.tokens, tiny.width, seed=seed), tiny.more()]]


def empty(name: str, batch: int = 1, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """A LATENT for a family. size: (height, width), of clips with their frames before it if those are others."""
    tiny = MODELS[name]
    channels, *own = tiny.latents
    *frames, height, width = size or own
    return {"samples": torch.zeros(batch, channels, *(frames or [tiny.frames] if tiny.framed else []), height, width)}


@cache
def vae(channels: int = 16, frames: bool = False) -> comfy.sd.VAE:
    """A small autoencoder of ComfyUI's with random weights. frames: its latents have that dimension."""
    network = (comfy.taesd.taehv.TAEHV if frames else comfy.taesd.taesd.TAESD)(latent_channels=channels)
    generator = torch.Generator().manual_seed(8)
    weights = network.state_dict()
    for value in weights.values():
        if value.ndim:  # what has none is a scale, and ready
            value.copy_(1.2 * torch.randn(value.shape, generator=generator) / max(value[0].numel(), 25) ** 0.5)
    return comfy.sd.VAE(sd=weights)
