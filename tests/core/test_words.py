"""Targets as typed, words of a prompt, and which of them are worth following."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyndm_core.regions import Target
from asyndm_core.words import (
    LONGEST_TEXT,
    content_phrases,
    divided,
    parse_targets,
    places,
    plain_text,
    prompt_words,
    stretches,
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
        ("兔子，草地、月", [("兔子", None), ("草地", None), ("月", None)]),
        ("兔子：0.8，月 ： ０．２５", [("兔子", 0.8), ("月", 0.25)]),
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
        ("orange_hair, score_8_up, _x_", ["orange_hair", "score_8_up", "x"]),
        ("一只cat在草地上", ["一", "只", "cat", "在", "草", "地", "上"]),
        ("赤いきつねとカメラー、토끼가 뛴다", ["赤", "いきつねと", "カメラー", "토끼가", "뛴다"]),
    ],
)
def test_prompt_words(prompt: str, words: list[str]) -> None:
    """Each once, in order."""
    assert prompt_words(prompt) == words


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a green boat on the sea under two moons", ["green boat", "sea", "two moons"]),
        ("a green boat on the sea, in winter", ["green boat", "sea"]),
        ("a rabbit and a basketball", ["rabbit", "basketball"]),
        ("a photo of a cat", ["cat"]),
        ("masterpiece, best quality, 1girl with red hair", ["1girl", "red hair"]),
        ("in winter", ["winter"]),
        ("a cat at night in the old street", ["cat"]),
        ("a cat, a cat and a dog", ["cat", "dog"]),
        ("(red fox:1.3) beside a well", ["red fox", "well"]),
        (r"a red cat \(pet\) & a \"big\" dog_house", ["red cat pet", "big dog_house"]),
        ("a red fox BREAK blue hat 🦊 moon", ["red fox", "blue hat", "moon"]),
        ("the", []),
        ("", []),
        ("a rabbit, a basketball, (wet moon:1.2), a tree, ((hat))", ["wet moon", "hat", "rabbit"]),
        ("(a rabbit, a ball:0.8), (masterpiece:1.4), (moon:1)", ["rabbit", "ball", "moon"]),
        ("score_9, 1girl, tracer \\(overwatch\\), orange_hair", ["1girl", "tracer overwatch", "orange_hair"]),
        ("score_9, score_8_up, rating_safe, source_anime, 0.8, 7", []),
        ("<lora:add_detail:0.8>, embedding:style, a fox, <hypernet:x:1>", ["fox"]),
        ("[dog:cat:0.5] in snow", ["dog", "cat"]),
        ("a {red|{blue|green}} fox by __place__", ["fox"]),
        ("35mm film photo of a standing king, f/1.8, detailed skin, depth of field", ["king"]),
        ("a woman wearing a red hat, smiling, a building on a spring", ["woman", "red hat", "building"]),
        ("a boat, oil painting, white background, anime style", ["boat"]),
        ("a dragon painting", ["dragon"]),
        ("3 cats and two of the", ["3 cats"]),
        ("red fox\nblue hat", ["red fox", "blue hat"]),
        ("一只兔子在草地上，两个月亮，杰作", ["兔子", "月亮"]),
        ("草原の赤い狐、月", ["草原", "赤い狐", "月"]),
    ],
)
def test_content_phrases(prompt: str, phrases: list[str]) -> None:
    """What is chosen where no target is given: the things, not the places or the style."""
    assert content_phrases(prompt) == phrases


@settings(max_examples=100, deadline=None)
@given(st.text("ab cd,.():1-'é", max_size=60))
def test_content_phrases_are_made_of_the_prompt(prompt: str) -> None:
    """For any prompt: every chosen phrase is a run of its words."""
    chosen = content_phrases(prompt)
    assert len(chosen) <= 3
    for phrase in chosen:
        assert set(phrase.split()) <= set(prompt_words(prompt))
        assert list(stretches(prompt, phrase))


@pytest.mark.parametrize(
    ("prompt", "target", "said"),
    [
        ("1girl, tracer \\(overwatch\\), orange_hair", "tracer \\(overwatch\\)", ["tracer \\(overwatch"]),
        ("tracer \\(overwatch\\), tracer \\(overwatch\\)", "Tracer overwatch", ["tracer \\(overwatch"] * 2),
        ("a [red fox], 'red fox', \"red\" fox!", '"red fox"', ["red fox", "red fox", 'red" fox']),
        ("a (red:1.3) fox, a ((red)) (fox)", "red fox", ["red", "fox", "red", "fox"]),
        ("a red, fox; red-fox", "red fox", []),
        ("orange_hair, orange hair", "orange_hair", ["orange_hair", "orange hair"]),
        ("orange_hair", "hair", ["hair"]),
        ("foxes, 1fox, FOX's", "fox", ["fox", "FOX"]),
        ("st. bernard", "st. bernard", ["st. bernard"]),
        ("embedding:glim glim", "glim", ["glim"]),
        ("(art by embedding:glim:1.1)", "embedding:glim", ["embedding:glim"]),
        ("一只兔子在草地上", "兔子", ["兔子"]),
        ("토끼가 뛴다", "토끼", ["토끼"]),
        ("a 🦊 and !!", "🦊", ["🦊"]),
        ("a fox!!", "!", ["!", "!"]),
        ("a fox", " ", []),
    ],
)
def test_stretches(prompt: str, target: str, said: list[str]) -> None:
    """Letters decide; a part of a word is not the word."""
    assert [prompt[start:end] for start, end in stretches(prompt, target)] == said


def test_divided() -> None:
    """By BREAK and AND, as other programs do."""
    assert divided("a fox BREAK a hat AND a cat") == ["a fox ", " a hat ", " a cat"]
    assert divided("a fox and a BREAKFAST") == [] == divided("BREAK a fox")


def test_the_longest_text_is_read_at_once() -> None:
    """Whatever it is made of: the time is that of its length, not of its square."""
    for part in ("(", "a(", "(a)", "{a|", "{", "<", "<:", "__", "_a", "a_", "a:1 ", "a' ", "!", "兔子", "embedding:", "a\n"):
        text = (part * LONGEST_TEXT)[:LONGEST_TEXT]
        started = time.perf_counter()
        content_phrases(text)
        places(plain_text(text), "a red boat")
        assert time.perf_counter() - started < 2, part


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
