"""The arms of the comparison: ways to sample the same prompts from the same seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from asyndm_core.curves import CURVES, Curve, Strength, Track
from asyndm_core.regions import Regions, Target, TimestepMap
from demo.sample import Settings

from .readings import Reading

HELD, CAUGHT_UP = 0.3, 0.6
"""Shares of the schedule: until where ``at_once`` keeps its lag, and where it has none any more."""


def at_once(state: Tensor, rest: int, strength: Strength, track: Track) -> Tensor:
    """A curve that stands still until it lags by a fifth of the schedule times ``strength``, and has caught up early.

    That is 3 of 20 steps with strength 0.75, all of them until step 6, none from step 12 on.
    """
    gone = 1 - (rest - 1) / track.intervals
    most = 0.2 * torch.as_tensor(strength) * min(1.0, max(0.0, (CAUGHT_UP - gone) / (CAUGHT_UP - HELD)))
    return torch.minimum(state, track.end + track.unit * (rest - 1 + track.intervals * most.clamp(max=gone)))


@dataclass(frozen=True)
class Arm:
    """One way to sample.

    name: in tables and files. timestep_map: its targets are filled in per prompt. curve: in the place of its curve.
    strengths: of a prompt's first thing and its second, None for the map's. painted: where the regions are painted, instead
    of following the words: where the scene's drawing has its things ("drawn"), or where the picture of the arm ``compare``
    shows some ("seen"). reading: how regions are read from attention. peer: the ComfyUI node that patches the model ("pag",
    "freeu"), or None. compare: the arm to compare with, None for the first of all.
    """

    name: str
    timestep_map: TimestepMap = field(default_factory=lambda: TimestepMap(Regions(), mode="synchronous"))
    settings: Settings = field(default_factory=Settings)
    strengths: tuple[float, float] | None = None
    painted: Literal["no", "drawn", "seen"] = "no"
    reading: Reading = field(default_factory=Reading)
    curve: Curve | None = None
    peer: str | None = None
    compare: str | None = "synchronous"

    @property
    def of_unet(self) -> bool:
        """Whether only a UNet has it: others' patches of a UNet's layers, and a choice among its layers by their size."""
        return self.peer is not None or self.reading.factor is not None

    @property
    def calls(self) -> int:
        """Evaluations of the model, in units of one with CFG."""
        passes = 2 if self.timestep_map.regions.update == "fixed" else 1
        return self.settings.steps * passes

    def targets(self, count: int) -> tuple[Target, ...]:
        """Placeholders for the nouns of a prompt with ``count`` groups."""
        return tuple(Target(f"noun {n + 1}", self.strengths[n] if self.strengths else None) for n in range(count))


SYNCHRONOUS = Arm("synchronous", compare=None)
ASYNCHRONOUS = Arm("asynchronous", TimestepMap(Regions()))
"""With the defaults of the nodes."""

ARMS = (
    SYNCHRONOUS,
    ASYNCHRONOUS,
    Arm("concave", TimestepMap(Regions(), mode="concave")),
    Arm("fixed regions", TimestepMap(Regions(update="fixed"))),
    Arm("drawn regions", TimestepMap(Regions()), painted="drawn"),
    Arm("seen regions", TimestepMap(Regions()), painted="seen"),
    Arm("threshold 2", TimestepMap(Regions(threshold=2.0))),
    Arm("lag at once", TimestepMap(Regions(), strength=0.75), curve=at_once),
    Arm("things ahead", TimestepMap(Regions(), strength=0.5), reading=Reading(inverse=True), curve=at_once),
    Arm("cfg 7", settings=Settings(cfg=7.0)),
    Arm("40 steps", settings=Settings(steps=40)),
    Arm("PAG", peer="pag"),
    Arm("FreeU", peer="freeu"),
)
"""The table. lag at once, things ahead: see ``at_once``; 3 steps for the things, or 2 for all the rest."""


def _pair(name: str, settings: Settings) -> list[Arm]:
    """Both ways with other settings, compared with each other."""
    plain = replace(SYNCHRONOUS, name=f"synchronous, {name}", settings=settings)
    return [plain, replace(ASYNCHRONOUS, name=f"asynchronous, {name}", settings=settings, compare=plain.name)]


def sweeps() -> dict[str, list[Arm]]:
    """Arms that differ in one setting, by the name of the setting."""

    def asynchronous(name: str, regions: Regions | None = None, reading: Reading | None = None, **changes: object) -> Arm:
        timestep_map = replace(ASYNCHRONOUS.timestep_map, regions=regions or Regions(), **changes)
        return replace(ASYNCHRONOUS, name=name, timestep_map=timestep_map, reading=reading or Reading())

    def ordered(first: float, second: float, curve: str = "quadratic", shares: str = "none") -> Arm:
        name = f"order {first:g}, {second:g}" + ("" if curve == "quadratic" else f", {curve}")
        reading = None if shares == "none" else Reading(shares=shares)
        return replace(asynchronous(name, reading=reading, curve=curve), strengths=(first, second))

    soft = Regions(feather=1)
    return {
        "strength": [asynchronous(f"strength {k / 10:g}", strength=k / 10) for k in range(1, 11)],
        "curve": [
            *(asynchronous(f"curve {curve}", curve=curve) for curve in CURVES if curve != "linear"),
            asynchronous("curve piecewise linear, strength 0.9", curve="piecewise linear", strength=0.9),
        ],
        "threshold": [asynchronous(f"threshold {t:g}", Regions(threshold=t)) for t in (0.7, 1.0, 1.5, 2.0, 2.5)],
        "steps": [arm for n in (10, 50) for arm in _pair(f"{n} steps", Settings(steps=n))],
        "cfg": [arm for cfg in (3.0, 7.0) for arm in _pair(f"cfg {cfg:g}", Settings(cfg=cfg))],
        "sampler": _pair("ddim, eta 1", Settings(sampler="ddim", eta=1.0)) + _pair("dpmpp_2m", Settings(sampler="dpmpp_2m")),
        "layers": [asynchronous("layers of full size", reading=Reading(factor=1))],
        "memory": [
            asynchronous("memory 0.5", reading=Reading(memory=0.5)),
            asynchronous("memory 0.8", reading=Reading(memory=0.8)),
            asynchronous("memory: mean", reading=Reading(memory=1)),
            asynchronous("memory: mean, threshold 1.5", Regions(threshold=1.5), Reading(memory=1)),
        ],
        "shares": [
            asynchronous("shares of the targets", reading=Reading(shares="targets")),
            asynchronous("shares of the prompt", reading=Reading(shares="prompt")),
            asynchronous("shares of the prompt, threshold 1.5", Regions(threshold=1.5), Reading(shares="prompt")),
        ],
        "window": [
            asynchronous("window from step 4", reading=Reading(trusted=(4, 1000))),
            asynchronous("window to step 10", reading=Reading(trusted=(0, 10))),
        ],
        "soft": [
            asynchronous("soft, strength 0.7", soft, Reading(soft=True)),
            asynchronous("soft, strength 1", soft, Reading(soft=True), strength=1.0),
        ],
        "automatic strength": [
            asynchronous(f"automatic: {kind}", soft, Reading(automatic=kind), strength=1.0)
            for kind in ("small", "sure", "neglected")
        ],
        "order": [
            ordered(0.9, 0.3),
            ordered(0.3, 0.9),
            ordered(0.8, 0.0),
            ordered(0.0, 0.8),
            ordered(0.0, 0.9, "piecewise linear"),
            replace(ordered(0.0, 0.9, "piecewise linear", "targets"), name="order 0, 0.9, piecewise linear, shares"),
        ],
    }  # fmt: skip
