"""Sampling the demo model without ComfyUI: a prompt, seeds and a timestep map -> pictures and a record of the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from asyndm_core.attention import token_columns
from asyndm_core.clock import Clock
from asyndm_core.hosts import Host
from asyndm_core.hosts.diffusers import DiffusersHost, make_clock, sigma_of_alphas
from asyndm_core.hosts.diffusers_transformers import DiffusersTransformerHost, make_flow_clock
from asyndm_core.inpainting import InpaintingHost, drawn
from asyndm_core.record import RunRecord
from asyndm_core.regions import Plan, Target, TimestepMap, check_strength, make_plan, weights
from asyndm_core.run import Ahead, Snapshot, Weigh, generate, known_progress
from asyndm_core.samplers import SAMPLERS, Noise, Sampler, UnsupportedSampler, find_sampler
from asyndm_core.tokens import Piece, find_word, unknown_word
from asyndm_core.words import content_phrases, parse_targets

from .config import FACTOR, LATENT_CHANNELS, MAX_TOKENS, PICTURE_SIZE, TRAIN_STEPS
from .model import DemoModel, FlowModel, Parts, alphas_cumprod, flow_prompt
from .world import PLACES

PREDICTION = "v_prediction"
SAMPLER_NAMES = tuple(name for name, sampler in SAMPLERS.items() if not sampler.noise.startswith("brownian"))
"""The samplers offered here: those whose noise needs no Brownian tree."""


@dataclass(frozen=True)
class Settings:
    """How to sample. height and width in pixels, multiples of 16. eta: of sampler ddim only, None for its default.

    denoise: below 1, all steps are taken of the end of a longer schedule, from given latents with noise (see ``Inpaint``).
    """

    steps: int = 20
    cfg: float = 4.5
    sampler: str = "euler"
    eta: float | None = None
    negative: str = ""
    height: int = PICTURE_SIZE
    width: int = PICTURE_SIZE
    denoise: float = 1.0

    def made_sampler(self) -> Sampler:
        """The sampler. Raises UnsupportedSampler for a name that is not offered, ValueError for an option it lacks."""
        sampler = find_sampler(self.sampler)
        if self.sampler not in SAMPLER_NAMES:
            raise UnsupportedSampler(
                f"The demo does not offer the sampler {self.sampler!r}. Choose one of: {', '.join(SAMPLER_NAMES)}."
            )
        return sampler if self.eta is None else sampler.with_options(eta=self.eta)


class Inpaint(NamedTuple):
    """Pictures of which a part is drawn anew: their latents (B, 12, h, w), and a mask (B, 1, h, w), 1 where it is drawn.

    around: the host of a run, around the model's; experiments give their own.
    """

    latents: Tensor
    mask: Tensor
    around: type[InpaintingHost] = InpaintingHost


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures (B, H, W, 3) in [0, 1], their latents (B, 12, h, w), the plan that was followed and the run's record."""

    images: Tensor
    latents: Tensor
    plan: Plan
    record: RunRecord


def choose_targets(prompt: str, typed: str = "") -> tuple[Target, ...]:
    """The targets as typed, or the phrases that carry the prompt's content where nothing is typed.

    Not its place: that is the context, which is to become clear first. Raises ValueError where neither gives one.
    """
    targets = parse_targets(typed) or tuple(Target(phrase) for phrase in content_phrases(prompt) if phrase not in PLACES)
    if not targets:
        raise ValueError("The prompt names no thing that could be followed: write what the picture shows.")
    return targets


def pieces(model: Parts, text: str) -> list[Piece]:
    """The tokens of a text with their positions, without start, end and padding."""
    ids = model.tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [Piece(position, token) for position, token in enumerate(ids)][1:-1]


def token_positions(model: Parts, prompt: str, words: Sequence[str]) -> list[list[int]]:
    """For each word or phrase, the positions of its tokens in the conditioning. Raises UnknownWordError."""
    found = [find_word(partial(pieces, model), prompt, word) for word in words]
    for word, positions in zip(words, found, strict=True):
        if not positions:
            raise unknown_word(word, prompt)
    return found


