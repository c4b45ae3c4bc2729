"""ComfyUI's diffusion transformers, told a map of noise levels for the time of a call.

The network gets ``TimestepRows`` for its timestep and runs as it is. Around it: ``model_sampling`` by the map, hooks that
keep the modulation of text what it was, and hooks that show quantised layers an ordinary batch. All of it is put back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...asyndm_core.embedding import PixelTimesteps
from ...asyndm_core.grid import TokenGrid
from ...asyndm_core.hooks import hooked
from ...asyndm_core.timestep_rows import (
    Columns,
    Layout,
    TimestepRows,
    as_reference,
    folded,
    joined,
    levels_of,
    parted,
    unfolded,
    with_columns,
)
from .attention import Call, TokenReader
from .families import Family, Inputs
from .model import MapSampling, UnsupportedModelError

AT_ONCE = 32
"""How many timesteps, of all pictures together, a large module is given at once.

Chroma computes all its modulations from each timestep: 344 vectors of 5120 numbers in every layer, 3.5 MB in bf16. For 300
timesteps of a prompt and its negative that is 2.1 GB for each of some four tensors, where one more picture of 1024 x 1024 has
0.2 GB in its largest. For 32 it is 0.1 GB.
"""


MASK = "denoise_mask"
"""What models are told a denoise mask by that multiply their timestep by it."""


class _Modules(NamedTuple):
    """The modules of a network that are hooked: those of text alone; those of both, with text's columns; large ones;
    quantised ones."""

    text: list[nn.Module]
    both: list[tuple[nn.Module, Callable[[int], Columns]]]
    large: list[nn.Module]
    quantised: list[nn.Module]


class Transformer:
    """A transformer of a known family in one run.

    network: of the model, or of a ControlNet. Copies of it on other devices are told by the same family. dims: of the maps,
    2 of pictures and 3 of clips. lender: the model's network, for a ControlNet that computes with modules of it.
    """

    def __init__(self, network: nn.Module, family: Family, dims: int = 2, lender: nn.Module | None = None) -> None:
        self.network, self.family, self._lender = network, family, lender
        self.patch, self._opens = family.patch_of(network, dims), family.opens(network)
        self._modules: dict[nn.Module, _Modules] = {}
        self._chosen: dict[nn.Module, frozenset[int]] = {}

    def entrance(self, network: nn.Module) -> nn.Module:
        """What every evaluation of the network runs first."""
        return network

    def prepare_reading(self, network: nn.Module) -> None:
        """Choose the blocks of a network in which words are read. UnsupportedModelError where none can be."""
        if self.family.reading is None:
            raise UnsupportedModelError(
                f"AsynDM cannot follow words in {self.family.name} ({type(network).__name__}): paint the regions (connect "
                "mask to Cross-Attention Mask and set mask_mode to replace)."
            )
        self._chosen[network] = self.family.reading.chosen(network)

    def reader(self, network: nn.Module, x: Tensor, text: int, inputs: Mapping[str, Any]) -> TokenReader:
        """What reads the words in a call on latents x, with a conditioning of ``text`` rows and these other inputs."""
        grid = self._grid(x)
        around = self._around(network, inputs, grid)
        call = Call(network, grid, self.patch, *around, self._opens, text, text, inputs)
        return TokenReader(self.family.reading, call, self._chosen[network])

    def told(
        self, model: Any, latents: PixelTimesteps, index: Tensor, inputs: Inputs, masked: bool = True
    ) -> AbstractContextManager[None]:  # fmt: skip
        """While it lasts, a model's network knows the noise level of every token.

        inputs: what the model is called with. masked: whether a model that multiplies its timestep by the denoise mask is to
        do so to the map's; False where the map says already how noisy known pixels are. See ``holder_told`` for the rest.
        """
        return self.holder_told(model, "model_sampling", model.diffusion_model, latents, index, inputs, masked)

    @contextmanager
    def holder_told(
        self, holder: Any, attribute: str, network: nn.Module, latents: PixelTimesteps, index: Tensor, inputs: Inputs,
        masked: bool = True,
    ) -> Iterator[None]:  # fmt: skip
        """While it lasts, a network of this family knows the noise level of every token.

        holder.attribute: the ``model_sampling`` that prepares the network's input and timesteps. latents: the distinct sigmas
        and their map. index (B, *size): the map of this call's batch, which has a row for every image of every cond, and is
        cropped where the cond has an area; it is on the network's device.
        """
        sampling = getattr(holder, attribute)
        values = latents.values.to(index.device)
        timesteps = sampling.timestep(values.clamp(min=self._least(sampling)))
        told = self._told(network, timesteps, index, inputs, masked)
        setattr(holder, attribute, MapSampling(sampling, values[index], told))
        try:
            meanwhile = self._meanwhile(holder, network, told, timesteps, index, inputs, masked)
            with hooked(self._hooks(network)), meanwhile:
                yield
        finally:
            setattr(holder, attribute, sampling)

    def _least(self, sampling: Any) -> Any:
        """The smallest noise level that a network can be told."""
        return sampling.sigmas[0]

    def _told(self, network: nn.Module, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool) -> Tensor:
        """What a network is given for its timestep. timesteps (n,): the distinct ones, of which index is the map."""
        return TimestepRows.of(levels_of(timesteps, index), self._layout(network, index, inputs))

    def _meanwhile(
        self, holder: Any, network: nn.Module, told: Tensor, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool
    ) -> AbstractContextManager[None]:  # fmt: skip
        """What else is another way while a network is told ``told``."""
        return nullcontext()

    def _layout(self, network: nn.Module, index: Tensor, inputs: Inputs) -> Layout:
        family, batch = self.family, index.shape[0]
        pixels = index + 1  # row 0 is the reference
        if family.beside is not None and family.beside in inputs:
            pixels = F.pad(pixels, (0, inputs[family.beside].shape[-1]))
        head, tail = self._around(network, inputs, self._grid(pixels))
        return Layout(pixels, self.patch, batch, self._opens, tail, head)

    def _grid(self, latents: Tensor) -> tuple[int, ...]:
        """How many tokens latents or maps (..., *size) have along every dimension."""
        return TokenGrid(tuple(latents.shape[-len(self.patch) :]), self.patch).shape

    def _around(self, network: nn.Module, inputs: Inputs, grid: tuple[int, ...]) -> tuple[int, int]:
        """How many tokens come before and after the picture's own in its stream."""
        family = self.family
        return family.head(network, inputs, self.patch), family.tail(network, inputs, self.patch, prod(grid))

    def _hooks(self, network: nn.Module) -> Iterator[RemovableHandle]:
        if network not in self._modules:
            self._modules[network] = _hooked_modules(network, self.family, self._lender)
        modules = self._modules[network]
        for module in modules.text:
            yield module.register_forward_pre_hook(as_reference, with_kwargs=True)
        for module, columns in modules.both:
            yield module.register_forward_hook(_with_columns_of(columns))
        for module, hooks in (*((each, _part()) for each in modules.large), *((each, _fold()) for each in modules.quantised)):
            before, after = hooks
            yield module.register_forward_pre_hook(before)
            yield module.register_forward_hook(after)


