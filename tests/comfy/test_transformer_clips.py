"""Transformers of clips: a timestep for every token of every frame, exactly."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import comfy.ops
import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from asyndm_pack.nodes.comfy.network import network_of
from families import CLIPS, MODELS, NOT_ODD, ONE_AT_A_TIME, empty, make_transformer, prompt, random, transformer
from test_transformer_machines import in_fp8, in_quantised_tensors
from test_transformers import TOLERANCE, VERSION, Call, calls_of, exchanged, left
from tiny import asyn, difference, hooks_of, ksampler, painted
from torch import Tensor

from nodes import KSamplerAdvanced

every_clip = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.whole] if CLIPS[name].whole else []) for name in CLIPS]
)


class Evaluation:
    """An evaluation of a model, as ComfyUI's sampler asks for it: at one sigma, and then at a map of them.

    Of two clips, with a prompt and its negative, if not said otherwise.
    """

    def __init__(
        self, name: str, size: tuple[int, ...] | None = None, batch: int = 2, cfg: float = 2.0, mask: Tensor | None = None,
        patched: Any = None,
    ) -> None:  # fmt: skip
        if name in ONE_AT_A_TIME.get(VERSION, ()) and (batch > 1 or cfg != 1):
            pytest.skip("this ComfyUI itself has one at a time")
        self.patched = patched or transformer(name)
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


def test_a_clip_that_refers_to_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """HunyuanVideo; ComfyUI has one at a time."""
    more = lambda: {**CLIPS[name].more(), "ref_latent": random(1, 16, 1, 12, 16)}  # noqa: E731
    name = "HunyuanVideo"
    monkeypatch.setitem(MODELS, name, CLIPS[name]._replace(more=more))
    evaluation = Evaluation(name, batch=1, cfg=1.0)
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert "ref_latent" in call.kwargs and difference(call.output, evaluation.stock.output) < TOLERANCE


def odd(value: Any) -> Any:
    """Conditioning with what is as large as the latents, or half as large, for latents of 13 x 15."""
    if isinstance(value, dict):
        return {key: odd(each) for key, each in value.items()}
    if isinstance(value, list):
        return [odd(each) for each in value]
    size = {(12, 16): (13, 15), (6, 8): (7, 8)}.get(tuple(value.shape[-2:])) if isinstance(value, Tensor) else None
    return value if size is None else random(*value.shape[:-2], *size, seed=3)


@every_clip
def test_odd_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tokens are cut off by the edge, as the network pads them."""
    monkeypatch.setitem(MODELS, name, CLIPS[name]._replace(more=lambda: odd(CLIPS[name].more())))
    evaluation = None
    with suppress(RuntimeError, AssertionError, ValueError):
        evaluation = Evaluation(name, (CLIPS[name].frames, 13, 15))
    assert VERSION not in NOT_ODD or (evaluation is None) == (name in NOT_ODD[VERSION])
    if evaluation is None:
        pytest.skip(f"{name} itself has no odd sizes")
    call, _ = evaluation.at(evaluation.levels(5), evaluation.map(5))
    assert difference(call.output, exchanged(evaluation.model.diffusion_model, call)) < TOLERANCE


@every_clip
def test_bfloat16(name: str) -> None:
    evaluation = Evaluation(name, patched=make_transformer(name, torch.bfloat16))
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert call.output.dtype == torch.bfloat16
    assert difference(call.output.float(), evaluation.stock.output.float()) < 0.03


# --- quantised layers ------------------------------------------------------------------------------------------------------

QUANTISED = ("Wan 2.1 and 2.2 T2V", "Wan 2.2 5B", "HunyuanVideo", "Cosmos Predict2 Video")


def check_even(evaluation: Evaluation) -> None:
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert difference(call.output.float(), evaluation.stock.output.float()) < 0.03
    call, _ = evaluation.at(evaluation.levels(5), evaluation.map(5))
    assert difference(call.output.float(), evaluation.stock.output.float()) > 1e-3


