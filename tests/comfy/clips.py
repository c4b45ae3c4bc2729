"""Tiny random models of clips with sound, of ComfyUI's own classes, and what they are sampled on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.nested_tensor
import comfy.supported_models
import comfy.utils
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.nodes.comfy.network import network_of
from families import TEXT, TOKENS, empty_model, random, randomise
from tiny import patcher
from torch import Tensor

from nodes import common_ksampler

SIZE = (3, 6, 8)
LTX = {
    "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
    "caption_channels": TEXT, "num_layers": 2, "positional_embedding_max_pos": [20, 2048, 2048],
    "causal_temporal_positioning": True, "vae_scale_factors": (8, 32, 32), "use_middle_indices_grid": True,
}  # fmt: skip
LTX2 = {
    **LTX, "image_model": "ltxav", "audio_in_channels": 128, "audio_cross_attention_dim": 32, "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2, "cross_attention_adaln": True, "apply_gated_attention": True,
    "connector_attention_head_dim": 16, "connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 16,
    "audio_connector_num_attention_heads": 2, "connector_num_layers": 1, "caption_proj_before_connector": False,
    "rope_type": "split", "frequencies_precision": "float64", "audio_positional_embedding_max_pos": [20],
    "av_ca_timestep_scale_multiplier": 1000.0,
}  # fmt: skip
MINIMAX = {
    "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 4,
    "attention_head_dim": 96, "ffn_hidden_size": 64, "text_dim": TEXT, "timestep_input_dim": 32,
    "time_embed_hidden_size": 32, "time_embed_dim": 32,
}  # fmt: skip


class Clip(NamedTuple):
    """A model: its class in comfy.supported_models, its network, and the shapes of its latents of SIZE without the batch.

    width: the channels of the text. more: what its conditioning has besides.
    """

    kind: str
    network: Mapping[str, Any]
    channels: int
    sound: tuple[int, ...] | None
    width: int = TEXT
    more: Mapping[str, Any] = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}


TAGS = {"minimax_token_tags": torch.ones(TOKENS, dtype=torch.long)}
CLIPS: Mapping[str, Clip] = {
    "LTX-Video": Clip("LTXV", LTX, 128, None),
    "LTX-Video with modulated text": Clip("LTXV", {**LTX, "cross_attention_adaln": True}, 128, None),
    "LTX-2": Clip("LTXAV", LTX2, 128, (8, 21, 16), 2 * TEXT),
    "MiniMax H3": Clip("MiniMaxH3", MINIMAX, 24, (32, 2, 14), more=TAGS),
    "MiniMax H3 with a curve": Clip("MiniMaxH3", {**MINIMAX, "adaln_curve_grid": 65}, 24, (32, 2, 14), more=TAGS),
}

LACKS: Mapping[str, frozenset[str]] = {"0.33.0": frozenset(), "0.8.0": frozenset({"MiniMax H3"})}
"""The versions of ComfyUI that are tested, and the models that each has not."""


@cache
def clip_model(name: str) -> comfy.model_patcher.ModelPatcher:
    """A MODEL, made once; the test is skipped where this ComfyUI has none such."""
    clip = CLIPS[name]
    model = empty_model(name, clip.kind, clip.network)
    with torch.inference_mode():
        randomise(model.diffusion_model)
        if clip.kind == "MiniMaxH3":
            model.diffusion_model.rope.inv_freq.data = torch.linspace(1, 0.01, 16)
        if "adaln_curve_grid" in clip.network:  # one that bends little between two of its points
            turns = torch.linspace(0, 3, clip.network["adaln_curve_grid"])[:, None] * torch.linspace(0.2, 1, 32)
            model.diffusion_model.adaln_t_table.data = turns.sin()
    return patcher(model.eval())


def shapes(name: str, batch: int = 1, size: Sequence[int] = SIZE) -> list[tuple[int, ...]]:
    """Of a model's latents: the clip's, and the sound's where it has one."""
    clip = CLIPS[name]
    return [(batch, clip.channels, *size), *([] if clip.sound is None else [(batch, *clip.sound)])]


def joined(*streams: Tensor) -> Any:
    """Streams as ComfyUI's nodes have them in a LATENT."""
    return streams[0] if len(streams) == 1 else comfy.nested_tensor.NestedTensor(streams)


