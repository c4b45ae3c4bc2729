"""LTX-Video and LTX-2: every token at its own noise level, as their networks take a timestep for each token themselves.

The oracle is ComfyUI's network given such timesteps, with a mask that differs within frames: where a mask is even there, the
network of LTX-2 takes the first timestep for the whole frame.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asyndm_pack.nodes.comfy.network import network_of
from clips import CLIPS, SIZE, Evaluation, first_frame_known, patches
from tiny import hooks_of
from torch import Tensor

TOLERANCE = 1e-5
LTX = [name for name in CLIPS if name.startswith("LTX")]
VALUES = torch.tensor([0.9, 0.75, 0.6, 0.7])
every_ltx = pytest.mark.parametrize("name", LTX)


def far(ours: Tensor, expected: Tensor) -> float:
    """The largest difference in standard deviations of what is expected."""
    assert ours.shape == expected.shape and ours.isfinite().all() and expected.std() > 1e-3
    return float((ours - expected).abs().max() / expected.std())


def natively(case: Evaluation, level: Tensor, sound: float, **more: Any) -> list[Tensor]:
    """What the network says with a timestep for each token: level (B, *size)."""
    network, inputs = case.model.diffusion_model, {**case.inputs, **more}
    batch = case.x.shape[0]
    masks = inputs.get("audio_denoise_mask")
    _, timestep = _pair(case.model.process_timestep(torch.full((batch,), sound), x=case.x, audio_denoise_mask=masks))
    inputs.pop("latent_shapes", None)
    ramp = torch.linspace(0, 1, level[0, 0].numel()).view(level.shape[-2:]).expand(batch, 1, *level.shape[1:])
    given = inputs.get("denoise_mask")
    inputs["denoise_mask"] = ramp if given is None else torch.where(given < 0, given, ramp)
    tokens = level.flatten(1)[..., None]
    both = len(case.streams) > 1
    said = network(
        case.streams if both else case.streams[0], (tokens, timestep) if both else tokens, inputs.pop("c_crossattn"),
        transformer_options={}, **inputs,
    )  # fmt: skip
    return list(said) if both else [said]


def _pair(timesteps: Any) -> tuple[Tensor, Tensor]:
    return timesteps if isinstance(timesteps, tuple) else (timesteps, timesteps)


def said_at_map(case: Evaluation, index: Tensor, masked: bool = True) -> list[Tensor]:
    """What the network says at a map of VALUES, of what the model makes of it."""
    index = index.expand(case.x.shape[0], *index.shape[1:])
    levels = [VALUES[index][:, None], *[VALUES[-1]] * (len(case.streams) - 1)]
    made = case.at_map(VALUES, index, masked)
    return [(x - out) / level for x, out, level in zip(case.streams, made, levels, strict=True)]


@every_ltx
@pytest.mark.parametrize("size", [SIZE, (2, 5, 7)])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_token_is_at_its_own_level(name: str, size: tuple[int, ...], batch: int) -> None:
    """Of a batch whose pictures have one map: another's gives the sound of both another gate in ComfyUI."""
    case, index = Evaluation(name, batch, size), patches(size, (1, 1, 1), 3)
    wanted = natively(case, VALUES[index].expand(batch, *size), 0.7)
    for ours, expected in zip(said_at_map(case, index), wanted, strict=True):
        assert far(ours, expected) < TOLERANCE
    assert not hooks_of(case.model.diffusion_model) and "process_timestep" not in vars(case.model)


@every_ltx
def test_a_level_that_is_even_is_stock(name: str) -> None:
    case = Evaluation(name, 2)
    for ours, expected in zip(case.at_map(torch.full((4,), 0.7), patches(SIZE, (1, 1, 1), 3)), case.denoised(0.7), strict=True):
        assert far(ours, expected) < TOLERANCE


@every_ltx
def test_a_denoise_mask_is_a_noise_level(name: str) -> None:
    """Multiplied into the map, whether it is even within frames or not; the sound has its own mask."""

    def half(mask: Tensor) -> None:
        mask[:, :, 1, :, :3] = 0.4

    masks = first_frame_known(name, half)
    for mask in masks[1:]:
        mask[:, :, :9] = 0
    case, index = Evaluation(name, 1, mask=masks), patches(SIZE, (1, 1, 1), 3)
    known = masks[0][0] == 0
    for ours, expected in zip(said_at_map(case, index), natively(case, VALUES[index] * masks[0][0], 0.7), strict=True):
        kept = known.expand_as(ours) if ours.shape == case.shapes[0] else torch.zeros_like(ours, dtype=torch.bool)
        assert far(ours[~kept], expected[~kept]) < TOLERANCE
    even = zip(case.at_map(torch.full((4,), 0.7), index), case.denoised(0.7), strict=True)
    assert all(far(ours, expected) < TOLERANCE for ours, expected in even)


