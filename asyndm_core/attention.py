"""Where the model looks for a word: cross-attention probabilities of the target tokens, read beside the model's own path.

The model keeps its own attention kernel; queries and keys are seen by hooks, and only the few columns that belong to
targets are kept, summed over layers as they come (arXiv 2510.04504, section 3.3: the mean over heads and layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .hooks import hooked


def token_columns(positions: Sequence[Sequence[int]], length: int) -> Tensor:
    """The matrix (length, words) that turns probabilities of tokens into those of words.

    positions: for each word, the context positions of its tokens (all pieces, all occurrences); a word is their mean.
    length: tokens of the conditioning. A word without positions gives 0.
    """
    columns = torch.zeros(length, len(positions))
    for word, tokens in enumerate(positions):
        for token in tokens:
            columns[token, word] += 1 / len(tokens)
    return columns


def fit_columns(columns: Tensor, tokens: int) -> Tensor:
    """Columns ((B,) length, words) for a context that a host made longer: ((B,) tokens, words).

    A conditioning that was repeated along the tokens, to reach a common length, spreads its mass over the copies: they
    are summed. Tokens that others appended belong to no word.
    """
    length = columns.shape[-2]
    if tokens == length:
        return columns
    repeated = torch.cat([columns] * max(tokens // length, 1), dim=-2)[..., :tokens, :]
    return F.pad(repeated, (0, 0, 0, tokens - repeated.shape[-2]))


def as_values(columns: Tensor, like: Tensor) -> Sequence[Tensor]:
    """Columns ((B,) tokens, words) where attention has its values: tensors like the keys ``like`` (B, heads, tokens, d).

    Each holds d words; the last is filled up with zeros.
    """
    padded = F.pad(columns, (0, -columns.shape[-1] % like.shape[-1])).to(like.dtype).unsqueeze(-3)
    return [part.expand_as(like) for part in padded.split(like.shape[-1], dim=-1)]


def probabilities(
    query: Tensor, key: Tensor, values: Sequence[Tensor], mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention probability of each word at each query in each head: softmax(q k^T / sqrt(d)) columns.

    query: (B, heads, queries, d); key: (B, heads, tokens, d), or with fewer heads that several of the query's share; values:
    the words' columns, see ``as_values``. mask, scale: of the scores, as attention takes them.
    Returns (B, heads, queries, words and what they were filled up to). The softmax runs over all tokens, as in the model.
    The columns stand where a model's values do, so its own kind of kernel serves, and no table of scores is held.
    """
    shared = {"enable_gqa": True} if key.shape[1] != query.shape[1] else {}
    shares = [F.scaled_dot_product_attention(query, key, part, mask, scale=scale, **shared) for part in values]
    return shares[0] if len(shares) == 1 else torch.cat(shares, dim=-1)


def choose_factor(factors: Sequence[int]) -> int:
    """Which layers to read, by how much smaller than the latent they are: 4 (the paper's), else the nearest finer one.

    factors: the downsampling factor of every cross-attention layer of the model. Only where all are coarser than 4 is
    the least coarse taken. Raises ValueError if there is none.
    """
    available = sorted(set(factors))
    if not available:
        raise ValueError("The model has no cross-attention layer, so no word can be followed. Use a painted mask.")
    fine = [f for f in available if f <= 4]
    return fine[-1] if fine else available[0]


class Layer(NamedTuple):
    """Cross-attention of one block: ``block`` is called with features (B, C, h, w) first and runs ``attentions`` on them.

    Each of ``attentions`` has submodules ``to_q`` and ``to_k`` and an int ``heads``.
    """

    block: nn.Module
    attentions: Sequence[Any]


Seen = Callable[[Tensor, Tensor, int, int, int], None]
"""Called with query (B, h w, heads x d), key (B, tokens, heads x d), heads, h, w for every layer that is watched."""


@contextmanager
def watching(layers: Sequence[Layer], seen: Seen) -> Iterator[None]:
    """Report the queries and keys of ``layers`` while the context lasts; the layers themselves run undisturbed."""

    def hooks() -> Iterator[RemovableHandle]:
        for layer in layers:
            size: list[int] = [0, 0]
            yield layer.block.register_forward_pre_hook(_remember_size(size))
            for attention in layer.attentions:
                query: list[Tensor] = []
                yield attention.to_q.register_forward_hook(_remember_query(query))
                yield attention.to_k.register_forward_hook(_report_key(query, size, attention.heads, seen))

    with hooked(hooks()):
        yield


