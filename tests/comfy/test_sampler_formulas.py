"""On uniform maps every sampler is ComfyUI's own, noise included: compared with comfy.k_diffusion.sampling itself."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from comfy.extra_samplers import uni_pc
from comfy.k_diffusion import sampling
from torch import Tensor

from asyndm_core.samplers import SAMPLERS, Clock, NoiseLaw, Prediction, Sampler, Step

SHAPE = (2, 4, 7, 5)
SEED = 1234
TOLERANCE = 1e-5
UNI_PC = {"uni_pc": uni_pc.sample_unipc, "uni_pc_bh2": uni_pc.sample_unipc_bh2}

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends


class Eps(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Stable Diffusion's noise."""


class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """A rectified flow's noise."""


def eps_model() -> torch.nn.Module:
    return Eps()


def flow_model(shift: float = 3.0, noise_scale: float = 1.0) -> torch.nn.Module:
    model = Flow()
    model.set_parameters(shift=shift)
    if noise_scale != 1.0:
        model.set_noise_scale(noise_scale)
    return model


def law_of(model_sampling: torch.nn.Module) -> NoiseLaw:
    if not isinstance(model_sampling, comfy.model_sampling.CONST):
        return NoiseLaw(flow=False)
    return NoiseLaw(
        flow=True,
        noise_scale=getattr(model_sampling, "noise_scale", 1.0),
        highest=float(model_sampling.percent_to_sigma(1e-4)),
    )


def predict(x: Tensor, sigma: Tensor) -> Prediction:
    """A smooth, nonlinear stand-in for a denoiser; sigma broadcasts against x."""
    spread = 1 / (1 + sigma * sigma)
    denoised = x * spread + 0.3 * torch.sin(x * spread + sigma) + 0.1
    uncond = 0.8 * x * spread - 0.2 * torch.cos(x * spread) * sigma / (1 + sigma)
    return Prediction(denoised, uncond)


class ComfyModel:
    """What ComfyUI's samplers call: as KSamplerX0Inpaint, with as much of its inside as they look at."""

    def __init__(self, model_sampling: torch.nn.Module) -> None:
        patcher = SimpleNamespace(get_model_object={"model_sampling": model_sampling}.__getitem__)
        base = SimpleNamespace(model_sampling=model_sampling)
        self.inner_model = SimpleNamespace(inner_model=base, model_patcher=patcher)
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        self.sigmas.append(float(sigma[0]))
        denoised, uncond = predict(x, sigma[:, None, None, None])
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = function({"denoised": denoised, "uncond_denoised": uncond, "sigma": sigma, "input": x})
        return denoised


def run_comfy(name: str, model_sampling: torch.nn.Module, x: Tensor, sigmas: Tensor, options: dict) -> tuple:
    model, sigmas = ComfyModel(model_sampling), sigmas.clone()
    extra = {"seed": SEED, "model_options": {}}
    if name in UNI_PC:  # it writes into the table where it ends in place of 0, and KSAMPLER scales the latents by that
        default = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)  # it makes tables of the default type
        clean = float(sigmas[-1]) == 0
        x = UNI_PC[name](model, x.clone(), sigmas, extra_args=extra, disable=True, **options)
        torch.set_default_dtype(default)
        return model_sampling.inverse_noise_scaling(sigmas[-1], x) if clean else x, model.sigmas
    function = sampling.sample_euler if name == "ddim" else getattr(sampling, f"sample_{name}")
    return function(model, x.clone(), sigmas, extra_args=extra, disable=True, **options), model.sigmas


def noise_of(sampler: Sampler, x: Tensor, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    if sampler.noise.startswith("brownian"):
        cpu = sampler.noise == "brownian"
        return sampling.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=SEED, cpu=cpu)
    return sampling.default_noise_sampler(x, seed=SEED)


def draws_of(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same float32 draws for any dtype of x."""
    generator = torch.Generator().manual_seed(SEED)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x.dtype)


def run_ours(
    sampler: Sampler, law: NoiseLaw, x: Tensor, sigmas: Tensor, noise: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple:
    seen: list[float] = []

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        assert sigma.shape == (x.shape[0], 1, *x.shape[2:])
        seen.append(float(sigma[0, 0, 0, 0]))
        return predict(x, sigma)

    noise, history = noise or noise_of(sampler, x, sigmas), sampler.history()
    ones = torch.ones_like(x[:, :1])
    for i in range(len(sigmas) - 1):
        step = Step(
            index=i,
            sigma=sigmas[i] * ones,
            sigma_next=sigmas[i + 1] * ones,
            clock=Clock(sigmas[i], sigmas[i + 1]),
            ends_clean=i + 2 == len(sigmas) and float(sigmas[-1]) == 0,
            left=len(sigmas) - 1 - i,
        )
        x = sampler.step(model, x, step, history, noise, law)
    return x, seen


def begin(model_sampling: torch.nn.Module, sigmas: Tensor) -> Tensor:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).to(sigmas.dtype)
    return model_sampling.noise_scaling(sigmas[0], start, torch.zeros_like(start))


def distance(actual: Tensor, expected: Tensor) -> float:
    assert actual.dtype == expected.dtype and expected.isfinite().all()
    return float((actual - expected).abs().max() / expected.abs().max())


INTEGRALS = {"er_sde": 1e-7, "deis": TOLERANCE}
"""ComfyUI's are sums: of float32; of 10,000 rectangles."""


def check_formula(sampler: Sampler, model_sampling: torch.nn.Module, sigmas: Tensor, **options: float | str) -> None:
    """The formula, free of rounding: both in float64, from the same seeds."""
    sigmas = sigmas.double()
    x = begin(model_sampling, sigmas)
    expected, expected_sigmas = run_comfy(sampler.name, model_sampling, x, sigmas, options)
    actual, actual_sigmas = run_ours(sampler.with_options(**options), law_of(model_sampling), x, sigmas)
    assert actual_sigmas == pytest.approx(expected_sigmas, rel=1e-9)
    assert distance(actual, expected) < INTEGRALS.get(sampler.name, 1e-9)


MODELS = {"eps": eps_model, "flow": flow_model}
TABLES = {
    "karras, 12 steps": ("karras", 12, None),
    "simple, 12 steps": ("simple", 12, None),
    "normal, 2 steps": ("normal", 2, None),
    "simple, 1 step": ("simple", 1, None),
    "beta, 12 steps, ends noisy": ("beta", 12, slice(0, -3)),
    "sgm_uniform, 12 steps, starts late": ("sgm_uniform", 12, slice(4, None)),
}
ETAS = [name for name, sampler in SAMPLERS.items() if sampler.options.get("eta") == 1.0]


def table(model_sampling: torch.nn.Module, kind: str) -> Tensor:
    scheduler, steps, part = TABLES[kind]
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, steps)
    return sigmas if part is None else sigmas[part]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_uniform_maps_have_the_formula_of_comfyui(name: str, model: str, kind: str) -> None:
    if name in UNI_PC and kind == "simple, 1 step":
        pytest.skip("ComfyUI's one step of it leaves the noise as it is")
    model_sampling = MODELS[model]()
    check_formula(SAMPLERS[name], model_sampling, table(model_sampling, kind))


