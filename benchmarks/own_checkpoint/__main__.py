"""AsynDM on a checkpoint of your own: prompts in three modes, or holes in pictures drawn in three ways, from the same seeds.

    python -m benchmarks.own_checkpoint --checkpoint NAME.safetensors --prompts benchmarks/prompts/animal_activity.txt
    python -m benchmarks.own_checkpoint --checkpoint NAME.safetensors --edit FOLDER
    python -m benchmarks.own_checkpoint --checkpoint demo --prompts benchmarks/prompts/demo_world.txt --size 128
    python -m benchmarks.own_checkpoint --diffusion-model NAME --text-encoders NAME --encoder-type qwen_image --vae NAME \
        --prompts FILE --size 1024 --cfg 4 --scheduler simple
    torchrun --nproc-per-node 8 -m benchmarks.own_checkpoint --checkpoint NAME.safetensors --prompts FILE ...

Needs a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI); uses its GPU if it has one. NAME is a file in models/checkpoints;
of a model in parts, in models/diffusion_models, text_encoders and vae.

--prompts: each line of a file is `prompt | targets`; synchronous, concave and asynchronous.
--edit, --remove: a folder of pictures, each with NAME_mask.png beside it, white where it is to be drawn anew, and NAME.txt,
`prompt | targets` of what it is to show then (with --remove: only what is left). The known pixels are noised (ComfyUI's
inpainting), ahead by --lead, and ahead while the hole lags by --strength.

Under torchrun or accelerate launch the rows are shared out over all processes, each on a GPU of its own, on one machine or
more. Saves OUT/NNN_seed.jpg for each row, on the machine that drew it; and, by the first process, OUT/sheet.jpg with the first
rows, and OUT/scores.json with the figures of all: the seam at the hole's edge; and CLIPScore, where torchmetrics and
transformers are installed and the CLIP that --clip names can be loaded (with --edit: of the hole and its surroundings against
the targets; not with --remove, whose prompt does not say what should be gone).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..real_comfyui import load_pack
from .processes import Processes, joined
from .report import Scores, around, make_scorer, seam, sheet, summary
from .sampling import (
    BEFORE,
    DEMOS,
    Job,
    hole_of,
    inpainted,
    load_models,
    load_parts,
    read_masked,
    read_prompts,
    rounded,
    triplet,
)

ROWS = 8
"""Of the sheet: the first ones."""


class Row(NamedTuple):
    """What a job gave: figure -> way -> number; and its pictures, uint8 (H, W, 3), if it is one of the sheet's."""

    job: Job
    scores: dict[str, dict[str, float]]
    pictures: dict[str, np.ndarray]


def read_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.own_checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", help=f"a file in models/checkpoints, or one of {', '.join(DEMOS)}")
    model.add_argument("--diffusion-model", help="a file in models/diffusion_models; needs the next three")
    parser.add_argument("--text-encoders", nargs="+", help="files in models/text_encoders")
    parser.add_argument("--encoder-type", help="of Load CLIP or DualCLIPLoader: flux, qwen_image, lumina2, ...")
    parser.add_argument("--vae", help="a file in models/vae")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--prompts", type=Path, nargs="+", help="files")
    task.add_argument("--edit", type=Path, help="a folder: paint a part of each picture anew")
    task.add_argument("--remove", type=Path, help="a folder: take something out of each picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=512, help="side in pixels; pictures are cut and scaled to it")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--curve", default="quadratic")
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--lead", type=float, default=0.2, help="of known pixels, as a share of the schedule")
    parser.add_argument("--negative", default="")
    parser.add_argument("--clip", default="openai/clip-vit-large-patch14", help="for CLIPScore: a name or a folder")
    parser.add_argument("--out", type=Path, default=Path("artefacts/own_checkpoint"))
    flags = parser.parse_args(arguments)
    parts = (flags.text_encoders, flags.encoder_type, flags.vae)
    if (flags.diffusion_model is not None) != all(parts) or (flags.checkpoint and any(parts)):
        parser.error("--diffusion-model, --text-encoders, --encoder-type and --vae go together, in the place of --checkpoint.")
    return flags


def jobs_of(flags: argparse.Namespace) -> list[Job]:
    """All rows that are asked for. ValueError or OSError for files that are not as they should be."""
    if flags.prompts:
        given = [(line, None, None) for line in read_prompts(flags.prompts)]
    else:
        given = read_masked(flags.edit or flags.remove)
    return [Job(number, line, seed, *files) for number, (line, *files) in enumerate(given) for seed in flags.seeds]


