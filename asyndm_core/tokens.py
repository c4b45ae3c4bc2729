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
_UNREADABLE = "\ue000"
"""A character that no vocabulary holds: a tokenizer of bytes cuts it up, any other has one token for all that it can't read."""

_LONGEST_STAND_IN, _SURE_RUN = 4, 8
"""Pieces of a stand-in, at most; and how many of what follows, found again in their order, are sure to be the same."""


class Piece(NamedTuple):
    """One entry of a tokenised text: its position in the conditioning, and its token (an id, or an embedding's vector)."""

    position: int
    token: int | Tensor


Tokenize = Callable[[str], Sequence[Piece]]
"""The content of a text as pieces: without start, end and padding."""


class UnknownWordError(AsynDMError):
    """A target that the prompt does not contain."""


class UnreadableWordError(UnknownWordError):
    """A target that the prompt contains and the text encoder has no tokens for."""


def find_word(tokenize: Tokenize, prompt: str, target: str) -> list[int]:
    """The positions of a target's tokens in a prompt, of all its occurrences, ascending; none where it is not there, or where
    the tokenizer can't tell it from any other word that it has no tokens for.

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
        word = prompt[start:end]
        with_other = lambda other, start=start, end=end: tokenize(prompt[:start] + other + prompt[end:])  # noqa: E731
        if word.isascii() or changed(pieces, with_other(_UNREADABLE)):
            found.update(piece.position for piece in changed(pieces, with_other(_stand_in(word))))
    return sorted(found)


def _stand_in(word: str) -> str:
    """A word that begins and ends with other bytes than this one; for what is no word, with spaces around it."""
    given = word.lower().encode()
    pool = _WIDE_STAND_INS if is_unspaced(word) else _STAND_INS
    chosen = next(w for w in pool if w.encode()[0] != given[0] and w.encode()[-1] != given[-1])
    return chosen if word[0].isalnum() else f" {chosen} "


def changed(pieces: Sequence[Piece], others: Sequence[Piece]) -> Sequence[Piece]:
    """The pieces between what two texts have in common at their beginning and at their end."""
    most = min(len(pieces), len(others))
    before = 0
    while before < most and _same(pieces[before].token, others[before].token):
        before += 1
    after = 0
    while after < most - before and _same(pieces[-1 - after].token, others[-1 - after].token):
        after += 1
    changed, swapped = pieces[before : len(pieces) - after], others[before : len(others) - after]
    return changed[: _cut_short(changed, swapped)]


def _cut_short(changed: Sequence[Piece], swapped: Sequence[Piece]) -> int:
    """How many of the changed pieces are so where the tokenizer cuts long texts: there what follows has only moved along."""
    for start in range(len(changed) - _SURE_RUN):
        for other in range(min(_LONGEST_STAND_IN, len(swapped) - _SURE_RUN) + 1):
            moved = list(zip(changed[start:], swapped[other:], strict=False))
            if len(moved) >= _SURE_RUN and all(_same(a.token, b.token) for a, b in moved):
                return start
    return len(changed)


def _same(a: int | Tensor, b: int | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    return a == b


def unknown_word(target: str, prompt: str) -> UnknownWordError:
    """The error for a target without a position: it lists the words of the prompt, or says that it can't be read."""
    if any(stretches(prompt, target)):
        return UnreadableWordError(
            f"The text encoder does not read the target '{shortened(target)}': it has no tokens for it, or it stands behind "
            "the last token that the encoder takes, so the model can't follow it. Write it in English or earlier in the "
            "widget text of Cross-Attention Mask, name another word in targets, or set lost_targets to skip."
        )
    return UnknownWordError(
        f"The target '{shortened(target)}' is not in the prompt. Words of the prompt: "
        f"{shortened(', '.join(prompt_words(prompt)), 600)}. "
        "Correct the widget targets of Cross-Attention Mask, add the word to its text, or set its lost_targets to skip."
    )