class Masked(Transformer):
    """A transformer that multiplies its timestep by a denoise mask."""

    _levels: Tensor | None = None

    def look_at_masks(self, conds: Sequence[Mapping[str, Any]]) -> None:
        """Note the values of the masks that conds of ComfyUI hold, once for a run: that waits for the device."""
        held = [cond.get("model_conds", {}).get(MASK) for cond in conds]
        masks = [self._factor(each.cond).flatten() for each in held if each is not None]
        self._levels = torch.cat(masks).unique() if masks else None

    def multiplied(self, timesteps: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A map of timesteps times a denoise mask (B or 1, C, *size): the distinct products, of each timestep in turn, and
        their map. A value that is none of the noted ones, by rounding, is the nearest."""
        factor = self._factor(mask).to(index.device).contiguous()
        levels = factor.unique() if self._levels is None else self._levels.to(index.device)
        which = torch.bucketize(factor, (levels[1:] + levels[:-1]) / 2)
        return (timesteps[:, None] * levels).flatten(), index * len(levels) + which.view(-1, *which.shape[-index.ndim + 1 :])

    def _factor(self, mask: Tensor) -> Tensor:
        """What a mask (B, C, *size) multiplies timesteps by: (B, *size). It is the same in all channels."""
        return mask[:, 0].float()


class ByFrame(Masked):
    """One that does so frame by frame, by the mask's mean there, and would have a timestep for each frame of each level."""

    def _told(self, network: nn.Module, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool) -> Tensor:
        if masked and inputs.get(MASK) is not None:
            timesteps, index = self.multiplied(timesteps, index, inputs[MASK])
        return super()._told(network, timesteps, index, inputs, masked)

    def _meanwhile(
        self, holder: Any, network: nn.Module, told: Tensor, timesteps: Tensor, index: Tensor, inputs: Inputs, masked: bool
    ) -> AbstractContextManager[None]:  # fmt: skip
        return processing(holder, lambda timestep, **kwargs: timestep)

    def _factor(self, mask: Tensor) -> Tensor:
        return mask.float().mean(dim=(1, 3, 4), keepdim=True)[:, 0]


@contextmanager
def processing(holder: Any, function: Callable) -> Iterator[None]:
    """While it lasts, a function makes of a model's timesteps what its network is given."""
    before = vars(holder).get("process_timestep")
    holder.process_timestep = function
    try:
        yield
    finally:
        del holder.process_timestep
        if before is not None:
            holder.process_timestep = before


def with_mask(mask: Tensor | None) -> Callable:
    """A forward pre-hook (with_kwargs) of a network: it is given another denoise mask, or none."""
    return lambda module, args, kwargs: (args, {**kwargs, MASK: mask})


def _hooked_modules(network: nn.Module, family: Family, lender: nn.Module | None = None) -> _Modules:
    """Look a network's modules up, and those that it is lent."""
    found = _Modules([], [], [], [])
    for name, module in _named_modules(network):
        if any(re.search(pattern, name) for pattern in family.text):
            found.text.append(module)
        found.both.extend((module, columns(network)) for pattern, columns in family.columns if re.search(pattern, name))
        if any(re.search(pattern, name) for pattern in family.large):
            found.large.append(module)
        if _is_quantised(module):
            found.quantised.append(module)
    for name, module in () if lender is None else _named_modules(lender):
        if any(re.search(pattern, name) for pattern in family.lent) and _is_quantised(module):
            found.quantised.append(module)
    return found


def _named_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By their names before torch.compile put other modules around some of them."""
    return ((name.replace("_orig_mod.", ""), module) for name, module in network.named_modules())


def _is_quantised(module: nn.Module) -> bool:
    """Whether a linear layer computes with weights of another kind than PyTorch's own floats of 16 or more bits."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return False
    return type(weight) not in (Tensor, nn.Parameter) or weight.dtype.itemsize == 1


def _with_columns_of(columns: Callable[[int], Columns]) -> Callable:
    """A hook that marks text's columns. It holds no network: torch.compile would meet that twice."""

    def mark(module: nn.Module, args: tuple, output: Any) -> Any:
        return with_columns(output, columns(output.shape[-1]))

    return mark


def _part() -> tuple[Callable, Callable]:
    """Hooks that give a module its rows a few at a time. torch.compile, which would compile it for every number of times, gives
    it all."""
    done: list[list[TimestepRows]] = []
    within: list[bool] = []

    def before(module: nn.Module, args: tuple) -> tuple | None:
        rows = args[0]
        if torch.compiler.is_compiling() or within or not isinstance(rows, TimestepRows):
            return None
        *first, last = parted(rows, max(1, AT_ONCE // rows.places.batch))
        if not first:
            return None
        within.append(True)
        done.append([module(part, *args[1:]) for part in first])
        within.clear()
        return (last, *args[1:])

    def after(module: nn.Module, args: tuple, output: TimestepRows) -> TimestepRows | None:
        return joined([*done.pop(), output]) if done and not within else None

    return before, after


def _fold() -> tuple[Callable, Callable]:
    """Hooks that show a layer one ordinary, larger batch for rows."""
    came: list[TimestepRows] = []

    def before(module: nn.Module, args: tuple) -> tuple | None:
        if not isinstance(args[0], TimestepRows):
            return None
        came.append(args[0])
        return (folded(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return unfolded(output, came.pop()) if came else None

    return before, after
