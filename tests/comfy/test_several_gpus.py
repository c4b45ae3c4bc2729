"""ComfyUI's MultiGPU CFG Split: the conds of a step are shared out among copies of the model, each in a thread of its own.

Here both copies are on one CPU, under two names; ComfyUI takes it for two devices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import pytest
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.regions import Regions
from asyndm_pack.nodes.comfy.model import ResidualBlocks, told
from comfy.patcher_extension import WrappersMP
from test_controlnet import control_net, controlled
from tiny import (
    CONTEXT,
    FOX_AND_HAT,
    LEFT,
    POSITIVE,
    WORDS,
    asyn,
    cond,
    difference,
    hooks_of,
    ksampler,
    make_model,
    node,
    painted,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.speed.memory import attention_as_on_a_gpu

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 0)
TOLERANCE = 1e-5
"""The conds of a step are batched otherwise, which changes the last bits."""

Split = Callable[[Any], Any]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Shares a MODEL out between two devices. ComfyUI's node fails where a loaded model was collected: it is told of none."""
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    # raising=False: a ComfyUI without the node has no such function either, and the test is skipped when the node is asked for
    devices = lambda exclude_current=False: [FIRST, SECOND]  # noqa: E731
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", devices, raising=False)
    return lambda patched: node("nodes_multigpu", "MultiGPUCFGSplitNode", patched, 2)


def loaded(sdxl: bool = False) -> Any:
    """A tiny MODEL that can be loaded once more, as ComfyUI does with one of a checkpoint for each device."""
    made = make_model(sdxl=sdxl)
    made.cached_patcher_init = (partial(make_model, sdxl=sdxl), ())
    return made


def sampled(model: Any, regions: Regions, conds: dict[str, list]) -> tuple[Tensor, list[Tensor | None], set[tuple[int, int]]]:
    """Latents, the words' attention in every step, and who was called: (a copy of the model, the thread)."""
    seen, called = [], set()

    def note(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        called.add((id(executor.class_obj), threading.get_ident()))
        return executor(*args, **kwargs)

    noted = model.clone()
    noted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", note)
    samples = ksampler(
        asyn(noted, regions, lambda snapshot: seen.append(snapshot.attention and snapshot.attention.shares)), **conds
    )
    return samples, seen, called


CONDS: dict[str, dict[str, list]] = {
    "one prompt": {},
    "prompts on both": {"positive": [*POSITIVE, *cond(5, words=WORDS), *cond(6, words=WORDS)]},
    "ControlNet": controlled(control_net()),
}


@pytest.mark.parametrize("conds", CONDS)
@pytest.mark.parametrize("regions", [FOX_AND_HAT, painted(LEFT)], ids=["words", "painted"])
@pytest.mark.parametrize("sdxl", [False, True], ids=["sd1", "sdxl"])
def test_as_on_one(split: Split, conds: str, regions: Regions, sdxl: bool) -> None:
    """Every copy is told the map and watched, its ControlNets too, wherever a cond is sent."""
    model = loaded(sdxl)
    both = split(model)
    expected, attention, _ = sampled(model, regions, CONDS[conds])
    samples, seen, called = sampled(both, regions, CONDS[conds])
    assert len({copy for copy, _ in called}) == 2 and threading.get_ident() not in {thread for _, thread in called}
    assert difference(samples, expected) < TOLERANCE
    for step, (now, then) in enumerate(zip(seen, attention, strict=True)):
        assert (now is None) == (then is None) == (regions is not FOX_AND_HAT), step
        assert now is None or difference(now, then) < TOLERANCE
    for each in (both, *both.get_additional_models_with_key("multigpu")):
        assert not hooks_of(each.model.diffusion_model)
        assert "MapSampling" not in type(each.model.model_sampling).__name__
    assert difference(ksampler(both), ksampler(model)) < TOLERANCE


def on_fake_gpu(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """With its weights there, as far as PyTorch's checks of devices go; to be used in FakeTensorMode."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else torch.nn.Parameter(weight.to(device), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(device)
    return model


@attention_as_on_a_gpu()  # asks for no memory
def test_told_from_another_gpu() -> None:
    """The map's sigmas are on the first GPU; PyTorch refuses operations across two of them."""
    with FakeTensorMode():
        model = on_fake_gpu(make_model().model, "cuda:1")
        unet, index = model.diffusion_model, torch.zeros(2, 8, 8, dtype=torch.long, device="cuda:1")
        latents = PixelTimesteps(torch.rand(3, device="cuda:0"), torch.zeros(1, 8, 8, dtype=torch.long, device="cuda:0"))
        x, t, context = (torch.rand(size, device="cuda:1") for size in ((2, 4, 8, 8), (2,), (2, 77, CONTEXT)))
        with told(model, "model_sampling", unet, ResidualBlocks(), latents, index):
            assert model.apply_model(x, t, c_crossattn=context).device == torch.device("cuda:1")
