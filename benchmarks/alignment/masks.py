"""Are the regions the things? Each step's regions, held against the things of the finished picture of the same run.

    python -m benchmarks.alignment.masks                 # 64 prompts, a few minutes on one core

Prints for some steps, and writes to OUT/masks.json and OUT/masks.png: how much of the things lies in the regions (found),
how much of the regions is thing (exact), how much of the picture the regions cover, and how far they lag behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from asyndm_core.run import Snapshot
from demo.config import FACTOR
from demo.evaluate import to_pixels
from demo.model import DemoModel, load
from demo.sample import decode
from demo.world import Scene

from .arms import ASYNCHRONOUS, Arm, sweeps
from .report import as_image
from .sampling import BATCH, latents_of
from .scenes import batches, choose_scenes, seen_regions

FIGURES = ("found", "exact", "covered", "lag")
STYLES = ("-", "--", ":", "-.")
SHOWN = ("threshold", "layers", "memory", "shares")
"""The sweeps whose arms are looked at, beside the pack's own way."""


def watch(arm: Arm, model: DemoModel, scenes: Sequence[Scene], seeds: Sequence[int]) -> np.ndarray:
    """The figures of an arm, mean over pictures: (steps, figures), in the order of FIGURES."""
    rows: list[np.ndarray] = []
    for indices in batches(scenes, BATCH):
        steps: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(snapshot: Snapshot, steps: list = steps) -> None:
            steps.append((snapshot.owner >= 0, snapshot.step - snapshot.progress))

        latents = latents_of(arm, model, [scenes[n] for n in indices], [seeds[n] for n in indices], on_step=keep)
        boxes = seen_regions(to_pixels(decode(model, latents).movedim(-1, 1)))
        things = (F.avg_pool2d(boxes, FACTOR) >= 0.5).numpy()
        rows.append(np.stack([figures(region.numpy(), lag.numpy(), things) for region, lag in steps], axis=1))
    return np.nanmean(np.concatenate(rows), axis=0)


def figures(region: np.ndarray, lag: np.ndarray, things: np.ndarray) -> np.ndarray:
    """The figures of one step: region, lag and things (B, H, W) -> (B, figures); not a number where there is nothing."""
    both = (region & things).sum((1, 2))
    with np.errstate(invalid="ignore"):
        found, exact = both / things.sum((1, 2)), both / region.sum((1, 2))
        behind = (lag * region).sum((1, 2)) / region.sum((1, 2))
    return np.stack([found, exact, region.mean((1, 2)), behind], axis=1)


def plot(tables: dict[str, np.ndarray]) -> Image.Image:
    """One panel for each figure, one line for each arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    for panel, (place, name) in zip(figure.subplots(2, 2).flat, enumerate(FIGURES), strict=True):
        for number, (arm, table) in enumerate(tables.items()):
            panel.plot(table[:, place], color=f"C{number % 10}", linestyle=STYLES[number // 10], label=arm)
        panel.set_title(name)
        panel.set_xlabel("step")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    return as_image(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.alignment.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=77, help="of the choice of prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "masks")
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    model, scenes = load(), choose_scenes(flags.prompts, flags.seed, "hard")
    arms = [ASYNCHRONOUS, *(arm for name in SHOWN for arm in sweeps()[name])]
    tables = {}
    for arm in arms:
        table = tables[arm.name] = watch(arm, model, scenes, range(len(scenes)))
        sys.stdout.write(f"\n{arm.name}\nstep   " + "  ".join(f"{name:>7s}" for name in FIGURES) + "\n")
        for step in range(1, len(table), 3):
            sys.stdout.write(f"{step:4d}   " + "  ".join(f"{value:7.2f}" for value in table[step]) + "\n")
        sys.stdout.flush()
    flags.out.mkdir(parents=True, exist_ok=True)
    kept = {arm: {name: np.round(table[:, n], 3).tolist() for n, name in enumerate(FIGURES)} for arm, table in tables.items()}
    (flags.out / "masks.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    plot(tables).save(flags.out / "masks.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
