"""Node "Asynchronous Timestep Map": how much later the regions are denoised than the rest."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..asyndm_core.curves import CURVES
from ..asyndm_core.regions import (
    KNOWN_PIXELS,
    LEAD,
    MODES,
    PRESETS,
    Regions,
    TimestepMap,
    check_number,
    check_strength,
    make_plan,
)
from .types import ADVANCED, CATEGORY, RegionsSocket, TimestepMapSocket, check_socket

ANY_LATENT = (8, 8)
"""For a trial plan: the node that joins maps that disagree is the one to say so, whatever the sampler's latents."""


def share_input(name: str, default: float, tooltip: str, **options: Any) -> io.Float.Input:
    """A number in [0, 1], to hundredths."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **options)


class TimestepMapNode(io.ComfyNode):
    """Gives a set of regions its schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_TimestepMap",
            display_name="Asynchronous Timestep Map",
            category=CATEGORY,
            description=(
                "Gives the regions their own, slower clock (pace): they stay noisy and undecided longer, while everything "
                "else runs ahead and becomes a clear context for them. The plot shows noise over steps, one line per target, "
                "the background as a straight line."
            ),
            inputs=[
                RegionsSocket.Input("regions", tooltip="The regions of a Cross-Attention Mask."),
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    default="quadratic",
                    tooltip=(
                        "How regions fall behind and catch up. quadratic: evenly (the paper's choice). piecewise linear: "
                        "waits, then catches up fast; the strongest. exponential: gentle. linear: no lag at all."
                    ),
                ),
                share_input(
                    "strength",
                    0.7,
                    tooltip=(
                        "How long regions stay noisy, for targets without a strength of their own. 0 is the ordinary "
                        "sampler, exactly; higher lets them see a clearer context and may cost detail. Good range 0.3-0.8."
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip=(
                        "asynchronous (each at its own pace): regions wait until the rest is clear. concave (all slow): the "
                        "whole picture follows the regions' curve, to compare. synchronous (all at one pace): the ordinary "
                        "sampler, to compare or to switch AsynDM off."
                    ),
                ),
                TimestepMapSocket.Input(
                    "previous",
                    optional=True,
                    tooltip="Another timestep map, to give several sets of regions their own curves and strengths.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=PRESETS[0],
                    optional=True,
                    tooltip=(
                        "paper: the exact conventions of the authors' code, for reproduction; needs sampler ddim with "
                        "eta 1 and scheduler ddim_uniform. default: ours, for every sampler and scheduler."
                    ),
                    **ADVANCED,
                ),
                share_input(
                    "region_denoise",
                    1.0,
                    tooltip=(
                        "To edit a picture: how much of it the regions replace. 1 draws them anew, 0.5 keeps their rough "
                        "shapes, 0 keeps them exactly. A share of the sampler's own denoise. Good range 0.6-1."
                    ),
                    optional=True,
                    **ADVANCED,
                ),
                share_input(
                    "background_denoise",
                    1.0,
                    tooltip=(
                        "To edit a picture: how much of it everything outside the regions replaces. 0 keeps it exactly, "
                        "0.3 lets it adapt a little, 1 draws it anew. A share of the sampler's own denoise. Good range 0-0.5."
                    ),
                    optional=True,
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "known_pixels",
                    options=list(KNOWN_PIXELS),
                    default=KNOWN_PIXELS[0],
                    optional=True,
                    tooltip=(
                        "For inpainting: how the model is shown the pixels that the latent noise mask keeps. noised: as noisy "
                        "as the background, as the ordinary sampler does. ahead: less noisy than that by lead, so the hole "
                        "is drawn in sight of clearer surroundings. clean: as they are, without noise; only to remove a thing."
                    ),
                    **ADVANCED,
                ),
                share_input(
                    "lead",
                    LEAD,
                    tooltip=(
                        "For known_pixels ahead: how far the known pixels run ahead of the background, as a share of the "
                        "schedule (0.2 of 20 steps are 4 steps). So does what region_denoise or background_denoise keeps. 0 is "
                        "noised, exactly; higher fits the hole in better and draws new things into it less often; 1 is clean. "
                        "Good range 0.1-0.4."
                    ),
                    optional=True,
                    **ADVANCED,
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip=(
                        "Only where several samplers make one picture, each a part of the steps: the sigmas of all steps, "
                        "before they are split. The clock then goes on from one sampler to the next, as in one run. For "
                        "KSampler (Advanced): from a BasicScheduler with the same model, scheduler and steps."
                    ),
                ),
            ],
            outputs=[TimestepMapSocket.Output(display_name="timestep_map")],
        )

    @classmethod
    def execute(
        cls,
        regions: Regions,
        curve: str,
        strength: float,
        mode: str,
        previous: TimestepMap | None = None,
        preset: str = PRESETS[0],
        region_denoise: float = 1.0,
        background_denoise: float = 1.0,
        known_pixels: str = KNOWN_PIXELS[0],
        lead: float = LEAD,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        """Put regions, curve and strength together, and tell the plot on the node."""
        check_socket(regions, Regions, "regions", "Asynchronous Timestep Map")
        if previous is not None:
            check_socket(previous, TimestepMap, "previous", "Asynchronous Timestep Map")
        check_strength(strength, "The strength of Asynchronous Timestep Map")
        for name, denoise in (("region_denoise", region_denoise), ("background_denoise", background_denoise)):
            check_number(denoise, 0, 1, f"{name} of Asynchronous Timestep Map")
        if sigmas is not None:
            check_socket(sigmas, Tensor, "sigmas", "Asynchronous Timestep Map")
            if sigmas.ndim != 1:
                raise ValueError(
                    f"The input sigmas of Asynchronous Timestep Map got a tensor of shape {tuple(sigmas.shape)}: connect a "
                    "table of sigmas, as BasicScheduler gives."
                )
        timestep_map = TimestepMap(
            regions, curve, strength, mode, preset, previous, region_denoise, background_denoise, known_pixels, lead, sigmas
        )
        make_plan(timestep_map, *ANY_LATENT)
        schedule = {"curve": curve, "strength": strength, "mode": mode, "preset": preset}
        return io.NodeOutput(timestep_map, ui={"asyndm": [schedule]})
