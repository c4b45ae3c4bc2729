"""The loop: every pixel by its own clock (arXiv 2510.04504, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Attention, AttentionSum, nothing_seen
from .clock import Clock
from .embedding import Groups, grouped
from .grid import Grid, TokenGrid
from .hosts import Host
from .inpainting import HoldingHost
from .regions import Ownership, Plan, Region, assign, denoise_map, first_assignment, synchronous, weights
from .samplers import Noise, Prediction, Sampler, Step, toward

Weigh = Callable[[Plan, Attention, tuple[int, ...], torch.device], Tensor]
"""What ``regions.weights`` does: attention -> the weight of every region at every pixel."""


class Snapshot(NamedTuple):
    """The run at one step, after the model's first evaluation: for progress bars, previews and records.

    sigma (B, 1, *size) is the noise level of x (None where a host reports a stock run). progress (B, *size) is q now;
    owner (B, *size) is the region that moves each pixel in this step (-1: background).
    attention: seen in this step, or None.
    """

    step: int
    x: Tensor
    denoised: Tensor
    sigma: Tensor | None
    progress: Tensor
    owner: Tensor
    attention: Attention | None


def move(clock: Clock, plan: Plan, state: Tensor, step: int, owned: Ownership) -> Tensor:
    """The states after the move of ``step``: each pixel by its owner's curve, the background linearly."""
    moved = clock.advance(state, step, "linear", 0.0)
    for index, region in enumerate(plan.regions):
        strength = region.strength * owned.weights[index] if region.soft else region.strength
        moved = torch.where(owned.owner == index, clock.advance(state, step, region.curve, strength), moved)
    return moved


class Lead(NamedTuple):
    """Pixels that run ahead of the background, all or a part of the way.

    share (B, *size) in [0, 1]: 1 - how much of the pixel is drawn. known: progress of a pixel of share 1 at steps 0 to N.
    until (B, 1, *size): the sigma that each pixel is drawn from, see ``HoldingHost``; None: all from the start.
    """

    share: Tensor
    known: Sequence[float]
    until: Tensor | None = None


class Now(NamedTuple):
    """Where a run stands before a step: the states (B, *size), their sigmas (B, 1, *size), and who owns each pixel.

    The size counts tokens (see ``TokenGrid``), which are a UNet's pixels.
    kept (B, *size): pixels that are clean from the start and never change, at sigma 0 and progress N; None: there are none.
    lead: None where nothing runs ahead.
    """

    state: Tensor
    sigma: Tensor
    owned: Ownership
    kept: Tensor | None = None
    lead: Lead | None = None

    def at(self, clock: Clock, state: Tensor, step: int) -> Now:
        """The same run at ``step``, where its states are ``state``."""
        return self._replace(state=state, sigma=levels(clock, state, step, self.kept, self.lead))


class Pause(NamedTuple):
    """A run between two of its steps, and all that it goes on from: several samplers may make the steps of one run.

    step: the next one. x: latents (B, C, *size), every pixel at its own ``now.sigma``. found: the weights of the regions as
    last seen, (R, B, *size). fixed: whether they stay. denoised: what the model last said of x, None before the first step.
    beside: the sigma (0-dim) of what goes along with a clip, see ``PackedGrid``.
    """

    step: int
    x: Tensor
    now: Now
    found: Tensor
    fixed: bool = False
    denoised: Tensor | None = None
    beside: Tensor | float = 0.0


def progress(clock: Clock, state: Tensor, step: int, kept: Tensor | None, lead: Lead | None) -> Tensor:
    """q (B, *size) of the states at ``step``: N where pixels are kept; pixels that lead are between their own and ``known``."""
    q = clock.progress(state, step)
    if lead is not None:
        q = q * (1 - lead.share) + lead.known[step] * lead.share
    return q if kept is None else q.masked_fill(kept, float(clock.steps))


