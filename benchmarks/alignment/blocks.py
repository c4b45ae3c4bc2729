"""Which blocks of the demo transformer show the words? Each block's map of a word, held against its things in the picture.

    python -m benchmarks.alignment.blocks                # 96 prompts, some minutes on one core

The pictures are sampled as always, synchronously. A word's map in a block is its share of the attention of every token of
the picture, the mean over heads: of all that the token attends to (all keys), or of the text alone (text keys). Things are
those of the word's kind that the scorer finds in the finished picture, by their boxes. Prints, and writes to OUT/blocks.json
and OUT/table.md: how often a token in a thing has more of its word than one outside of all its things (in order: 50 % is
chance), and how well the region (where the map is at least its mean) and the things overlap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asyndm_core.attention import STRIDE, between_rows
from demo.config import DOUBLE_BLOCKS, FACTOR, MAX_TOKENS, PICTURE_SIZE, SINGLE_BLOCKS
from demo.evaluate import to_pixels
from demo.model import FlowModel, load_transformer, sample
from demo.scorer import read
from demo.world import Scene

from .scenes import batches, choose_scenes, target_columns

BLOCKS = DOUBLE_BLOCKS + SINGLE_BLOCKS
GRID = PICTURE_SIZE // FACTOR
BATCH = 16
KEYS = ("all keys", "text keys")
SETS = {
    "all": range(BLOCKS),
    "both double": range(DOUBLE_BLOCKS),
    "last double": (DOUBLE_BLOCKS - 1,),
    "all single": range(DOUBLE_BLOCKS, BLOCKS),
    "the middle, 0.35 to 0.7": range(3, 6),
    "the first half": range(BLOCKS // 2),
    "the second half": range(BLOCKS // 2, BLOCKS),
}
"""Blocks whose maps are averaged, each divided by its own mean."""


class Watch(TorchFunctionMode):
    """While it lasts, every block's maps of the words are noted: by KEYS a list of (B, words, 16, 16), block by block.

    columns: (B, tokens, words). In a batch the conditional rows come first.
    """

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.columns = columns
        self.maps: dict[str, list[Tensor]] = {keys: [] for keys in KEYS}

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every function of PyTorch passes; attention of text and picture is looked at."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not args and kwargs["key"].shape[-2] == MAX_TOKENS + GRID**2:
            query, key = (kwargs[name][: len(self.columns)] for name in ("query", "key"))
            scores = query[:, :, MAX_TOKENS:] @ key.mT / query.shape[-1] ** 0.5
            for keys, seen in zip(KEYS, (scores, scores[..., :MAX_TOKENS]), strict=True):
                shares = seen.softmax(dim=-1)[..., :MAX_TOKENS].mean(dim=1) @ self.columns
                self.maps[keys].append(shares.mT.unflatten(-1, (GRID, GRID)))
        return func(*args, **kwargs)


def things_of(picture: np.ndarray, kind: str) -> Tensor:
    """(16, 16): tokens that are mostly in a thing of the kind, as the scorer sees it."""
    mask = torch.zeros(PICTURE_SIZE, PICTURE_SIZE)
    for thing in read(picture).things:
        if thing.kind == kind:
            left, top, right, bottom = thing.box
            mask[top:bottom, left:right] = 1
    return F.avg_pool2d(mask[None], FACTOR)[0] >= 0.5


def in_order(maps: Tensor, things: Tensor) -> Tensor:
    """Of all pairs of a token in a thing and one outside, how many have more within: maps (..., 16, 16) -> (...)."""
    ranks = maps.flatten(-2).argsort(dim=-1).argsort(dim=-1).float()
    inside = things.flatten()
    count = int(inside.sum())
    return (ranks[..., inside].sum(dim=-1) - count * (count - 1) / 2) / (count * (len(inside) - count))


def overlap(maps: Tensor, things: Tensor) -> Tensor:
    """Intersection over union of where maps (..., 16, 16) are at least their mean, and the things: (...)."""
    region = maps >= maps.mean(dim=(-2, -1), keepdim=True)
    return (region & things).sum(dim=(-2, -1)) / (region | things).sum(dim=(-2, -1))


def coarse(maps: Tensor) -> Tensor:
    """Maps (..., 16, 16) as the pack reads them: at every second row and column, and between these their mean."""
    few = maps[..., ::STRIDE, ::STRIDE].flatten(0, -4)
    return between_rows(few, (GRID, GRID)).view(maps.shape)


def measure(model: FlowModel, scenes: Sequence[Scene], steps: int) -> dict[str, np.ndarray]:
    """By what was read, (words, steps, blocks or sets, 2): in order, and overlap."""
    rows: dict[str, list[Tensor]] = {}
    for indices in batches(scenes, BATCH):
        chosen = [scenes[n] for n in indices]
        with Watch(target_columns(model, chosen)) as watch:
            images = sample(model, [scene.prompt() for scene in chosen], steps, seed=indices[0])
        pictures = to_pixels(images)
        for keys, found in watch.maps.items():
            maps = torch.stack(found).unflatten(0, (steps, BLOCKS))
            even = maps / maps.mean(dim=(-2, -1), keepdim=True)
            means = torch.stack([even[:, list(blocks)].mean(dim=1) for blocks in SETS.values()], dim=1)
            kinds = {keys: maps, f"{keys}, means": means, f"{keys}, means, every second": coarse(means)}
            for name, each in kinds.items():
                for image, scene in enumerate(chosen):
                    for word, group in enumerate(scene.groups):
                        things = things_of(pictures[image], group.kind)
                        if things.any():
                            own = each[:, :, image, word]
                            rows.setdefault(name, []).append(torch.stack([in_order(own, things), overlap(own, things)], dim=-1))
        sys.stdout.write(f"{len(rows[KEYS[0]])} words seen\n")
        sys.stdout.flush()
    return {name: torch.stack(found).numpy() for name, found in rows.items()}


def table(found: Mapping[str, np.ndarray], names: Sequence[str], shown: Sequence[int]) -> str:
    """A Markdown table of some steps (counted from 0) and of their mean over all: in order and overlap, percent."""
    titles = ["", *(f"step {step + 1}" for step in shown), "all steps"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for what, values in found.items():
        mean = 100 * values.mean(axis=0)
        for place, name in enumerate(names):
            cells = [mean[step, place] for step in shown] + [mean[:, place].mean(axis=0)]
            lines.append(f"| {name}, {what} | " + " | ".join(f"{order:.0f} / {region:.0f}" for order, region in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.alignment.blocks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seed", type=int, default=77, help="of the choice of prompts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "blocks")
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    model, scenes = load_transformer(), choose_scenes(flags.prompts, flags.seed, "common")
    found = measure(model, scenes, flags.steps)
    shown = [0, *range(2, flags.steps - 1, 4), flags.steps - 1]
    kinds = ["double"] * DOUBLE_BLOCKS + ["single"] * SINGLE_BLOCKS
    blocks = [f"block {n} ({kind})" for n, kind in enumerate(kinds)]
    text = (
        f"{flags.prompts} prompts of seed {flags.seed}, {len(found[KEYS[0]])} words of things, {flags.steps} steps; "
        "in order / overlap, percent.\n\n"
        + table({name: values for name, values in found.items() if "means" not in name}, blocks, shown)
        + "\n"
        + table({name.replace("means", "mean"): v for name, v in found.items() if "means" in name}, list(SETS), shown)
    )
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "table.md").write_text(text, encoding="utf-8")
    kept = {name: np.round(values.mean(axis=0), 4).tolist() for name, values in found.items()}
    (flags.out / "blocks.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
