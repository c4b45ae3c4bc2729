"""Two samplings in one process that take turns step by step, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """Seconds of one step: on the wall, and of the arm's own thread on the CPU (it does not run while others do)."""

    wall: float
    cpu: float


Arm = Callable[[Callable[[], None]], object]
"""Samples, and calls its argument after every step."""


def take_turns(arms: Mapping[str, Arm]) -> dict[str, list[Step]]:
    """Run all arms, each in a thread of its own, one step at a time. An error of an arm is raised when all have ended."""
    names = list(arms)
    turns = {name: threading.Semaphore(0) for name in names}
    running, errors = list(names), []
    times: dict[str, list[Step]] = {name: [] for name in names}

    def next_of(name: str) -> str:
        after = names[names.index(name) + 1 :] + names[: names.index(name) + 1]
        return next(other for other in after if other in running)

    def run(name: str) -> None:
        turns[name].acquire()
        began = [time.perf_counter(), time.thread_time()]

        def pause() -> None:
            times[name].append(Step(time.perf_counter() - began[0], time.thread_time() - began[1]))
            turns[next_of(name)].release()
            turns[name].acquire()
            began[:] = time.perf_counter(), time.thread_time()

        try:
            arms[name](pause)
        except Exception as error:
            errors.append(error)
        running.remove(name)
        if running:
            turns[next_of(name) if name in running else running[0]].release()

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    turns[names[0]].release()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return times
