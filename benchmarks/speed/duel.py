"""Our step against stock ComfyUI's: same weights, same inputs, in turn."""

from __future__ import annotations

import base64
import cProfile
import json
import pstats
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any
from unittest.mock import patch

from asyndm_core.hooks import hooked

from ..real_comfyui import load_pack
from .lockstep import Pause, Steps, take_turns
from .memory import peak
from .rows import MODELS, TRANSFORMERS, Row, Transformer, is_narrow

PARTS = {
    "grouping": ["embedding.py:grouped"],
    "masks": ["regions.py:weights", "regions.py:assign"],
    "move": ["run.py:move", "run.py:levels"],
    "gather": ["embedding.py:gather"],
    "capture": ["attention.py:add", "attention.py:mean"],
    "folding": ["model.py:calculate_input", "model.py:calculate_denoised"],
    "live view": ["live.py:__call__"],
}
"""Functions whose time, with all that they call, is a part's."""


def empty_model(name: str, device: Any, dtype: Any) -> Any:
    """ComfyUI's model of this name, its weights as memory was."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.ops
    import comfy.supported_models
    import comfy.supported_models_base

    if name in TRANSFORMERS:
        known = TRANSFORMERS[name]
        config = getattr(comfy.supported_models, known.kind)({**known.network, "dtype": dtype})
    else:
        config = comfy.supported_models_base.BASE({**MODELS[name], "dtype": dtype})
        config.latent_format = comfy.latent_formats.SD15()
    config.set_inference_dtype(dtype, None)
    config.custom_operations = comfy.ops.disable_weight_init
    if name in TRANSFORMERS:
        return config.get_model({}, "", device)
    family = comfy.model_base.BaseModel if MODELS[name]["adm_in_channels"] is None else comfy.model_base.SDXL
    return family(config, comfy.model_base.ModelType.EPS, device=device)


def random_model(name: str, twin: Any = None, device: str = "cpu", dtype: str = "float32") -> Any:
    """A ModelPatcher with random weights whose activations stay finite; with those of ``twin``, another one, if given.

    The weights are made on the device, and stay there.
    """
    import comfy.model_patcher
    import torch

    place = torch.device(device)
    torch.manual_seed(0)
    model = empty_model(name, place, getattr(torch, dtype)).eval()
    patcher = comfy.model_patcher.ModelPatcher(model, place, place)
    if twin is not None:
        for module, other in zip(model.modules(), twin.model.modules(), strict=True):
            module._parameters.update(other._parameters)
            module._buffers.update(other._buffers)
        return patcher
    for weight_name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.7 / weight[0].numel() ** 0.5)
        else:
            torch.nn.init.constant_(weight, 0.0 if weight_name.endswith("bias") else 1.0)
    return patcher


def random_pair(name: str, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """Two ModelPatchers with the same random weights: stock's and ours."""
    stock = random_model(name, device=device, dtype=dtype)
    return stock, random_model(name, stock, device, dtype)


@contextmanager
def paused_after_parts(unets: Sequence[Any], narrow: bool, pause: Callable[[], None]) -> Iterator[None]:
    """While it lasts, ``pause`` is called after every part of the UNets.

    That is a layer (a convolution, a norm, a projection...); of a narrow UNet a whole block, since its layers are so quick
    that handing over would be much of their time.
    """
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    modules = [module for unet in unets for module in unet.modules()]
    parts = [m for m in modules if (isinstance(m, (ResBlock, SpatialTransformer)) if narrow else not list(m.children()))]
    with hooked(part.register_forward_hook(lambda *_: pause()) for part in parts):
        yield


@contextmanager
def spread(distinct: int) -> Any:
    """While it lasts, maps have so many distinct timesteps in every step: neighbouring pixels share one.

    The clock's own arithmetic is done too. One is the stock sampler's own sigma.
    """
    import torch
    from asyndm_pack.asyndm_core.clock import Clock
    from asyndm_pack.nodes.comfy.host import ComfyHost

    clock_of = ComfyHost.clock

    @dataclass(frozen=True)
    class Spread(Clock):
        def sigma(self, state: Any, step: int) -> Any:
            own = super().sigma(state, step)
            if step >= self.steps or state.ndim == 0:
                return own
            if distinct == 1:
                return self.sigmas[step].expand_as(state)
            pixels = state[0].numel()
            rank = torch.arange(pixels, device=state.device) * distinct // pixels
            positions = torch.linspace(self.grid.sigmas.shape[0] - 1, 0, distinct, device=state.device)[rank]
            return self.grid.at(positions).view(state[0].shape).expand_as(state)

    def clock(self: Any, *args: Any) -> Any:
        made = clock_of(self, *args)
        return Spread(*(getattr(made, field.name) for field in fields(made)))

    with patch.object(ComfyHost, "clock", clock):
        yield


