"""Results as json, a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .rows import MODELS, ROWS, Row, is_narrow, is_tiny

RESULTS = Path(__file__).parent / "results"
PLANTED = 3
"""Waits that are planted to see whether they are found."""
PART_NAMES = ("embedding", "gather", "capture", "folding", "grouping", "masks", "move", "sampler", "live view")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _all_parts(line: dict[str, Any]) -> float:
    return 1 + sum(line["parts"].values())


def _memory(line: dict[str, Any]) -> float:
    return line["memory"]["ours"] / line["memory"]["stock"]


def _time(line: dict[str, Any]) -> str:
    error = line["time_error"]
    return f"{line['time']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def describe(line: dict[str, Any]) -> str:
    """A line of the results in short."""
    said = []
    if "time" in line:
        said.append(_time(line))
    if "parts" in line:
        said.append(f"parts {_all_parts(line):.3f}")
    if "memory" in line:
        said.append(f"memory {_memory(line):.3f}")
    return ", ".join(said)


def _with_error(line: dict[str, Any], kind: str) -> str:
    return f"{line[kind]:.3f} ± {line[f'{kind}_error']:.3f}"


def _gpu_memory(line: dict[str, Any]) -> tuple[float, float]:
    """Ratios of the peaks: of all that tensors hold, and of what they hold beside what was there before the run."""
    stock, ours = line["look"]["stock"], line["look"]["ours"]
    beside = stock["peak"] - stock["before"]
    whole = ours["peak"] / stock["peak"] if stock["peak"] else 1.0
    return whole, (ours["peak"] - ours["before"]) / beside if beside else 1.0


def describe_gpu(line: dict[str, Any]) -> str:
    """A line of a GPU's results in short."""
    whole, beside = _gpu_memory(line)
    waits = line["look"]["ours"]["waits"] - line["look"]["stock"]["waits"]
    return (
        f"device {_with_error(line, 'device')}, host {_with_error(line, 'host')}, stock "
        f"{1000 * line['device_seconds']['stock']:.2f} ms, memory {whole:.3f} ({beside:.3f} beside), waits {waits:+g}, "
        f"late {line['look']['ours']['late']:g}, {line['pairs']} pairs"
    )


