"""From words to token positions: which places of the conditioning belong to a target, by any tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import AsynDMError
from .words import is_unspaced, prompt_words, shortened, stretches

MOST_OCCURRENCES = 100
"""Of one target: the text is tokenised once for each."""

_STAND_INS = ("apple", "zebra", "queen", "month", "board")
_WIDE_STAND_INS = ("山", "水", "火", "人", "龙")
"""Common words, of which no two begin or end with the same byte."""


class Piece(NamedTuple):
    """One entry of a tokenised text: its position in the conditioning, and its token (an id, or an embedding's vector)."""

    position: int
    token: int | Tensor


Tokenize = Callable[[str], Sequence[Piece]]
"""The content of a text as pieces: without start, end and padding."""


class UnknownWordError(AsynDMError):
    """A target that the prompt does not contain."""


def find_word(tokenize: Tokenize, prompt: str, target: str) -> list[int]:
    """The positions of a target's tokens in a prompt, of all its occurrences, ascending; none where it is not there.

    They are the tokens that change where the target is swapped for another word. Nothing need be known of how the
    tokenizer cuts a text, or joins the punctuation around a word, or reads weights. Raises ValueError for a target that
    occurs too often.
    """
    places = list(stretches(prompt, target))
    if len(places) > MOST_OCCURRENCES:
        raise ValueError(
            f"The target '{shortened(target)}' is {len(places)} times in the prompt: at most {MOST_OCCURRENCES} are followed. "
            "Name another word in the widget targets of Cross-Attention Mask, or shorten its text."
        )
    found: set[int] = set()
    pieces = tokenize(prompt) if places else ()
    for start, end in places:
        swapped = prompt[:start] + _stand_in(prompt[start:end]) + prompt[end:]
        found.update(piece.position for piece in _changed(pieces, tokenize(swapped)))
    return sorted(found)


def _stand_in(word: str) -> str:
    """A word that begins and ends with other bytes than this one; for what is no word, with spaces around it."""
    given = word.lower().encode()
    pool = _WIDE_STAND_INS if is_unspaced(word) else _STAND_INS
    chosen = next(w for w in pool if w.encode()[0] != given[0] and w.encode()[-1] != given[-1])
    return chosen if word[0].isalnum() else f" {chosen} "


def _changed(pieces: Sequence[Piece], others: Sequence[Piece]) -> Sequence[Piece]:
    """The pieces between what two texts have in common at their beginning and at their end."""
    most = min(len(pieces), len(others))
    before = 0
    while before < most and _same(pieces[before].token, others[before].token):
        before += 1
    after = 0
    while after < most - before and _same(pieces[-1 - after].token, others[-1 - after].token):
        after += 1
    return pieces[before : len(pieces) - after]


def _same(a: int | Tensor, b: int | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    return a == b


def unknown_word(target: str, prompt: str) -> UnknownWordError:
    """The error for a target that is not in the prompt: it lists the words that are."""
    return UnknownWordError(
        f"The target '{shortened(target)}' is not in the prompt. Words of the prompt: "
        f"{shortened(', '.join(prompt_words(prompt)), 600)}. "
        "Correct the widget targets of Cross-Attention Mask, add the word to its text, or set its lost_targets to skip."
    )