@every_ltx
def test_a_soft_mask_is_given_token_by_token(name: str) -> None:
    """It makes more distinct levels than half of the tokens."""

    def soft(mask: Tensor) -> None:
        mask[:] = torch.linspace(0.1, 1, mask.numel()).view_as(mask)

    masks = first_frame_known(name, soft)
    case, index = Evaluation(name, 1, mask=masks), patches(SIZE, (1, 1, 1), 3)
    for ours, expected in zip(said_at_map(case, index), natively(case, VALUES[index] * masks[0][0], 0.7), strict=True):
        assert far(ours, expected) < TOLERANCE


@every_ltx
@pytest.mark.parametrize("masked", [True, False])
def test_keyframes(name: str, masked: bool) -> None:
    """The last frame is one, at its own place in time, and a part of it is left out, as a negative mask says."""

    def keyframe(mask: Tensor) -> None:
        mask[:, :, 0] = 1
        mask[:, :, 2] = 0.3
        mask[:, :, 2, :2] = -0.2

    masks = first_frame_known(name, keyframe)
    tokens = SIZE[1] * SIZE[2]
    coordinates = torch.rand(1, 3, tokens, 2, generator=torch.Generator().manual_seed(3)) * 40
    case = Evaluation(name, 1, mask=masks, keyframe_idxs=coordinates)
    index = patches(SIZE, (1, 1, 1), 3)
    level = VALUES[index] * (masks[0][0] if masked else 1)
    for ours, expected in zip(said_at_map(case, index, masked), natively(case, level, 0.7), strict=True):
        assert far(ours, expected) < TOLERANCE


@every_ltx
def test_a_clip_of_a_batch_is_what_it_is_alone(name: str) -> None:
    """Each has its own map: the sound of one attends to its own clip's noisiest token."""
    maps = torch.cat([torch.zeros(1, *SIZE, dtype=torch.long), torch.full((1, *SIZE), 2)])
    maps[:, 0] = 1
    together, alone = Evaluation(name, 2), Evaluation(name, 1)
    made = together.at_map(VALUES, maps)
    for place in range(2):
        alone.streams = [stream[place : place + 1] for stream in together.streams]
        alone.x = alone.packed(*alone.streams)
        for ours, expected in zip(made, alone.at_map(VALUES, maps[place : place + 1]), strict=True):
            assert far(ours[place : place + 1], expected) < TOLERANCE


def test_the_sound_is_told_the_schedules_level() -> None:
    case = Evaluation("LTX-2", 2)
    told: list[Tensor] = []
    handle = case.model.diffusion_model.audio_adaln_single.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    try:
        case.at_map(VALUES, patches(SIZE, (1, 1, 1), 3))
    finally:
        handle.remove()
    (timesteps,) = told
    assert type(timesteps) is Tensor and torch.equal(timesteps, torch.full((2,), 700.0))


def test_a_single_frame_is_a_picture() -> None:
    """ComfyUI's latents of it have a dimension of frames, and the map has none."""
    case, index = Evaluation("LTX-Video", 1, (1, 6, 8)), patches((6, 8), (1, 1), 3)
    expected = natively(case, VALUES[index][:, None], 0.7)[0]
    network = network_of(case.model, case.streams[0])
    assert network.patch == (1, 1)
    with network.told(case.model, _pixels(index), index, case.inputs):
        timesteps = case.model.model_sampling.timestep(None)
        inputs = {key: value for key, value in case.inputs.items() if key not in ("c_crossattn", "latent_shapes")}
        ours = case.model.diffusion_model(
            case.x, timesteps, case.inputs["c_crossattn"], transformer_options={}, **inputs
        )  # fmt: skip
    assert far(ours, expected) < TOLERANCE


def _pixels(index: Tensor) -> Any:
    from asyndm_pack.asyndm_core.embedding import PixelTimesteps

    return PixelTimesteps(VALUES, index)