def levels(clock: Clock, state: Tensor, step: int, kept: Tensor | None, lead: Lead | None = None) -> Tensor:
    """The sigmas (B, 1, *size) of the states at ``step``; 0 where pixels are kept."""
    if lead is not None:
        return clock.level(progress(clock, state, step, kept, lead))[:, None]
    sigma = clock.sigma(state, step)[:, None]
    return sigma if kept is None else sigma.masked_fill(kept[:, None], 0.0)


Ahead = Callable[[Clock, Plan], Sequence[float]]
"""What ``known_progress`` does: the progress of a known pixel at steps 0 to N, never falling, N at the end."""


def known_progress(clock: Clock, plan: Plan) -> list[float]:
    """Known pixels lead the background of each step by the plan's share of the schedule, never past the end."""
    region, steps = plan.uniform, clock.steps
    background = [float(step) for step in range(steps + 1)]
    if region is not None:
        background = [float(clock.progress(state, step)) for step, state in enumerate(_alone(clock, region))] + [float(steps)]
    return [min(q + plan.lead * steps, steps) for q in background]


def start(
    clock: Clock, plan: Plan, shape: tuple[int, ...], attention: Attention | None = None,
    last_word: str | None = None, drawn: Tensor | None = None, ahead: Ahead = known_progress, acts: Tensor | None = None,
) -> Now:  # fmt: skip
    """The start of a run on latents of ``shape`` (B, *size).

    attention: fixed attention of an earlier pass, or None. last_word: the target whose token comes last in the prompt
    (the paper preset begins with its region). drawn (B, *size): how much of each pixel an inpainting mask draws, 0 where it
    is known; or None. ahead: experiments give their own. acts: where the words act in the first step, see ``Host``. Regions
    found in an earlier pass start at their denoise also where their word joins later.
    """
    device = clock.sigmas.device
    if attention is None:
        owned = found = first_assignment(plan, last_word, shape, device, acts)
    else:
        found = assign(plan, weights(plan, attention, shape, device))
        owned = assign(plan, found.weights, acts)
    kept = drawn == 0 if plan.clean and drawn is not None else None
    if plan.lead and not (plan.level and drawn is None):
        denoise, state = denoise_map(plan, found), clock.start(shape)
        until = None if plan.level else levels(clock, clock.start_at(denoise), 0, denoise == 0)
        share = 1 - (denoise if drawn is None else denoise * drawn)
        lead = Lead(share, ahead(clock.to(torch.device("cpu")), plan), until)
        return Now(state, levels(clock, state, 0, None, lead), owned, lead=lead)
    if not plan.level:
        denoise = denoise_map(plan, found)
        state, unchanged = clock.start_at(denoise), denoise == 0
        kept = unchanged if kept is None else kept | unchanged
        return Now(state, levels(clock, state, 0, kept), owned, kept)
    state = clock.start(shape)
    for step in range(clock.anchor, 0):
        state = move(clock, plan, state, step, owned)
    return Now(state, levels(clock, state, 0, kept), owned, kept)


def _alone(clock: Clock, region: Region) -> list[Tensor]:
    """The state at steps 0 to N - 1 of a pixel that is in one region all along."""
    return _states(clock, clock.start(()), clock.anchor, region.curve, region.strength)


def _states(clock: Clock, state: Tensor, first: int, curve: str, strength: float) -> list[Tensor]:
    """The state at steps 0 to N - 1 of a pixel that is in ``state`` at step ``first``, and moves by one curve all along."""
    states = []
    for step in range(first, clock.steps):
        if step >= 0:
            states.append(state)
        state = clock.advance(state, step, curve, strength)
    return states


def _levels(clock: Clock, states: Sequence[Tensor]) -> Tensor:
    """The sigmas (N + 1,) of states at steps 0 to N - 1, and the table's last."""
    return torch.stack([*(clock.sigma(state, step) for step, state in enumerate(states)), clock.sigmas[-1]])


def greatest_lag(clock: Clock, region: Region) -> float:
    """By how many steps a pixel that is in one region all along is behind the background, at the most. Waits for the clock's
    device."""
    return max(step - float(clock.progress(state, step)) for step, state in enumerate(_alone(clock, region)))


