"""What a run says besides its picture: one line in the log for each thing, where something is probably a slip, and only there.

That the node is told as well is in test_live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.demo_model import load_demo_model
from comfy_execution.utils import CurrentNodeContext
from tiny import FOX_AND_HAT, LEFT, ModelType, asyn, difference, flat, ksampler, latent, make_model, node, painted

import nodes as comfy_nodes

EMPTY, FULL = torch.zeros(1, 64, 64), torch.ones(1, 8, 8)
FOX = (Target("fox"),)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the pack has logged since it was asked last."""

    def read() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "asyndm"]
        caplog.clear()
        return found

    with caplog.at_level(logging.WARNING, logger="asyndm"):
        yield read


def run(regions: Regions = FOX_AND_HAT, steps: int = 8, changes: dict[str, Any] | None = None, **options: Any) -> Any:
    return ksampler(asyn(flat(), regions, **(changes or {})), steps=steps, **options)


@cache
def flow_model() -> Any:
    """A quick one that is a rectified flow."""
    small = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
    return make_model(ModelType.FLOW, **small)


def test_a_usual_run_says_nothing(lines: Callable) -> None:
    run(Regions(FOX, mask=LEFT))
    run(painted(LEFT))
    run(changes={"mode": "concave"})
    run(changes={"mode": "synchronous"})
    run(painted(LEFT), steps=4, changes={"background_denoise": 0.5}, image=latent(full=True))
    assert lines() == []


@pytest.mark.parametrize("mode", ["limit", "add", "replace"])
def test_an_empty_mask(mode: str, lines: Callable) -> None:
    """As Load Image gives it for a picture without transparency; its proportions do not matter."""
    run(Regions(FOX, mask=EMPTY, mask_mode=mode), image=latent(8, 16))
    (line,) = lines()
    assert line.startswith("AsynDM: The painted mask of Cross-Attention Mask is empty") and "Load Image" in line
    run(Regions(FOX, mask=EMPTY, mask_mode=mode), changes={"mode": "synchronous"})
    assert lines() == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_is_too_short(steps: int, lines: Callable) -> None:
    """It is the stock sampler's; three steps are enough for a lag."""
    assert difference(run(painted(LEFT), steps), ksampler(flat(), steps=steps)) < 1e-5
    (line,) = lines()
    assert line.startswith(f"AsynDM: A run of {steps} step") and "at least 3 steps" in line
    assert difference(run(painted(LEFT), 3), ksampler(flat(), steps=3)) > 1e-3
    lines()
    run(painted(LEFT), steps, {"strength": 0.0})
    assert lines() == []


def few_steps(steps: int, **changes: Any) -> float:
    """A run as models for few steps have it (flow shift 3, cfg 1); by how many steps its left half is behind at the most."""
    seen: list[Snapshot] = []
    turbo = node("nodes_model_advanced", "ModelSamplingAuraFlow", flow_model(), 3.0)
    ksampler(asyn(turbo, painted(LEFT), on_step=seen.append, **changes), "res_multistep", "simple", steps, 1.0)
    assert all(torch.allclose(s.progress[..., 4:], torch.tensor(float(s.step)), atol=1e-5) for s in seen)
    return max(float((s.step - s.progress).max()) for s in seen)


@pytest.mark.parametrize(
    ("steps", "lag", "strengths"),
    [
        (3, 0.35, {"piecewise linear": 1.0}),
        (4, 0.47, {"piecewise linear": 1.0}),
        (5, 0.70, {"quadratic": 1.0, "piecewise linear": 0.5}),
        (6, 0.84, {"quadratic": 0.85, "piecewise linear": 0.5}),
        (7, 1.05, {}),
        (8, 1.20, {}),
        (9, 1.40, {}),
    ],
)
def test_few_steps(steps: int, lag: float, strengths: dict[str, float], lines: Callable) -> None:
    """Where the default strength lags by less than a step it is said, with what to set; that set, nothing is said."""
    assert few_steps(steps) == pytest.approx(lag, abs=0.005)
    said = lines()
    assert len(said) == bool(strengths)
    if strengths:
        wanted = ", or to ".join(f"{strength:g} on curve {curve}" for curve, strength in strengths.items())
        assert f"In {steps} steps, regions are behind by {lag:.2f} of a step at the most (strength 0.7 on curve" in said[0]
        assert said[0].endswith(f"to {wanted}.")
    for curve, strength in strengths.items():
        assert few_steps(steps, curve=curve, strength=strength) > 0.999
        assert lines() == []
        assert few_steps(steps, curve=curve, strength=strength - 0.05) < 0.999
        assert len(lines()) == 1


