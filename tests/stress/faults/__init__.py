"""A custom node pack for the stress test's server: faults on demand, odd inputs, and a look at what a run leaves behind.

Never part of an installation: ``tests/stress`` puts it beside the pack in the folder of a server of its own.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import math
import sys
import urllib.request
from collections.abc import Callable
from typing import Any, ClassVar

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import comfy.supported_models_base
import psutil
import torch
from torch import Tensor

WrappersMP = comfy.patcher_extension.WrappersMP
INJECTED = "injected by the stress test"
CATEGORY = "stress"


# --- faults ----------------------------------------------------------------------------------------------------------


def _strike(what: str) -> None:
    """Make the fault: out of memory, somebody else's bug, or the user's press on Cancel (through the server, as always)."""
    if what == "oom":
        raise comfy.model_management.OOM_EXCEPTION(f"Allocation on device ({INJECTED})")
    if what == "error":
        raise RuntimeError(f"a patch of somebody else failed ({INJECTED})")
    from server import PromptServer

    port = PromptServer.instance.port
    request = urllib.request.Request(f"http://127.0.0.1:{port}/interrupt", b"{}", {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


def _at_call(number: int, what: str) -> Callable[[], None]:
    """A function that strikes at its ``number``-th call, once."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            _strike(what)

    return count


