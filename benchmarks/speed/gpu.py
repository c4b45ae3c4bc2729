"""On a GPU: steps of ours against stock ComfyUI's, in turn, in blocks of steps that nothing interrupts."""

from __future__ import annotations

import gc
import io
import math
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from cProfile import Profile
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from pstats import Stats
from typing import Any, NamedTuple
from unittest.mock import patch

from ..real_comfyui import load_pack
from .card import Card, noticing, planted
from .duel import Bench, random_pair, spread
from .lockstep import Pause, take_turns
from .report import describe_gpu, write_gpu
from .rows import GPU_ROWS, Row, rehearsed

WARM, FREE = 2, 4
"""Steps of an arm before its first block; steps of a block that the host may run ahead in. One more is the host's."""
LOOK = 6
"""Steps of a run whose waits and memory are looked at: the waits of all but the first two and the last."""
FEWEST, MOST = 4, 12
"""Blocks of each arm."""
PARITY_STEPS = 4
ARMS = ("stock", "ours")


class Block(NamedTuple):
    """Seconds of a step, the mean of a block: the device's, the wall's, and the host's to ask for one."""

    device: float
    wall: float
    host: float


class Meter:
    """Called after every step of an arm: times blocks, and hands over to the other arm after each.

    A block begins and ends with an idle device. Its steps are not interrupted; then, with the device idle, the host is
    timed for one more, so that nothing but asking for the work holds it.
    """

    def __init__(self, card: Card, pause: Pause) -> None:
        self.blocks: list[Block] = []
        self._card, self._pause, self._step = card, pause, 0

    def __call__(self) -> None:
        self._step += 1
        place = (self._step - WARM) % (FREE + 1)
        if self._step < WARM:
            return
        if place == FREE:
            end = self._card.mark()
            self._card.wait()
            wall = time.perf_counter() - self._began
            self._free = (self._card.seconds(self._begin, end) / FREE, wall / FREE)
            self._began = time.perf_counter()
        elif place == 0:
            host = time.perf_counter() - self._began if self._step > WARM else 0.0
            self._card.wait()
            if self._step > WARM:
                self.blocks.append(Block(*self._free, host))
            self._pause(True)
            self._begin, self._began = self._card.mark(), time.perf_counter()


