"""The list of the pack's nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import Apply
from .compare import Compare
from .cross_attention_mask import CrossAttentionMask
from .demo_model import DemoModel
from .ksampler import AsynDMKSampler
from .timestep_map import TimestepMapNode


class AsynDMExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes, in the order of a graph."""
        return [CrossAttentionMask, TimestepMapNode, AsynDMKSampler, Apply, DemoModel, Compare]