class Fault:
    """A MODEL with somebody else's patch that fails at one of its calls."""

    PLACES = ("apply_model", "diffusion_model", "calc_cond_batch", "attn1", "attn2", "output_block", "post_cfg", "sampler")
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": ("MODEL",),
                "what": (["oom", "error", "cancel"],),
                "where": (list(cls.PLACES),),
                "call": ("INT", {"default": 1, "min": 1, "max": 10000}),
            }
        }

    def patch(self, model: Any, what: str, where: str, call: int) -> tuple[Any]:
        patched, strike = model.clone(), _at_call(call, what)

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            strike()
            return executor(*args, **kwargs)

        def attention(q: Any, k: Tensor | None = None, v: Tensor | None = None, *args: Any, **of_transformers: Any) -> Any:
            strike()
            if isinstance(q, dict):  # what Wan's networks give it, after their attention
                return q["x"]
            return {"q": q, "k": k, "v": v} if "pe" in of_transformers else (q, k, v)

        def block(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
            strike()
            return h, skip

        def guided(args: dict) -> Tensor:
            strike()
            return args["denoised"]

        if where == "attn1":
            patched.set_model_attn1_patch(attention)
        elif where == "attn2":
            patched.set_model_attn2_patch(attention)
        elif where == "output_block":
            patched.set_model_output_block_patch(block)
        elif where == "post_cfg":
            patched.set_model_sampler_post_cfg_function(guided)
        else:
            kinds = {
                "apply_model": WrappersMP.APPLY_MODEL,
                "diffusion_model": WrappersMP.DIFFUSION_MODEL,
                "calc_cond_batch": WrappersMP.CALC_COND_BATCH,
                "sampler": WrappersMP.SAMPLER_SAMPLE,
            }
            patched.add_wrapper_with_key(kinds[where], "stress", wrapper)
        return (patched,)


# --- inputs ----------------------------------------------------------------------------------------------------------


class Mask:
    """A MASK as artists bring them: painted, grey, empty, full, not numbers; any size, one or a batch."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "kind": (["painted", "grey", "noisy", "empty", "full", "nan"],),
                "width": ("INT", {"default": 64, "min": 1, "max": 4096}),
                "height": ("INT", {"default": 64, "min": 1, "max": 4096}),
                "batch": ("INT", {"default": 1, "min": 1, "max": 64}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    def make(self, kind: str, width: int, height: int, batch: int, seed: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.zeros(batch, height, width)
        if kind == "noisy":
            mask = torch.rand(mask.shape, generator=generator)
        elif kind == "full":
            mask = torch.ones(mask.shape)
        elif kind in ("painted", "grey", "nan"):
            for item in mask:
                y0, y1, x0, x1 = torch.rand(4, generator=generator).tolist()
                rows, columns = sorted((int(y0 * height), int(y1 * height))), sorted((int(x0 * width), int(x1 * width)))
                item[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 0.4 if kind == "grey" else 1.0
        if kind == "nan":
            mask[0, 0, 0] = math.nan
        return (mask,)


class Image:
    """An IMAGE of smooth random colours."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        size = {"default": 128, "min": 8, "max": 4096}
        return {
            "required": {
                "width": ("INT", size),
                "height": ("INT", size),
                "batch": ("INT", {"default": 1, "min": 1, "max": 64}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    def make(self, width: int, height: int, batch: int, seed: int) -> tuple[Tensor]:
        coarse = torch.rand(batch, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        return (image.movedim(1, -1),)


class Frames:
    """A LATENT as a clip: its picture moves from frame to frame."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"latent": ("LATENT",), "frames": ("INT", {"default": 3, "min": 1, "max": 64})}}

    def make(self, latent: dict, frames: int) -> tuple[dict]:
        moved = [latent["samples"].roll(frame, -1) for frame in range(frames)]
        return ({**latent, "samples": torch.stack(moved, dim=2)},)


ANYTHING: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "minus infinity": lambda: -math.inf,
    "huge": lambda: 10**18,
    "minus huge": lambda: -(10**18),
    "text": lambda: "../../etc/passwd",
    "list": lambda: [],
    "dict": lambda: {},
    "scalar tensor": lambda: torch.tensor(1.0),
    "empty tensor": lambda: torch.zeros(1, 0, 0),
    "tensor of 5 axes": lambda: torch.zeros(1, 1, 1, 8, 8),
}


class Anything:
    """An output of type ``*``, as switches and scripts of other packs have: it fits every socket, whatever is in it."""

    RETURN_TYPES = ("*",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"kind": (list(ANYTHING),)}}

    def make(self, kind: str) -> tuple[Any]:
        return (ANYTHING[kind](),)


# --- more models -----------------------------------------------------------------------------------------------------


class _TinySDXL(comfy.supported_models_base.BASE):
    """A model family that has no checkpoint."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (ComfyUI's own name)


def _tiny_sdxl(latent_format: Any) -> comfy.model_patcher.ModelPatcher:
    """A small random UNet that takes, as SDXL does, a vector of its own beside the timestep."""
    settings = _TinySDXL(
        {
            "image_size": 32, "in_channels": 12, "out_channels": 12, "model_channels": 64, "num_res_blocks": [1, 1, 1],
            "channel_mult": [1, 1, 2], "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1],
            "transformer_depth_middle": 1, "use_linear_in_transformer": True, "context_dim": 128, "num_head_channels": 32,
            "num_heads": -1, "use_spatial_transformer": True, "legacy": False, "dtype": torch.float32,
            "adm_in_channels": 128 + 6 * 256, "num_classes": "sequential",
        }
    )  # fmt: skip
    settings.latent_format = latent_format
    settings.set_inference_dtype(torch.float32, None)
    settings.custom_operations = comfy.ops.manual_cast
    return _random(comfy.model_base.SDXL(settings, comfy.model_base.ModelType.EPS, device="cpu"))


def _random(model: Any) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with random weights from one seed. ComfyUI leaves them as memory was, buffers too."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*model.diffusion_model.named_parameters(), *model.diffusion_model.named_buffers()):
        if not tensor.is_floating_point() or "freq" in name:
            continue
        random = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.data = 0.6 * random / tensor[0].numel() ** 0.5
        else:
            tensor.data = 0.1 * random + float("norm" in name and name.endswith(("weight", "scale")))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval().requires_grad_(False), cpu, cpu)


class TinySDXL:
    """The second model: always the same object. The demo model tells the latents' kind, and is not changed."""

    made: ClassVar[list[Any]] = []
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def make(self, model: Any) -> tuple[Any]:
        if not self.made:
            self.made.append(_tiny_sdxl(model.model.latent_format))
        return (self.made[0],)


_TEXT = 128
_LATENTS = {"in_channels": 12, "out_channels": 12, "patch_size": 2}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Flux": {
        **_LATENTS, "image_model": "flux", "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2.0, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": [], "vec_in_dim": _TEXT, "context_in_dim": _TEXT,
    },
    "ZImage": {
        "image_model": "lumina2", "in_channels": 12, "patch_size": 2, "cap_feat_dim": _TEXT, "n_layers": 2,
        "n_refiner_layers": 2, "qk_norm": True, "axes_lens": [300, 512, 512], "axes_dims": [8, 12, 12], "multiple_of": 32,
        "dim": 256, "n_heads": 8, "n_kv_heads": 8, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": 1000.0, "rope_theta": 256.0, "pad_tokens_multiple": 32,
    },
    "SD3": {
        **_LATENTS, "depth": 2, "num_blocks": 2, "input_size": None, "adm_in_channels": _TEXT, "num_patches": 4096,
        "pos_embed_max_size": 64, "pos_embed_scaling_factor": None, "qk_norm": "rms",
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": _TEXT, "out_features": 128}},
    },
}  # fmt: skip
CLIPS: dict[str, dict[str, Any]] = {
    "WAN21_T2V": {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 96, "in_dim": 12, "out_dim": 12, "num_heads": 2, "ffn_dim": 128,
        "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 32, "window_size": (-1, -1), "qk_norm": True,
        "cross_attn_norm": True, "eps": 1e-6, "text_dim": _TEXT,
    },
    "LTXV": {
        "image_model": "ltxv", "in_channels": 12, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
        "caption_channels": _TEXT, "num_layers": 2, "positional_embedding_max_pos": [20, 2048, 2048],
        "causal_temporal_positioning": True, "vae_scale_factors": (8, 32, 32), "use_middle_indices_grid": True,
    },
}  # fmt: skip
"""Small networks of ComfyUI's classes, for the demo model's text and latents; of pictures, and of clips."""


class _LTXV(comfy.model_base.LTXV):
    """With a text that has no attention mask, as the demo model's."""

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        return {"attention_mask": comfy.conds.CONDConstant(None), **super().extra_conds(**kwargs)}


def _tiny_transformer(kind: str, latent_format: Any) -> comfy.model_patcher.ModelPatcher:
    network = {**TRANSFORMERS, **CLIPS}[kind]
    settings = getattr(comfy.supported_models, kind)(dict(network))
    settings.unet_config.update(network, dtype=torch.float32)
    settings.latent_format = copy.copy(latent_format)
    settings.latent_format.latent_dimensions = 3 if kind in CLIPS else 2
    settings.set_inference_dtype(torch.float32, None)
    settings.custom_operations = comfy.ops.manual_cast
    return _random(_LTXV(settings) if kind == "LTXV" else settings.get_model({}, ""))


class TinyTransformer:
    """Models of tokens: always the same objects, one of each kind."""

    made: ClassVar[dict[str, Any]] = {}
    kinds: ClassVar[list[str]] = list(TRANSFORMERS)
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "kind": (cls.kinds,)}}

    def make(self, model: Any, kind: str) -> tuple[Any]:
        if kind not in self.made:
            self.made[kind] = _tiny_transformer(kind, model.model.latent_format)
        return (self.made[kind],)