def noise_table(clock: Clock, plan: Plan) -> Tensor:
    """The sigmas of the noise clock, (N + 1,): what a noise source that answers by interval is asked for.

    It is the background's clock, the scheduler's table; where one region covers everything (mode concave) it is that
    region's, so that such a run equals stock sampling on the region's sigmas.
    """
    region = plan.uniform
    if region is None:
        return clock.sigmas
    return _levels(clock, _alone(clock, region))


def beside_table(clock: Clock, plan: Plan) -> Tensor:
    """The sigmas of what goes along with a clip (see ``PackedGrid``), (N + 1,): those of the background."""
    if plan.level:
        return clock.sigmas
    if plan.background_denoise == 0:
        return torch.zeros_like(clock.sigmas)
    start = clock.start_at(torch.full_like(clock.sigmas[0], plan.background_denoise))
    return _levels(clock, _states(clock, start, 0, "linear", 0.0))


class _Evaluations:
    """The model as a sampler sees it within one step: watched, and reported, at its first evaluation only.

    groups: the pixels of one sigma. within: those of one sigma and one sigma_next, which share every level between too.
    """

    def __init__(
        self, host: Host, reference: Tensor, watch: bool, report: Callable[[Tensor, Tensor, Attention | None], None],
        groups: Groups, within: Groups | None,
    ) -> None:  # fmt: skip
        self._host, self._reference, self._watch, self._report = host, reference, watch, report
        self._groups, self._within = groups, within
        self._first = True
        self.attention: Attention | None = None
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Prediction:
        if not self._first:
            return self._host.denoise(x, sigma, groups=self._within)
        self._first = False
        prediction = self._host.denoise(x, sigma, self._reference, self._watch, self._groups)
        self.attention = self._host.attention() if self._watch else None
        self.denoised = prediction.denoised
        self._report(x, prediction.denoised, self.attention)
        return prediction


def _report(
    on_step: Callable[[Snapshot], None] | None, clock: Clock, grid: Grid, step: int, now: Now,
    x: Tensor, denoised: Tensor, attention: Attention | None,
) -> None:  # fmt: skip
    if on_step is not None:
        q = progress(clock, now.state, step, now.kept, now.lead)
        sigma, q, owner = (grid.to_pixels(each) for each in (now.sigma, q, now.owned.owner))
        on_step(Snapshot(step, x, denoised, sigma, q, owner, attention))


def _pixels(size: Sequence[int]) -> TokenGrid:
    """Where single pixels are the tokens of latents of a size."""
    return TokenGrid(tuple(size))


def sample(
    host: Host,
    x: Tensor,
    begin: Now,
    clock: Clock,
    plan: Plan,
    sampler: Sampler,
    noise: Noise,
    on_step: Callable[[Snapshot], None] | None = None,
    fixed: bool = False,
    weigh: Weigh = weights,
    grid: Grid | None = None,
) -> Tensor:
    """Sample x (B, C, *size), noised to ``begin.sigma``, to the end of the clock's table. Returns latents like x.

    ``fixed`` keeps the first regions. See ``go_on`` for the rest.
    """
    first = Pause(0, x, begin, begin.owned.weights, fixed)
    return go_on(host, first, clock.steps, clock, plan, sampler, noise, on_step, weigh, grid).x


