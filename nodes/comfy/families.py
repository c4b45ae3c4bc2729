"""The diffusion transformers of ComfyUI that can be given a timestep per token, and what has to be known of each.

A row says what cannot be read from the network itself, and that is all that a family needs: the mechanism is the same for
all of them (``asyndm_core/timestep_rows.py``). A new family is a row here and a tiny model in tests/comfy/families.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any, NamedTuple

from torch import nn

from ...asyndm_core.timestep_rows import Columns
from .attention import (
    Reading,
    across,
    across_after_text,
    across_alone,
    across_beside_sound,
    across_beside_vace,
    across_two_texts,
    before_references,
    before_sound,
    behind_registers,
    cropped_behind,
    evenly,
    in_multiples,
    joint,
    late,
    multiple_of,
    of_two_encoders,
    padded_before,
    reference_tokens,
    tokens_of,
    up_to_most,
    with_glyphs,
)
from .origin import uncompiled

Inputs = Mapping[str, Any]
"""What a network is given besides latents, timestep and text, by the names that ComfyUI's model gives it."""


class Family(NamedTuple):
    """What is known of the networks of one class.

    name: of the models, as users know them. patch: the attribute that says how many latent pixels a token is wide and high,
    or the number. frames: the same of how many latent frames it is long, where latents may be clips; None: they are pictures.
    opens: whether the picture's stream opens every sequence that it is a part of (otherwise it closes them).
    text: patterns of the names of modules that modulate text alone. columns: patterns of the names of modules that modulate
    both, with the entries of their output that are text's: network -> (entries -> Columns). large: patterns of the names of
    modules that hold so much for each timestep that they are given a few at a time. lent: patterns of the names of modules
    of the model's network that a ControlNet has its timestep from. head, tail: tokens that come before and after the picture's
    own in its stream: (network, inputs, patch) and (network, inputs, patch, tokens) -> how many. beside: the input that is
    joined to the latents along the width. reading: how words are read; None: they can't be.
    """

    name: str
    patch: str | int = "patch_size"
    frames: str | int | None = None
    opens: Callable[[nn.Module], bool] = lambda network: False
    text: tuple[str, ...] = ()
    columns: tuple[tuple[str, Callable[[nn.Module], Callable[[int], Columns]]], ...] = ()
    large: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    head: Callable[[nn.Module, Inputs, tuple[int, ...]], int] = lambda network, inputs, patch: 0
    tail: Callable[[nn.Module, Inputs, tuple[int, ...], int], int] = lambda network, inputs, patch, tokens: 0
    beside: str | None = None
    reading: Reading | None = None

    def patch_of(self, network: nn.Module, dims: int = 2) -> tuple[int, ...]:
        """(height, width) in latent pixels of a network's tokens; with 3 dimensions their frames before that."""
        extent = self.patch if isinstance(self.patch, int) else getattr(network, self.patch)
        picture = (extent, extent) if isinstance(extent, int) else (int(extent[-2]), int(extent[-1]))
        if dims == 2:
            return picture
        frames = getattr(network, self.frames) if isinstance(self.frames, str) else self.frames
        return (int(frames[0] if isinstance(frames, (tuple, list)) else frames or 1), *picture)


def _references(network: nn.Module, inputs: Inputs, patch: tuple[int, ...], tokens: int) -> int:
    """The tokens of reference pictures, which some networks leave out where no method is given of placing them."""
    method = inputs.get("ref_latents_method", getattr(network, "default_ref_method", "offset"))
    return 0 if method is None else reference_tokens(inputs, patch)


def _padding(network: nn.Module, inputs: Inputs, patch: tuple[int, ...], tokens: int) -> int:
    """The tokens that fill a picture up to the multiple that the network wants."""
    return -tokens % multiple_of(network)


def _wan_reference(network: nn.Module, inputs: Inputs, patch: tuple[int, ...]) -> int:
    """The tokens of the picture (B, C, H, W) that some of Wan's Fun models refer to."""
    given = inputs.get("reference_latent")
    return 0 if given is None or network.ref_conv is None else prod(given.shape[-2:]) // prod(patch[-2:])


