"""ComfyUI's samplers and guiders, told by identity: what is another pack's, whatever its name, does work of its own."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import comfy.extra_samplers.uni_pc
import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ...asyndm_core.errors import AsynDMError
from ...asyndm_core.samplers import SAMPLERS, Sampler, UnsupportedSampler, find_sampler
from .origin import described, undecorated

OWN_MODULES = (k_diffusion, comfy.samplers, comfy.extra_samplers.uni_pc)
"""Where the functions of ComfyUI's samplers are."""


class UnsupportedGuider(AsynDMError):  # noqa: N818 (as UnsupportedSampler)
    """A guider that cannot be asked for predictions as ComfyUI's can."""


def own_name(function: Any) -> str | None:
    """ComfyUI's name of a sampler function that is ComfyUI's own; None for every other function, whatever its name.

    A function that decorates or calls one of them is not one of them.
    """
    function = undecorated(function)
    if not isinstance(function, types.FunctionType) or all(function.__globals__ is not vars(m) for m in OWN_MODULES):
        return None
    return function.__code__.co_name.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")


def sampler_of(ksampler: Any, eta: float | None, say: Callable[[str], None], for_all: Callable | None = None) -> Sampler:
    """The per-pixel formula of a ComfyUI SAMPLER with its options; ``ddim`` where ``eta`` is given.

    for_all: the method ``KSAMPLER.sample`` outside of any sampling; where a pack has replaced it for everyone, ``say`` is
    told so. Raises UnsupportedSampler for a sampler that has no formula or is not ComfyUI's, ValueError for an option that
    has no per-pixel form.
    """
    if not isinstance(ksampler, comfy.samplers.KSAMPLER):
        raise _foreign(ksampler)
    sample = getattr(ksampler.sample, "__func__", ksampler.sample)
    if getattr(sample, "__globals__", None) is not vars(comfy.samplers):
        if sample is not for_all:
            raise _foreign(sample)
        say(f"All sampling goes through {described(sample)}; what it does besides ComfyUI's is left out.")
    if eta is not None:
        return find_sampler("ddim").with_options(eta=eta)
    function, options = ksampler.sampler_function, dict(ksampler.extra_options)
    while type(function) is functools.partial and not function.args:  # nothing but options
        function, options = function.func, {**function.keywords, **options}
    name = own_name(function)
    if name is None:
        raise _foreign(function, named=True)
    if options.get("s_churn", 1) == 0:
        options = {key: value for key, value in options.items() if key not in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    return find_sampler(name).with_options(**options)


def _foreign(thing: Any, named: bool = False) -> UnsupportedSampler:
    """What is said of a sampler that is not ComfyUI's own. named: it is another pack's function by the name of a sampler.

    Packs that do so mostly do it for the samplers whose noise is a tree.
    """
    plain = ", ".join(sorted(name for name, sampler in SAMPLERS.items() if not sampler.noise.startswith("brownian")))
    other = (
        "Choose another sampler_name in that node (packs that wrap ComfyUI's samplers mostly wrap those with sde only; "
        f"{plain} usually come as they are), or use"
    )
    return UnsupportedSampler(
        f"The sampler is {described(thing)}, not one of ComfyUI's own: AsynDM samples in its place, and what it does besides "
        f"would be lost. {other if named else 'Use'} a sampler node of ComfyUI, or bypass Apply AsynDM for this one."
    )


def check_guider(guider: Any) -> None:
    """UnsupportedGuider, with its name, for an object that has not what ComfyUI's CFGGuider has within its sampling."""
    missing = [name for name in ("inner_model", "conds", "original_conds") if not hasattr(guider, name)]
    if missing or not callable(guider):
        raise UnsupportedGuider(
            f"The guider is {described(guider)}, which is not made like ComfyUI's CFGGuider (it has no "
            f"{', '.join(missing) or '__call__'}). Use a guider of ComfyUI, or bypass Apply AsynDM for this sampler."
        )


def conds_of(guider: Any) -> list[dict]:
    """All conds of a guider; none of an object that has not any, which ``check_guider`` refuses."""
    return [cond for group in getattr(guider, "conds", {}).values() for cond in group]


def positive_of(guider: Any) -> list[dict]:
    """All conds of a guider but the negative's."""
    return [cond for name, group in guider.conds.items() if name != "negative" for cond in group]


def check_prediction(guider: Any, denoised: Any, x: Tensor) -> None:
    """UnsupportedGuider, with its name, where a guider's prediction is not latents like ``x``."""
    if isinstance(denoised, Tensor) and denoised.shape == x.shape:
        return
    got = f"latents of {tuple(denoised.shape)}" if isinstance(denoised, Tensor) else f"a {type(denoised).__name__}"
    predict = getattr(guider, "predict_noise", guider)
    raise UnsupportedGuider(
        f"The guider predicts with {described(predict)}, which gives {got} where latents of {tuple(x.shape)} are expected. Use "
        "a guider of ComfyUI, or bypass Apply AsynDM for this sampler."
    )
