"""The arms of the comparison: ways to sample the same prompts from the same seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from asyndm_core.curves import CURVES
from asyndm_core.regions import Regions, Target, TimestepMap
from demo.sample import Settings


@dataclass(frozen=True)
class Arm:
    """One way to sample.

    name: in tables and files. timestep_map: its targets are filled in per prompt. drawn: whether the regions are painted
    where the scene's drawing has its things, instead of following the words. peer: the ComfyUI node that patches the
    model ("pag", "freeu"), or None. compare: the arm to compare with, None for the first of all.
    """

    name: str
    timestep_map: TimestepMap = field(default_factory=lambda: TimestepMap(Regions(), mode="synchronous"))
    settings: Settings = field(default_factory=Settings)
    drawn: bool = False
    peer: str | None = None
    compare: str | None = "synchronous"

    @property
    def calls(self) -> int:
        """Evaluations of the model, in units of one with CFG."""
        passes = 2 if self.timestep_map.regions.update == "fixed" else 1
        return self.settings.steps * passes


def targets(count: int) -> tuple[Target, ...]:
    """Placeholders for the nouns of a prompt with ``count`` groups."""
    return tuple(Target(f"noun {n + 1}") for n in range(count))


SYNCHRONOUS = Arm("synchronous", compare=None)
ASYNCHRONOUS = Arm("asynchronous", TimestepMap(Regions()))
"""With the defaults of the nodes."""

ARMS = (
    SYNCHRONOUS,
    ASYNCHRONOUS,
    Arm("concave", TimestepMap(Regions(), mode="concave")),
    Arm("fixed regions", TimestepMap(Regions(update="fixed"))),
    Arm("drawn regions", TimestepMap(Regions()), drawn=True),
    Arm("cfg 7", settings=Settings(cfg=7.0)),
    Arm("40 steps", settings=Settings(steps=40)),
    Arm("PAG", peer="pag"),
    Arm("FreeU", peer="freeu"),
)
"""The table in the README."""


def _pair(name: str, settings: Settings) -> list[Arm]:
    """Both ways with other settings, compared with each other."""
    plain = replace(SYNCHRONOUS, name=f"synchronous, {name}", settings=settings)
    return [plain, replace(ASYNCHRONOUS, name=f"asynchronous, {name}", settings=settings, compare=plain.name)]


def sweeps() -> dict[str, list[Arm]]:
    """Arms that differ in one setting, by the name of the setting."""

    def asynchronous(name: str, regions: Regions | None = None, **changes: object) -> Arm:
        return Arm(name, replace(ASYNCHRONOUS.timestep_map, regions=regions or Regions(), **changes))

    strengths = [asynchronous(f"strength {k / 10:g}", strength=k / 10) for k in range(1, 11)]
    curves = [asynchronous(f"curve {curve}", curve=curve) for curve in CURVES if curve != "linear"]
    thresholds = [asynchronous(f"threshold {t:g}", Regions(threshold=t)) for t in (0.7, 1.0, 1.5, 2.5)]
    steps = [arm for n in (10, 50) for arm in _pair(f"{n} steps", Settings(steps=n))]
    cfgs = [arm for cfg in (3.0, 7.0) for arm in _pair(f"cfg {cfg:g}", Settings(cfg=cfg))]
    samplers = _pair("ddim, eta 1", Settings(sampler="ddim", eta=1.0)) + _pair("dpmpp_2m", Settings(sampler="dpmpp_2m"))
    return {
        "strength": strengths, "curve": curves, "threshold": thresholds, "steps": steps, "cfg": cfgs, "sampler": samplers,
    }  # fmt: skip
