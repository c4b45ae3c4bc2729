"""From words to the rows of a conditioning: which tokens are a word's, in every text encoder that ComfyUI has.

A token's row is counted from the end of the conditioning: templates and images, of which encoders cut off as they like, stand
before the text, and what stands behind it is kept. The few that do otherwise are listed in ``ENCODERS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from ...asyndm_core.tokens import Piece, changed, find_word

POOLED = {"l", "g", "h", "jina", "byt5"}
"""Encoders whose tokens a diffusion transformer does not attend to, or only those of quoted text, where it has another one."""


class Encoder(NamedTuple):
    """A text encoder whose tokens a diffusion transformer attends to.

    key: of it in what ``clip.tokenize`` gives. entry: of a conditioning's dict, which holds its rows; None where the
    conditioning's own tensor does. beside: its rows are further ones, numbered on from those of the tensor. leading: they
    are counted from the beginning. cut: how many tokens are cut off at the end.
    """

    key: str
    entry: str | None = None
    beside: bool = False
    leading: bool = False
    cut: int = 0

    @property
    def led(self) -> bool:
        """Whether nodes put images or other instructions before the text: those of language models, whose rows know of them."""
        return "t5" not in self.key and self.key != "hydit_clip"

    def rows(self, tensor: Tensor, options: Mapping[str, Any]) -> Tensor | None:
        """The encoder's rows in a conditioning: vectors (rows, features), or tokens (rows,). None where it has none."""
        held = tensor if self.entry is None else options.get(self.entry)
        if held is None or held.ndim == 1:
            return held
        return held[0, -1] if held.ndim == 4 else held[0]  # HiDream-I1 keeps all layers of its language model


ENCODERS: dict[str, tuple[Encoder, ...]] = {
    "SD3Tokenizer": (Encoder("t5xxl"), Encoder("l", leading=True), Encoder("g", leading=True)),
    "HiDreamTokenizer": (Encoder("t5xxl"), Encoder("llama", "conditioning_llama3", beside=True)),
    "HyditTokenizer": (Encoder("hydit_clip"), Encoder("mt5xl", "conditioning_mt5xl", beside=True)),
    "AnimaTokenizer": (Encoder("t5xxl", "t5xxl_ids"),),
    "LongCatImageTokenizer": (Encoder("qwen25_7b", cut=5),),
}
"""By ComfyUI's tokenizer: those that are not simply the one encoder that the model attends to."""

TRAILING = {"reference_latents_text_embeds": 1}
"""By the entry of a conditioning that tells of it: tokens that ComfyUI's own node puts behind the text's usual ones."""


class EncodedText(NamedTuple):
    """A tokenised text: its content pieces in order, and its length in tokens, padding included."""

    pieces: list[Piece]
    length: int


class Places(NamedTuple):
    """Where words are in the tokens of a text, and how many tokens there are.

    encoder: whose; None for CLIP alone, whose encoders' vectors are joined token by token. others: the places in the
    model's further encoders.
    """

    positions: Mapping[str, tuple[int, ...]]
    length: int
    encoder: Encoder | None = None
    others: tuple[Places, ...] = ()

    @property
    def each(self) -> tuple[Places, ...]:
        """The places in every encoder."""
        return (self, *self.others)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are anywhere."""
        return tuple(dict.fromkeys(word for places in self.each for word in places.positions))


def tokenize(clip: Any, text: str) -> dict[str, EncodedText]:
    """The pieces of ``text`` for each of the model's text encoders.

    Entries of word id 0 are start, end and padding, but where all are. Templates are content, and entries without word ids.
    """
    encoded = {}
    for name, chunks in clip.tokenize(text, return_word_ids=True).items():
        entries = [entry for chunk in chunks for entry in chunk]
        content = [(n, entry[0]) for n, entry in enumerate(entries) if len(entry) < 3 or entry[2] != 0]
        content = content or [(n, entry[0]) for n, entry in enumerate(entries)]
        encoded[name] = EncodedText([Piece(position, token) for position, token in content], len(entries))
    return encoded


def text_positions(clip: Any, text: str, key: str) -> list[int]:
    """Where a text is in the tokens of one encoder, without what a template puts around it."""
    return [piece.position for piece in changed(tokenize(clip, text)[key].pieces, tokenize(clip, "")[key].pieces)]


def find_words(clip: Any, text: str, words: Iterable[str]) -> Places:
    """Where words are in a text's tokens; those that it does not contain, or that an encoder can't read, are left out."""
    read = cache(lambda part: tokenize(clip, part))
    found = [
        Places(_find(read, text, words, encoder.key), read(text)[encoder.key].length, encoder)
        for encoder in _encoders(clip, read(text))
    ]
    return found[0]._replace(others=tuple(found[1:])) if found else _find_joined(read, text, words)


def _find_joined(read: Any, text: str, words: Iterable[str]) -> Places:
    """The same for CLIP alone.

    Encoders of one model cut a text alike, unless a textual inversion has more vectors for one of them: all are looked at
    that differ. Their vectors are joined to the length of the shortest.
    """
    encoded = read(text)
    length = min(whole.length for whole in encoded.values())
    different = {tuple(piece.position for piece in whole.pieces): name for name, whole in reversed(encoded.items())}
    found: dict[str, set[int]] = {}
    for name in different.values():
        for word, positions in _find(read, text, words, name).items():
            found.setdefault(word, set()).update(position for position in positions if position < length)
    return Places({word: tuple(sorted(positions)) for word, positions in found.items() if positions}, length)


def _find(read: Any, text: str, words: Iterable[str], key: str) -> dict[str, tuple[int, ...]]:
    """Where words are in the tokens of one encoder."""
    pieces = cache(lambda part: read(part)[key].pieces)
    found = {word: tuple(find_word(pieces, text, word)) for word in words}
    return {word: positions for word, positions in found.items() if positions}


def _encoders(clip: Any, encoded: Mapping[str, EncodedText]) -> tuple[Encoder, ...]:
    """The encoders whose tokens the model attends to; none where they are CLIP's alone."""
    model = getattr(clip, "cond_stage_model", None)
    loaded = [key for key in encoded if getattr(model, key, getattr(model, f"clip_{key}", model)) is not None or model is None]
    for kind in type(clip.tokenizer).__mro__:
        if kind.__name__ in ENCODERS:
            return tuple(encoder for encoder in ENCODERS[kind.__name__] if encoder.key in loaded)
    attended = [key for key in encoded if key not in POOLED]
    if len(attended) > 1:
        raise ValueError(
            f"The text encoder ({type(clip.tokenizer).__name__}) makes tokens of {', '.join(attended)}: which of them the "
            "model attends to is not known. Paint the regions (connect mask to Cross-Attention Mask and set mask_mode to "
            "replace)."
        )
    return tuple(Encoder(key) for key in attended)
