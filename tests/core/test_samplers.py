"""The samplers against closed forms: Gaussian data, whose denoiser and whose path are known, and diffusers' DDIM."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asyndm_core.samplers import (
    GROWTH_LIMIT,
    SAMPLERS,
    Clock,
    NoiseLaw,
    Prediction,
    Sampler,
    Step,
    UnsupportedSampler,
    deis_time,
    find_sampler,
)

FORMULAS = [name for name in SAMPLERS if not name.endswith("_gpu")]
LAWS = {"exploding": NoiseLaw(flow=False), "flow": NoiseLaw(flow=True)}
MEAN, SPREAD = 0.4, 0.8


def gaussian_model(law: NoiseLaw) -> Callable[[Tensor, Tensor], Prediction]:
    """The exact denoiser of x0 ~ N(MEAN, SPREAD^2): E[x0 | x]. Both predictions are the same."""

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        alpha = law.alpha(sigma)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        denoised = MEAN + gain * (x - alpha * MEAN)
        return Prediction(denoised, denoised)

    return model


def standardised(law: NoiseLaw, x: Tensor, sigma: Tensor) -> Tensor:
    """x in units of its marginal distribution at sigma; constant along the exact path of the ODE."""
    alpha = law.alpha(sigma)
    return (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()


def guided_model(x: Tensor, sigma: Tensor) -> Prediction:
    """A nonlinear stand-in, pixel by pixel, whose two predictions differ."""
    inner = x / (1 + sigma * sigma)
    return Prediction(inner + 0.3 * torch.sin(inner + sigma), 0.7 * inner - 0.2 * torch.cos(inner))


def no_noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    raise RuntimeError("This run has no noise to give.")


def run(
    sampler: Sampler,
    law: NoiseLaw,
    model: Callable[[Tensor, Tensor], Prediction],
    x: Tensor,
    tables: Tensor,
    noise: Callable[[Tensor, Tensor], Tensor] = no_noise,
) -> Tensor:
    """Sample along tables (N + 1, 1 or B, 1, H, W): every pixel has its own table."""
    history = sampler.history()
    clock = tables.flatten(1).amax(1)
    for i in range(len(tables) - 1):
        step = Step(i, tables[i], tables[i + 1], Clock(clock[i], clock[i + 1]), ends_clean=False)
        x = sampler.step(model, x, step, history, noise, law)
    return x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_tables(steps: int, law: NoiseLaw, height: int = 3, width: int = 4) -> Tensor:
    """Tables (steps + 1, 1, 1, H, W), linear in lambda but for a warp; every pixel has its own range and warp."""
    generator = torch.Generator().manual_seed(5)
    low, high, warp = torch.rand(3, height, width, generator=generator, dtype=torch.float64)
    first, last, bend = -2.0 - low, 1.0 + high, 0.7 * (warp - 0.5)
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None, None]
    return law.sigma_of(first + (last - first) * (t + bend * t * (1 - t)))[:, None, None]


ORDERS = {
    "euler": 1,
    "euler_cfg_pp": 1,
    "ddim": 1,
    "heun": 2,
    "dpm_2": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_cfg_pp": 2,
    "res_multistep": 2,
    "res_multistep_cfg_pp": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2,
    "gradient_estimation": 1,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "ipndm": 1,  # of higher order where the steps are even
    "lms": 1.8,  # 2, of its first step, which is Euler's
    "deis": 2,
    "uni_pc": 3,
    "uni_pc_bh2": 3,
    "seeds_2": 2,
    "seeds_3": 3,
    "dpmpp_3m_sde": 2,  # see the polynomials below
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ORDERS)
def test_solvers_converge_at_their_order_on_a_map(name: str, law: str) -> None:
    sampler = SAMPLERS[name]
    if "eta" in sampler.options:
        sampler = sampler.with_options(eta=0.0)
    start, errors = normal(2, 4, 3, 4), []
    for steps in (40, 80):
        tables = smooth_tables(steps, LAWS[law])
        alpha = LAWS[law].alpha(tables[0])
        x = alpha * MEAN + start * (alpha**2 * SPREAD**2 + tables[0] ** 2).sqrt()
        end = run(sampler, LAWS[law], gaussian_model(LAWS[law]), x, tables)
        errors.append((standardised(LAWS[law], end, tables[-1]) - start).abs().amax((0, 1)))
    assert errors[1].max() < (0.05 if ORDERS[name] == 1 else 0.01)
    order = (errors[0] / errors[1]).log2()
    assert order.median() > ORDERS[name] - 0.15, order  # a pixel's own may be off: its two leading errors may cancel
    assert (errors[0].max() / errors[1].max()).log2() > ORDERS[name] - 0.15


EXACT = [
    ("dpmpp_3m_sde", "exploding", 2),
    ("dpmpp_3m_sde", "flow", 2),
    ("dpmpp_2m_sde_heun", "exploding", 1),
    ("dpmpp_2m_sde_heun", "flow", 1),
    ("res_multistep", "exploding", 1),
]


@pytest.mark.parametrize(("name", "law", "degree"), EXACT)
def test_multistep_samplers_are_exact_for_polynomials_in_lambda(name: str, law: str, degree: int) -> None:
    """With enough nodes: x' = (t / s) x + t * integral of exp(lambda) D(lambda) (arXiv 2211.01095, prop. 4.1).

    The published formula of dpmpp_3m_sde gives the curvature half its weight: of D = lambda^2, alpha phi_3 h^2 is left.
    """
    sampler = SAMPLERS[name]
    if "eta" in sampler.options:
        sampler = sampler.with_options(eta=0.0)
    seen: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        seen.append(x)
        return Prediction((LAWS[law].half_log_snr(sigma) ** degree).expand_as(x))

    tables = smooth_tables(6, LAWS[law])
    nodes = [*range(degree + 1), degree, *range(degree, 7)]  # no pixel moves in two of the steps
    seen.append(run(sampler, LAWS[law], model, normal(2, 4, 3, 4), tables[nodes]))
    for i in range(degree, len(nodes) - 1):
        s, t = tables[nodes[i]], tables[nodes[i + 1]]
        low, high = LAWS[law].half_log_snr(s), LAWS[law].half_log_snr(t)
        if degree == 1:
            integral = high.exp() * (high - 1) - low.exp() * (low - 1)
        else:
            h = (high - low).clamp(min=1e-6)
            integral = high.exp() * (high**2 - 2 * high + 2) - low.exp() * (low**2 - 2 * low + 2)
            integral = integral + high.exp() * ((1 - (1 - (-h).exp()) / h) / h - 0.5) * (high - low) ** 2
        torch.testing.assert_close(seen[i + 1], t / s * seen[i] + t * integral, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "time", "degree"), [("lms", lambda sigma: sigma, 3), ("deis", deis_time, 2)])
def test_adams_methods_are_exact_for_polynomials(name: str, time: Callable[[Tensor], Tensor], degree: int) -> None:
    """With enough nodes: x' = x + the integral of the slope, where that is a polynomial in time (arXiv 2204.13902, eq. 15)."""
    seen: list[Tensor] = []

    def slope(sigma: Tensor) -> Tensor:
        return 0.3 + sum((0.5 - time(sigma)) ** n for n in range(1, degree + 1))

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        seen.append(x)
        return Prediction(x - sigma * slope(sigma))

    tables = smooth_tables(8, LAWS["flow"])
    nodes = [*range(degree + 1), degree, *range(degree, 9)]  # no pixel moves in two of the steps
    seen.append(run(SAMPLERS[name], LAWS["flow"], model, normal(2, 4, 3, 4), tables[nodes]))
    on_the_way = torch.linspace(0, 1, 2001, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)
    simpson = torch.tensor([1, *[4, 2] * 999, 4, 1], dtype=torch.float64).reshape(-1, 1, 1, 1, 1) / 6000
    for i in range(degree, len(nodes) - 1):
        s, t = tables[nodes[i]], tables[nodes[i + 1]]
        moved = (t - s) * (simpson * slope(torch.lerp(s, t, on_the_way))).sum(0)
        torch.testing.assert_close(seen[i + 1], seen[i] + moved, rtol=1e-9, atol=1e-9)


