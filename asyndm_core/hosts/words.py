"""The plan's words in the prompts of a run that diffusers' networks are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention import Attention, token_columns


class PromptWords:
    """The words' tokens in one prompt, or in one of each image's own.

    words: for each word of the plan, in its order, the positions of its tokens; or, where each image has a prompt of its own,
    the columns themselves (B, tokens, words), see ``token_columns``. states: the text that they are in, (1 or B, tokens, D).
    """

    def __init__(self, words: Sequence[Sequence[int]] | Tensor, states: Tensor) -> None:
        columns = words if isinstance(words, Tensor) else token_columns(words, states.shape[1])
        present = torch.atleast_2d((columns.sum(dim=-2) > 0).float())[..., None, None]
        self.columns, self._present = columns.to(states.device), present.to(states.device)
        self._everywhere = bool(present.all())

    def __len__(self) -> int:
        return self.columns.shape[-1]

    def attention(self, shares: Tensor | None) -> Attention | None:
        """See ``hosts.Host``. shares (B, words, h, w): of the attention, or None where nothing was read."""
        return None if shares is None else Attention(shares, self._present)

    def acts(self) -> Tensor | None:
        """See ``hosts.Host``: where each image has a prompt of its own, not all words are in all of them."""
        return None if self._everywhere else self._present
