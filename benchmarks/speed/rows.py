"""What is measured: models with random weights, and rows that change one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``frames``: of the latents, where they have any. ``distinct``: timesteps of the map in every step. ``full``: only measured
    with --full.
    """

    model: str = "SD1.5 narrow"
    pixels: int = 512
    batch: int = 1
    cfg: bool = True
    distinct: int = 20
    capture: str = "every step"
    preview: bool = False
    full: bool = False
    frames: int = 1

    @property
    def name(self) -> str:
        """The row in words."""
        guidance, view = "CFG" if self.cfg else "no CFG", ", live view" if self.preview else ""
        clip = f" x {self.frames} latent frames" if self.frames > 1 else ""
        return (
            f"{self.model}, {self.pixels} px{clip}, batch {self.batch}, {guidance}, {self.distinct} distinct, "
            f"capture {self.capture}{view}"
        )


SD15: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True,
    "legacy": False, "adm_in_channels": None,
}  # fmt: skip
SDXL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64, "num_heads": -1,
    "use_spatial_transformer": True, "legacy": False, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
WIDE_LEAN: dict[str, Any] = {
    **SD15, "num_res_blocks": [1] * 4, "transformer_depth": [0, 0, 1, 0],
    "transformer_depth_output": [0, 0, 0, 0, 1, 1, 0, 0],
}  # fmt: skip

XL_WIDE_LEAN: dict[str, Any] = {
    **SDXL, "num_res_blocks": [1] * 3, "transformer_depth": [0, 0, 4], "transformer_depth_output": [0, 0, 0, 0, 4, 4],
    "transformer_depth_middle": 4,
}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "SD1.5": SD15,
    "SD1.5 narrow": {
        **SD15, "model_channels": 64, "num_heads": 2, "transformer_depth": [0, 0, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "SD1.5 lean": {**WIDE_LEAN, "model_channels": 64, "num_heads": 2},
    "SD1.5 half deep": {
        **SD15, "num_res_blocks": [1] * 4, "transformer_depth": [1, 1, 1, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
    },
    "SD1.5 wide lean": WIDE_LEAN,
    "SDXL": SDXL,
    "SDXL half deep": {
        **SDXL, "transformer_depth": [0, 0, 1, 1, 5, 5], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 5, 5, 5],
        "transformer_depth_middle": 5,
    },
    "SDXL narrow": {**SDXL, "model_channels": 64},
    "SDXL lean": {**XL_WIDE_LEAN, "model_channels": 64},
    "SDXL wide lean": XL_WIDE_LEAN,
    "SD1.5 tiny": {**SD15, "model_channels": 64, "num_heads": 2, "context_dim": 64},
    "SDXL tiny": {**SDXL, "model_channels": 32, "num_head_channels": 32, "context_dim": 64},
}  # fmt: skip
"""By name. Half deep: half as many blocks (SD1.5: residual blocks, each with its attention; SDXL: transformer blocks).
Narrow: 64 channels where the original has 320. SD1.5 narrow has no attention at 1/1 of the latents; lean ones have one
residual block per level, and attention at 1/4 only, and are narrow but for the wide ones. Fewer channels make our share look
larger than it is: a gather costs by the channel, a convolution by its square. Tiny: all blocks of the original, so few
channels that a step is only what the host does for it, and a GPU that is done at once would wait for."""


class Transformer(NamedTuple):
    """A diffusion transformer: its class in comfy.supported_models, its network's configuration, and its conditioning.

    tokens, width: of the text. pooled: width of the pooled text, or None. framed: whether latents have a dimension of frames.
    """

    kind: str
    network: dict[str, Any]
    tokens: int
    width: int
    pooled: int | None = None
    framed: bool = False


FLUX: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "hidden_size": 3072, "num_heads": 24, "mlp_ratio": 4.0,
    "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [], "vec_in_dim": 768, "context_in_dim": 4096,
}  # fmt: skip
Z_IMAGE: dict[str, Any] = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30,
    "n_refiner_layers": 2, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
WAN: dict[str, Any] = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "out_dim": 16, "num_heads": 12, "ffn_dim": 8960,
    "num_layers": 30, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True,
    "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16, "text_dim": 4096,
}  # fmt: skip
WAN_GIVEN: dict[str, Any] = {**WAN, "in_dim": 48, "out_dim": 48}
WAN_TINY: dict[str, Any] = {"dim": 96, "num_heads": 2, "ffn_dim": 128, "num_layers": 1}
TRANSFORMERS: dict[str, Transformer] = {
    "Flux.1": Transformer("Flux", FLUX, 512, 4096, 768),
    "Z-Image": Transformer("ZImage", Z_IMAGE, 96, 2560),
    "Qwen-Image": Transformer("QwenImage", QWEN, 96, 3584, framed=True),
    "Wan 2.1 1.3B": Transformer("WAN21_T2V", WAN, 512, 4096, framed=True),
    "Wan 2.1 1.3B tiny": Transformer("WAN21_T2V", {**WAN, **WAN_TINY}, 512, 4096, framed=True),
    "Wan 2.1 1.3B, 2 blocks": Transformer("WAN21_T2V", {**WAN, "num_layers": 2}, 512, 4096, framed=True),
    "Wan 2.2 5B, 2 blocks": Transformer("WAN22_T2V", {**WAN_GIVEN, "num_layers": 2}, 512, 4096, framed=True),
    "Wan 2.2 5B tiny": Transformer("WAN22_T2V", {**WAN_GIVEN, **WAN_TINY}, 512, 4096, framed=True),
    "Flux.1 tiny": Transformer(
        "Flux", {**FLUX, "hidden_size": 64, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12]},
        512, 4096, 768,
    ),
    "Z-Image tiny": Transformer(
        "ZImage", {**Z_IMAGE, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "n_layers": 1, "axes_dims": [8, 12, 12]}, 96, 2560
    ),
    "Qwen-Image tiny": Transformer(
        "QwenImage",
        {**QWEN, "num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (8, 12, 12)},
        96, 3584, framed=True,
    ),
}  # fmt: skip
"""Whole, or some of their blocks, all in the width of the smallest Wan; tiny: next to nothing to compute."""