def timesteps(steps: int, paper: bool = False) -> Tensor:
    """The evaluated timesteps (steps,): evenly spaced from 999 down; in the paper preset, down to 1 as DDIM's."""
    if paper:
        return torch.arange(steps).flip(0) * (TRAIN_STEPS // steps) + 1
    return torch.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1].round().long()


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Iterator[Tensor]:
    """Unit noise (B, *shape), again and again: each image from its own seed, whatever the batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


@torch.no_grad()
def decode(model: Parts, latents: Tensor) -> Tensor:
    """Latents (B, 12, h, w), on the model's device -> pictures (B, 8h, 8w, 3) in [0, 1], on the CPU."""
    return (model.vae.decode(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()


def check(settings: Settings, timestep_map: TimestepMap) -> None:
    """Raises ValueError for settings that cannot be sampled with, naming them."""
    settings.made_sampler()
    check_strength(timestep_map.strength, "The strength")
    if not 1 <= settings.steps <= TRAIN_STEPS:
        raise ValueError(f"The number of steps is {settings.steps}: it is between 1 and {TRAIN_STEPS}.")
    if settings.height % (2 * FACTOR) or settings.width % (2 * FACTOR) or min(settings.height, settings.width) <= 0:
        raise ValueError(f"The picture's size is {settings.width} x {settings.height}: both are multiples of {2 * FACTOR}.")


class _Run(NamedTuple):
    """What of a run depends on the network. last: the table's last sigma."""

    host: Host
    clock: Clock
    last: float = 0.0


def _of_unet(
    model: DemoModel, cond: Tensor, uncond: Tensor, columns: Tensor, paper: bool, settings: Settings, factor: int | None
) -> _Run:  # fmt: skip
    alphas = alphas_cumprod().to(cond.device)
    host = DiffusersHost(model.unet, alphas, PREDICTION, cond, uncond, settings.cfg, columns, factor=factor)
    last = sigma_of_alphas(alphas)[0].item() if paper else 0.0
    evaluated = timesteps(round(settings.steps / settings.denoise), paper)[-settings.steps :]
    return _Run(host, make_clock(alphas, evaluated, paper, last), last)


def _of_transformer(
    model: FlowModel, cond: Tensor, uncond: Tensor, columns: Tensor, paper: bool, settings: Settings,
    blocks: Collection[int] | None,
) -> _Run:  # fmt: skip
    texts = [flow_prompt(text) for text in (cond, uncond)]
    host = DiffusersTransformerHost(model.transformer, *texts, settings.cfg, columns, blocks)
    whole = torch.linspace(1, 0, round(settings.steps / settings.denoise) + 1)
    return _Run(host, make_flow_clock(whole[-settings.steps - 1 :].to(cond.device), paper))


@torch.no_grad()
def sample_plan(
    model: DemoModel | FlowModel, prompts: Sequence[str], columns: Tensor, plan: Plan, seeds: Sequence[int], settings: Settings,
    last_word: str | None = None, on_step: Callable[[Snapshot], None] | None = None, weigh: Weigh = weights,
    factor: int | None = None, inpaint: Inpaint | None = None, ahead: Ahead = known_progress,
    blocks: Collection[int] | None = None,
) -> Tensor:  # fmt: skip
    """The latents (B, 12, h, w) of one picture for each seed, on the model's device. The same seed gives the same picture in
    every batch.

    prompts: one for all seeds, or one for each. columns: (tokens, words) or (B, tokens, words) of the plan's words.
    last_word, ahead: see ``run.start``. weigh: see ``run.sample``.
    factor: see ``DiffusersHost``. blocks: see ``DiffusersTransformerHost``. inpaint: pictures to draw a part of anew, or None.
    """
    height, width = settings.height // FACTOR, settings.width // FACTOR
    cond, uncond = model.encode_text([*prompts, settings.negative]).split([len(prompts), 1])
    device, columns = cond.device, columns.to(cond.device)
    if isinstance(model, FlowModel):
        run = _of_transformer(model, cond, uncond, columns, plan.paper, settings, blocks)
    else:
        run = _of_unet(model, cond, uncond, columns, plan.paper, settings, factor)
    clock, law = run.clock, run.host.law
    shape = (LATENT_CHANNELS, height, width)
    x = next(seeded_noise(seeds, shape)).to(device)

    def noise(followed: Plan) -> Noise:
        drawn = seeded_noise(seeds, shape)
        next(drawn)
        return lambda sigma, sigma_next: next(drawn).to(device)

    def given(sigma: Tensor) -> Tensor:
        return law.alpha(sigma) * inpaint.latents + sigma * x

    def noised(sigma: Tensor) -> Tensor:
        if inpaint is not None and (law.flow or settings.denoise < 1):
            return given(sigma)
        whole = sigma * x if law.flow else x * (1 + sigma**2).sqrt()
        return whole if inpaint is None else torch.where(sigma < clock.sigmas[0], given(sigma), inpaint.latents + whole)

    host, share = run.host, None
    if inpaint is not None:
        inpaint = inpaint._replace(latents=inpaint.latents.to(device), mask=inpaint.mask.to(device))
        host = inpaint.around(host, inpaint.latents, inpaint.mask, given)
        share = drawn(inpaint.mask)
    shape_of_map = (len(seeds), height, width)
    latents = generate(
        host, clock, plan, shape_of_map, settings.made_sampler(), noised, noise, last_word, on_step, weigh, share, ahead
    )  # fmt: skip
    return latents / (1 + run.last**2) ** 0.5


@torch.no_grad()
def sample_demo(
    model: DemoModel | FlowModel, prompt: str, timestep_map: TimestepMap, seeds: Sequence[int], settings: Settings | None = None
) -> Result:
    """Sample one picture of ``prompt`` for each seed.

    The record keeps previews of a few steps. Raises ValueError for settings or targets that do not fit.
    """
    settings = settings or Settings()
    check(settings, timestep_map)
    plan = make_plan(timestep_map, settings.height // FACTOR, settings.width // FACTOR)
    positions = token_positions(model, prompt, plan.words)
    last_word = max(zip(positions, plan.words, strict=True), key=lambda found: found[0][-1], default=(None, None))[1]
    record = RunRecord(settings.steps, previews=True)
    columns = token_columns(positions, MAX_TOKENS)
    latents = sample_plan(model, [prompt], columns, plan, seeds, settings, last_word, record)
    return Result(decode(model, latents), latents, plan, record)
