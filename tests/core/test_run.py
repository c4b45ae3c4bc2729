"""The loop: against diffusers' own schedulers, against itself in other batches and places, and on uniform schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from asyndm_core.attention import Attention
from asyndm_core.clock import Clock, NoiseGrid, paper_clock, table_clock
from asyndm_core.curves import CURVES
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock, sigma_of_alphas
from asyndm_core.regions import Ownership, Plan, Region, Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Snapshot, generate, greatest_lag, move, noise_table, sample, start
from asyndm_core.samplers import Noise, Prediction, find_sampler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
GUIDANCE = 3.0
STEPS = 8
LEADING = torch.arange(STEPS).flip(0) * (1000 // STEPS) + 1
WORDS = Regions((Target("moon"), Target("boat", 0.9)))


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """A prompt and a negative, 9 tokens each."""
    return torch.randn(2, 1, 9, 24, generator=torch.Generator().manual_seed(3)).unbind()


@pytest.fixture
def host(unet: UNet2DConditionModel, alphas: Tensor, texts: tuple[Tensor, Tensor]) -> DiffusersHost:
    """The tiny UNet, with two words to follow."""
    return DiffusersHost(unet, alphas, "epsilon", *texts, GUIDANCE, words=[[2], [5, 6]])


@pytest.fixture
def clock(alphas: Tensor) -> Clock:
    """Eight leading steps to sigma 0."""
    return make_clock(alphas, LEADING)


def same_noise(shape: torch.Size, seed: int = 5) -> Noise:
    """Unit noise from a generator, one draw for each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(shape, generator=generator)


def run(
    host: DiffusersHost, x: Tensor, clock: Clock, plan: Plan, sampler: str = "euler", noise: Noise | None = None,
    on_step: Callable[[Snapshot], None] | None = None, **options: float,
) -> Tensor:  # fmt: skip
    """Unit noise x to the end of the clock's table. The run starts at sigma x noise, as diffusers' Euler does."""
    begin = start(clock, plan, (x.shape[0], *x.shape[-2:]), last_word="boat")
    made = find_sampler(sampler).with_options(**options)
    return sample(host, x * begin.sigma, begin, clock, plan, made, noise or same_noise(x.shape), on_step)


def close(got: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    """Equal to rounding, relative to the spread of what is wanted."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * wanted.std().item())


# --- stock sampling --------------------------------------------------------------------------------------------------


def diffusers_loop(
    unet: UNet2DConditionModel, scheduler: object, x: Tensor, texts: tuple[Tensor, Tensor], **step: object
) -> Tensor:
    """The sampling loop of diffusers' pipelines, with classifier-free guidance."""
    scheduler.set_timesteps(STEPS)
    contexts = torch.cat([texts[1], texts[0]]).repeat_interleave(x.shape[0], dim=0)
    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([x] * 2), t)
        uncond, cond = unet(rows, t, encoder_hidden_states=contexts).sample.chunk(2)
        x = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, x, **step).prev_sample
    return x


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_no_region_is_diffusers_ddim(
    host: DiffusersHost, alphas: Tensor, texts: tuple[Tensor, Tensor], eta: float, to_zero: bool
) -> None:
    """DDIMScheduler with any eta, ending at sigma 0 (set_alpha_to_one) or at timestep 0; the same draws."""
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=to_zero, steps_offset=1, timestep_spacing="leading")
    x_vp = torch.randn(2, 4, 16, 16)
    draws = torch.Generator().manual_seed(5)
    wanted = diffusers_loop(host.unet, scheduler, x_vp, texts, eta=eta, generator=draws)
    assert torch.equal(scheduler.timesteps, LEADING)
    last = 0.0 if to_zero else sigma_of_alphas(alphas)[0].item()
    clock = make_clock(alphas, LEADING, last=last)
    begin = start(clock, Plan(), (2, 16, 16))
    x = x_vp * (1 + begin.sigma**2).sqrt()
    sampler = find_sampler("ddim").with_options(eta=eta)
    got = sample(host, x, begin, clock, Plan(), sampler, same_noise(x.shape))
    close(got / (1 + last**2) ** 0.5, wanted)


