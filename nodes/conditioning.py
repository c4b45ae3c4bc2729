"""Which tokens of a ComfyUI CONDITIONING belong to which word: found with the CLIP object, carried in its dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..asyndm_core.regions import Target
from ..asyndm_core.tokens import (
    Piece,
    UnknownWordError,
    check_count,
    content_phrases,
    find_phrase,
    parse_targets,
    shortened,
    unknown_word,
)

ANNOTATION = "asyndm_targets"
"""Key of the annotation in a conditioning's dict. Part of what saved files and other packs may rely on."""

Conditioning = list[list[Any]]


class Annotation(NamedTuple):
    """What the dict holds under ``ANNOTATION``: token positions by word, and the tokens that the text was encoded to."""

    positions: Mapping[str, tuple[int, ...]]
    length: int


class EncodedText(NamedTuple):
    """A tokenised text: its content pieces in order, and its length in tokens, padding included."""

    pieces: list[Piece]
    length: int


def tokenize(clip: Any, text: str) -> EncodedText:
    """The pieces of ``text`` by the model's own tokenizer.

    Encoders of one model cut a text alike (SDXL's two differ in padding only), so the first is read. Entries of word id 0
    are start, end and padding.
    """
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    entries = [entry for chunk in chunks for entry in chunk]
    pieces = [Piece(position, token) for position, (token, _, word_id) in enumerate(entries) if word_id != 0]
    return EncodedText(pieces, len(entries))


def find_targets(clip: Any, text: str, typed: str) -> tuple[tuple[Target, ...], Annotation]:
    """The targets that are typed (or, if none is, the content phrases of the text), and where their tokens are.

    Raises UnknownWordError for a target that the text does not contain, ValueError for an empty text, one without
    content, or more targets than can be followed.
    """
    if not text.strip():
        raise ValueError(
            "The prompt is empty, so there is no word to follow. Write one in the widget text of Cross-Attention Mask "
            "(or paint a mask and set mask_mode to replace)."
        )
    targets = parse_targets(typed)
    automatic = not targets
    if automatic:
        targets = tuple(Target(phrase) for phrase in content_phrases(text))
    check_count(targets)
    encoded = tokenize(clip, text)
    positions: dict[str, tuple[int, ...]] = {}
    for target in targets:
        found = find_phrase(encoded.pieces, tokenize(clip, target.text).pieces)
        if found:
            positions[target.text] = tuple(found)
        elif not automatic:
            raise unknown_word(target.text, text)
    if not positions:
        raise UnknownWordError(
            f"No content word was found in the prompt '{shortened(text)}'. "
            "Name one in the widget targets of Cross-Attention Mask."
        )
    return tuple(t for t in targets if t.text in positions), Annotation(positions, encoded.length)


def annotate(conditioning: Conditioning, annotation: Annotation) -> Conditioning:
    """A copy of the conditioning that carries the annotation, beside words that it carries already.

    Raises ValueError where its length is not that of the annotated text.
    """
    annotated: Conditioning = []
    for tensor, options in conditioning:
        if tensor.shape[1] != annotation.length:
            raise ValueError(
                f"The conditioning has {tensor.shape[1]} tokens, but the text of Cross-Attention Mask makes "
                f"{annotation.length}: it was made from another text. Give the node the same text, or leave its input "
                "conditioning unconnected. (Connect it before Conditioning (Concat), not after.)"
            )
        earlier = options.get(ANNOTATION)
        positions = {**(earlier.positions if earlier else {}), **annotation.positions}
        annotated.append([tensor, {**options, ANNOTATION: Annotation(positions, annotation.length)}])
    return annotated


def check_words(words: Sequence[str], conds: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError unless every word is annotated in at least one of the positive conds, each of them one prompt."""
    annotated = [cond for cond in conds if ANNOTATION in cond]
    for cond in annotated if words else ():
        rows = cond["model_conds"]["c_crossattn"].cond
        if rows.shape[0] > 1 and not torch.equal(rows, rows[:1].expand_as(rows)):
            raise ValueError(
                f"The positive conditioning holds {rows.shape[0]} different prompts, and Cross-Attention Mask marked the words "
                "of one. Sample the prompts one after another, or paint the regions (connect mask and set mask_mode to "
                "replace)."
            )
    annotations = [cond[ANNOTATION] for cond in annotated]
    known = {word for annotation in annotations for word in annotation.positions}
    missing = [word for word in words if word not in known]
    if missing:
        raise ValueError(
            f"The positive conditioning does not say which of its tokens are {', '.join(repr(w) for w in missing)}. "
            "Connect the output conditioning of Cross-Attention Mask to the sampler's input positive"
            + (" (of each Cross-Attention Mask, one through the next)." if annotations else ".")
        )


def last_word(words: Sequence[str], conds: Iterable[Mapping[str, Any]]) -> str | None:
    """The word whose token comes last in the prompt, or None without words."""
    positions: dict[str, int] = {}
    for cond in conds:
        for word, tokens in getattr(cond.get(ANNOTATION), "positions", {}).items():
            if word in words:
                positions[word] = max(*tokens, positions.get(word, -1))
    return max(positions, key=lambda word: positions[word], default=None)
