"""Which tokens of a ComfyUI CONDITIONING belong to which word: found with the CLIP object, carried in its dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...asyndm_core.regions import Target
from ...asyndm_core.tokens import UnknownWordError, unknown_word
from ...asyndm_core.words import check_count, content_phrases, divided, parse_targets, shortened
from .words import TRAILING, Places, find_words, text_positions

ANNOTATION = "asyndm_targets"
"""Key of the annotation in a conditioning's dict. Part of what saved files and other packs may rely on."""

Conditioning = list[list[Any]]

JOINED_FEATURES = {768 + 1280: (768, 1280)}
"""SDXL joins the vectors of two encoders, which may have got two texts."""
ALIKE = 0.9
"""How alike (1: the same; 0: as one token of a text is to another) the vectors of one token in one context are, at least.
In other contexts a token is not told from others: in shuffled prompts of the demo model, every seventh is nearer to another.
"""
UNCHANGED = 0.99
"""The same for a token behind the very same ones, where an encoder is causal."""


class Annotation(NamedTuple):
    """What the dict holds under ``ANNOTATION``: the rows of each word, and how many rows there are.

    Rows of the conditioning's tensor, and numbered on from them those of a further encoder that the model attends to.
    """

    positions: Mapping[str, tuple[int, ...]]
    length: int


class Found(NamedTuple):
    """The targets that a text contains, where their tokens are, and the typed ones that it does not contain."""

    targets: tuple[Target, ...]
    annotation: Places
    lost: tuple[str, ...] = ()


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
    lost = tuple(target.text for target in typed_targets if target.text not in annotation.words)
    if lost and not skip_lost:
        raise unknown_word(lost[0], text)
    if not typed_targets and not annotation.words:
        raise UnknownWordError(
            f"No content word was found in the prompt '{shortened(text)}'. "
            "Name one in the widget targets of Cross-Attention Mask."
        )
    return Found(tuple(t for t in targets if t.text in annotation.words), annotation, lost)


def annotate(conditioning: Conditioning, annotation: Places) -> Conditioning:
    """A copy of the conditioning, which was encoded from the annotated text, that carries the annotation."""
    annotated = []
    for tensor, options in conditioning:
        held = _held(annotation, tensor, options, own=True)
        annotated.append(_annotated(tensor, options, held, _counted(held)))
    return annotated


def annotate_given(conditioning: Conditioning, clip: Any, text: str, annotation: Places) -> Conditioning:
    """A copy of a conditioning made elsewhere that carries the annotation, beside words that it carries already.

    Its vectors are compared with those that ``clip`` makes of the text: at the words' tokens first, then everywhere (of
    Conditioning (Concat), the text may be the second part). Where a word is not there, also with those without weights, and
    of the parts of a text that BREAK or AND divides, which other packs encode one by one. A language model's vectors are
    others wherever images or another instruction stand before the text: there the words are counted from the end, if most
    of the text's vectors are still its own (a text that differs in a word or two is not told from it). Raises ValueError for
    a word that is in none of the conditionings.
    """
    found: list[dict[str, set[int]]] = [{} for _ in conditioning]
    whole: _Held | None = None
    for encoded, marked in _encodings(clip, text, annotation) if annotation.words else ():
        own = _held(marked, *encoded, own=True)
        whole = whole or own[0]
        if _search(conditioning, found, own) and marked is annotation:
            break
    given = [_held(annotation, tensor, options) for tensor, options in conditioning]
    if _lost(annotation, found) and whole is not None and whole.places.encoder is not None and whole.places.encoder.led:
        positions = text_positions(clip, text, whole.places.encoder.key)
        for held, places in zip(given, found, strict=True):
            if (places or not any(found)) and _is_led(held[0], whole, positions):
                places.update({word: set(rows) for word, rows in _counted(held).items()})
    lost = _lost(annotation, found)
    if lost:
        raise ValueError(
            f"The conditioning does not have {', '.join(repr(shortened(word)) for word in lost)} as the text of "
            "Cross-Attention Mask has: it was made from another text, by another text encoder or by a node that moves or mixes "
            "words (styles, prompt editing, Conditioning (Average)). Give the node the same text and clip, connect it "
            "before the node that mixes, or leave its input conditioning unconnected."
        )
    return [
        _annotated(tensor, options, held, {word: tuple(sorted(rows)) for word, rows in places.items()})
        for (tensor, options), held, places in zip(conditioning, given, found, strict=True)
    ]


