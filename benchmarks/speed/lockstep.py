"""Samplings in one process that take turns part by part, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Part(NamedTuple):
    """Seconds of a part of a step: on the wall, and of the arm's own thread on the CPU (it does not run while others do)."""

    wall: float
    cpu: float


Steps = list[list[Part]]
"""The steps of an arm, each in its parts."""
Pause = Callable[[bool], None]
"""Called after every part of a step: with True after the last."""
Arm = Callable[[Pause], object]
"""Samples, and pauses after every part of a step."""


def take_turns(arms: Mapping[str, Arm]) -> dict[str, Steps]:
    """Run all arms, each in a thread of its own, one part of a step at a time.

    Who goes first finds the caches as the other left them a part ago, who goes second finds the part's weights there: in
    every step another is the first. An error of an arm is raised when all have ended.
    """
    names = list(arms)
    turns = {name: threading.Semaphore(0) for name in names}
    running, errors = list(names), []
    times: dict[str, Steps] = {name: [[]] for name in names}

    def order(step: int) -> list[str]:
        first = step % len(names)
        return names[first:] + names[:first]

    def next_of(name: str, step: int, step_ends: bool) -> str:
        here = order(step)
        following = here[here.index(name) + 1 :] + order(step + step_ends)
        return next(other for other in following if other in running)

    def run(name: str) -> None:
        turns[name].acquire()
        began = [time.perf_counter(), time.thread_time()]

        def pause(step_ends: bool) -> None:
            steps = times[name]
            steps[-1].append(Part(time.perf_counter() - began[0], time.thread_time() - began[1]))
            after = next_of(name, len(steps) - 1, step_ends)
            if step_ends:
                steps.append([])
            turns[after].release()
            turns[name].acquire()
            began[:] = time.perf_counter(), time.thread_time()

        try:
            arms[name](pause)
        except Exception as error:
            errors.append(error)
        running.remove(name)
        if running:
            turns[running[0]].release()

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    turns[names[0]].release()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {name: steps[:-1] for name, steps in times.items()}


def ratio(times: Mapping[str, Steps]) -> dict[str, Any]:
    """Ours to stock's, in CPU time: of a part the median of its ratios, of a step the mean of its parts by their time.

    A part of ours is compared with the one that ran a moment before or after it: what else the machine does is on both,
    and what disturbs one alone is not in the median. The standard error is the jackknife's over steps.
    """
    cpu = {arm: [[part.cpu for part in step] for step in steps] for arm, steps in times.items()}
    stock, ours = (list(zip(*cpu[arm], strict=True)) for arm in ("stock", "ours"))
    count = len(cpu["stock"])

    def typical(left_out: int | None = None) -> float:
        kept = [step for step in range(count) if step != left_out]
        weights = [statistics.median(part[step] for step in kept) for part in stock]
        ratios = [statistics.median(o[step] / s[step] for step in kept) for o, s in zip(ours, stock, strict=True)]
        return sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights)

    without = [typical(step) for step in range(count)] if count > 1 else []
    steps = [sum(o) / sum(s) for o, s in zip(cpu["ours"], cpu["stock"], strict=True)]
    return {
        "time": typical(),
        "time_error": (count - 1) ** 0.5 * statistics.pstdev(without) if without else None,
        "steps": [round(each, 4) for each in steps],
        "stock_seconds": statistics.median(sum(step) for step in cpu["stock"]),
        "parts_of_a_step": len(stock),
    }
