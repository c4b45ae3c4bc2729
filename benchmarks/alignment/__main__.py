"""Does asynchronous denoising follow the prompt better than stock sampling, and than what else a user could try?

    python -m benchmarks.alignment                       # the table: 512 prompts, about 40 minutes on two cores
    python -m benchmarks.alignment --kind hard --prompts 256 --seed 77 --first-seed 50000 --sweeps
    python -m benchmarks.alignment --kind places --arms synchronous asynchronous concave
    python -m benchmarks.alignment --network transformer --prompts 240 --arms synchronous asynchronous "lag at once"
    python -m benchmarks.alignment --weights FILE --arms synchronous asynchronous concave      # --busy, if it is of busy places

Prompts of what the demo model never saw, the same seed for every arm, judged by the demo world's scorer.
Pictures are kept in OUT/pictures, so that a second call only scores them. Several calls with other --arms may fill the
same folder at once. Arms of other nodes (PAG, FreeU) need a ComfyUI and the UNet, else they are left out and said so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from demo.evaluate import score_drawings, share
from demo.model import LOADERS, DemoModel, FlowModel
from demo.world import Scene

from .. import real_comfyui
from .arms import ARMS, ASYNCHRONOUS, SYNCHRONOUS, Arm, sweeps
from .report import FIGURES, by_kind, compare, count_all, measure_all, measure_table, sheet, sweep_plot, table
from .sampling import latents_of, sample_arm
from .scenes import KINDS_OF_PROMPT, choose_scenes, facts

RESULTS = Path(__file__).parent / "results"
PROMPTS = 512
FIRST_SEED = 10_000
TOLERANCE = 1e-3
"""How far apart ComfyUI's and our own synchronous latents of the same noise may be, of their largest value."""


