"""In ComfyUI the host waits for the device no more often in a step than it does in stock sampling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import clips
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import pytest
import tiny
import torch
from asyndm_pack.asyndm_core import transfer
from asyndm_pack.asyndm_core.live import Live
from asyndm_pack.asyndm_core.record import RunRecord
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from asyndm_pack.nodes.comfy.network import network_of
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.comfy.transformer import MASK
from comfy.conds import CONDRegular
from fake_device import DEVICE, Device, Wait, fake_device, move
from tiny import NEGATIVE, POSITIVE

import nodes as comfy_nodes

STEPS = 4
GREY = torch.linspace(0, 1, 64).view(1, 8, 8)
FLAT = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
GENERATOR = torch.Generator
NAMES = [name for name in SAMPLERS if name in comfy.samplers.SAMPLER_NAMES]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device that notes waits, where ComfyUI's own loading of models is left out."""
    monkeypatch.setattr(
        comfy.sampler_helpers, "prepare_sampling", lambda model, shape, conds, *_, **__: (model.model, conds, [])
    )
    monkeypatch.setattr(comfy.sampler_helpers, "cleanup_models", lambda *_: None)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device, both=False: (1e12, 1e12) if both else 1e12)
    monkeypatch.setattr(torch, "Generator", lambda device=None: GENERATOR("cpu"))
    with fake_device(transfer.STREAMS) as made:
        yield made


def waits(device: Device, patch: Callable[[Any], Any], sampler: str, positive: list = POSITIVE, **settings: Any) -> list[Wait]:
    """What a run on a small model waits for after its second evaluation began and before its last: what steps cost."""
    patcher = tiny.make_model(**settings)
    move(patcher.model.model_sampling)
    device.watch(patcher.model.diffusion_model)
    patcher.load_device = DEVICE
    device.evaluation, device.waits = 0, []
    tiny.ksampler(patch(patcher), sampler, "karras", STEPS, positive=positive, negative=NEGATIVE)
    assert device.evaluation >= STEPS
    return device.within(2)


def ours(timestep_map: TimestepMap) -> Callable[[Any], Any]:
    """Samples by ``timestep_map``, recorded and with the live view."""
    record = RunRecord(STEPS, previews=True)
    options = Options(on_step=record, on_run=lambda start: Live(start.steps, lambda frames: None))
    return lambda patcher: apply(patcher, timestep_map, options)


@pytest.mark.parametrize("sampler", NAMES)
def test_no_more_than_stock(device: Device, sampler: str) -> None:
    stock: list[Wait] = []
    with suppress(RuntimeError):  # what the fake device cannot follow: older ComfyUI's uni_pc
        stock = waits(device, lambda patcher: patcher, sampler, **FLAT)
    asynchronous = waits(device, ours(TimestepMap(tiny.FOX_AND_HAT)), sampler, **FLAT)
    assert len(asynchronous) <= len(stock), [wait for wait in asynchronous if wait not in stock]


def test_denoise_masks(device: Device) -> None:
    """Of models that multiply their timestep by the mask: its values are looked for once for a run, and in no evaluation."""
    model = clips.clip_model.__wrapped__("LTX-Video").model
    network = network_of(model, torch.zeros(1, 128, *clips.SIZE))
    mask = clips.first_frame_known("LTX-Video", lambda clip: clip[:, :, 1].fill_(0.4))[0]
    network.look_at_masks([{"model_conds": {MASK: CONDRegular(mask.to(DEVICE))}}])
    index = clips.patches(clips.SIZE, (1, 1, 1), 3)
    given = [each.to(DEVICE) for each in (torch.tensor([1.0, 0.5, 0.2]), index, mask)]
    device.waits = []
    timesteps, which = network.multiplied(*given)
    assert device.waits == []
    expected = torch.tensor([1.0, 0.5, 0.2])[index] * mask[:, 0]
    assert torch.equal(timesteps.to("cpu")[which.to("cpu")], expected)


def test_areas_and_masks(device: Device) -> None:
    """How much a prompt counts where is computed once for a run."""
    masked = comfy_nodes.ConditioningSetMask().append(POSITIVE, GREY, "default", 0.7)[0]
    area = comfy_nodes.ConditioningSetArea().append(tiny.cond(3, words=tiny.WORDS), 64, 32, 0, 32, 1.0)[0]
    assert waits(device, ours(TimestepMap(tiny.FOX_AND_HAT)), "euler", positive=[*masked, *area], **FLAT) == []


@pytest.mark.parametrize(
    "timestep_map",
    [
        TimestepMap(Regions((Target("fox"),), mask=GREY, mask_mode="add", grow=1, feather=2.0)),
        TimestepMap(Regions(mask=GREY, mask_mode="replace"), region_denoise=0.8),
        TimestepMap(tiny.FOX_AND_HAT, mode="concave"),
        TimestepMap(Regions(mask=GREY, mask_mode="replace"), background_denoise=0.5, known_pixels="ahead"),
    ],
    ids=["masks and edges", "regional denoise", "concave", "ahead"],
)
def test_maps(device: Device, timestep_map: TimestepMap) -> None:
    """SDXL's kind of UNet."""
    assert waits(device, ours(timestep_map), "euler", sdxl=True) == []
