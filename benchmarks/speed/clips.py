"""Clips: one timestep for every token by rows, against ComfyUI's own timesteps per token and against a single one.

The networks are Wan's in the width of its 1.3B model with a few of its blocks, on random weights; a clip of 21 latent frames is
so small that a CPU is done with it in seconds. The 5B model is given a first frame by a denoise mask, and so a timestep for
each frame by ComfyUI itself.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..real_comfyui import load_pack
from .duel import random_model
from .memory import attention_as_on_a_gpu, held
from .rows import TRANSFORMERS

ROUNDS = 2
FRAMES, HEIGHT, WIDTH = 21, 12, 20
DISTINCT = (20, 300)
STOCK = "one timestep"
"""The arm that all are compared with."""


@dataclass(frozen=True)
class Case:
    """A model of TRANSFORMERS, and whether a frame is given."""

    model: str
    given: bool = False


CASES = (Case("Wan 2.1 1.3B, 2 blocks"), Case("Wan 2.2 5B, 2 blocks", True))
TINY = (Case("Wan 2.1 1.3B tiny"), Case("Wan 2.2 5B tiny", True))


class Evaluation:
    """One evaluation of a case, as ComfyUI's sampling makes it, at maps of noise levels or without."""

    def __init__(self, case: Case, size: tuple[int, ...]) -> None:
        import torch
        from asyndm_pack.nodes.comfy.network import network_of

        known = TRANSFORMERS[case.model]
        self.model = random_model(case.model).model
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(1, known.network["in_dim"], *size, generator=generator)
        self.inputs: dict[str, Any] = {"c_crossattn": torch.randn(1, known.tokens, known.width, generator=generator)}
        if case.given:
            self.inputs["denoise_mask"] = torch.ones(1, 1, *size)
            self.inputs["denoise_mask"][:, :, 0] = 0
        self.network = network_of(self.model, self.x)
        self.sigma = torch.tensor([0.8])

    @property
    def tokens(self) -> int:
        """Of the clip."""
        return self.x[0, 0].numel() // 4

    @property
    def width(self) -> int:
        """Of the network."""
        return self.model.diffusion_model.dim

    def map(self, distinct: int) -> tuple[Any, Any]:
        """A random map of so many noise levels, even within tokens: their values, and which of them each pixel has."""
        import torch

        frames, height, width = self.x.shape[2:]
        generator = torch.Generator().manual_seed(2)
        index = torch.randint(0, distinct, (1, frames, height // 2, width // 2), generator=generator)
        return torch.linspace(0.8, 0.3, distinct), index.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def __call__(self, told: Any = None) -> Any:
        """What the model makes of the latents, within a context."""
        import torch

        with torch.inference_mode(), told or nullcontext():
            return self.model._apply_model(self.x, self.sigma, transformer_options={}, **self.inputs)

    def by_rows(self, distinct: int) -> Any:
        """The context of our way."""
        from asyndm_pack.asyndm_core.embedding import PixelTimesteps

        values, index = self.map(distinct)
        return self.network.told(self.model, PixelTimesteps(values, index), index, self.inputs)

    @contextmanager
    def per_token(self, distinct: int) -> Iterator[None]:
        """ComfyUI's own way: Wan's network takes a timestep for each token."""
        from asyndm_pack.nodes.comfy.model import MapSampling

        values, index = self.map(distinct)
        sampling = self.model.model_sampling
        timesteps = sampling.timestep(values)[index[:, :, ::2, ::2]].flatten(1)
        self.model.model_sampling = MapSampling(sampling, values[index], timesteps)
        try:
            yield
        finally:
            self.model.model_sampling = sampling

    def arms(self, given: bool) -> dict[str, Callable[[], Any]]:
        """What is compared. given: whether a frame is: then ComfyUI has a timestep for each frame, which stands for its own."""
        ours = {f"rows, {n} distinct": lambda n=n: self(self.by_rows(n)) for n in DISTINCT}
        native = (
            {} if given else {f"ComfyUI's own per token, {n} distinct": lambda n=n: self(self.per_token(n)) for n in DISTINCT}
        )
        return {STOCK: self, **ours, **native}


def measure_case(case: Case, size: tuple[int, ...]) -> dict[str, Any]:
    """Of each arm the CPU seconds of an evaluation, how much it holds beside the weights, and of what size at once."""
    evaluation = Evaluation(case, size)
    arms = evaluation.arms(case.given)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    answers = {name: run() for name, run in arms.items()}  # and warm
    for _ in range(ROUNDS):
        for name, run in arms.items():
            began = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - began)
    lines = {}
    for name, run in arms.items():
        peak, sizes = held(run)
        spread = [own / stock for own, stock in zip(seconds[name], seconds[STOCK], strict=True)]
        lines[name] = {
            "seconds": statistics.median(seconds[name]), "ratio": statistics.median(spread), "peak": peak,
            "as large": sum(bytes_ >= 4 * evaluation.tokens * 6 * evaluation.width for bytes_ in sizes),
        }  # fmt: skip
    for name, line in lines.items():
        own = name.replace("rows", "ComfyUI's own per token")
        if name != own and own in answers:
            line["difference"] = float((answers[name] - answers[own]).abs().max() / answers[own].abs().max())
    return {"tokens": evaluation.tokens, "width": evaluation.width, "lines": lines}


VIEWED = {"832 x 480, 81 frames": (21, 60, 104), "1280 x 720, 121 frames": (31, 90, 160)}
"""Clips whose live view is measured, by the size of their latents (T, H, W)."""


def measure_view(step: float, size: tuple[int, ...]) -> dict[str, Any]:
    """The CPU seconds that the live view takes in a step of clips of a size, with two words and a region each.

    step: seconds of an evaluation by the measured network on the clip of its own size.
    """
    import comfy.latent_formats
    import torch
    from asyndm_pack.asyndm_core.attention import Attention
    from asyndm_pack.asyndm_core.live import Live
    from asyndm_pack.asyndm_core.run import Snapshot
    from asyndm_pack.nodes.comfy.latent_rgb import latent_to_rgb

    def snapshot(number: int, size: tuple[int, ...]) -> Snapshot:
        latents, maps = torch.randn(1, 16, *size), torch.rand(1, *size)
        seen = Attention(torch.rand(1, 2, size[0], size[1] // 2, size[2] // 2), torch.ones(1, 2, 1, 1, 1))
        owner = torch.randint(-1, 2, (1, *size))
        return Snapshot(number, latents, latents, maps[:, None], number * maps, owner, seen)

    def seconds(size: tuple[int, ...]) -> float:
        send = lambda frames: json.dumps([{**f._asdict(), "data": base64.b64encode(f.data.numpy()).decode()} for f in frames])  # noqa: E731
        view = Live(20, send, latent_to_rgb(comfy.latent_formats.Wan21()), clock=lambda: float("inf"))
        shots = [snapshot(number, size) for number in range(1, 6)]
        view(shots[0])
        began = time.thread_time()
        for each in shots[1:]:
            view(each)
        return (time.thread_time() - began) / len(shots[1:])

    return {"own": seconds(size), "step": step, "others": {name: seconds(shape) for name, shape in VIEWED.items()}}


def measure_clips(size: tuple[int, ...] = (FRAMES, HEIGHT, WIDTH), cases: tuple[Case, ...] = CASES) -> dict[str, Any]:
    """clips.json."""
    load_pack()
    import comfyui_version
    import torch

    torch.set_num_threads(1)
    with attention_as_on_a_gpu():
        found = {case.model: measure_case(case, size) for case in cases}
    step = found[cases[0].model]["lines"][STOCK]["seconds"]
    about = {"ComfyUI": comfyui_version.__version__, "PyTorch": torch.__version__, "size": list(size)}
    return {**about, "cases": found, "view": measure_view(step, size)}


def clips_table(results: dict[str, Any]) -> str:
    """clips.md."""
    frames, height, width = results["size"]
    lines = [
        "A clip whose tokens have timesteps of their own: by rows, as AsynDM has them, and as Wan takes them per token itself.",
        "",
        f"Random weights in float32 in the width of Wan 2.1 1.3B, latents of {frames} x {height} x {width}, ComfyUI "
        f"{results['ComfyUI']}, PyTorch {results['PyTorch']}, one",
        f"thread. Time: CPU seconds of one evaluation, the median of {ROUNDS}, and its ratio to that with one timestep. Beside "
        "weights: the peak",
        "of what tensors hold. As large: how many tensors of tokens x 6 x width numbers or more are made. Difference: the "
        "greatest from",
        "ComfyUI's own per token, relatively. The model of 5B is given a first frame by a denoise mask: then ComfyUI itself",
        "has a timestep for each frame, also in the line of one timestep.",
        "",
        "| network | timesteps | time, s | ratio | beside weights, MiB | more than with one, MiB | as large | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in results["cases"].items():
        for name, line in found["lines"].items():
            more = (line["peak"] - found["lines"][STOCK]["peak"]) / 2**20
            apart = f"{line['difference']:.1e}" if "difference" in line else ""
            lines.append(
                f"| {case}, {found['tokens']} tokens | {name} | {line['seconds']:.2f} | {line['ratio']:.3f} | "
                f"{line['peak'] / 2**20:.0f} | {more:.0f} | {line['as large']} | {apart} |"
            )
    view = results["view"]
    others = ", ".join(f"{1000 * seconds:.1f} ms at {name}" for name, seconds in view["others"].items())
    lines += [
        "",
        f"The live view takes {1000 * view['own']:.1f} ms of a step on this clip, {100 * view['own'] / view['step']:.2f} % of "
        "an evaluation by these few blocks;",
        f"{others}.",
    ]
    return "\n".join(lines) + "\n"


def write_clips(results: dict[str, Any], folder: Path) -> None:
    """clips.json and clips.md in a folder."""
    (folder / "clips.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "clips.md").write_text(clips_table(results))