def go_on(
    host: Host,
    pause: Pause,
    until: int,
    clock: Clock,
    plan: Plan,
    sampler: Sampler,
    noise: Noise,
    on_step: Callable[[Snapshot], None] | None = None,
    weigh: Weigh = weights,
    grid: Grid | None = None,
) -> Pause:
    """The steps from ``pause`` to before step ``until`` of the clock's table.

    Order within a step, as in the authors' code: the move q -> q' of step i uses the regions seen at step i - 1; then
    the model is evaluated, and its attention makes the regions of the next move.
    A word owns nothing in steps where no prompt with it is in force, nor in the first one where one is again: it was not
    seen before. weigh: how attention becomes weights of regions; experiments give their own. grid: how the model's
    tokens lie in the latents (None: they are single pixels); ``pause.now`` is a map of tokens. The memory of multi-step
    samplers begins anew.

    The pixels of the next evaluation are grouped before this one: by the time that the host needs their number, it has
    arrived, and the device has not run out of work.
    """
    x, now, found, denoised = pause.x, pause.now, pause.found, pause.denoised
    grid = _pixels(x.shape[2:]) if grid is None else grid
    shape = (x.shape[0], *grid.shape)
    acts = None
    watch = bool(plan.words) and not pause.fixed
    noise_sigmas = noise_table(clock.to(torch.device("cpu")), plan)
    ends_clean = float(noise_sigmas[-1]) == 0
    history = sampler.history()
    beside = beside_table(clock, plan)
    sigma = grid.to_latents(now.sigma, beside[pause.step]).to(x.dtype)
    groups = grouped(sigma[:, 0])
    for step in range(pause.step, until):
        before, acts = acts, host.acts(noise_sigmas[step]) if plan.words else None
        if step > 0 and (watch or acts is not before or step == pause.step):
            now = now._replace(owned=assign(plan, found, acts))
        following = now.at(clock, move(clock, plan, now.state, step, now.owned), step + 1)
        sigma_next = grid.to_latents(following.sigma, beside[step + 1]).to(x.dtype)
        groups_next = grouped(sigma_next[:, 0])
        within = groups.split(groups_next) if sampler.looks_ahead else None
        report = partial(_report, on_step, clock, grid, step, now)
        model = _Evaluations(host, noise_sigmas[step], watch, report, groups, within)
        this_step = Step(
            index=step,
            sigma=sigma,
            sigma_next=sigma_next,
            clock=(noise_sigmas[step], noise_sigmas[step + 1]),
            ends_clean=ends_clean and step + 1 == clock.steps,
            left=until - step,
        )
        x = sampler.step(model, x, this_step, history, noise, host.law)
        if watch:
            found = weigh(plan, model.attention or nothing_seen(len(plan.words), len(grid.size), x.device), shape, x.device)
        now, sigma, groups, denoised = following, sigma_next, groups_next, model.denoised
    return Pause(until, x, now, found, pause.fixed, denoised, beside[until])


def levelled(pause: Pause, clock: Clock, given: Callable[[Tensor], Tensor], grid: Grid | None = None) -> Tensor:
    """The latents of a pause (B, C, *size) with every pixel at the table's sigma of ``pause.step``, whatever its clock says.

    Pixels that are elsewhere go there in one first-order step by what the model last said of them; at the end of the table
    there are none. given: sigmas (B, 1, *size) -> the given latents at them. Pixels that were kept, and known ones that ran
    ahead, are these.
    """
    x, now = pause.x, pause.now
    grid = _pixels(x.shape[2:]) if grid is None else grid
    level = clock.sigmas[pause.step]
    if pause.step < clock.steps and pause.denoised is not None:
        sigma, target = grid.to_latents(now.sigma, pause.beside).to(x.dtype), level.to(x.dtype)
        x = torch.where((sigma == target) | (sigma == 0), x, toward(x, pause.denoised, sigma, target))
    unchanged = now.kept if now.lead is None else now.lead.share == 1
    if unchanged is None:
        return x
    return torch.where(grid.to_latents(unchanged[:, None], beside=False), given(level.expand(x[:, :1].shape)), x)


LOOKS = 4
"""How many noise levels, evenly spread over the table, the given latents are looked at to find words in them."""


