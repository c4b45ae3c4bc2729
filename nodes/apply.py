"""Node "Apply AsynDM": any sampler node that is given this model samples asynchronously."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..asyndm_core.regions import TimestepMap
from .comfy_host import apply
from .types import CATEGORY, TimestepMapSocket


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
                "and the samplers of other packs. Place it last before the sampler. The sampler's positive must come "
                "from the Cross-Attention Mask."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to sample. It is not changed: a patched copy comes out."),
                TimestepMapSocket.Input("timestep_map", tooltip="From Asynchronous Timestep Map."),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, timestep_map: TimestepMap) -> io.NodeOutput:
        """Return the patched clone."""
        return io.NodeOutput(apply(model, timestep_map))
