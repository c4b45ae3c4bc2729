"""How much does a clearer context help a model, and how far should known pixels run ahead?

    python -m benchmarks.context                                                  # the demo model, about a minute
    python -m benchmarks.context --things                                         # regions that are things of the prompt
    python -m benchmarks.context --checkpoint NAME.safetensors --pictures FOLDER  # yours, through ComfyUI

A part of each picture is noised to a timestep, everything else to one that is less noisy by a lag, and the model is told so.
The table says how the error of what it makes of that part changes against no lag at all: below 0 a clearer context helps. The
lead that it suggests is a number to type into Asynchronous Timestep Map (known_pixels: ahead).

NAME is a file in models/checkpoints of a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI), or "demo"; its GPU is used if it has
one. A dozen pictures are enough for a first look. What a picture shows may be written beside it, in NAME.txt. Saves
OUT/table.md, OUT/results.json and OUT/changes.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures import pictures_in, read_picture
from .measure import LAGS, TIMESTEPS, Changes, changes, errors, suggested_lead

BATCH = 32
REGIONS = 4
"""Of each of the user's pictures, one after another."""


def of_the_demo_model(count: int, seed: int, things: bool = False) -> Tensor:
    """Errors on drawings of the demo world. The region is a third of the height and width, or the box of one of its things."""
    from asyndm_core.hosts.diffusers import DiffusersHost, sigma_of_alphas
    from demo.config import FACTOR
    from demo.model import alphas_cumprod, load
    from demo.sample import PREDICTION
    from demo.world import draw, sample_scene

    from ..inpainting.cases import hole_of, in_box

    model, alphas, rng = load(), alphas_cumprod(), np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    drawings = np.stack([draw(scene, np.random.default_rng(seed + n)) for n, scene in enumerate(scenes)])
    region = boxes([side // FACTOR for side in drawings.shape[1:3]], count, rng)
    if things:
        holes = np.stack([in_box(hole_of(scene.groups[0].things[0])) for scene in scenes])
        region = torch.from_numpy(holes)[:, None, ::FACTOR, ::FACTOR]
    unit = torch.Generator().manual_seed(seed)
    found = []
    for first in range(0, count, BATCH):
        part = slice(first, first + BATCH)
        latents = model.vae.encode(torch.from_numpy(drawings[part]).movedim(-1, 1) / 127.5 - 1)
        noise = torch.randn(latents.shape, generator=unit)
        cond = model.encode_text([scene.prompt() for scene in scenes[part]])
        host = DiffusersHost(model.unet, alphas, PREDICTION, cond, cond[:1], 1.0)
        found.append(errors(host, latents, region[part], sigma_of_alphas(alphas), lambda s, x=latents, n=noise: x + s * n))
        _say(f"{min(first + BATCH, count)}/{count}")
    return torch.cat(found, dim=-1)


def boxes(size: Sequence[int], count: int, rng: np.random.Generator) -> Tensor:
    """``count`` regions (count, 1, h, w) of a third of the height and width, anywhere."""
    region = torch.zeros(count, 1, *size, dtype=torch.bool)
    height, width = (max(1, side // 3) for side in size)
    for one in region:
        top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
        one[:, top : top + height, left : left + width] = True
    return region


def of_a_checkpoint(models: tuple[Any, Any, Any], pictures: Sequence[Path], size: int, seed: int, prompt: str = "") -> Tensor:
    """Errors on pictures, through ComfyUI: its own loading, encoding and model call. A third of the picture is the region."""
    import comfy.samplers
    from asyndm_pack.nodes.comfy.host import ComfyHost

    from nodes import CLIPTextEncode, VAEEncode

    model, clip, vae = models
    rng, found = np.random.default_rng(seed), []

    class Measure(comfy.samplers.Sampler):
        """In the place of a sampler: it measures, and leaves the latents as they are."""

        def sample(
            self, guider: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, latent_image: Tensor,
            denoise_mask: Tensor | None = None, disable_pbar: bool = False,
        ) -> Tensor:  # fmt: skip
            host = ComfyHost(guider, extra_args, (), noise)
            known = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
            known.latent_image, known.noise = latent_image, noise
            host.inpaint(known, None)
            region = boxes(noise.shape[-2:], len(noise), rng).to(noise.device)
            table = host.sampling.sigmas.to(noise)
            found.append(errors(host, latent_image, region, table, lambda sigma: host.noised(noise, latent_image, sigma)))
            return latent_image

    for number, path in enumerate(pictures, 1):
        caption = path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else prompt
        (positive,) = CLIPTextEncode().encode(clip, text)
        (latent,) = VAEEncode().encode(vae, read_picture(path, size))
        latents = latent["samples"].expand(REGIONS, -1, -1, -1).contiguous()
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + number))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)
        highest = model.get_model_object("model_sampling").sigma_max
        guider.sample(noise, latents, Measure(), torch.tensor([float(highest), 0.0]), disable_pbar=True, seed=seed)
        _say(f"{number}/{len(pictures)}  {path.name}")
    return torch.cat(found, dim=-1)


def title(lag: float) -> str:
    """Of a column."""
    return "clean" if isinf(lag) else f"{lag:g}"


def table(measured: Changes) -> str:
    """A Markdown table: the change of the error, in per cent, with its standard error."""
    lines = ["| timestep of the region | " + " | ".join(map(title, LAGS)) + " |", "|" + "---|" * (len(LAGS) + 1)]
    for timestep, means, deviations in zip(TIMESTEPS, measured.mean, measured.error, strict=True):
        cells = [f"{100 * m:+.0f} ± {100 * e:.0f} %" for m, e in zip(means, deviations, strict=True)]
        lines.append(f"| {timestep} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(measured: Changes, heading: str) -> Image.Image:
    """The table in colours: green where a clearer context helps, red where it harms."""
    wide, high, left, top = 92, 40, 70, 64
    page = Image.new("RGB", (left + wide * len(LAGS) + 12, top + high * len(TIMESTEPS) + 12), (250, 250, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    pen.text((12, 10), heading, (40, 40, 44), font)
    for column, lag in enumerate(LAGS):
        pen.text((left + wide * (column + 0.5), top - 12), title(lag), (92, 97, 107), font, anchor="mm")
    for row, (timestep, means) in enumerate(zip(TIMESTEPS, measured.mean.tolist(), strict=True)):
        y = top + high * row
        pen.text((left - 10, y + high / 2), f"t {timestep}", (92, 97, 107), font, anchor="rm")
        for column, mean in enumerate(means):
            x = left + wide * column
            full = (38, 166, 91) if mean < 0 else (208, 56, 48)
            share = min(abs(mean) / 0.4, 1.0)
            colour = tuple(round(237 + (each - 237) * share) for each in full)
            pen.rectangle((x, y, x + wide - 3, y + high - 3), colour)
            ink = (255, 255, 255) if share > 0.6 else (40, 40, 44)
            pen.text((x + wide / 2 - 1, y + high / 2 - 1), f"{100 * mean:+.0f} %", ink, font, anchor="mm")
    return page


def advice(lead: float) -> str:
    """What the table says, in a sentence."""
    if lead == 0:
        return "A clearer context does not help this model beyond chance: leave known_pixels at noised."
    if lead == 1:
        return "Clean surroundings help this model most: set known_pixels of Asynchronous Timestep Map to clean."
    return (
        f"Suggested: known_pixels ahead, lead {lead:g} (Asynchronous Timestep Map, advanced), with a scheduler that is even "
        "in timesteps, such as normal, simple or ddim_uniform."
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.context", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="a file in models/checkpoints, or demo; nothing: the demo model without ComfyUI")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures, for --checkpoint")
    parser.add_argument("--prompt", default="", help="for pictures without a NAME.txt")
    parser.add_argument("--size", type=int, default=512, help="side in pixels that they are cut and scaled to")
    parser.add_argument("--scenes", type=int, default=64, help="drawings for the demo model")
    parser.add_argument("--things", action="store_true", help="the regions are things that the prompts of the drawings name")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("artefacts/context"))
    flags = parser.parse_args(arguments)
    begin = time.time()
    if flags.checkpoint is None:
        found = of_the_demo_model(flags.scenes, flags.seed, flags.things)
    else:
        from ..own_checkpoint.sampling import load_models
        from ..real_comfyui import load_pack

        try:
            if flags.pictures is None:
                raise ValueError("A checkpoint needs pictures: give a folder of them with --pictures.")
            files = pictures_in(flags.pictures)
            load_pack(cpu=not torch.cuda.is_available())
        except (ValueError, OSError) as problem:
            sys.stderr.write(f"error: {problem}\n")
            return 2
        found = of_a_checkpoint(load_models(flags.checkpoint), files, flags.size, flags.seed, flags.prompt)
    measured = changes(found)
    what = flags.checkpoint or f"the demo model{', things of the prompt' if flags.things else ''}"
    report(flags.out, what, measured, found.shape[-1])
    _say(f"\n{time.time() - begin:.0f} s; in {flags.out}")
    return 0


def report(out: Path, what: str, measured: Changes, count: int) -> None:
    """Print the table with its advice, and write it, results.json and the picture to the folder."""
    lead = suggested_lead(measured)
    said = f"{what}: change of the error in a region, by how far its surroundings are ahead ({count} regions)"
    text = f"{said}\n\n{table(measured)}\n{advice(lead)}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text, encoding="utf-8")
    kept = {"timesteps": TIMESTEPS, "lags": [title(lag) for lag in LAGS], "lead": lead, "mean": measured.mean.tolist(),
            "error": measured.error.tolist()}  # fmt: skip
    (out / "results.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    picture(measured, f"{what}: surroundings ahead by …").save(out / "changes.png")
    _say(f"\n{text}")


if __name__ == "__main__":
    sys.exit(main())
