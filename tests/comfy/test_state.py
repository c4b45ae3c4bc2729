"""Nothing is left behind: after a run, an error, an interrupt, the model samples as before, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.nodes.comfy.host import WRAPPER_KEY
from asyndm_pack.nodes.comfy.sampling import Options, apply
from tiny import (
    FOX_AND_HAT,
    LEFT,
    asyn,
    difference,
    hooks_of,
    ksampler,
    make_model,
    model,
    painted,
    same,
    untouched,
)
from torch import Tensor

WrappersMP = comfy.patcher_extension.WrappersMP


class ModelError(Exception):
    """What a model raises in a test."""


def raising_at(patched: Any, call: int, error: Callable[[], Any]) -> Any:
    """A hook in the middle of the UNet that does ``error`` at the model's call number ``call``; its handle."""
    calls = [0]

    def hook(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            error()

    return patched.model.diffusion_model.middle_block[0].register_forward_hook(hook)


def fail(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def interrupt() -> None:
    comfy.model_management.interrupt_current_processing(True)
    comfy.model_management.throw_exception_if_processing_interrupted()


ERRORS: dict[str, tuple[Callable[[], None], type[BaseException]]] = {
    "an exception": (fail(ModelError("in the model")), ModelError),
    "out of memory": (fail(RuntimeError("CUDA out of memory")), RuntimeError),
    "an interrupt": (interrupt, comfy.model_management.InterruptProcessingException),
}


def test_after_a_run() -> None:
    with untouched(model()):
        ksampler(asyn(model()))
        ksampler(asyn(model(), painted(LEFT)), "dpmpp_2m_sde")
        ksampler(asyn(model(), Regions((Target("fox"),), update="fixed"), on_step=lambda s: None))


@pytest.mark.parametrize("name", ERRORS)
def test_after(name: str) -> None:
    """Raised at the third call of the model, where the pixels are at different sigmas."""
    error, kind = ERRORS[name]
    apart: list[int] = []
    with untouched(model()):
        handle = raising_at(model(), 3, error)
        try:
            with pytest.raises(kind):
                ksampler(asyn(model(), painted(LEFT), on_step=lambda s: apart.append(s.sigma.unique().numel())), steps=6)
        finally:
            handle.remove()
            comfy.model_management.interrupt_current_processing(False)
    assert len(apart) == 2


@pytest.mark.parametrize("name", ERRORS)
def test_hooks_are_gone_as_soon_as_it_is_raised(name: str) -> None:
    """Not only after the sampler: whoever catches the error finds the model as it was."""
    error, kind = ERRORS[name]
    unet = model().model.diffusion_model
    handle = raising_at(model(), 3, error)
    inside: list[int] = []
    watcher = unet.register_forward_hook(lambda *args: inside.append(len(hooks_of(unet))))
    try:
        with pytest.raises(kind):
            ksampler(asyn(model(), painted(LEFT)), steps=6)
        assert len(inside) == 2
        assert inside[1] > 4
        assert len(hooks_of(unet)) == 2  # those of this test
    finally:
        handle.remove()
        watcher.remove()
        comfy.model_management.interrupt_current_processing(False)


def test_an_error_of_on_step() -> None:
    with untouched(model()), pytest.raises(ModelError):
        ksampler(asyn(model(), on_step=lambda s: fail(ModelError("in on_step"))()))


def test_the_same_seed_twice() -> None:
    patched = asyn(model())
    first = ksampler(patched, "euler_ancestral")
    assert same(ksampler(patched, "euler_ancestral"), first)
    assert difference(ksampler(patched, "euler_ancestral", seed=8), first) > 0.01


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_3m_sde", "res_multistep"])
def test_a_step_leaves_nothing_for_the_next(sampler: str) -> None:
    """No growth over steps: as many tensors live in step 6 as in step 14, of as many bytes but for the distinct timesteps.

    Noise of one generator here: ComfyUI's tree of noise (``sde`` samplers) keeps what it has drawn, in stock runs too.
    """
    alive: dict[int, tuple[int, int]] = {}

    def tensors() -> dict[int, Tensor]:
        gc.collect()
        return {id(found): found for found in gc.get_objects() if issubclass(type(found), Tensor)}

    before = tensors()  # what other tests left is none of this run's; some of it (of compiled models) has no size at all

    def count(snapshot: Any) -> None:
        if snapshot.step in (5, 13):  # a walk over every object takes long
            made = [tensor for key, tensor in tensors().items() if key not in before]
            alive[snapshot.step] = (len(made), sum(tensor.nbytes for tensor in made))

    with patch("comfy.k_diffusion.sampling.BrownianTreeNoiseSampler", lambda x, *_, **__: lambda *_: torch.randn_like(x)):
        ksampler(asyn(model(), on_step=count), sampler, steps=18)
    assert alive[5][0] == alive[13][0]
    assert alive[13][1] - alive[5][1] < 4 * 1024


def test_two_maps_one_after_the_other() -> None:
    left, words = asyn(model(), painted(LEFT)), asyn(model())
    first, second = ksampler(left), ksampler(words)
    assert difference(first, second) > 1e-3
    assert same(ksampler(left), first)
    assert same(ksampler(words), second)
    assert same(ksampler(words), second)


def test_applied_twice_the_last_counts_and_runs_once() -> None:
    steps: list[int] = []
    once = asyn(model(), on_step=lambda s: steps.append(s.step))
    twice = apply(asyn(model(), painted(LEFT)), TimestepMap(FOX_AND_HAT), Options(on_step=lambda s: steps.append(s.step)))
    picture = ksampler(once)
    assert steps == [0, 1, 2, 3]
    steps.clear()
    assert same(ksampler(twice), picture)
    assert steps == [0, 1, 2, 3]
    assert len(twice.get_wrappers(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY)) == 1


def test_an_applied_model_can_be_cloned() -> None:
    """As every node between ours and the sampler does (ComfyUI 0.8.0 copies model_options deeply)."""
    patched = asyn(model())
    further = patched.clone().clone()
    further.set_model_unet_function_wrapper(lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]))
    assert same(ksampler(further), ksampler(patched))


