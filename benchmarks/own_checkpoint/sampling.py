"""Sampling by the pack's nodes: a prompt in the three modes, and a hole in a picture in three ways."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..pictures import pictures_in, read_picture

DEMOS = {"demo": "unet", "demo-transformer": "transformer"}
"""The bundled models: their networks by the name that stands for a file."""
MODES = ("synchronous", "concave", "asynchronous")
WAYS = {
    "ComfyUI's inpainting (noised)": ("noised", False),
    "ahead": ("ahead", False),
    "ahead, the hole lags": ("ahead", True),
}
"""To inpaint: the known pixels, and whether the hole lags."""
BEFORE = "before"
MASK = "_mask"
"""How the name of a mask ends, beside that of its picture."""

Models = tuple[Any, Any, Any]
"""MODEL, CLIP and VAE."""


class Line(NamedTuple):
    """A prompt and its targets, as typed into Cross-Attention Mask (empty: chosen automatically)."""

    prompt: str
    targets: str


class Job(NamedTuple):
    """One row: what is drawn, from which seed; and the picture with its mask, white where it is drawn anew, or None."""

    number: int
    line: Line
    seed: int
    picture: Path | None = None
    mask: Path | None = None


def read_prompts(files: Sequence[Path]) -> list[Line]:
    """The lines of the files, without comments (#) and empty ones. ValueError if none is left."""
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [Line(*(part.strip() for part in (line + "|").split("|")[:2])) for line in lines if line and line[0] != "#"]
    if not found:
        raise ValueError(f"No prompt in {', '.join(map(str, files))}: each line is 'prompt | targets'.")
    return found


def read_masked(folder: Path) -> list[tuple[Line, Path, Path]]:
    """The pictures of a folder, each with what it is to show (NAME.txt) and its mask. ValueError naming what is not there."""
    files = pictures_in(folder)
    masks = {path.stem.removesuffix(MASK): path for path in files if path.stem.endswith(MASK)}
    found = []
    for path in files:
        if path.stem.endswith(MASK):
            continue
        if path.stem not in masks:
            raise ValueError(f"{path} has no mask: put {path.stem}{MASK}.png beside it, white where it is to be drawn anew.")
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise ValueError(f"{path} has no prompt: write 'prompt | targets' into {text.name} beside it.")
        found.append((read_prompts([text])[0], path, masks[path.stem]))
    return found


def load_models(checkpoint: str) -> Models:
    """MODEL, CLIP and VAE of a checkpoint in ComfyUI's folder, or of a demo model."""
    if checkpoint in DEMOS:
        from asyndm_pack.nodes.demo_model import load_demo_model

        return load_demo_model(DEMOS[checkpoint])
    from nodes import CheckpointLoaderSimple

    return CheckpointLoaderSimple().load_checkpoint(checkpoint)


def load_parts(network: str, encoders: Sequence[str], kind: str, vae: str) -> Models:
    """MODEL, CLIP and VAE of files in ComfyUI's folders, as Load Diffusion Model, Load CLIP and Load VAE read them.

    kind: of the text encoders, as Load CLIP names it. ValueError for one that this ComfyUI does not know.
    """
    import folder_paths
    from comfy.sd import CLIPType, load_clip

    from nodes import UNETLoader, VAELoader

    if kind.upper() not in CLIPType.__members__:
        raise ValueError(f"This ComfyUI knows no text encoder of type {kind!r}: {', '.join(CLIPType.__members__).lower()}.")
    paths = [folder_paths.get_full_path_or_raise("text_encoders", name) for name in encoders]
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = load_clip(ckpt_paths=paths, embedding_directory=embeddings, clip_type=CLIPType[kind.upper()])
    return (*UNETLoader().load_unet(network, "default"), clip, *VAELoader().load_vae(vae))


def _sample(
    models: Models, line: Line, latent: dict, seed: int, flags: argparse.Namespace, strength: float,
    mode: str = MODES[2], mask: Tensor | None = None, **known: Any,
) -> Tensor:  # fmt: skip
    """One picture (H, W, 3) in [0, 1], by the pack's nodes. mask: the only region. known: of Asynchronous Timestep Map."""
    from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
    from asyndm_pack.nodes.ksampler import AsynDMKSampler
    from asyndm_pack.nodes.timestep_map import TimestepMapNode

    from nodes import CLIPTextEncode, VAEDecode

    model, clip, vae = models
    mask_mode = "limit" if mask is None else "replace"
    positive, regions = CrossAttentionMask.execute(
        clip, line.prompt, line.targets, 1.0, "every step", mask=mask, mask_mode=mask_mode
    ).result  # fmt: skip
    (timestep_map,) = TimestepMapNode.execute(regions, flags.curve, strength, mode, **known).result
    (negative,) = CLIPTextEncode().encode(clip, flags.negative)
    out = AsynDMKSampler.execute(
        model, timestep_map, seed, flags.steps, flags.cfg, flags.sampler, flags.scheduler, positive, negative, latent, 1.0,
        preview=False,
    )  # fmt: skip
    return VAEDecode().decode(vae, out.result[0])[0][0]


def triplet(models: Models, job: Job, flags: argparse.Namespace) -> dict[str, Tensor]:
    """The prompt in every mode: pictures (H, W, 3) by the mode's name."""
    from nodes import EmptyLatentImage

    (latent,) = EmptyLatentImage().generate(flags.size, flags.size)
    return {mode: _sample(models, job.line, latent, job.seed, flags, flags.strength, mode) for mode in MODES}


def hole_of(job: Job, size: int) -> Tensor:
    """The mask of a job, a MASK (1, size, size). ValueError where nothing of it is white."""
    assert job.mask is not None
    hole = read_picture(job.mask, size)[..., 0]
    if hole.max() < 0.5:
        raise ValueError(f"The mask {job.mask} has no white: nothing would be drawn anew.")
    return hole


def inpainted(models: Models, job: Job, flags: argparse.Namespace) -> dict[str, Tensor]:
    """The picture as it was, and its hole drawn in every way: (H, W, 3) by name."""
    from nodes import SetLatentNoiseMask, VAEEncode

    assert job.picture is not None
    hole, image = hole_of(job, flags.size), read_picture(job.picture, flags.size)
    (latent,) = SetLatentNoiseMask().set_mask(VAEEncode().encode(models[2], image)[0], hole)
    pictures = {BEFORE: image[0]}
    for way, (known, lags) in WAYS.items():
        strength = flags.strength if lags else 0.0
        pictures[way] = _sample(
            models, job.line, latent, job.seed, flags, strength, mask=hole, known_pixels=known, lead=flags.lead
        )  # fmt: skip
    return pictures


def rounded(picture: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1] -> uint8 on the CPU."""
    return (picture.clamp(0, 1) * 255).round().byte().cpu()