@pytest.mark.parametrize("ancestral", [False, True])
def test_no_region_is_diffusers_euler(host: DiffusersHost, clock: Clock, texts: tuple[Tensor, Tensor], ancestral: bool) -> None:
    """EulerDiscreteScheduler, and EulerAncestralDiscreteScheduler with the same draws."""
    kind = EulerAncestralDiscreteScheduler if ancestral else EulerDiscreteScheduler
    scheduler = kind(**BETAS, steps_offset=1, timestep_spacing="leading")
    unit = torch.randn(2, 4, 16, 16)
    sigma = clock.sigmas[0]
    options = {"generator": torch.Generator().manual_seed(5)} if ancestral else {}
    wanted = diffusers_loop(host.unet, scheduler, unit * sigma, texts, **options)
    assert torch.equal(scheduler.timesteps.long(), LEADING)
    got = run(host, unit, clock, Plan(), "euler_ancestral" if ancestral else "euler")
    close(got, wanted)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "lcm"])
def test_strength_zero_is_no_region_bit_for_bit(host: DiffusersHost, clock: Clock, sampler: str) -> None:
    """Words are watched, but strength 0, a linear curve, or mode synchronous changes nothing at all."""
    x = torch.randn(1, 4, 16, 16)
    stock = run(host, x, clock, Plan(), sampler)
    idle = Regions((Target("moon"), Target("boat")))
    for layer in (
        TimestepMap(idle, strength=0.0),
        TimestepMap(WORDS, "linear"),
        TimestepMap(WORDS, mode="synchronous"),
    ):
        assert torch.equal(run(host, x, clock, make_plan(layer, 16, 16), sampler), stock)
    assert not torch.equal(run(host, x, clock, make_plan(TimestepMap(WORDS), 16, 16), sampler), stock)


# --- concave ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["quadratic", "piecewise linear", "exponential"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_concave_is_the_same_sampler_on_other_sigmas(
    host: DiffusersHost, clock: Clock, alphas: Tensor, curve: str, eta: float
) -> None:
    """One region of all pixels is a plain DDIM loop over sigma(q_i), here written out with scalars.

    The q_i are this curve's; the timestep between two entries of the table is linear in q, rounded half to even.
    """
    unit = torch.randn(2, 4, 16, 16)
    plan = make_plan(TimestepMap(Regions(), curve, 0.8, mode="concave"), 16, 16)
    got = run(host, unit, clock, plan, "ddim", eta=eta)

    grid, end = sigma_of_alphas(alphas), STEPS - 1
    q, sigmas = 0.0, []
    for i in range(STEPS):
        timestep = 876 - 125 * q
        sigmas.append(grid[round(timestep)].item())
        if i < end - 1:
            i_left = end - i
            q = {
                "quadratic": q + (end - q) / i_left - 0.8 / end * (i_left - 1),
                "piecewise linear": max(q + 0.2, end - 1.8 * (i_left - 1)),
                "exponential": end - CURVES[curve](torch.tensor(end - q), i_left, 0.8, clock.track).item(),
            }[curve]
        else:
            q = end
    torch.testing.assert_close(noise_table(clock, plan), torch.tensor([*sigmas, 0.0]), rtol=1e-6, atol=0)

    x, noise = unit * sigmas[0], same_noise(unit.shape)
    for now, then in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        denoised = host.denoise(x, torch.full((2, 1, 16, 16), now)).denoised
        up = eta * then * (1 - (then / now) ** 2) ** 0.5
        x = denoised + (then**2 - up**2) ** 0.5 / now * (x - denoised)
        if up > 0:
            x = x + up * noise(torch.tensor(now), torch.tensor(then))
    close(got, x)


# --- how far regions lag ---------------------------------------------------------------------------------------------