def pictures_of(
    arm: Arm, model: DemoModel | FlowModel, scenes: Sequence[Scene], seeds: Sequence[int], folder: Path,
    shown: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Pictures of an arm, uint8 (N, 128, 128, 3): from the folder if they are there, else sampled and kept.

    shown: those of the arm that it is compared with.
    """
    name = re.sub(r"\W+", "_", arm.name)
    path = folder / f"{name}_{len(scenes)}.npz"
    if path.is_file():
        return np.load(path)["pictures"]
    start = time.time()
    result = np.empty((len(scenes), 128, 128, 3), np.uint8)
    for indices, pictures in sample_arm(arm, model, scenes, seeds, shown):
        result[indices] = pictures
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, pictures=result)
    sys.stdout.write(f"{arm.name}: {len(scenes)} pictures, {(time.time() - start) / len(scenes):.2f} s each\n")
    sys.stdout.flush()
    return result


def check_peers(model: DemoModel, scenes: Sequence[Scene]) -> float:
    """The largest difference between ComfyUI's and our own synchronous latents, relative. RuntimeError if it is large."""
    from .peers import peer_latents

    chosen, seeds = [scenes[0], scenes[2]], [FIRST_SEED, FIRST_SEED + 2]
    ours, comfy = (f(SYNCHRONOUS, model, chosen, seeds) for f in (latents_of, peer_latents))
    apart = float((ours - comfy).abs().max() / ours.abs().max())
    if apart > TOLERANCE:
        raise RuntimeError(f"ComfyUI's synchronous latents differ from ours by {apart:.2g}: the peers' noise is not the arms'.")
    return apart


def chosen_arms(names: Sequence[str], with_sweeps: bool) -> list[Arm]:
    """The arms to run, with the arms that they are compared with. ValueError for an unknown name."""
    known = {arm.name: arm for arm in (*ARMS, *(arm for group in sweeps().values() for arm in group))}
    wanted = list(names) or [arm.name for arm in ARMS]
    if with_sweeps:
        wanted += [arm.name for group in sweeps().values() for arm in group]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"There is no arm {unknown[0]!r}. Arms: {', '.join(known)}.")
    bases = [known[name].compare for name in wanted]
    return [known[name] for name in dict.fromkeys([*(base for base in bases if base), *wanted])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.alignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    kinds = "; ".join(f"{kind}: {what}" for kind, what in KINDS_OF_PROMPT.items())
    parser.add_argument("--kind", choices=KINDS_OF_PROMPT, default="stacks", help=kinds)
    parser.add_argument("--arms", nargs="*", default=[], help="names of arms; without: those of the table")
    parser.add_argument("--sweeps", action="store_true", help="also the sweeps of strength, curve, threshold, steps, ...")
    parser.add_argument("--seed", type=int, default=31, help="of the choice of prompts")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the noise; every prompt has the next one")
    parser.add_argument("--network", choices=LOADERS, default="unet")
    parser.add_argument("--weights", type=Path, help="of the demo model; others than those that ship")
    parser.add_argument("--busy", action="store_true", help="of busy places are the true drawings that the scorer is tried on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    try:
        arms = chosen_arms(flags.arms, flags.sweeps)
    except ValueError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2

    model = LOADERS[flags.network](*filter(None, [flags.weights]))
    scenes = choose_scenes(flags.prompts, flags.seed, flags.kind)
    accuracy = share(result.whole_prompt for result in score_drawings(scenes, flags.busy))
    said = [f"Scorer on the true drawings of these {len(scenes)} prompts: {100 * accuracy[0]:.1f} ± {100 * accuracy[1]:.1f} %."]
    if isinstance(model, FlowModel):
        left_out = [arm.name for arm in arms if arm.of_unet]
        arms = [arm for arm in arms if not arm.of_unet]
        said += [f"Left out, as they are of a UNet: {', '.join(left_out)}."] if left_out else []
    elif any(arm.peer for arm in arms):
        if real_comfyui.found():
            said.append(f"Synchronous latents, ours against ComfyUI's: {check_peers(model, scenes):.1g} apart.")
        else:
            arms = [arm for arm in arms if not arm.peer]
            said.append("PAG and FreeU are left out: they need a ComfyUI (set COMFYUI_PATH).")

    network = "" if flags.network == "unet" else f"_{flags.network}"
    trained = f"_{flags.weights.stem}" if flags.weights else ""
    part = "" if flags.prompts == PROMPTS else f"_{flags.prompts}"
    name = f"{flags.kind}_{flags.seed}{part}{network}{trained}"
    seeds = range(flags.first_seed, flags.first_seed + len(scenes))
    pictures: dict[str, np.ndarray] = {}
    for arm in arms:
        shown = pictures.get(arm.compare or "")
        pictures[arm.name] = pictures_of(arm, model, scenes, seeds, flags.out / "pictures" / name, shown)
    results = {arm: count_all(shown, scenes) for arm, shown in pictures.items()}
    compared = {arm.name: arm.compare for arm in arms}
    report(flags.out / name, said, scenes, flags.first_seed, pictures, results, compared)
    return 0


def scored_before(folder: Path, scenes: Sequence[Scene], first_seed: int) -> tuple[dict, dict]:
    """Hits and bases of the arms in a folder's results.json, by arm; none where it is of other prompts or seeds."""
    path = folder / "results.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"prompts": []}
    same = [p["prompt"] for p in kept["prompts"]] == [scene.prompt() for scene in scenes]
    if not same or kept.get("first_seed", FIRST_SEED) != first_seed:
        return {}, {}
    hits = {
        arm: {figure: np.array([hit == "1" for hit in row]) for figure, row in entry["hits"].items()}
        for arm, entry in kept["arms"].items()
    }
    return hits, {arm: entry["compare"] for arm, entry in kept["arms"].items()}


def report(
    folder: Path, said: Sequence[str], scenes: Sequence[Scene], first_seed: int, pictures: dict[str, np.ndarray],
    results: dict[str, dict[str, np.ndarray]], compared: dict[str, str | None],
) -> None:  # fmt: skip
    """Print the tables, and write them, results.json, the sheet and the plot to the folder.

    Arms that the folder holds already, of the same prompts and seeds, stay in the tables.
    """
    earlier, bases = scored_before(folder, scenes, first_seed)
    results, compared = earlier | results, bases | compared
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(said) + "\n\n" + table(results, compared)
    on, off = ASYNCHRONOUS.name, SYNCHRONOUS.name
    prompts = [facts(scene) for scene in scenes]
    if {on, off} <= results.keys():
        text += "\n" + by_kind(results, prompts, on, off)
    text += "\n" + measure_table({arm: measure_all(shown, scenes) for arm, shown in pictures.items()}, compared)
    if {on, off} <= pictures.keys():
        wins = sheet(pictures[off], pictures[on], results[off]["whole"], results[on]["whole"], scenes)
        wins.save(folder / "wins_and_losses.jpg", quality=88)
    kept = {
        "notes": list(said),
        "first_seed": first_seed,
        "prompts": prompts,
        "arms": {arm: _entry(arm, results, compared[arm]) for arm in results},
    }
    (folder / "results.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    groups = {name: [arm.name for arm in group] for name, group in sweeps().items()}
    shown = {name: arms for name, arms in groups.items() if set(arms) & results.keys()}
    if shown:
        sweep_plot(results, shown, compared).save(folder / "sweeps.png")
    sys.stdout.write(text)


def _entry(arm: str, results: dict[str, dict[str, np.ndarray]], base: str | None) -> dict:
    """What results.json holds of an arm."""
    hits = {figure: "".join("01"[int(hit)] for hit in results[arm][figure]) for figure in FIGURES}
    against = asdict(compare(results[arm]["whole"], results[base]["whole"])) if base else None
    return {"compare": base, "hits": hits, "against": against}


if __name__ == "__main__":
    sys.exit(main())
