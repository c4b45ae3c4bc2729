"""Which kind of network a ComfyUI model has, and how it is told a map of noise levels; what has none is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from torch import Tensor, nn

from ...asyndm_core.regions import SWITCH_OFF
from .families import Family, control_family_of, family_of, why_not
from .lightricks import Lightricks
from .minimax import MiniMax
from .model import UNet, UnsupportedModelError, residual_blocks
from .transformer import ByFrame, Transformer

WAYS: Mapping[str, type[Transformer]] = {
    "LTX-Video": Lightricks,
    "LTX-2": Lightricks,
    "MiniMax H3": MiniMax,
    "Wan 2.1 and 2.2": ByFrame,
    "Cosmos Predict2": ByFrame,
}
"""The families that are told a map in a way of their own."""


def network_of(model: Any, latent: Tensor) -> UNet | Transformer:
    """The network of a ComfyUI model; UnsupportedModelError with the model's name for one that cannot have a map."""
    network = model.diffusion_model
    name = f"{type(model).__name__} ({type(network).__name__})"
    family = family_of(network)
    if isinstance(network, UNetModel):
        served = latent.ndim == 4 and not any(isinstance(block, VideoResBlock) for block in residual_blocks(network))
    elif family is not None:
        served = _is_read(family, latent)
    else:
        reason = why_not(network)
        raise UnsupportedModelError(
            f"AsynDM does not support {name}: "
            + (f"{reason}. " if reason else "it is told one timestep for the whole picture. ")
            + "It needs a UNet of the SD1.x, SD2.x or SDXL family, or a transformer that it knows: Z-Image, Qwen-Image, "
            "Krea 2, Flux, Stable Diffusion 3, Wan, LTX, MiniMax H3 and all others in docs/compatibility.md of the pack. "
            f"Use another checkpoint, or {SWITCH_OFF}."
        )
    if not served:
        raise UnsupportedModelError(
            f"AsynDM does not support {name} on latents of shape {tuple(latent.shape)}: with it, it samples images, "
            "(batch, channels, height, width), or a single frame."
        )
    return UNet(network) if family is None else WAYS.get(family.name, Transformer)(network, family, len(size_of(latent)))


def control_network_of(control: Any, dims: int = 2) -> UNet | Transformer | None:
    """The network of a ControlNet that can be told a map, of ComfyUI or made like it; None for any other control.

    T2I adapters see no noise at all. dims: of the map, 2 of pictures and 3 of clips.
    """
    network = getattr(control, "control_model", None)
    family = control_family_of(network)
    if family is not None:
        return Transformer(network, family, dims, getattr(control, "extra_args", {}).get("base_model"))
    return UNet(network) if isinstance(network, ControlNet) else None


def is_framed(latent: Tensor) -> bool:
    """Whether latents are pictures with a dimension of frames, (B, C, 1, H, W), as some models have them."""
    return latent.ndim == 5 and latent.shape[2] == 1


def size_of(latent: Tensor) -> tuple[int, ...]:
    """The size of ComfyUI's latents: (H, W) of pictures, a single frame's too; (T, H, W) of clips."""
    return tuple(latent.shape[2:] if latent.ndim == 5 and not is_framed(latent) else latent.shape[-2:])


def _is_read(family: Family, latent: Tensor) -> bool:
    """Whether the networks of a family read latents of these dimensions: pictures, or clips."""
    return latent.ndim == 4 or is_framed(latent) or (family.frames is not None and latent.ndim == 5)


def is_served(network: nn.Module, latent: Tensor) -> bool:
    """Whether a network is of a kind that can be told a map of these latents."""
    family = family_of(network)
    return isinstance(network, UNetModel) and latent.ndim == 4 if family is None else _is_read(family, latent)


def patch_of(network: nn.Module, dims: int = 2) -> tuple[int, ...]:
    """The extents of a network's tokens in latent pixels, along each of ``dims``; 1 for a UNet, and for what is not known."""
    family = family_of(network)
    return (1,) * dims if family is None else family.patch_of(network, dims)


def reads_words(network: nn.Module) -> bool:
    """Whether the attention of a network's words can be read."""
    family = family_of(network)
    return isinstance(network, UNetModel) or (family is not None and family.reading is not None)
