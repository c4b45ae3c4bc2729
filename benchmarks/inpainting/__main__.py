"""Which is better for inpainting: known pixels shown to the model noised (ComfyUI's way), clean, or ahead?

    python -m benchmarks.inpainting                      # 3 x 240 pictures an arm, about 30 minutes on two cores
    python -m benchmarks.inpainting --pictures 480 --seed 91 --first-seed 91000 --arms "synchronous, ahead 0.2" --out OUT

Drawings of the demo world with a hole where one of their things stands. Task "replace": the prompt names another thing
there. Task "remove": it names only what is left. Task "edit": as replace, but without a mask: the new thing's word is looked
for in the drawing (region_denoise and background_denoise). Every arm draws the same cases from the same seeds; differences are
paired. Pictures are kept in OUT/pictures, so that a second call only measures them; --arms samples some only, --peers what
others do, too. --steps, --cfg, --sampler and --eta hold for all arms; so does --network, which of the demo models it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asyndm_core.attention import token_columns
from asyndm_core.regions import make_plan
from demo.config import MAX_TOKENS
from demo.evaluate import to_pixels
from demo.model import LOADERS, DemoModel, FlowModel
from demo.sample import SAMPLER_NAMES, Settings, decode, sample_plan, token_positions
from demo.scorer import score

from ..alignment.report import compare
from .arms import ARMS, EDITS, FURTHER, PEERS, Arm, encoded, holes
from .cases import TASKS, Case, choose_cases, edge_error, outside_error, right_in_hole, ring_error

EVERY_ARM = ARMS + EDITS + PEERS + FURTHER
RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 20_000
BATCH = 30


FIGURES: dict[str, tuple[str, Callable[[np.ndarray, Case], float]]] = {
    "hole": ("right in the hole, %", lambda picture, case: 100.0 * right_in_hole(picture, case)),
    "whole": ("whole prompt right, %", lambda picture, case: 100.0 * score(picture, case.scene.claims()).whole_prompt),
    "outside": ("error outside the hole, 1/255", outside_error),
    "ring": ("error just outside the hole, 1/255", ring_error),
    "edge": ("error of the step across its edge, 1/255", edge_error),
}
"""What is measured of a picture, and its title."""

Results = dict[str, dict[str, np.ndarray]]
"""By arm and figure: one number for each case."""


def decoded(model: DemoModel | FlowModel, latents: Tensor) -> np.ndarray:
    """Latents -> uint8 pictures (B, 128, 128, 3)."""
    return to_pixels(decode(model, latents).movedim(-1, 1))


def sample_arm(
    arm: Arm, model: DemoModel | FlowModel, cases: Sequence[Case], seeds: Sequence[int], settings: Settings
) -> np.ndarray:  # fmt: skip
    """Pictures of an arm, uint8 (B, 128, 128, 3)."""
    timestep_map, inpaint = arm.timestep_map, arm.given(model, cases)
    if arm.painted:
        timestep_map = replace(timestep_map, regions=replace(timestep_map.regions, mask=holes(cases), mask_mode="replace"))
    plan = make_plan(timestep_map, *inpaint.mask.shape[-2:])
    prompts = [case.scene.prompt() for case in cases]
    columns = torch.stack([
        token_columns(token_positions(model, prompt, [case.target]), MAX_TOKENS)
        for prompt, case in zip(prompts, cases, strict=True)
    ])[..., : len(plan.words)]  # fmt: skip
    settings = arm.changed(replace(settings, denoise=timestep_map.denoise))
    return decoded(model, sample_plan(model, prompts, columns, plan, seeds, settings, inpaint=inpaint, ahead=arm.ahead))


def pictures_of(
    arm: Arm, model: DemoModel | FlowModel, cases: Sequence[Case], folder: Path, first_seed: int, settings: Settings,
    batch: int,
) -> np.ndarray:  # fmt: skip
    """Pictures of an arm, uint8 (N, 128, 128, 3): from the folder if they are there, else sampled and kept."""
    path = folder / f"{arm.name.replace(' ', '_').replace(',', '')}_{len(cases)}.npz"
    if path.is_file():
        return np.load(path)["pictures"]
    start = time.time()
    seeds = range(first_seed, first_seed + len(cases))
    parts = [slice(first, first + batch) for first in range(0, len(cases), batch)]
    pictures = np.concatenate([sample_arm(arm, model, cases[part], seeds[part], settings) for part in parts])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, pictures=pictures)
    sys.stdout.write(f"{arm.name}: {len(cases)} pictures, {(time.time() - start) / len(cases):.2f} s each\n")
    sys.stdout.flush()
    return pictures


def measured(pictures: np.ndarray, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Every figure of every picture."""
    return {
        name: np.array([measure(picture, case) for picture, case in zip(pictures, cases, strict=True)])
        for name, (_, measure) in FIGURES.items()
    }