def look(host: Host, clock: Clock, shape: tuple[int, ...], noised: Callable[[Tensor], Tensor]) -> Attention | None:
    """Where the plan's words are in the given latents: the mean attention over a few noise levels.

    noised: sigmas (B, 1, *size) -> the latents at them. None where the host sees no word.
    """
    mean = AttentionSum()
    for step in dict.fromkeys(clock.steps * n // (LOOKS + 1) for n in range(1, LOOKS + 1)):
        sigma = clock.sigmas[step].expand(shape)[:, None]
        host.denoise(noised(sigma), sigma, clock.sigmas[step], watch=True)
        seen = host.attention()
        if seen is not None:
            mean.add(seen)
    return mean.mean()


def prepare(
    host: Host,
    clock: Clock,
    plan: Plan,
    shape: tuple[int, ...],
    sampler: Sampler,
    noised: Callable[[Tensor], Tensor],
    noise: Callable[[Plan], Noise],
    last_word: str | None = None,
    drawn: Tensor | None = None,
    ahead: Ahead = known_progress,
    grid: Grid | None = None,
) -> Pause:
    """A run before its first step. Where regions must be known before it, their words are looked for first.

    Fixed regions: in a synchronous pass over the whole table. Regions with a denoise of their own: in the given latents,
    which they are to change or to keep. See ``generate`` for the arguments.
    """
    grid = _pixels(shape[1:]) if grid is None else grid
    tokens, attention = (shape[0], *grid.shape), None
    if plan.words and not plan.level:
        attention = look(host, clock, shape, noised)
    elif plan.words and plan.fixed:
        even, mean = synchronous(plan), AttentionSum()

        def keep(snapshot: Snapshot) -> None:
            if snapshot.attention is not None:
                mean.add(snapshot.attention)

        begin = start(clock, even, tokens, drawn=drawn, ahead=ahead)
        x = noised(grid.to_latents(begin.sigma, beside_table(clock, even)[0]))
        sample(host, x, begin, clock, even, sampler, noise(even), keep, grid=grid)
        attention = mean.mean()
    acts = host.acts(clock.sigmas[0].cpu()) if plan.words else None
    begin = start(clock, plan, tokens, attention, last_word, drawn, ahead, acts)
    fixed = plan.fixed and attention is not None
    beside = beside_table(clock, plan)[0]
    return Pause(0, noised(grid.to_latents(begin.sigma, beside)), begin, begin.owned.weights, fixed, beside=beside)


def holding(host: Host, now: Now, noised: Callable[[Tensor], Tensor], grid: Grid) -> Host:
    """The host, of a run where pixels that lead are drawn a part of the way only: it keeps the others as they are given."""
    if now.lead is None or now.lead.until is None:
        return host
    until = grid.to_latents(now.lead.until, torch.inf)
    return HoldingHost(host, noised(torch.zeros_like(until)), until)


def generate(
    host: Host,
    clock: Clock,
    plan: Plan,
    shape: tuple[int, ...],
    sampler: Sampler,
    noised: Callable[[Tensor], Tensor],
    noise: Callable[[Plan], Noise],
    last_word: str | None = None,
    on_step: Callable[[Snapshot], None] | None = None,
    weigh: Weigh = weights,
    drawn: Tensor | None = None,
    ahead: Ahead = known_progress,
    patch: tuple[int, ...] = (1, 1),
) -> Tensor:
    """A whole run on latents of ``shape`` (B, *size): ``prepare``, all steps, and their end ``levelled``.

    noised: sigmas (B, 1, *size) -> the given latents at them. noise: a fresh source of noise for each pass, from the same
    seed. patch: the extents of the model's tokens in latent pixels; the masks of the plan, and ``drawn``, are maps of tokens.
    See ``start`` and ``go_on`` for the rest. Pixels that were kept, and known ones that ran ahead, end as the given latents at
    the table's last sigma, as all others.
    """
    plan, grid = plan.to(clock.sigmas.device), TokenGrid(shape[1:], patch)
    pause = prepare(host, clock, plan, shape, sampler, noised, noise, last_word, drawn, ahead, grid)
    host = holding(host, pause.now, noised, grid)
    pause = go_on(host, pause, clock.steps, clock, plan, sampler, noise(plan), on_step, weigh, grid)
    return levelled(pause, clock, noised, grid)
