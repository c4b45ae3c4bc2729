"""Says what a picture of the demo world shows, from its pixels alone, and whether that is what a sentence promised.

Things are painted in saturated colours (or clean white) inside an ink outline, places in dull ones. So: find the
pixels of each of the six colours, join them to connected pieces, and compare every piece's silhouette, scaled to a
square, with the silhouettes of the nine kinds. The place is what is left: the dull colours above and below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from .places import draw_place
from .world import COLOURS, KINDS, PLACES, SHAPES, SIZE, Claims, Thing, draw_thing

GRID = 32
SMALLEST = 90
"""The least area of a thing in pixels; smaller pieces are specks."""
LIKENESS = 0.62
"""The least overlap (intersection over union) with a kind's silhouette; a piece below it is of no known kind."""


@dataclass(frozen=True)
class Seen:
    """One thing in a picture: its kind (None: not recognised), colour, box (left, top, right, bottom) and likeness."""

    kind: str | None
    colour: str
    box: tuple[int, int, int, int]
    likeness: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows."""

    place: str
    things: tuple[Seen, ...]


@dataclass(frozen=True)
class Score:
    """A picture held against a sentence. Colours, counts and relations are right only of things that are there.

    `missing` and `extra` name what was promised and is not there, and what is there and was not promised.
    """

    whole_prompt: bool
    objects_right: bool
    colour_right: bool
    count_right: bool
    relation_right: bool
    place_right: bool
    missing: tuple[str, ...]
    extra: tuple[str, ...]


# --- reading ---------------------------------------------------------------------------------------------------------


def read(image: np.ndarray) -> Reading:
    """Reads a picture, uint8 (128, 128, 3) (or float in [0, 1])."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture of shape (height, width, 3) is expected, not {image.shape}")
    pixels = np.asarray(image, dtype=np.float32)
    if np.issubdtype(image.dtype, np.integer):
        pixels = pixels / 255
    labels = _colour_labels(pixels)
    things = []
    for number, colour in enumerate(COLOURS):
        pieces, _ = ndimage.label(labels == number, structure=np.ones((3, 3)))
        for index, window in enumerate(ndimage.find_objects(pieces), start=1):
            piece = pieces[window] == index
            if piece.sum() < SMALLEST or min(piece.shape) < 9:
                continue
            kind, likeness = _kind(ndimage.binary_fill_holes(piece))
            top, left = window[0].start, window[1].start
            box = (left, top, window[1].stop, window[0].stop)
            things.append(Seen(kind if likeness >= LIKENESS else None, colour, box, likeness))
    return Reading(_place(pixels, labels >= 0), tuple(things))


def _hue_saturation_value(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    high, low = pixels.max(-1), pixels.min(-1)
    span = np.maximum(high - low, 1e-6)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    of_blue_or_green = np.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    sector = np.where(high == red, (green - blue) / span % 6, of_blue_or_green)
    return 60 * sector, (high - low) / np.maximum(high, 1e-6), high


_HUES = {"red": (345, 20), "yellow": (35, 65), "green": (90, 170), "blue": (200, 245), "purple": (255, 315)}


def _colour_labels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> (H, W): the index of the colour, or -1 where the pixel belongs to no thing."""
    hue, saturation, value = _hue_saturation_value(pixels)
    labels = np.full(hue.shape, -1)
    for number, colour in enumerate(COLOURS):
        if colour == "white":
            labels[(saturation < 0.075) & (value > 0.845)] = number
            continue
        low, high = _HUES[colour]
        near = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
        labels[near & (saturation > 0.52) & (value > 0.42)] = number
    return labels


def _square(mask: np.ndarray) -> np.ndarray:
    """A silhouette cut to its box and scaled to (32, 32), in [0, 1]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut.astype(np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BILINEAR)) / 255


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


@cache
def _silhouettes() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every kind's silhouettes, sharp and soft, both ways round: (n, 32, 32), log(width / height) (n,), the kinds."""
    squares, aspects, kinds = [], [], []
    for kind in KINDS:
        for height in (26, 48):
            for mirrored in (False, True):
                width = height * SHAPES[kind].aspect
                canvas = Image.new("RGB", (2 * SIZE, 2 * SIZE), (128, 124, 120))
                draw_thing(ImageDraw.Draw(canvas), kind, "red", Thing(SIZE / 2, SIZE / 2, width, height, mirrored))
                for blur in (0, 3, 5):
                    soft = canvas.filter(ImageFilter.GaussianBlur(blur)).reduce(2)
                    labels = _colour_labels(np.asarray(soft, dtype=np.float32) / 255)
                    mask = _largest(ndimage.binary_fill_holes(labels == 0))
                    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                    squares.append(_square(mask))
                    aspects.append(np.log((columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)))
                    kinds.append(kind)
    return np.stack(squares), np.array(aspects), kinds


