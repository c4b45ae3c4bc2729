"""The cost of AsynDM: a sampling step of ours against stock ComfyUI's, in turn, on the same random weights.

    python -m benchmarks.speed             # small models, a few minutes on an idle machine
    python -m benchmarks.speed --full      # models of full width too: some hours, 16 GiB
    python -m benchmarks.speed --only "SDXL" --pairs 9
    python -m benchmarks.speed --clips     # clips: time and memory of timesteps per token, and of the live view
    python -m benchmarks.speed --device cuda --minutes 3

Needs a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI) and its requirements, and matplotlib. Every row is a process of its
own with one thread, and uses PyTorch's attention, as ComfyUI does on most GPUs. Both arms take turns layer by layer, and are
timed in CPU time of the arm's thread; ``lockstep.ratio`` says how a ratio is made of that. Memory is the peak of what an arm's
tensors hold beside the weights. A row that is measured already is kept: --again measures it anew. Results are in
benchmarks/speed/results.

On a GPU all rows are measured anew in one process, by the device's own clock: see gpu.py, and results/cuda.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..real_comfyui import ROOT
from .clips import write_clips
from .report import RESULTS, describe, write
from .rows import ROWS


def here(index: int, pairs: int, only: str | None) -> dict[str, Any]:
    """Measure one row in this process. Parts and memory are measured where there are 300 distinct timesteps, or a live view.

    only: "time", "parts" or "memory"; None for all.
    """
    from .duel import Bench
    from .lockstep import ratio
    from .memory import attention_as_on_a_gpu, room_for_all_conds

    bench, result = Bench(ROWS[index]), {}
    detailed = bench.row.distinct == 300 or bench.row.preview
    with attention_as_on_a_gpu(), room_for_all_conds():
        if only in (None, "time"):
            result = ratio(bench.duel(pairs))
            if bench.distinct not in (bench.row.distinct, 0):
                raise RuntimeError(f"The map has {bench.distinct} distinct timesteps instead of {bench.row.distinct}.")
        if detailed and only in (None, "parts"):
            result["parts"] = bench.parts()
        if detailed and only in (None, "memory"):
            result["memory"] = bench.memory()
    return result


ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""The arms run in threads: each would have a heap of its own, and lose or keep freed memory by its own history."""


def apart(*arguments: str) -> Any:
    """What this command measures with ``arguments``, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--here", *arguments]
    environment = {**os.environ, **ONE_HEAP}
    done = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(index: int, pairs: int, only: str | None) -> dict[str, Any]:
    """``here`` in a process of its own."""
    return apart("--row", str(index), "--pairs", str(pairs), *([] if only is None else ["--measure", only]))


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the rows of full width too")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of steps in a row")
    parser.add_argument("--measure", choices=("time", "parts", "memory"), help="only this; the rest of a row stays as it is")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are in the results")
    parser.add_argument("--whole", action="store_true", help="whole runs of the demo model, import and nodes instead")
    parser.add_argument("--clips", action="store_true", help="clips, against ComfyUI's own timesteps per token, instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the rows of a GPU instead")
    parser.add_argument("--minutes", type=float, default=10, help="on a GPU, begin nothing after so long")
    parser.add_argument("--seconds", type=float, default=5, help="on a GPU, about how long a row takes")
    parser.add_argument("--to", type=Path, default=RESULTS, help="on a GPU, folder of the results")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        from .clips import measure_clips
        from .whole import measure_whole

        if options.clips or options.whole:
            measured = measure_clips() if options.clips else measure_whole(options.pairs)
        else:
            measured = here(options.row, options.pairs, options.measure)
        sys.stdout.write(json.dumps(measured) + "\n")
        return
    if options.device == "cuda":
        from .gpu import measure_gpu

        measure_gpu(options.minutes, options.only, options.seconds, options.to, options.rehearse)
        return
    path = RESULTS / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {"rows": [], "whole": {}}
    if options.clips:
        write_clips(apart("--clips"), RESULTS)
        return
    if options.whole:
        results["whole"] = apart("--whole", "--pairs", str(options.pairs))
        write(results)
        return
    for index, row in enumerate(ROWS):
        known = next((line for line in results["rows"] if line["row"] == asdict(row)), None)
        if (row.full and not options.full) or options.only not in row.name or (known and not options.again):
            continue
        line = {"row": asdict(row), **(known or {}), **measure(index, options.pairs, options.measure)}
        results["rows"] = [other for other in results["rows"] if other is not known] + [line]
        sys.stdout.write(f"{row.name}: {describe(line)}\n")
        sys.stdout.flush()
        write(results)


if __name__ == "__main__":
    main()
