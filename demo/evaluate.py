"""Measures the demo model and its scorer: python -m demo.evaluate --scenes 1000 --pictures 300.

Prints how often the scorer reads the whole sentence right from true drawings and from the autoencoder's
reconstructions, and how often plain synchronous sampling shows the whole sentence; every sentence holds a combination
that is not in the training data. The standard error stands behind each share.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import WEIGHTS
from .model import DemoModel, FlowModel, load, sample
from .scorer import Score, score
from .world import Scene, draw, sample_scene

PARTS = ("whole_prompt", "objects_right", "colour_right", "count_right", "relation_right", "place_right")


def share(hits: Iterable[bool]) -> tuple[float, float]:
    """The share of hits and its standard error, sqrt(p (1 - p) / n)."""
    values = np.array(list(hits), dtype=float)
    mean = float(values.mean())
    return mean, float((mean * (1 - mean) / len(values)) ** 0.5)


def some_scenes(count: int, seed: int, held_out: bool) -> list[Scene]:
    """Scenes with combinations the model has never seen, or as in training; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, held_out=held_out) for _ in range(count)]


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3)."""
    return (images * 255).round().byte().movedim(1, -1).numpy()


def score_drawings(scenes: list[Scene], busy: bool = False) -> list[Score]:
    """Scores of the true drawings, in busy places or plain."""
    return [score(draw(scene, np.random.default_rng(n), busy), scene.claims()) for n, scene in enumerate(scenes)]


@torch.no_grad()
def score_reconstructions(scenes: list[Scene], model: DemoModel, busy: bool = False) -> list[Score]:
    """Scores of the drawings, in busy places or plain, after the autoencoder."""
    scores = []
    for n, scene in enumerate(scenes):
        drawing = torch.from_numpy(draw(scene, np.random.default_rng(n), busy).copy()).movedim(-1, 0)[None] / 127.5 - 1
        picture = (model.vae.decode(model.vae.encode(drawing)) / 2 + 0.5).clamp(0, 1)
        scores.append(score(to_pixels(picture)[0], scene.claims()))
    return scores


def sample_pictures(
    scenes: list[Scene], model: DemoModel | FlowModel, steps: int, cfg: float, batch: int = 20, shift: float = 1.0
) -> np.ndarray:
    """Pictures of plain synchronous sampling, uint8 (count, 128, 128, 3)."""
    prompts = [scene.prompt() for scene in scenes]
    starts = range(0, len(prompts), batch)
    return np.concatenate([to_pixels(sample(model, prompts[n : n + batch], steps, cfg, n, shift)) for n in starts])


def _score(task: tuple[np.ndarray, Scene]) -> Score:
    return score(task[0], task[1].claims())


def score_pictures(pictures: np.ndarray, scenes: list[Scene], pool: Pool | None = None) -> list[Score]:
    """Scores of one picture for each scene."""
    tasks = list(zip(pictures, scenes, strict=True))
    return pool.map(_score, tasks) if pool else [_score(task) for task in tasks]


def tally(scenes: list[Scene], scores: list[Score]) -> dict[str, float]:
    """Shares of pictures whose whole prompt and whose objects are right, and of things.

    well_formed: of the things seen, those of a known kind. found: of the things promised, those that are there.
    """
    promised = sum(len(group.things) for scene in scenes for group in scene.groups)
    missing = sum(len(result.missing) for result in scores)
    extra = [name for result in scores for name in result.extra]
    seen = promised - missing + len(extra)
    return {
        "whole_prompt": share(result.whole_prompt for result in scores)[0],
        "objects_right": share(result.objects_right for result in scores)[0],
        "well_formed": 1 - sum(name.endswith(" thing") for name in extra) / max(1, seen),
        "found": 1 - missing / promised,
        "extra": len(extra) / promised,
    }


def _report(title: str, scores: list[Score]) -> None:
    parts = []
    for name in PARTS:
        mean, error = share(getattr(result, name) for result in scores)
        parts.append(f"{name.replace('_', ' ')} {100 * mean:.1f} +- {100 * error:.1f} %")
    sys.stdout.write(f"{title} (n = {len(scores)}): {', '.join(parts)}\n")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(prog="demo.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000, help="true drawings for the scorer")
    parser.add_argument("--pictures", type=int, default=200, help="sampled pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--busy", action="store_true", help="true drawings of busy places")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the demo model; others than those that ship")
    options = parser.parse_args()
    model = load(options.weights)
    scenes = some_scenes(max(options.scenes, options.pictures), options.seed, held_out=True)
    if options.scenes:
        _report("scorer on true drawings", score_drawings(scenes[: options.scenes], options.busy))
        _report("scorer on reconstructions", score_reconstructions(scenes[: options.scenes], model, options.busy))
    start = time.time()
    chosen = scenes[: options.pictures]
    scores = score_pictures(sample_pictures(chosen, model, options.steps, options.cfg), chosen)
    _report(f"synchronous sampling, {options.steps} steps, cfg {options.cfg}", scores)
    for amount in (1, 2, 3):
        part = [s for s, scene in zip(scores, chosen, strict=True) if len(scene.groups) == amount]
        if part:
            _report(f"  of sentences with {amount} group(s)", part)
    sys.stdout.write(f"{(time.time() - start) / max(1, len(chosen)):.2f} s a picture\n")


if __name__ == "__main__":
    main()
