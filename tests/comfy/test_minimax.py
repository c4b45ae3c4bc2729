"""MiniMax H3: every token of the clip at its own noise level, beside text and sound at the schedule's.

The oracle is ComfyUI's network with a denoise mask of the levels as shares of the schedule's: it puts each token at its own
timestep, if only some are below the schedule's. Where it leaves all others as they are, the test does not let it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clips import CLIPS, SIZE, Evaluation, first_frame_known, patches
from families import random
from test_ltx import TOLERANCE, VALUES, far
from tiny import hooks_of
from torch import Tensor
from torch.nn.functional import pad

MINIMAX = [name for name in CLIPS if name.startswith("MiniMax")]
every_minimax = pytest.mark.parametrize("name", MINIMAX)
PATCH = (1, 2, 2)


@pytest.fixture
def any_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's mask may be above 1 everywhere: its shortcut for a mask that keeps nothing is left out."""
    network = pytest.importorskip("comfy.ldm.minimax.model")

    def rows(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
        whole = pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2]), mode="replicate")
        return whole[:, ::2, ::2].reshape(-1)

    monkeypatch.setattr(network, "mask_row_values", rows)


def natively(case: Evaluation, level: Tensor, sigma: float) -> list[Tensor]:
    """What the network says with each token at its level (1, *size), as the model makes denoised latents of it."""
    made = case.denoised(sigma, denoise_mask=(level / sigma)[:, None])
    said = (case.streams[0] - made[0]) / sigma
    return [case.streams[0] - said * level[:, None], *made[1:]]


@every_minimax
@pytest.mark.parametrize("size", [SIZE, (2, 5, 7)])
@pytest.mark.parametrize("values", [VALUES, torch.tensor([0.95, 0.8, 0.9, 0.8]), torch.tensor([0.3, 0.2, 0.45, 0.7])])
@pytest.mark.usefixtures("any_level")
def test_every_token_is_at_its_own_level(name: str, size: tuple[int, ...], values: Tensor) -> None:
    """Behind the schedule, ahead of it, and both."""
    case, index = Evaluation(name, 1, size), patches(size, PATCH, 3)
    wanted = natively(case, values[index], float(values[-1]))
    for ours, expected in zip(case.at_map(values, index), wanted, strict=True):
        assert far(ours, expected) < TOLERANCE
    assert not hooks_of(case.model.diffusion_model)


def test_the_networks_own_mask_says_the_same() -> None:
    """Without anything changed of it, where that is possible."""
    case, index = Evaluation("MiniMax H3"), patches(SIZE, PATCH, 3)
    values = torch.tensor([0.3, 0.2, 0.45, 0.7])
    for ours, expected in zip(case.at_map(values, index), natively(case, values[index], 0.7), strict=True):
        assert far(ours, expected) < TOLERANCE


@every_minimax
def test_a_level_that_is_even_is_stock(name: str) -> None:
    case = Evaluation(name)
    even = zip(case.at_map(torch.full((4,), 0.7), patches(SIZE, PATCH, 3)), case.denoised(0.7), strict=True)
    assert all(far(ours, expected) < TOLERANCE for ours, expected in even)


CONDITIONS: dict[str, dict[str, Any]] = {
    "keyframes": {"minimax_keyframes": [{"resolved_frame_index": 0, "latent": random(1, 24, 1, 6, 8)}]},
    "a picture to refer to": {
        "minimax_refs": [{"kind": "image", "latent_h": 6, "latent_w": 8, "latent": random(1, 24, 1, 6, 8)}]
    },
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.usefixtures("any_level")
def test_given_pictures_stay_clean(condition: str) -> None:
    """They stand between the text and the clip."""
    case, index = Evaluation("MiniMax H3", **CONDITIONS[condition]), patches(SIZE, PATCH, 3)
    without = Evaluation("MiniMax H3").at_map(VALUES, index)
    made = case.at_map(VALUES, index)
    assert far(made[0], without[0]) > 1e-3
    for ours, expected in zip(made, natively(case, VALUES[index], 0.7), strict=True):
        assert far(ours, expected) < TOLERANCE


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_denoise_mask_is_a_noise_level(strength: float) -> None:
    """Multiplied into the map; the network knows what is given as hardly noisy. The sound has its own mask."""

    def half(mask: Tensor) -> None:
        mask[:, :, 1] = strength

    clip, sound = first_frame_known("MiniMax H3", half)
    sound[..., :5] = 0
    case, index = Evaluation("MiniMax H3", mask=[clip, sound]), patches(SIZE, PATCH, 3)
    even = zip(case.at_map(torch.full((4,), 0.7), index), case.denoised(0.7), strict=True)
    assert all(far(ours, expected) < TOLERANCE for ours, expected in even)
    values = torch.tensor([0.6, 0.5, 0.65, 0.7])
    shown = Evaluation("MiniMax H3", mask=[torch.ones_like(clip), sound])
    level = (values[index] * clip[0]).clamp(min=0.001)
    wanted = natively(shown, level, 0.7)
    said = [(shown.streams[0] - wanted[0]) / level[:, None], wanted[1]]
    ours = case.at_map(values, index)
    assert far((case.streams[0] - ours[0]) / values[index][:, None], said[0]) < 2e-4
    assert far(ours[1], said[1]) < TOLERANCE
