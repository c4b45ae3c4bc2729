"""Where a target's tokens are: found by swapping it, whatever the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyndm_core.tokens import MOST_OCCURRENCES, Piece, UnknownWordError, UnreadableWordError, find_word, unknown_word
from asyndm_core.words import plain_text


def by_letters(text: str) -> list[Piece]:
    """A tokenizer: runs of letters in pieces of three, runs of punctuation whole; weights are read. Positions from 1."""
    found = re.findall(r"[^\W\d_]{1,3}|\d|[^\w\s]+|_", plain_text(text).lower())
    return [Piece(1 + n, hash(piece)) for n, piece in enumerate(found)]


def said(text: str, positions: Sequence[int]) -> list[str]:
    """The pieces at the positions."""
    found = re.findall(r"[^\W\d_]{1,3}|\d|[^\w\s]+|_", plain_text(text).lower())
    return [found[position - 1] for position in positions]


@pytest.mark.parametrize(
    ("text", "target", "pieces"),
    [
        ("a red fox, a red hat", "red", ["red", "red"]),
        ("a red capybara", "capybara", ["cap", "yba", "ra"]),
        ("foxfox fox", "fox", ["fox"]),
        ("fox fox fox", "fox", ["fox"] * 3),
        ("fox fox fox", "fox fox", ["fox"] * 3),
        (
            "tracer \\(overwatch\\), tracer \\(overwatch\\)",
            "tracer \\(overwatch\\)",
            ["tra", "cer", "(", "ove", "rwa", "tch"] * 2,
        ),
        ('"cat!", cat', "cat!", ["cat", "cat"]),
        ("a (red:1.3) fox", "red fox", ["red", "fox"]),
        ("a black-and-white cat", "black-and-white", ["bla", "ck", "-", "and", "-", "whi", "te"]),
        ("a 🦊 and a fox", "🦊", ["🦊"]),
        ("apple zebra apple", "zebra", ["zeb", "ra"]),
        ("a fox", "wolf", []),
        ("", "wolf", []),
        ("a fox", "", []),
    ],
)
def test_find_word(text: str, target: str, pieces: list[str]) -> None:
    """All pieces of all occurrences, without the punctuation at the edges."""
    assert said(text, find_word(by_letters, text, target)) == pieces


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["fox", "red", "apple", "zebra", "ae", "ea", "queen", "1girl", "café"]), min_size=1, max_size=12),
    st.sampled_from([" ", ", ", "! ", " (", "), ", "_"]),
)
def test_find_word_is_where_the_words_are(words: list[str], between: str) -> None:
    """For any words, the stand-ins among them: the pieces of each are found, and no others."""
    text = between.join(words)
    for word in set(words) - {"1girl"}:
        assert "".join(said(text, find_word(by_letters, text, word))) == word * words.count(word)


def test_find_word_across_chunks() -> None:
    """Positions jump where a prompt is cut into chunks of 77 (75 between start and end); a phrase may lie across."""

    def chunked(text: str) -> list[Piece]:
        return [Piece(77 * (n // 75) + 1 + n % 75, hash(word)) for n, word in enumerate(text.split())]

    assert find_word(chunked, "dog " * 74 + "red fox", "red fox") == [75, 78]


def test_find_word_with_embeddings() -> None:
    """A textual inversion's vectors are tokens too."""
    vectors = torch.randn(3, 4)

    def read(text: str) -> list[Piece]:
        tokens: list[int | torch.Tensor] = []
        for word in text.split():
            tokens += list(vectors.clone()) if word == "embedding:glim" else [hash(word)]
        return [Piece(1 + n, token) for n, token in enumerate(tokens)]

    assert find_word(read, "a embedding:glim fox", "embedding:glim") == [2, 3, 4]
    assert find_word(read, "a embedding:glim fox", "fox") == [5]
    assert find_word(read, "a embedding:glim embedding:glim", "embedding:glim") == [2, 3, 4, 5, 6, 7]


def test_a_word_that_is_everywhere_is_refused() -> None:
    """The text is tokenised once for each occurrence."""
    assert len(find_word(by_letters, "fox " * MOST_OCCURRENCES, "fox")) == MOST_OCCURRENCES
    with pytest.raises(ValueError, match=f"'fox' is {MOST_OCCURRENCES + 1} times in the prompt: at most"):
        find_word(by_letters, "fox " * (MOST_OCCURRENCES + 1), "fox")


def test_unknown_word_lists_what_there_is() -> None:
    """The error can be acted on without opening the manual."""
    error = unknown_word("moon", "a green boat under (two moons:1.2)")
    assert isinstance(error, UnknownWordError)
    assert "'moon'" in str(error)
    assert "a, green, boat, under, two, moons" in str(error)
    assert "widget targets" in str(error)


def of_known_words(text: str) -> list[Piece]:
    """A tokenizer with one token for all that it can't read."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return [Piece(n, hash(word) if word.isascii() else -1) for n, word in enumerate(words)]


def test_a_word_that_the_tokenizer_cannot_read() -> None:
    """It is nowhere, and the error says so, not that it is not in the prompt."""
    for word in ("🦊", "兔子", "кот"):
        assert find_word(of_known_words, f"a fox, {word} and a hat", word) == []
        assert find_word(by_letters, f"a fox, {word} and a hat", word)
        assert isinstance(unknown_word(word, f"a fox, {word} and a hat"), UnreadableWordError)
    assert find_word(of_known_words, "a fox, 兔子 and a hat", "hat") == [6]
    assert not isinstance(unknown_word("wolf", "a fox"), UnreadableWordError)


@pytest.mark.parametrize("most", [24, 30, 100])
@pytest.mark.parametrize("suffix", [[], [-7, -8]])
def test_a_tokenizer_that_cuts_long_texts(most: int, suffix: list[int]) -> None:
    """What follows a word moves over the cut when it is swapped; it is not the word's for that."""

    def cut(text: str) -> list[Piece]:
        tokens = [piece.token for piece in by_letters(text)][:most]
        return [Piece(n, token) for n, token in enumerate([*tokens, *suffix])]

    text = "the red dog saw capybara near the old mill by a wide blue river and ran off to see what had come of it all, fox"
    assert find_word(cut, text, "capybara") == [4, 5, 6]
    assert bool(find_word(cut, text, "fox")) == (most == 100)
