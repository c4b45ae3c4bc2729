"""The cases: a drawing of the demo world, a hole where one of its things stands, and a prompt for what comes there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from demo.config import FACTOR
from demo.scorer import read
from demo.world import COLOURS, KINDS, SIZE, Group, Scene, Thing, draw, sample_scene

TASKS = ("replace", "remove", "edit")
"""Another thing in the hole; none, and the prompt names the thing that is left; or as the first, but nobody says where."""
MARGIN = 4
"""Pixels between a thing's box and its hole, at least."""
RING = 8
"""Width in pixels of the ring around a hole."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Case:
    """One picture to inpaint.

    scene: what is to be seen afterwards. thing: what of it is to be in the hole, or None. hole: on the grid of the latents.
    drawing: uint8 (128, 128, 3), with the old thing in the hole. empty: the same with nothing in it.
    """

    scene: Scene
    thing: Group | None
    hole: Box
    drawing: np.ndarray
    empty: np.ndarray

    @property
    def target(self) -> str:
        """The word to follow: the thing in the hole, or else the other one."""
        return (self.thing or self.scene.groups[0]).noun

    def mask(self) -> np.ndarray:
        """(128, 128): true in the hole."""
        return in_box(self.hole)


def in_box(box: Box) -> np.ndarray:
    """(128, 128): true in the box, as far as it is in the picture."""
    left, top, right, bottom = (max(0, edge) for edge in box)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


def hole_of(thing: Thing) -> Box:
    """The thing's box with its margin, enlarged to whole latent pixels, within the picture."""
    left, right = _latent_edges(thing.x, thing.width)
    top, bottom = _latent_edges(thing.y, thing.height)
    return left, top, right, bottom


def _latent_edges(centre: float, size: float) -> tuple[int, int]:
    low = int((centre - size / 2 - MARGIN) // FACTOR) * FACTOR
    high = -int(-(centre + size / 2 + MARGIN) // FACTOR) * FACTOR
    return max(0, low), min(SIZE, high)


def choose_cases(task: str, count: int, seed: int) -> list[Case]:
    """``count`` cases of a task, the same for the same seed: scenes as in training, other things clear of the hole."""
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    while len(cases) < count:
        case = _propose(task, rng)
        if case is not None:
            cases.append(case)
    return cases


def _propose(task: str, rng: np.random.Generator) -> Case | None:
    """A case at random, or None where the scene does not suit."""
    scene = sample_scene(rng)
    index, texture = int(rng.integers(len(scene.groups))), int(rng.integers(2**31))
    kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
    old, others = scene.groups[index], tuple(group for n, group in enumerate(scene.groups) if n != index)
    hole = hole_of(old.things[0])
    near = any(in_box(hole)[in_box(hole_of(thing))].any() for group in others for thing in group.things)
    if len(scene.groups) > 2 or len(old.things) > 1 or near:
        return None
    thing = None
    if task != "remove":
        if kind in {group.kind for group in scene.groups} or colour == old.colour:
            return None
        thing = Group(kind, colour, old.things)
        wanted = replace(scene, groups=tuple(thing if group is old else group for group in scene.groups))
    elif others:
        wanted = replace(scene, groups=others, links=(), link_words=(), place_after=-1)
    else:
        return None
    if any(wanted.held_out_combinations()):
        return None
    drawing, empty = (draw(replace(scene, groups=g), np.random.default_rng(texture)) for g in (scene.groups, others))
    return Case(wanted, thing, hole, drawing, empty)


def right_in_hole(picture: np.ndarray, case: Case) -> bool:
    """Whether what is seen with its centre in the hole is the new thing, in its colour; or nothing, if nothing should be."""
    mask = case.mask()
    there = [
        (seen.kind, seen.colour)
        for seen in read(picture).things
        if mask[(seen.box[1] + seen.box[3]) // 2, (seen.box[0] + seen.box[2]) // 2]
    ]
    return there == ([] if case.thing is None else [(case.thing.kind, case.thing.colour)])


def ring_error(picture: np.ndarray, case: Case) -> float:
    """The mean difference, in 1/255, of a picture and the drawing in a ring just outside the hole."""
    left, top, right, bottom = case.hole
    ring = in_box((left - RING, top - RING, right + RING, bottom + RING)) & ~case.mask()
    return float(np.abs(picture[ring].astype(float) - case.drawing[ring]).mean())


def outside_error(picture: np.ndarray, case: Case) -> float:
    """The mean difference, in 1/255, of a picture and the drawing everywhere outside the hole."""
    outside = ~case.mask()
    return float(np.abs(picture[outside].astype(float) - case.drawing[outside]).mean())


def edge_error(picture: np.ndarray, case: Case) -> float:
    """How much, in 1/255, the step across the hole's edge differs from that of the same place with nothing in the hole."""
    changes, mask = picture.astype(float) - case.empty, case.mask()
    steps = [np.abs(np.diff(changes, axis=axis))[np.diff(mask, axis=axis)] for axis in (0, 1)]
    return float(np.concatenate(steps).mean())
