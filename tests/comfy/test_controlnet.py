"""ControlNets and T2I adapters are told the noise level of every pixel too.

The oracle is ComfyUI itself: in a batch of one picture that lags everywhere and one that nowhere does, the map is not
uniform, so that all per-pixel code is in use; each picture alone has a uniform map, which is a stock call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.controlnet
import comfy.ops
import comfy.t2i_adapter.adapter
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target
from comfy.cldm.cldm import ControlNet
from tiny import (
    LEFT,
    NEGATIVE,
    POOLED,
    POSITIVE,
    asyn,
    difference,
    ksampler,
    latent,
    make_model,
    model,
    painted,
    same,
    unet_config,
)
from torch import Tensor

from nodes import ConditioningSetArea, ControlNetApplyAdvanced

ALL, NONE = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
HINT = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(8))
TOLERANCE = 1e-5


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights, also where a ControlNet starts with zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        flat = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = 0.8 * random / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * random + flat
    return network.eval()


TWO_BLOCKS = {"num_res_blocks": [2, 2, 2], "transformer_depth": [1] * 6, "transformer_depth_output": [1] * 9}
"""SD1.5's number of blocks: where T2I adapters put their features."""
WIDE = {
    "channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
"""The width that union ControlNets are made for."""


def control_net(seed: int = 3, union: bool = False, **changes: Any) -> comfy.controlnet.ControlNet:
    """What ComfyUI's loader makes of a ControlNet's checkpoint, as small as the tiny models."""
    config = unet_config(**changes)
    for other in ("out_channels", "transformer_depth_output"):
        config.pop(other)
    if union:
        config["union_controlnet_num_control_type"] = 6
    network = ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **config)
    network.dtype = torch.float32
    made = comfy.controlnet.ControlNet(randomised(network, seed), load_device=torch.device("cpu"))
    if union:
        made.set_extra_arg("control_type", [2])
    return made


def adapter(seed: int = 4) -> comfy.controlnet.T2IAdapter:
    """A T2I adapter whose features fit the model of TWO_BLOCKS."""
    network = comfy.t2i_adapter.adapter.Adapter_light(channels=[96, 96, 96, 96], nums_rb=1, cin=3 * 64)
    return comfy.controlnet.T2IAdapter(randomised(network, seed), 3, 8, "nearest-exact", device=torch.device("cpu"))


def controlled(*controls: Any, start: float = 0.0, end: float = 1.0) -> dict[str, list]:
    """Positive and negative with a chain of controls."""
    positive, negative = POSITIVE, NEGATIVE
    for control in controls:
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, HINT, 1.0, start, end)
    return {"positive": positive, "negative": negative}


CHAINS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "one": ({}, lambda: controlled(control_net())),
    "chain of two": ({}, lambda: controlled(control_net(3), control_net(5))),
    "union": (WIDE, lambda: controlled(control_net(union=True, **WIDE))),
    "adapter": (TWO_BLOCKS, lambda: controlled(adapter())),
    "adapter and ControlNet": (TWO_BLOCKS, lambda: controlled(adapter(), control_net(**TWO_BLOCKS))),
}
"""Changes of the tiny model, and what controls it."""


def two_latents() -> dict[str, Tensor]:
    return {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))}


def part(image: dict[str, Tensor], index: int) -> dict[str, Any]:
    """One picture of a batch, with the noise that it has there."""
    return {"samples": image["samples"][index : index + 1], "batch_index": [index]}


@pytest.mark.parametrize("name", CHAINS)
def test_a_batch_of_two_clocks_is_two_stock_runs(name: str) -> None:
    """Each picture of the batch as alone, where ComfyUI's own ControlNet gets the one sigma of the whole picture."""
    changes, control = CHAINS[name]
    model, conds, image = cache(lambda: make_model(**changes)), control(), two_latents()

    def run(patched: Any, image: dict[str, Any], control: dict[str, list] = conds) -> Tensor:
        return ksampler(patched, "dpmpp_2m", steps=6, image=image, **control)

    together = run(asyn(model(), painted(ALL, NONE)), {**image, "batch_index": [0, 1]})
    concave = run(asyn(model(), Regions(), mode="concave"), part(image, 0))
    stock = run(model(), part(image, 1))
    assert difference(together[:1], concave) < TOLERANCE
    assert difference(together[1:], stock) < TOLERANCE
    assert difference(concave, run(model(), part(image, 0))) > 1e-3
    assert difference(stock, run(model(), part(image, 1), {"positive": POSITIVE, "negative": NEGATIVE})) > 1e-3


