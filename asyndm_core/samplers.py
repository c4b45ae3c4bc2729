"""The samplers as single steps of a map of noise levels: every pixel goes from its own sigma to its own sigma_next.

Notation. x = alpha x0 + sigma n with unit noise n. Models whose noise explodes (eps, v, EDM) have alpha = 1; flow
models have alpha = 1 - sigma. s is sigma, t is sigma_next, D the denoised latents, U the unconditional ones. All
levels are (B, 1, *size) and act on x (B, C, *size) pixel by pixel; size is (H, W), of clips (T, H, W). lambda =
log(alpha / sigma) is the half log-SNR.

Every step is made of three parts, which the table ``SAMPLERS`` puts together under ComfyUI's names:

1. a split of the target level t: noise ``down`` is what remains of the old noise, ``up`` is drawn anew;
2. a solver of the probability flow ODE (EDM, Karras et al. 2022, arXiv 2206.00364, eq. 1; its solution in terms of D is
   DPM-Solver++, Lu et al. 2022, arXiv 2211.01095, proposition 4.1), from s to ``down``;
3. new noise of standard deviation ``up``.

CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2) renoises with the unconditional prediction. That is the same
step from the shifted latents x + alpha (D - U), so it is no sampler of its own here (``Move.start``).

On uniform maps a step equals that of ComfyUI, and asks for the same noise in the same order. A pixel with t = s keeps
its latents bit for bit, gets no noise, and keeps its place in the memory of multi-step samplers. A pixel with
t = 0 becomes D. Nothing here synchronises with the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import AsynDMError

Noise = Callable[[Tensor, Tensor], Tensor]
"""(sigma_from, sigma_to), 0-dim levels of the noise clock -> noise of unit variance like x; each call a new draw."""

NoiseKind = Literal["none", "gaussian", "brownian", "brownian_gpu"]

NEAR_ONE = 0.9999
"""Where a flow model's sigma of 1 (log-SNR minus infinity) has to stand for a finite log-SNR."""

GROWTH_LIMIT = 40.0
"""Multi-step samplers extrapolate over at most this many of their last step's lengths (in log-SNR).

ComfyUI's schedulers reach 32 (ddim_uniform, 3 steps, shift 12), so uniform maps never meet it. Pixels can: one may have
crept for a small part of a step before a whole one.
"""


class Prediction(NamedTuple):
    """What the model says of x: ``denoised`` after guidance, and ``uncond``, the unconditional one (CFG++ needs it)."""

    denoised: Tensor
    uncond: Tensor | None = None


class Model(Protocol):
    """The model with its guidance: latents x (B, C, *size) at levels sigma (B, 1, *size) -> Prediction."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Prediction: ...


@dataclass(frozen=True)
class NoiseLaw:
    """How signal and noise mix: x = alpha x0 + sigma n.

    flow: alpha = 1 - sigma; otherwise alpha = 1. noise_scale: the standard deviation of n that the model was
    trained with. highest: what replaces a flow model's sigma >= 1 in samplers that need a finite log-SNR.
    """

    flow: bool
    noise_scale: float = 1.0
    highest: float = NEAR_ONE

    def alpha(self, sigma: Tensor) -> Tensor:
        """The share of the signal at sigma."""
        return 1 - sigma if self.flow else torch.ones_like(sigma)

    def half_log_snr(self, sigma: Tensor) -> Tensor:
        """lambda = log(alpha / sigma), for sigma > 0."""
        return -sigma.logit() if self.flow else -sigma.log()

    def sigma_of(self, half_log_snr: Tensor) -> Tensor:
        """The inverse of ``half_log_snr``."""
        return (-half_log_snr).sigmoid() if self.flow else (-half_log_snr).exp()

    def log_step(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """h = lambda(sigma_next) - lambda(sigma), for sigma > sigma_next > 0; above 0 however close the two are."""
        return torch.log1p((sigma - sigma_next) / (sigma_next * self.alpha(sigma)))

    def quieter(self, sigma: Tensor, share: Tensor) -> Tensor:
        """The level where sigma / alpha is ``share`` (0..1) of what it is at sigma."""
        alpha = self.alpha(sigma)
        return sigma * share / (alpha + (1 - alpha) * share)

    def finite(self, sigma: Tensor, highest: float | None = None) -> Tensor:
        """sigma with a finite log-SNR: a flow model's sigma >= 1 becomes ``highest``."""
        return sigma.masked_fill(sigma >= 1, self.highest if highest is None else highest) if self.flow else sigma

    def between(self, sigma: Tensor, sigma_next: Tensor, share: float) -> Tensor:
        """The level at ``share`` of the way in lambda. From a flow model's sigma of 1: NEAR_ONE, as in ComfyUI.

        Written with ComfyUI's operations in their order: a Brownian tree notices the last bit of an interval's end.
        """
        start = self.half_log_snr(self.finite(sigma, NEAR_ONE))
        middle = self.sigma_of(start + share * (self.half_log_snr(sigma_next) - start))
        return middle.masked_fill(sigma >= 1, NEAR_ONE) if self.flow else middle


EXPLODING = NoiseLaw(flow=False)


class Clock(NamedTuple):
    """The interval that this step's noise is asked for: 0-dim levels of the noise clock, on any device."""

    sigma: Tensor
    sigma_next: Tensor


