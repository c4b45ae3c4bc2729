"""The cost of AsynDM: a sampling step of ours against stock ComfyUI's, in turn, on the same random weights.

    python -m benchmarks.speed                      # SD1.5-size UNet, 64x64 latents, CFG
    python -m benchmarks.speed --size 32 --runs 5

Needs a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI) and its requirements. Prints the median step times with their spread,
their ratio, and the ratio of peak memory (each arm in a process of its own). Ours reads attention at every step and
has as many distinct timesteps as the words' masks make.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

from .real_comfyui import ROOT, load_pack

MEMORY_STEPS = 4
"""Enough for one step with a map of timesteps."""

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True,
    "legacy": False, "adm_in_channels": None,
}  # fmt: skip


def random_model() -> Any:
    """A ModelPatcher of SD1.5's size with random weights whose activations stay finite."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models_base
    import torch

    config = comfy.supported_models_base.BASE({**SD15, "dtype": torch.float32})
    config.latent_format = comfy.latent_formats.SD15()
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = comfy.ops.disable_weight_init
    torch.manual_seed(0)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu").eval()
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.7 / weight[0].numel() ** 0.5)
        else:
            torch.nn.init.constant_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


class Bench:
    """Both arms on one model: each call of ``run`` samples once and gives the seconds of the steps that count.

    The first two steps of a run have one timestep for all pixels (no attention was seen yet) and warm up; the last has
    one too (all pixels arrive together). The steps between count.
    """

    def __init__(self, size: int, steps: int) -> None:
        load_pack()
        import torch
        from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
        from asyndm_pack.nodes.comfy_run import Options, apply
        from asyndm_pack.nodes.conditioning import ANNOTATION, Annotation

        self.steps, self.size = steps, size
        self.timesteps: list[int] = []
        self.model = random_model()
        generator = torch.Generator().manual_seed(1)
        annotation = {ANNOTATION: Annotation({"rabbit": (2,), "ball": (5, 6)}, 77)}
        self.positive = [[torch.randn(1, 77, 768, generator=generator), annotation]]
        self.negative = [[torch.randn(1, 77, 768, generator=generator), {}]]
        timestep_map = TimestepMap(Regions((Target("rabbit"), Target("ball", 0.4))))
        count = Options(on_step=lambda snapshot: self.timesteps.append(len(snapshot.sigma.unique())))
        self.models = {"stock": self.model, "ours": apply(self.model, timestep_map, count)}

    def run(self, arm: str) -> list[float]:
        """Seconds of the steps of one run of ``arm`` ("stock" or "ours")."""
        import comfy.sample
        import torch

        times: list[float] = []
        latent = torch.zeros(1, 4, self.size, self.size)
        comfy.sample.sample(
            self.models[arm], comfy.sample.prepare_noise(latent, 3), self.steps, 7.0, "euler", "normal", self.positive,
            self.negative, latent, callback=lambda *_: times.append(time.perf_counter()), disable_pbar=True, seed=3,
        )  # fmt: skip
        return [b - a for a, b in pairwise(times[1:-1])]


def peak_memory(arm: str, size: int, steps: int) -> float:
    """Peak resident memory (GiB) of a process that runs one arm."""
    command = [sys.executable, "-m", "benchmarks.speed", "--arm", arm, "--size", str(size), "--steps", str(steps)]
    return float(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the latents")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run; the first two and the last do not count")
    parser.add_argument("--runs", type=int, default=2, help="runs of each arm, in turn")
    parser.add_argument("--arm", choices=["stock", "ours"], help="run one arm once and print its peak memory in GiB")
    options = parser.parse_args()
    if options.arm:
        Bench(options.size, options.steps).run(options.arm)
        sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.3f}\n")
        return
    bench = Bench(options.size, options.steps)
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(options.runs):
        for arm, measured in times.items():
            measured += bench.run(arm)
    for arm, measured in times.items():
        sys.stdout.write(
            f"{arm:6s} step: median {statistics.median(measured):.3f} s, {min(measured):.3f} to {max(measured):.3f} s "
            f"({len(measured)} steps)\n"
        )
    ratio = statistics.median(times["ours"]) / statistics.median(times["stock"])
    least = min(times["ours"]) / min(times["stock"])
    distinct = max(bench.timesteps)
    memory = {arm: peak_memory(arm, options.size, MEMORY_STEPS) for arm in times}
    sys.stdout.write(f"ratio of step times: {ratio:.3f} (of the fastest: {least:.3f}), up to {distinct} distinct sigmas\n")
    sys.stdout.write(
        f"peak memory: stock {memory['stock']:.2f} GiB, ours {memory['ours']:.2f} GiB, "
        f"ratio {memory['ours'] / memory['stock']:.3f}\n"
    )


if __name__ == "__main__":
    main()
