"""The cost of AsynDM: a sampling step of ours against stock ComfyUI's, in turn, on the same random weights.

    python -m benchmarks.speed             # small models, a few minutes on an idle machine
    python -m benchmarks.speed --full      # models of full width too: an hour, 8 GiB
    python -m benchmarks.speed --only "SDXL" --pairs 9

Needs a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI) and its requirements, and matplotlib. Every row is a process of its
own with one thread. Both arms take turns step by step, and are timed in CPU time of the arm's thread: the table has the
ratio of the fastest steps, which a busy machine disturbs least, and the median of the ratios of neighbouring steps. Memory
is the peak of a process that runs one arm. A row that is measured already is kept: --again measures it anew. Results are
in benchmarks/speed/results.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from ..real_comfyui import ROOT
from .report import RESULTS, write
from .rows import ROWS, Row


def here(index: int, pairs: int, arm: str | None, parts: bool) -> dict[str, Any]:
    """Measure one row, or the peak memory (GiB) of one arm, in this process."""
    from .duel import Bench, ratios, spread

    bench = Bench(ROWS[index])
    if arm is not None:
        with spread(bench.row.distinct):
            bench.sample(arm, 2, lambda: None)
        return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if pairs == 0:
        return {"parts": bench.parts(1)}
    result = ratios(bench.duel(pairs))
    if bench.distinct not in (bench.row.distinct, 0):
        raise RuntimeError(f"The map has {bench.distinct} distinct timesteps instead of {bench.row.distinct}.")
    return {**result, "parts": bench.parts() if parts else None}


def elsewhere(*options: object) -> Any:
    """What ``python -m benchmarks.speed`` prints with these options: one process for each measurement."""
    command = [sys.executable, "-m", "benchmarks.speed", *map(str, options)]
    return json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(index: int, row: Row, pairs: int) -> dict[str, Any]:
    """A line of results.json. Parts and memory are measured where there are 300 distinct timesteps."""
    detailed = row.distinct == 300
    result = elsewhere("--row", index, "--pairs", pairs, *(["--parts"] if detailed else []))
    if detailed and pairs:
        peak = {arm: elsewhere("--row", index, "--arm", arm)["memory"] for arm in ("stock", "ours")}
        result["memory"] = peak["ours"] / peak["stock"]
        result["memory_gib"] = peak
    return {"row": asdict(row), **result}


def describe(line: dict[str, Any]) -> str:
    """A line of the results in short."""
    if "cpu" not in line:
        return f"parts {1 + sum(line['parts'].values()):.3f}"
    return f"{line['cpu_fastest']:.3f}, median {line['cpu']:.3f}"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the rows of full width too")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of steps in a row; 0: only the shares of the parts")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are in the results")
    parser.add_argument("--whole", action="store_true", help="whole runs of the demo model, import and nodes instead")
    for hidden in ("--row", "--arm"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        sys.stdout.write(json.dumps(here(int(options.row), options.pairs, options.arm, options.parts)) + "\n")
        return
    path = RESULTS / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {"rows": [], "whole": {}}
    if options.whole:
        from .whole import measure_whole

        results["whole"] = measure_whole(options.pairs)
        write(results)
        return
    for index, row in enumerate(ROWS):
        known = [line for line in results["rows"] if line["row"] == asdict(row)]
        if (row.full and not options.full) or options.only not in row.name or (known and not options.again):
            continue
        line = measure(index, row, options.pairs)
        results["rows"] = [other for other in results["rows"] if other not in known] + [line]
        sys.stdout.write(f"{row.name}: {describe(line)}\n")
        sys.stdout.flush()
        write(results)


if __name__ == "__main__":
    main()
