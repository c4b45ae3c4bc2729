"""Targets as typed, words of a prompt, and where a phrase's tokens are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyndm_core.regions import Target
from asyndm_core.tokens import (
    Piece,
    UnknownWordError,
    content_phrases,
    find_phrase,
    parse_targets,
    plain_text,
    prompt_words,
    unknown_word,
)


@pytest.mark.parametrize(
    ("typed", "targets"),
    [
        ("rabbit", [("rabbit", None)]),
        ("rabbit, basketball:0.4", [("rabbit", None), ("basketball", 0.4)]),
        ("  green   boat : .5 ,\n moons:1\n", [("green boat", 0.5), ("moons", 1.0)]),
        ("moons:0", [("moons", 0.0)]),
        ("moons:1.", [("moons", 1.0)]),
        ("embedding:my_style", [("embedding:my_style", None)]),
        ("embedding:my_style:0.3", [("embedding:my_style", 0.3)]),
        ("", []),
        (" , \n,", []),
        ("jack-o'-lantern", [("jack-o'-lantern", None)]),
    ],
)
def test_parse_targets(typed: str, targets: list[tuple[str, float | None]]) -> None:
    """Commas and line breaks separate; a number after a colon is a strength."""
    assert parse_targets(typed) == tuple(Target(*t) for t in targets)


@pytest.mark.parametrize("typed", ["moon:2", "moon:-0.1", "moon:nan", "moon:inf", "boat, moon: 1.01"])
def test_parse_targets_refuses_strengths(typed: str) -> None:
    """Out of [0, 1], named with its target and widget."""
    with pytest.raises(ValueError, match=r"'moon' \(widget targets\)"):
        parse_targets(typed)


def test_parse_targets_refuses_doubles() -> None:
    """Also in another case."""
    with pytest.raises(ValueError, match="'Moon' is listed twice"):
        parse_targets("moon, Moon:0.2")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("abcxyz '-", min_size=1, max_size=12), st.none() | st.integers(0, 100)), max_size=5))
def test_parse_targets_reads_what_was_written(entries: list[tuple[str, int | None]]) -> None:
    """Any targets written in the syntax come back."""
    wanted = {}
    for text, percent in entries:
        text = " ".join(text.split())
        if text:
            wanted.setdefault(text, None if percent is None else percent / 100)
    typed = ",".join(text if k is None else f"{text}:{k}" for text, k in wanted.items())
    assert parse_targets(typed) == tuple(Target(text, k) for text, k in wanted.items())


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a (red fox:1.3) in snow", "a red fox in snow"),
        ("((cat)) and (dog:.8)", "cat and dog"),
        ("(a (small:0.5) cat:1.2)", "a small cat"),
        (r"Mona Lisa \(painting\)", "Mona Lisa (painting)"),
        ("ratio 3:2 (wide:1.)", "ratio 3:2 wide"),
        ("(art by embedding:style:1.1)", "art by embedding:style"),
    ],
)
def test_plain_text(prompt: str, plain: str) -> None:
    """Weights go, words stay."""
    assert plain_text(prompt) == plain


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a rabbit, a basketball and a (cat:1.2)!", ["a", "rabbit", "basketball", "and", "cat"]),
        ("jack-o'-lantern at night", ["jack-o'-lantern", "at", "night"]),
        ("", []),
        ("café über 2 Straßen", ["café", "über", "2", "Straßen"]),
        ("embedding:foo-bar, x", ["embedding:foo-bar", "x"]),
    ],
)
def test_prompt_words(prompt: str, words: list[str]) -> None:
    """Each once, in order."""
    assert prompt_words(prompt) == words


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a green boat on the sea under two moons", ["green boat", "sea", "moons"]),
        ("a green boat on the sea, in winter", ["green boat", "sea"]),
        ("a rabbit and a basketball", ["rabbit", "basketball"]),
        ("a photo of a cat", ["cat"]),
        ("masterpiece, best quality, 1girl with red hair", ["1girl", "red hair"]),
        ("in winter", ["winter"]),
        ("a cat at night in the old street", ["cat"]),
        ("a cat, a cat and a dog", ["cat", "dog"]),
        ("(red fox:1.3) beside a well", ["red fox", "well"]),
        (r"a red cat \(pet\) & a \"big\" dog_house", ["red cat", "pet", "big", "dog", "house"]),
        ("a red fox BREAK blue hat 🦊 moon", ["red fox", "blue hat", "moon"]),
        ("the", []),
        ("", []),
    ],
)
def test_content_phrases(prompt: str, phrases: list[str]) -> None:
    """What is chosen where no target is given: the things, not the places or the style."""
    assert content_phrases(prompt) == phrases


@settings(max_examples=100, deadline=None)
@given(st.text("ab cd,.():1-'é", max_size=60))
def test_content_phrases_are_made_of_the_prompt(prompt: str) -> None:
    """For any prompt: every chosen phrase is a run of its words."""
    words = set(prompt_words(prompt))
    for phrase in content_phrases(prompt):
        assert set(phrase.split()) <= words


def pieces(*tokens: int | torch.Tensor, start: int = 1) -> list[Piece]:
    """Tokens at consecutive positions."""
    return [Piece(start + n, token) for n, token in enumerate(tokens)]


def test_find_phrase_everywhere_it_occurs() -> None:
    """All pieces of all occurrences; a part of a phrase is no occurrence."""
    prompt = pieces(5, 6, 7, 5, 6, 8, 5)
    assert find_phrase(prompt, pieces(5, 6)) == [1, 2, 4, 5]
    assert find_phrase(prompt, pieces(5)) == [1, 4, 7]
    assert find_phrase(prompt, pieces(6, 7, 5)) == [2, 3, 4]
    assert find_phrase(prompt, pieces(6, 5)) == []
    assert find_phrase(prompt, []) == []
    assert find_phrase([], pieces(5)) == []


def test_find_phrase_overlapping_itself() -> None:
    """A position is given once, though two occurrences share it."""
    assert find_phrase(pieces(4, 4, 4), pieces(4, 4)) == [1, 2, 3]


def test_find_phrase_across_chunks() -> None:
    """Positions jump where a prompt is cut into chunks of 77 (75 between start and end); a phrase may lie across."""
    prompt = [*pieces(1, 2, 3, start=73), *pieces(4, 5, start=78)]
    assert find_phrase(prompt, pieces(3, 4)) == [75, 78]


def test_find_phrase_with_embeddings() -> None:
    """A textual inversion's vectors are tokens too, and equal only each other."""
    red, blue = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    prompt = pieces(7, red, blue, red.clone())
    assert find_phrase(prompt, pieces(red)) == [2, 4]
    assert find_phrase(prompt, pieces(red, blue)) == [2, 3]
    assert find_phrase(prompt, pieces(7, red)) == [1, 2]
    assert find_phrase(prompt, pieces(torch.ones(3))) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_find_phrase_against_a_plain_search(prompt: list[int], phrase: list[int]) -> None:
    """The same as looking at every window."""
    covered = set()
    for start in range(len(prompt)):
        if prompt[start : start + len(phrase)] == phrase:
            covered |= set(range(start, start + len(phrase)))
    assert find_phrase(pieces(*prompt, start=0), pieces(*phrase, start=50)) == sorted(covered)


def test_unknown_word_lists_what_there_is() -> None:
    """The error can be acted on without opening the manual."""
    error = unknown_word("moon", "a green boat under (two moons:1.2)")
    assert isinstance(error, UnknownWordError)
    assert "'moon'" in str(error)
    assert "a, green, boat, under, two, moons" in str(error)
    assert "widget targets" in str(error)


def test_digits_are_read_in_one_way() -> None:
    """Text of a user cannot make the reading of numbers take time to the square of its length: this would be hours."""
    digits = "1" * 1_000_000
    assert plain_text(f"fox:{digits}") == f"fox:{digits}"
    (target,) = parse_targets(f"fox:{digits}x")
    assert target.text == f"fox:{digits}x"


def test_thousands_of_targets_are_read_at_once() -> None:
    """Twice as many take twice as long, not four times."""
    names = [f"w{n}" for n in range(150_000)]
    assert [target.text for target in parse_targets(",".join(names))] == names
