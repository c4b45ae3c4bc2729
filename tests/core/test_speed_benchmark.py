"""The speed benchmark: arms take turns as they should, and what disturbs the machine for a moment is not in a ratio."""

from __future__ import annotations

import math

import pytest

from benchmarks.speed.gpu import FREE, WARM, Meter, added, ratio_of
from benchmarks.speed.lockstep import Arm, Part, Pause, Steps, ratio, take_turns
from benchmarks.speed.report import table
from benchmarks.speed.rows import MODELS, ROWS, is_narrow


def work(name: str, steps: int, parts: int, log: list[str]) -> Arm:
    """An arm that writes down when it works."""

    def run(pause: Pause) -> None:
        for step in range(steps):
            for part in range(parts):
                log.append(f"{name}{step}{part}")
                pause(part == parts - 1)

    return run


def test_arms_take_turns_part_by_part_and_change_who_is_first() -> None:
    """Each part is done by both before the next; in every step the other arm is the first."""
    log: list[str] = []
    times = take_turns({"a": work("a", 3, 2, log), "b": work("b", 3, 2, log)})
    assert log == "a00 b00 a01 b01 b10 a10 b11 a11 a20 b20 a21 b21".split()
    assert [[len(step) for step in steps] for steps in times.values()] == [[2, 2, 2]] * 2


@pytest.mark.parametrize("ends_early", ["a", "b"])
def test_an_arm_that_fails_lets_the_other_end(ends_early: str) -> None:
    """Its error is raised when all have ended."""
    log: list[str] = []

    def fail(pause: Pause) -> None:
        pause(False)
        raise ValueError("no more")

    arms = {name: fail if name == ends_early else work(name, 2, 2, log) for name in "ab"}
    with pytest.raises(ValueError, match="no more"):
        take_turns(arms)
    assert len(log) == 4


def same_parts(seconds: list[float], steps: int) -> Steps:
    """Steps of these parts, all alike."""
    return [[Part(each, each) for each in seconds] for _ in range(steps)]


def test_a_ratio_is_the_parts_by_their_time() -> None:
    """(1.1 + 2 + 0.3) / (1 + 2 + 0.2), without an error where all steps are alike."""
    result = ratio({"stock": same_parts([1, 2, 0.2], 4), "ours": same_parts([1.1, 2, 0.3], 4)})
    assert result["time"] == pytest.approx(3.4 / 3.2)
    assert result["time_error"] == pytest.approx(0)
    assert result["stock_seconds"] == pytest.approx(3.2)
    assert ratio({"stock": same_parts([1], 1), "ours": same_parts([2], 1)})["time_error"] is None


def test_what_disturbs_a_moment_is_not_in_a_ratio() -> None:
    """One part of one step five times as long, in either arm; nor what slows both arms down for a step."""
    for disturbed in ("stock", "ours"):
        times = {"stock": same_parts([1, 2, 0.2], 5), "ours": same_parts([1.1, 2, 0.3], 5)}
        times[disturbed][2][1] = Part(10, 10)
        for steps in times.values():
            steps[4] = [Part(1.4 * part.wall, 1.4 * part.cpu) for part in steps[4]]
        assert ratio(times)["time"] == pytest.approx(3.4 / 3.2)


def test_arms_of_other_parts_cannot_be_compared() -> None:
    """A part that only one arm has is an error, not a wrong ratio."""
    with pytest.raises(ValueError, match="zip"):
        ratio({"stock": same_parts([1, 2], 2), "ours": same_parts([1, 2, 3], 2)})


def test_the_table_has_narrow_models_apart() -> None:
    """Rows are in the order of ROWS, those of the originals' width first."""
    row = next(row for row in ROWS if is_narrow(row.model))
    wide = next(row for row in ROWS if not is_narrow(row.model))
    line = {"time": 1.014, "time_error": None, "steps": [1.0, 1.03], "stock_seconds": 2.0}
    text = table({"rows": [{"row": vars(each), **line} for each in (row, wide)], "whole": {}})
    assert text.index(wide.name) < text.index("a fifth of that width") < text.index(row.name)
    assert "**1.014**" in text and all(f"- {name}: " in text for name in MODELS)


class Scripted:
    """A device by a scripted clock, done as soon as it is asked."""

    now = 0.0

    def wait(self) -> None:
        """All is done."""

    def mark(self) -> float:
        """The moment."""
        return self.now

    def seconds(self, begin: float, end: float) -> float:
        """Between two marks."""
        return end - begin


def test_a_block_is_timed_by_the_device_and_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 s; the first two count in no block, the last of each is the host's alone."""
    card, handed_over = Scripted(), []
    monkeypatch.setattr("benchmarks.speed.gpu.time.perf_counter", lambda: card.now)
    meter = Meter(card, handed_over.append)  # type: ignore[arg-type]
    for _ in range(WARM + 2 * (FREE + 1)):
        card.now += 2.0
        meter()
    assert handed_over == [True] * 3
    assert meter.blocks == [(2.0, 2.0, 2.0)] * 2


def test_a_ratio_of_blocks_is_the_median_of_pairs() -> None:
    """With the standard error of a median."""
    ratio, error = ratio_of([1.0, 2.0, 4.0], [1.1, 2.0, 4.8])
    assert ratio == pytest.approx(1.1)
    assert error == pytest.approx((math.pi / 2) ** 0.5 * 0.1 / 3**0.5)


def test_waits_that_ours_adds() -> None:
    """A place of stock's is no news, however it is come to; more of it than stock has are."""
    stock = {"comfy/samplers.py:5 < nodes.py:1": 2}
    ours = {"comfy/samplers.py:5 < asyndm_core/run.py:7": 3, "asyndm_core/clock.py:9": 1}
    assert added(stock, ours) == {"comfy/samplers.py:5 < asyndm_core/run.py:7": 1, "asyndm_core/clock.py:9": 1}
    assert added(ours, ours) == {}