def test_lms_of_another_order() -> None:
    """Order 1 is Euler's method; what there is no use for is refused."""
    tables, x = smooth_tables(6, LAWS["flow"]), normal(2, 4, 3, 4)
    ends = [run(s, LAWS["flow"], guided_model, x, tables) for s in (SAMPLERS["lms"].with_options(order=1), SAMPLERS["euler"])]
    torch.testing.assert_close(*ends)
    for order in (0, 9, 2.5):
        with pytest.raises(ValueError, match="order of lms is a whole number from 1 to 8"):
            SAMPLERS["lms"].with_options(order=order)


STOCHASTIC = [
    (name, law)
    for name in FORMULAS
    for law in LAWS
    if SAMPLERS[name].noise != "none" and (law == "exploding" or SAMPLERS[name].knows_flow)
    if name not in ("lcm", "dpmpp_2s_ancestral_cfg_pp")  # a consistency model's; a shift by two different evaluations
]


@pytest.mark.parametrize(("name", "law"), STOCHASTIC)
def test_stochastic_samplers_keep_the_marginal_distribution_of_every_pixel(name: str, law: str) -> None:
    sampler = SAMPLERS[name]
    if name == "ddim":
        sampler = sampler.with_options(eta=1.0)
    shape = (4096, 1, 3, 4)
    generator = torch.Generator().manual_seed(3)
    tables = smooth_tables(60, LAWS[law])
    alpha = LAWS[law].alpha(tables[0])
    x = alpha * MEAN + normal(*shape) * (alpha**2 * SPREAD**2 + tables[0] ** 2).sqrt()
    end = run(
        sampler, LAWS[law], gaussian_model(LAWS[law]), x, tables,
        lambda a, b: torch.randn(shape, generator=generator, dtype=torch.float64),
    )  # fmt: skip
    z = standardised(LAWS[law], end, tables[-1])
    assert z.mean(0).abs().max() < 5 / math.sqrt(shape[0])
    assert (z.var(0) - 1).abs().max() < 5 * math.sqrt(2 / shape[0]) + 0.03  # the last term: 60 steps of first order
    new = 0.8 if name == "er_sde" else 0.5  # er_sde's are between the ODE's and the reverse SDE's
    assert float((z * standardised(LAWS[law], x, tables[0])).mean()) < new  # the noise is new, not the start's