def table(results: Results) -> str:
    """A Markdown table: each arm's means, and its paired differences from the first arm, with standard errors."""
    titles = ["arm", *(title for title, _ in FIGURES.values())]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    titles_of = {arm.name: arm.title for arm in EVERY_ARM}
    first, *compared = [name for name in results if name in titles_of]
    base = results[first]
    for name, result in results.items():
        cells = []
        for figure, values in result.items():
            pair = compare(values, base[figure])
            error = float(values.std() / len(values) ** 0.5)
            against = "" if name not in compared else f" ({pair.difference:+.1f} ± {pair.error:.1f})"
            cells.append(f"{values.mean():.1f} ± {error:.1f}{against}")
        lines.append("| " + " | ".join([titles_of.get(name, name), *cells]) + " |")
    return "\n".join(lines) + "\n"


def sheet(pictures: Mapping[str, np.ndarray], cases: Sequence[Case], rows: int = 8) -> Image.Image:
    """The first cases: the drawing with its hole, then every arm's picture."""
    size, top = 128, 20
    page = Image.new("RGB", ((len(pictures) + 1) * (size + 4), rows * (size + top)), (250, 250, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row, case in enumerate(cases[:rows]):
        holed = case.drawing.copy()
        holed[case.mask()] //= 3
        heading = case.scene.prompt() + ("" if row else f"   (drawing with its hole; {'; '.join(pictures)})")
        pen.text((2, row * (size + top) + 2), heading, (40, 40, 44), font)
        for column, picture in enumerate([holed, *(shown[row] for shown in pictures.values())]):
            page.paste(Image.fromarray(picture), (column * (size + 4), row * (size + top) + top))
    return page


def _named(device: str) -> str:
    """What a reader of the table calls a device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"the {device.upper()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.inpainting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=240, help="cases of each task")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    usual = [arm.name for arm in ARMS + EDITS]
    parser.add_argument("--arms", nargs="*", choices=[arm.name for arm in EVERY_ARM], default=usual)
    parser.add_argument("--peers", action="store_true", help="what others do, too; two of them take 6 times as long")
    parser.add_argument("--network", choices=LOADERS, default="unet")
    parser.add_argument("--seed", type=int, default=41, help="of the choice of cases")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, default="euler")
    parser.add_argument("--eta", type=float, help="of sampler ddim")
    parser.add_argument("--device", default="cpu", help="of the model, as PyTorch writes it")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures that are drawn at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args(arguments)
    if flags.network == "transformer" and (flags.peers or {arm.name for arm in PEERS} & {*flags.arms}):
        parser.error("What others do is measured on the UNet: leave --peers and its arms out, or --network.")
    torch.set_num_threads(flags.threads)
    settings = Settings(flags.steps, flags.cfg, flags.sampler, flags.eta)
    model = LOADERS[flags.network]().to(flags.device)
    for task in flags.tasks:
        known = EDITS if task == "edit" else ARMS + PEERS + FURTHER
        chosen = {known[0].name, *flags.arms, *(arm.name for arm in PEERS if flags.peers)}
        arms = [arm for arm in known if arm.name in chosen]
        cases = choose_cases(task, flags.pictures, flags.seed)
        folder = flags.out / "pictures" / task
        pictures = {arm.name: pictures_of(arm, model, cases, folder, flags.first_seed, settings, flags.batch) for arm in arms}
        results = {name: measured(shown, cases) for name, shown in pictures.items()}
        floor = decoded(model, encoded(model, [case.empty for case in cases]))
        results["nothing in the hole (true drawing through the autoencoder)"] = measured(floor, cases)
        sampler = settings.sampler if settings.eta is None else f"{settings.sampler} with eta {settings.eta:g}"
        how = f"{flags.network}, {settings.steps} steps of {sampler}, cfg {settings.cfg:g}, on {_named(flags.device)}"
        report(flags.out / task, f"Task {task}, {len(cases)} pictures of seed {flags.seed}, {how}.", cases, pictures, results)
    return 0


def report(
    folder: Path, said: str, cases: Sequence[Case], pictures: Mapping[str, np.ndarray], results: Results
) -> None:  # fmt: skip
    """Print the table, and write it, results.json and the sheet to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{said}\n\n{table(results)}"
    (folder / "table.md").write_text(text, encoding="utf-8")
    kept = {
        "prompts": [case.scene.prompt() for case in cases],
        "arms": {arm: {name: np.round(values, 2).tolist() for name, values in r.items()} for arm, r in results.items()},
    }
    (folder / "results.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    sheet(pictures, cases).save(folder / "sheet.jpg", quality=85)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