def is_narrow(model: str) -> bool:
    """Whether a model of MODELS has fewer channels than the originals."""
    return MODELS[model]["model_channels"] < SD15["model_channels"]


def is_tiny(model: str) -> bool:
    """Whether a model of MODELS has next to nothing to compute."""
    return model.endswith("tiny")


BASE = Row()
LEAN, XL, XL_LEAN = (replace(BASE, model=name) for name in ("SD1.5 lean", "SDXL narrow", "SDXL lean"))
HALF, XL_HALF = (replace(BASE, model=name, full=True) for name in ("SD1.5 half deep", "SDXL half deep"))
WIDE = replace(BASE, model="SD1.5 wide lean", distinct=300, full=True)

ROWS: tuple[Row, ...] = (
    *(replace(BASE, model="SD1.5", distinct=n, full=True) for n in (20, 300, 1000)),
    *(replace(HALF, distinct=n) for n in (1, 2, 20)),
    *(replace(HALF, capture=capture) for capture in ("off", "fixed")),
    replace(HALF, preview=True),
    *(replace(HALF, cfg=False, distinct=n) for n in (20, 300, 1000)),
    *(replace(HALF, batch=4, cfg=cfg) for cfg in (True, False)),
    replace(HALF, pixels=768, distinct=300),
    replace(WIDE, pixels=1024),
    replace(WIDE, pixels=2048, cfg=False),
    *(replace(XL_HALF, distinct=n) for n in (20, 300)),
    replace(XL_HALF, cfg=False, distinct=300),
    replace(XL_HALF, model="SDXL", cfg=False, distinct=300),
    replace(WIDE, model="SDXL wide lean", pixels=1024),
    *(replace(BASE, distinct=n) for n in (1, 2, 20, 300, 1000)),
    *(replace(BASE, capture=capture) for capture in ("off", "fixed")),
    replace(BASE, preview=True),
    *(replace(BASE, cfg=False, distinct=n) for n in (20, 300)),
    replace(BASE, batch=4),
    *(replace(BASE, pixels=size, distinct=300) for size in (768, 1024)),
    replace(LEAN, pixels=1024, distinct=300),
    replace(LEAN, pixels=2048, distinct=300),
    replace(LEAN, pixels=2048, distinct=300, capture="off", full=True),
    *(replace(XL, distinct=n) for n in (20, 300)),
    replace(XL_LEAN, pixels=1024, distinct=300),
    replace(XL_LEAN, pixels=2048, distinct=300, full=True),
    replace(BASE, batch=4, cfg=False, full=True),
    replace(XL, batch=4, full=True),
    *(replace(BASE, model=name, pixels=64) for name in ("SD1.5 tiny", "SDXL tiny")),
)

XL_GPU, SD_GPU = Row("SDXL", 1024, distinct=300), Row("SD1.5", batch=2, distinct=300)
TRANSFORMER_GPU: tuple[Row, ...] = (
    Row("Flux.1", 1024, cfg=False),
    Row("Z-Image", 1024, cfg=False),
    Row("Qwen-Image", 1024),
    Row("Wan 2.1 1.3B", 640, cfg=False, frames=21),
)
GPU_ROWS: tuple[Row, ...] = (
    *(
        replace(row, distinct=distinct, capture=capture)
        for row in TRANSFORMER_GPU
        for distinct, capture in ((20, "every step"), (20, "off"), (300, "every step"))
    ),
    *(
        replace(row, **changes)
        for row in (XL_GPU, SD_GPU)
        for changes in (
            *({"distinct": distinct, "capture": capture} for capture in ("every step", "off") for distinct in (300, 20)),
            {"cfg": False},
        )
    ),
)
"""What is measured on a GPU. Flux.1 and Z-Image (Turbo) are sampled without CFG."""


def rehearsed(row: Row) -> Row:
    """The row with a model and a picture that a CPU computes at once."""
    return replace(row, model=f"{row.model} tiny", pixels=128, distinct=min(row.distinct, 20), frames=min(row.frames, 2))
