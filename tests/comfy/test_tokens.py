"""Words are found where ComfyUI's tokenizers put them: checked by decoding the tokens at the positions found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import pytest
import torch
from asyndm_pack.asyndm_core.tokens import UnknownWordError
from asyndm_pack.nodes.conditioning import annotate, find_targets, tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import clip

TOKENIZERS: dict[str, Callable[..., Any]] = {
    "SD1": comfy.sd1_clip.SD1Tokenizer,
    "SD2": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "SDXL and its refiner": comfy.sdxl_clip.SDXLTokenizer,
}
KEYS = {"SD1": ["l"], "SD2": ["h"], "SDXL and its refiner": ["g", "l"]}


@cache
def clip_of(family: str, embeddings: str | None = None) -> comfy.sd.CLIP:
    """A CLIP object of a family that can tokenise. (SDXL's encoders are too large to be made here.)"""
    made = comfy.sd.CLIP(no_init=True)
    made.tokenizer = TOKENIZERS[family](embedding_directory=embeddings)
    made.tokenizer_options = {}
    return made


def tokens(made: comfy.sd.CLIP, key: str, text: str) -> list[Any]:
    """What the encoder is given, chunk after chunk: position in the conditioning -> token."""
    return [entry[0] for chunk in made.tokenize(text)[key] for entry in chunk]


def check(made: comfy.sd.CLIP, text: str, target: str, said: list[str]) -> tuple[int, ...]:
    """The tokens at the target's positions, decoded run by run, are ``said``. Returns the positions."""
    (found,), annotation = find_targets(made, text, target)
    positions = annotation.positions[found.text]
    for key, chunks in made.tokenize(text).items():
        assert annotation.length == 77 * len(chunks)
        decoder = getattr(made.tokenizer, f"clip_{key}").tokenizer
        ids = tokens(made, key, text)
        assert decoder.decode([ids[p] for p in positions]).split() == " ".join(said).split()
    return positions


@pytest.fixture(params=TOKENIZERS)
def made(request: pytest.FixtureRequest) -> comfy.sd.CLIP:
    """Every family's tokenizers."""
    assert list(clip_of(request.param).tokenize("a")) == KEYS[request.param]
    return clip_of(request.param)


CASES = [
    ("a red fox wearing a hat", "fox", ["fox"], (3,)),
    ("a red fox wearing a hat", "red fox", ["red fox"], (2, 3)),
    ("a fox and a fox", "fox", ["fox", "fox"], (2, 5)),
    ("a (red fox:1.3) chasing (cats:0.8)", "red fox", ["red fox"], (2, 3)),
    ("a (red fox:1.3) chasing (cats:0.8)", "cats", ["cats"], (5,)),
    ("a (red:1.3) fox", "red fox", ["red fox"], (2, 3)),
    ("a ((red)) (fox)", "red fox", ["red fox"], (2, 3)),
    (r"a \(red fox\) runs", "red fox", ["red fox"], (3, 4)),
    ("A Red FOX", "fox", ["fox"], (3,)),
    ("a red fox", "Red Fox", ["red fox"], (2, 3)),
    ("fox,hat. dog!", "hat", ["hat"], (3,)),
    ("fox,hat. dog!", "dog", ["dog"], (5,)),
    ("a   red\nfox", "red fox", ["red fox"], (2, 3)),
    ("a black-and-white cat", "black-and-white cat", ["black - and - white cat"], (2, 3, 4, 5, 6, 7)),
    ("the fox's hat", "fox's", ["fox 's"], (2, 3)),
]


@pytest.mark.parametrize("text, target, said, where", CASES)
def test_words_and_phrases(made: comfy.sd.CLIP, text: str, target: str, said: list[str], where: tuple[int, ...]) -> None:
    assert check(made, text, target, said) == where


def test_word_of_several_pieces(made: comfy.sd.CLIP) -> None:
    positions = check(made, "a photo of capybaras asleep", "capybaras", ["capybaras"])
    assert len(positions) > 1 and list(positions) == list(range(positions[0], positions[-1] + 1))


def test_part_of_a_word_is_not_the_word(made: comfy.sd.CLIP) -> None:
    with pytest.raises(UnknownWordError, match="foxes, run"):
        find_targets(made, "foxes run", "fox")


def test_several_targets_with_strengths(made: comfy.sd.CLIP) -> None:
    targets, annotation = find_targets(made, "a rabbit with a basketball", "basketball:0.4, rabbit")
    assert [(t.text, t.strength) for t in targets] == [("basketball", 0.4), ("rabbit", None)]
    assert annotation.positions == {"basketball": (5,), "rabbit": (2,)}


def test_targets_chosen_automatically(made: comfy.sd.CLIP) -> None:
    targets, annotation = find_targets(made, "a (green boat:1.2) on the sea", "")
    assert [t.text for t in targets] == ["green boat", "sea"]
    assert annotation.positions == {"green boat": (2, 3), "sea": (6,)}


# --- prompts of more than 75 words: chunks of 77, each with a start and an end ------------------------------------------


def test_word_of_the_second_chunk(made: comfy.sd.CLIP) -> None:
    """One segment that is cut: 75 words, then the start of the next chunk."""
    text = "dog " * 74 + "fox cat"
    assert check(made, text, "fox", ["fox"]) == (75,)
    assert check(made, text, "cat", ["cat"]) == (78,)
    assert check(made, text, "fox cat", ["fox cat"]) == (75, 78)


def test_short_segment_moves_whole_to_the_next_chunk(made: comfy.sd.CLIP) -> None:
    """73 words and a weighted segment of three: ComfyUI does not cut it, the first chunk is padded early."""
    text = "dog " * 73 + "(red fox hat:1.2) runs"
    assert check(made, text, "red fox", ["red fox"]) == (78, 79)
    assert check(made, text, "hat", ["hat"]) == (80,)
    assert check(made, text, "runs", ["runs"]) == (81,)


def test_three_chunks(made: comfy.sd.CLIP) -> None:
    positions = check(made, "dog " * 80 + "fox " + "dog " * 79 + "fox", "fox", ["fox", "fox"])
    assert positions == (77 + 1 + 5, 2 * 77 + 1 + 10)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_prompt(data: st.DataObject) -> None:
    """Random words with random weights and punctuation, up to three chunks: decoding says what was looked for."""
    words = st.sampled_from(["fox", "red", "hat", "capybara", "a", "of", "Zebra", "blue", "ultramarine", "café"])
    parts = []
    for chosen in data.draw(st.lists(st.lists(words, min_size=1, max_size=9), min_size=1, max_size=30)):
        segment = " ".join(chosen)
        weight = data.draw(st.sampled_from(["", "", "1.3", "0.5"]))
        parts.append(f"({segment}:{weight})" if weight else segment + data.draw(st.sampled_from(["", ",", "."])))
    text = " ".join(parts)
    target = data.draw(st.sampled_from(["fox", "red hat", "capybara", "ultramarine"]))
    plain = " ".join(text.replace("(", " ").replace(")", " ").replace(":1.3", "").replace(":0.5", "").split())
    spaced = plain.replace(",", " ,").replace(".", " .").lower().split()
    wanted = target.split()
    places = [i for i in range(len(spaced)) if spaced[i : i + len(wanted)] == wanted]
    for family in ("SD1", "SDXL and its refiner"):
        if not places:
            with pytest.raises(UnknownWordError):
                find_targets(clip_of(family), text, target)
        else:
            check(clip_of(family), text, target, [target] * len(places))


# --- textual inversions -----------------------------------------------------------------------------------------------


def test_embedding(tmp_path: Path) -> None:
    """Each of its vectors is a position; the words after it are found behind them."""
    vectors = torch.randn(3, 768, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "glimmer.safetensors")
    made = clip_of("SD1", str(tmp_path))
    text = "a photo of embedding:glimmer and a fox"
    _, annotation = find_targets(made, text, "embedding:glimmer, fox")
    assert annotation.positions["embedding:glimmer"] == (4, 5, 6)
    placed = tokens(made, "l", text)
    assert all(torch.equal(placed[4 + n], vectors[n]) for n in range(3))
    assert annotation.positions["fox"] == (9,)
    assert check(made, text, "fox", ["fox"]) == (9,)
    with pytest.raises(UnknownWordError, match="embedding:glimmer"):
        find_targets(made, "a photo of a fox", "embedding:glimmer")


def test_embedding_of_sdxl(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = {"clip_g": torch.randn(2, 1280, generator=generator), "clip_l": torch.randn(2, 768, generator=generator)}
    save_file(vectors, tmp_path / "glimmer.safetensors")
    made = clip_of("SDXL and its refiner", str(tmp_path))
    text = "embedding:glimmer, a (fox:1.2)"
    _, annotation = find_targets(made, text, "embedding:glimmer")
    assert annotation.positions["embedding:glimmer"] == (1, 2)
    for key in ("g", "l"):
        assert all(torch.equal(tokens(made, key, text)[1 + n], vectors[f"clip_{key}"][n]) for n in range(2))
    check(made, text, "fox", ["fox"])


# --- positions are those of the encoded conditioning --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a red fox", "dog " * 80 + "fox"])
def test_length_is_that_of_the_conditioning(text: str) -> None:
    """By ComfyUI's own encoder: it accepts the annotation, and a changed word changes the rows from its position on."""
    conditioning = clip().encode_from_tokens_scheduled(clip().tokenize(text))
    changed = clip().encode_from_tokens_scheduled(clip().tokenize(text.replace("fox", "cat")))
    _, annotation = find_targets(clip(), text, "fox")
    chunks = 1 + len(tokenize(clip(), text).pieces) // 75
    assert annotate(conditioning, annotation)[0][0].shape[1] == annotation.length == 77 * chunks
    (position,) = annotation.positions["fox"]
    moved = (conditioning[0][0] - changed[0][0]).abs().amax(dim=-1)[0] > 1e-6
    assert int(moved.nonzero()[0]) == position