class TinyClip(TinyTransformer):
    """The same of clips."""

    kinds: ClassVar[list[str]] = list(CLIPS)


# --- a look at what came out, and at what was left --------------------------------------------------------------------


class Again:
    """The same MODEL, not a clone: another ``nonce`` makes ComfyUI execute everything that depends on it again."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "give"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "nonce": ("INT", {"default": 0, "min": 0, "max": 2**53})}}

    def give(self, model: Any, nonce: int) -> tuple[Any]:
        return (model,)


def _of_tensor(tensor: Tensor) -> dict[str, Any]:
    data = tensor.detach().cpu().contiguous()
    return {
        "shape": list(data.shape),
        "finite": bool(data.isfinite().all()),
        "sha256": hashlib.sha256(data.numpy().tobytes()).hexdigest(),
    }


class Result:
    """Tells shape, finiteness and digest of what a graph made."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"latent": ("LATENT",)}, "optional": {"image": ("IMAGE",), "mask": ("MASK",)}}

    def tell(self, latent: dict, image: Tensor | None = None, mask: Tensor | None = None) -> dict:
        tensors = {"latent": latent["samples"], "image": image, "mask": mask}
        told = {name: _of_tensor(tensor) for name, tensor in tensors.items() if tensor is not None}
        return {"ui": {"stress": [told]}, "result": ()}


