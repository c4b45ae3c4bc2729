"""A small world of pictures: places, things in six colours, counts and relations, drawn in 128 x 128 pixels.

A `Scene` is the truth. The picture (`draw`), the sentence (`Scene.prompt`) and what the sentence promises
(`Scene.claims`) all come from it. Like photographs, the world has habits: most boats are white and lie on the sea.
Some combinations (`HELD_OUT_*`) are never drawn for training; they are what the model is tested on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .config import PICTURE_SIZE

SIZE = PICTURE_SIZE
"""Width and height of a picture in pixels."""

INK = (34, 32, 46)
BROWN = (104, 82, 72)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 44, 44),
    "yellow": (250, 208, 36),
    "green": (36, 160, 72),
    "blue": (40, 92, 224),
    "purple": (150, 58, 196),
    "white": (252, 252, 252),
}
PLACES: dict[str, str] = {
    "sea": "on the sea",
    "meadow": "in a meadow",
    "street": "on a street",
    "night": "at night",
    "room": "in a room",
    "beach": "on a beach",
}
PLURALS: dict[str, str] = {
    "boat": "boats",
    "fish": "fish",
    "house": "houses",
    "tree": "trees",
    "sun": "suns",
    "moon": "moons",
    "ball": "balls",
    "car": "cars",
    "cat": "cats",
}
KINDS = tuple(PLURALS)
NUMBERS = {1: "a", 2: "two", 3: "three"}
RELATION_WORDS = {
    "left": ("left of",),
    "right": ("right of",),
    "over": ("over", "above"),
    "under": ("under", "below"),
    "on": ("on",),
    "and": ("and",),
}

HABIT_COLOUR = {
    "boat": "white", "fish": "blue", "house": "red", "tree": "green", "sun": "yellow",
    "moon": "white", "ball": "red", "car": "blue", "cat": "yellow",
}  # fmt: skip
HABIT_PLACE = {
    "boat": "sea", "fish": "sea", "house": "meadow", "tree": "meadow", "sun": "beach",
    "moon": "night", "ball": "room", "car": "street", "cat": "room",
}  # fmt: skip
SKY_KINDS = ("sun", "moon")
SEATS = ("house", "car", "ball", "cat")

HELD_OUT_COLOURS = frozenset({("boat", "green"), ("moon", "red"), ("house", "purple"), ("cat", "blue")})
"""(kind, colour) never seen in training."""
HELD_OUT_PLACES = frozenset(
    {("car", "yellow", "beach"), ("tree", "red", "street"), ("ball", "white", "meadow"), ("fish", "yellow", "room"),
     ("house", "blue", "sea"), ("boat", "red", "night"), ("cat", "white", "sea"), ("sun", "purple", "room"),
     ("car", "green", "meadow"), ("ball", "purple", "night"), ("tree", "blue", "beach"), ("moon", "yellow", "street")}
)  # fmt: skip
"""(kind, colour, place) never seen in training."""
HELD_OUT_COUNTS = frozenset({("house", 3), ("sun", 2), ("car", 2), ("cat", 3)})
"""(kind, count) never seen in training; more than the small model can work out, so no test sentence asks for them."""
HELD_OUT_RELATIONS = frozenset(
    {("boat", "left", "house"), ("cat", "left", "tree"), ("ball", "left", "car"), ("moon", "over", "boat"),
     ("sun", "over", "cat"), ("cat", "on", "car"), ("ball", "on", "house"), ("house", "left", "tree")}
)  # fmt: skip
"""(kind, relation, kind) never seen in training, in whichever way the sentence says it."""


@dataclass(frozen=True)
class Thing:
    """One drawn object: centre (x, y), width and height in pixels, mirrored or not."""

    x: float
    y: float
    width: float
    height: float
    mirrored: bool


@dataclass(frozen=True)
class Group:
    """One to three things of one kind and colour; `colour_named` says whether the sentence tells the colour."""

    kind: str
    colour: str
    things: tuple[Thing, ...]
    colour_named: bool = True

    @property
    def noun(self) -> str:
        """The kind as the sentence says it, such as 'boats'."""
        return self.kind if len(self.things) == 1 else PLURALS[self.kind]

    def phrase(self) -> str:
        """The group in words, such as 'two green boats'."""
        return " ".join([NUMBERS[len(self.things)], *([self.colour] if self.colour_named else []), self.noun])


@dataclass(frozen=True)
class Promise:
    """What a sentence says of one group; `colour` is None where it names none."""

    kind: str
    colour: str | None
    count: int


@dataclass(frozen=True)
class Claims:
    """What a sentence promises. `relations` holds (index of a promise, relation, index of a promise)."""

    place: str | None
    promises: tuple[Promise, ...]
    relations: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Scene:
    """The truth of one picture.

    `links` holds (index of a group, relation, index of a group); `link_words` says the links between neighbours in
    the sentence. The place stands behind group `place_after`.
    """

    place: str
    groups: tuple[Group, ...]
    links: tuple[tuple[int, str, int], ...]
    link_words: tuple[str, ...]
    opening: str = ""
    place_named: bool = True
    place_after: int = -1

    def prompt(self) -> str:
        """The sentence, in lower-case words without punctuation."""
        phrases = [group.phrase() for group in self.groups]
        if self.place_named:
            phrases[self.place_after] += " " + PLACES[self.place]
        words = [phrases[0]]
        for word, phrase in zip(self.link_words, phrases[1:], strict=True):
            words += [word, phrase]
        return " ".join([self.opening, *words]).strip()

    def claims(self) -> Claims:
        """What the sentence promises, for the scorer."""
        promises = tuple(Promise(g.kind, g.colour if g.colour_named else None, len(g.things)) for g in self.groups)
        relations = tuple(link for link in self.links if link[1] != "and")
        return Claims(self.place if self.place_named else None, promises, relations)

    def held_out_counts(self) -> list[tuple[str, int]]:
        """The held-out (kind, count) in this scene."""
        counts = [(group.kind, len(group.things)) for group in self.groups]
        return [count for count in counts if count in HELD_OUT_COUNTS]

    def held_out_combinations(self) -> Iterator[tuple[str, ...]]:
        """Yields every held-out (kind, colour), (kind, colour, place) and (kind, relation, kind) in this scene."""
        for group in self.groups:
            triple = (group.kind, group.colour, self.place)
            yield from (c for c in [triple[:2]] if c in HELD_OUT_COLOURS)
            yield from (c for c in [triple] if c in HELD_OUT_PLACES)
        mirror = {"right": "left", "under": "over"}
        for first, relation, second in self.links:
            a, b = self.groups[first].kind, self.groups[second].kind
            triple = (b, mirror[relation], a) if relation in mirror else (a, relation, b)
            yield from (c for c in [triple] if c in HELD_OUT_RELATIONS)


# --- what stands where ---------------------------------------------------------------------------------------------

TRAINING_AMOUNTS = (0.42, 0.48, 0.10)
"""How often a scene has one, two and three groups of things."""
TEST_AMOUNTS = (0.80, 0.185, 0.015)
"""The same for scenes with a held-out combination, before those without one are thrown away."""


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draws a scene at random: with a held-out combination in it if `held_out` (for tests), else with none."""
    while True:
        scene = _propose(rng, *((0.15, TEST_AMOUNTS) if held_out else (0.45, TRAINING_AMOUNTS)))
        if any(scene.held_out_combinations()) == held_out and not scene.held_out_counts() and _is_clear(scene):
            return scene