def flow_clock(steps: int, shift: float) -> Clock:
    """Evenly spaced steps of a flow model whose noise levels are shifted, as models for few steps have them."""
    grid = torch.linspace(0, 1, 1001)[1:]
    even = torch.linspace(1, 0, steps + 1)
    return table_clock(shift * even / (1 + (shift - 1) * even), even * 999, NoiseGrid(shift * grid / (1 + (shift - 1) * grid)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [3, 4, 5, 6, 7, 8, 9, 20])
def test_how_many_steps_a_region_lags(steps: int, shift: float) -> None:
    """In L = N - 1 intervals, on the parabola k i (L - i) / L after i of them, on the two lines k min(i, L - i)."""
    clock, intervals = flow_clock(steps, shift), steps - 1
    for strength in (0.4, 0.7, 1.0):
        parabola = max(strength * i * (intervals - i) / intervals for i in range(steps))
        assert greatest_lag(clock, Region("", "quadratic", strength)) == pytest.approx(parabola, abs=1e-5)
        lines = strength * (intervals // 2)
        assert greatest_lag(clock, Region("", "piecewise linear", strength)) == pytest.approx(lines, abs=1e-5)
    assert greatest_lag(clock, Region("", "linear", 1.0)) == 0


def test_how_many_steps_the_papers_regions_lag() -> None:
    """They lag from before the first evaluation, so there is an interval more."""
    timesteps = torch.tensor([751.0, 501.0, 251.0, 1.0, 0.0])
    clock = paper_clock(timesteps / 1000, timesteps, NoiseGrid(torch.linspace(0.001, 1, 1000)))
    assert greatest_lag(clock, Region("", "quadratic", 0.8)) == pytest.approx(0.8 * 2 * 2 / 4, abs=0.01)


# --- batches and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_an_image_of_a_batch_is_its_solo_run(host: DiffusersHost, clock: Clock, sampler: str) -> None:
    """Regions of one image do not reach another: each has its masks, its progress and its latents."""
    x, draws = torch.randn(3, 4, 16, 24), torch.randn(STEPS, 3, 4, 16, 24)
    plan = make_plan(TimestepMap(WORDS), 16, 24)

    def drawn(images: slice) -> Iterator[Tensor]:
        yield from (draw[images] for draw in draws)

    seen: list[Snapshot] = []
    noise = drawn(slice(None))
    together = run(host, x, clock, plan, sampler, lambda *_: next(noise), seen.append)
    owners = torch.stack([s.owner for s in seen[1:]], dim=1)
    assert not torch.equal(owners[0], owners[1])
    for image in range(3):
        alone: list[Snapshot] = []
        noise = drawn(slice(image, image + 1))
        solo = run(host, x[image, None], clock, plan, sampler, lambda *_, n=noise: next(n), alone.append)
        assert torch.equal(torch.stack([s.owner[0] for s in alone[1:]]), owners[image])
        close(together[image, None], solo)


@pytest.fixture
def round_host(make_unet: Callable[..., UNet2DConditionModel], alphas: Tensor, texts: tuple[Tensor, Tensor]) -> DiffusersHost:
    """A UNet that does not know where it is: every convolution wraps around, so pixels have no border.

    Normalisation and attention treat all positions alike, so with latents of a multiple of 4 it commutes with shifts by
    4, its stride, exactly but for rounding.
    """
    unet = make_unet()
    for module in unet.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.padding_mode = "circular"
    return DiffusersHost(unet, alphas, "epsilon", *texts, GUIDANCE, words=[[2], [5, 6]])


@pytest.mark.parametrize("shift", [(4, 0), (8, -12)])
def test_shifted_latents_give_the_shifted_image(round_host: DiffusersHost, alphas: Tensor, shift: tuple[int, int]) -> None:
    """Masks, progress and latents all move along: nothing in the method depends on the place, or on image borders.

    With the paper's masks, which are blocks of the attention's pixels; ours are enlarged smoothly, and a border
    is where that has nothing to blend with.
    """
    x, draws = torch.randn(1, 4, 24, 32), torch.randn(STEPS, 1, 4, 24, 32)
    plan = make_plan(TimestepMap(WORDS, preset="paper"), 24, 32)
    clock = make_clock(alphas, LEADING, paper=True)

    def shifted(by: tuple[int, int]) -> tuple[Tensor, list[Snapshot]]:
        seen: list[Snapshot] = []
        noise = iter(draws.roll(by, (-2, -1)))
        x_here = x.roll(by, (-2, -1))
        return run(round_host, x_here, clock, plan, "ddim", lambda *_: next(noise), seen.append, eta=1.0), seen

    (plain, plain_seen), (moved, moved_seen) = shifted((0, 0)), shifted(shift)
    for a, b in zip(plain_seen, moved_seen, strict=True):
        assert torch.equal(a.owner.roll(shift, (-2, -1)), b.owner)
        assert torch.equal(a.progress.roll(shift, (-2, -1)), b.progress)
    assert plain_seen[4].owner.unique().numel() == 3
    close(moved, plain.roll(shift, (-2, -1)), 1e-4)


def test_a_shifted_painted_mask_shifts_the_image(round_host: DiffusersHost, clock: Clock) -> None:
    """The same for a painted, feather-edged mask and a stochastic sampler of our default."""
    x, draws = torch.randn(1, 4, 16, 16), torch.randn(STEPS, 1, 4, 16, 16)
    mask = torch.rand(1, 16, 16)

    def shifted(by: int) -> Tensor:
        plan = make_plan(TimestepMap(Regions(mask=mask.roll(by, -1), mask_mode="replace")), 16, 16)
        noise = iter(draws.roll(by, -1))
        return run(round_host, x.roll(by, -1), clock, plan, "euler_ancestral", lambda *_: next(noise))

    close(shifted(4), shifted(0).roll(4, -1), 1e-4)


# --- the order of things ---------------------------------------------------------------------------------------------


def test_regions_act_one_step_after_they_are_seen(host: DiffusersHost, clock: Clock) -> None:
    """The owners of step i are made of the attention of step i - 1; those of step 0 are the strongest region."""
    seen: list[Snapshot] = []
    plan = make_plan(TimestepMap(WORDS, preset="default"), 16, 16)
    run(host, torch.randn(1, 4, 16, 16), clock, plan, on_step=seen.append)
    assert [s.step for s in seen] == list(range(STEPS))
    assert (seen[0].owner == 1).all()
    assert torch.equal(seen[0].progress, torch.zeros(1, 16, 16))
    for before, now in pairwise(seen):
        maps = nn.functional.interpolate(before.attention.shares, size=(16, 16), mode="bilinear")
        moon, boat = (maps >= maps.mean(dim=(-2, -1), keepdim=True)).unbind(1)
        wanted = torch.where(boat, 1, torch.where(moon, 0, -1))
        assert torch.equal(now.owner, wanted)
        background = now.progress - before.progress
        left = STEPS - 1 - before.step
        if left > 0:
            linear = (STEPS - 1 - before.progress) / left
            torch.testing.assert_close(background[before.owner == -1], linear[before.owner == -1])
            assert left == 1 or (background[before.owner == 1] < linear[before.owner == 1]).all()
    assert torch.equal(seen[-1].progress, torch.full((1, 16, 16), STEPS - 1.0))


def test_the_model_is_told_the_truth(host: DiffusersHost, clock: Clock) -> None:
    """At every step, x is the denoised image plus noise of exactly the pixel's sigma: here with a perfect model.

    The model's answer is fixed, so DDIM without new noise keeps x = D + sigma n to the end, for every pixel.
    """
    target, unit = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)

    class Perfect(DiffusersHost):
        def denoise(self, x: Tensor, sigma: Tensor, *more: object, **options: object):
            close(x, target + sigma * unit, 1e-5)
            return super().denoise(x, sigma, *more, **options)._replace(denoised=target)

    perfect = Perfect(host.unet, torch.linspace(0.99, 0.01, 1000), "epsilon", host.cond, host.uncond, 1.0, [[2], [5, 6]])
    plan = make_plan(TimestepMap(WORDS), 16, 16)
    begin = start(clock, plan, (1, 16, 16))
    x = sample(perfect, target + begin.sigma * unit, begin, clock, plan, find_sampler("euler"), same_noise(unit.shape))
    assert torch.equal(x, target)


def test_fixed_regions_are_not_watched(host: DiffusersHost, clock: Clock) -> None:
    """Given the attention of an earlier pass, the owners stay, and no attention is read."""
    seen: list[Snapshot] = []
    plan = make_plan(TimestepMap(replace(WORDS, update="fixed")), 16, 16)
    assert plan.fixed
    begin = start(clock, plan, (1, 16, 16), attention=Attention(torch.rand(1, 2, 4, 4), torch.ones(1, 2, 1, 1)))
    assert begin.owned.owner.unique().numel() > 1
    x = torch.randn(1, 4, 16, 16) * begin.sigma
    sample(host, x, begin, clock, plan, find_sampler("euler"), same_noise(x.shape), seen.append, fixed=True)
    assert all(s.attention is None for s in seen)
    assert all(torch.equal(s.owner, begin.owned.owner) for s in seen)


class Scheduled(DiffusersHost):
    """Prompt editing: the boat's prompt is in force in some steps only, as is known from the sigmas."""

    steps: set[int]
    sigmas: Tensor
    now: Tensor

    def denoise(self, x: Tensor, sigma: Tensor, reference: Tensor, *more: object, **options: object) -> Prediction:
        self.now = self.acts(reference)
        return super().denoise(x, sigma, reference, *more, **options)

    def acts(self, reference: Tensor) -> Tensor:
        (step,) = (self.sigmas == reference).nonzero()[0].tolist()
        return self.__dict__.setdefault("cache", {}).setdefault(
            step in self.steps, torch.tensor([1.0, float(step in self.steps)]).view(1, 2, 1, 1)
        )

    def attention(self) -> Attention | None:
        seen = super().attention()
        return seen and Attention(seen.shares * self.now, self.now)


@pytest.mark.parametrize("steps", [{4, 5, 6, 7}, {0, 1, 2}, {1, 2, 5}, set()])
@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_a_word_owns_nothing_while_its_prompt_is_not_in_force(
    host: DiffusersHost, clock: Clock, steps: set[int], update: str
) -> None:
    """The boat (0.9) owns pixels in the steps of its prompt, from the second on, or from the first where the regions are
    fixed; in the others the moon has what it would have without the boat, and there is background."""
    scheduled = copy(host)
    scheduled.__class__, scheduled.steps, scheduled.sigmas = Scheduled, steps, clock.sigmas
    seen: list[Snapshot] = []
    plan = make_plan(TimestepMap(replace(WORDS, update=update)), 16, 16)
    shape, x = (1, 16, 16), torch.randn(1, 4, 16, 16)
    generate(scheduled, clock, plan, shape, find_sampler("euler"), lambda s: x * s, lambda _: same_noise(x.shape), None,
             seen.append)  # fmt: skip
    assert len(seen) == STEPS
    for step, snapshot in enumerate(seen):
        known = step in steps and (update == "fixed" or step == 0 or step - 1 in steps)
        assert (snapshot.owner == 1).any() == known, step
        if step > 0 and not known:
            assert (snapshot.owner == 0).any() and (snapshot.owner == -1).any()
    if 0 in steps and update == "every step":
        assert (seen[0].owner == 1).all()


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_grey_mask_scales_the_strength(clock: Clock, curve: str) -> None:
    """Weight w of a region with strength k moves like strength k w, and where nobody is like the background."""
    state = clock.start((1, 1, 3)) - 0.3
    grey = torch.tensor([[[0.0, 0.5, 1.0]]])
    region = Region("painted", curve, 0.8, mask=grey)
    owned = Ownership(torch.tensor([[[-1, 0, 0]]]), grey[None])
    moved = move(clock, Plan((region,)), state, 2, owned)
    as_wanted = (("linear", 0.0), (curve, 0.4), (curve, 0.8))
    alone = [clock.advance(state[0, 0, n], 2, *wanted) for n, wanted in enumerate(as_wanted)]
    torch.testing.assert_close(moved[0, 0], torch.stack(alone))


def test_a_cancelled_run_leaves_the_model_as_it_was(host: DiffusersHost, clock: Clock) -> None:
    """An interruption at any step takes all hooks away."""
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 9, 24)
    stock = host.unet(x, 100, encoder_hidden_states=context).sample

    def cancel(snapshot: Snapshot) -> None:
        if snapshot.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(host, x, clock, make_plan(TimestepMap(WORDS), 16, 16), on_step=cancel)
    assert torch.equal(host.unet(x, 100, encoder_hidden_states=context).sample, stock)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.unet.modules())
