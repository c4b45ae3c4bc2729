"""Transformers of clips: a timestep for every token of every frame, exactly."""

from __future__ import annotations

import pytest
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from asyndm_pack.nodes.comfy.network import network_of
from families import CLIPS, ONE_AT_A_TIME, empty, prompt, random, transformer
from test_transformers import TOLERANCE, VERSION, Call, calls_of, exchanged
from tiny import difference, hooks_of, ksampler
from torch import Tensor

every_clip = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.whole] if CLIPS[name].whole else []) for name in CLIPS]
)


class Evaluation:
    """An evaluation of a model, as ComfyUI's sampler asks for it: at one sigma, and then at a map of them.

    Of two clips, with a prompt and its negative, if not said otherwise.
    """

    def __init__(
        self, name: str, size: tuple[int, ...] | None = None, batch: int = 2, cfg: float = 2.0, mask: Tensor | None = None
    ) -> None:  # fmt: skip
        if name in ONE_AT_A_TIME.get(VERSION, ()) and (batch > 1 or cfg != 1):
            pytest.skip("this ComfyUI itself has one at a time")
        self.patched = transformer(name)
        self.model = self.patched.model
        samples = empty(name, batch, size)["samples"]
        image = {"samples": samples} if mask is None else {"samples": random(*samples.shape, seed=4), "noise_mask": mask}
        given: list[tuple[tuple, dict]] = []
        own = self.model._apply_model
        self.model._apply_model = lambda *args, **kwargs: given.append((args, kwargs)) or own(*args, **kwargs)
        try:
            with calls_of(self.patched) as calls:
                ksampler(self.patched, steps=2, cfg=cfg, scheduler="simple", positive=prompt(name), negative=prompt(name, 6),
                         image=image)  # fmt: skip
        finally:
            del self.model._apply_model
        (self.args, self.kwargs), self.stock = given[0], calls[0]
        self.size = tuple(self.args[0].shape[2:])
        self.network = network_of(self.model, samples)

    def map(self, levels: int) -> Tensor:
        """Of so many levels, one for each token."""
        grid = [-(-size // extent) for size, extent in zip(self.size, self.network.patch, strict=True)]
        generator = torch.Generator().manual_seed(2)
        index = torch.randint(0, levels, (self.args[0].shape[0], *grid), generator=generator)
        for dim, (extent, size) in enumerate(zip(self.network.patch, self.size, strict=True), start=1):
            index = index.repeat_interleave(extent, dim).narrow(dim, 0, size)
        return index

    def at(self, values: Tensor, index: Tensor) -> tuple[Call, Tensor]:
        """The network's call at a map of sigmas, and what the model makes of it."""
        pixels = PixelTimesteps(values, index)
        with calls_of(self.patched) as calls, self.network.told(self.model, pixels, index, dict(self.kwargs)):
            denoised = self.model._apply_model(*self.args, **self.kwargs)
        assert not hooks_of(self.model.diffusion_model)
        return calls[0], denoised

    @property
    def sigma(self) -> float:
        return float(self.args[1][0])

    def levels(self, count: int) -> Tensor:
        return self.sigma * torch.linspace(1, 0.4, count)


@every_clip
def test_a_uniform_map_given_as_rows_is_stock(name: str) -> None:
    evaluation = Evaluation(name)
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert type(call.output) is Tensor
    assert difference(call.output, evaluation.stock.output) < TOLERANCE


@every_clip
def test_every_token_of_every_frame_is_exact(name: str) -> None:
    """For clips of which each has its own map; positive and negative at once."""
    evaluation = Evaluation(name)
    call, denoised = evaluation.at(evaluation.levels(5), evaluation.map(5))
    assert type(call.output) is type(denoised) is Tensor and isinstance(call.rows, TimestepRows)
    assert difference(call.output, exchanged(evaluation.model.diffusion_model, call)) < TOLERANCE
    assert difference(call.output, evaluation.stock.output) > 1e-3


def test_a_clip_that_refers_to_a_picture() -> None:
    """HunyuanVideo; ComfyUI has one at a time."""
    evaluation = Evaluation("HunyuanVideo with a reference", batch=1, cfg=1.0)
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert difference(call.output, evaluation.stock.output) < TOLERANCE
