"""How the places of the demo world look: plain ones, which the shipped model knows, and busy ones with much more in them.

Dull colours throughout, so that neither an eye nor the scorer takes a part of a place for one of its things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from .config import PICTURE_SIZE as SIZE

ZOOM = 2
"""Pictures are drawn at this times their size, and then made smaller."""


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
    rows = np.linspace(0, 1, SIZE * ZOOM)[:, None]
    backdrop = _BACKDROPS[place]
    sky, ground = (np.array(pair[0]) * (1 - rows) + np.array(pair[1]) * rows for pair in (backdrop.sky, backdrop.ground))
    return sky, ground


def draw_place(place: str, rng: np.random.Generator, busy: bool = False) -> Image.Image:
    """An empty place, on a canvas of twice the picture's size: (256, 256) RGB. busy: with much more in it."""
    size = SIZE * ZOOM
    horizon = int(rng.choice([64, 72])) * ZOOM
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


# --- busy places ---------------------------------------------------------------------------------------------------------


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


def _path(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    horizon: int,
    size: int,
    paint: tuple[int, int, int],
    far: int,
    near: int,
) -> None:
    """From the lower edge, twice ``near`` wide, to the horizon, twice ``far`` wide."""
    top, foot = rng.uniform(0.2, 0.8, 2) * size
    pen.polygon([(top - far, horizon), (top + far, horizon), (foot + near, size), (foot - near, size)], fill=paint)


def _grass(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int, size: int, paint: tuple[int, int, int], count: int
) -> None:
    for x, y, near in _far(rng, horizon, size, count):
        blade = 3 + 5 * near
        pen.line((x - blade / 2, y - blade, x, y, x + blade / 2, y - blade), fill=paint, width=2)


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
    _path(pen, rng, horizon, size, (192, 182, 150), 4, 40)
    for x in rng.uniform(0, size, 9):
        wide = rng.uniform(8, 16)
        pen.ellipse((x - wide, horizon - 9, x + wide, horizon + 7), fill=(122, 146, 104))
    rail = horizon + 16
    for y in (rail, rail + 7):
        pen.line((0, y, size, y), fill=(158, 142, 122), width=3)
    for x in np.arange(rng.uniform(0, 26), size, 26):
        pen.line((x, rail - 6, x, rail + 15), fill=(140, 124, 106), width=4)
    _grass(pen, rng, horizon + 20, size, (112, 142, 90), 44)


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
    _path(pen, rng, horizon, size, (58, 66, 78), 3, 34)
    for x in rng.uniform(10, size - 10, 4):
        pen.polygon([(x - 12, horizon - 8), (x, horizon - 18), (x + 12, horizon - 8)], fill=(58, 48, 54))
        pen.rectangle((x - 9, horizon - 8, x + 9, horizon + 6), fill=(52, 44, 50))
        pen.rectangle((x - 4, horizon - 5, x + 3, horizon + 2), fill=(170, 148, 106))
    _grass(pen, rng, horizon + 10, size, (52, 70, 64), 30)


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
