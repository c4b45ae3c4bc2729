"""Where the model looks for a word: cross-attention probabilities of the target tokens, read beside the model's own path.

The model keeps its own attention kernel; queries and keys are seen by hooks, and only the few columns that belong to
targets are kept, summed over layers as they come (arXiv 2510.04504, section 3.3: the mean over heads and layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """Columns (length, words) for a context that a host made longer: (tokens, words).

    A conditioning that was repeated along the tokens, to reach a common length, spreads its mass over the copies: they
    are summed. Tokens that others appended belong to no word.
    """
    if tokens == columns.shape[0]:
        return columns
    repeated = columns.repeat(max(tokens // columns.shape[0], 1), 1)[:tokens]
    return F.pad(repeated, (0, 0, 0, tokens - repeated.shape[0]))


def probabilities(query: Tensor, key: Tensor, heads: int, columns: Tensor) -> Tensor:
    """Attention probability of each word at each query, mean over heads: softmax(q k^T / sqrt(d)) columns.

    query: (B, queries, heads x d); key: (B, tokens, heads x d); columns: (tokens, words), or (B, tokens, words) for a
    prompt of each item's own. Returns (B, words, queries) float32. The softmax runs over all tokens, as in the model.
    """
    q = query.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
    k = key.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
    logits = torch.baddbmm(q.new_empty(()), q, k.transpose(-1, -2), beta=0, alpha=q.shape[-1] ** -0.5)
    share = logits.softmax(dim=-1, dtype=torch.float32).unflatten(0, (-1, heads)).mean(dim=1)
    return (share @ columns).transpose(-1, -2)


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
    with ExitStack() as hooks:
        for layer in layers:
            size: list[int] = [0, 0]
            hooks.callback(layer.block.register_forward_pre_hook(_remember_size(size)).remove)
            for attention in layer.attentions:
                query: list[Tensor] = []
                hooks.callback(attention.to_q.register_forward_hook(_remember_query(query)).remove)
                hooks.callback(attention.to_k.register_forward_hook(_report_key(query, size, attention.heads, seen)).remove)
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


class AttentionSum:
    """The running sum of what was seen in one evaluation of the model; its mean is over everything added."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count: Tensor | float | None = None

    def add(self, seen: Tensor, count: Tensor | float = 1.0) -> None:
        """Add one layer's probabilities (B, words, h, w).

        ``count`` (broadcasts to ``seen``) is 0 where a word was not in force, 1 where it was.
        """
        if self._sum is not None and seen.shape[-2:] != self._sum.shape[-2:]:
            size = self._sum.shape[-2:]
            seen = F.interpolate(seen, size=size, mode="bilinear")
            if isinstance(count, Tensor) and count.shape[-2:] != (1, 1):
                count = F.interpolate(count, size=size, mode="bilinear")
        self._sum = seen if self._sum is None else self._sum + seen
        self._count = count if self._count is None else self._count + count

    def merge(self, other: AttentionSum, device: torch.device) -> None:
        """Add all that another sum has seen, brought to ``device``."""
        if other._sum is not None and other._count is not None:
            count = other._count.to(device) if isinstance(other._count, Tensor) else other._count
            self.add(other._sum.to(device), count)

    def mean(self) -> Tensor | None:
        """(B, words, h, w), or None if nothing was seen."""
        if self._sum is None or self._count is None:
            return None
        if isinstance(self._count, Tensor):
            return self._sum / self._count.clamp(min=1)
        return self._sum / self._count