@dataclass(frozen=True)
class Step:
    """One step of a run.

    index: its number. sigma, sigma_next: maps (B, 1, *size) in x's dtype, sigma >= sigma_next >= 0. clock: see Clock.
    ends_clean: this step takes every pixel to sigma 0, as a scheduler's last one does. left: steps to the end of the run,
    this one among them.
    """

    index: int
    sigma: Tensor
    sigma_next: Tensor
    clock: Clock | tuple[Tensor, Tensor]
    ends_clean: bool
    left: float = math.inf


class Node(NamedTuple):
    """An earlier node of every pixel's path: what was denoised there, and 1 / h of the step from it (0: no node)."""

    denoised: Tensor
    rate: Tensor


class History:
    """The memory of a multi-step sampler during one run, per pixel: its last distinct nodes, newest first."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._nodes: tuple[Node, ...] = ()

    def recall(self, x: Tensor) -> tuple[Node, ...]:
        """The nodes, as many as the sampler has use for; a pixel that has none there has rate 0."""
        if not self._nodes:
            self._nodes = (Node(torch.zeros_like(x), torch.zeros_like(x[:, :1])),) * self._depth
        return self._nodes

    def remember(self, moved: Tensor, node: Node) -> None:
        """Make ``node`` the newest one where ``moved`` (B, 1, *size) is true; elsewhere nothing changes."""
        pushed = (node, *self._nodes)[: self._depth]
        self._nodes = tuple(
            Node(*(torch.where(moved, a, b) for a, b in zip(new, old, strict=True)))
            for new, old in zip(pushed, self._nodes, strict=True)
        )


# --- splits of the target level ------------------------------------------------------------------------------------


class Split(NamedTuple):
    """The old noise that remains, as the level that the ODE is solved to, and the standard deviation of the new noise.

    From ``down`` the signal's share grows from alpha(down) to alpha(t), and old and new noise add up:
    (down alpha(t) / alpha(down))^2 + up^2 = t^2.
    """

    down: Tensor
    up: Tensor


def ddim_split(law: NoiseLaw, sigma: Tensor, sigma_next: Tensor, eta: float) -> Split:
    """The share of new noise in DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16); eta = 1 is DDPM.

    Eq. 16 in variance-preserving terms: std = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'), where a is alphabar, and
    eq. 12 leaves sqrt(1 - a' - std^2) of the predicted noise. With x_vp = x sqrt(a), a = 1 / (1 + s^2) it follows that
    1 - a = s^2 a and 1 - a / a' = (s^2 - t^2) a, so in our terms
        up = std / sqrt(a') = eta t sqrt(1 - t^2 / s^2)     and     down = sqrt(t^2 - up^2).
    This is also k-diffusion's ancestral step. Flow models: the same in x / alpha, whose level is sigma / alpha.
    New noise comes at every sigma_next > 0, in the last step too; at sigma_next = 0 the step gives D.

    Where noise explodes, in k-diffusion's order of operations: an inner sigma half-way between two of the model's integer
    timesteps is decided by the last bit.
    """
    if not law.flow:
        s2, t2 = sigma * sigma, sigma_next * sigma_next
        up = torch.minimum(sigma_next, eta * (t2 * (s2 - t2) / s2).clamp(min=0).sqrt())
        return Split((t2 - up * up).clamp(min=0).sqrt(), up)
    h = law.log_step(sigma, sigma_next)  # t / s = exp(-h)
    new = (eta * eta * -torch.expm1(-2 * h)).clamp(max=1)
    kept = (1 - eta * eta + eta * eta * (-2 * h).exp()).clamp(min=0)
    return Split(law.quieter(sigma_next, kept.sqrt()), sigma_next * new.sqrt())


def ancestral_split(law: NoiseLaw, sigma: Tensor, sigma_next: Tensor, eta: float) -> Split:
    """The ancestral step: DDIM's where noise explodes; for flow models down = t (1 - eta (1 - t / s)), up is the rest.

    The latter is rectified flow's step that overshoots, rescales the signal's share and renoises.
    """
    if not law.flow:
        return ddim_split(law, sigma, sigma_next, eta)
    share = (1 - eta * (1 - sigma_next / sigma)).clamp(min=0)
    down = sigma_next * share
    lost = (1 - share) / (1 - down)  # 1 - down alpha(t) / (alpha(down) t)
    return Split(down, sigma_next * (lost * (2 - lost)).sqrt())


def sde_split(law: NoiseLaw, sigma: Tensor, sigma_next: Tensor, eta: float) -> Split:
    """The reverse SDE with eta of the noise, solved for constant D (SDE-DPM-Solver++, arXiv 2211.01095, at eta = 1).

    Of the old noise exp(-eta h) remains, and the drift follows (1 + eta) h of log-SNR.
    """
    h = law.log_step(sigma, sigma_next)
    return Split(law.quieter(sigma_next, (-eta * h).exp()), sigma_next * (-torch.expm1(-2 * eta * h)).sqrt())


def consistency_split(law: NoiseLaw, sigma: Tensor, sigma_next: Tensor, eta: float) -> Split:
    """All noise is new: the multi-step sampling of consistency models (LCM, Luo et al. 2023, arXiv 2310.04378)."""
    return Split(torch.zeros_like(sigma_next), sigma_next)


def er_share(sigma_over_alpha: Tensor) -> Tensor:
    """ER-SDE's noise, lambda (exp(lambda^0.3) + 10) with lambda = sigma / alpha (Cui et al. 2023, arXiv 2309.06169)."""
    return sigma_over_alpha * ((sigma_over_alpha**0.3).exp() + 10)


def er_sde_split(law: NoiseLaw, sigma: Tensor, sigma_next: Tensor, eta: float) -> Split:
    """The extended reverse-time SDE (arXiv 2309.06169, eq. 16): of the old noise r = er_share(next) / er_share(now) remains."""
    before, after = sigma / law.alpha(sigma), sigma_next / law.alpha(sigma_next)
    share = er_share(after) / er_share(before)
    new = (after * after - (before * share) ** 2).clamp(min=0).sqrt()
    return Split(law.quieter(sigma, share), law.alpha(sigma_next) * new)


# --- solvers of the ODE --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """What a solver is given: this step from ``sigma`` to ``down`` (on the way to ``sigma_next``), and the model.

    sigma > sigma_next > 0 and sigma > down > 0 everywhere: pixels that do not move, or whose result is D, have harmless
    levels here, and what is computed for them is dropped. ``live`` (B, 1, *size) is true for the others.
    """

    model: Model
    x: Tensor
    denoised: Tensor
    uncond: Tensor | None
    level: Tensor
    live: Tensor
    sigma: Tensor
    sigma_next: Tensor
    down: Tensor
    clock: Clock
    law: NoiseLaw
    noise: Noise
    history: History
    options: Mapping[str, Any]
    left: float

    def start(self, uncond: Tensor | None) -> Tensor:
        """Where the step starts: x, or x + alpha (D - U) for CFG++ (arXiv 2406.08070)."""
        if uncond is None:
            return self.x
        return self.x + self.law.alpha(self.sigma) * (self.denoised - uncond)

    def evaluate(self, x: Tensor, sigma: Tensor) -> Prediction:
        """The model once more within this step. Pixels that are not live are shown as they are."""
        return self.model(torch.where(self.live, x, self.x), torch.where(self.live, sigma, self.level))

    def renoise(self, x: Tensor, split: Split, sigma_next: Tensor, clock_next: Tensor) -> Tensor:
        """x at ``split.down`` -> x at sigma_next: the signal's share rescaled, new noise added. One draw, or none."""
        if self.law.flow:
            x = self.law.alpha(sigma_next) / self.law.alpha(split.down) * x
        scale = self.options["s_noise"] * self.law.noise_scale
        if self.options.get("eta", 1.0) <= 0 or scale <= 0:
            return x
        return x + split.up * scale * self.noise(self.clock.sigma, clock_next)


Solver = Callable[[Move], Tensor]


def toward(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The ODE's exact solution for constant D: the DDIM step (arXiv 2010.02502, eq. 13), x' = D + (t / s)(x - D).

    It holds for both laws of noise: for flow models D's weight is alpha(t) - alpha(s) t / s = 1 - t / s too.
    """
    return denoised + sigma_next / sigma * (x - denoised)


def euler(move: Move) -> Tensor:
    """First order (EDM, arXiv 2206.00364, algorithm 1 without its correction)."""
    return toward(move.start(move.uncond), move.denoised, move.sigma, move.down)


def heun(move: Move) -> Tensor:
    """Second order: the mean of the slopes at both ends (EDM, arXiv 2206.00364, algorithm 1)."""
    end = euler(move)
    slope = (move.x - move.denoised) / move.sigma
    slope_end = (end - move.evaluate(end, move.down).denoised) / move.down
    return move.x + (slope + slope_end) / 2 * (move.down - move.sigma)


def dpm_2(move: Move) -> Tensor:
    """Second order: the slope at the geometric mean of the levels (DPM-Solver-2, arXiv 2206.00927, in EDM's terms)."""
    middle = (move.sigma * move.down).sqrt()
    x = toward(move.x, move.denoised, move.sigma, middle)
    slope = (x - move.evaluate(x, middle).denoised) / middle
    return move.x + slope * (move.down - move.sigma)


def dpmpp_2s(move: Move) -> Tensor:
    """Second order: D from half the way in lambda (DPM-Solver++(2S), arXiv 2211.01095, algorithm 1, r = 1/2)."""
    middle = move.law.between(move.sigma, move.down, 0.5)
    x = toward(move.start(move.uncond), move.denoised, move.sigma, middle)
    second = move.evaluate(x, middle)
    uncond = None if move.uncond is None else second.uncond
    return toward(move.start(uncond), second.denoised, move.sigma, move.down)


def dpmpp_sde(move: Move) -> Tensor:
    """Second order with noise on the way: the D of a stochastic step to ``r`` of the way in lambda corrects this one's.

    (k-diffusion's stochastic form of DPM-Solver++(2S), arXiv 2211.01095, algorithm 1: D is continued linearly.)
    """
    law, share = move.law, move.options["r"]
    middle = law.between(move.sigma, move.sigma_next, share)
    split = ddim_split(law, move.sigma, middle, move.options["eta"])
    x = toward(move.x, move.denoised, move.sigma, split.down)
    x = move.renoise(x, split, middle, law.between(*move.clock, share))
    second = move.evaluate(x, middle).denoised
    return toward(move.x, torch.lerp(move.denoised, second, 1 / (2 * share)), move.sigma, move.down)


def multistep(move: Move, midpoint: bool = False, mix: bool = False) -> Tensor:
    """Order 2 or 3 (as the history is deep): D continues the pixel's own earlier nodes, as a polynomial in lambda.

    With h the step's length in lambda, g_i = h / h_i the growth over the i-th earlier step, and the slopes
    e_1 = g_1 (D - D_1), e_2 = g_2 (D_1 - D_2), the polynomial's derivatives at s times h and h^2 / 2 are
        d_1 = e_1 + (e_1 - e_2) g_2 / (g_1 + g_2),    d_2 = (e_1 - e_2) g_1 g_2 / (g_1 + g_2),
    and the exponential integrator (arXiv 2211.01095, section 4; refined: Zhang et al. 2023, arXiv 2308.02157) adds to
    ``toward`` alpha (phi_2 d_1 - phi_3 d_2), where phi_2 = 1 + expm1(-h) / h and phi_3 = phi_2 / h - 1/2.
    (That is the formula as published and as ComfyUI has it; Taylor's would be 2 phi_3 d_2.)
    ``midpoint``: phi_2 becomes (1 - exp(-h)) / 2 (arXiv 2211.01095, algorithm 2).
    A missing node has g = 0, so a pixel's first move is of order 1 and its second of order 2.

    CFG++ remembers U for D. ``mix``: from the second node on U stands for D in this step too, as ComfyUI's
    res_multistep has it.
    """
    pull = move.denoised if move.uncond is None else move.uncond
    nodes = move.history.recall(move.x)
    h = move.law.log_step(move.sigma, move.down)
    growth = [(h * node.rate).clamp(max=GROWTH_LIMIT) for node in nodes]
    denoised = torch.where(nodes[0].rate > 0, pull, move.denoised) if mix else move.denoised
    slope = (denoised - nodes[0].denoised) * growth[0]
    start = move.start(move.uncond)
    if midpoint:
        x = toward(start, denoised + slope / 2, move.sigma, move.down)
    else:
        phi_2 = 1 + torch.expm1(-h) / h
        alpha = move.law.alpha(move.down)
        x = toward(start, denoised, move.sigma, move.down)
        if len(nodes) > 1:
            earlier = (nodes[0].denoised - nodes[1].denoised) * growth[1]
            bend = (slope - earlier) * growth[1] / (growth[0] + growth[1]).clamp(min=1e-20)
            slope = slope + bend
            x = x - alpha * (phi_2 / h - 0.5) * growth[0] * bend
        x = x + alpha * phi_2 * slope
    move.history.remember(move.live, Node(pull, 1 / h))
    return x


class _Stages:
    """The stages of a step, each of them from the step's start, by the exponential integrator; and the noise on the way.

    What was drawn up to a stage goes on to the next, less by as much as the step's old noise: together they are the noise of
    one path, and all of it at the step's end is what ``sde_split`` says.
    """

    def __init__(self, move: Move) -> None:
        self._move, self._level, self._noise = move, move.sigma, torch.zeros_like(move.sigma)
        self._clock = move.clock.sigma

    def to(self, share: float, denoised: Tensor, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x, its level) at ``share`` of the way in lambda. One draw, or none.

        denoised: D, constant over the way; change: by how much it grows along lambda instead, of first order.
        """
        move, law, options = self._move, self._move.law, self._move.options
        eta, scale = options.get("eta", 0.0), options.get("s_noise", 0.0) * law.noise_scale
        level, clock = move.sigma_next, move.clock.sigma_next
        if share < 1:
            between = law.between(move.sigma, move.sigma_next, share)
            level, clock = between.minimum(self._level).maximum(level), law.between(*move.clock, share)
        down = sde_split(law, move.sigma, level, eta).down
        x = toward(move.x, denoised, move.sigma, down)
        if change is not None:
            h = law.log_step(move.sigma, down).clamp(min=1e-12)
            x = x + law.alpha(down) * (1 + torch.expm1(-h) / h) * change
        if law.flow:
            x = law.alpha(level) / law.alpha(down) * x
        if eta > 0 and scale > 0:
            kept = level / self._level * (-eta * law.log_step(self._level, level)).exp()
            new = sde_split(law, self._level, level, eta).up * scale * move.noise(self._clock, clock)
            self._noise = kept * self._noise + new
            x = x + self._noise
        self._level, self._clock = level, clock
        return x, level


def seeds_2(move: Move) -> Tensor:
    """Second order with noise on the way: D at the start and at r of the way (SEEDS-2, Gonzalez et al. 2023, arXiv 2305.14267).

    r = 1 is Heun's, with the exponential integrator. solver_type: how the integrator weighs D's change, "phi_1" or "phi_2".
    """
    share, stages = move.options.get("r", 1.0), _Stages(move)
    second = move.evaluate(*stages.to(share, move.denoised)).denoised
    if move.options["solver_type"] == "phi_1":
        return stages.to(1.0, torch.lerp(move.denoised, second, 1 / (2 * share)))[0]
    return stages.to(1.0, move.denoised, (second - move.denoised) / share)[0]


def seeds_3(move: Move) -> Tensor:
    """Third order with noise on the way: D at the start, at r_1 and r_2 of the way (SEEDS-3, arXiv 2305.14267)."""
    first, second, stages = move.options["r_1"], move.options["r_2"], _Stages(move)
    change = (move.evaluate(*stages.to(first, move.denoised)).denoised - move.denoised) / first
    change = (move.evaluate(*stages.to(second, move.denoised, second * change)).denoised - move.denoised) / second
    return stages.to(1.0, move.denoised, change)[0]


def gradient_estimation(move: Move) -> Tensor:
    """Euler, its slope moved on by how much it changed since the last step (Permenter and Yuan 2024, arXiv 2306.04848)."""
    (node,) = move.history.recall(move.x)
    slope = (move.x - (move.denoised if move.uncond is None else move.uncond)) / move.sigma
    change = torch.where(node.rate > 0, slope - node.denoised, 0.0)
    move.history.remember(move.live, Node(slope, torch.ones_like(move.sigma)))
    return euler(move) + (move.options["ge_gamma"] - 1) * change * (move.down - move.sigma)


ADAMS = ((3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""The weights of the newest slopes in Adams and Bashforth's formulas of order 2, 3 and 4 for even steps."""


def ipndm(move: Move) -> Tensor:
    """Euler with a mean of the pixel's last slopes, of up to fourth order (iPNDM, Zhang and Chen 2022, arXiv 2204.13902)."""
    nodes = move.history.recall(move.x)
    slopes = [(move.x - move.denoised) / move.sigma, *(node.denoised for node in nodes)]
    mean = slopes[0]
    for weights, node in zip(ADAMS, nodes, strict=True):
        higher = torch.stack([weight * slope for weight, slope in zip(weights, slopes, strict=False)]).sum(0)
        mean = torch.where(node.rate > 0, higher, mean)
    move.history.remember(move.live, Node(slopes[0], torch.ones_like(move.sigma)))
    return move.x + (move.down - move.sigma) * mean


def gauss_legendre(count: int) -> list[tuple[float, float]]:
    """(place, weight) of the points of Gauss and Legendre's rule on [0, 1] (by the eigenvalues, Golub and Welsch 1969)."""
    n = torch.arange(1.0, count, dtype=torch.float64)
    side = n / (4 * n * n - 1).sqrt()
    places, vectors = torch.linalg.eigh(side.diag(1) + side.diag(-1))
    return list(zip(((places + 1) / 2).tolist(), (vectors[0] ** 2).tolist(), strict=True))


POINTS = gauss_legendre(16)
"""Polynomials times a smooth weight are integrated with these, as exactly as float64 is, over any step of a schedule."""


def differences(values: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
    """Newton's divided differences d_0, d_1, ...: sum of d_k (p - places[0]) .. (p - places[k - 1]) is the polynomial of p."""
    found, column = [values[0]], list(values)
    for order in range(1, len(values)):
        column = [(after - now) / (places[i + order] - places[i]) for i, (now, after) in enumerate(pairwise(column))]
        found.append(column[0])
    return found


def integrals(points: Iterable[tuple[Tensor | float, Tensor]], places: Sequence[Tensor]) -> list[Tensor]:
    """The integrals over points (p, weight) of what stands beside d_1, d_2, ..., see ``differences``."""
    found = [torch.zeros_like(place) for place in places[1:]]
    for p, weight in points:
        for k, place in enumerate(places[:-1]):
            weight = weight * (p - place)
            found[k] = found[k] + weight
    return found


def adams(move: Move, time: Callable[[Tensor], Tensor]) -> Tensor:
    """The slope (x - D) / sigma goes on as the polynomial in ``time`` of sigma through the pixel's own last slopes.

    Integrated over the step: Adams and Bashforth's method for uneven steps (DEIS, Zhang and Chen 2022, arXiv 2204.13902,
    eq. 15, in EDM's terms).
    """
    slope, step = (move.x - move.denoised) / move.sigma, move.down - move.sigma
    nodes, levels = move.history.recall(move.x), [move.sigma]
    known = [node.rate > 0 for node in nodes]
    for node, has in zip(nodes, known, strict=True):
        levels.append(levels[-1] + (1 / node.rate.where(has, 1.0)).maximum(-step / GROWTH_LIMIT))
    places, width = [time(level) for level in levels], (move.down / move.sigma).log()
    on_the_way = ((move.sigma * (place * width).exp(), part * width) for place, part in POINTS)
    weights = integrals(((time(level), part * level) for level, part in on_the_way), places)
    bends = differences([slope, *(node.denoised for node in nodes)], places)[1:]
    x = move.x + step * slope
    for weight, bend, has in zip(weights, bends, known, strict=True):
        x = x + weight * torch.where(has, bend, 0.0)
    move.history.remember(move.live, Node(slope, -1 / step))
    return x


def deis_time(sigma: Tensor) -> Tensor:
    """The time where a variance-preserving diffusion of linear beta, which spans sigma 0.002 to 80, is at ``sigma``.

    log(1 + sigma^2) = a time + b time^2 / 2; a and b as ComfyUI rounds them.
    """
    a, b = -0.004715818, 17.537850651
    return ((a * a + 2 * b * (sigma * sigma).log1p()).sqrt() - a) / b


def uni_pc(move: Move, half: Callable[[Tensor], Tensor]) -> Tensor:
    """UniPC of order 3 (Zhao et al. 2023, arXiv 2302.04867): D continues the pixel's own earlier nodes, as a polynomial in
    lambda; and what the last move came to is mended by the polynomial through this D too.

    The exponential integrator adds to ``toward`` the integral of h exp((p - 1) h) (D(p) - D(0)) over the move, p = 0 to 1.
    half: the weight of a slope alone, which is not that integral: half of the authors' B(h). The last moves of a run are of
    order 2 and 1.
    """
    nodes = move.history.recall(move.x)
    known = [node.rate > 0 for node in nodes]
    lengths = [1 / node.rate.where(has, 1.0) for node, has in zip(nodes, known, strict=True)]
    earlier = [node.denoised for node in nodes]

    def behind(h: Tensor, lengths: Sequence[Tensor]) -> list[Tensor]:
        return list(accumulate(-(length / h).clamp(min=1 / GROWTH_LIMIT) for length in lengths))

    def added(h: Tensor, values: Sequence[Tensor], places: Sequence[Tensor], used: Sequence[Tensor]) -> Tensor:
        bends = differences(values, places)[1:]
        weights = integrals(((place, part * h * ((place - 1) * h).exp()) for place, part in POINTS), places)
        weights[0] = torch.where(used[1], weights[0], half(h)) if len(used) > 1 else half(h)
        return torch.stack([torch.where(has, w * bend, 0.0) for w, bend, has in zip(weights, bends, used, strict=True)]).sum(0)

    zero, order = torch.zeros_like(move.sigma), int(min(3, move.left + 1))
    last, places = lengths[0], [zero, *behind(lengths[0], lengths[1:order])]
    mended = [move.denoised, *earlier[1:order]]
    x = move.x + added(last, [earlier[0], *mended], [zero, zero + 1, *places[1:]], known[:order])
    if order > 1:
        x = x - added(last, earlier[:order], places, known[1:order])
    h, order = move.law.log_step(move.sigma, move.down), int(min(3, move.left))
    x = toward(x, move.denoised, move.sigma, move.down)
    if order > 1:
        places = [zero, *behind(h, lengths[: order - 1])]
        x = x + added(h, [move.denoised, *earlier[: order - 1]], places, known[: order - 1])
    move.history.remember(move.live, Node(move.denoised, 1 / h))
    return x


ER_POINTS = 200
"""In how many points ER-SDE's integrals are summed, as in the authors' code and ComfyUI's."""


AT_ONCE = 2**16
"""For how many pixels they are summed at once: a clip has millions, and each of its points is a number of its own."""


def _er_sums(before: Tensor, after: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of 1 / er_share and of (lambda - before) / er_share over ER_POINTS lambdas from ``after`` on, ``width`` apart."""
    sums = []
    for start, end, apart in zip(*(each.flatten()[:, None].split(AT_ONCE) for each in (before, after, width)), strict=True):
        points = end + torch.arange(ER_POINTS, dtype=after.dtype, device=after.device) * apart
        share = er_share(points)
        sums.append(torch.stack([(1 / share).sum(-1), ((points - start) / share).sum(-1)]))
    first, second = torch.cat(sums, dim=1)
    return first.view_as(after), second.view_as(after)


def er_sde(move: Move) -> Tensor:
    """ER-SDE of order 1 to 3 (arXiv 2309.06169, algorithm 3), with lambda = sigma / alpha: D continues the pixel's own
    earlier nodes, its first and second differences in lambda weighted by integrals of 1 / er_share from the step's end.
    """
    law, (last, earlier) = move.law, move.history.recall(move.x)
    before, after = move.sigma / law.alpha(move.sigma), move.sigma_next / law.alpha(move.sigma_next)
    known = [node.rate > 0 for node in (last, earlier)]
    back = [(1 / node.rate.where(has, 1)).clamp(max=GROWTH_LIMIT) for node, has in zip((last, earlier), known, strict=True)]
    to_last, to_earlier = before * back[0].exp(), before * (back[0] + back[1]).exp()
    step = after - before
    apart = lambda later, sooner: torch.minimum(later - sooner, step / GROWTH_LIMIT)  # noqa: E731 (both are below 0)
    x = toward(move.x, move.denoised, move.sigma, move.down)
    if move.options["max_stage"] >= 2:
        width = -step / ER_POINTS
        sums = _er_sums(before, after, width)
        weight = er_share(after) * width
        first = step + weight * sums[0]
        slope = torch.where(known[0], (move.denoised - last.denoised) / apart(before, to_last), 0.0)
        x = x + law.alpha(move.down) * first * slope
        if move.options["max_stage"] >= 3:
            second = step * step / 2 + weight * sums[1]
            slope_before = (last.denoised - earlier.denoised) / apart(to_last, to_earlier)
            bend = torch.where(known[0] & known[1], 2 * (slope - slope_before) / apart(before, to_earlier), 0.0)
            x = x + law.alpha(move.down) * second * bend
    move.history.remember(move.live, Node(move.denoised, 1 / law.log_step(move.sigma, move.sigma_next)))
    return x


def multistep_2m_sde(move: Move) -> Tensor:
    """``multistep`` of order 2 in the form that the option ``solver_type`` names: "midpoint" or "heun"."""
    return multistep(move, midpoint=move.options["solver_type"] == "midpoint")


SOLVER_TYPES = (("heun", "midpoint"), ("phi_1", "phi_2"))
"""What the option solver_type may be, by kinds of samplers."""


# --- the samplers --------------------------------------------------------------------------------------------------


class UnsupportedSampler(AsynDMError):  # noqa: N818 (a name of the public contract)
    """There is no per-pixel formula of this name."""


@dataclass(frozen=True)
class Sampler:
    """A sampler by ComfyUI's name, ready to step.

    needs_uncond: the model has to give the unconditional prediction. noise: which kind it asks for; "brownian" answers
    by interval, and its tree lives on the CPU or, "brownian_gpu", on x's device. options: eta and the like, ComfyUI's
    defaults unless changed by ``with_options``. knows_flow: flow models have their own form of it; otherwise ComfyUI
    treats them like the others, and so do we. finite_snr: it cannot start at a flow model's sigma of 1, see NoiseLaw.
    depth: how many earlier nodes of a pixel it uses. looks_ahead: it evaluates the model within a step too. lowest: the
    sigma that a run's last step ends at in the place of 0, taken for clean.
    """

    name: str
    solver: Solver
    split: Callable[[NoiseLaw, Tensor, Tensor, float], Split] | None = None
    noise: NoiseKind = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_uncond: bool = False
    knows_flow: bool = True
    finite_snr: bool = False
    depth: int = 0
    looks_ahead: bool = False
    lowest: float = 0.0

    def with_options(self, **options: Any) -> Sampler:
        """The same sampler with other options. Raises ValueError for one that it does not have."""
        for key in options:
            if key not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise ValueError(f"The sampler {self.name} has no per-pixel option {key!r}. It has: {known}.")
        own = self.options.get("solver_type")
        kinds = next((kinds for kinds in SOLVER_TYPES if own in kinds), ())
        if options.get("solver_type", own) not in (*kinds, own):
            raise ValueError(f"solver_type is {' or '.join(map(repr, kinds))}, not {options['solver_type']!r}.")
        if options.get("max_stage", 1) not in (1, 2, 3):
            raise ValueError(f"max_stage is 1, 2 or 3, not {options['max_stage']!r}.")
        order = options.get("order", self.depth + 1)
        if order not in range(1, 9):
            raise ValueError(f"order of {self.name} is a whole number from 1 to 8, not {order!r}.")
        most = 1 if self.solver in (seeds_2, seeds_3) else math.inf
        for key in ("r", "r_1", "r_2"):
            if not 0 < options.get(key, 0.5) <= most:
                limit = "above 0" if most > 1 else "above 0 and at most 1"
                raise ValueError(f"{key} is the share of a step where {self.name} looks ahead: {limit}, not {options[key]}.")
        return replace(self, options={**self.options, **options}, depth=order - 1)

    @property
    def draws(self) -> bool:
        """Whether its steps draw noise."""
        return self.noise != "none" and self.options.get("eta", 1.0) > 0 and self.options["s_noise"] > 0

    def history(self) -> History:
        """An empty memory, one for each run."""
        return History(self.depth)

    def step(self, model: Model, x: Tensor, step: Step, history: History, noise: Noise, law: NoiseLaw) -> Tensor:
        """One step: x (B, C, *size) at step.sigma -> x at step.sigma_next.

        Raises ValueError where the sampler needs the unconditional prediction and the model gives none.
        """
        clock = Clock(*step.clock)
        sigma, sigma_next = step.sigma, step.sigma_next
        if self.finite_snr:
            sigma, sigma_next = law.finite(sigma), law.finite(sigma_next)
            clock = Clock(law.finite(clock.sigma), clock.sigma_next)
        whole = law
        if not self.knows_flow:
            law = replace(law, flow=False)

        denoised, uncond = model(x, sigma)
        if self.needs_uncond and uncond is None:
            raise ValueError(
                f"The sampler {self.name} needs the unconditional prediction, and the guider gives none. "
                "Use a guider with a negative, or the sampler without cfg_pp."
            )
        cleaned = torch.where(sigma_next < sigma, denoised, x)
        if step.ends_clean:
            if not self.lowest:
                return cleaned
            sigma_next = sigma_next.masked_fill(sigma > self.lowest, self.lowest)
        live = (sigma_next < sigma) & (sigma_next > 0)
        source, target = sigma.masked_fill(~live, 0.5), sigma_next.masked_fill(~live, 0.25)

        eta = self.options.get("eta", 1.0)
        if self.split is None or eta <= 0:
            split, down, solvable = None, target, live
        else:
            split = self.split(law, source, target, eta)
            solvable = live & (split.down > 0)
            down = torch.where(solvable, split.down, 0.5 * target)
        move = Move(
            model, x, denoised, uncond if self.needs_uncond else None, sigma, solvable, source, target, down,
            clock, law, noise, history, self.options, step.left,
        )  # fmt: skip
        moved = torch.where(solvable, self.solver(move), denoised)
        if split is not None:
            moved = move.renoise(moved, split, target, clock.sigma_next)
        if step.ends_clean:
            moved = moved / whole.alpha(target)
        return torch.where(live, moved, cleaned)


def _table() -> dict[str, Sampler]:
    noisy = {"eta": 1.0, "s_noise": 1.0}
    ancestral = partial(Sampler, split=ancestral_split, noise="gaussian", options=noisy)
    exploding = partial(Sampler, knows_flow=False)
    res, res_mix = partial(exploding, solver=multistep, depth=1), partial(multistep, mix=True)
    res_ancestral = partial(res, split=ddim_split, noise="gaussian", options=noisy)
    midpoint = partial(multistep, midpoint=True)
    seeds = partial(Sampler, finite_snr=True, looks_ahead=True)
    gradient = partial(exploding, solver=gradient_estimation, depth=1, options={"ge_gamma": 2.0})
    samplers = [
        Sampler("euler", euler),
        Sampler("euler_cfg_pp", euler, needs_uncond=True),
        ancestral("euler_ancestral", euler),
        ancestral("euler_ancestral_cfg_pp", euler, split=ddim_split, needs_uncond=True),
        Sampler("heun", heun, looks_ahead=True),
        Sampler("dpm_2", dpm_2, looks_ahead=True),
        ancestral("dpm_2_ancestral", dpm_2, looks_ahead=True),
        ancestral("dpmpp_2s_ancestral", dpmpp_2s, looks_ahead=True),
        ancestral("dpmpp_2s_ancestral_cfg_pp", dpmpp_2s, needs_uncond=True, knows_flow=False, looks_ahead=True),
        exploding("dpmpp_2m", midpoint, depth=1),
        exploding("dpmpp_2m_cfg_pp", midpoint, depth=1, needs_uncond=True),
        exploding("ddpm", euler, split=ddim_split, noise="gaussian", options={"s_noise": 1.0}),
        Sampler("ddim", euler, split=ddim_split, noise="gaussian", options={"eta": 0.0, "s_noise": 1.0}),
        Sampler("lcm", euler, split=consistency_split, noise="gaussian", options={"s_noise": 1.0}),
        res("res_multistep"),
        res("res_multistep_cfg_pp", solver=res_mix, needs_uncond=True),
        res_ancestral("res_multistep_ancestral"),
        res_ancestral("res_multistep_ancestral_cfg_pp", solver=res_mix, needs_uncond=True),
    ]
    samplers += [
        Sampler("er_sde", er_sde, er_sde_split, "gaussian", {"s_noise": 1.0, "max_stage": 3}, finite_snr=True, depth=2),
        exploding("ipndm", ipndm, depth=len(ADAMS)),
        exploding("lms", partial(adams, time=torch.Tensor.clone), depth=3, options={"order": 4}),
        exploding("deis", partial(adams, time=deis_time), depth=2),
        exploding("uni_pc", partial(uni_pc, half=lambda h: h / 2), depth=3, lowest=0.001),
        exploding("uni_pc_bh2", partial(uni_pc, half=lambda h: -torch.expm1(-h) / 2), depth=3, lowest=0.001),
        gradient("gradient_estimation"),
        gradient("gradient_estimation_cfg_pp", needs_uncond=True),
        seeds("exp_heun_2_x0", seeds_2, options={"solver_type": "phi_2"}),
        seeds("exp_heun_2_x0_sde", seeds_2, noise="gaussian", options={**noisy, "solver_type": "phi_2"}),
        seeds("seeds_2", seeds_2, noise="gaussian", options={**noisy, "solver_type": "phi_1", "r": 0.5}),
        seeds("seeds_3", seeds_3, noise="gaussian", options={**noisy, "r_1": 1 / 3, "r_2": 2 / 3}),
    ]
    trees: dict[str, NoiseKind] = {"": "brownian", "_gpu": "brownian_gpu"}
    for suffix, kind in trees.items():
        sde = partial(Sampler, split=sde_split, noise=kind, finite_snr=True, depth=1)
        by_name = partial(sde, solver=multistep_2m_sde)
        samplers += [
            sde(f"dpmpp_sde{suffix}", dpmpp_sde, split=ddim_split, options={**noisy, "r": 0.5}, looks_ahead=True),
            by_name(f"dpmpp_2m_sde{suffix}", options={**noisy, "solver_type": "midpoint"}),
            by_name(f"dpmpp_2m_sde_heun{suffix}", options={**noisy, "solver_type": "heun"}),
            sde(f"dpmpp_3m_sde{suffix}", multistep, options=noisy, depth=2),
        ]
    return {sampler.name: sampler for sampler in samplers}


SAMPLERS: Mapping[str, Sampler] = _table()
"""Every sampler that has a per-pixel formula, by ComfyUI's name."""


def find_sampler(name: str) -> Sampler:
    """The sampler of ComfyUI's ``name``. Raises UnsupportedSampler, with the names that there are."""
    if name not in SAMPLERS:
        names = ", ".join(sorted(SAMPLERS))
        raise UnsupportedSampler(
            f"The sampler {name!r} has no formula for pixels at different noise levels. Set sampler_name to one of: {names}."
        )
    return SAMPLERS[name]
