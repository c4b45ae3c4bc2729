"""The paper preset inside ComfyUI against the authors' own numbers (tests/golden) on tiny random UNets.

The golden diffusers UNets are brought into ComfyUI's UNetModel by ComfyUI's own table of names. Integer timestep maps
and masks have to be equal, pixel by pixel. Real numbers have tolerances, all relative to the standard deviation of what
is compared, ATTENTION apart:

- FORWARD 1e-5: one UNet call. ComfyUI's kernels add up in another order than the authors' explicit attention.
- ATTENTION 1e-6 (absolute): the averaged attention of such a call, itself of order 1/77.
- STEP 5e-5: the denoised latents of one evaluation with guidance 5 from the stored latents, which are
  variance-preserving; ComfyUI's are x_ve = x_vp sqrt(1 + sigma^2).
- RUN 1e-3: a whole run from x_T; the authors' code itself moves by 2e-5 when x_T changes by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.utils
import golden
import pytest
import torch
from asyndm_pack.asyndm_core.embedding import grouped
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.host import ComfyHost
from asyndm_pack.nodes.comfy.model import ResidualBlocks, pixel_timesteps
from asyndm_pack.nodes.comfy.sampling import Options, apply
from comfy.k_diffusion import sampling as k_diffusion
from tiny import CPU, ModelType, TinyConfig, patcher
from torch import Tensor

FORWARD, ATTENTION, STEP, RUN = 1e-5, 1e-6, 5e-5, 1e-3
CURVES = {"bin": "quadratic", "lin": "piecewise linear", "exp": "exponential", None: "linear"}


# --- the golden UNets in ComfyUI ---------------------------------------------------------------------------------------


def unet_config(diffusers: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's configuration of a diffusers UNet of SD1.x's or SD2.x's kind."""
    channels = diffusers["block_out_channels"]
    heads = diffusers["attention_head_dim"]  # diffusers' name for the number of heads
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    widths = {c // h for c, h in zip(channels, heads, strict=True)}
    depth = [int(kind.startswith("CrossAttn")) for kind in diffusers["down_block_types"]]
    layers = diffusers["layers_per_block"]
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels[0],
        "num_res_blocks": [layers] * len(channels), "channel_mult": [c // channels[0] for c in channels],
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)], "transformer_depth_middle": 1,
        "num_heads": heads[0] if len(widths) > 1 else -1, "num_head_channels": -1 if len(widths) > 1 else widths.pop(),
        "use_linear_in_transformer": diffusers["use_linear_projection"], "use_spatial_transformer": True,
        "context_dim": diffusers["cross_attention_dim"], "legacy": False, "adm_in_channels": None,
        "dtype": torch.float32,
    }  # fmt: skip


@cache
def load_model(name: str, prediction: str) -> Any:
    """A golden UNet as a MODEL."""
    config = unet_config(golden.config(name))
    family = TinyConfig(config)
    family.latent_format = comfy.latent_formats.LatentFormat()
    family.set_inference_dtype(torch.float32, None)
    family.custom_operations = comfy.ops.disable_weight_init
    kind = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}[prediction]
    model = comfy.model_base.BaseModel(family, kind, device="cpu")
    table = comfy.utils.unet_to_diffusers(config)
    model.diffusion_model.load_state_dict({table[key]: value for key, value in golden.weights(name).items()}, strict=True)
    return patcher(model.eval())