def state_of(patcher: Any) -> dict[str, Any]:
    """What hangs on a MODEL and on the base model that all its clones share."""
    base = patcher.model
    hooked = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(base.modules())
    return {
        "base": id(base),
        "hooks": sum(len(getattr(module, name)) for module in modules for name in hooked),
        "own forwards": sum("forward" in module.__dict__ for module in modules),
        "model_sampling": f"{type(base.model_sampling).__name__} {id(base.model_sampling)}",
        "wrappers": sum(len(items) for keys in patcher.wrappers.values() for items in keys.values()),
        "callbacks": sum(len(items) for keys in patcher.callbacks.values() for items in keys.values()),
        "patches": len(patcher.patches) + len(patcher.object_patches),
        "object backups": len(patcher.object_patches_backup),
        "options": sorted(patcher.model_options),
        "transformer options": sorted(patcher.model_options.get("transformer_options", {})),
    }


def alive() -> dict[str, int]:
    """Objects of AsynDM's runs that the process still holds, by class; and ComfyUI's patched clones."""
    gc.collect()
    ours = ("ComfyHost", "_Run", "MapSampling", "MapControl", "Live", "RunRecord")
    counts = dict.fromkeys((*ours, "ModelPatcher"), 0)
    for thing in gc.get_objects():
        kind = type(thing)
        if kind.__name__ in counts and ("AsynDM" in kind.__module__ or kind.__name__ == "ModelPatcher"):
            counts[kind.__name__] += 1
    return counts


def _keys(things: list[Any]) -> set[int]:
    """The ids of what the keys of ComfyUI's cache of results are made of.

    Since it goes by the pressure on memory, it remembers the key of every node that it was ever asked for in vain: the
    node and all that it was made of.
    """
    caches = [thing for thing in things if type(thing).__name__ == "RAMPressureCache"]
    found: set[int] = set()
    open_ends = [key for cache in caches for keys in (cache.timestamps, cache.used_generation) for key in keys]
    while open_ends:
        thing = open_ends.pop()
        if isinstance(thing, (tuple, frozenset)) and id(thing) not in found:
            found.add(id(thing))
            open_ends += gc.get_referents(thing)
    return found


def held() -> dict[str, float]:
    """What makes the process as large as it is: MiB resident, before and after malloc gave back what is free; live tensors
    and their MiB; Python's containers (those made since the start), and in how many the keys of ComfyUI's cache are.
    """
    gc.collect()
    things = gc.get_objects()
    storages = [thing.untyped_storage() for thing in things if isinstance(thing, Tensor) and thing.layout is torch.strided]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    keys = _keys(things)
    of_keys = sum(id(thing) in keys for thing in things)
    process = psutil.Process()
    resident = process.memory_info().rss
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return {
        "MiB": round(resident / 2**20),
        "MiB trimmed": round(process.memory_info().rss / 2**20),
        "tensors": len(sizes),
        "tensors MiB": round(sum(sizes.values()) / 2**20, 1),
        "objects": len(things) - of_keys,
        "cache keys": of_keys,
    }


class State:
    """Tells the state of a MODEL after something was made with it; ``count`` also what is still in memory."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"model": ("MODEL",), "after": ("LATENT",), "count": ("BOOLEAN", {"default": False})},
        }

    def tell(self, model: Any, after: dict, count: bool) -> dict:
        told = {"model": state_of(model), **({"alive": alive(), "held": held()} if count else {})}
        return {"ui": {"stress": [told]}, "result": ()}


NODE_CLASS_MAPPINGS = {
    f"Stress_{node.__name__}": node
    for node in (Fault, Mask, Image, Frames, Anything, TinySDXL, TinyTransformer, TinyClip, Again, Result, State)
}

gc.collect()
gc.freeze()
"""What is loaded by now is left out of garbage collections. ComfyUI makes a full one at every model load, once a patched
clone of a MODEL died in an exception; without this they would take most of the stress test's time.
"""
