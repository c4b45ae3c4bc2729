"""Whether anything runs ahead is counted step by step, for every picture, and told once."""

from __future__ import annotations

import pytest
import torch

from asyndm_core.crowding import Crowding
from asyndm_core.regions import Plan, Region
from asyndm_core.run import Snapshot

PLAN = Plan((Region("a", "quadratic", 0.7, "a"), Region("b", "linear", 0.7, "b"), Region("c", "quadratic", 0.0, "c")))


def snapshot(step: int, owner: torch.Tensor, kept: float = 0.0, progress_kept: float = 20.0) -> Snapshot:
    """A step whose pixels (B, 10, 10) have these owners; a share of the rows is kept, at a progress of its own."""
    progress = torch.full(owner.shape, float(step))
    progress[:, : round(10 * kept)] = progress_kept
    return Snapshot(step, owner[:, None], owner[:, None], None, progress, owner, None)


def owners(*shares: float, other: int = -1) -> torch.Tensor:
    """For each picture, the first region's share of the pixels; the rest is ``other``'s."""
    flat = torch.full((len(shares), 100), other)
    for item, share in enumerate(shares):
        flat[item, : round(100 * share)] = 0
    return flat.view(-1, 10, 10)


def told(steps: int, of: dict[int, torch.Tensor], kept: float = 0.0, lead: float = 20.0) -> list[float]:
    """What is told of a run whose owners are ``of`` in some steps, and half of the picture in others; kept pixels lead."""
    shares: list[float] = []
    with Crowding(PLAN, steps, shares.append) as crowding:
        for step in range(steps):
            crowding(snapshot(step, of.get(step, owners(0.5, 0.5)), kept, min(step + lead, 20.0)))
    return shares


def test_several_steps_without_room_are_told_once() -> None:
    full = owners(0.5, 0.96)
    assert told(20, dict.fromkeys(range(20), full)) == pytest.approx([0.04])
    assert told(20, dict.fromkeys((2, 3, 4, 9, 11), full)) == pytest.approx([0.04])
    assert told(20, dict.fromkeys((2, 3, 4, 9), full)) == []
    assert told(4, dict.fromkeys((1, 2, 3), full)) == pytest.approx([0.04])


def test_the_first_step_does_not_count() -> None:
    assert told(4, dict.fromkeys((0, 1, 2), owners(1.0, 1.0))) == []


def test_a_picture_counts_alone() -> None:
    """Two pictures that have no room in turns both have room."""
    turns = {step: owners(1.0, 0.5) if step % 2 else owners(0.5, 1.0) for step in range(1, 9)}
    assert told(20, turns) == []


def test_only_what_lags_is_held_back() -> None:
    """Strength 0 and the linear curve keep pace, and kept pixels are ahead, however little they lead."""
    assert told(20, {n: owners(0.95, 0.95, other=1) for n in range(20)}) == pytest.approx([0.05])
    assert told(20, {n: owners(0.8, 0.8, other=2) for n in range(20)}) == []
    assert told(20, {n: owners(0.89, 0.89) for n in range(20)}) == []
    assert told(20, {n: owners(1.0, 1.0) for n in range(20)}, kept=0.2) == []
    assert told(20, {n: owners(1.0, 1.0) for n in range(20)}, kept=0.2, lead=0.2) == []
    for behind in (0.0, -1.0):
        assert told(20, {n: owners(1.0, 1.0) for n in range(20)}, kept=0.2, lead=behind) == [0.0]


def test_an_error_is_not_followed_by_advice() -> None:
    shares: list[float] = []
    with pytest.raises(RuntimeError), Crowding(PLAN, 20, shares.append):
        raise RuntimeError
    assert shares == []
