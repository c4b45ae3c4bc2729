"""The ways to inpaint that are compared: known pixels noised, clean or ahead; edits without a mask; and what others do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from asyndm_core.clock import Clock
from asyndm_core.regions import Plan, Regions, Target, TimestepMap
from asyndm_core.run import Ahead, known_progress
from demo.config import FACTOR
from demo.model import Parts
from demo.sample import Inpaint, Settings

from .cases import Case
from .peers import DifferentialHost, Repeated, soft_edge

LEADS = (0.1, 0.2, 0.3)
"""Shares of the schedule."""
GREY = 128
RIMS = ((0.3, 0.2), (0.3, 0.25), (0.35, 0.2), (0.5, 0.2))
"""How much of the outermost latent pixels of a hole is drawn (0.5: an edge that is soft over one of them), and a lead."""
MANY = 6
"""LanPaint's evaluations of the model for each step: its five inner ones and the step's own."""


def encoded(model: Parts, pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 pictures -> their latents, on the model's device."""
    images = torch.from_numpy(np.stack(pictures)).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        return model.vae.encode(images.to(model.text_encoder.device))


def holes(cases: Sequence[Case]) -> Tensor:
    """(B, 128, 128): 1 in the holes."""
    return torch.from_numpy(np.stack([case.mask() for case in cases])).float()


def latent_holes(cases: Sequence[Case]) -> Tensor:
    """(B, 1, 16, 16): the same on the grid of the latents."""
    return holes(cases)[:, None, ::FACTOR, ::FACTOR]


def drawings(model: Parts, cases: Sequence[Case]) -> Inpaint:
    """The drawings with their holes, as Set Latent Noise Mask gives them."""
    return Inpaint(encoded(model, [case.drawing for case in cases]), latent_holes(cases))


def whole_drawings(model: Parts, cases: Sequence[Case]) -> Inpaint:
    """The drawings, all of which may change: nobody says where."""
    return drawings(model, cases)._replace(mask=torch.ones_like(latent_holes(cases)))


def greyed(model: Parts, cases: Sequence[Case]) -> Inpaint:
    """As VAE Encode (for Inpainting) gives them: grey in the hole before they are encoded; the hole grown by 6 / 2 pixels.

    On the grid of the latents that is the hole: ComfyUI looks in the middle between two samples.
    """
    pictures = [np.where(case.mask()[..., None], np.uint8(GREY), case.drawing) for case in cases]
    grown = F.max_pool2d(holes(cases)[:, None], 5, stride=1, padding=2)
    return Inpaint(encoded(model, pictures), F.interpolate(grown, scale_factor=1 / FACTOR, mode="bilinear"))


def grown(model: Parts, cases: Sequence[Case]) -> Inpaint:
    """The drawings with holes that are a latent pixel wider on every side."""
    given = drawings(model, cases)
    return given._replace(mask=F.max_pool2d(given.mask, 3, stride=1, padding=1))


def soft(model: Parts, cases: Sequence[Case]) -> Inpaint:
    """The drawings with soft edges around their holes, for Differential Diffusion."""
    return drawings(model, cases)._replace(mask=soft_edge(latent_holes(cases)), around=DifferentialHost)


def rimmed(model: Parts, cases: Sequence[Case], rim: float) -> Inpaint:
    """The drawings with holes whose outermost latent pixels are drawn by ``rim`` only, for Differential Diffusion."""
    given = drawings(model, cases)
    core = -F.max_pool2d(-F.pad(given.mask, (1, 1, 1, 1), value=1.0), 3, stride=1)
    return given._replace(mask=torch.lerp(core, given.mask, rim), around=DifferentialHost)


def falling(clock: Clock, plan: Plan, first: float = 0.4, last: float = 0.6) -> list[float]:
    """The plan's lead until ``first`` of the schedule, then less and less, none from ``last`` on. See ``run.Ahead``."""
    left = lambda step: min(1.0, max(0.0, (last - step / clock.steps) / (last - first)))  # noqa: E731
    even = known_progress(clock, replace(plan, lead=0.0))
    return [min(q + plan.lead * left(step) * clock.steps, clock.steps) for step, q in enumerate(even)]


@dataclass(frozen=True)
class Arm:
    """One way to inpaint.

    timestep_map: its target stands for the case's. painted: its region is the hole. what: said of it in the table. ahead:
    the progress of known pixels, see ``run.Ahead``. given: what it starts from. changed: its settings, from the common ones.
    """

    name: str
    timestep_map: TimestepMap
    painted: bool = False
    what: str = ""
    ahead: Ahead = known_progress
    given: Callable[[Parts, Sequence[Case]], Inpaint] = drawings
    changed: Callable[[Settings], Settings] = lambda settings: settings

    @property
    def title(self) -> str:
        """Its name, and what it is."""
        return f"{self.name} ({self.what})" if self.what else self.name