def _tokens_in(name: str) -> Callable[[nn.Module, Inputs, tuple[int, ...]], int]:
    """The tokens of an input, latents that a network puts before its picture or clip; 0 where it is given none."""

    def head(network: nn.Module, inputs: Inputs, patch: tuple[int, ...]) -> int:
        given = inputs.get(name)
        return 0 if given is None else tokens_of(given, patch)

    return head


def _wan_further(network: nn.Module, inputs: Inputs, patch: tuple[int, ...], tokens: int) -> int:
    """The tokens that Wan's networks put behind a clip: frames of Phantom and Bernini; references; S2V's motion; a pose."""
    behind = [inputs.get("time_dim_concat"), *(inputs.get("context_latents") or ())]
    further = {"HumoWanModel": "reference_latent", "WanModel_S2V": "reference_latent"}
    further |= dict.fromkeys(("SCAILWanModel", "SCAIL2WanModel"), "pose_latents")
    behind.append(inputs.get(further.get(_key(network).rpartition(".")[2], "")))
    count = sum(tokens_of(latents, patch) for latents in behind if latents is not None)
    if inputs.get("reference_motion") is not None:
        height, width = inputs["reference_motion"].shape[-2:]
        count += sum(frames * (height // each) * (width // each) for frames, each in ((1, 2), (1, 4), (4, 8)))
    return count


def _always(network: nn.Module) -> bool:
    return True


def _picture_first(network: nn.Module) -> bool:
    """Newer ComfyUI put the text of Hunyuan models first."""
    return "torch.cat((img, txt), 1)" in inspect.getsource(network.forward_orig)


def _second_half(network: nn.Module) -> Callable[[int], Columns]:
    return lambda entries: Columns(-1, entries // 2, entries)


def _of_double_blocks(network: nn.Module) -> Callable[[int], Columns]:
    """Chroma computes all modulations at once: 3 of each single block, then 6 of each double block's picture, then text."""
    single, double = network.params.depth_single_blocks, network.params.depth
    columns = Columns(-2, 3 * single + 6 * double, 3 * single + 12 * double)
    return lambda entries: columns


TXT_MOD = (r"\.txt_mod$",)
CHROMA = r"^distilled_guidance_layer$"
PROMPT = (r"^prompt_adaln_single$",)
OMNIGEN_REFERENCES = (r"ref_image_refiner\.\d+\.norm1$",)


def _of_flux(network: nn.Module, blocks: int) -> Collection[int]:
    """Of Flux.1's 19 double blocks the last 4, of Flux.2's 8 the last 3."""
    return late(0.6 if network.params.global_modulation else 0.75, 4)(network, blocks)


MIDDLE = evenly(0.35, 0.7, 5)
"""Where nothing is known."""
FLUX_READING = Reading(("double_blocks",), _of_flux, padded_before)
CHROMA_READING = Reading(("double_blocks",), late(0.75, 4), joint)
LUMINA_READING = Reading(("layers",), evenly(0.5, 0.65, 4), in_multiples)
CROSSED = evenly(0.125, 0.65, 8)
"""Where pictures cross to text in an attention of its own."""
COSMOS_READING = Reading(("blocks",), CROSSED, across)
COSMOS: Mapping[str, Any] = {"patch": "patch_spatial", "frames": "patch_temporal", "reading": COSMOS_READING}

WAN: Mapping[str, Any] = {"frames": "patch_size", "opens": _always, "reading": Reading(("blocks",), CROSSED, across)}

FAMILIES: Mapping[str, Family] = {
    "lumina.model.NextDiT": Family("Z-Image, Lumina2, NewBie", tail=_padding, reading=LUMINA_READING),
    "lumina.model.NextDiTPixelSpace": Family("Z-Image in pixels", tail=_padding, reading=LUMINA_READING),
    "flux.model.Flux": Family(
        "Flux.1, Flux.2, LongCat-Image, Ovis-Image",
        text=(*TXT_MOD, r"^double_stream_modulation_txt$"),
        tail=_references,
        reading=FLUX_READING,
    ),
    "qwen_image.model.QwenImageTransformer2DModel": Family(
        "Qwen-Image", frames=1, text=TXT_MOD, tail=_references, reading=Reading(("transformer_blocks",), MIDDLE, joint)
    ),
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": Family(
        "Stable Diffusion 3 and 3.5",
        text=(r"context_block\.adaLN_modulation$",),
        reading=Reading(("joint_blocks",), evenly(0.33, 0.46, 4), joint),
    ),
    "krea2.model.SingleStreamDiT": Family(
        "Krea 2", patch="patch", tail=_references, reading=Reading(("blocks",), MIDDLE, joint)
    ),
    "cosmos.predict2.MiniTrainDIT": Family("Cosmos Predict2", **COSMOS),
    "cosmos.model.GeneralDIT": Family("Cosmos 1", **COSMOS),
    "anima.model.Anima": Family("Anima", patch="patch_spatial", reading=COSMOS_READING),
    "mage_flow.model.MageFlowTransformer2DModel": Family(
        "Mage-Flow", text=TXT_MOD, tail=_references, reading=Reading(("transformer_blocks",), MIDDLE, joint)
    ),
    "hidream.model.HiDreamImageTransformer2DModel": Family(
        "HiDream-I1, HiDream-E1",
        opens=_always,
        columns=((r"^double_stream_blocks\.\d+\.block\.adaLN_modulation$", _second_half),),
        beside="image_cond",
        reading=Reading(("double_stream_blocks", "single_stream_blocks"), MIDDLE, of_two_encoders),
    ),
    "omnigen.omnigen2.OmniGen2Transformer2DModel": Family(
        "OmniGen2", text=OMNIGEN_REFERENCES, reading=Reading(("layers",), MIDDLE, before_references)
    ),
    "boogu.model.BooguTransformer2DModel": Family(
        "Boogu",
        text=(*OMNIGEN_REFERENCES, r"double_stream_layers\.\d+\.instruct_norm[12]$"),
        reading=Reading(("double_stream_layers", "single_stream_layers"), MIDDLE, before_references),
    ),
    "ernie.model.ErnieImageModel": Family(
        "ERNIE-Image", opens=_always, reading=Reading(("layers",), MIDDLE, joint, within="self_attention")
    ),
    "chroma.model.Chroma": Family("Chroma", columns=((CHROMA, _of_double_blocks),), large=(CHROMA,), reading=CHROMA_READING),
    "chroma_radiance.model.ChromaRadiance": Family(
        "Chroma Radiance", columns=((CHROMA, _of_double_blocks),), large=(CHROMA,), reading=CHROMA_READING
    ),
    "hunyuan_video.model.HunyuanVideo": Family(
        "HunyuanImage 2.1, HunyuanVideo 1 and 1.5",
        frames="patch_size",
        opens=_picture_first,
        text=(*TXT_MOD, r"^txt_in$"),
        head=_tokens_in("ref_latent"),
        reading=Reading(("double_blocks", "single_blocks"), MIDDLE, with_glyphs),
    ),
    "kandinsky5.model.Kandinsky5": Family(
        "Kandinsky 5 Image and Video",
        frames="patch_size",
        text=(r"text_transformer_blocks\.\d+\.text_modulation$",),
        reading=Reading(("visual_transformer_blocks",), CROSSED, across_after_text),
    ),
    "aura.mmdit.MMDiT": Family(
        "AuraFlow",
        text=(r"\.modC$",),
        reading=Reading(("double_layers", "single_layers"), MIDDLE, behind_registers),
    ),
    "pixart.pixartms.PixArtMS": Family("PixArt", reading=Reading(("blocks",), CROSSED, across_alone, within="cross_attn")),
    "hydit.models.HunYuanDiT": Family("HunyuanDiT", reading=Reading(("blocks",), CROSSED, across_two_texts, within="attn2")),
    "pixeldit.model.PixDiT_T2I": Family(
        "PixelDiT", text=(r"adaLN_modulation_txt$",), reading=Reading(("patch_blocks",), MIDDLE, up_to_most)
    ),
    "ideogram4.model.Ideogram4Transformer2DModel": Family("Ideogram 4", patch=1, reading=Reading(("layers",), MIDDLE, joint)),
    "lens.model.LensTransformer2DModel": Family(
        "Lens", patch=1, opens=_always, text=TXT_MOD, reading=Reading(("transformer_blocks",), MIDDLE, joint)
    ),
    "joyimage.model.JoyImageTransformer3DModel": Family(
        "JoyImage", opens=_always, text=TXT_MOD, reading=Reading(("double_blocks",), MIDDLE, before_references)
    ),
    "lightricks.model.LTXVModel": Family(
        "LTX-Video", patch=1, frames=1, text=PROMPT, reading=Reading(("transformer_blocks",), CROSSED, across)
    ),
    "lightricks.av_model.LTXAVModel": Family(
        "LTX-2", patch=1, frames=1, text=PROMPT, reading=Reading(("transformer_blocks",), CROSSED, across_beside_sound)
    ),
    "minimax.model.MiniMaxH3Model": Family("MiniMax H3", frames=1, reading=Reading(("blocks",), MIDDLE, before_sound)),
    "cogvideo.model.CogVideoXTransformer3DModel": Family(
        "CogVideoX",
        frames="patch_size_t",
        columns=((r"^blocks\.\d+\.norm[12]\.linear$", _second_half),),
        reading=Reading(("blocks",), MIDDLE, joint),
    ),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": Family(
        "Mochi", frames=1, opens=_always, text=(r"\.mod_y$",), reading=Reading(("blocks",), MIDDLE, cropped_behind)
    ),
    "wan.model.WanModel": Family("Wan 2.1 and 2.2", head=_wan_reference, tail=_wan_further, **WAN),
    "wan.model.VaceWanModel": Family("Wan VACE", **{**WAN, "reading": Reading(("blocks",), CROSSED, across_beside_vace)}),
    "wan.model.CameraWanModel": Family("Wan Camera", tail=_wan_further, **WAN),
    "wan.model_animate.AnimateWanModel": Family("Wan Animate", head=_wan_reference, tail=_wan_further, **WAN),
    "wan.model.HumoWanModel": Family("Wan HuMo", tail=_wan_further, **WAN),
    "wan.model.WanModel_S2V": Family("Wan S2V", tail=_wan_further, **WAN),
    "wan.model.SCAILWanModel": Family("Wan SCAIL", head=_tokens_in("reference_latent"), tail=_wan_further, **WAN),
    "wan.model.SCAIL2WanModel": Family("Wan SCAIL-2", head=_tokens_in("reference_latent"), tail=_wan_further, **WAN),
}
"""By the class of the network, below comfy.ldm."""

CONTROLS: Mapping[str, Family] = {
    "flux.controlnet.ControlNetFlux": Family("Flux.1", text=TXT_MOD),
    "qwen_image.controlnet.QwenImageControlNetModel": Family("Qwen-Image", text=TXT_MOD),
    "qwen_image.controlnet.QwenImageFunControlNetModel": Family(
        "Qwen-Image", patch=2, text=TXT_MOD, lent=(r"^time_text_embed\.",)
    ),
    "comfy.cldm.mmdit.ControlNet": Family("Stable Diffusion 3", text=(r"context_block\.adaLN_modulation$",)),
    "comfy.cldm.dit_embedder.ControlNetEmbedder": Family("Stable Diffusion 3.5"),
    "hydit.controlnet.HunYuanControlNet": Family("HunyuanDiT"),
}
"""The networks of ControlNets for transformers: they get the same rows as the model's."""

NO_ROOM = {
    "hidream_o1.model.HiDreamO1Transformer": "its only timestep is a token of the text, one for the whole picture",
}
"""Classes that cannot be given a timestep per token, and why."""


def family_of(network: nn.Module) -> Family | None:
    """The row of a network's class, or None. A class that another pack derives from one may compute something else."""
    return FAMILIES.get(_key(network))


def control_family_of(network: Any) -> Family | None:
    """The row of the class of a ControlNet's network, or None."""
    return CONTROLS.get(_key(network)) if isinstance(network, nn.Module) else None


def why_not(network: nn.Module) -> str | None:
    """Why a network's class has no row, where that is known."""
    return NO_ROOM.get(_key(network))


def _key(network: nn.Module) -> str:
    network = uncompiled(network)
    return f"{type(network).__module__}.{type(network).__qualname__}".removeprefix("comfy.ldm.")