def streams_of(samples: Any) -> list[Tensor]:
    """The same again."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def latents(name: str, batch: int = 1, size: Sequence[int] = SIZE, full: bool = False, **more: Any) -> dict[str, Any]:
    """A LATENT: empty, or ``full`` of random numbers."""
    made = [random(*s, seed=20 + n) if full else torch.zeros(s) for n, s in enumerate(shapes(name, batch, size))]
    return {"samples": joined(*made), **more}


def prompt(name: str, seed: int = 5, **more: Any) -> list:
    """A CONDITIONING."""
    clip = CLIPS[name]
    return [[random(1, TOKENS, clip.width, seed=seed), {**clip.more, **more}]]


def sampled(name: str, patched: Any, sampler: str = "euler", steps: int = 4, **more: Any) -> list[Tensor]:
    """A short run of the stock KSampler: the clip, and the sound where there is one."""
    image = more.pop("image", None) or latents(name)
    positive, negative = more.pop("positive", None) or prompt(name), more.pop("negative", None) or prompt(name, 6)
    options = {"cfg": 2.0, "scheduler": "simple", **more}
    made = common_ksampler(
        patched, 7, steps, options.pop("cfg"), sampler, options.pop("scheduler"), positive, negative, image, **options
    )  # fmt: skip
    return streams_of(made[0]["samples"])


class Evaluation:
    """A single evaluation of a model, as ComfyUI's sampling makes it."""

    def __init__(self, name: str, batch: int = 1, size: Sequence[int] = SIZE, mask: Any = None, **conditioning: Any) -> None:
        self.model, self.shapes = clip_model(name).model, shapes(name, batch, size)
        self.streams = [random(*shape, seed=1 + n) for n, shape in enumerate(self.shapes)]
        self.x = self.packed(*self.streams)
        self.model.latent_shapes = self.shapes
        ((text, more),) = prompt(name)
        given = {"cross_attn": text, **more, "latent_shapes": self.shapes, **conditioning}
        if mask is not None:
            given["denoise_mask"] = self.packed(*(m.expand(s) for m, s in zip(mask, self.shapes, strict=True)))
        made = self.model.extra_conds(noise=self.x, device=torch.device("cpu"), seed=1, **given)
        self.inputs = {key: value.process_cond(batch_size=batch).cond for key, value in made.items()}

    @staticmethod
    def packed(*streams: Tensor) -> Tensor:
        """Streams as ComfyUI packs them."""
        return streams[0] if len(streams) == 1 else comfy.utils.pack_latents(streams)[0]

    def denoised(self, sigma: float, **more: Any) -> list[Tensor]:
        """What the model says at one noise level."""
        inputs = {**self.inputs, **more}
        options = {"sample_sigmas": torch.tensor([1.0, 0.5, 0.0]), "sigmas": torch.tensor([sigma])}
        level = torch.full((self.x.shape[0],), sigma)
        out = self.model._apply_model(self.x, level, None, inputs.pop("c_crossattn"), None, options, **inputs)
        return comfy.utils.unpack_latents(out, self.shapes)

    def at_map(self, values: Tensor, index: Tensor, masked: bool = True) -> list[Tensor]:
        """The same at a map: index (B, T, H, W) into values, of which the last is the sound's."""
        index = index.expand(self.shapes[0][0], *index.shape[1:])
        clip = index[:, None].expand(self.shapes[0])
        sound = [torch.full(shape, len(values) - 1) for shape in self.shapes[1:]]
        whole = self.packed(clip, *sound)[:, 0]
        network = network_of(self.model, self.streams[0])
        with network.told(self.model, PixelTimesteps(values, whole), whole, self.inputs, masked):
            return self.denoised(float(values[-1]))


def patches(size: Sequence[int], patch: Sequence[int], levels: int, seed: int = 0, batch: int = 1) -> Tensor:
    """A random map (batch, *size) that is even within each patch."""
    grid = [-(-extent // each) for extent, each in zip(size, patch, strict=True)]
    made = torch.randint(0, levels, (batch, *grid), generator=torch.Generator().manual_seed(seed))
    for dim, (extent, each) in enumerate(zip(size, patch, strict=True), start=1):
        made = made.repeat_interleave(each, dim).narrow(dim, 0, extent)
    return made


def first_frame_known(name: str, also: Callable[[Tensor], None] | None = None) -> list[Tensor]:
    """A mask (1, 1, *shape) of each stream that keeps the first frame, and what ``also`` says of the clip's."""
    clip, *sound = (torch.ones(1, 1, *shape[2:]) for shape in shapes(name))
    clip[:, :, 0] = 0
    if also is not None:
        also(clip)
    return [clip, *sound]
