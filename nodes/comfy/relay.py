"""One clock over several samplers: KSampler (Advanced) one after another, SplitSigmas, two experts.

ComfyUI gives each of them a part of the run's table of sigmas, and latents from one to the next. A part that the table goes
on after ends with latents whose pixels are all level with its last sigma, so they are right for whatever comes next. What the
run goes on from hangs on that very tensor beside them: the latents with every pixel at its own noise level, and its clock. It
stays there as long as the latents are not changed, in ComfyUI's cache too; a node that changes them makes another tensor, which
has no clock (or changes this one, which no longer is what the clock was left on), and the run begins anew from level pixels.

Of a clip with its sound, ComfyUI hands on parts of one tensor, and packs them into another one for the next sampler. There the
clock hangs on the memory of these parts, and is found by what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import comfy.model_management
import torch
from torch import Tensor

from ...asyndm_core.regions import Plan, TimestepMap
from ...asyndm_core.run import Pause
from .nested import check_placed

ATTRIBUTE = "asyndm_clock"
CLOSE = 1e-4
"""How far two tables may lie apart, relatively: they may have been computed on different devices."""


class Carried(NamedTuple):
    """What a part of a run leaves for the next. On the device of the latents that it hangs on.

    sigmas: the whole table of the run, (N + 1,). pause: what it goes on from; x is in the model's own space, a picture without
    a dimension of frames. plan: the run's. noise, latent: what it began with, as ComfyUI's samplers get them. share: see
    ``_drawn`` in sampling. kind: of latents, the class of their ``latent_format``.
    """

    sigmas: Tensor
    pause: Pause
    plan: Plan
    noise: Tensor
    latent: Tensor
    share: Tensor | None
    kind: type

    def misfit(self, sigmas: Tensor, plan: Plan, tokens: tuple[int, ...], kind: type) -> str | None:
        """Why a sampler can't go on from here with its own sigmas, plan, (B, *grid) of its tokens and latents; or None."""
        rest = self.sigmas[self.pause.step : self.pause.step + len(sigmas)]
        if kind is not self.kind or tokens != tuple(self.pause.now.state.shape):
            return "it belongs to another kind of model"
        if not _alike(sigmas, rest):
            return (
                f"it stands at sigma {float(self.sigmas[self.pause.step]):.4g}, and the sampler's sigmas, from "
                f"{float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}, do not follow it in the run's table (check steps, "
                "scheduler, start_at_step and end_at_step)"
            )
        if not plan.same_regions(self.plan):
            return "its timestep map has other regions (give both samplers the same map)"
        return None


@dataclass(frozen=True, eq=False)
class _Hanging:
    """What hangs on latents, and what these were."""

    carried: Carried
    samples: Tensor

    def fits(self, latents: Tensor) -> bool:
        """Whether latents are as these were."""
        same = (latents.shape, latents.dtype, latents.device) == (self.samples.shape, self.samples.dtype, self.samples.device)
        return same and torch.equal(latents, self.samples)

    @staticmethod
    def on(latents: Tensor, packed: bool) -> Carried | None:
        """What hangs on latents that are as they were, or None."""
        among = _ON_PACKED if packed else [getattr(latents, ATTRIBUTE, None)]
        return next((hanging.carried for hanging in among if hanging is not None and hanging.fits(latents)), None)

    def hang(self, latents: Tensor, packed: bool) -> None:
        """Hang it on latents; on the memory of packed ones, which are handed on in parts."""
        setattr(latents.untyped_storage() if packed else latents, ATTRIBUTE, self)
        if packed:
            _ON_PACKED.add(self)


_ON_PACKED: WeakSet[_Hanging] = WeakSet()
"""Where what hangs on packed latents is found. It keeps none of it: that is gone with the latents."""


