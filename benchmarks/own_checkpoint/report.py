"""From pictures to figures, and the sheet that can be posted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Scores = dict[str, dict[str, list[float]]]
"""By figure and way: one number for each row."""

BAND = 3
"""Pixels on both sides of a hole's edge that its steps are compared with."""
TALL = 224
"""Height in pixels of a picture on the sheet."""
PAPER, INK, GREY = (250, 250, 248), (40, 40, 44), (110, 114, 122)


def make_scorer(name: str, told: bool = True) -> Any | None:
    """torchmetrics' CLIPScore with the CLIP model ``name``, or None where it is not installed or cannot be loaded.

    told: whether to say so.
    """
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore

        return CLIPScore(model_name_or_path=name)
    except (ImportError, OSError) as problem:
        if told:
            sys.stdout.write(f"CLIPScore is left out: {problem}\n")
        return None


def seam(picture: np.ndarray, hole: np.ndarray) -> float:
    """How much greater, in 1/255, the steps across the edge of a hole are than those beside it; about 0 without a seam.

    picture: uint8 (H, W, 3). hole: (H, W), true inside. Holes without an edge in the picture have none: 0.
    """
    across, beside = [], []
    for axis in (0, 1):
        steps, edge = np.abs(np.diff(picture.astype(float), axis=axis)).mean(-1), np.diff(hole, axis=axis)
        near = np.logical_or.reduce([np.roll(edge, n, axis) for n in range(-BAND, BAND + 1)]) & ~edge
        across.append(steps[edge])
        beside.append(steps[near])
    found = [np.concatenate(part) for part in (across, beside)]
    return float(found[0].mean() - found[1].mean()) if len(found[0]) and len(found[1]) else 0.0


def around(hole: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a hole, with a quarter of its size around it: what is in it needs to be seen whole."""
    found = []
    for axis in (1, 0):
        inside = np.flatnonzero(hole.any(axis=axis))
        margin = (inside[-1] - inside[0] + 1) // 4
        found.append(slice(max(0, inside[0] - margin), inside[-1] + 1 + margin))
    return found[0], found[1]


def summary(scores: Scores) -> list[str]:
    """For each figure and way its mean, and its paired difference from the first way with the standard error."""
    lines = []
    for figure, ways in scores.items():
        first, base = next((way, np.array(values)) for way, values in ways.items())
        for way, values in ways.items():
            difference = np.array(values) - base
            error = difference.std() / len(difference) ** 0.5
            against = "" if way == first else f"   against {first} {difference.mean():+.3f} ± {error:.3f}"
            lines.append(f"{figure}   {way}: {np.mean(values):.3f}{against}")
    return lines


def sheet(
    heading: Sequence[str], columns: Sequence[str], rows: Mapping[str, Sequence[np.ndarray]], below: Sequence[str]
) -> Image.Image:
    """Rows of pictures, uint8 (H, W, 3) of one size, each under its caption; what they are above, figures below."""
    high, wide = next(iter(rows.values()))[0].shape[:2]
    wide = round(wide * TALL / high)
    large, small = ImageFont.load_default(22), ImageFont.load_default(14)
    across = max(24 + len(columns) * (wide + 8), 24 + round(max(small.getlength(line) for line in (*heading[1:], *below, ""))))
    top = 56 + 20 * len(heading)
    page = Image.new("RGB", (across, top + len(rows) * (TALL + 30) + 24 + 20 * len(below)), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((16, 12), heading[0], INK, large)
    for number, line in enumerate(heading[1:]):
        pen.text((16, 44 + 20 * number), line, GREY, small)
    for column, name in enumerate(columns):
        pen.text((16 + column * (wide + 8), top - 22), name, INK, small)
    for row, (caption, pictures) in enumerate(rows.items()):
        y = top + row * (TALL + 30)
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((wide, TALL), Image.Resampling.LANCZOS)
            page.paste(shown, (16 + column * (wide + 8), y))
        pen.text((16, y + TALL + 5), _fitting(caption, small, across - 32), GREY, small)
    for number, line in enumerate(below):
        pen.text((16, page.height - 20 * (len(below) - number) - 8), line, INK, small)
    return page


def _fitting(text: str, font: Any, width: float) -> str:
    """A text, cut where it is wider than ``width``."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
