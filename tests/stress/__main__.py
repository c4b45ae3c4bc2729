"""Random graphs, faults and hostile input against a live ComfyUI server. See ``--help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.comfy.comfy_process import comfyui_path

from . import hostile
from .runner import Runner, stress_server


def main() -> int:
    """Run what was asked for; 1 if there was a find."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress",
        description="Runs random valid graphs against a live ComfyUI server (COMFYUI_PATH, else ~/comfy/ComfyUI): cancelled, "
        "out of memory or with another pack's bug at a random call in between. Each must end in a picture or in an error "
        "that helps, and leave the models as they were.",
    )
    parser.add_argument("--graphs", type=int, default=1000, help="how many random graphs (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other graphs")
    parser.add_argument("--only", type=int, help="run this one graph of the seed")
    parser.add_argument("--hostile", action="store_true", help="hostile input instead of random graphs")
    asked = parser.parse_args()
    path = comfyui_path()
    if path is None:
        parser.error("no ComfyUI found: set COMFYUI_PATH to a ComfyUI folder")
    with tempfile.TemporaryDirectory() as folder, stress_server(path, Path(folder) / "comfyui") as server:
        runner = Runner(server)
        if asked.hostile:
            finds = hostile.run(runner) + runner.report.finds
        else:
            report = runner.graphs(asked.seed, [asked.only] if asked.only is not None else range(asked.graphs))
            finds = report.finds
            print(report)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
