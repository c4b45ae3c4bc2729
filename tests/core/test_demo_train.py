"""Training the demo model goes on from trained weights, in busy places as in plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import train
from demo.config import WEIGHTS
from demo.model import load
from demo.world import draw, sample_scene


def test_going_on_from_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped autoencoder's latents of busy drawings; at learning rate 0 a checkpoint is the weights it began with."""
    monkeypatch.setattr(train, "_make_tokenizer", lambda: None)
    train.make_data(tmp_path, 4, 1, busy=True)
    rng = np.random.default_rng([2510, 0])
    scene = sample_scene(rng)
    assert json.loads((tmp_path / "prompts.json").read_text())[0] == scene.prompt()
    images = train.load_images(tmp_path)
    assert np.array_equal(images[0], draw(scene, rng, busy=True))

    train.make_latents(tmp_path, WEIGHTS)
    shipped = load()
    with torch.no_grad():
        wanted = shipped.vae.encode(train.to_signal(images))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "latents.npy")).float(), wanted, rtol=0, atol=0.01)

    with torch.enable_grad():
        train.train_network(
            "unet", tmp_path, minutes=1e-6, batch=1, lr=0.0, muon=True, max_steps=1, checkpoints=1, origin=WEIGHTS
        )
    again = load(tmp_path / "checkpoint_100.safetensors")
    for part in ("unet", "text_encoder", "vae"):
        ours, theirs = getattr(again, part).state_dict(), getattr(shipped, part).state_dict()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)