def test_weight_patches_stay_in_force() -> None:
    """LoRA-like patches, on the very layers that are hooked too; the model is its own again without them."""
    fresh = make_model()
    unet = fresh.model.state_dict()
    names = [n for n in unet if n.endswith(("emb_layers.1.weight", "attn2.to_q.weight", "attn2.to_k.weight", "proj_in.weight"))]
    assert len(names) > 20
    generator = torch.Generator().manual_seed(3)
    lora = fresh.clone()
    loaded = lora.add_patches({n: (0.05 * torch.randn(unet[n].shape, generator=generator),) for n in names}, 1.0)
    assert set(loaded) == set(names)
    merged = make_model()
    generator = torch.Generator().manual_seed(3)
    for n in names:
        merged.model.get_parameter(n).data += 0.05 * torch.randn(unet[n].shape, generator=generator)

    before = ksampler(asyn(fresh))
    patched = ksampler(asyn(lora))
    assert difference(patched, before) > 1e-2
    assert difference(patched, ksampler(asyn(merged))) < 1e-4
    assert same(ksampler(asyn(fresh)), before)


def test_other_packs_wrappers_are_called() -> None:
    called: list[str] = []
    patched = model().clone()

    def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        called.append("apply_model")
        return 1.01 * executor(*args, **kwargs)

    def unet_function(apply_model: Callable, args: dict) -> Tensor:
        called.append("unet_function")
        return apply_model(args["input"], args["timestep"], **args["c"])

    def sampler_sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        called.append("sampler_sample")
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another", apply_model)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "another", sampler_sample)
    patched.set_model_unet_function_wrapper(unet_function)
    stock = ksampler(patched)
    per_run = list(called)
    assert per_run.count("apply_model") == per_run.count("unet_function") == 4
    assert per_run.count("sampler_sample") == 1
    called.clear()
    assert same(ksampler(asyn(patched, mode="synchronous", on_step=lambda s: None)), stock)
    assert called == per_run
    called.clear()
    lagging = ksampler(asyn(patched))
    assert called == per_run
    assert difference(lagging, ksampler(asyn(model()))) > 1e-3
    with untouched(patched):
        ksampler(asyn(patched, painted(LEFT)))


def test_wrappers_behind_ours_are_called() -> None:
    """Whatever the order of the nodes: what another pack puts around the sampler is around ours."""

    def quieter(executor: Any, guider: Any, sigmas: Tensor, more: dict, callback: Any, noise: Tensor, *args: Any) -> Tensor:
        return executor(guider, sigmas, more, callback, 0.9 * noise, *args)

    before, behind = model().clone(), asyn(model())
    for patched in (before, behind):
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "another", quieter)
    assert same(ksampler(behind), ksampler(asyn(before)))
    assert difference(ksampler(behind), ksampler(asyn(model()))) > 1e-3