def _lost(annotation: Places, found: Sequence[Mapping[str, set[int]]]) -> list[str]:
    """The words that none of the conditionings has."""
    return [word for word in annotation.words if not any(word in places for places in found)]


def _encodings(clip: Any, text: str, annotation: Places) -> Iterator[tuple[tuple[Tensor, dict[str, Any]], Places]]:
    """A text and its parts as ``clip`` encodes them, with weights and without, and where the words are in them."""
    for part in (text, *divided(text)):
        marked = annotation if part is text else find_words(clip, part, annotation.words)
        tokens = clip.tokenize(part)
        plain = {name: [[(entry[0], 1.0) for entry in chunk] for chunk in chunks] for name, chunks in tokens.items()}
        weighted = any(entry[1] != 1.0 for chunks in tokens.values() for chunk in chunks for entry in chunk)
        for each in (tokens, plain)[: 1 + weighted]:
            options = clip.encode_from_tokens(each, return_dict=True)
            yield (options.pop("cond"), options), marked


class _Held(NamedTuple):
    """What a conditioning holds of an encoder, whose tokens of a text are marked.

    rows: its vectors (rows, features) or tokens (rows,). The token at place p of the text is row shift + p of them, which is
    first + step (shift + p) in the annotation.
    """

    places: Places
    rows: Tensor
    shift: int = 0
    first: int = 0
    step: int = 1


def _held(annotation: Places, tensor: Tensor, options: Mapping[str, Any], own: bool = False) -> list[_Held]:
    """What a conditioning holds of the encoders of a text. own: it was encoded from that text; ValueError where it can't be."""
    if annotation.encoder is None:
        step = _rows_per_token(tensor, annotation.length) if own else 1 + _in_pairs(tensor)
        return [_Held(annotation, tensor[0, ::step], step=step)]
    held: list[_Held] = []
    rows_before = 0
    trailing = sum(count for entry, count in TRAILING.items() if entry in options)
    for places in annotation.each:
        rows = places.encoder.rows(tensor, options)
        if rows is not None:
            shift = 0 if places.encoder.leading else len(rows) + places.encoder.cut - places.length - trailing
            held.append(_Held(places, rows, shift, rows_before if places.encoder.beside else 0))
            rows_before = held[-1].first + len(rows)
    return held


def _counted(held: Sequence[_Held]) -> dict[str, tuple[int, ...]]:
    """The rows of each word by its places. ValueError where the conditioning has them not."""
    found: dict[str, set[int]] = {}
    for each in held:
        for word, positions in each.places.positions.items():
            if not 0 <= each.shift + positions[0] <= each.shift + positions[-1] < len(each.rows):
                raise ValueError(
                    f"The conditioning has {len(each.rows)} vectors and the text {each.places.length} tokens: which of them "
                    f"are '{shortened(word)}' is not known. Connect Cross-Attention Mask before nodes that join, cut or mix "
                    "conditionings, or paint the regions (connect mask and set mask_mode to replace)."
                )
            rows = [each.first + each.step * (each.shift + position) for position in positions]
            found.setdefault(word, set()).update(rows)
    return {word: tuple(sorted(rows)) for word, rows in found.items()}


def _search(conditioning: Conditioning, found: list[dict[str, set[int]]], own: Sequence[_Held]) -> bool:
    """Add to ``found`` the rows of each conditioning that are the words of a text. Returns whether all were found."""
    complete = True
    given = [{held.places.encoder: held for held in _held(own[0].places, tensor, options)} for tensor, options in conditioning]
    for part in own:
        for word, positions in part.places.positions.items():
            for run in _runs(part.shift + position for position in positions):
                anywhere = False
                for places, held in zip(found, given, strict=True):
                    there = held.get(part.places.encoder)
                    rows = [] if there is None else _places(there.rows, part.rows, run, run[0] - part.shift + there.shift)
                    if rows:
                        anywhere = True
                        places.setdefault(word, set()).update(there.first + there.step * row for row in rows)
                complete &= anywhere
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