@pytest.mark.parametrize("kind", ["simple, 12 steps", "beta, 12 steps, ends noisy"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_uniform_maps_are_comfyui_in_float32(name: str, model: str, kind: str) -> None:
    """Within 1e-5 of ComfyUI as users run it."""
    model_sampling = MODELS[model]()
    sigmas = table(model_sampling, kind)
    x = begin(model_sampling, sigmas)
    expected, _ = run_comfy(name, model_sampling, x, sigmas, {})
    actual, _ = run_ours(SAMPLERS[name], law_of(model_sampling), x, sigmas)
    rounded = 2 if name in UNI_PC and kind == "simple, 12 steps" else 1  # 1 - 1 / (1 + sigma^2) at sigma 0.001
    assert distance(actual, expected) < rounded * TOLERANCE


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_is_near_the_exact_formula(name: str, model: str, kind: str) -> None:
    """No further from float64 than ComfyUI's own float32, which is up to 8e-4 away (few steps, large jumps)."""
    model_sampling = MODELS[model]()
    sigmas = table(model_sampling, kind)
    x = begin(model_sampling, sigmas)
    if name in UNI_PC and kind == "simple, 1 step":
        pytest.skip("ComfyUI's one step of it leaves the noise as it is")
    draws = {} if SAMPLERS[name].noise == "none" or name == "ddim" else {"noise_sampler": draws_of(x.double())}
    expected, _ = run_comfy(name, model_sampling, x.double(), sigmas.double(), draws)
    actual, _ = run_ours(SAMPLERS[name], law_of(model_sampling), x, sigmas, draws_of(x))
    stock, _ = run_comfy(name, model_sampling, x, sigmas, {key: draws_of(x) for key in draws})
    assert distance(actual.double(), expected) < distance(stock.double(), expected) + 2 * TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ETAS)
def test_eta_and_s_noise_are_comfyui(name: str, model: str, eta: float) -> None:
    model_sampling = MODELS[model]()
    sigmas = table(model_sampling, "simple, 12 steps")
    if name == "euler_ancestral_cfg_pp":
        sigmas = sigmas[1:]  # from a flow model's sigma = 1, ComfyUI's eta below 1 is lost in inf / inf
    if name == "dpm_2_ancestral" and eta == 0:
        name = "dpm_2"  # with eta = 0 ComfyUI takes the root of a rounding error in flow models: NaN
        check_formula(SAMPLERS[name], model_sampling, sigmas)
        return
    check_formula(SAMPLERS[name], model_sampling, sigmas, eta=eta, s_noise=0.9)


@pytest.mark.parametrize("model", MODELS)
def test_solver_options_are_comfyui(model: str) -> None:
    model_sampling = MODELS[model]()
    sigmas = table(model_sampling, "karras, 12 steps")
    check_formula(SAMPLERS["dpmpp_sde"], model_sampling, sigmas, r=0.3)
    check_formula(SAMPLERS["dpmpp_2m_sde"], model_sampling, sigmas, solver_type="heun")
    check_formula(SAMPLERS["exp_heun_2_x0"], model_sampling, sigmas, solver_type="phi_1")
    check_formula(SAMPLERS["seeds_2"], model_sampling, sigmas, solver_type="phi_2", r=0.7)
    check_formula(SAMPLERS["seeds_2"], model_sampling, sigmas, solver_type="phi_1", r=1.0, eta=0.4, s_noise=1.1)
    check_formula(SAMPLERS["seeds_3"], model_sampling, sigmas, r_1=0.4, r_2=0.9)
    check_formula(SAMPLERS["lms"], model_sampling, sigmas, order=2)
    check_formula(SAMPLERS["lms"], model_sampling, sigmas, order=6)


@pytest.mark.skipif(not hasattr(Flow, "set_noise_scale"), reason="this ComfyUI has no noise_scale")
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "ddpm"])
def test_noise_scale_is_comfyui(name: str) -> None:
    """ddpm is left out: ComfyUI's draws unit noise whatever the model's noise_scale is."""
    model_sampling = flow_model(noise_scale=1.3)
    check_formula(SAMPLERS[name], model_sampling, table(model_sampling, "simple, 12 steps"))


def test_every_name_is_one_of_comfyui() -> None:
    assert set(SAMPLERS) <= set(comfy.samplers.SAMPLER_NAMES)