@st.composite
def schedules(draw: st.DrawFn, pixels: int = 6, steps: int = 7) -> Tensor:
    """Tables (steps + 1, pixels) of levels below 1, that stand still at times, and may end in 0."""
    moves = st.one_of(st.just(0.0), st.floats(0.01, 1.5))
    rows = draw(st.lists(st.lists(moves, min_size=steps, max_size=steps), min_size=pixels, max_size=pixels))
    table = 0.95 * (-torch.tensor(rows, dtype=torch.float64).cumsum(1)).exp()
    table = torch.cat([torch.full((pixels, 1), 0.95, dtype=torch.float64), table], 1)
    clean = draw(st.lists(st.integers(0, 2 * steps), min_size=pixels, max_size=pixels))
    for row, first in zip(table, clean, strict=True):
        row[first:] = 0
    return table.T


def as_maps(tables: Tensor) -> Tensor:
    return tables.reshape(len(tables), 1, 1, 2, -1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=5, deadline=None)
@given(tables=schedules())
def test_a_map_is_every_pixel_on_its_own(name: str, law: str, tables: Tensor) -> None:
    """Together and alone is the same; only the interval that noise is asked for is common."""
    sampler, maps = SAMPLERS[name], as_maps(tables)
    x, draws = normal(2, 4, 2, 3), normal(24, 2, 4, 2, 3, seed=1)

    def noise(part: tuple) -> Callable[[Tensor, Tensor], Tensor]:
        left = iter(draws)
        return lambda a, b: next(left)[part]

    together = run(sampler, LAWS[law], guided_model, x, maps, noise((...,)))
    assert together.isfinite().all()
    for row in range(2):
        for column in range(3):
            part = (..., slice(row, row + 1), slice(column, column + 1))
            alone = run(sampler, LAWS[law], guided_model, x[part], maps[part], noise(part))
            torch.testing.assert_close(together[part], alone, rtol=1e-10, atol=1e-10)