_WORD = TimestepMap(Regions((Target("the thing"),)))
_SYNCHRONOUS = replace(_WORD, strength=0.0)


def _arms() -> tuple[Arm, ...]:
    ways = (
        Arm("synchronous", _SYNCHRONOUS),
        Arm("asynchronous", _WORD),
        Arm("asynchronous, the hole painted", _WORD, painted=True),
    )
    kinds = [("noised", 0.0), ("clean", 0.0), *(("ahead", lead) for lead in LEADS)]
    first, *others = (
        replace(
            way, name=f"{way.name}, {how}{f' {lead:g}' if lead else ''}",
            timestep_map=replace(way.timestep_map, known_pixels=how, lead=lead),
        )
        for how, lead in kinds
        for way in ways
        if not (way.painted and how == "clean")  # the synchronous one over again: the hole is all that is noisy
    )  # fmt: skip
    return (replace(first, what="ComfyUI's inpainting, with Set Latent Noise Mask"), *others)


ARMS = _arms()
"""The first is ComfyUI's inpainting, which the others are compared with."""


def _edits() -> tuple[Arm, ...]:
    word = TimestepMap(Regions((Target("the thing"),), grow=1), strength=0.0)
    shares = [(0.7, 0.7), (0.85, 0.85), (0.7, 0.3), (0.85, 0.3), (1.0, 0.3), (1.0, 0.0)]
    first, *others = (
        Arm(
            f"region {region:g}, background {background:g}{f', ahead {lead:g}' if lead else ''}",
            replace(word, region_denoise=region, background_denoise=background, known_pixels=how, lead=lead),
            given=whole_drawings,
        )
        for region, background in shares
        for how, lead in [("noised", 0.0), *(("ahead", lead) for lead in LEADS)]
        if not (region == background and lead)  # level: there is nothing to lead
    )
    return (replace(first, what="ComfyUI's image to image, denoise 0.7"), *others)


EDITS = _edits()
"""Of task "edit". The first is ComfyUI's image to image."""


def _more_steps(settings: Settings, times: int) -> Settings:
    return replace(settings, steps=times * settings.steps)


PEERS = (
    Arm("VAE Encode (for Inpainting)", _SYNCHRONOUS, what="ComfyUI's, grey in the hole", given=greyed),
    Arm("Differential Diffusion", _SYNCHRONOUS, what="ComfyUI's, edge soft over 2 latent pixels", given=soft),
    Arm(f"{MANY} times the steps", _SYNCHRONOUS, what="ComfyUI's inpainting at the cost of LanPaint's 5 inner steps",
        changed=partial(_more_steps, times=MANY)),
    Arm(f"resampled {MANY} times", _SYNCHRONOUS, what="RePaint's, each step, the same cost",
        changed=partial(Repeated.of, times=MANY)),
    *(Arm(f"{name}, ahead 0.2, falling", replace(word, known_pixels="ahead", lead=0.2), painted=painted,
          what="no lead in the last 40 % of the steps", ahead=falling)
      for name, word, painted in (("synchronous", _SYNCHRONOUS, False), ("asynchronous, the hole painted", _WORD, True))),
)  # fmt: skip
"""What others do, and leads that are not constant: for the tasks with a hole, where --peers or --arms asks for them."""


def _further() -> tuple[Arm, ...]:
    painted = replace(_WORD, known_pixels="ahead")
    ways = (("", {}), (", strength 1", {"strength": 1.0}), (", piecewise linear", {"curve": "piecewise linear"}))
    leads = tuple(
        Arm(f"asynchronous, the hole painted, ahead {lead:g}{said}", replace(painted, lead=lead, **changes), painted=True)
        for lead in (*LEADS, 0.4, 0.5)
        for said, changes in ways
        if said or lead not in LEADS
    )
    rims = tuple(
        Arm(f"Differential Diffusion, rim {rim:g}, the hole painted, ahead {lead:g}", replace(painted, lead=lead), True,
            what="edge soft within the hole", given=partial(rimmed, rim=rim))
        for rim, lead in RIMS
    )  # fmt: skip
    wider = tuple(
        Arm(f"{name}{said}", replace(_WORD, strength=0.7 if waits else 0.0, known_pixels=how, lead=lead), waits, given=given)
        for name, given in (("Differential Diffusion", soft), ("hole grown", grown))
        for said, waits, how, lead in (
            ("", False, "noised", 0.0),
            *((f", ahead {lead:g}", False, "ahead", lead) for lead in LEADS),
            *((f", the hole painted, ahead {lead:g}", True, "ahead", lead) for lead in LEADS),
        )
        if said or given is grown
    )
    return leads + rims + wider


FURTHER = _further()
"""Greater leads, holes that wait longer, soft and wider ones: where --arms asks for them."""
