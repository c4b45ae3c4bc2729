"""The demo model's files: complete, small, and of the shapes that are promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

from demo.config import FOLDER, LATENT_CHANNELS, MAX_TOKENS, TEXT_WIDTH, WEIGHTS
from demo.model import DemoModel, load, sample, sigmas
from demo.world import draw, sample_scene


@pytest.fixture(scope="module")
def model() -> DemoModel:
    return load()


def test_files_are_small_and_half_precision() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 16e6
    with safe_open(WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16 and tensor.isfinite().all(), name
        assert file.get_tensor("preview.factors").shape == (LATENT_CHANNELS, 3)


def test_shapes(model: DemoModel) -> None:
    text = model.encode_text(["a red boat on the sea", "two cats"])
    assert text.shape == (2, MAX_TOKENS, TEXT_WIDTH)
    for height, width in ((16, 16), (8, 24)):
        latents = torch.randn(2, LATENT_CHANNELS, height, width)
        assert model.unet(latents, torch.tensor([10, 900]), text).sample.shape == latents.shape
        assert model.vae.decode(latents).shape == (2, 3, 8 * height, 8 * width)
        assert model.vae.encode(torch.zeros(1, 3, 8 * height, 8 * width)).shape == (1, LATENT_CHANNELS, height, width)


def test_autoencoder_keeps_the_picture(model: DemoModel) -> None:
    rng = np.random.default_rng(41)
    drawings = np.stack([draw(sample_scene(rng), rng) for _ in range(16)])
    images = torch.from_numpy(drawings).movedim(-1, 1) / 127.5 - 1
    latents = model.vae.encode(images)
    assert 0.8 < latents.std() < 1.2
    # 20 log10(2 / rms error): the peak signal-to-noise ratio of a signal in [-1, 1]
    assert 20 * torch.log10(2 / (model.vae.decode(latents) - images).square().mean().sqrt()) > 22


def test_text_decides_the_picture(model: DemoModel) -> None:
    """The same noise, three sentences: three places by their mean colours."""
    sea, night, meadow = sample(model, ["a boat on the sea", "a moon at night", "a tree in a meadow"], 8, seed=4)
    assert night.mean() < 0.35 < sea.mean()
    assert sea[2, 100:].mean() > sea[0, 100:].mean()
    assert meadow[1, 100:].mean() > meadow[2, 100:].mean()


def test_sigmas_fall_to_zero() -> None:
    levels = sigmas(20)
    assert len(levels) == 21 and levels[-1] == 0 and (levels[:-1] > levels[1:]).all()
    # Stable Diffusion's largest sigma, sqrt((1 - a) / a) at timestep 999
    assert levels[0] == pytest.approx(14.6146, abs=1e-3)
