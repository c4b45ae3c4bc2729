"""Which tokens of a ComfyUI CONDITIONING belong to which word: found with the CLIP object, carried in its dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...asyndm_core.regions import Target
from ...asyndm_core.tokens import Piece, UnknownWordError, find_word, unknown_word
from ...asyndm_core.words import check_count, content_phrases, divided, parse_targets, shortened

ANNOTATION = "asyndm_targets"
"""Key of the annotation in a conditioning's dict. Part of what saved files and other packs may rely on."""

Conditioning = list[list[Any]]

JOINED_FEATURES = {768 + 1280: (768, 1280)}
"""SDXL joins the vectors of two encoders, which may have got two texts."""
ALIKE = 0.9
"""How alike (1: the same; 0: as one token of a text is to another) the vectors of one token in one context are, at least.
In other contexts a token is not told from others: in shuffled prompts of the demo model, every seventh is nearer to another.
"""


class Annotation(NamedTuple):
    """What the dict holds under ``ANNOTATION``: token positions by word, and the tokens that the text was encoded to."""

    positions: Mapping[str, tuple[int, ...]]
    length: int


class Found(NamedTuple):
    """The targets that a text contains, where their tokens are, and the typed ones that it does not contain."""

    targets: tuple[Target, ...]
    annotation: Annotation
    lost: tuple[str, ...] = ()


class EncodedText(NamedTuple):
    """A tokenised text: its content pieces in order, and its length in tokens, padding included."""

    pieces: list[Piece]
    length: int


def tokenize(clip: Any, text: str) -> dict[str, EncodedText]:
    """The pieces of ``text`` for each of the model's text encoders.

    Entries of word id 0 are start, end and padding.
    """
    encoded = {}
    for name, chunks in clip.tokenize(text, return_word_ids=True).items():
        entries = [entry for chunk in chunks for entry in chunk]
        pieces = [Piece(position, token) for position, (token, _, word_id) in enumerate(entries) if word_id != 0]
        encoded[name] = EncodedText(pieces, len(entries))
    return encoded


def find_words(clip: Any, text: str, words: Iterable[str]) -> Annotation:
    """Where words are in a text's tokens; those that it does not contain are left out.

    Encoders of one model cut a text alike, unless a textual inversion has more vectors for one of them: all are looked at
    that differ. Their vectors are joined to the length of the shortest.
    """
    encoded = tokenize(clip, text)
    length = min(whole.length for whole in encoded.values())
    different = {tuple(piece.position for piece in whole.pieces): name for name, whole in reversed(encoded.items())}
    found: dict[str, set[int]] = {}
    for name in different.values():
        read = cache(lambda part, name=name: tokenize(clip, part)[name].pieces)
        for word in words:
            found.setdefault(word, set()).update(position for position in find_word(read, text, word) if position < length)
    return Annotation({word: tuple(sorted(positions)) for word, positions in found.items() if positions}, length)


def find_targets(clip: Any, text: str, typed: str, skip_lost: bool = False) -> Found:
    """The targets that are typed (or, if none is, the content phrases of the text), and where their tokens are.

    Raises UnknownWordError for a target that the text does not contain (unless it may be skipped), ValueError for an empty
    text, one without content, or more targets than can be followed.
    """
    if not text.strip():
        raise ValueError(
            "The prompt is empty, so there is no word to follow. Write one in the widget text of Cross-Attention Mask "
            "(or paint a mask and set mask_mode to replace)."
        )
    typed_targets = parse_targets(typed)
    targets = typed_targets or tuple(Target(phrase) for phrase in content_phrases(text))
    check_count(targets)
    annotation = find_words(clip, text, [target.text for target in targets])
    lost = tuple(target.text for target in typed_targets if target.text not in annotation.positions)
    if lost and not skip_lost:
        raise unknown_word(lost[0], text)
    if not typed_targets and not annotation.positions:
        raise UnknownWordError(
            f"No content word was found in the prompt '{shortened(text)}'. "
            "Name one in the widget targets of Cross-Attention Mask."
        )
    return Found(tuple(t for t in targets if t.text in annotation.positions), annotation, lost)


def annotate(conditioning: Conditioning, annotation: Annotation) -> Conditioning:
    """A copy of the conditioning, which was encoded from the annotated text, that carries the annotation."""
    annotated = []
    for tensor, options in conditioning:
        step = _rows_per_token(tensor, annotation.length)
        positions = {word: tuple(step * p for p in places) for word, places in annotation.positions.items()}
        annotated.append(_annotated(tensor, options, positions))
    return annotated


def annotate_given(conditioning: Conditioning, clip: Any, text: str, annotation: Annotation) -> Conditioning:
    """A copy of a conditioning made elsewhere that carries the annotation, beside words that it carries already.

    Its vectors are compared with those that ``clip`` makes of the text: at the words' tokens first, then everywhere (of
    Conditioning (Concat), the text may be the second part). Where a word is not there, also with those without weights, and
    of the parts of a text that BREAK or AND divides, which other packs encode one by one. Raises ValueError for a word that
    is in none of the conditionings.
    """
    found: list[dict[str, set[int]]] = [{} for _ in conditioning]
    for encoded, marked in _encodings(clip, text, annotation) if annotation.positions else ():
        if _search(conditioning, found, encoded, marked) and marked is annotation:
            break
    lost = [word for word in annotation.positions if not any(word in places for places in found)]
    if lost:
        raise ValueError(
            f"The conditioning does not have {', '.join(repr(shortened(word)) for word in lost)} as the text of "
            "Cross-Attention Mask has: it was made from another text, by another text encoder or by a node that moves or mixes "
            "words (styles, prompt editing, Conditioning (Average)). Give the node the same text and clip, connect it "
            "before the node that mixes, or leave its input conditioning unconnected."
        )
    return [
        _annotated(tensor, options, {word: tuple(sorted(rows)) for word, rows in places.items()})
        for (tensor, options), places in zip(conditioning, found, strict=True)
    ]