def _places(given: Tensor, own: Tensor, run: Sequence[int], start: int) -> list[int]:
    """The rows of ``given`` that are the rows ``run`` of ``own``: from ``start``, else wherever they are.

    They are vectors (rows, features) or tokens (rows,). Where the vectors of two encoders are joined, one of them is enough.
    """
    count, last = len(run), len(given) - len(run) + 1
    if given.shape[1:] != own.shape[1:] or last < 1 or run[-1] >= len(own):
        return []
    if own.ndim == 1:
        own, given = (F.one_hot(rows.long(), int(max(own.max(), given.max())) + 1) for rows in (own, given))
    widths = JOINED_FEATURES.get(own.shape[1], (own.shape[1],))
    fit = torch.zeros(last)
    for wanted, there in zip(own.float().split(widths, 1), given.to(own).float().split(widths, 1), strict=True):
        alike = _alikeness(wanted, there, run)
        fit = fit.maximum(torch.stack([alike[n, n : n + last] for n in range(count)]).amin(dim=0).cpu())
    starts = (fit >= ALIKE).nonzero()[:, 0].tolist()
    starts = [start] if start in starts else starts
    return [first + n for first in starts for n in range(count)]


def _alikeness(own: Tensor, given: Tensor, run: Sequence[int]) -> Tensor:
    """How alike the rows ``run`` of ``own`` and all rows of ``given`` are: (rows of run, rows of given), 1 for the same.

    Cosines, counted from what the row has on average with the others of its text: in some encoders all rows are close. 0
    where a row of ``given`` is closer to another row of ``own``: in some, padding is close to a word that stands before it.
    """
    own, given = F.normalize(own, dim=1), F.normalize(given, dim=1)
    cosine = own @ given.T
    nearest = cosine[run] >= cosine.amax(dim=0) - 1e-6
    usual = ((own[run] @ own.T).sum(dim=1, keepdim=True) - 1) / (len(own) - 1)
    return nearest * (cosine[run] - usual) / (1 - usual).clamp(min=1e-6)


def _is_led(given: _Held, own: _Held, positions: Sequence[int]) -> bool:
    """Whether vectors of a language model are those of a text (at these positions of its tokens) behind another beginning.

    Then the one before the text is another one (behind the very same tokens, a text has its very own vectors); and of the
    text's own, counted from the end, most are nearer to that of the same token than to any other of the text.
    """
    rows = [own.shift + position for position in positions if 0 <= own.shift + position < len(own.rows)]
    moved = given.shift - own.shift
    if not rows or rows[0] + moved < 0 or rows[-1] + moved >= len(given.rows) or given.rows.shape[1:] != own.rows.shape[1:]:
        return False
    vectors, there = own.rows.float(), given.rows.to(own.rows).float()
    before = max(rows[0] - 1, 0)
    if before + moved >= 0 and _alikeness(vectors, there[[before + moved]], [before])[0, 0] >= UNCHANGED:
        return False
    vectors, there = (F.normalize(each - vectors.mean(dim=0), dim=1) for each in (vectors, there))
    alike = there[[row + moved for row in rows]] @ vectors.T
    nearest = alike[torch.arange(len(rows)), rows] >= alike.amax(dim=1) - 1e-4
    return bool(nearest.float().mean() > 0.5)


def _annotated(
    tensor: Tensor, options: dict[str, Any], held: Sequence[_Held], positions: Mapping[str, tuple[int, ...]]
) -> list[Any]:
    """One conditioning with the positions of words, beside those that it has already."""
    earlier = options.get(ANNOTATION)
    together = {**(earlier.positions if earlier else {}), **positions}
    length = max([tensor.shape[1], *(each.first + len(each.rows) for each in held if each.step == 1)])
    return [tensor, {**options, ANNOTATION: Annotation(together, length)}]


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
