"""The demo world: its scorer reads true drawings, its held-out list is kept, its words are single tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from demo.config import TOKENIZER
from demo.model import CLIPTokenizer, build_tokenizer_files, tokenize
from demo.scorer import read, score
from demo.world import COLOURS, KINDS, PLACES, Claims, Group, Promise, Scene, Thing, draw, sample_scene, vocabulary

PLAIN_MEANS = [
    (150.51, 180.65, 184.4), (172.81, 193.81, 169.05), (144.24, 138.59, 130.35), (54.22, 57.28, 55.97),
    (177.81, 154.28, 125.64), (181.16, 193.17, 171.77),
]  # fmt: skip


@pytest.mark.parametrize(("held_out", "busy", "least"), [(False, False, 0.97), (True, False, 0.97), (True, True, 0.99)])
def test_scorer_reads_true_drawings(held_out: bool, busy: bool, least: float) -> None:
    rng = np.random.default_rng(31)
    scenes = [sample_scene(rng, held_out) for _ in range(200)]
    right = [score(draw(scene, rng, busy), scene.claims()).whole_prompt for scene in scenes]
    assert np.mean(right) >= least


@pytest.mark.parametrize("busy", [False, True])
def test_scorer_reads_every_kind_colour_and_place(busy: bool) -> None:
    rng = np.random.default_rng(32)
    for kind, colour, place in product(KINDS, COLOURS, PLACES):
        scene = Scene(place, (Group(kind, colour, (Thing(64, 72, 48, 48, False),)),), (), ())
        reading = read(draw(scene, rng, busy))
        assert (reading.place, [(t.kind, t.colour) for t in reading.things]) == (place, [(kind, colour)])


def test_scorer_sees_what_is_wrong() -> None:
    """A picture is held against sentences that differ from its own in one thing each."""
    boat = Group("boat", "green", (Thing(64, 96, 44, 42, False),))
    moons = Group("moon", "white", (Thing(40, 24, 24, 34, False), Thing(88, 24, 24, 34, False)))
    scene = Scene("sea", (boat, moons), ((0, "under", 1),), ("under",))
    assert scene.prompt() == "a green boat under two white moons on the sea"
    picture, claims = draw(scene, np.random.default_rng(1)), scene.claims()
    assert score(picture, claims).whole_prompt
    first, second = claims.promises
    wrong = {
        "place_right": replace(claims, place="beach"),
        "relation_right": replace(claims, relations=((0, "over", 1),)),
        "colour_right": replace(claims, promises=(replace(first, colour="red"), second)),
        "count_right": replace(claims, promises=(first, replace(second, count=3))),
        "objects_right": replace(claims, promises=(replace(first, kind="house"), second)),
    }
    for part, other in wrong.items():
        result = score(picture, other)
        assert not getattr(result, part), part
        assert not result.whole_prompt
    assert score(picture, replace(claims, promises=(first, replace(second, count=3)))).missing == ("white moon",)
    assert score(picture, Claims("sea", (Promise("boat", None, 1),), ())).extra == ("white moon", "white moon")


def test_held_out_combinations_stay_out_of_training() -> None:
    rng = np.random.default_rng(33)
    for _ in range(1500):
        scene = sample_scene(rng)
        assert not list(scene.held_out_combinations()) and not scene.held_out_counts()
    for _ in range(100):
        assert list(sample_scene(rng, held_out=True).held_out_combinations())


def test_things_lie_inside_and_apart() -> None:
    rng = np.random.default_rng(34)
    for _ in range(300):
        boxes = [
            (t.x - t.width / 2, t.y - t.height / 2, t.x + t.width / 2, t.y + t.height / 2)
            for group in sample_scene(rng).groups
            for t in group.things
        ]
        for n, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and top >= 0 and right <= 128 and bottom <= 128
            for other in boxes[:n]:
                assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_drawing_is_reproducible() -> None:
    scene = sample_scene(np.random.default_rng(35))
    first, second = (draw(scene, np.random.default_rng(1)) for _ in range(2))
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_plain_drawings_are_those_that_the_model_learned_from() -> None:
    """Red, green and blue of a cat in every place: the mean as it was when the data of the shipped weights were drawn."""
    cat = (Group("cat", "yellow", (Thing(64, 72, 48, 48, False),)),)
    means = [draw(Scene(place, cat, (), ()), np.random.default_rng(7)).mean((0, 1)) for place in PLACES]
    assert np.allclose(means, PLAIN_MEANS, atol=0.05)


def test_busy_places_hold_more_and_nothing_that_the_scorer_sees() -> None:
    for place in PLACES:
        plain, busy = (draw(Scene(place, (), (), ()), np.random.default_rng(3), busy).astype(float) for busy in (False, True))
        edges = [np.abs(np.diff(picture, axis=1)).mean() for picture in (plain, busy)]
        assert edges[1] > 1.5 * edges[0], place
        assert (read(busy / 255).place, read(busy / 255).things) == (place, ())


def test_things_in_busy_places_leave_their_mark() -> None:
    """On the ground under a thing it is darker than without it, in the night sky around one lighter; in its colour."""
    for place, y, sign in (("meadow", 88, -1), ("night", 32, 1)):
        red, blue, empty = (
            draw(Scene(place, groups, (), ()), np.random.default_rng(3), True).astype(float)
            for groups in (*(((Group("ball", c, (Thing(64, y, 40, 40, False),)),)) for c in ("red", "blue")), ())
        )  # fmt: skip
        mark = (slice(y + 22, y + 25), slice(56, 72))
        assert sign * (red - empty)[mark].mean() > 3
        assert (red - blue)[mark][..., 0].mean() > 5 and (red - blue)[mark][..., 2].mean() < -5


def test_every_word_is_one_token(tmp_path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER))
    for word in vocabulary():
        assert len(tokenizer(word)["input_ids"]) == 3, word
    assert tokenizer.decode(tokenizer("zebra")["input_ids"], skip_special_tokens=True).strip() == "zebra"
    assert tokenize(tokenizer, ["a red boat", ""]).shape == (2, 77)
    build_tokenizer_files(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_text() == (TOKENIZER / name).read_text()


def test_prompts_use_the_vocabulary() -> None:
    rng, words = np.random.default_rng(36), set(vocabulary())
    for _ in range(300):
        assert set(sample_scene(rng).prompt().split()) <= words