# --- the cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One golden run, and how to make it."""

    facts: dict[str, Any]
    data: dict[str, Tensor]

    @property
    def steps(self) -> int:
        """N."""
        return self.facts["num_steps"]

    @property
    def words(self) -> list[str]:
        """The items, in the file's order."""
        return [f"item {token}" for token in self.facts["item_idx"]]

    @property
    def positive(self) -> list:
        """The prompt, annotated: the file counts tokens without the start token."""
        positions = {word: (token + 1,) for word, token in zip(self.words, self.facts["item_idx"], strict=True)}
        return [[self.data["prompt_embeds"], {ANNOTATION: Annotation(positions, 77)}]]

    @property
    def negative(self) -> list:
        """The negative prompt."""
        return [[self.data["neg_prompt_embeds"], {}]]

    @property
    def model(self) -> Any:
        """The MODEL, with the file's noise levels."""
        model = load_model(self.facts["model"], self.facts["prediction_type"])
        model.model.model_sampling.set_sigmas(self.grid)
        return model

    @property
    def grid(self) -> Tensor:
        """sigma of every timestep: sqrt((1 - a) / a)."""
        alphas = self.data["alphas_cumprod"]
        return ((1 - alphas) / alphas).sqrt()

    @property
    def sigmas(self) -> Tensor:
        """The table of the background: leading timesteps with offset 1, ending at timestep 0 instead of sigma 0."""
        timesteps = torch.arange(self.steps).flip(0) * (1000 // self.steps) + 1
        return self.grid[torch.cat([timesteps, torch.zeros(1, dtype=torch.long)])]

    @property
    def timestep_map(self) -> TimestepMap:
        """The paper preset with the case's regions; the base case has regions without strength, to be looked at."""
        f = self.facts
        base = f["kind"] == "base"
        strengths = [0.0] * len(self.words) if base else f["item_k"]
        targets = tuple(Target(word, k) for word, k in zip(self.words, strengths, strict=True))
        regions = Regions(targets, f["mask_thr"], "fixed" if f["kind"] == "static" else "every step")
        mode = "concave" if f["kind"] == "concave" else "asynchronous"
        return TimestepMap(regions, CURVES[f["curve_type"]], mode=mode, preset="paper")

    def map_of(self, step: int) -> Tensor:
        """The file's timesteps (B, H, W) at a step."""
        t = self.data["t_map"][step].long()
        batch, _, height, width = self.data["x_T"].shape
        return t.expand(batch, height, width)

    def sigma_of(self, step: int) -> Tensor:
        """Their sigmas (B, 1, H, W)."""
        return self.grid[self.map_of(step)][:, None]

    def saved(self, name: str) -> dict[int, Tensor]:
        """latents or noise_pred by step."""
        return dict(zip(self.data["saved_steps"].tolist(), self.data[name], strict=True))


def read(name: str) -> Case:
    """A golden run."""
    return Case(golden.CASES[name], golden.case(name))


def variance_preserving(x: Tensor, sigma: Tensor) -> Tensor:
    """The authors' coordinates."""
    return x / (1 + sigma**2).sqrt()


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference in standard deviations."""
    assert actual.shape == expected.shape and actual.isfinite().all()
    return float((actual - expected).abs().max() / expected.std())


# --- one call of the UNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scalar", "uniform", "regions", "random"])
@pytest.mark.parametrize("name", golden.UNETS)
def test_one_call(name: str, kind: str) -> None:
    """A map of timesteps, rows (uncond, cond) with maps of their own."""
    data = golden.forward(name)
    unet = load_model(name, "epsilon" if name == "U1" else "v_prediction").model.diffusion_model
    context = torch.cat([data["neg_prompt_embeds"], data["prompt_embeds"]])
    timesteps = data[f"t_{kind}"].long()
    timesteps = timesteps.view(-1, 1, 1).expand(2, 32, 32) if kind == "scalar" else timesteps
    pixels = grouped(timesteps).of(timesteps.float())
    with pixel_timesteps(unet, ResidualBlocks()[unet], pixels):
        out = unet(data["sample"], pixels.values, context=context)
    assert distance(out, data[f"out_{kind}"]) < FORWARD


# --- single evaluations from the stored latents ------------------------------------------------------------------------


def evaluate(case: Case, ask: Callable[[ComfyHost], None]) -> None:
    """Ask the host within ComfyUI's sampling, as AsynDM's own runs do."""

    def probe(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, **kwargs: Any) -> Tensor:
        host = ComfyHost(model_k.inner_model, extra_args, case.words, x)
        host.inpaint(model_k, None)
        ask(host)
        return x

    noise = torch.zeros_like(case.data["x_T"])
    comfy.sample.sample_custom(
        case.model, noise, case.facts["guidance_scale"], comfy.samplers.KSAMPLER(probe), case.sigmas, case.positive,
        case.negative, torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip


def denoised_of(case: Case, latents: Tensor, prediction: Tensor, step: int) -> Tensor:
    """x0 of the file's guided prediction: (x - sqrt(1 - a) eps) / sqrt(a), or sqrt(a) x - sqrt(1 - a) v."""
    alpha = case.data["alphas_cumprod"][case.map_of(step)][:, None]
    if case.facts["prediction_type"] == "epsilon":
        return (latents - (1 - alpha).sqrt() * prediction) / alpha.sqrt()
    return alpha.sqrt() * latents - (1 - alpha).sqrt() * prediction


@pytest.mark.parametrize("name", golden.CASES)
def test_single_evaluations(name: str) -> None:
    """Denoised latents and attention at every step whose latents are stored, from those latents."""
    case = read(name)
    before = {0: case.data["x_T"], **{step + 1: latents for step, latents in case.saved("latents").items()}}
    predictions = case.saved("noise_pred")
    steps = sorted(before.keys() & predictions.keys())
    assert len(steps) >= 5

    def ask(host: ComfyHost) -> None:
        for step in steps:
            sigma = case.sigma_of(step)
            x = before[step] * (1 + sigma**2).sqrt()
            denoised = host.denoise(x, sigma, watch=True).denoised
            assert distance(denoised, denoised_of(case, before[step], predictions[step], step)) < STEP
            if "cross_map" in case.data:
                assert (host.attention().shares - case.data["cross_map"][step]).abs().max() < ATTENTION

    evaluate(case, ask)


# --- whole runs ----------------------------------------------------------------------------------------------------------


def free_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Snapshot], Tensor]:
    """From x_T with the file's noise: a snapshot of every step, and the last latents."""

    def stored(x: Tensor, seed: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        draws = iter(case.data["step_noise"])
        return lambda sigma, sigma_next: next(draws)

    monkeypatch.setattr(k_diffusion, "default_noise_sampler", stored)
    snapshots: list[Snapshot] = []
    options = Options(eta=case.facts["eta"], on_step=snapshots.append, shortcut=False)
    samples = comfy.sample.sample_custom(
        apply(case.model, case.timestep_map, options), case.data["x_T"], case.facts["guidance_scale"],
        comfy.samplers.sampler_object("ddim"), case.sigmas, case.positive, case.negative,
        torch.zeros_like(case.data["x_T"]), disable_pbar=True, seed=0,
    )  # fmt: skip
    return snapshots, samples.to(CPU)


@pytest.mark.parametrize("name", golden.CASES)
def test_whole_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestep maps and masks exactly, attention and latents within the tolerances above."""
    case = read(name)
    snapshots, samples = free_run(case, monkeypatch)
    assert [snapshot.step for snapshot in snapshots] == list(range(case.steps))
    latents = case.saved("latents")
    for step, now in enumerate(snapshots):
        timesteps = case.model.model.model_sampling.timestep(now.sigma.flatten())
        assert torch.equal(timesteps, case.map_of(step).flatten()), f"timesteps of step {step}"
        if step - 1 in latents:
            x = variance_preserving(now.x, now.sigma)
            assert distance(x, latents[step - 1]) < RUN, f"latents before step {step}"
        if case.facts["kind"] in ("dynamic", "static"):
            lasting = step == 0 or case.facts["kind"] == "static"
            masks = case.data["mask_init"] if lasting else case.data["mask"][step - 1]
            owned = torch.stack([now.owner == n for n in range(len(case.words))], dim=1).to(torch.uint8)
            assert torch.equal(owned, masks), f"masks that move step {step}"
        if case.facts["kind"] in ("base", "dynamic"):
            seen = case.data["cross_map"][step]
            assert (now.attention.shares - seen).abs().max() < 1e-3 * seen.max(), f"attention of step {step}"
    assert distance(variance_preserving(samples, case.grid[0]), latents[case.steps - 1]) < RUN