def test_known_pixels_that_lead_by_less_than_a_step(lines: Callable) -> None:
    """What the regions lag besides is then no matter."""
    hole = torch.zeros(1, 8, 8)
    hole[..., 2:6, 2:6] = 1
    image = {**latent(full=True), "noise_mask": hole}
    for steps, lead, least in ((4, 0.2, "0.25"), (3, 0.3, "0.34")):
        run(painted(LEFT), steps, {"known_pixels": "ahead", "lead": lead}, image=image)
        (line,) = lines()
        assert f"lead {lead} is {lead * steps:.2g} of a step" in line and f"Map to {least} or more" in line
        run(painted(LEFT), steps, {"known_pixels": "ahead", "lead": float(least)}, image=image)
        assert lines() == []


def test_the_papers_shortest_run_lags(lines: Callable) -> None:
    options = {"sampler": "ddim", "scheduler": "ddim_uniform"}
    stock = run(painted(LEFT), 2, {"preset": "paper", "strength": 0.0}, **options)
    assert difference(run(painted(LEFT), 2, {"preset": "paper"}, **options), stock) > 1e-3
    (line,) = lines()
    assert "behind by 0.35 of a step" in line


@pytest.mark.parametrize("regions", [Regions(FOX, threshold=0.0), painted(FULL)], ids=["words", "painted"])
def test_nothing_runs_ahead(regions: Regions, lines: Callable) -> None:
    """The whole picture is region, though mode concave was not asked for."""
    run(regions, steps=12)
    (line,) = lines()
    assert line.startswith("AsynDM: Only 0.0 % of the picture can run ahead") and "fewer targets" in line
    run(regions, steps=12, image=latent(batch=3))
    assert len(lines()) == 1
    hole = torch.ones(1, 8, 8)
    hole[:, :, :1] = 0
    run(Regions(regions.targets, threshold=0.0, mask=hole), steps=12)
    assert lines() == []


def test_tiles_of_one_node_are_told_once_of_the_mask(lines: Callable) -> None:
    """Each is given the whole mask. Another node, or words, are not told."""
    tile = {"image": latent(8, 16)}
    with CurrentNodeContext("prompt", "upscaler"):
        run(painted(LEFT), **tile)
        assert [line.split(":")[1][:30] for line in lines()] == [" The painted mask of 8 x 8 (wi"]
        run(painted(LEFT), **tile)
        run(painted(LEFT), **tile)
    (line,) = lines()
    assert "samples several times" in line and "whole painted mask" in line
    for number in (1, 2):
        with CurrentNodeContext("prompt", "sampler", number):
            run(painted(LEFT))
    with CurrentNodeContext("prompt", "words"):
        run()
        run()
    assert lines() == []


LONG = (
    "masterpiece, best quality, a green boat on the sea under two moons, a red tree beside a yellow house, a white cat, a blue "
    "hat, an orange ball, a purple mountain, standing, skin, 35mm film, soft light, depth of field"
)
THINGS = (
    "green boat, sea, two moons, red tree, yellow house, white cat, blue hat, orange ball, purple mountain, skin, film, light, "
    "field"
)


@pytest.mark.parametrize("typed", ["", THINGS], ids=["chosen automatically", "13 targets"])
def test_a_long_prompt_leaves_room_or_it_is_said(typed: str, lines: Callable) -> None:
    """At most three things are chosen; whoever chose, where less than a tenth of the picture can run ahead, it is said."""
    model, clip, _ = load_demo_model()
    conditioning, regions = CrossAttentionMask.execute(clip, LONG, typed, 1.0, "every step").result
    (negative,) = comfy_nodes.CLIPTextEncode().encode(clip, "")
    snapshots: list[Snapshot] = []
    patched = apply(model, TimestepMap(regions), Options(on_step=snapshots.append))
    (image,) = comfy_nodes.EmptyLatentImage().generate(128, 128)
    comfy_nodes.common_ksampler(patched, 7, 12, 4.5, "euler", "normal", conditioning, negative, image)
    free = [float((snapshot.owner < 0).float().mean()) for snapshot in snapshots[1:]]
    crowded = sum(share < 0.1 for share in free) >= 3
    said = lines()
    if typed:
        assert len(regions.targets) == 13 and crowded
        assert len(said) == 1 and "% of the picture can run ahead" in said[0]
    else:
        assert [target.text for target in regions.targets] == ["green boat", "sea", "two moons"]
        assert len(said) == crowded