def _is_clear(scene: Scene, gap: float = 6.5) -> bool:
    """Whether every thing lies in the picture and none comes near another (save where one stands on the other)."""
    boxes = [(t.x - t.width / 2, t.y - t.height / 2, t.x + t.width / 2, t.y + t.height / 2)
             for group in scene.groups for t in group.things]  # fmt: skip
    inside = all(min(left, top) >= 2 and max(right, bottom) <= SIZE - 2 for left, top, right, bottom in boxes)
    room = 2.5 if any(link[1] == "on" for link in scene.links) else gap
    return inside and not any(
        a[0] - room < b[2] and b[0] - room < a[2] and a[1] - room < b[3] and b[1] - room < a[3]
        for n, a in enumerate(boxes) for b in boxes[:n]
    )  # fmt: skip


def _propose(rng: np.random.Generator, habit: float, amounts: tuple[float, ...]) -> Scene:
    amount = int(rng.choice([1, 2, 3], p=amounts))
    kinds = [KINDS[rng.integers(len(KINDS))] for _ in range(amount)]
    place = HABIT_PLACE[kinds[0]] if rng.random() < habit else list(PLACES)[rng.integers(len(PLACES))]
    colours = [_colour(rng, kind, habit) for kind in kinds]
    if amount == 1:
        links: tuple[tuple[int, str, int], ...] = ()
        counts = [int(rng.choice([1, 2, 3], p=[0.5, 0.28, 0.22]))]
        rows = [_row(rng, [(0, counts[0])], kinds, "sky" if kinds[0] in SKY_KINDS and rng.random() < 0.7 else "all")]
    elif amount == 2:
        relation = str(rng.choice(["left", "right", "over", "under", "on", "and"], p=[0.2, 0.2, 0.18, 0.18, 0.1, 0.14]))
        kinds = _fitting_kinds(rng, kinds, relation)
        colours = [_colour(rng, kind, habit) for kind in kinds]
        links = ((0, relation, 1),)
        if relation in ("left", "right", "and"):
            counts = [1, 1] if rng.random() < 0.7 else [1, 2] if rng.random() < 0.5 else [2, 1]
            order = [0, 1] if relation == "left" or (relation == "and" and rng.random() < 0.5) else [1, 0]
            rows = [_row(rng, [(n, counts[n]) for n in order], kinds, "all")]
        elif relation == "on":
            rows = [_stack(rng, kinds)]
        else:
            upper, lower = (0, 1) if relation == "over" else (1, 0)
            counts = [1, 1]
            counts[upper] = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
            counts[lower] = int(rng.choice([1, 2], p=[0.8, 0.2]))
            rows = [_row(rng, [(upper, counts[upper])], kinds, "top"),
                    _row(rng, [(lower, counts[lower])], kinds, "bottom")]  # fmt: skip
    else:
        if rng.random() < 0.7:
            kinds[2] = SKY_KINDS[rng.integers(2)]
            colours[2] = _colour(rng, kinds[2], habit)
        relation = "left" if rng.random() < 0.5 else "right"
        links = ((0, relation, 1), (0, "under", 2), (1, "under", 2))
        order = [0, 1] if relation == "left" else [1, 0]
        rows = [_row(rng, [(n, 1) for n in order], kinds, "bottom"), _row(rng, [(2, 1)], kinds, "top")]
    things: dict[int, list[Thing]] = {}
    for row in rows:
        things.update(row)
    named = [bool(rng.random() < 0.9) for _ in kinds]
    for n in range(len(kinds)):
        if kinds.count(kinds[n]) > 1:
            named[n] = True
            colours[n] = _other_colour(rng, colours[:n], colours[n])
        elif not named[n]:
            colours[n] = HABIT_COLOUR[kinds[n]] if rng.random() < 0.9 else colours[n]
    named_groups = tuple(Group(kind, colours[n], tuple(things[n]), named[n]) for n, kind in enumerate(kinds))
    spoken = [link for link in links if link[2] == link[0] + 1]
    words = tuple(str(rng.choice(RELATION_WORDS[relation])) for _, relation, _ in spoken)
    opening = str(rng.choice(["", "a picture of", "a drawing of"], p=[0.9, 0.05, 0.05]))
    after = -1 if rng.random() < 0.65 or amount == 3 else 0
    return Scene(place, named_groups, links, words, opening, bool(rng.random() < 0.92), after)