def gpu_table(results: dict[str, Any]) -> str:
    """A GPU's results in Markdown."""
    lines = [
        "Our step against stock ComfyUI's on a GPU: random weights in bfloat16, euler, by ComfyUI's own sampling call.",
        "",
        *(f"- {name}: {results[name]}" for name in ("card", "driver", "PyTorch", "ComfyUI", "attention", "comfy_kitchen")),
        "",
        "Both arms run at the same time and take turns: four steps that nothing interrupts, timed by the device's own events,",
        "and one that begins on an idle device, in which the host is timed until it has asked for all the work. The first two",
        "steps do not count; in every second pair ours goes first. Device, wall, host: the median of the pairs' ratios, ± its",
        "standard error (1.25 times the mean's). Memory: ratio of the peaks of all that tensors hold, and of what they hold",
        "beside the weights. Waits: how often PyTorch finds the host waiting for the device in a step, ours and stock's. Late:",
        "how often in a step, and how long, ours waits for a number that was asked for a step ago, with later work queued.",
        "",
        "| row | device | wall | host | pairs | stock step, ms | stock host, ms | memory | beside weights | waits | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in results["rows"]:
        whole, beside = _gpu_memory(line)
        stock, ours = line["look"]["stock"], line["look"]["ours"]
        waits, late = f"{ours['waits']:g}, {stock['waits']:g}", f"{ours['late']:g}, {1000 * ours['late_seconds']:.2f} ms"
        lines.append(
            f"| {Row(**line['row']).name} | **{_with_error(line, 'device')}** | {_with_error(line, 'wall')} | "
            f"{_with_error(line, 'host')} | {line['pairs']} | {1000 * line['device_seconds']['stock']:.2f} | "
            f"{1000 * line['host_seconds']['stock']:.2f} | {whole:.3f} | {beside:.3f} | {waits} | {late} |"
        )
    places = {place: count for line in results["rows"] for place, count in line["added"].items()}
    lines += ["", f"Of {PLANTED} planted waits PyTorch found {results['planted']}. Waits that ours adds:", ""]
    lines += [f"- {place}" for place in places] or ["- none"]
    lines += [
        "",
        "How far the latents of four steps are from stock's, relative to their largest: 0 is bit for bit. Stock is stock once",
        "more; with noise a rounding of float32 off it shows what bfloat16 makes of any rounding. A map of one value asks",
        "every pixel for stock's own sigma; pixel by pixel: without the shortcut that such a map takes. The last is what a map",
        "changes.",
    ]
    for found in results["parity"]:
        lines += ["", Row(**found["row"]).name + ":", ""]
        lines += [f"- {arm}: {each['difference']:.3g}" for arm, each in found.items() if arm != "row"]
    if results["kernels"]:
        lines += ["", "What the kernels of one step take, by PyTorch's profiler:", "", "| row | ours, ms | stock, ms | ratio |"]
        lines += ["|---|---|---|---|"]
    for name, seconds in results["kernels"].items():
        ours, stock = 1000 * seconds["ours"], 1000 * seconds["stock"]
        lines.append(f"| {name} | {ours:.2f} | {stock:.2f} | {ours / stock if stock else 1:.3f} |")
    for why, names in results["failed"].items():
        lines += ["", f"Not measured ({why}): {'; '.join(names)}."]
    return "\n".join(lines) + "\n"


def _costs(named: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    lines = ["| row | time | all steps | parts | pairs | stock step, s | memory |", "|---|---|---|---|---|---|---|"]
    for row, line in named:
        time, spread, pairs, stock = "", "", "", ""
        if "time" in line:
            time, steps = f"**{_time(line)}**", line["steps"]
            spread, pairs, stock = f"{min(steps):.2f} to {max(steps):.2f}", str(len(steps)), f"{line['stock_seconds']:.2f}"
        parts = f"{_all_parts(line):.3f}" if "parts" in line else ""
        memory = f"{_memory(line):.3f}" if "memory" in line else ""
        lines.append(f"| {row.name} | {time} | {spread} | {parts} | {pairs} | {stock} | {memory} |")
    return lines


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    order = {row.name: index for index, row in enumerate(ROWS)}
    named = sorted(((Row(**line["row"]), line) for line in results["rows"]), key=lambda pair: order.get(pair[0].name, 999))
    tiny = [pair for pair in named if is_tiny(pair[0].model)]
    full, narrow = ([p for p in named if p not in tiny and is_narrow(p[0].model) is kind] for kind in (False, True))
    lines = [
        "Our step against stock ComfyUI's, in CPU time of one thread, with PyTorch's attention. Time: of each layer (narrow",
        "UNets: block) the median of its ratios, weighted by the layers' time, ± its standard error (see lockstep.ratio). All",
        "steps: the smallest and the largest ratio of two whole steps. Parts: 1 + all that a profiler finds of ours, below.",
        "Memory: ratio of the peaks of what tensors hold beside the weights.",
        "",
        "UNets as wide as SD1.5's and SDXL's, some with fewer blocks:",
        "",
        *_costs(full),
        "",
        "UNets of a fifth of that width, quick to measure, where our part weighs most:",
        "",
        *_costs(narrow),
        "",
        "UNets that have all their blocks and next to nothing to compute. That is the host's work alone: the most that could",
        "be felt on a GPU that is done before it is asked for more.",
        "",
        *_costs(tiny),
        "",
        "Models: random weights.",
        "",
    ]
    for name, config in MODELS.items():
        lines.append(
            f"- {name}: {config['model_channels']} channels, {config['num_res_blocks']} residual blocks, transformers "
            f"{config['transformer_depth']} on the way down"
        )
    lines += [
        "",
        "Share of each part in the time of a stock step, % (by a profiler):",
        "",
        "| row | " + " | ".join(PART_NAMES) + " |",
        "|---" * (len(PART_NAMES) + 1) + "|",
    ]
    for row, line in named:
        if "parts" in line:
            lines.append(f"| {row.name} | " + " | ".join(_percent(line["parts"][part]) for part in PART_NAMES) + " |")
    whole = results["whole"]
    if whole:
        lines += [
            "", "Whole runs of the demo model, 20 steps, words, live view on, against stock:", "",
            "| pixels | time | wall | stock, s |", "|---|---|---|---|",
            *(f"| {run['pixels']} | {run['cpu']:.3f} | {run['wall']:.3f} | {run['stock_wall']:.2f} |" for run in whole["runs"]),
            "", f"Import of the pack in a ComfyUI that is up: {whole['import_seconds']:.3f} s of CPU time. "
            f"Our nodes of a graph beyond sampling and encoding: {1000 * whole['nodes_seconds']:.1f} ms a run.",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Cost against distinct timesteps, and against pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    rows = [(Row(**line["row"]), line) for line in results["rows"] if "time" in line]
    plain = [(r, line) for r, line in rows if r.capture == "every step" and not r.preview and r.cfg and r.batch == 1]
    plain = [(r, line) for r, line in plain if not is_tiny(r.model)]
    shown = [model for model in MODELS if any(row.model == model for row, _ in plain)]
    colours = {model: f"C{number}" for number, model in enumerate(shown)}
    for model, colour in colours.items():
        by_count = sorted((r.distinct, line) for r, line in plain if r.model == model and r.pixels == 512)
        by_size = sorted((r.pixels, line) for r, line in plain if r.model == model and r.distinct == 300)
        for axis, points in zip(axes, (by_count, by_size), strict=True):
            if points:
                axis.plot([x for x, _ in points], [line["time"] for _, line in points], marker="o", color=colour)
    scales = (
        ("distinct timesteps (512 px)", (1, 2, 20, 300, 1000)),
        ("pixels on a side (300 distinct)", (512, 768, 1024, 2048)),
    )
    for axis, (label, ticks) in zip(axes, scales, strict=True):
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_ylabel("our step / stock's")
    handles = [pyplot.Line2D([], [], color=colour, marker="o", label=model) for model, colour in colours.items()]
    axes[0].legend(handles=handles, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write(results: dict[str, Any]) -> None:
    """All files of the results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "table.md").write_text(table(results))
    plot(results, RESULTS / "cost.png")


def write_gpu(results: dict[str, Any], folder: Path) -> None:
    """The files of a GPU's results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cuda.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "cuda.md").write_text(gpu_table(results))
