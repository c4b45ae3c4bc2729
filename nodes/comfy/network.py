"""Which kind of network a ComfyUI model has, and how it is told a map of noise levels; what has none is refused by name."""

from __future__ import annotations

from typing import Any

from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from torch import Tensor, nn

from ...asyndm_core.regions import SWITCH_OFF
from .families import FAMILIES, control_family_of, family_of, why_not
from .model import UNet, UnsupportedModelError, residual_blocks
from .transformer import Transformer


def network_of(model: Any, latent: Tensor) -> UNet | Transformer:
    """The network of a ComfyUI model; UnsupportedModelError with the model's name for one that cannot have a map."""
    network = model.diffusion_model
    name = f"{type(model).__name__} ({type(network).__name__})"
    family = family_of(network)
    if isinstance(network, UNetModel):
        image = latent.ndim == 4 and not any(isinstance(block, VideoResBlock) for block in residual_blocks(network))
    elif family is not None:
        image = is_image(latent)
    else:
        reason = why_not(network)
        raise UnsupportedModelError(
            f"AsynDM does not support {name}: "
            + (f"{reason}. " if reason else "it is told one timestep for the whole picture. ")
            + "It needs a UNet of the SD1.x, SD2.x or SDXL family, or a transformer of "
            f"{', '.join(known.name for known in FAMILIES.values())}. Use another checkpoint, or {SWITCH_OFF}."
        )
    if not image:
        raise UnsupportedModelError(
            f"AsynDM does not support {name} on latents of shape {tuple(latent.shape)}: it samples images, "
            "(batch, channels, height, width), or a single frame."
        )
    return UNet(network) if family is None else Transformer(network, family)


def control_network_of(control: Any) -> UNet | Transformer | None:
    """The network of a ControlNet that can be told a map, of ComfyUI or made like it; None for any other control.

    T2I adapters see no noise at all.
    """
    network = getattr(control, "control_model", None)
    family = control_family_of(network)
    if family is not None:
        return Transformer(network, family)
    return UNet(network) if isinstance(network, ControlNet) else None


def is_image(latent: Tensor) -> bool:
    """Whether latents are images: (B, C, H, W), or the single frame (B, C, 1, H, W) that some models of images have."""
    return latent.ndim == 4 or (latent.ndim == 5 and latent.shape[2] == 1)


def is_known(network: nn.Module) -> bool:
    """Whether a network is of a kind that can be told a map."""
    return isinstance(network, UNetModel) or family_of(network) is not None


def patch_of(network: nn.Module) -> tuple[int, int]:
    """(height, width) in latent pixels of a network's tokens; 1 for a UNet, and for what is not known."""
    family = family_of(network)
    return (1, 1) if family is None else family.patch_of(network)


def reads_words(network: nn.Module) -> bool:
    """Whether the attention of a network's words can be read."""
    family = family_of(network)
    return isinstance(network, UNetModel) or (family is not None and family.reading is not None)