class Course(NamedTuple):
    """The table of a run, (N + 1,); the steps of it that this sampler makes; what it goes on from, or None."""

    sigmas: Tensor
    part: range
    carried: Carried | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the table does, after this part."""
        return self.part.stop < len(self.sigmas) - 1


@dataclass
class Relay:
    """Between the wrappers around one sampling: what its latents bring, and what they are to take along."""

    brought: Carried | None
    left: Carried | None = None


_RELAY: ContextVar[Relay | None] = ContextVar("asyndm_relay", default=None)


def outer_sample(executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An OUTER_SAMPLE wrapper of ComfyUI: sees the latents as nodes hand them on."""
    packed = len(kwargs.get("latent_shapes") or ()) > 1
    if packed:
        check_placed(executor.class_obj)
        if noise.shape != latent_image.shape and not torch.count_nonzero(noise):
            noise = torch.zeros_like(latent_image)  # before 0.33, ComfyUI has it for the clip alone, without its sound
    relay = Relay(_Hanging.on(latent_image, packed))
    token = _RELAY.set(relay)
    try:
        samples = executor(noise, latent_image, *args, **kwargs)
    finally:
        _RELAY.reset(token)
    if relay.left is not None and isinstance(samples, Tensor):
        samples = _as_handed_on(samples)
        _Hanging(_moved(relay.left, samples.device), samples.clone()).hang(samples, packed)
    return samples


def leave(carried: Carried) -> None:
    """Hang it on the latents that the sampling under way ends with."""
    relay = _RELAY.get()
    if relay is not None:
        relay.left = carried


def course_of(
    sigmas: Tensor, noise: Tensor, timestep_map: TimestepMap, plan: Plan, tokens: tuple[int, ...], kind: type,
    say: Callable[[str], None],
) -> Course:  # fmt: skip
    """The course of a sampler that ComfyUI gives these sigmas and this noise (none: its latents come noisy).

    Where it can't go on with the clock of the latents, or its sigmas are no part of the map's table, ``say`` is told, and a run
    begins here. See ``Carried.misfit`` for the rest.
    """
    own, relay, table = Course(sigmas, range(max(len(sigmas) - 1, 0))), _RELAY.get(), timestep_map.table
    brought = None if relay is None else relay.brought
    if table is None and brought is None:
        return own
    noisy = not torch.count_nonzero(noise)
    if not noisy:
        brought = None
    if len(sigmas) < 2:
        if brought is not None:
            leave(brought)
        return own
    if brought is not None:
        brought = _moved(brought, sigmas.device)
        reason = brought.misfit(sigmas, plan, tokens, kind)
        if reason is None:
            step = brought.pause.step
            return Course(_with(brought.sigmas, step, sigmas), range(step, step + len(sigmas) - 1), brought)
        say(f"The clock of the sampler before can't go on: {reason}. Here all pixels begin level.")
    if table is None or (plan.idle and not (plan.clean or plan.lead)):
        return own
    place = _place(sigmas, table)
    if place is None:
        say(
            f"The sampler's sigmas, {len(sigmas) - 1} steps from {float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}, are no "
            "part of the table at the input sigmas of Asynchronous Timestep Map, so they have a clock of their own. Connect "
            "to it what is split, or for KSampler (Advanced) a BasicScheduler with the same model, scheduler and steps, and "
            "enable leftover noise in all but the last."
        )
        return own
    if noisy and place > 0 and brought is None:
        say(
            "The latents bring no clock to go on with: all pixels begin level here. The sampler before has no Apply AsynDM, or "
            "nothing lags in it, or a node between the two changes the latents."
        )
    return Course(_with(table[place:], 0, sigmas), own.part)


def _place(sigmas: Tensor, table: Tensor) -> int | None:
    """Where a sampler's sigmas begin in a table, or None where they are no part of it."""
    part, whole = sigmas.float().cpu(), table.float().cpu()
    return next((n for n in range(len(whole)) if _alike(part, whole[n : n + len(part)])), None)


def _alike(sigmas: Tensor, others: Tensor) -> bool:
    """Whether two tables are the same to rounding."""
    return sigmas.shape == others.shape and torch.allclose(sigmas, others, rtol=CLOSE, atol=CLOSE * CLOSE)


def _with(table: Tensor, place: int, sigmas: Tensor) -> Tensor:
    """The table with the sampler's own sigmas, to the last bit, from ``place`` on."""
    table = table.to(sigmas)
    return torch.cat([table[:place], sigmas, table[place + len(sigmas) :]])


def _as_handed_on(samples: Tensor) -> Tensor:
    """Latents as ComfyUI's nodes are about to make them, so that they hand on this tensor and no copy."""
    device = comfy.model_management.intermediate_device()
    dtype = getattr(comfy.model_management, "intermediate_dtype", None)  # before 0.33, there is none
    return samples.to(device=device, dtype=samples.dtype if dtype is None else dtype())


def _moved(value: Any, device: torch.device) -> Any:
    """The same on another device: tensors, and tuples of them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(each, device) for each in value))
    return value
