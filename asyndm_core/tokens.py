"""From words to token positions: which places of the conditioning belong to a target, over any tokenizer's pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import AsynDMError
from .regions import Target, check_strength

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"  # with one way to read it: two would take time to the square of its length
_WEIGHT = re.compile(rf":\s*{_NUMBER}\s*(?=\))")
_STRENGTH = re.compile(rf"^(?P<text>.*\S)\s*:\s*(?P<strength>{_NUMBER}|[-+]?(?:nan|inf))$", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"embedding:[^\s,()]+|[^\W_]+(?:['’-]{1,2}[^\W_]+)*|[^\w\s]|_")

FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no and or but nor so as of to in on at by for from with without "
    "into onto over under above below behind beside between near next left right front back top bottom around across "
    "through along against inside outside during while is are was were be been being has have had do does did it its "
    "their his her my your our he she they we you i who which what where when there here very really quite too also "
    "one two three four five six seven eight nine ten many several few".split()
)
STYLE_WORDS = frozenset(
    "masterpiece best high highly low quality detailed ultra extremely intricate photo photograph photography picture "
    "image painting drawing illustration render rendering sketch artwork art style realistic photorealistic hd uhd 4k "
    "8k hdr cinematic lighting sharp focus bokeh trending artstation background foreground scene view closeup".split()
)
PLACE_WORDS = frozenset("in at during inside outside".split())


LONGEST_TEXT = 20_000
"""Characters of a prompt or of the targets, at most: some 50 times a long prompt. A text encoder takes seconds for them."""
MOST_TARGETS = 256


class Piece(NamedTuple):
    """One entry of a tokenised text: its position in the conditioning, and its token (an id, or an embedding's vector)."""

    position: int
    token: int | Tensor


class UnknownWordError(AsynDMError):
    """A target that the prompt does not contain."""


def check_text(text: str, widget: str) -> None:
    """ValueError, naming the widget of Cross-Attention Mask, for what is no text, or more than any prompt has."""
    if not isinstance(text, str):
        raise ValueError(
            f"The input {widget} of Cross-Attention Mask got {type(text).__name__} instead of a text: check its link."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"The widget {widget} of Cross-Attention Mask holds half a character (a lone surrogate): type it anew."
        )
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"The widget {widget} of Cross-Attention Mask holds {len(text)} characters: at most {LONGEST_TEXT} are taken. "
            "Shorten it, or check what is linked to it."
        )


def check_count(targets: Sequence[Target]) -> None:
    """ValueError for more targets than a run can follow."""
    if len(targets) > MOST_TARGETS:
        raise ValueError(
            f"There are {len(targets)} targets: at most {MOST_TARGETS} can be followed. Name the 1 to 3 things that matter "
            "in the widget targets of Cross-Attention Mask."
        )


def shortened(text: str, most: int = 80) -> str:
    """A text as an error quotes it: its beginning, where it is long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def parse_targets(text: str) -> tuple[Target, ...]:
    """Targets as typed: words or phrases between commas or line breaks, each with an optional strength after a colon.

    "rabbit, basketball:0.4" -> rabbit with the map's strength, basketball with 0.4. Raises ValueError for a strength out
    of [0, 1] or a target that is listed twice.
    """
    targets: list[Target] = []
    known: set[str] = set()
    for entry in re.split(r"[,\n]", text):
        entry = " ".join(entry.split())
        if not entry:
            continue
        match = _STRENGTH.match(entry)
        strength = None
        if match:
            entry = match["text"]
            strength = check_strength(float(match["strength"]), f"The strength of target '{shortened(entry)}' (widget targets)")
        if entry.lower() in known:
            raise ValueError(f"The target '{shortened(entry)}' is listed twice in the widget targets: name it once.")
        known.add(entry.lower())
        targets.append(Target(entry, strength))
    return tuple(targets)


def plain_text(prompt: str) -> str:
    """The prompt without the syntax of weights: "a (red fox:1.3)" -> "a red fox". Escaped brackets stay as brackets."""
    bare = _WEIGHT.sub("", prompt.replace(r"\(", "\0").replace(r"\)", "\1"))
    return bare.replace("(", "").replace(")", "").replace("\0", "(").replace("\1", ")")


def _pieces(prompt: str) -> list[str]:
    """The words and the punctuation of a prompt without weights; marks upon letters are neither."""
    found = _WORD.findall(plain_text(prompt))
    return [piece for piece in found if len(piece) > 1 or not unicodedata.category(piece).startswith("M")]


def _is_word(piece: str) -> bool:
    return len(piece) > 1 or piece.isalnum()


def prompt_words(prompt: str) -> list[str]:
    """The words of a prompt, each once, in order, without weights and punctuation."""
    return list(dict.fromkeys(filter(_is_word, _pieces(prompt))))


def content_phrases(prompt: str) -> list[str]:
    """The phrases that carry the content of a prompt: runs of words between function words and punctuation.

    "a green boat on the sea, in winter" -> ["green boat", "sea"]. Words of style or quality are left out, and so are places
    named by "in" or "at": they are the context. Only where nothing else is left are those places taken. BREAK, which other
    programs know as a divider, divides here too.
    """
    phrases: list[str] = []
    places: list[str] = []
    run: list[str] = []
    opened_by = ""
    for word in [*_pieces(prompt), "."]:
        lower = word.lower()
        if lower in FUNCTION_WORDS or lower in STYLE_WORDS or word == "BREAK" or not _is_word(word):
            if run:
                (places if opened_by in PLACE_WORDS else phrases).append(" ".join(run))
                opened_by = ""
            run = []
            if lower not in ("a", "an", "the"):
                opened_by = lower
        else:
            run.append(word)
    return list(dict.fromkeys(phrases or places))


def find_phrase(prompt: Sequence[Piece], phrase: Sequence[Piece]) -> list[int]:
    """The positions of every occurrence of ``phrase`` in ``prompt``, all pieces of all occurrences, ascending.

    Both hold content only (no start, end or padding). Positions of ``phrase`` are not looked at. An empty phrase is
    found nowhere.
    """
    found: list[int] = []
    for start in range(len(prompt) - len(phrase) + 1 if phrase else 0):
        if not _same(prompt[start].token, phrase[0].token):
            continue
        window = prompt[start : start + len(phrase)]
        if all(_same(a.token, b.token) for a, b in zip(window, phrase, strict=True)):
            found.extend(piece.position for piece in window)
    return sorted(set(found))


def _same(a: int | Tensor, b: int | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    return a == b


def unknown_word(target: str, prompt: str) -> UnknownWordError:
    """The error for a target that is not in the prompt: it lists the words that are."""
    return UnknownWordError(
        f"The target '{shortened(target)}' is not in the prompt. Words of the prompt: "
        f"{shortened(', '.join(prompt_words(prompt)), 600)}. "
        "Correct the widget targets of Cross-Attention Mask, or add the word to its text."
    )