def test_a_range_goes_by_the_background() -> None:
    """A ControlNet from 20 % to 60 % is switched on and off for all pixels at once, in a batch and alone."""
    conds, image = controlled(control_net(), start=0.2, end=0.6), two_latents()

    def run(masks: tuple[Tensor, ...], image: dict[str, Any]) -> Tensor:
        return ksampler(asyn(model(), painted(*masks)), "dpmpp_2m", steps=6, image=image, **conds)

    together = run((ALL, NONE), {**image, "batch_index": [0, 1]})
    assert difference(together[:1], run((ALL,), part(image, 0))) < TOLERANCE
    assert difference(together[1:], ksampler(model(), "dpmpp_2m", steps=6, image=part(image, 1), **conds)) < TOLERANCE


def test_with_sdxls_vector() -> None:
    conds = controlled(control_net(adm_in_channels=POOLED + 6 * 256, num_classes="sequential"))

    def run(*masks: Tensor, rows: list[int]) -> Tensor:
        patched = asyn(make_model(sdxl=True), painted(*masks))
        return ksampler(patched, image={**latent(batch=len(rows)), "batch_index": rows}, **conds)

    together = run(ALL, NONE, rows=[0, 1])
    assert difference(together[:1], run(ALL, rows=[0])) < TOLERANCE
    assert difference(together[1:], run(NONE, rows=[1])) < TOLERANCE


def test_within_an_area() -> None:
    """The map is cropped with the area; the same control in two conds stays one batch."""
    conds = controlled(control_net())
    (area,) = ConditioningSetArea().append(conds["positive"], 32, 48, 16, 16, 1.0)
    conds["positive"] = [*conds["positive"], *area]

    def run(*masks: Tensor, rows: list[int]) -> Tensor:
        return ksampler(asyn(model(), painted(*masks)), image={**latent(batch=len(rows)), "batch_index": rows}, **conds)

    together = run(ALL, NONE, rows=[0, 1])
    assert difference(together[:1], run(ALL, rows=[0])) < TOLERANCE
    assert difference(together[1:], run(NONE, rows=[1])) < TOLERANCE


def test_the_map_matters_to_the_control(caplog: pytest.LogCaptureFixture) -> None:
    """A map within one picture changes the hint; nothing is said, nothing is left behind, and strength 0 is stock."""
    control = control_net()
    conds = controlled(control)
    stock = ksampler(model(), **conds)
    with caplog.at_level(logging.WARNING, "asyndm"):
        half = ksampler(asyn(model(), painted(LEFT), curve="piecewise linear", strength=1.0), **conds)
    assert difference(half, stock) > 1e-3
    assert not [record for record in caplog.records if record.name == "asyndm"]
    assert same(ksampler(asyn(model(), painted(LEFT), mode="synchronous"), **conds), stock)
    assert same(ksampler(model(), **conds), stock)
    assert control.model_sampling_current is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in control.control_model.modules())


def test_words_are_still_watched() -> None:
    """With a ControlNet the regions follow the words as without."""
    seen: list[Tensor] = []
    words = Regions((Target("fox"),))
    ksampler(asyn(model(), words, on_step=lambda s: seen.append(s.attention.shares)), **controlled(control_net()))
    assert len(seen) == 4 and all(attention.std() > 0 for attention in seen)


def test_an_unknown_control_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A control of another pack gets the one sigma, and the log says so."""

    class Other(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, options: dict) -> None:
            assert t.shape == (x_noisy.shape[0],)

        def copy(self) -> Other:
            return self

    with caplog.at_level(logging.WARNING, "asyndm"):
        ksampler(asyn(model(), painted(LEFT)), **controlled(Other()))
    assert "Other is told one noise level for all pixels" in caplog.text
