"""The host never waits for the device within a run, beyond a number that arrived long ago: on a device that notes it."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from diffusers import UNet2DConditionModel
from fake_device import DEVICE, Wait, fake_device
from torch import Tensor

from asyndm_core import transfer
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock
from asyndm_core.live import Live
from asyndm_core.record import RunRecord
from asyndm_core.regions import Regions, Target, TimestepMap, make_plan
from asyndm_core.run import LOOKS, generate
from asyndm_core.samplers import SAMPLERS

STEPS = 4
DENOISE = DiffusersHost.denoise
WORDS = (Target("moon"), Target("boat", 0.9))
GREY = torch.linspace(0, 1, 16 * 16).view(1, 16, 16)


def waits(
    unet: UNet2DConditionModel, alphas: Tensor, timestep_map: TimestepMap, sampler: str = "euler", before: int = 0
) -> list[Wait]:
    """What a run waits for after its first evaluation and before its last, recorded and shown as the node does.

    before: how many evaluations look for words before the run.
    """
    with fake_device(transfer.STREAMS) as device:
        device.watch(unet)
        cond, uncond, noise = (torch.randn(size).to(DEVICE) for size in ((1, 9, 24), (1, 9, 24), (2, 4, 16, 16)))
        host = DiffusersHost(unet, alphas.to(DEVICE), "epsilon", cond, uncond, 3.0, words=[[2], [5, 6]])
        leading = torch.arange(STEPS).flip(0) * (1000 // STEPS) + 1
        clock = make_clock(alphas, leading, paper=timestep_map.preset == "paper").to(DEVICE)
        record, live = RunRecord(STEPS, previews=True), Live(STEPS, lambda frames: None)

        def on_step(snapshot: object) -> None:
            record(snapshot)
            live(snapshot)

        plan = make_plan(timestep_map, 16, 16)
        draw = lambda plan: lambda *interval: torch.randn(2, 4, 16, 16, device=DEVICE)  # noqa: E731
        begin = device.evaluation
        with live:
            x = generate(
                host, clock, plan, (2, 16, 16), SAMPLERS[sampler], lambda sigma: noise * sigma, draw, "boat", on_step
            )  # fmt: skip
        assert device.evaluation - begin >= STEPS
        found = device.within(begin + before + 1)
        assert x.device == DEVICE and torch.isfinite(x.cpu()).all()
        assert record.frames()[2].progress.unique().numel() > 1
        return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(make_unet: Callable[..., UNet2DConditionModel], alphas: Tensor, sampler: str) -> None:
    """Words, in every sampler there is."""
    assert waits(make_unet(), alphas, TimestepMap(Regions(WORDS)), sampler) == []


@pytest.mark.parametrize(
    ("timestep_map", "before"),
    [
        (TimestepMap(Regions(WORDS), preset="paper", strength=0.9), 0),
        (TimestepMap(Regions(WORDS), "piecewise linear"), 0),
        (TimestepMap(Regions(WORDS), "exponential"), 0),
        (TimestepMap(Regions(WORDS, mask=GREY, mask_mode="add", grow=1, feather=2.0)), 0),
        (TimestepMap(Regions(WORDS, update="fixed")), STEPS),
        (TimestepMap(Regions(mask=GREY, mask_mode="replace"), region_denoise=0.8), 0),
        (TimestepMap(Regions(WORDS), background_denoise=0.0), LOOKS),
        (TimestepMap(Regions(WORDS), background_denoise=0.4, known_pixels="ahead"), LOOKS),
    ],
    ids=["paper", "piecewise linear", "exponential", "masks and edges", "fixed", "regional denoise", "kept pixels", "ahead"],
)
def test_maps(make_unet: Callable[..., UNet2DConditionModel], alphas: Tensor, timestep_map: TimestepMap, before: int) -> None:
    """What a map can ask for."""
    assert waits(make_unet(), alphas, timestep_map, before=before) == []


def test_a_wait_is_noticed(make_unet: Callable[..., UNet2DConditionModel], alphas: Tensor) -> None:
    """The test can fail: pixels that are grouped just before they are needed hold the host up."""
    timestep_map = TimestepMap(Regions(WORDS))
    with patch.object(DiffusersHost, "denoise", lambda self, *args: DENOISE(self, *args[:4])):
        found = waits(make_unet(), alphas, timestep_map)
    assert {wait.what for wait in found} == {"an event with nothing queued after it"}
    assert len({wait.evaluation for wait in found}) == STEPS - 1


def test_the_device_notes_what_waits() -> None:
    """Every kind of wait, and none for what does not wait."""
    with fake_device(transfer.STREAMS) as device:
        x = torch.arange(6.0, device=DEVICE)
        mask, index = x > 2, torch.tensor([1, 2])
        quiet: list[Callable] = [
            lambda: x[index.to(DEVICE, non_blocking=True)], lambda: torch.where(mask, x, 0.0), lambda: x.sum() * 2,
            lambda: torch.zeros(3, device=DEVICE).add_(1), lambda: x.to("cpu", non_blocking=True), lambda: x.sort(),
        ]  # fmt: skip
        loud: list[Callable] = [
            lambda: x[mask], lambda: x[index], lambda: x.sum().item(), lambda: float(x[0]), lambda: bool(mask.any()),
            lambda: x.unique(), lambda: mask.nonzero(), lambda: x.cpu(), lambda: index.to(x.device), lambda: torch.equal(x, x),
            lambda: x.masked_select(mask), lambda: x.argwhere(),
        ]  # fmt: skip
        for call in quiet:
            call()
        assert device.waits == []
        for number, call in enumerate(loud, 1):
            call()
            assert len(device.waits) >= number, f"call {number} was not noticed"