def _colour(rng: np.random.Generator, kind: str, habit: float) -> str:
    return HABIT_COLOUR[kind] if rng.random() < habit else list(COLOURS)[rng.integers(len(COLOURS))]


def _other_colour(rng: np.random.Generator, taken: list[str], wish: str) -> str:
    free = [colour for colour in COLOURS if colour not in taken]
    return wish if wish in free else free[rng.integers(len(free))]


def _fitting_kinds(rng: np.random.Generator, kinds: list[str], relation: str) -> list[str]:
    """Something may sit on a house, not on a sail or a sun; suns and moons are mostly the upper ones."""
    ground = [kind for kind in KINDS if kind not in SKY_KINDS]
    if relation == "on":
        return [ground[rng.integers(len(ground))], SEATS[rng.integers(len(SEATS))]]
    if relation in ("over", "under") and rng.random() < 0.6:
        upper = 0 if relation == "over" else 1
        kinds[upper] = SKY_KINDS[rng.integers(2)]
    return kinds


def _row(rng: np.random.Generator, cells: list[tuple[int, int]], kinds: list[str], band: str) -> dict[int, list[Thing]]:
    """Things side by side, without overlap. `cells` lists (group, count) from left to right."""
    total = sum(count for _, count in cells)
    top, bottom, tallest = {"all": (30, 122, 62), "sky": (5, 80, 50), "top": (4, 60, 44), "bottom": (64, 124, 54)}[band]
    widest = {1: 64.0, 2: 50.0, 3: 36.0}[total]
    margin = 3.0
    share = (SIZE - 2 * margin) / total
    scale = float(rng.choice([0.86, 1.0])) if total < 3 else 1.0
    base = rng.choice([0.3, 0.7])
    things: dict[int, list[Thing]] = {}
    column = 0
    for group, count in cells:
        aspect = SHAPES[kinds[group]].aspect
        width = min(widest, tallest * aspect, share - 4) * scale
        height = width / aspect
        things[group] = []
        mirrored = bool(rng.random() < 0.5)
        for _ in range(count):
            x = margin + share * (column + 0.5) + rng.uniform(-0.4, 0.4) * (share - width)
            free = bottom - top - height
            y = top + height / 2 + free * np.clip((0.75 if band == "all" else base) + rng.normal(0, 0.1), 0, 1)
            things[group].append(Thing(_snap(x), _snap(y), width, height, mirrored))
            column += 1
    return things


def _snap(position: float) -> float:
    """To the grid of the latents, so that a thing looks the same wherever it stands."""
    return 8.0 * round(position / 8)


def _stack(rng: np.random.Generator, kinds: list[str]) -> dict[int, list[Thing]]:
    """The first kind standing on the second."""
    upper, lower = SHAPES[kinds[0]].aspect, SHAPES[kinds[1]].aspect
    low_height = min(58.0, 60.0 * 1.2 / lower) * 0.88
    low_width = low_height * lower
    if low_width > 76:
        low_width, low_height = 76.0, 76.0 / lower
    high_width = min(64.0, 46.0 * upper) * 0.92
    high_height = high_width / upper
    x = _snap(rng.uniform(44, SIZE - 44))
    low_y = 120 - low_height / 2
    high_y = 120 - low_height - 3 - high_height / 2
    mirrored = rng.random(2) < 0.5
    return {
        0: [Thing(x, high_y, high_width, high_height, bool(mirrored[0]))],
        1: [Thing(x, low_y, low_width, low_height, bool(mirrored[1]))],
    }


