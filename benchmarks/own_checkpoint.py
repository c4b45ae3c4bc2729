"""The same seeds synchronous, concave and asynchronous on a checkpoint of your own, for prompts from files.

    python -m benchmarks.own_checkpoint --checkpoint NAME.safetensors --prompts benchmarks/prompts/animal_activity.txt
    python -m benchmarks.own_checkpoint --checkpoint demo --prompts benchmarks/prompts/demo_world.txt --size 128

Needs a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI); uses its GPU if it has one. NAME is a file in models/checkpoints. Each
line of a file is `prompt | targets`. Saves OUT/NNN_seed.jpg (left to right: synchronous, concave, asynchronous). Where
torchmetrics and transformers are installed and the CLIP that --clip names can be loaded, CLIPScore of every picture goes
into OUT/scores.json, with the mean and the paired difference per mode.
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
from torch import Tensor

from .real_comfyui import load_pack

MODES = ("synchronous", "concave", "asynchronous")
DEMO = "demo"


class Line(NamedTuple):
    """A prompt and its targets, as typed into Cross-Attention Mask (empty: chosen automatically)."""

    prompt: str
    targets: str


def read_prompts(files: Sequence[Path]) -> list[Line]:
    """The lines of the files, without comments (#) and empty ones. ValueError if none is left."""
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [Line(*(part.strip() for part in (line + "|").split("|")[:2])) for line in lines if line and line[0] != "#"]
    if not found:
        raise ValueError(f"No prompt in {', '.join(map(str, files))}: each line is 'prompt | targets'.")
    return found


def load_models(checkpoint: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint in ComfyUI's folder, or of the demo model."""
    if checkpoint == DEMO:
        from asyndm_pack.nodes.demo_model import load_demo_model

        return load_demo_model()
    from nodes import CheckpointLoaderSimple

    return CheckpointLoaderSimple().load_checkpoint(checkpoint)


def sample(models: tuple[Any, Any, Any], line: Line, mode: str, seed: int, flags: argparse.Namespace) -> Tensor:
    """One picture (H, W, 3) in [0, 1], by the pack's nodes."""
    from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
    from asyndm_pack.nodes.ksampler import AsynDMKSampler
    from asyndm_pack.nodes.timestep_map import TimestepMapNode

    from nodes import CLIPTextEncode, EmptyLatentImage

    model, clip, vae = models
    positive, regions = CrossAttentionMask.execute(clip, line.prompt, line.targets, 1.0, "every step").result
    (timestep_map,) = TimestepMapNode.execute(regions, flags.curve, flags.strength, mode).result
    (negative,) = CLIPTextEncode().encode(clip, flags.negative)
    (latent,) = EmptyLatentImage().generate(flags.size, flags.size)
    out = AsynDMKSampler.execute(
        model, timestep_map, seed, flags.steps, flags.cfg, flags.sampler, flags.scheduler, positive, negative, latent, 1.0,
        preview=False,
    )  # fmt: skip
    return vae.decode(out.result[0]["samples"])[0]


def make_scorer(name: str) -> Any | None:
    """torchmetrics' CLIPScore with the CLIP model ``name``, or None where it is not installed or cannot be loaded."""
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore

        return CLIPScore(model_name_or_path=name)
    except (ImportError, OSError) as problem:
        sys.stdout.write(f"CLIPScore is left out: {problem}\n")
        return None


def summary(scores: dict[str, list[float]]) -> list[str]:
    """For each mode its mean, and its paired difference from synchronous with the standard error."""
    base = np.array(scores[MODES[0]])
    lines = []
    for mode, values in scores.items():
        difference = np.array(values) - base
        error = difference.std() / len(difference) ** 0.5
        lines.append(f"{mode:13s} {np.mean(values):.3f}   against synchronous {difference.mean():+.3f} ± {error:.3f}")
    return lines


def read_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.own_checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help=f"a file in models/checkpoints, or '{DEMO}'")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--curve", default="quadratic")
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--negative", default="")
    parser.add_argument("--clip", default="openai/clip-vit-large-patch14", help="for CLIPScore: a name or a folder")
    parser.add_argument("--out", type=Path, default=Path("artefacts/own_checkpoint"))
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    flags = read_flags(arguments)
    try:
        lines = read_prompts(flags.prompts)
        load_pack(cpu=not torch.cuda.is_available())
    except (ValueError, OSError) as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    models, scorer = load_models(flags.checkpoint), make_scorer(flags.clip)
    flags.out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number, line in enumerate(lines):
        for seed in flags.seeds:
            pictures = [sample(models, line, mode, seed, flags) for mode in MODES]
            strip = (torch.cat(pictures, dim=1).clamp(0, 1) * 255).round().byte().cpu().numpy()
            Image.fromarray(strip).save(flags.out / f"{number:03d}_{seed}.jpg", quality=92)
            if scorer is not None:
                for mode, picture in zip(MODES, pictures, strict=True):
                    image = (picture.clamp(0, 1) * 255).round().byte().cpu().movedim(-1, 0)
                    scores[mode].append(float(scorer(image, line.prompt)))
        sys.stdout.write(f"{number + 1}/{len(lines)}  {line.prompt}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(lines) * len(flags.seeds)} triplets in {flags.out}\n")
    if scorer is not None:
        (flags.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write("\n".join(summary(scores)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