DETERMINISTIC = [n for n in FORMULAS if SAMPLERS[n].noise == "none" or "eta" in SAMPLERS[n].options]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", DETERMINISTIC)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_standing_still_changes_nothing(name: str, law: str, data: st.DataObject) -> None:
    """A table with repeats leads where the table without them does: memory holds distinct nodes only."""
    sampler = SAMPLERS[name]
    if "eta" in sampler.options:
        sampler = sampler.with_options(eta=0.0)
    table = smooth_tables(6, LAWS[law])
    counts = data.draw(st.lists(st.integers(1, 3), min_size=7, max_size=7))
    waiting = table.repeat_interleave(torch.tensor(counts), dim=0)
    x = normal(2, 4, 3, 4)
    torch.testing.assert_close(
        run(sampler, LAWS[law], guided_model, x, waiting),
        run(sampler, LAWS[law], guided_model, x, table),
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


EDGES = {
    # (sigma, sigma_next) pairs of one step; the second of two steps goes to half the level
    "stands still": (0.7, 0.7),
    "stands still at the start": (1.0, 1.0),
    "is clean": (0.0, 0.0),
    "moves": (0.7, 0.4),
    "moves from the start": (1.0, 0.9),
    "becomes clean": (0.7, 0.0),
    "moves by one bit": (0.01, 0.01),
    "leaps": (0.99, 1e-5),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_edges_are_exact_and_finite(name: str, law: str) -> None:
    """In float32. The model's answer at clean pixels is not a number, and must not be looked at."""
    sampler = SAMPLERS[name]
    sigma, middle = (torch.tensor(v).float().reshape(1, 1, 2, 4) for v in zip(*EDGES.values(), strict=True))
    middle = torch.where(sigma == EDGES["moves by one bit"][0], torch.nextafter(sigma, torch.zeros(())), middle)
    still = torch.tensor([name == "stands still" or name == "is clean" for name in EDGES]).reshape(1, 1, 2, 4)
    last = torch.where(still, middle, middle / 2)
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        assert x.isfinite().all() and sigma.isfinite().all()
        seen.append((x, sigma))
        prediction = guided_model(x, sigma)
        return Prediction(*(torch.where(sigma == 0, math.nan, p) for p in prediction))

    x = normal(2, 4, 2, 4).float()
    end = run(sampler, LAWS[law], model, x, torch.stack([sigma, middle, last]), lambda a, b: torch.randn(x.shape))
    assert end.isfinite().all() and end.dtype == torch.float32
    keep = still.expand_as(x)
    assert torch.equal(end[keep], x[keep])
    for shown, level in seen:
        assert torch.equal(shown[keep], x[keep])
        assert torch.equal(level[still], sigma[still])
    clean = torch.tensor([name == "becomes clean" for name in EDGES]).reshape(1, 1, 2, 4).expand_as(x)
    torch.testing.assert_close(end[clean], guided_model(x, sigma).denoised[clean])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", [name for name in FORMULAS if "eta" in SAMPLERS[name].options])
def test_eta_that_leaves_no_old_noise(name: str, law: str) -> None:
    """An eta so great that all noise is new: the DDIM and ancestral steps give alpha(t) D + t n, none breaks."""
    sampler = SAMPLERS[name].with_options(eta=3.0)
    x, n = normal(2, 4, 2, 3).float(), normal(2, 4, 2, 3, seed=1).float()
    sigma = torch.tensor([0.9, 0.8, 0.5, 0.3, 0.1, 0.02]).reshape(1, 1, 2, 3)
    end = run(sampler, LAWS[law], guided_model, x, torch.stack([sigma, sigma / 3]), lambda a, b: n)
    assert end.isfinite().all()
    if name.startswith(("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "seeds", "exp_heun")):
        return
    alpha = LAWS[law].alpha(sigma / 3)
    if not sampler.knows_flow:
        alpha = torch.ones_like(sigma)
    torch.testing.assert_close(end, alpha * guided_model(x, sigma).denoised + sigma / 3 * n)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_is_one_evaluation_and_no_noise(name: str) -> None:
    calls: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        calls.append(x)
        return guided_model(x, sigma)

    sampler, x = SAMPLERS[name], normal(1, 4, 2, 3)
    sigma = torch.tensor([0.9, 0.5, 0.3, 0.1, 0.02, 0.0], dtype=torch.float64).reshape(1, 1, 2, 3)
    zero = torch.zeros(())
    step = Step(3, sigma, torch.zeros_like(sigma), Clock(torch.tensor(0.9), zero), ends_clean=True)
    end = sampler.step(model, x, step, sampler.history(), no_noise, LAWS["exploding"])
    assert len(calls) == 1
    clean = torch.where(sigma > 0, guided_model(x, sigma).denoised, x)
    if sampler.lowest:  # ComfyUI ends there, which stands for 0
        clean = torch.where(sigma > 0, clean + sampler.lowest / sigma * (x - clean), x)
        torch.testing.assert_close(end, clean, rtol=1e-12, atol=1e-12)
        return
    assert torch.equal(end, clean)


class NoFloat64(TorchDispatchMode):
    """Refuses tensors of double precision, which some devices do not have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, Tensor) and result.dtype == torch.float64), f"{func} gave float64"
        return result


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_synchronisation_and_no_double_precision(name: str, law: str) -> None:
    """Tensors of the meta device have no values: whoever asks for one fails."""
    sampler = SAMPLERS[name]
    x = torch.empty(2, 4, 3, 5, device="meta")
    tables = torch.empty(4, 2, 1, 3, 5, device="meta")
    with NoFloat64():
        end = run(sampler, LAWS[law], guided_model, x, tables, lambda a, b: torch.empty_like(x))
    assert end.shape == x.shape and end.dtype == x.dtype


def test_ddim_with_eta_1_is_that_of_diffusers_on_a_map() -> None:
    """Each pixel at its own timestep, at the last one too, whose noise is not taken away."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(6)
    abar = scheduler.alphas_cumprod
    timesteps = scheduler.timesteps
    following = (timesteps - 1000 // 6).clamp(min=0)
    vp, eps, noise = (normal(2, 4, 2, 3, seed=seed).float() for seed in range(3))

    def to_sigma(t: Tensor) -> Tensor:
        return ((1 - abar[t]) / abar[t]).sqrt().reshape(1, 1, 2, 3)

    sigma, sigma_next = to_sigma(timesteps), to_sigma(following)
    step = Step(0, sigma, sigma_next, Clock(sigma.max(), sigma_next.max()), ends_clean=False)
    x = vp * (1 + sigma**2).sqrt()
    for eta in (1.0, 0.5, 0.0):
        sampler = find_sampler("ddim").with_options(eta=eta)
        ours = sampler.step(
            lambda x, s: Prediction(x - s * eps), x, step, sampler.history(), lambda a, b: noise, LAWS["exploding"]
        )
        ours = ours / (1 + sigma_next**2).sqrt()
        for i, t in enumerate(timesteps):
            theirs = scheduler.step(eps, t, vp, eta=eta, variance_noise=noise).prev_sample
            pixel = (..., i // 3, i % 3)
            torch.testing.assert_close(ours[pixel], theirs[pixel], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.depth])
def test_a_pixel_that_crept_does_not_extrapolate_without_bound(name: str) -> None:
    """After a step of one bit, in which the neighbours changed D by 0.1, a whole step stays within the limit."""
    sampler = SAMPLERS[name].with_options(**{key: 0.0 for key in ("eta", "s_noise") if key in SAMPLERS[name].options})
    sigma = torch.full((1, 1, 1, 1), 2.0)
    tables = torch.stack([sigma, torch.nextafter(sigma, torch.zeros(())), sigma / 2])
    answers = iter([0.0, 0.1, 0.1])  # dpmpp_sde asks more often, and remembers nothing
    x = torch.ones(1, 4, 1, 1)

    def model(x: Tensor, sigma: Tensor) -> Prediction:
        denoised = torch.full_like(x, next(answers, 0.1))
        return Prediction(denoised, denoised)

    end = run(sampler, LAWS["exploding"], model, x, tables)
    assert (end - 0.55).abs().max() < 0.1 * GROWTH_LIMIT / 2


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.endswith("_gpu")])
def test_gpu_names_differ_in_their_noise_only(name: str) -> None:
    twin = SAMPLERS[name.removesuffix("_gpu")]
    assert twin.noise == "brownian"
    assert SAMPLERS[name] == replace(twin, name=name, noise="brownian_gpu")


def test_an_unknown_sampler_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnsupportedSampler, match="heunpp2") as caught:
        find_sampler("heunpp2")
    listed = set(re.findall(r"\w+", str(caught.value)))
    assert set(SAMPLERS) <= listed
    assert isinstance(caught.value, ValueError)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="euler has no per-pixel option 'eta'"):
        find_sampler("euler").with_options(eta=0.5)
    with pytest.raises(ValueError, match="solver_type"):
        find_sampler("dpmpp_2m_sde").with_options(solver_type="dream")
    with pytest.raises(ValueError, match="r is the share"):
        find_sampler("dpmpp_sde").with_options(r=0.0)
    assert find_sampler("dpmpp_sde").with_options(r=1.5).options["r"] == 1.5
    with pytest.raises(ValueError, match=r"r_2 is the share .* seeds_3 looks ahead: above 0 and at most 1, not"):
        find_sampler("seeds_3").with_options(r_2=1.5)
    assert find_sampler("ddim").with_options(eta=1.0).options["eta"] == 1.0
    assert find_sampler("ddim").options["eta"] == 0.0


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.needs_uncond])
def test_cfg_pp_without_an_unconditional_prediction_is_refused(name: str) -> None:
    sigma = torch.ones(1, 1, 2, 2)
    step = Step(0, sigma, sigma / 2, Clock(sigma.max(), sigma.max() / 2), ends_clean=False)
    sampler, x = find_sampler(name), torch.ones(1, 4, 2, 2)
    with pytest.raises(ValueError, match=f"{name} needs the unconditional prediction"):
        sampler.step(lambda x, s: Prediction(x / 2), x, step, sampler.history(), no_noise, LAWS["flow"])