def _remember_size(size: list[int]) -> Callable:
    def before_block(module: nn.Module, inputs: tuple) -> None:
        size[:] = inputs[0].shape[-2:]

    return before_block


def _remember_query(query: list[Tensor]) -> Callable:
    def after_to_q(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        query[:] = [output]

    return after_to_q


def _report_key(query: list[Tensor], size: list[int], heads: int, seen: Seen) -> Callable:
    def after_to_k(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if query:
            seen(query.pop(), output, heads, size[0], size[1])

    return after_to_k


class LayerSum:
    """The attention of one prompt's words in the layers of one call, summed as they come.

    columns: (tokens, words), or (B, tokens, words) for a prompt of each item's own, see ``token_columns``.
    """

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns
        self._values: dict[tuple[Any, ...], Sequence[Tensor]] = {}
        self._sums: dict[tuple[int, int, int], tuple[Tensor, int]] = {}

    def add(self, query: Tensor, key: Tensor, heads: int, height: int, width: int) -> None:
        """Add a layer; see ``Seen``."""
        q, k = (each.reshape(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key))
        layout = (k.shape, k.dtype)
        if layout not in self._values:
            self._values[layout] = as_values(fit_columns(self._columns, k.shape[-2]), k)
        seen = probabilities(q, k, self._values[layout])[..., : self._columns.shape[-1]]
        total, layers = self._sums.get((heads, height, width), (None, 0))
        total = seen.to(torch.float32, copy=True) if total is None else total + seen
        self._sums[heads, height, width] = (total, layers + 1)

    def sums(self) -> Iterator[tuple[Tensor, int]]:
        """Of layers of one size and as many heads the sum (B, words, h, w), each the mean over heads; and how many they are."""
        for (_, height, width), (total, layers) in self._sums.items():
            yield total.mean(dim=1).transpose(-1, -2).unflatten(-1, (height, width)), layers

    def mean(self) -> Tensor | None:
        """The mean over layers (B, words, h, w), or None if there was none. Its size is the first layer's."""
        whole, count = None, 0
        for seen, layers in self.sums():
            whole = seen if whole is None else whole + enlarged(seen, whole.shape[-2:])
            count += layers
        return None if whole is None else whole / count


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""PyTorch's names of linear interpolation by the number of dimensions."""


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, n, *) at ``size``, linear; as they are where they are of one pixel and so of every size."""
    if maps.shape[2:] in ((1,) * len(size), tuple(size)):
        return maps
    return F.interpolate(maps, size=tuple(size), mode=LINEAR[len(size)])


STRIDE = 2
"""In a transformer, the picture's queries are read in every second row and column: a quarter of the work."""


def spread_blocks(count: int, low: float, high: float, most: int) -> frozenset[int]:
    """Of a transformer's ``count`` blocks at most so many, evenly spread over a part of the depth, from low to high of 1."""
    among = [n for n in range(count) if low <= n / count < high] or [count // 2]
    steps = max(1, min(most, len(among)) - 1)
    return frozenset(among[round(n * (len(among) - 1) / steps)] for n in range(steps + 1))


class Sequences(NamedTuple):
    """How a transformer's sequences are laid out where words and picture meet.

    queries, keys: tokens of both sequences. picture: the first of the picture's among the queries, row by row; grid (h, w), or
    (t, h, w) of a clip, frame by frame: how many they are. beside: tokens that follow in every row, of a picture beside it.
    """

    queries: int
    keys: int
    picture: int
    grid: tuple[int, ...]
    beside: int = 0


class BlockMean:
    """The attention of one prompt's words in the blocks of one call of a transformer, summed as they come.

    columns: (keys, words), or (B, keys, words), see ``token_columns``. Blocks leave the words unlike shares of the whole: each
    block's map is divided by its mean over the picture, so that all count alike.
    """

    def __init__(self, columns: Tensor, layout: Sequences) -> None:
        self._columns, self._layout = columns, layout
        self._values: dict[tuple[Any, ...], Sequence[Tensor]] = {}
        self._sum: Tensor | None = None

    def add(self, query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> None:
        """Add a block: query (B, heads, queries, d) and key (B, heads or fewer, keys, d).

        mask: what it adds to the scores, or where it attends at all; broadcasts to (B, heads, queries, keys). scale: of the
        scores; None: 1 / sqrt(d).
        """
        maps = self.shares(query, key, mask, scale)
        mean = _mean(maps)
        maps = maps / mean.where(mean > 0, 1)
        self._sum = maps if self._sum is None else self._sum + maps

    def shares(self, query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
        """The words' probabilities in one block, the mean over heads, in an unit of its own: (B, words, [t,] h / 2, w / 2)."""
        words = self._columns.shape[-1]
        picked, size = self._picture(query)
        if mask is not None and mask.shape[-2] > 1:
            mask, _ = self._picture(mask)
        layout = (key.shape, key.dtype)
        if layout not in self._values:
            unit = 2.0 ** (self._layout.keys.bit_length() - 1)  # a share of thousands of tokens is next to nothing in float16
            self._values[layout] = as_values(unit * self._columns, key)
        seen = probabilities(picked, key, self._values[layout], mask, scale)[..., :words]
        return seen.float().mean(dim=1).transpose(-1, -2).unflatten(-1, size)

    def _picture(self, rows: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The rows (..., queries, n) of every second row and column of the picture, and how many of both (of every frame)."""
        *before, width = self._layout.grid
        whole = (*before, width + self._layout.beside)
        of_picture = rows[..., self._layout.picture :, :][..., : prod(whole), :]
        picked = of_picture.unflatten(-2, whole)[..., ::STRIDE, :width:STRIDE, :]
        return picked.flatten(-1 - len(whole), -2), picked.shape[-1 - len(whole) : -1]

    def mean(self) -> Tensor | None:
        """The mean over blocks (B, words, *grid), a map's own mean being 1, or None if there was none."""
        if self._sum is None:
            return None
        return between_rows(self._sum / _mean(self._sum).clamp(min=1e-12), self._layout.grid)


def _mean(maps: Tensor) -> Tensor:
    """The mean of each map (B, words, *), of a clip over all of its frames."""
    return maps.mean(dim=tuple(range(2, maps.ndim)), keepdim=True)


def between_rows(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, n, ..., h, w) of every second row and column at all of ``size`` (..., H, W): those between are the mean of their
    neighbours."""
    (height, width), leading = maps.shape[-2:], maps.shape[:-2]
    maps = F.interpolate(maps.flatten(1, -3), size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)
    maps = F.pad(maps, (0, size[-1] - maps.shape[-1], 0, size[-2] - maps.shape[-2]), mode="replicate")
    return maps.view(*leading, *maps.shape[-2:])


class Attention(NamedTuple):
    """What the model saw of the words.

    shares (B, words, *size): the attention probability of each word; 0 where it has no weight. weight, broadcasting to it
    (one pixel stands for all): how much a pixel counts for the word, 0 where no prompt with the word acts. In any unit.
    """

    shares: Tensor
    weight: Tensor


def nothing_seen(words: int, dims: int, device: torch.device) -> Attention:
    """No prompt with any of the words is in force. dims: 2 of pictures, 3 of clips."""
    nowhere = torch.zeros(1, words, *[1] * dims, device=device)
    return Attention(nowhere, nowhere)


class AttentionSum:
    """The running mean of what was seen, each pixel by its weight: of several prompts, or several evaluations."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, seen: Attention) -> None:
        """Add what was seen; the mean has the size of the largest maps."""
        total, weight = seen.shares * seen.weight, seen.weight
        if self._sum is not None and self._weight is not None:
            size = max(total.shape[2:], self._sum.shape[2:])
            total = enlarged(total, size) + enlarged(self._sum, size)
            weight = enlarged(weight, size) + enlarged(self._weight, size)
        self._sum, self._weight = total, weight

    def mean(self) -> Attention | None:
        """The weighted mean, and the weights in all; None if nothing was seen."""
        if self._sum is None or self._weight is None:
            return None
        return Attention(self._sum / self._weight.where(self._weight > 0, 1), self._weight)
