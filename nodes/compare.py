"""Node "AsynDM Compare": two pictures under one slider."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from .types import CATEGORY, check_socket


class Compare(io.ComfyNode):
    """Shows one picture over another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_Compare",
            display_name="AsynDM Compare",
            category=CATEGORY,
            description=(
                "Lays two pictures over each other, with a line between them that follows the pointer: for the same seed "
                "without and with AsynDM. Of a batch, the first picture."
            ),
            inputs=[
                io.Image.Input("image_a", tooltip="Seen left of the line, such as the picture of the ordinary sampler."),
                io.Image.Input("image_b", tooltip="Seen right of the line, such as the picture with AsynDM."),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image_a: torch.Tensor, image_b: torch.Tensor) -> io.NodeOutput:
        """Save both as previews, and tell the node where they are."""
        for name, image in (("image_a", image_a), ("image_b", image_b)):
            check_socket(image, torch.Tensor, name, "AsynDM Compare")
        a, b = (ui.PreviewImage(image[:1], cls=cls).as_dict()["images"][0] for image in (image_a, image_b))
        return io.NodeOutput(ui={"asyndm": [{"a": a, "b": b, "batch": max(len(image_a), len(image_b))}]})
