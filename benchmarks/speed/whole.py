"""What a user waits for: whole runs of the demo model, the import of the pack, and our nodes in a graph."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ..real_comfyui import ROOT, load_pack
from .lockstep import Pause, take_turns

PROMPT, TARGETS, STEPS = "a green boat on the sea under two moons", "boat, moons", 20
IMPORT = """
import asyncio, sys, time
sys.argv = ["x", "--cpu"]
from benchmarks.real_comfyui import COMFYUI
sys.path.insert(0, str(COMFYUI))
from comfy.cli_args import args
args.cpu = True
import nodes
import comfy_api.latest
began = time.process_time()
import importlib.util
spec = importlib.util.spec_from_file_location("pack", "__init__.py", submodule_search_locations=["."])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
print(time.process_time() - began)
"""


def import_seconds() -> float:
    """CPU seconds, the median of five imports, each in a process that has imported ComfyUI's nodes."""
    command = [sys.executable, "-c", IMPORT]
    runs = [
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.split()[-1] for _ in range(5)
    ]
    return statistics.median(map(float, runs))


def measure_whole(pairs: int) -> dict[str, Any]:
    """The section "whole" of results.json; ``pairs`` runs of each size."""
    load_pack()
    import comfy.sample
    import torch
    from asyndm_pack.asyndm_core.live import Live
    from asyndm_pack.nodes.apply import Apply
    from asyndm_pack.nodes.comfy.latent_rgb import latent_to_rgb
    from asyndm_pack.nodes.comfy.sampling import Options, apply
    from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
    from asyndm_pack.nodes.demo_model import load_demo_model
    from asyndm_pack.nodes.timestep_map import TimestepMapNode

    torch.set_num_threads(1)
    with torch.inference_mode():
        model, clip, vae = load_demo_model()
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        encode(PROMPT)
        marked, regions = CrossAttentionMask.execute(clip, PROMPT, TARGETS, 1.0, "every step").args[:2]
        timestep_map = TimestepMapNode.execute(regions, "quadratic", 0.7, "asynchronous").args[0]

        def seconds(work: Callable[[], object]) -> float:
            began = time.thread_time()
            work()
            return time.thread_time() - began

        def nodes() -> None:
            _, again = CrossAttentionMask.execute(clip, PROMPT, TARGETS, 1.0, "every step").args[:2]
            Apply.execute(model, TimestepMapNode.execute(again, "quadratic", 0.7, "asynchronous").args[0], False)

        ours, stock = (statistics.median(seconds(work) for _ in range(15)) for work in (nodes, lambda: encode(PROMPT)))
        negative = encode("")
        view = Options(on_run=lambda start: Live(start.steps, lambda frames: None, latent_to_rgb(start.latent_format)))
        arms = {"stock": (model, encode(PROMPT)), "ours": (apply(model, timestep_map, view), marked)}
        runs = []
        for pixels in (128, 256, 512):
            latent = torch.zeros_like(vae.encode(torch.zeros(1, pixels, pixels, 3)))

            def sample(arm: str, pause: Pause, latent: Any = latent) -> None:
                patcher, positive = arms[arm]
                with torch.inference_mode():
                    comfy.sample.sample(
                        patcher, comfy.sample.prepare_noise(latent, 5), STEPS, 4.5, "euler", "normal", positive, negative,
                        latent, callback=lambda *_: pause(True), disable_pbar=True, seed=5,
                    )  # fmt: skip

            totals: dict[str, list[tuple[float, float]]] = {"stock": [], "ours": []}
            for _ in range(pairs):
                times = take_turns({arm: lambda pause, arm=arm: sample(arm, pause) for arm in arms})
                for arm, steps in times.items():
                    totals[arm].append((sum(s.wall for (s,) in steps), sum(s.cpu for (s,) in steps)))
            ratio = [[o[kind] / s[kind] for o, s in zip(totals["ours"], totals["stock"], strict=True)] for kind in (0, 1)]
            wall, cpu = (statistics.median(each) for each in ratio)
            seconds_of_stock = statistics.median(s[0] for s in totals["stock"])
            runs.append({"pixels": pixels, "wall": wall, "cpu": cpu, "stock_wall": seconds_of_stock, "pairs": pairs})
    return {"runs": runs, "import_seconds": import_seconds(), "nodes_seconds": ours - stock}
