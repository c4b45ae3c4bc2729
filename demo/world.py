"""A small world of pictures: places, things in six colours, counts and relations, drawn in 128 x 128 pixels.

A `Scene` is the truth. The picture (`draw`), the sentence (`Scene.prompt`) and what the sentence promises
(`Scene.claims`) all come from it. Like photographs, the world has habits: most boats are white and lie on the sea.
Some combinations (`HELD_OUT_*`) are never drawn for training; they are what the model is tested on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .config import PICTURE_SIZE
from .places import ZOOM, draw_place

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
"""What another thing may stand on in training."""

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


def sample_stack(rng: np.random.Generator) -> Scene:
    """Draws a scene at random of one thing on another that nothing stands on in training. Both colours are named."""
    while True:
        kinds = [str(rng.choice(KINDS)), str(rng.choice([kind for kind in KINDS if kind not in SEATS]))]
        colours = [_colour(rng, kind, 0.15) for kind in kinds]
        place, things = str(rng.choice(list(PLACES))), _stack(rng, kinds)
        groups = tuple(Group(kind, colours[n], tuple(things[n])) for n, kind in enumerate(kinds))
        scene = Scene(place, groups, ((0, "on", 1),), ("on",))
        if kinds[0] != kinds[1] and _is_clear(scene):
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


def draw_thing(pen: ImageDraw.ImageDraw, kind: str, colour: str, thing: Thing, zoom: int = ZOOM) -> None:
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
    return np.asarray(canvas.reduce(ZOOM))


def _cast(canvas: Image.Image, scene: Scene) -> None:
    """Under every thing on the ground a soft shadow, around every other a soft glow, both in a dull tone of its colour."""
    for group in scene.groups:
        for thing in group.things:
            low = thing.y + thing.height / 2
            grounded = low > 0.66 * SIZE
            y, rx, ry = (low, 0.56 * thing.width, 7.0) if grounded else (thing.y, 0.7 * thing.width, 0.7 * thing.height)
            box = [ZOOM * edge for edge in (thing.x - rx, y - ry, thing.x + rx, y + ry)]
            mask = Image.new("L", canvas.size)
            ImageDraw.Draw(mask).ellipse(box, fill=150 if grounded else 100)
            light = 70 if grounded else 190
            tone = tuple(int(0.3 * c + 0.7 * light) for c in COLOURS[group.colour])
            canvas.paste(tone, mask=mask.filter(ImageFilter.BoxBlur(5)))


def vocabulary() -> list[str]:
    """Every word a prompt of this world can contain, sorted."""
    words = {*COLOURS, *PLURALS, *PLURALS.values(), *NUMBERS.values(), "picture", "drawing", "of"}
    for phrase in (*PLACES.values(), *(word for words in RELATION_WORDS.values() for word in words)):
        words.update(phrase.split())
    return sorted(words)
