"""Diffusers' flow-matching transformers as a host: Flux.1, Stable Diffusion 3, Qwen-Image and Z-Image.

Latents (B, C, H, W) are as the autoencoder's, not packed: x = (1 - sigma) x0 + sigma n. The network runs as it is, with
``TimestepRows`` for its timestep; the words' attention is read where it asks PyTorch for attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..attention import Attention, BlockMean, Sequences, spread_blocks
from ..clock import Clock, NoiseGrid, paper_clock, table_clock
from ..embedding import Groups, PixelTimesteps, grouped
from ..hooks import hooked
from ..samplers import NoiseLaw, Prediction
from ..timestep_rows import Layout, TimestepRows, as_reference, levels_of
from .words import PromptWords

TRAIN_STEPS = 1000
"""The noise levels that a map may have: multiples of 1/1000."""

Prompt = Mapping[str, Tensor]
"""What a network is called with besides latents and timestep, by the names of its arguments; first dimensions are 1 or B."""


class Family(NamedTuple):
    """What is known of the networks of one class.

    velocity: (network, x (B, C, H, W), timesteps (B,), prompt, patch) -> noise less picture, (B, C, H, W). timesteps: sigma ->
    the network's own. patch: (network, C) -> how many latent pixels a token is wide and high. states: the name of the text's
    tensor (B, tokens, D). blocks: the attributes that hold the first blocks in which the picture sees text, in their order.
    read: which of them are, (from, to) as shares of their depth, and how many at most. text: a pattern of the names of modules
    that modulate text alone. opens: whether the picture opens the sequences that it shares with text. multiple: what both are
    filled up to.
    """

    velocity: Callable[[nn.Module, Tensor, Tensor, Prompt, int], Tensor]
    timesteps: Callable[[Tensor], Tensor]
    patch: Callable[[Any, int], int]
    states: str
    blocks: tuple[str, ...]
    read: tuple[float, float, int]
    text: str | None = None
    opens: bool = False
    multiple: int = 1

    def filled(self, tokens: int) -> int:
        """How many tokens they are with those that fill them up."""
        return -(-tokens // self.multiple) * self.multiple


def _packed(x: Tensor, patch: int) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H W / patch^2, C patch^2)."""
    return F.pixel_unshuffle(x, patch).flatten(2).mT