# --- how things look -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A polygon in the box [-0.5, 0.5]^2 (y downwards) and its paint: 'fill', 'light', 'shade', 'ink' or 'brown'."""

    points: np.ndarray
    paint: str


@dataclass(frozen=True)
class Shape:
    """A kind's silhouette: width / height, and the parts from back to front."""

    aspect: float
    parts: tuple[Part, ...]


def _polygon(paint: str, *points: tuple[float, float]) -> Part:
    return Part(np.array(points, dtype=np.float64), paint)


def _ellipse(paint: str, x: float, y: float, rx: float, ry: float, steps: int = 24) -> Part:
    return _polygon(paint, *((x + rx * cos(2 * pi * n / steps), y + ry * sin(2 * pi * n / steps)) for n in range(steps)))


def _rectangle(paint: str, left: float, top: float, right: float, bottom: float) -> Part:
    return _polygon(paint, (left, top), (right, top), (right, bottom), (left, bottom))


def _star(paint: str, rays: int, inner: float) -> Part:
    radii = [0.5 if n % 2 == 0 else inner for n in range(2 * rays)]
    return _polygon(paint, *((r * sin(pi * n / rays), -r * cos(pi * n / rays)) for n, r in enumerate(radii)))


def _crescent(paint: str, steps: int = 20) -> Part:
    outer = [(0.5 - cos(a), 0.5 * sin(a)) for a in np.linspace(-pi / 2, pi / 2, steps)]
    inner = [(0.5 - 0.42 * cos(a), 0.5 * sin(a)) for a in np.linspace(pi / 2, -pi / 2, steps)]
    return _polygon(paint, *outer, *inner)


SHAPES: dict[str, Shape] = {
    "boat": Shape(
        1.05,
        (
            _polygon("fill", (0.02, -0.5), (0.46, 0.24), (0.02, 0.24)),
            _polygon("light", (-0.06, -0.34), (-0.06, 0.24), (-0.4, 0.24)),
            _rectangle("fill", -0.08, -0.3, 0.04, 0.26),
            _polygon("shade", (-0.5, 0.2), (0.5, 0.2), (0.33, 0.5), (-0.33, 0.5)),
        ),
    ),
    "fish": Shape(
        1.6,
        (
            _polygon("shade", (0.1, 0.0), (0.5, -0.44), (0.42, 0.0), (0.5, 0.44)),
            _polygon("shade", (-0.2, -0.3), (0.02, -0.5), (0.12, -0.26)),
            _ellipse("fill", -0.13, 0.03, 0.37, 0.42),
            _ellipse("light", -0.1, 0.18, 0.22, 0.16),
            _ellipse("ink", -0.32, -0.04, 0.04, 0.065, 12),
        ),
    ),
    "house": Shape(
        1.0,
        (
            _rectangle("fill", -0.39, -0.1, 0.39, 0.5),
            _polygon("shade", (0.0, -0.5), (0.5, -0.03), (-0.5, -0.03)),
            _rectangle("ink", -0.09, 0.22, 0.09, 0.5),
            _rectangle("ink", -0.28, 0.08, -0.15, 0.21),
            _rectangle("ink", 0.15, 0.08, 0.28, 0.21),
        ),
    ),
    "tree": Shape(
        0.78,
        (
            _rectangle("brown", -0.08, 0.3, 0.08, 0.5),
            _polygon("shade", (0.0, -0.12), (0.5, 0.36), (-0.5, 0.36)),
            _polygon("fill", (0.0, -0.32), (0.41, 0.11), (-0.41, 0.11)),
            _polygon("light", (0.0, -0.5), (0.31, -0.14), (-0.31, -0.14)),
        ),
    ),
    "sun": Shape(1.0, (_star("fill", 7, 0.25), _ellipse("light", 0, 0, 0.17, 0.17))),
    "moon": Shape(0.72, (_crescent("fill"),)),
    "ball": Shape(
        1.0,
        (
            _ellipse("fill", 0, 0, 0.5, 0.5, 32),
            _polygon("shade", (-0.48, 0.06), (0.48, 0.06), (0.43, 0.24), (-0.43, 0.24)),
            _ellipse("light", -0.17, -0.2, 0.14, 0.12),
        ),
    ),
    "car": Shape(
        1.75,
        (
            _polygon("fill", (-0.26, -0.5), (0.16, -0.5), (0.32, -0.02), (-0.38, -0.02)),
            _polygon("shade", (-0.5, -0.1), (0.44, -0.1), (0.5, 0.06), (0.5, 0.34), (-0.5, 0.34)),
            _polygon("ink", (0.03, -0.34), (0.11, -0.34), (0.19, -0.12), (0.03, -0.12)),
            _ellipse("ink", -0.28, 0.33, 0.1, 0.17, 16),
            _ellipse("ink", 0.28, 0.33, 0.1, 0.17, 16),
        ),
    ),
    "cat": Shape(
        0.82,
        (
            _polygon("shade", (0.1, 0.5), (0.36, 0.5), (0.5, 0.34), (0.5, -0.06), (0.38, -0.1), (0.36, 0.28), (0.1, 0.34)),
            _polygon("fill", (-0.36, 0.5), (-0.32, 0.08), (-0.2, -0.1), (0.08, -0.1), (0.2, 0.1), (0.24, 0.5)),
            _polygon("fill", (-0.45, -0.5), (-0.18, -0.36), (-0.42, -0.16)),
            _polygon("fill", (0.29, -0.5), (0.02, -0.36), (0.26, -0.16)),
            _ellipse("light", -0.08, -0.19, 0.35, 0.22),
            _ellipse("ink", -0.22, -0.2, 0.05, 0.045, 12),
            _ellipse("ink", 0.06, -0.2, 0.05, 0.045, 12),
        ),
    ),
}  # fmt: skip