def measured(job: Job, pictures: dict[str, np.ndarray], flags: argparse.Namespace, scorer: Any | None) -> dict:
    """The figures of a row: figure -> way -> number."""
    drawn = {way: picture for way, picture in pictures.items() if way != BEFORE}
    found, wanted, part = {}, job.line.prompt, (slice(None), slice(None))
    if job.mask is not None:
        hole = hole_of(job, flags.size)[0].numpy() >= 0.5
        found["seam"] = {way: seam(picture, hole) for way, picture in drawn.items()}
        wanted, part = job.line.targets or wanted, around(hole)
    if scorer is not None:
        images = {way: torch.from_numpy(picture[part].copy()).movedim(-1, 0) for way, picture in drawn.items()}
        found["CLIPScore"] = {way: float(scorer(image, wanted)) for way, image in images.items()}
    return found


def draw(jobs: Sequence[Job], flags: argparse.Namespace, processes: Processes) -> list[Row]:
    """This process's rows, drawn and saved. jobs: of all processes."""
    if flags.checkpoint:
        models = load_models(flags.checkpoint)
    else:
        models = load_parts(flags.diffusion_model, flags.text_encoders, flags.encoder_type, flags.vae)
    scorer = None if flags.remove else make_scorer(flags.clip, told=processes.first)
    flags.out.mkdir(parents=True, exist_ok=True)
    rows, mine = [], processes.mine(jobs)
    for job in mine:
        made = (triplet if job.picture is None else inpainted)(models, job, flags)
        pictures = {way: rounded(picture).numpy() for way, picture in made.items()}
        strip = np.concatenate(list(pictures.values()), axis=1)
        Image.fromarray(strip).save(flags.out / f"{job.number:03d}_{job.seed}.jpg", quality=92)
        rows.append(Row(job, measured(job, pictures, flags, scorer), pictures if job in jobs[:ROWS] else {}))
        if processes.first:
            sys.stdout.write(f"{len(rows)}/{len(mine)}  {job.line.prompt}\n")
            sys.stdout.flush()
    return rows


def report(rows: Sequence[Row], flags: argparse.Namespace) -> None:
    """Write scores.json and the sheet, and print the figures."""
    scores: Scores = {
        figure: {way: [row.scores[figure][way] for row in rows] for way in ways} for figure, ways in rows[0].scores.items()
    }
    task = "prompts" if flags.prompts else "edit" if flags.edit else "remove"
    parts = ("checkpoint", "diffusion_model", "text_encoders", "encoder_type", "vae")
    used = (*parts, "size", "steps", "cfg", "sampler", "scheduler", "curve", "strength", "lead", "negative")
    about = {name: getattr(flags, name) for name in used}
    listed = [
        {**row.job.line._asdict(), "seed": row.job.seed, "picture": row.job.picture and row.job.picture.name} for row in rows
    ]  # fmt: skip
    kept = {"task": task, **about, "rows": listed, "scores": scores}
    (flags.out / "scores.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    figures = summary(scores)
    shown = [row for row in rows if row.pictures]
    how = f"{flags.steps} steps of {flags.sampler}, {flags.scheduler}, cfg {flags.cfg:g}, {flags.curve}"
    heading = [
        f"ComfyUI-AsynDM on {flags.checkpoint or flags.diffusion_model}: {task}",
        f"{how}, strength {flags.strength:g}" + ("" if flags.prompts else f", lead {flags.lead:g}"),
        f"The same prompt, seed and steps in each row; the first {len(shown)} of {len(rows)} rows, not chosen.",
    ]
    captions = {f"{n + 1}  {row.job.line.prompt}   (seed {row.job.seed})": row for n, row in enumerate(shown)}
    pictures = {caption: list(row.pictures.values()) for caption, row in captions.items()}
    sheet(heading, list(shown[0].pictures), pictures, figures).save(flags.out / "sheet.jpg", quality=90)
    sys.stdout.write("\n".join([f"{len(rows)} rows; in {flags.out}", *figures]) + "\n")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    flags = read_flags(arguments)
    try:
        jobs = jobs_of(flags)
        with joined() as processes:
            load_pack(cpu=not torch.cuda.is_available())
            rows = processes.gathered(draw(jobs, flags, processes))
    except (ValueError, OSError) as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    if rows:
        report(sorted(rows, key=lambda row: jobs.index(row.job)), flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
