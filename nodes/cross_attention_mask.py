"""Node "Cross-Attention Mask": which words of the prompt get a region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..asyndm_core.live import progress_palette
from ..asyndm_core.pictures import COLOURS
from ..asyndm_core.regions import MASK_MODES, MOST_FRAMES, UPDATES, Regions, Target, check_choice
from ..asyndm_core.samplers import SAMPLERS
from ..asyndm_core.words import WORD_LISTS, check_text, shortened
from .comfy.browser import display_node
from .comfy.conditioning import annotate, annotate_given, find_targets
from .comfy.notices import Notices
from .types import ADVANCED, CATEGORY, RegionsSocket, check_socket

FOR_THE_SCREEN: dict[str, Any] = {
    "colours": COLOURS,
    "words": WORD_LISTS,
    "samplers": sorted(SAMPLERS),
    "progress_colours": (progress_palette() * 255).round().int().tolist(),
}
"""Sent with the node's definition, so that the web side need not know these a second time."""

LOST_TARGETS = ("stop", "skip")


class CrossAttentionMask(io.ComfyNode):
    """Encodes the prompt, finds the target words in it, and describes their regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_CrossAttentionMask",
            display_name="Cross-Attention Mask",
            category=CATEGORY,
            description=(
                "Name the words of the prompt that shall come out right. While sampling, the model's own "
                "cross-attention (which word counts at which place) shows where each word is being formed; those pixels "
                "become the word's region. "
                "Connect 'conditioning' to the sampler's positive, 'regions' to Asynchronous Timestep Map."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the checkpoint that will sample."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, as in CLIP Text Encode: weights like (red fox:1.3), embeddings and long prompts work.",
                ),
                io.String.Input(
                    "targets",
                    default="",
                    tooltip=(
                        "Words or phrases of the prompt between commas, each with an optional strength: "
                        "'rabbit, basketball:0.4'. More targets make more of the picture wait. Good: 1 to 3 things that "
                        "matter. Empty: the prompt's content words are chosen and shown."
                    ),
                    extra_dict={"asyndm": FOR_THE_SCREEN},
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "A pixel belongs to a word where the attention to that word is at least this many times the "
                        "picture's average. Higher makes regions smaller and surer, lower makes them larger. "
                        "Good range 0.8-1.6."
                    ),
                ),
                io.Combo.Input(
                    "update",
                    options=list(UPDATES),
                    default=UPDATES[0],
                    tooltip=(
                        "every step: regions follow the picture as it forms, at no extra cost. fixed: regions come from "
                        "a whole ordinary run before, then stay; takes twice the time."
                    ),
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip=(
                        "A conditioning made elsewhere from the same text. It is passed on with the words marked in it, "
                        "instead of being encoded here."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "A painted region, any size. Grey scales the strength: black 0, white full. For clips, one mask is for "
                        "all frames, several are a mask for each frame."
                    ),
                ),
                io.Combo.Input(
                    "mask_mode",
                    options=list(MASK_MODES),
                    default=MASK_MODES[0],
                    optional=True,
                    tooltip=(
                        "What the painted mask does. limit: words count inside it only. add: it is one more region. "
                        "replace: it is the only region, words are not looked for."
                    ),
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-64,
                    max=64,
                    optional=True,
                    tooltip=(
                        "Latent pixels (8 image pixels each) by which word regions grow; negative shrinks. "
                        "Grow by 1-3 where edges of an object look cut."
                    ),
                    **ADVANCED,
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    optional=True,
                    tooltip="Latent pixels over which a word region's strength fades at its edge. 0 is a hard edge; good: 0-4.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "lost_targets",
                    options=list(LOST_TARGETS),
                    default=LOST_TARGETS[0],
                    optional=True,
                    tooltip=(
                        "What happens where the prompt does not contain a target, as after an edit or with wildcards. stop: "
                        "an error names it. skip: a warning names it, and the other targets are followed."
                    ),
                    **ADVANCED,
                ),
                io.Int.Input(
                    "hold",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    optional=True,
                    tooltip=(
                        "For clips: latent frames (4 to 8 of the clip, by the model) that a word's region stays before and "
                        "after those where the word is seen. Hold for 1-3 where a thing flickers or is hidden for a moment; "
                        "higher makes more of the clip wait. No effect on pictures."
                    ),
                    **ADVANCED,
                ),
                io.Int.Input(
                    "fade",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    optional=True,
                    tooltip=(
                        "For clips: latent frames over which a word's region fades away before it comes and after it goes, "
                        "beyond those of hold. 0 ends at once; good: 0-4. No effect on pictures."
                    ),
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                RegionsSocket.Output(display_name="regions"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        text: str,
        targets: str,
        threshold: float,
        update: str,
        conditioning: list | None = None,
        mask: torch.Tensor | None = None,
        mask_mode: str = MASK_MODES[0],
        grow: int = 0,
        feather: float = 0.0,
        lost_targets: str = LOST_TARGETS[0],
        hold: int = 0,
        fade: int = 0,
    ) -> io.NodeOutput:
        """Encode (or annotate) the prompt and describe its regions."""
        if clip is None:
            raise ValueError("The input clip is empty: the checkpoint has no text encoder. Load one with Load CLIP.")
        check_socket(clip, object, "clip", "Cross-Attention Mask")
        if conditioning is not None:
            check_socket(conditioning, list, "conditioning", "Cross-Attention Mask")
        if mask is not None:
            check_socket(mask, torch.Tensor, "mask", "Cross-Attention Mask")
        check_text(text, "text")
        check_text(targets, "targets")
        check_choice(lost_targets, LOST_TARGETS, "lost_targets of Cross-Attention Mask")
        if mask is not None and not torch.isfinite(mask).all():
            raise ValueError("The mask has values that are not numbers (NaN or infinite): check the node that made it.")
        given = conditioning
        if given is None:
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        words: tuple[Target, ...] = ()
        shown = "Regions: the painted mask"
        if mask is None or mask_mode != "replace":
            words, annotation, lost = find_targets(clip, text, targets, lost_targets == "skip")
            if given is None:
                conditioning = annotate(conditioning, annotation)
            else:
                conditioning = annotate_given(given, clip, text, annotation)
            shown = _shown(words, lost, automatic=not targets.strip())
            if lost:
                Notices(display_node(cls.hidden))(shown)
        regions = Regions(words, threshold, update, mask, mask_mode, grow, feather, hold, fade)
        picker = {"text": text, "targets": targets}
        return io.NodeOutput(conditioning, regions, ui={**ui.PreviewText(shown).as_dict(), "asyndm": [picker]})


def _shown(targets: Sequence[Target], lost: Sequence[str], automatic: bool) -> str:
    """What the node says of its targets."""
    names = [t.text if t.strength is None else f"{t.text}:{t.strength:g}" for t in targets]
    shown = f"Targets: {', '.join(names)}" if names else "No target is left: ordinary sampling"
    if automatic:
        shown += " (chosen automatically)"
    if lost:
        shown += f" (not in the prompt, skipped: {', '.join(map(shortened, lost))})"
    return shown