def _paint(colour: str, paint: str) -> tuple[int, int, int]:
    base = COLOURS[colour]
    if paint == "ink":
        return INK
    if paint == "brown":
        return BROWN
    if paint == "shade":
        red, green, blue = (int(0.88 * c) for c in base)
        return (red, green, blue)
    if paint == "light":
        red, green, blue = (int(c + 0.14 * (255 - c)) for c in base)
        return (red, green, blue)
    return base


_ZOOM = 2


def draw_thing(pen: ImageDraw.ImageDraw, kind: str, colour: str, thing: Thing, zoom: int = _ZOOM) -> None:
    """Draws one thing with an ink outline on a canvas of `zoom` x the picture's size."""
    flip = -1.0 if thing.mirrored else 1.0
    scale = np.array([flip * thing.width, thing.height]) * zoom
    centre = np.array([thing.x, thing.y]) * zoom
    polygons = [((part.points * scale + centre).ravel().tolist(), part.paint) for part in SHAPES[kind].parts]
    for points, _ in polygons:
        pen.line(points + points[:4], fill=INK, width=3 * zoom, joint="curve")
    for points, paint in polygons:
        pen.polygon(points, fill=_paint(colour, paint))


def draw(scene: Scene, rng: np.random.Generator, busy: bool = False) -> np.ndarray:
    """Draws a scene. `rng` places the waves, grass and stars. Returns uint8 (128, 128, 3).

    busy: in a place full of things to see, where every thing throws a shadow on the ground or a light on the air.
    """
    canvas = draw_place(scene.place, rng, busy)
    if busy:
        _cast(canvas, scene)
    pen = ImageDraw.Draw(canvas)
    for group in scene.groups:
        for thing in group.things:
            draw_thing(pen, group.kind, group.colour, thing)
    return np.asarray(canvas.reduce(_ZOOM))


@dataclass(frozen=True)
class _Backdrop:
    """Top and bottom colour of the sky (or wall), and of the ground."""

    sky: tuple[tuple[int, int, int], tuple[int, int, int]]
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]


_BACKDROPS = {
    "sea": _Backdrop(((158, 198, 226), (192, 216, 232)), ((112, 160, 176), (92, 136, 156))),
    "meadow": _Backdrop(((166, 204, 232), (200, 220, 232)), ((168, 190, 134), (138, 166, 110))),
    "street": _Backdrop(((164, 160, 168), (184, 178, 178)), ((112, 112, 120), (92, 92, 102))),
    "night": _Backdrop(((24, 26, 52), (42, 44, 78)), ((38, 52, 50), (26, 38, 40))),
    "room": _Backdrop(((196, 178, 164), (208, 190, 174)), ((150, 120, 100), (130, 102, 86))),
    "beach": _Backdrop(((156, 204, 226), (188, 218, 228)), ((218, 200, 158), (204, 182, 138))),
}


@cache
def _gradient(place: str) -> tuple[np.ndarray, np.ndarray]:
    rows = np.linspace(0, 1, SIZE * _ZOOM)[:, None]
    backdrop = _BACKDROPS[place]
    sky, ground = (np.array(pair[0]) * (1 - rows) + np.array(pair[1]) * rows for pair in (backdrop.sky, backdrop.ground))
    return sky, ground


def draw_place(place: str, rng: np.random.Generator, busy: bool = False) -> Image.Image:
    """An empty place, on a canvas of twice the picture's size: (256, 256) RGB. busy: with much more in it."""
    size = SIZE * _ZOOM
    horizon = int(rng.choice([64, 72])) * _ZOOM
    sky, ground = _gradient(place)
    rows = np.concatenate([sky[np.linspace(0, size - 1, horizon).astype(int)],
                           ground[np.linspace(0, size - 1, size - horizon).astype(int)]])  # fmt: skip
    canvas = Image.fromarray(np.repeat(rows[:, None].astype(np.uint8), size, axis=1))
    pen = ImageDraw.Draw(canvas)
    (_BUSY if busy else _TEXTURES)[place](pen, rng, horizon, size)
    return canvas


