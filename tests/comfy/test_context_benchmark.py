"""The context benchmark on a checkpoint: through ComfyUI it measures what it does on the same model in diffusers."""

from __future__ import annotations

from pathlib import Path

import comfy.samplers
import numpy as np
import pytest
import torch
from asyndm_pack.asyndm_core.hosts.diffusers import DiffusersHost, sigma_of_alphas
from asyndm_pack.benchmarks.context import __main__ as command
from asyndm_pack.benchmarks.context.measure import LAGS, TIMESTEPS, errors
from asyndm_pack.demo.model import alphas_cumprod, load
from asyndm_pack.demo.sample import PREDICTION
from asyndm_pack.demo.world import draw, sample_scene
from asyndm_pack.nodes.demo_model import load_demo_model
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two drawings with what they show beside them; one is not square."""
    paths = []
    for number in range(2):
        scene = sample_scene(np.random.default_rng(number))
        drawing = Image.fromarray(draw(scene, np.random.default_rng(number)))
        paths.append(tmp_path / f"{number}.png")
        (drawing if number else drawing.resize((192, 128))).save(paths[-1])
        paths[-1].with_suffix(".txt").write_text(scene.prompt(), encoding="utf-8")
    return paths


@torch.no_grad()
def test_it_measures_what_diffusers_does(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Same model, pictures, regions and noise: the same errors. The model's own picture of the prompt is not asked for."""
    monkeypatch.setattr(command, "REGIONS", 2)
    got = command.of_a_checkpoint(load_demo_model(), pictures, 128, seed=3)
    assert got.shape == (len(TIMESTEPS), 1 + len(LAGS), 4)
    reference, rng, alphas = load(), np.random.default_rng(3), alphas_cumprod()
    for number, path in enumerate(pictures):
        image = command.read_picture(path, 128).movedim(-1, 1) * 2 - 1
        latents = reference.vae.encode(image).expand(2, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3 + number + 1))
        cond = reference.encode_text([path.with_suffix(".txt").read_text(encoding="utf-8")])
        host = DiffusersHost(reference.unet, alphas, PREDICTION, cond, cond, 1.0)
        region = command.boxes(latents.shape[-2:], 2, rng)
        wanted = errors(host, latents, region, sigma_of_alphas(alphas), lambda s, x=latents, n=noise: x + s * n)
        torch.testing.assert_close(got[..., 2 * number : 2 * number + 2], wanted, rtol=2e-3, atol=1e-5)


def test_the_middle_of_a_picture_is_taken(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    read = command.read_picture(tmp_path / "wide.png", 64)
    assert read.shape == (1, 64, 64, 3) and (read == torch.tensor([0.0, 0.0, 1.0])).all()


def test_nothing_samples_beyond_the_measurement(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a sampler of ComfyUI, and the only one in a run; the model is as it was."""
    monkeypatch.setattr(comfy.samplers.KSAMPLER, "sample", lambda *_, **__: pytest.fail("another sampler ran"))
    monkeypatch.setattr(command, "REGIONS", 1)
    models = load_demo_model()
    first = command.of_a_checkpoint(models, pictures[:1], 64, seed=3)
    assert torch.equal(first, command.of_a_checkpoint(models, pictures[:1], 64, seed=3))
    assert not models[0].wrappers
