"""What a run has to say besides its picture: one line for each thing, in the log and on the node."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from comfy_execution.utils import get_executing_context

from ...asyndm_core.clock import Clock
from ...asyndm_core.regions import Plan, Region, TimestepMap
from ...asyndm_core.run import greatest_lag
from .browser import waiting_browser

EVENT = "asyndm.notice"

log = logging.getLogger("asyndm")


class Execution:
    """One execution of a node by ComfyUI, in which one or more runs sample. said: what its nodes have been told."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.said: set[tuple[str | None, str]] = set()
        self.sampled: list[tuple[str | None, tuple[int, ...]]] = []


_EXECUTION: ContextVar[Execution | None] = ContextVar("asyndm_execution", default=None)


def this_execution() -> Execution:
    """The execution that goes on; outside of ComfyUI's executor every run has one of its own."""
    context, known = get_executing_context(), _EXECUTION.get()
    if known is None or context is None or known.context != context:
        known = Execution(context)
        _EXECUTION.set(known)
    return known


class Notices:
    """Says a line once in a run, and once for all runs of one execution of a sampler's node (tiles, details).

    node: the id of the node that shows it, or None.
    """

    def __init__(self, node: str | None = None) -> None:
        self._node, self._execution = node, this_execution()

    def __call__(self, text: str) -> None:
        """Say a sentence."""
        if (self._node, text) in self._execution.said:
            return
        self._execution.said.add((self._node, text))
        log.warning("AsynDM: %s", text)
        browser = waiting_browser()
        if browser is not None and self._node is not None:
            browser.send(EVENT, {"node": self._node, "prompt": browser.prompt, "text": text})

    def sampled_before(self, size: Sequence[int]) -> bool:
        """Whether an earlier run of this execution sampled latents of this size with the same map."""
        run = (self._node, tuple(size))
        before = run in self._execution.sampled
        self._execution.sampled.append(run)
        return before


def say_of_masks(say: Notices, timestep_map: TimestepMap, plan: Plan, height: int, width: int) -> None:
    """What is probably a slip in the painted masks of a run on latents of (height, width).

    Any size of mask is right, but not proportions that differ by more than a latent pixel. Nor is an empty one, such as
    Load Image gives for a picture without transparency, or one that tiles are given whole.
    """
    layers = [layer for layer in timestep_map.chain if layer.regions.mask is not None and layer.mode == "asynchronous"]
    masks = [layer.regions.mask for layer in layers]
    used = [mask for mask in masks if mask.any()]
    if len(used) < len(masks):
        say(
            "The painted mask of Cross-Attention Mask is empty, so no pixel lags by it. (Load Image gives an empty mask for a "
            "picture without transparency.) Paint the region, or leave the input mask unconnected."
        )
    if plan.idle or not used:
        return
    sizes = {tuple(mask.shape[-2:]) for mask in used}
    stretched = [f"{w} x {h}" for h, w in sorted(sizes) if abs(h * width - w * height) > max(h, w)]
    if stretched:
        say(
            f"The painted mask of {' and '.join(stretched)} (width x height) has not the proportions of the latents, {width} x "
            f"{height}: it is stretched over the whole picture. Paint it on a picture of the same shape."
        )
    if say.sampled_before((height, width)):
        say(
            "The sampler's node samples several times, and the whole painted mask is laid over the latents each time. If these "
            "are tiles or details of a picture, the mask is not where it was painted: follow words instead, or sample the "
            "picture in one piece."
        )


def say_of_length(say: Notices, plan: Plan, clock: Clock, ahead: bool) -> None:
    """That a run is too short for its pixels to be a whole step apart, and what makes them so.

    clock: of the run, on the CPU. ahead: whether there are pixels that the plan's lead is for: where these are a step ahead,
    the regions' own lag is not all there is.
    """
    steps, first = clock.steps, -1 if plan.paper else 0
    if ahead:
        if plan.lead * steps < 1:
            say(
                f"In {_count(steps)}, lead {plan.lead:g} is {plan.lead * steps:.2g} of a step: nothing runs a whole one ahead. "
                f"Set lead of Asynchronous Timestep Map to {math.ceil(100 / steps) / 100:g} or more."
            )
        return
    if not (plan.lags and plan.level):
        return
    if steps - first <= 2:
        say(
            f"A run of {_count(steps)} is too short for regions to lag: it is the stock sampler's. Use at least 3 steps; a "
            "good number is 20 or more."
        )
        return
    lag, region = max(((greatest_lag(clock, each), each) for each in plan.regions if each.lags), key=lambda pair: pair[0])
    if lag < A_STEP:
        curves = dict.fromkeys((region.curve, "piecewise linear"))
        enough = {curve: strength for curve in curves if (strength := _least_strength(clock, curve)) is not None}
        named = [f"{strength:g} on curve {curve}" for curve, strength in enough.items()]
        say(
            f"In {_count(steps)}, regions are behind by {lag:.2f} of a step at the most (strength {region.strength:g} on curve "
            f"{region.curve}): nothing waits for a whole one. In Asynchronous Timestep Map set strength, or the numbers of the "
            f"targets, to {', or to '.join(named)}."
        )


A_STEP = 0.999
"""A whole step, but for rounding."""


def _least_strength(clock: Clock, curve: str) -> float | None:
    """The least strength, in twentieths, with which a region on a curve lags by a whole step; None: there is none."""
    strengths = (n / 20 for n in range(1, 21))
    return next((k for k in strengths if greatest_lag(clock, Region("", curve, k)) >= A_STEP), None)


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def say_of_crowding(say: Notices, share: float) -> None:
    """That hardly anything runs ahead."""
    say(
        f"Only {100 * share:.1f} % of the picture can run ahead: the regions hold back the rest, so they wait for nothing and "
        "the result is nearly that of mode concave. Name fewer targets, raise threshold of Cross-Attention Mask, or paint a "
        "smaller mask."
    )