def ratio_of(stock: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """The median of the pairs' ratios, and its standard error: 1.25 times the mean's, as for a normal distribution."""
    ratios = [b / a for a, b in zip(stock, ours, strict=True)]
    error = math.sqrt(math.pi / 2) * statistics.stdev(ratios) / math.sqrt(len(ratios))
    return statistics.median(ratios), error


def duel(bench: Bench, card: Card, blocks: int) -> dict[str, Any]:
    """Time of the arms, in turn block by block; in every second pair ours is the first."""
    meters: dict[str, Meter] = {}

    def run(arm: str, pause: Pause) -> None:
        meters[arm] = Meter(card, pause)
        bench.sample(arm, WARM + blocks * (FREE + 1), meters[arm])

    take_turns({arm: lambda pause, arm=arm: run(arm, pause) for arm in ARMS})
    result: dict[str, Any] = {"pairs": blocks}
    for kind in Block._fields:
        stock, ours = ([getattr(block, kind) for block in meters[arm].blocks] for arm in ARMS)
        result[kind], result[f"{kind}_error"] = ratio_of(stock, ours)
        result[f"{kind}_seconds"] = {arm: statistics.median(each) for arm, each in zip(ARMS, (stock, ours), strict=True)}
    return result


def look(bench: Bench, card: Card, arm: str) -> dict[str, Any]:
    """Peak memory of a run, beside what was held before and in all, and its waits in a step."""
    step, first, last = [0], 2, LOOK - 1
    gc.collect()
    before = card.held()
    with noticing(card) as waits:

        def after_step() -> None:
            step[0] += 1
            if step[0] == first:
                card.wait()
            waits.on = first <= step[0] < last

        bench.sample(arm, LOOK, after_step)
    steps = last - first
    return {
        "before": before, "peak": card.peak(), "waits": waits.places.total() / steps, "places": dict(waits.places),
        "late": len(waits.late) / steps, "late_seconds": sum(waits.late) / steps,
    }  # fmt: skip


def added(stock: dict[str, int], ours: dict[str, int]) -> dict[str, int]:
    """The waits of ours that stock has not, by the innermost place of each; with all of their places."""
    inner = lambda place: place.split(" < ")[0]  # noqa: E731
    known: Counter[str] = Counter()
    for where, count in stock.items():
        known[inner(where)] += count
    more = {}
    for where, count in ours.items():
        here = min(count, known[inner(where)])
        known[inner(where)] -= here
        if count > here:
            more[where] = count - here
    return more


def warm_up(bench: Bench, card: Card, arm: str) -> float:
    """Seconds of a step that is not the first."""
    moments: list[float] = []

    def after_step() -> None:
        card.wait()
        moments.append(time.perf_counter())

    bench.sample(arm, 3, after_step)
    return moments[-1] - moments[-2]


def measure(bench: Bench, card: Card, seconds: float) -> dict[str, Any]:
    """A row, in about as many seconds."""
    began = time.perf_counter()
    with spread(bench.row.distinct):
        step = sum(warm_up(bench, card, arm) for arm in ARMS)
        seen = {arm: look(bench, card, arm) for arm in ARMS}
        left = seconds - (time.perf_counter() - began)
        blocks = max(FEWEST, min(MOST, int(left / (step * (FREE + 1)))))
        result = duel(bench, card, blocks)
    if bench.distinct not in (bench.row.distinct, 0):
        raise RuntimeError(f"The map has {bench.distinct} distinct timesteps instead of {bench.row.distinct}.")
    return {**result, "look": seen, "added": added(*(seen[arm]["places"] for arm in ARMS))}


def parity(bench: Bench) -> dict[str, Any]:
    """How far latents are from stock's, relative to their largest: of ours where it is to make no difference."""
    import comfy.sample
    import torch
    from asyndm_pack.asyndm_core.embedding import Groups
    from asyndm_pack.asyndm_core.regions import Regions, TimestepMap
    from asyndm_pack.nodes.comfy.sampling import Options, apply

    still = TimestepMap(Regions(mask=torch.linspace(0, 1, 64).view(1, 8, 8), mask_mode="replace"), strength=0.0)
    bench.models["strength 0"] = apply(bench.models["ours"], still)
    bench.models["strength 0, own loop"] = apply(bench.models["ours"], still, Options(shortcut=False))
    stock = bench.sample("stock", PARITY_STEPS)

    def difference(arm: str) -> dict[str, Any]:
        latents = bench.sample(arm, PARITY_STEPS)
        return {
            "same": bool(torch.equal(latents, stock)) and bool(stock.isfinite().all()),
            "difference": float((latents - stock).abs().max() / stock.abs().max()),
        }

    found = {arm: difference(arm) for arm in ("stock", "strength 0", "strength 0, own loop")}
    prepare = comfy.sample.prepare_noise
    with patch.object(comfy.sample, "prepare_noise", lambda *given: prepare(*given) * (1 + 2**-23)):
        found["stock, noise a rounding off"] = difference("stock")
    with spread(1):
        found["map of one value"] = difference("ours")
        with patch.object(Groups, "least", property(lambda self: -1.0)):
            found["map of one value, pixel by pixel"] = difference("ours")
    with spread(bench.row.distinct):
        found[f"{bench.row.distinct} distinct"] = difference("ours")
    return found


def profiled(bench: Bench, card: Card, path: Path) -> dict[str, float]:
    """Tables of one step, by PyTorch's profiler and Python's, are added to ``path``. Returns each arm's seconds of kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card.real else [])]
    kernels: dict[str, float] = {}
    texts = []
    for arm in ARMS:
        profiler, step = profile(activities=kinds), [0]

        def after_step(profiler: Any = profiler, step: list = step) -> None:
            step[0] += 1
            if step[0] in (2, 3):
                card.wait()
                profiler.__enter__() if step[0] == 2 else profiler.__exit__(None, None, None)

        with spread(bench.row.distinct):
            bench.sample(arm, 4, after_step)
        averages = profiler.key_averages()
        kernels[arm] = sum(e.self_device_time_total for e in averages if e.device_type == DeviceType.CUDA) / 1e6
        for order in ("self_cpu_time_total", "self_device_time_total") if card.real else ("self_cpu_time_total",):
            texts.append(f"{bench.row.name}, {arm}, one step, by {order}\n{averages.table(sort_by=order, row_limit=25)}")
    python = Profile()
    with spread(bench.row.distinct):
        python.runcall(bench.sample, "ours", 6)
    for order in ("tottime", "cumulative"):
        text = io.StringIO()
        Stats(python, stream=text).sort_stats(order).print_stats("asyndm_core|nodes/comfy", 25)
        texts.append(f"{bench.row.name}, ours, six steps, Python by {order}\n{text.getvalue()}")
    with path.open("a") as file:
        file.write("\n\n".join([*texts, ""]))
    return kernels


class Models:
    """Both arms' models of a row, kept while the next row has the same."""

    def __init__(self, card: Card) -> None:
        self._card, self._name = card, ""
        self._pair: tuple[Any, Any] | None = None

    def __call__(self, name: str) -> tuple[Any, Any]:
        """The models of this name. Others are freed before they are made."""
        import comfy.model_management

        if self._pair is None or name != self._name:
            self._pair = None
            comfy.model_management.unload_all_models()
            gc.collect()
            comfy.model_management.soft_empty_cache()
            self._pair, self._name = random_pair(name, self._card.name, "bfloat16"), name
        return self._pair


def measure_gpu(minutes: float, only: str, seconds: float, folder: Path, rehearse: bool) -> None:
    """Measure the GPU's rows, one after another, and write the results after each. Begins nothing after ``minutes``.

    seconds: of a row. rehearse: the same with small models on the CPU.
    """
    import torch

    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here.")
    until = time.perf_counter() + 60 * minutes
    load_pack(cpu=rehearse)
    card = Card("cpu" if rehearse else "cuda:0")
    results: dict[str, Any] = {**card.described(), "planted": planted(card)}
    say(", ".join(f"{name}: {value}" for name, value in results.items()))
    results |= {"rows": [], "parity": [], "kernels": {}, "failed": {}}
    (folder / "profile.txt").unlink(missing_ok=True)
    models, rows = Models(card), [rehearsed(row) if rehearse else row for row in GPU_ROWS if only in row.name]

    def attempt(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        if began > until:
            results["failed"].setdefault("no time left", []).append(name)
            write_gpu(results, folder)
            return
        try:
            work()
        except Exception as error:  # whatever it is, the other rows can still be measured
            results["failed"].setdefault(f"{type(error).__name__}: {error}", []).append(name)
            say(traceback.format_exc())
            torch.cuda.empty_cache()
        say(f"{name}: {time.perf_counter() - began:.1f} s")
        write_gpu(results, folder)

    def one(row: Row) -> None:
        line = {"row": asdict(row), **measure(Bench(row, models(row.model)), card, seconds)}
        results["rows"].append(line)
        say(f"{row.name}: {describe_gpu(line)}")

    def alike(row: Row) -> None:
        found = parity(Bench(row, models(row.model)))
        results["parity"].append({"row": asdict(row), **found})
        say(f"{row.name}: {found}")

    def table_of(row: Row) -> None:
        results["kernels"][row.name] = profiled(Bench(row, models(row.model)), card, folder / "profile.txt")

    for model, group in groupby(rows, lambda row: row.model):
        same = list(group)
        for row in same:
            attempt(row.name, lambda row=row: one(row))  # type: ignore[misc]
        attempt(f"parity of {model}", lambda row=same[0]: alike(row))  # type: ignore[misc]
    firsts = {row.model: row for row in reversed(rows)}
    for row in reversed(firsts.values()):  # last of all: a profiler may slow down what comes after it
        attempt(f"profile of {row.model}", lambda row=row: table_of(row))  # type: ignore[misc]


def say(text: str) -> None:
    """Where one can follow it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