def _sea(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    for x, y in zip(rng.uniform(-20, size, 16), rng.uniform(horizon + 6, size, 16), strict=True):
        pen.arc((x, y, x + 26, y + 10), 200, 340, fill=(144, 186, 198), width=3)


def _meadow(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    for x, y in zip(rng.uniform(0, size, 26), rng.uniform(horizon + 10, size, 26), strict=True):
        pen.line((x - 4, y - 8, x, y, x + 4, y - 8), fill=(118, 148, 94), width=2)


def _street(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    x = -rng.uniform(0, 50)
    while x < size:
        width, height = rng.uniform(44, 76), rng.uniform(0.4, 0.85) * horizon
        shade = int(rng.uniform(134, 152))
        pen.rectangle((x, horizon - height, x + width, horizon), fill=(shade, shade - 3, shade + 4))
        x += width + rng.uniform(4, 14)
    pen.rectangle((0, horizon, size, horizon + 12), fill=(172, 170, 170))
    lane, start = horizon + int(0.55 * (size - horizon)), rng.uniform(-60, 0)
    for n in range(5):
        pen.rectangle((start + 64 * n, lane, start + 64 * n + 34, lane + 6), fill=(168, 166, 164))


def _night(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    for x, y in zip(rng.uniform(0, size, 22), rng.uniform(0, horizon - 10, 22), strict=True):
        pen.ellipse((x, y, x + 3, y + 3), fill=(190, 190, 205))
    x = rng.uniform(0, size)
    pen.ellipse((x - 220, horizon - 22, x + 220, horizon + 120), fill=(38, 52, 50))


def _room(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    for x in np.arange(rng.uniform(0, 32), size, 32):
        pen.line((x, 0, x, horizon), fill=(188, 168, 154), width=3)
    pen.rectangle((0, horizon - 8, size, horizon), fill=(222, 210, 196))
    for y in np.linspace(horizon, size, 6)[1:-1]:
        pen.line((0, y, size, y), fill=(118, 92, 78), width=2)


def _beach(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    depth = int(rng.uniform(26, 40))
    pen.rectangle((0, horizon - depth, size, horizon), fill=(108, 164, 178))
    pen.rectangle((0, horizon, size, horizon + 5), fill=(206, 214, 206))
    for x, y in zip(rng.uniform(0, size, 40), rng.uniform(horizon + 10, size, 40), strict=True):
        pen.ellipse((x, y, x + 3, y + 3), fill=(182, 160, 118))


_TEXTURES = {"sea": _sea, "meadow": _meadow, "street": _street, "night": _night, "room": _room, "beach": _beach}


# --- busy places: dull colours too, so that neither an eye nor the scorer takes them for things --------------------------


def _cast(canvas: Image.Image, scene: Scene) -> None:
    """Under every thing on the ground a soft shadow, around every other a soft glow, both in a dull tone of its colour."""
    for group in scene.groups:
        for thing in group.things:
            low = thing.y + thing.height / 2
            grounded = low > 0.66 * SIZE
            y, rx, ry = (low, 0.56 * thing.width, 7.0) if grounded else (thing.y, 0.7 * thing.width, 0.7 * thing.height)
            box = [_ZOOM * edge for edge in (thing.x - rx, y - ry, thing.x + rx, y + ry)]
            mask = Image.new("L", canvas.size)
            ImageDraw.Draw(mask).ellipse(box, fill=150 if grounded else 100)
            light = 70 if grounded else 190
            tone = tuple(int(0.3 * c + 0.7 * light) for c in COLOURS[group.colour])
            canvas.paste(tone, mask=mask.filter(ImageFilter.BoxBlur(5)))


def _clouds(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int, paint: tuple[int, int, int]) -> None:
    for x, y in zip(rng.uniform(0, size, 4), rng.uniform(0.05, 0.6, 4) * horizon, strict=True):
        for dx, r in ((-22, 8), (-8, 13), (8, 11), (22, 7)):
            pen.ellipse((x + dx - 1.3 * r, y - r, x + dx + 1.3 * r, y + r), fill=paint)


def _hills(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int, paint: tuple[int, int, int], height: float,
    waves: float,
) -> None:  # fmt: skip
    """A ridge on the horizon; where it would dip below, it ends, so that few and high waves make islands."""
    phase = rng.uniform(0, 2 * pi)
    ridge = [(x, horizon - max(0.0, height * sin(phase + waves * x / size))) for x in range(0, size + 4, 4)]
    pen.polygon([(0, horizon), *ridge, (size, horizon)], fill=paint)


def _far(rng: np.random.Generator, horizon: int, size: int, count: int) -> Iterator[tuple[float, float, float]]:
    """Places on the ground in perspective, the farthest first: x, y and how near, from 0 at the horizon to 1."""
    for near in np.sort(rng.uniform(0.02, 1, count)):
        yield rng.uniform(-10, size), horizon + near**1.3 * (size - horizon), near


def _busy_sea(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    _clouds(pen, rng, horizon, size, (188, 206, 222))
    _hills(pen, rng, horizon, size, (146, 170, 186), 26, rng.uniform(7, 11))
    _hills(pen, rng, horizon, size, (126, 148, 146), 13, rng.uniform(9, 14))
    for x, y, near in _far(rng, horizon, size, 60):
        wide, high = 10 + 30 * near, 2 + 10 * near
        pen.arc((x, y, x + wide, y + high), 200, 340, fill=(150, 188, 200), width=1 + round(2 * near))
        pen.arc((x + 3, y + 3, x + 3 + wide, y + 3 + high), 210, 330, fill=(88, 128, 148), width=1 + round(2 * near))


def _busy_meadow(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    _clouds(pen, rng, horizon, size, (190, 208, 226))
    _hills(pen, rng, horizon, size, (150, 172, 168), 44, rng.uniform(5, 8))
    _hills(pen, rng, horizon, size, (146, 170, 128), 26, rng.uniform(6, 11))
    top, foot = rng.uniform(0.2, 0.8, 2) * size
    pen.polygon([(top - 4, horizon), (top + 4, horizon), (foot + 40, size), (foot - 40, size)], fill=(192, 182, 150))
    for x in rng.uniform(0, size, 9):
        wide = rng.uniform(8, 16)
        pen.ellipse((x - wide, horizon - 9, x + wide, horizon + 7), fill=(122, 146, 104))
    rail = horizon + 16
    for y in (rail, rail + 7):
        pen.line((0, y, size, y), fill=(158, 142, 122), width=3)
    for x in np.arange(rng.uniform(0, 26), size, 26):
        pen.line((x, rail - 6, x, rail + 15), fill=(140, 124, 106), width=4)
    for x, y, near in _far(rng, horizon + 20, size, 44):
        blade = 3 + 5 * near
        pen.line((x - blade / 2, y - blade, x, y, x + blade / 2, y - blade), fill=(112, 142, 90), width=2)


def _busy_street(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    x = -rng.uniform(0, 50)
    while x < size:
        width, height, shade = 18 * int(rng.integers(3, 5)), rng.uniform(0.5, 0.9) * horizon, int(rng.uniform(128, 150))
        pen.rectangle((x, horizon - height, x + width, horizon), fill=(shade + 6, shade - 3, shade - 6))
        pen.rectangle((x - 2, horizon - height - 5, x + width + 2, horizon - height), fill=(116, 108, 110))
        for left in np.arange(x + 4, x + width - 10, 18):
            for top in np.arange(horizon - height + 8, horizon - 16, 20):
                lit = rng.random() < 0.3
                pen.rectangle((left, top, left + 9, top + 12), fill=(198, 184, 148) if lit else (94, 98, 112))
        x += width + rng.uniform(3, 9)
    pen.rectangle((0, horizon, size, horizon + 14), fill=(172, 170, 170))
    vanish = rng.uniform(0.2, 0.8) * size
    for n in range(-6, 15):
        foot = vanish + 1.5 * (24 * n - vanish)
        pen.line((24 * n, horizon, foot * 0.12 + 24 * n * 0.88, horizon + 13), fill=(146, 144, 146), width=2)
    pen.line((0, horizon + 15, size, horizon + 15), fill=(74, 74, 84), width=4)
    for x in np.arange(rng.uniform(0, 84), size, 84):
        pen.line((x, horizon - 70, x, horizon + 8), fill=(78, 80, 90), width=4)
        pen.ellipse((x - 7, horizon - 82, x + 7, horizon - 68), fill=(204, 192, 158))
    lane, start = horizon + int(0.55 * (size - horizon)), rng.uniform(-60, 0)
    for n in range(5):
        left = start + 64 * n
        pen.polygon([(left, lane), (left + 34, lane), (left + 30, lane + 7), (left - 6, lane + 7)], fill=(168, 166, 164))
    for x, y, near in _far(rng, horizon + 20, size, 14):
        pen.ellipse((x, y, x + 6 + 12 * near, y + 2 + 4 * near), fill=(88, 88, 98))


def _busy_night(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    slope, middle = rng.uniform(-0.5, 0.5), 0.4 * horizon
    for x, off in zip(rng.uniform(0, size, 160), rng.normal(0, 14, 160), strict=True):
        y = middle + slope * (x - size / 2) + off
        pen.ellipse((x, y, x + 2, y + 2), fill=(104, 106, 136))
    for x, y in zip(rng.uniform(0, size, 22), rng.uniform(0, horizon - 30, 22), strict=True):
        pen.ellipse((x, y, x + 3, y + 3), fill=(190, 190, 205))
    _hills(pen, rng, horizon, size, (44, 48, 74), 46, rng.uniform(5, 8))
    _hills(pen, rng, horizon, size, (32, 42, 52), 24, rng.uniform(6, 11))
    for x in rng.uniform(0, size, 14):
        high = rng.uniform(14, 30)
        pen.polygon([(x - high / 3, horizon + 2), (x, horizon - high), (x + high / 3, horizon + 2)], fill=(26, 36, 40))
    top, foot = rng.uniform(0.2, 0.8, 2) * size
    pen.polygon([(top - 3, horizon), (top + 3, horizon), (foot + 34, size), (foot - 34, size)], fill=(58, 66, 78))
    for x in rng.uniform(10, size - 10, 4):
        pen.polygon([(x - 12, horizon - 8), (x, horizon - 18), (x + 12, horizon - 8)], fill=(58, 48, 54))
        pen.rectangle((x - 9, horizon - 8, x + 9, horizon + 6), fill=(52, 44, 50))
        pen.rectangle((x - 4, horizon - 5, x + 3, horizon + 2), fill=(170, 148, 106))
    for x, y, near in _far(rng, horizon + 10, size, 30):
        blade = 3 + 5 * near
        pen.line((x - blade / 2, y - blade, x, y, x + blade / 2, y - blade), fill=(52, 70, 64), width=2)


def _busy_room(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    for x in np.arange(rng.uniform(0, 16), size, 16):
        pen.line((x, 0, x, horizon), fill=(188, 168, 154), width=3)
    left, right, shelf = rng.permutation([8, 94, 178]) + rng.uniform(-6, 6, 3)
    pen.rectangle((left, 16, left + 66, 92), fill=(166, 144, 128))
    pen.rectangle((left + 5, 21, left + 61, 87), fill=(166, 190, 206))
    pen.ellipse((left + 6, 62, left + 60, 112), fill=(140, 162, 122))
    pen.rectangle((left, 88, left + 66, 112), fill=(196, 178, 164))
    pen.rectangle((left - 3, 87, left + 69, 94), fill=(166, 144, 128))
    for line in ((left + 33, 18, left + 33, 88), (left + 3, 54, left + 63, 54)):
        pen.line(line, fill=(166, 144, 128), width=4)
    pen.rectangle((right, 24, right + 60, 72), fill=(138, 112, 94))
    pen.rectangle((right + 6, 30, right + 54, 66), fill=(176, 182, 170))
    pen.polygon([(right + 6, 66), (right + 24, 40), (right + 38, 56), (right + 44, 48), (right + 54, 66)], fill=(134, 144, 146))
    for y in (48, 84):
        pen.rectangle((shelf, y, shelf + 64, y + 5), fill=(138, 112, 94))
        x = shelf + 2
        while x < shelf + 54:
            tone, high = int(rng.uniform(0, 40)), rng.uniform(16, 26)
            pen.rectangle((x, y - high, x + 6, y - 1), fill=(120 + tone, 112 + tone // 2, 124 - tone // 2))
            x += rng.uniform(7, 12)
    pen.rectangle((0, horizon - 8, size, horizon), fill=(222, 210, 196))
    for off in range(-3 * size // 2, 3 * size // 2, 26):
        pen.line((size / 2 + 0.55 * off, horizon, size / 2 + 1.4 * off, size), fill=(122, 96, 80), width=2)
    x = rng.uniform(0.35, 0.65) * size
    for inset, paint in ((0, (152, 118, 112)), (7, (172, 142, 130)), (14, (146, 122, 110))):
        pen.ellipse((x - 86 + 2 * inset, horizon + 30 + inset, x + 86 - 2 * inset, size - 12 - inset), fill=paint)


def _busy_beach(pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int) -> None:
    _clouds(pen, rng, horizon, size, (188, 208, 224))
    depth = int(rng.uniform(26, 40))
    _hills(pen, rng, horizon - depth, size, (146, 172, 180), 18, rng.uniform(7, 11))
    pen.rectangle((0, horizon - depth, size, horizon), fill=(108, 164, 178))
    for x, y in zip(rng.uniform(-20, size, 24), rng.uniform(horizon - depth + 2, horizon - 6, 24), strict=True):
        pen.arc((x, y, x + 22, y + 7), 200, 340, fill=(146, 188, 198), width=2)
    pen.rectangle((0, horizon, size, horizon + 5), fill=(206, 214, 206))
    side = size * int(rng.integers(2))
    for n, x in enumerate(abs(side - rng.uniform(8, 84, 3))):
        top, lean = horizon - 44 - 10 * n, rng.uniform(-8, 8)
        pen.line((x, horizon + 8, x + lean, top), fill=(150, 128, 106), width=4)
        for angle in np.linspace(0.1, pi - 0.1, 6):
            end = (x + lean + 24 * cos(angle), top + 4 - 14 * sin(2 * angle if angle < pi / 2 else 2 * pi - 2 * angle) * 0.6)
            pen.line((x + lean, top, *end), fill=(112, 138, 108), width=5)
    pen.ellipse((side - 110, horizon - 6, side + 110, horizon + 60), fill=(206, 188, 150))
    for x, y, near in _far(rng, horizon + 8, size, 46):
        pen.arc((x, y, x + 10 + 26 * near, y + 3 + 6 * near), 200, 340, fill=(186, 164, 122), width=1 + round(2 * near))
    for x, y, near in _far(rng, horizon + 12, size, 24):
        pen.ellipse((x, y, x + 2 + 4 * near, y + 2 + 3 * near), fill=(176, 156, 128))


_BUSY = {
    "sea": _busy_sea, "meadow": _busy_meadow, "street": _busy_street, "night": _busy_night, "room": _busy_room,
    "beach": _busy_beach,
}  # fmt: skip


def vocabulary() -> list[str]:
    """Every word a prompt of this world can contain, sorted."""
    words = {*COLOURS, *PLURALS, *PLURALS.values(), *NUMBERS.values(), "picture", "drawing", "of"}
    for phrase in (*PLACES.values(), *(word for words in RELATION_WORDS.values() for word in words)):
        words.update(phrase.split())
    return sorted(words)