def _kind(mask: np.ndarray) -> tuple[str, float]:
    """The kind whose silhouette is most like the mask, and the likeness: overlap less a fine for the wrong aspect."""
    squares, aspects, kinds = _silhouettes()
    square = _square(mask)
    overlap = np.minimum(squares, square).sum((1, 2)) / np.maximum(squares, square).sum((1, 2))
    likeness = overlap - 0.35 * np.abs(aspects - np.log(mask.shape[1] / mask.shape[0]))
    best = int(likeness.argmax())
    return kinds[best], float(likeness[best])


_BANDS = ((0, 34), (46, 62), (92, 128))
"""Rows that show sky or wall, what lies at the horizon, and the ground."""


def _place_marks(pixels: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """The middle colour of each band, (3, 3); not a number where no pixel of a band is free."""
    free = ~ndimage.binary_dilation(covered, iterations=3)
    bands = [pixels[top:bottom][free[top:bottom]] for top, bottom in _BANDS]
    return np.stack([np.median(band, axis=0) if len(band) else np.full(3, np.nan) for band in bands])


@cache
def _typical_marks() -> np.ndarray:
    rng = np.random.default_rng(0)
    empty = np.zeros((SIZE, SIZE), bool)
    return np.stack([
        np.median([_place_marks(np.asarray(draw_place(p, rng).reduce(2)) / 255, empty) for _ in range(9)], axis=0)
        for p in PLACES
    ])  # fmt: skip


def _place(pixels: np.ndarray, covered: np.ndarray) -> str:
    if pixels.shape[:2] != (SIZE, SIZE):
        rows, columns = (np.linspace(0, n - 1, SIZE).round().astype(int) for n in pixels.shape[:2])
        pixels, covered = pixels[rows][:, columns], covered[rows][:, columns]
    distance = np.square(_typical_marks() - _place_marks(pixels, covered))
    return list(PLACES)[int(np.nansum(distance * np.array([1.0, 0.3, 2.0])[None, :, None], axis=(1, 2)).argmin())]


# --- scoring -----------------------------------------------------------------------------------------------------


def score(image: np.ndarray, claims: Claims) -> Score:
    """Holds a picture, uint8 (128, 128, 3), against what its sentence promises."""
    reading = read(image)
    things = list(reading.things)
    found: list[list[Seen]] = []
    missing: list[str] = []
    for promise in claims.promises:
        fitting = [t for t in things if t.kind == promise.kind and promise.colour in (None, t.colour)]
        found.append(fitting)
        if len(fitting) < promise.count:
            missing += [" ".join(filter(None, [promise.colour, promise.kind]))] * (promise.count - len(fitting))
    promised = [thing for fitting in found for thing in fitting]
    extra = [f"{t.colour} {t.kind or 'thing'}" for t in things if t not in promised]
    for promise, fitting in zip(claims.promises, found, strict=True):
        extra += [f"{promise.colour or ''} {promise.kind}".strip()] * max(0, len(fitting) - promise.count)
    kinds = [t.kind for t in things]
    wanted = {p.kind: sum(q.count for q in claims.promises if q.kind == p.kind) for p in claims.promises}
    objects = all(kind in kinds for kind in wanted)
    colours = all(found)
    count = all(kinds.count(kind) == number for kind, number in wanted.items())
    relation = all(_holds(found[first], word, found[second]) for first, word, second in claims.relations)
    place = claims.place in (None, reading.place)
    whole = objects and colours and count and relation and place and not missing and not extra
    return Score(whole, objects, colours, count, relation, place, tuple(missing), tuple(extra))


def _holds(first: list[Seen], relation: str, second: list[Seen]) -> bool:
    """Whether the first things stand in the relation to the second ones, judged by their boxes."""
    if not first or not second:
        return False
    if relation in ("right", "under"):
        return _holds(second, {"right": "left", "under": "over"}[relation], first)
    a, b = (np.array([thing.box for thing in things], dtype=float) for things in (first, second))
    (ax, ay), (bx, by) = (((boxes[:, :2] + boxes[:, 2:]) / 2).mean(0) for boxes in (a, b))
    if relation == "left":
        return bool(bx - ax > 8)
    if relation == "over":
        return bool(by - ay > 8)
    gap = b[:, 1].min() - a[:, 3].max()
    beside = abs(ax - bx) < max((a[:, 2] - a[:, 0]).max(), (b[:, 2] - b[:, 0]).max()) / 2
    return bool(-6 < gap < 14 and beside)