@pytest.mark.whole
@pytest.mark.parametrize("name", QUANTISED)
def test_fp8_layers_stay_in_fp8(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that compute in fp8 see ordinary batches: none of them falls back."""
    patched, kinds = in_fp8(name, monkeypatch)
    check_even(Evaluation(name, patched=patched))
    assert kinds and TimestepRows not in kinds


@pytest.mark.whole
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_tensors(name: str) -> None:
    patched = in_quantised_tensors(name)
    check_even(Evaluation(name, patched=patched))


# --- timesteps per token that networks have themselves ---------------------------------------------------------------------


def of_tokens(call: Call) -> Tensor:
    """The timestep of every token (B, *grid)."""
    places, every = call.rows.places, call.rows.every
    picture = torch.arange(every.shape[1]).view(-1, *[1] * len(places.grid))
    return every[places.places, picture]


def test_wan_is_told_as_by_its_own_timestep_per_token() -> None:
    evaluation = Evaluation("Wan 2.1 and 2.2 T2V")
    call, _ = evaluation.at(evaluation.levels(20), evaluation.map(20))
    told = of_tokens(call).flatten(1)
    own = evaluation.model.diffusion_model(call.args[0], told, *call.args[2:], **call.kwargs)
    assert told.unique().numel() == 20 and difference(call.output, own) < 1e-6


def test_cosmos_is_told_as_by_its_own_timestep_per_frame() -> None:
    evaluation = Evaluation("Cosmos Predict2 Video")
    frames = torch.arange(3).view(1, 3, 1, 1).expand(evaluation.args[0].shape[0], *evaluation.size)
    call, _ = evaluation.at(evaluation.levels(3), frames)
    own = evaluation.model.diffusion_model(call.args[0], of_tokens(call)[:, :, 0, 0], *call.args[2:], **call.kwargs)
    assert difference(call.output, own) < 1e-6


FIRST = torch.ones(3, 12, 16)
FIRST[0] = 0
"""The first frame of a clip is given."""
PART = FIRST.clone()
PART[1, :, 5:] = 0.25
"""And part of the second."""


@pytest.mark.parametrize("mask", [FIRST, PART], ids=["a frame", "a part of one"])
@pytest.mark.parametrize("name", ["Wan 2.2 5B", "Cosmos Predict2 Video"])
def test_frames_that_are_given_have_less_noise(name: str, mask: Tensor) -> None:
    """The network's timestep of each frame goes by how much of it is drawn: that of every pixel of a map too.

    There are as many as differ, not one for each frame.
    """
    evaluation = Evaluation(name, mask=mask)
    assert evaluation.stock.args[1].shape == (4, 3)
    call, _ = evaluation.at(torch.full((3,), evaluation.sigma), evaluation.map(3))
    assert difference(call.output, evaluation.stock.output) < TOLERANCE
    call, denoised = evaluation.at(evaluation.levels(5), evaluation.map(5))
    shares = len(mask.mean(dim=(1, 2)).unique())
    assert type(call.output) is type(denoised) is Tensor and call.rows.every.shape == (1 + 5 * shares, 4)
    assert difference(call.output, exchanged(evaluation.model.diffusion_model, call)) < TOLERANCE
    assert difference(call.output, evaluation.stock.output) > 1e-3


@pytest.mark.parametrize("name", ["Wan 2.2 5B", "Cosmos Predict2 Video"])
def test_a_run_from_a_given_frame(name: str) -> None:
    """From the first frame to the last step: what is even is stock, and a region that lags lags as in mode concave."""
    samples = random(*empty(name, 1)["samples"].shape, seed=4)
    run = {"steps": 4, "cfg": 2.0, "scheduler": "simple", "positive": prompt(name), "negative": prompt(name, 6),
           "image": {"samples": samples, "noise_mask": FIRST}}  # fmt: skip
    stock = ksampler(transformer(name), **run)
    whole, half = painted(torch.ones(1, 12, 16)), painted(left(12, 16))
    concave = ksampler(asyn(transformer(name), whole, mode="concave"), **run)
    assert difference(ksampler(asyn(transformer(name), whole), **run), concave) < TOLERANCE
    assert difference(concave, stock) > 1e-3
    ours = ksampler(asyn(transformer(name), half), **run)
    assert difference(ours[:, :, :1], samples[:, :, :1]) < TOLERANCE
    assert difference(ours, stock) > 1e-3


# --- Wan's two experts -----------------------------------------------------------------------------------------------------

WAN = "Wan 2.1 and 2.2 T2V"


def with_other_weights() -> Any:
    made = make_transformer(WAN)
    for parameter in made.model.diffusion_model.parameters():
        parameter.data = parameter.data * (1 + 0.2 * random(*parameter.shape, seed=parameter.numel()))
    return made


def by_two(high: Any, low: Any) -> Tensor:
    """KSampler (Advanced) twice: each expert has its steps."""
    common = (7, 6, 2.0, "euler", "simple", prompt(WAN), prompt(WAN, 6))
    first = KSamplerAdvanced().sample(high, "enable", *common, empty(WAN), 0, 3, "enable")[0]
    return KSamplerAdvanced().sample(low, "disable", *common, first, 3, 6, "disable")[0]["samples"]


def with_clock(patched: Any, **more: Any) -> Any:
    sigmas = comfy.samplers.calculate_sigmas(patched.model.model_sampling, "simple", 6)
    return asyn(patched, painted(left(12, 16)), sigmas=sigmas, **more)


def test_two_experts_that_are_one_model_are_one_run() -> None:
    common = (7, 6, 2.0, "euler", "simple", prompt(WAN), prompt(WAN, 6))
    one = KSamplerAdvanced().sample(with_clock(transformer(WAN)), "enable", *common, empty(WAN), 0, 6, "disable")[0]["samples"]
    two = by_two(with_clock(transformer(WAN)), with_clock(make_transformer(WAN)))
    assert difference(two, one) < TOLERANCE
    assert difference(one, by_two(transformer(WAN), transformer(WAN))) > 1e-3


def test_two_experts_have_their_own_steps() -> None:
    """As one run of a model whose weights are changed for the second's in the middle."""
    high, low, changing = transformer(WAN), with_other_weights(), make_transformer(WAN)
    with calls_of(high) as of_high, calls_of(low) as of_low:
        ours = by_two(with_clock(high), with_clock(low))
    assert len(of_high) == len(of_low) == 3
    assert all(isinstance(call.args[1], TimestepRows) for call in of_high[1:])
    first, last = (float(calls[n].kwargs["transformer_options"]["sigmas"][0]) for calls, n in ((of_high, -1), (of_low, 0)))
    assert last < first

    def change(snapshot: Snapshot) -> None:
        if snapshot.step == 2:
            changing.model.diffusion_model.load_state_dict(low.model.diffusion_model.state_dict())

    common = (7, 6, 2.0, "euler", "simple", prompt(WAN), prompt(WAN, 6))
    clocked = with_clock(changing, on_step=change)
    one = KSamplerAdvanced().sample(clocked, "enable", *common, empty(WAN), 0, 6, "disable")[0]["samples"]
    assert difference(ours, one) < TOLERANCE
    assert difference(ours, by_two(with_clock(high), with_clock(high))) > 1e-3