class Bench:
    """Both arms of a row. pair: the models of stock and ours, made already; None: they are made, on the CPU."""

    def __init__(self, row: Row, pair: tuple[Any, Any] | None = None) -> None:
        if pair is None:
            load_pack()
        import torch
        from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
        from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
        from asyndm_pack.nodes.comfy.sampling import Options, apply

        torch.set_num_threads(1)
        self.row, self.distinct = row, 0
        stock, ours = pair or random_pair(row.model)
        self.unets = {"stock": stock.model.diffusion_model, "ours": ours.model.diffusion_model}
        generator = torch.Generator().manual_seed(1)
        text = TRANSFORMERS.get(row.model) or Transformer("", {}, 77, MODELS[row.model]["context_dim"], 1280)
        self.framed = text.framed
        annotation = {ANNOTATION: Annotation({"rabbit": (2,), "ball": (5, 6)}, text.tokens)}

        def cond(**options: Any) -> list:
            if text.pooled is not None:
                options["pooled_output"] = torch.randn(1, text.pooled, generator=generator)
            return [[torch.randn(1, text.tokens, text.width, generator=generator), options]]

        self.positive, self.negative = cond(**annotation), cond()
        words = (Target("rabbit"), Target("ball", 0.4))
        if row.capture == "off":
            regions = Regions(mask=torch.linspace(0, 1, 64).view(1, 8, 8), mask_mode="replace")
        else:
            regions = Regions(words, update="fixed" if row.capture == "fixed" else "every step")
        view = self._live if row.preview else None
        options = Options(on_step=self._count, on_run=view)
        self.models = {"stock": stock, "ours": apply(ours, TimestepMap(regions), options)}

    def _count(self, snapshot: Any) -> None:
        if snapshot.step == 0:
            self.distinct = len(snapshot.sigma.unique())

    def _live(self, start: Any) -> Any:
        from asyndm_pack.asyndm_core.live import Live
        from asyndm_pack.nodes.comfy.latent_rgb import latent_to_rgb

        def send(frames: list) -> None:
            packed = [{**f._asdict(), "data": base64.b64encode(f.data.numpy()).decode()} for f in frames]
            json.dumps(packed)

        return Live(start.steps, send, latent_to_rgb(start.latent_format))

    def sample(self, arm: str, steps: int, after_step: Callable[[], None] = lambda: None) -> Any:
        """One run of an arm by ComfyUI's own sampling. Returns the latents."""
        import comfy.sample
        import torch

        with torch.inference_mode():
            channels = self.models[arm].model.latent_format.latent_channels
            frames, side = [self.row.frames] if self.framed else [], self.row.pixels // 8
            latent = torch.zeros(self.row.batch, channels, *frames, side, side)
            return comfy.sample.sample(
                self.models[arm], comfy.sample.prepare_noise(latent, 3), steps, 7.0 if self.row.cfg else 1.0, "euler", "normal",
                self.positive, self.negative, latent, callback=lambda *_: after_step(), disable_pbar=True, seed=3,
            )  # fmt: skip

    def duel(self, pairs: int) -> dict[str, Steps]:
        """Steps of both arms, in turn part by part. The first step warms up: it is one part, and does not count."""
        own = threading.local()

        def after_part() -> None:
            if hasattr(own, "pause"):
                own.pause(False)

        def run(arm: str, pause: Pause) -> None:
            def after_step() -> None:
                pause(True)
                own.pause = pause

            self.sample(arm, pairs + 1, after_step)

        with spread(self.row.distinct), paused_after_parts(list(self.unets.values()), is_narrow(self.row.model), after_part):
            times = take_turns({arm: lambda pause, arm=arm: run(arm, pause) for arm in self.models})
        return {arm: steps[1:] for arm, steps in times.items()}

    def memory(self) -> dict[str, int]:
        """The peak of each arm's tensors in a run of two steps, bytes; the model's weights are not among them."""
        with spread(self.row.distinct):
            return {arm: peak(lambda arm=arm: self.sample(arm, 2)) for arm in self.models}  # type: ignore[misc]

    def parts(self, steps: int = 2) -> dict[str, float]:
        """Shares of our parts in the time of a stock step, by a profiler that counts this thread's CPU time.

        "embedding" is what the timesteps' own layers take beyond stock's.
        """
        spent, profile = {}, cProfile.Profile(time.thread_time)
        for arm, unet in self.unets.items():
            layers = [unet.time_embed, *(m.emb_layers for m in unet.modules() if hasattr(m, "emb_layers"))]
            clock, total = [0.0], [0.0]

            def begin(module: Any, inputs: tuple, clock: list = clock) -> None:
                clock[0] = time.thread_time()

            def end(module: Any, inputs: tuple, output: Any, clock: list = clock, total: list = total) -> None:
                total[0] += time.thread_time() - clock[0]

            hooks = (hook for m in layers for hook in (m.register_forward_pre_hook(begin), m.register_forward_hook(end)))
            began = time.thread_time()
            with spread(self.row.distinct), hooked(hooks):
                if arm == "ours":
                    profile.enable()
                self.sample(arm, steps)
                profile.disable()
            spent[arm] = (time.thread_time() - began, total[0])
        stock = spent["stock"][0]
        shares = {"embedding": (spent["ours"][1] - spent["stock"][1]) / stock}
        stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        ours = [(f"{file.rsplit('/', 1)[-1]}:{name}", times[3]) for (file, _, name), times in stats.items()]
        by_name = lambda names: sum(seconds for name, seconds in ours if name in names)  # noqa: E731
        shares |= {part: by_name(names) / stock for part, names in PARTS.items()}
        shares["sampler"] = (by_name(["samplers.py:step"]) - by_name(["run.py:__call__"])) / stock
        return shares
