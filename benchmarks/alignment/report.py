"""From pictures to figures: scores, paired differences, tables, plots and a sheet of wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import binomtest

from demo.evaluate import share
from demo.scorer import Score, read, score
from demo.world import PLACES, Claims, Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "whole": "whole prompt right",
    "objects": "objects right",
    "bound_wrong": "colour on the wrong thing",
    "missing": "something missing",
    "extra": "something extra",
    "place": "place right",
}
"""What is counted, by its name in results.json and in tables; the first is what arms are compared by."""

BETTER, WORSE = (0, 110, 60), (170, 40, 40)


@dataclass(frozen=True)
class Pair:
    """An arm against another on the same prompts and seeds.

    difference, error: in shares of the prompts, with its standard error. wins, losses: prompts that only one of them shows
    whole. p: McNemar's exact test, two-sided.
    """

    difference: float
    error: float
    wins: int
    losses: int
    p: float


def counted(result: Score, claims: Claims) -> dict[str, bool]:
    """The figures of one picture."""
    colours = {p.colour for p in claims.promises if p.colour}
    kinds = {p.kind for p in claims.promises}
    swapped = any(set(thing.split()) & colours and set(thing.split()) & kinds for thing in result.extra)
    return {
        "whole": result.whole_prompt,
        "objects": result.objects_right,
        "bound_wrong": swapped and not result.colour_right,
        "missing": bool(result.missing),
        "extra": bool(result.extra),
        "place": result.place_right,
    }


def count_all(pictures: np.ndarray, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Pictures uint8 (N, 128, 128, 3) -> for each figure, whether it holds (N,)."""
    rows = [counted(score(p, s.claims()), s.claims()) for p, s in zip(pictures, scenes, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in FIGURES}


def compare(arm: np.ndarray, base: np.ndarray) -> Pair:
    """The paired difference of two arms' hits (N,)."""
    difference = arm.astype(float) - base.astype(float)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return Pair(float(difference.mean()), float(difference.std() / len(difference) ** 0.5), wins, losses, float(p))


def percent(hits: np.ndarray) -> str:
    """A share and its standard error."""
    mean, error = share(hits)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def points(pair: Pair) -> str:
    """A difference in points, its standard error, wins, losses and p."""
    return f"{100 * pair.difference:+.1f} ± {100 * pair.error:.1f} ({pair.wins} : {pair.losses}, p = {pair.p:.2g})"


def table(results: Mapping[str, Mapping[str, np.ndarray]], compared: Mapping[str, str | None]) -> str:
    """A Markdown table of the arms, all in per cent of the prompts. compared: by arm, the arm to compare with."""
    titles = ["arm", *FIGURES.values(), "whole prompt against its base (wins : losses)"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, hits in results.items():
        base = compared[name]
        against = "" if base is None else points(compare(hits["whole"], results[base]["whole"]))
        if base not in (None, "synchronous"):
            against += f" against {base}"
        lines.append("| " + " | ".join([name, *(percent(hits[figure]) for figure in FIGURES), against]) + " |")
    return "\n".join(lines) + "\n"


MEASURES = {
    "likeness": "likeness of the things to their silhouettes, %",
    "gap": "from a thing to what it stands on, px",
    "aside": "between their middles, sideways, px",
    "size": "area of the things, % of the picture",
}
"""What is measured of a picture, where chance does not hide in a yes or no. Not a number where a thing is not there."""


def measure_all(pictures: np.ndarray, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Pictures uint8 (N, 128, 128, 3) -> each of MEASURES (N,). gap and aside: of scenes with one thing on another."""
    rows = np.array([_measured(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)])
    return dict(zip(MEASURES, rows.T, strict=True))


def _measured(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    seen = read(picture).things
    there = [s for p in scene.claims().promises for s in seen if s.kind == p.kind and p.colour in (s.colour, None)]
    if len(there) != sum(len(group.things) for group in scene.groups):
        return (np.nan,) * len(MEASURES)
    boxes = np.array([thing.box for thing in there], float)
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    likeness, size = 100 * np.mean([t.likeness for t in there]), 100 * (wide * high).sum() / picture[..., 0].size
    if [link[1] for link in scene.links] != ["on"]:
        return likeness, np.nan, np.nan, size
    upper, lower = boxes
    return likeness, lower[1] - upper[3], abs(upper[[0, 2]].mean() - lower[[0, 2]].mean()), size


def measure_table(measured: Mapping[str, Mapping[str, np.ndarray]], compared: Mapping[str, str | None]) -> str:
    """A Markdown table of MEASURES: means, and differences from the arm's base in the pictures where both show all things."""
    lines = ["| arm | " + " | ".join(MEASURES.values()) + " |", "|" + "---|" * (len(MEASURES) + 1)]
    for name, values in measured.items():
        cells = []
        for measure, row in values.items():
            base = measured.get(compared[name] or "", {}).get(measure, row * np.nan)
            change = (row - base)[~np.isnan(row - base)]
            against = ""
            if len(change):
                against = f" ({change.mean():+.2f} ± {change.std() / len(change) ** 0.5:.2f}, n = {len(change)})"
            cells.append(f"{np.nanmean(row):.2f}{against}" if (~np.isnan(row)).any() else "")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def by_kind(results: Mapping[str, Mapping[str, np.ndarray]], facts: Sequence[Mapping[str, object]], arm: str, base: str) -> str:
    """A Markdown table of two arms by kind of prompt."""
    kinds = {
        "one kind of thing": [f["groups"] == 1 for f in facts],
        "two kinds, one relation": [f["groups"] == 2 for f in facts],
        "one thing": [f["things"] == 1 for f in facts],
        "two things": [f["things"] == 2 for f in facts],
        "three things or more": [f["things"] >= 3 for f in facts],  # type: ignore[operator]
        "rare colour": ["colour" in f["rare"] for f in facts],  # type: ignore[operator]
        "rare place or relation": ["place or relation" in f["rare"] for f in facts],  # type: ignore[operator]
    }
    kinds |= {f"place: {place}": [f["place"] == place for f in facts] for place in PLACES}
    lines = [f"| prompts | n | {base} | {arm} | difference (wins : losses) |", "|---|---|---|---|---|"]
    for kind, chosen in kinds.items():
        mask = np.array(chosen)
        if mask.any():
            a, b = results[arm]["whole"][mask], results[base]["whole"][mask]
            lines.append(f"| {kind} | {mask.sum()} | {percent(b)} | {percent(a)} | {points(compare(a, b))} |")
    return "\n".join(lines) + "\n"


def sheet(
    left: np.ndarray, right: np.ndarray, left_hits: np.ndarray, right_hits: np.ndarray, scenes: Sequence[Scene], rows: int = 5
) -> Image.Image:
    """The first ``rows`` wins and losses of the right arm, pair by pair, each under its prompt."""
    size, gap, text = 192, 10, 34
    width, height = 2 * (2 * size + gap) + 4 * gap, rows * (size + text + gap) + 60
    page = Image.new("RGB", (width, height), (250, 250, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    better = np.flatnonzero(right_hits & ~left_hits)
    worse = np.flatnonzero(left_hits & ~right_hits)
    for column, (title, ink, found) in enumerate((("wins", BETTER, better), ("losses", WORSE, worse))):
        x = gap + column * (2 * size + 3 * gap)
        heading = f"{title} of asynchronous: {len(found)} of {len(scenes)} prompts\nleft off, right on"
        pen.text((x, gap / 2), heading, ink, ImageFont.load_default(15), spacing=1)
        for row, index in enumerate(found[:rows]):
            y = 48 + row * (size + text + gap)
            words = scenes[index].prompt().split()
            middle = (len(words) + 1) // 2 if len(words) > 9 else len(words)
            pen.text((x, y), " ".join(words[:middle]) + "\n" + " ".join(words[middle:]), (40, 40, 44), font, spacing=1)
            for side, pictures in enumerate((left, right)):
                picture = Image.fromarray(pictures[index]).resize((size, size), Image.Resampling.BICUBIC)
                page.paste(picture, (x + side * (size + 4), y + text))
    return page


def sweep_plot(
    results: Mapping[str, Mapping[str, np.ndarray]], sweeps: Mapping[str, Sequence[str]], compared: Mapping[str, str | None]
) -> Image.Image:
    """One panel for each sweep, one row for each arm: its gain over its base, with two standard errors."""
    from matplotlib.figure import Figure

    groups = {name: [arm for arm in arms if arm in results and compared[arm] in results] for name, arms in sweeps.items()}
    rows = [len(arms) for arms in groups.values()]
    figure = Figure(figsize=(9, 0.9 + 0.3 * sum(rows) + 0.35 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), sharex=True, height_ratios=[n + 1 for n in rows], squeeze=False)[:, 0]
    for panel, (name, shown) in zip(panels, groups.items(), strict=True):
        pairs = [compare(results[arm]["whole"], results[compared[arm] or ""]["whole"]) for arm in shown]
        panel.axvline(0, color="0.6", linewidth=1)
        places = range(len(shown))
        panel.errorbar(
            [100 * p.difference for p in pairs], places, xerr=[200 * p.error for p in pairs], fmt="o", capsize=3
        )  # fmt: skip
        labels = [arm.removeprefix("asynchronous, ").removeprefix(name).strip(" :,") for arm in shown]
        panel.set_yticks(places, labels)
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_title(name, loc="left", fontsize=10)
    panels[-1].set_xlabel("whole prompt right: points above synchronous (bars: two standard errors)")
    return as_image(figure)


def as_image(figure: Figure) -> Image.Image:
    """A matplotlib figure as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
