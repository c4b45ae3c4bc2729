"""LTX-Video and LTX-2: their timestep is multiplied by the denoise mask, and the sound of a clip has one of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...asyndm_core.hooks import hooked
from ...asyndm_core.timestep_rows import reference
from .attention import TokenReader
from .families import Family, Inputs
from .nested import beside_index, clip_index
from .transformer import MASK, Masked, processing, with_mask

KEYFRAMES = "keyframe_idxs"
GATE = "av_ca_v2a_gate_adaln_single"
"""The module of LTX-2 that says how much sound attends to the clip."""


class Lightricks(Masked):
    """LTX-Video or LTX-2 in one run.

    A clip with keyframes has tokens that the network drops, so it is given a timestep for each token, as it takes them for
    masks; so it is where a soft mask makes more distinct timesteps than rows are good for.
    """

    def __init__(self, network: nn.Module, family: Family, dims: int = 2) -> None:
        super().__init__(network, family, dims)
        self._gated = _gates_by_clip(network)
        self._kept: dict[int, int] = {}

    def reader(self, network: nn.Module, x: Tensor, text: int, inputs: Inputs) -> TokenReader:
        """Of the clip alone: the tokens of its keyframes follow it."""
        reader = super().reader(network, x, text, inputs)
        if not _has_keyframes(inputs):
            return reader
        frames, *size = reader.call.grid
        own = frames - _frames_of(inputs[KEYFRAMES], size)
        return reader._replace(call=reader.call._replace(grid=(own, *size), tail=self._kept_of(inputs)))

    def _kept_of(self, inputs: Inputs) -> int:
        """How many tokens of keyframes the network does not drop. It is looked once for a run: that waits for the device."""
        count = inputs[KEYFRAMES].shape[2]
        if count not in self._kept:
            self._kept[count] = int((inputs[MASK][0, 0].flatten()[-count:] >= 0).sum())
        return self._kept[count]

    def _told(self, network: nn.Module, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool) -> Tensor:
        index = clip_index(index, inputs)
        if masked and inputs.get(MASK) is not None:
            timesteps, index = self.multiplied(timesteps, index, inputs[MASK])
        if _has_keyframes(inputs) or 2 * len(timesteps) > index[0].numel():
            return timesteps[index].flatten(1)[..., None]
        return super()._told(network, timesteps, index, inputs, masked)

    @contextmanager
    def _meanwhile(
        self, holder: Any, network: nn.Module, told: Tensor, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool
    ) -> Iterator[None]:  # fmt: skip
        beside, plain = beside_index(index), reference(told)
        noisiest = plain.flatten(1).amax(dim=1) if plain.ndim > 1 else plain
        of_sound = noisiest if beside is None else timesteps[beside]
        own = holder.process_timestep

        def process_timestep(timestep: Tensor, denoise_mask: Tensor | None = None, **kwargs: Any) -> Any:
            made = own(of_sound.float(), **kwargs)
            return (timestep, made[1]) if isinstance(made, tuple) else timestep

        def hooks() -> Iterator[RemovableHandle]:
            mask = _uneven(inputs[MASK]) if plain.ndim > 1 and inputs.get(MASK) is not None else None
            yield network.register_forward_pre_hook(with_mask(mask), with_kwargs=True)
            if self._gated:
                own_gates = _at(noisiest * network.av_ca_timestep_scale_multiplier)
                yield network.get_submodule(GATE).register_forward_pre_hook(own_gates)

        with processing(holder, process_timestep), hooked(hooks()):
            yield


def keyframes_of(conds: Sequence[Mapping[str, Any]], size: Sequence[int]) -> int:
    """How many of the frames of clips of a size, (T, H, W), are keyframes: given pictures behind its own, by the conds."""
    given = [cond[KEYFRAMES] for cond in conds if cond.get(KEYFRAMES) is not None]
    return max((_frames_of(each, size[-2:]) for each in given), default=0) if len(size) == 3 else 0


def _frames_of(keyframes: Tensor, size: Sequence[int]) -> int:
    """How many frames have so many tokens, (B, 3, tokens, ...). size: (H, W)."""
    return keyframes.shape[2] // prod(size)


def _has_keyframes(inputs: Inputs) -> bool:
    keyframes = inputs.get(KEYFRAMES)
    return keyframes is not None and keyframes.shape[2] > 0


def _gates_by_clip(network: nn.Module) -> bool:
    """Newer ComfyUI gives that module the noisiest timestep of the clip; of all pictures of a batch, which are none of each
    other's business."""
    return hasattr(network, GATE) and "timestep_scaled.max()" in inspect.getsource(network._prepare_timestep)


def _uneven(mask: Tensor) -> Tensor:
    """A mask (B, C, T, H, W) that differs within every frame, and is negative where the given one is.

    LTX-2 takes one timestep for all of a frame where its mask is even there, whatever it is given.
    """
    ramp = torch.linspace(0.0, 1.0, mask[0, 0, 0].numel(), device=mask.device, dtype=mask.dtype).view(mask.shape[-2:])
    return torch.where(mask < 0, mask, ramp)


def _at(timesteps: Tensor) -> Callable:
    """A hook that gives a module these timesteps, one for each picture, in the place of its own."""

    def before(module: nn.Module, args: tuple) -> tuple:
        count = reference(args[0]).shape[0] // timesteps.shape[0]
        return (timesteps.repeat_interleave(count), *args[1:])

    return before