def _encodings(clip: Any, text: str, annotation: Annotation) -> Iterator[tuple[Tensor, Annotation]]:
    """A text and its parts as ``clip`` encodes them, with weights and without, and where the words are in them."""
    for part in (text, *divided(text)):
        marked = annotation if part is text else find_words(clip, part, annotation.positions)
        tokens = clip.tokenize(part)
        plain = {name: [[(token, 1.0) for token, _ in chunk] for chunk in chunks] for name, chunks in tokens.items()}
        weighted = any(weight != 1.0 for chunks in tokens.values() for chunk in chunks for _, weight in chunk)
        for each in (tokens, plain)[: 1 + weighted]:
            yield clip.encode_from_tokens(each), marked


def _search(conditioning: Conditioning, found: list[dict[str, set[int]]], encoded: Tensor, annotation: Annotation) -> bool:
    """Add to ``found`` the rows of each conditioning that are the words of a text. Returns whether all were found."""
    own = encoded[0, :: _rows_per_token(encoded, annotation.length)]
    steps = [2 if _in_pairs(tensor) else 1 for tensor, _ in conditioning]
    complete = True
    for word, positions in annotation.positions.items():
        for run in _runs(positions):
            everywhere = [_places(tensor[0, ::step], own, run) for (tensor, _), step in zip(conditioning, steps, strict=True)]
            for places, rows, step in zip(found, everywhere, steps, strict=True):
                if rows:
                    places.setdefault(word, set()).update(step * row for row in rows)
            complete &= any(everywhere)
    return complete


def _runs(positions: Iterable[int]) -> list[list[int]]:
    """Positions in runs of neighbours."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _places(given: Tensor, own: Tensor, run: Sequence[int]) -> list[int]:
    """The rows of ``given`` (rows, features) that are the rows ``run`` of ``own``: the same ones, else wherever they are.

    Where the vectors of two encoders are joined, one of them is enough.
    """
    count, last = len(run), len(given) - len(run) + 1
    if given.shape[1] != own.shape[1] or last < 1:
        return []
    widths = JOINED_FEATURES.get(own.shape[1], (own.shape[1],))
    fit = torch.zeros(last)
    for wanted, there in zip(own.float().split(widths, 1), given.to(own).float().split(widths, 1), strict=True):
        alike = _alikeness(wanted, there, run)
        fit = fit.maximum(torch.stack([alike[n, n : n + last] for n in range(count)]).amin(dim=0).cpu())
    starts = (fit >= ALIKE).nonzero()[:, 0].tolist()
    starts = run[:1] if run[0] in starts else starts
    return [start + n for start in starts for n in range(count)]


def _alikeness(own: Tensor, given: Tensor, run: Sequence[int]) -> Tensor:
    """How alike the rows ``run`` of ``own`` and all rows of ``given`` are: (rows of run, rows of given), 1 for the same.

    Cosines, counted from what the row has on average with the others of its text: in some encoders all rows are close.
    """
    wanted, others = F.normalize(own[run], dim=1), F.normalize(own, dim=1)
    usual = ((wanted @ others.T).sum(dim=1, keepdim=True) - 1) / (len(own) - 1)
    return (wanted @ F.normalize(given, dim=1).T - usual) / (1 - usual).clamp(min=1e-6)


def _annotated(tensor: Tensor, options: dict[str, Any], positions: Mapping[str, tuple[int, ...]]) -> list[Any]:
    """One conditioning with the positions of words, beside those that it has already."""
    earlier = options.get(ANNOTATION)
    together = {**(earlier.positions if earlier else {}), **positions}
    return [tensor, {**options, ANNOTATION: Annotation(together, tensor.shape[1])}]


def _rows_per_token(encoded: Tensor, length: int) -> int:
    """How many rows of a text's encoding (1, rows, features) are one token: 1, or 2 where CLIP NegPip makes key and value."""
    if encoded.shape[1] == length:
        return 1
    if encoded.shape[1] == 2 * length and _in_pairs(encoded):
        return 2
    raise ValueError(
        f"The text encoder makes {encoded.shape[1]} vectors of the {length} tokens of the text: which of them belong to a "
        "word is not known. Use the checkpoint's own clip, without nodes that change how it encodes, or paint the regions "
        "(connect mask and set mask_mode to replace)."
    )


def _in_pairs(encoded: Tensor) -> bool:
    """Whether every second row is the one before or its negative, as CLIP NegPip makes them."""
    if encoded.shape[1] % 2:
        return False
    return bool((F.cosine_similarity(encoded[:, ::2].float(), encoded[:, 1::2].float(), dim=-1).abs() > 0.999).all())


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
            + (
                " (of each Cross-Attention Mask, one through the next; Conditioning (Concat) keeps the marks of its first part "
                "only, so connect a Cross-Attention Mask with the second part's text after it)."
                if annotations
                else "."
            )
        )


def last_word(words: Sequence[str], conds: Iterable[Mapping[str, Any]]) -> str | None:
    """The word whose token comes last in the prompt, or None without words."""
    positions: dict[str, int] = {}
    for cond in conds:
        for word, tokens in getattr(cond.get(ANNOTATION), "positions", {}).items():
            if word in words:
                positions[word] = max(*tokens, positions.get(word, -1))
    return max(positions, key=lambda word: positions[word], default=None)