def _unpacked(tokens: Tensor, like: Tensor, patch: int) -> Tensor:
    return F.pixel_shuffle(tokens.mT.unflatten(-1, (like.shape[-2] // patch, like.shape[-1] // patch)), patch)


def _flux(network: nn.Module, x: Tensor, timesteps: Tensor, prompt: Prompt, patch: int) -> Tensor:
    axes = (torch.arange(size // patch, device=x.device, dtype=torch.float32) for size in x.shape[-2:])
    places = torch.stack(torch.meshgrid(torch.zeros(1, device=x.device), *axes, indexing="ij"), dim=-1).view(-1, 3)
    tokens = network(
        hidden_states=_packed(x, patch), timestep=timesteps, img_ids=places,
        txt_ids=places.new_zeros(prompt["encoder_hidden_states"].shape[1], 3), return_dict=False, **prompt,
    )[0]  # fmt: skip
    return _unpacked(tokens, x, patch)


def _qwen_image(network: nn.Module, x: Tensor, timesteps: Tensor, prompt: Prompt, patch: int) -> Tensor:
    shapes = [[(1, x.shape[-2] // patch, x.shape[-1] // patch)]] * x.shape[0]
    tokens = network(
        hidden_states=_packed(x, patch), timestep=timesteps, img_shapes=shapes, return_dict=False, **prompt
    )  # fmt: skip
    return _unpacked(tokens[0], x, patch)


def _sd3(network: nn.Module, x: Tensor, timesteps: Tensor, prompt: Prompt, patch: int) -> Tensor:
    return network(hidden_states=x, timestep=timesteps, return_dict=False, **prompt)[0]


def _z_image(network: nn.Module, x: Tensor, timesteps: Tensor, prompt: Prompt, patch: int) -> Tensor:
    texts = list(prompt["cap_feats"])
    said = network(x=list(x.unsqueeze(2)), t=timesteps, cap_feats=texts, patch_size=patch, return_dict=False)[0]
    return -torch.stack(said).squeeze(2)


def _packs(network: Any, channels: int) -> int:
    return isqrt(network.config.in_channels // channels)


FAMILIES: Mapping[str, Family] = {
    "FluxTransformer2DModel": Family(
        _flux, lambda sigma: sigma, _packs, "encoder_hidden_states",
        ("transformer_blocks",), (0.75, 1.0, 4), r"\.norm1_context$",
    ),
    "SD3Transformer2DModel": Family(
        _sd3, lambda sigma: TRAIN_STEPS * sigma, lambda network, channels: network.config.patch_size,
        "encoder_hidden_states", ("transformer_blocks",), (0.33, 0.46, 4), r"\.norm1_context$", opens=True,
    ),
    "QwenImageTransformer2DModel": Family(
        _qwen_image, lambda sigma: sigma, _packs, "encoder_hidden_states", ("transformer_blocks",), (0.35, 0.7, 5),
        r"\.txt_mod$",
    ),
    "ZImageTransformer2DModel": Family(
        _z_image, lambda sigma: 1 - sigma, lambda network, channels: network.config.all_patch_size[0],
        "cap_feats", ("layers",), (0.5, 0.65, 4), opens=True, multiple=32,
    ),
}  # fmt: skip
"""By the class of the network."""


def family_of(transformer: nn.Module) -> Family:
    """What is known of a network's class. Raises ValueError for another one."""
    family = FAMILIES.get(type(transformer).__name__)
    if family is None:
        raise ValueError(f"{type(transformer).__name__} is not served: only {', '.join(FAMILIES)} are.")
    return family


def patch_of(transformer: nn.Module, channels: int) -> tuple[int, int]:
    """(height, width) in latent pixels of a network's tokens, where latents have so many channels."""
    patch = family_of(transformer).patch(transformer, channels)
    return patch, patch


def make_flow_clock(sigmas: Tensor, paper: bool = False) -> Clock:
    """The clock of a run along a scheduler's sigmas (N + 1,), descending from 1 to 0."""
    grid = NoiseGrid(torch.arange(1, TRAIN_STEPS + 1) / TRAIN_STEPS)
    table = sigmas.float().cpu()
    build = paper_clock if paper else table_clock
    return build(table, (TRAIN_STEPS * table - 1).clamp(min=0), grid).to(sigmas.device)


class _Watch(TorchFunctionMode):
    """While it lasts, a call's attention between picture and text is read, in some of the blocks."""

    def __init__(self, seen: BlockMean, sequences: Sequences, blocks: Collection[int]) -> None:
        super().__init__()
        self._seen, self._sequences, self._blocks = seen, sequences, blocks
        self.calls = 0

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every function of PyTorch passes; attention is looked at."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._look(*args, **kwargs)
        return func(*args, **kwargs)

    def _look(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        """The arguments of PyTorch's attention."""
        if (query.shape[-2], key.shape[-2]) != (self._sequences.queries, self._sequences.keys):
            return
        if self.calls in self._blocks:
            self._seen.add(query, key, attn_mask, scale)
        self.calls += 1


class DiffusersTransformerHost:
    """One run of a diffusers transformer, with classifier-free guidance unless ``uncond`` is None. Implements ``hosts.Host``.

    cond, uncond: see ``Prompt``; their texts may have different lengths, each is a call of its own. words: of the
    plan, in cond's text: see ``PromptWords``. blocks: the numbers of those that are read; None for the family's own. Raises
    ValueError for a network that it cannot serve.
    """

    law = NoiseLaw(flow=True)

    def __init__(
        self,
        transformer: nn.Module,
        cond: Prompt,
        uncond: Prompt | None = None,
        guidance_scale: float = 1.0,
        words: Sequence[Sequence[int]] | Tensor = (),
        blocks: Collection[int] | None = None,
    ) -> None:
        self.transformer, self.family = transformer, family_of(transformer)
        self.cond, self.uncond, self.guidance_scale = cond, uncond, guidance_scale
        self.words = PromptWords(words, cond[self.family.states])
        depth = sum(len(getattr(transformer, name)) for name in self.family.blocks)
        self.blocks = spread_blocks(depth, *self.family.read) if blocks is None else frozenset(blocks)
        pattern = self.family.text
        self._text = [m for name, m in transformer.named_modules() if pattern is not None and re.search(pattern, name)]
        self._seen: BlockMean | None = None

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``; ``reference`` has no use here. The unconditional prediction comes too, for CFG++."""
        timesteps = (groups or grouped(sigma[:, 0])).of(sigma[:, 0])
        cond = x - sigma * self._velocity(x, timesteps, self.cond, watch and len(self.words) > 0)
        if self.uncond is None:
            return Prediction(cond)
        uncond = x - sigma * self._velocity(x, timesteps, self.uncond)
        return Prediction(uncond + self.guidance_scale * (cond - uncond), uncond)

    def attention(self) -> Attention | None:
        """See ``hosts.Host``."""
        return self.words.attention(None if self._seen is None else self._seen.mean())

    def acts(self, reference: Tensor) -> Tensor | None:
        """See ``hosts.Host``."""
        return self.words.acts()

    def _velocity(self, x: Tensor, timesteps: PixelTimesteps, prompt: Prompt, watch: bool = False) -> Tensor:
        """What the network says of x; a uniform map is given as the ordinary timestep."""
        patch = self.family.patch(self.transformer, x.shape[1])
        if x.shape[-2] % patch or x.shape[-1] % patch:
            raise ValueError(f"The latents are {x.shape[-2]} x {x.shape[-1]}: this transformer takes multiples of {patch}.")
        told = {name: value.expand(x.shape[0], *value.shape[1:]) for name, value in prompt.items()}
        with ExitStack() as stack:
            watching = stack.enter_context(self._watch(x, patch)) if watch else None
            if timesteps.values.shape[0] == 1:
                given = self.family.timesteps(timesteps.values).expand(x.shape[0])
            else:
                stack.enter_context(hooked(self._hooks()))
                given = self._rows(x, timesteps, patch)
            said = self.family.velocity(self.transformer, x, given, told, patch)
        if watching is not None and not watching.calls:
            raise ValueError(
                "The words were not seen: this transformer does not ask PyTorch for its attention. Set diffusers' attention "
                "backend to native."
            )
        return said

    def _rows(self, x: Tensor, timesteps: PixelTimesteps, patch: int) -> Tensor:
        """A timestep for each distinct level and picture; the reference, before them, is that of its noisiest pixel."""
        tokens = x.shape[-2] * x.shape[-1] // patch**2
        tail = self.family.filled(tokens) - tokens
        layout = Layout(timesteps.index + 1, (patch, patch), x.shape[0], self.family.opens, tail)
        return TimestepRows.of(self.family.timesteps(levels_of(timesteps.values, timesteps.index)), layout)

    def _hooks(self) -> Iterator[RemovableHandle]:
        for module in self._text:
            yield module.register_forward_pre_hook(as_reference, with_kwargs=True)

    def _watch(self, x: Tensor, patch: int) -> _Watch:
        grid, text = (x.shape[-2] // patch, x.shape[-1] // patch), self.words.columns.shape[-2]
        pictures, texts = self.family.filled(grid[0] * grid[1]), self.family.filled(text)
        start, length = (pictures if self.family.opens else 0), pictures + texts
        sequences = Sequences(length, length, 0 if self.family.opens else texts, grid)
        self._seen = BlockMean(F.pad(self.words.columns, (0, 0, start, length - start - text)), sequences)
        return _Watch(self._seen, sequences, self.blocks)
