"""MiniMax H3: text, sound and clip in one sequence, whose parts have rows in a table of timesteps.

The network takes its timestep as a number and makes that table of it. The tokens of the clip are given rows of their own,
behind the table's. Everything else stays at the schedule's noise level: the text, and the sound, whose own level ComfyUI
derives from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...asyndm_core.hooks import hooked
from .families import Inputs
from .nested import beside_index, clip_index
from .transformer import MASK, Masked, with_mask

CLEAN = 0.001
"""The noise level of what is known: MiniMax H3 was trained with that much noise on given pictures."""
MODALITIES = 3
"""A block has each row of the table for clip, text and sound, in this order."""


class MiniMax(Masked):
    """MiniMax H3 in one run."""

    def _least(self, sampling: Any) -> float:
        return CLEAN

    def _told(self, network: nn.Module, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool) -> Tensor:
        return timesteps[beside_index(index)]

    @contextmanager
    def _meanwhile(
        self, holder: Any, network: nn.Module, told: Tensor, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool
    ) -> Iterator[None]:  # fmt: skip
        levels, index = timesteps / 1000, clip_index(index, inputs)
        if masked and inputs.get(MASK) is not None:
            least = levels.clamp(max=CLEAN)
            levels, index = self.multiplied(levels, index, inputs[MASK])
            levels = levels.maximum(least.repeat_interleave(len(levels) // len(least)))
        height, width = self.patch[-2:]
        table = _Table(network, levels, index[:1, :, ::height, ::width].flatten())

        def hooks() -> Iterator[RemovableHandle]:
            yield network.register_forward_pre_hook(with_mask(None), with_kwargs=True)
            for block in network.blocks:
                yield block.register_forward_pre_hook(table.in_block)
            yield network.final_layer.register_forward_pre_hook(table.at_end)

        with hooked(hooks()):
            yield


class _Table:
    """The rows of a clip's tokens in one call. levels (n,): the distinct sigmas, of which index (tokens,) is the map."""

    def __init__(self, network: nn.Module, levels: Tensor, index: Tensor) -> None:
        self._network, self._levels, self._index = network, levels, index
        self._longer: tuple[Tensor, Tensor] | None = None

    def in_block(self, module: nn.Module, args: tuple) -> tuple:
        """A pre-hook of a block: (tokens, table, [(start, stop, row), ...], ...); the clip closes the sequence."""
        tokens, table, (*others, (start, stop, _)), *rest = args
        rows = (len(table) + self._index) * MODALITIES
        return tokens, self._with_ours(table), [*others, (start, stop, rows)], *rest

    def at_end(self, module: nn.Module, args: tuple) -> tuple:
        """A pre-hook of the last layer: (tokens, table, the clip's (start, stop, row), ...)."""
        tokens, table, (start, stop, _), *rest = args
        return tokens, self._with_ours(table), (start, stop, len(table) + self._index), *rest

    def _with_ours(self, table: Tensor) -> Tensor:
        if self._longer is None or self._longer[0] is not table:
            self._longer = table, torch.cat([table, self._rows().to(table)])
        return self._longer[1]

    def _rows(self) -> Tensor:
        """What the network embeds our timesteps as: it counts them from noise to picture."""
        times, network = 1 - self._levels, self._network
        if not network.use_adaln_curves:
            return network.time_embedder(times)
        curve = network.adaln_t_table.to(times.device)
        place = times.clamp(0, 1) * (len(curve) - 1)
        before = place.long().clamp(max=len(curve) - 2)
        return torch.lerp(curve[before], curve[before + 1], (place - before)[:, None])
