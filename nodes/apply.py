"""Node "Apply AsynDM": any sampler node that is given this model samples asynchronously."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..asyndm_core.regions import TimestepMap
from .comfy.browser import display_node
from .comfy.live_view import show_on
from .comfy.sampling import Options, apply
from .types import ADVANCED, CATEGORY, TimestepMapSocket, check_socket


class Apply(io.ComfyNode):
    """Hangs a timestep map on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_Apply",
            display_name="Apply AsynDM",
            category=CATEGORY,
            description=(
                "Makes every sampler that is given this model sample asynchronously: KSampler, SamplerCustomAdvanced, "
                "and nodes of other packs that use ComfyUI's samplers. Place it last before the sampler. The sampler's "
                "positive must come from the Cross-Attention Mask. Bypass this node for the ordinary sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to sample. It is not changed: a patched copy comes out."),
                TimestepMapSocket.Input("timestep_map", tooltip="From Asynchronous Timestep Map."),
                io.Boolean.Input(
                    "preview",
                    default=True,
                    optional=True,
                    tooltip=(
                        "Show the runs of this model on this node: live while a sampler works, with the regions and who "
                        "lags, and afterwards step by step. The picture is the same without."
                    ),
                    **ADVANCED,
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, model: Any, timestep_map: TimestepMap, preview: bool = True) -> io.NodeOutput:
        """Return the patched clone."""
        check_socket(model, object, "model", "Apply AsynDM")
        check_socket(timestep_map, TimestepMap, "timestep_map", "Apply AsynDM")
        check_socket(preview, int, "preview", "Apply AsynDM")
        options = Options(on_run=show_on(cls.hidden) if preview else None, node=display_node(cls.hidden))
        return io.NodeOutput(apply(model, timestep_map, options))
