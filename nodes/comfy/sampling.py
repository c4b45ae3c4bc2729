"""A run of AsynDM inside ComfyUI's sampling: a wrapper around the sampler on a clone of the MODEL, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import comfy.controlnet
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor
from tqdm.auto import tqdm

from ...asyndm_core.crowding import Crowding
from ...asyndm_core.grid import TokenGrid
from ...asyndm_core.inpainting import drawn
from ...asyndm_core.regions import Plan, Region, TimestepMap, make_plan
from ...asyndm_core.run import Pause, Snapshot, go_on, holding, levelled, noise_table, prepare
from ...asyndm_core.samplers import Noise, Sampler
from .arrival import in_force
from .conditioning import ANNOTATION, check_words, last_word
from .guidance import check_guidance
from .host import WRAPPER_KEY, ComfyHost, WrappersMP
from .model import control_chain
from .nested import Shapes, clip_of, grid_of, shapes_of
from .network import control_network_of, is_framed, is_served, network_of, patch_of, reads_words, size_of
from .notices import Notices, say_of_crowding, say_of_length, say_of_masks
from .outside import outside_of
from .relay import Carried, Course, course_of, leave, outer_sample
from .sampler import check_guider, conds_of, positive_of, sampler_of

OnStep = Callable[[Snapshot], None]
LAST_SEED = 2**64 - 1


class Start(NamedTuple):
    """What is known of a run before its first step.

    steps: N. batch: how many pictures. regions: in the order of ``Snapshot.owner``. words: in the order of
    ``Snapshot.attention``. latent_format: ComfyUI's, of the model. part: the steps that this sampler makes.
    """

    steps: int
    batch: int
    regions: tuple[Region, ...]
    words: tuple[str, ...]
    latent_format: Any
    part: range


class Watcher(AbstractContextManager, Protocol):
    """Around a run, and called with a snapshot of every step."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Take in one step."""
        ...


class Options(NamedTuple):
    """What a node adds to a run.

    eta: of the sampler ddim (None: ComfyUI's own ddim, which has none). on_step: gets a snapshot of every step, with the
    words' attention even where the map asks for nothing. on_run: is asked before every run for someone to watch it, or
    None. shortcut: whether maps that ask for nothing are left to the stock sampler, bit for bit (off in tests only).
    cut: whether the sampler's table is that of a whole denoising, of which the map's denoise takes the end; False where
    it begins at the map's denoise already. node: the id of the node that shows what a run has to say, or None.
    """

    eta: float | None = None
    on_step: OnStep | None = None
    shortcut: bool = True
    on_run: Callable[[Start], Watcher | None] | None = None
    cut: bool = True
    node: str | None = None


def apply(model: Any, timestep_map: TimestepMap, options: Options | None = None) -> Any:
    """A clone of the MODEL that samples asynchronously wherever it is sampled. The last map applied counts."""
    patched = model.clone()
    wrapper = sampler_wrapper(timestep_map, options or Options())
    for place, ours in ((WrappersMP.OUTER_SAMPLE, outer_sample), (WrappersMP.SAMPLER_SAMPLE, wrapper)):
        patched.remove_wrappers_with_key(place, WRAPPER_KEY)
        patched.add_wrapper_with_key(place, WRAPPER_KEY, ours)
    return patched


def sampler_wrapper(timestep_map: TimestepMap, options: Options) -> Callable:
    """A SAMPLER_SAMPLE wrapper of ComfyUI: samples by ``timestep_map``, or the stock way where it asks for nothing."""
    for_all = comfy.samplers.KSAMPLER.sample

    def sampler_sample(
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        shapes = shapes_of(guider, noise)
        picture = clip_of(noise, shapes)
        size = size_of(picture)
        patch = patch_of(guider.inner_model.diffusion_model, len(size))
        plan = make_plan(timestep_map, *size, patch=patch, outside=outside_of(conds_of(guider), guider.inner_model, size))
        say = Notices(options.node)
        latent_format = guider.inner_model.latent_format
        tokens = (noise.shape[0], *TokenGrid(size, patch).shape)
        course = course_of(sigmas, noise, timestep_map, plan, tokens, type(latent_format), say)
        own_starts = not (plan.level and timestep_map.denoise == 1)
        if own_starts and course.carried is None and not torch.count_nonzero(noise):
            raise ValueError(
                "region_denoise or background_denoise of Asynchronous Timestep Map is below 1, and the sampler adds no "
                "noise (add_noise is disabled): nothing can start at another noise level. Enable it, or set both to 1."
            )
        if options.cut and timestep_map.denoise < 1:
            if timestep_map.table is not None:
                raise ValueError(
                    "Asynchronous Timestep Map has a table of sigmas for several samplers, and both region_denoise and "
                    "background_denoise below 1: set the greater to 1 and let the first sampler start later (start_at_step), "
                    "or disconnect sigmas."
                )
            if timestep_map.denoise == 0:
                return torch.zeros_like(noise) if latent_image is None else latent_image
            sigmas = sigmas[-1 - max(1, round((len(sigmas) - 1) * timestep_map.denoise)) :]
            course = Course(sigmas, range(len(sigmas) - 1))
        share = _drawn(plan, noise, denoise_mask, patch, shapes, say) if course.carried is None else course.carried.share
        asks_nothing = plan.idle and share is None and not options.eta and course.carried is None
        idle = (options.shortcut and asks_nothing) or len(sigmas) < 2
        words = plan.words
        if idle:
            words = _known_words(guider, timestep_map.words) if options.on_step is not None else ()
            course = Course(sigmas, range(len(sigmas) - 1))
        steps = len(course.sigmas) - 1
        start = Start(steps, noise.shape[0], plan.regions, words, latent_format, course.part)
        say_of_masks(say, timestep_map, plan, *size[-2:])
        crowding = None if idle else _crowding(plan, steps, say)
        shown = is_served(guider.inner_model.diffusion_model, picture)
        with _everyone(options, start, crowding, shown) as on_step:
            if idle:
                if on_step is not None:
                    extra_args, callback = _watch_stock(guider, extra_args, callback, noise, words, on_step)
                return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar, **kwargs)
            ksampler = executor.class_obj
            sampler = sampler_of(ksampler, options.eta, say, for_all)

            def run(
                guider: Any, sigmas: Tensor, extra_args: dict, callback: Callable | None, noise: Tensor, latent: Tensor | None,
                mask: Tensor | None, disable_pbar: bool, **kwargs: Any,
            ) -> Tensor:  # fmt: skip
                made = _Run(ksampler, sampler, guider, course, extra_args, noise, latent, mask, share, plan, say)
                return made.sample(callback, disable_pbar, on_step)

            inner = WrapperExecutor.new_class_executor(run, ksampler, executor.wrappers, executor.idx + 1)  # of other packs
            return inner.execute(
                guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar, **kwargs
            )

    return sampler_sample


def _crowding(plan: Plan, steps: int, say: Notices) -> Crowding | None:
    """Says where hardly anything runs ahead; None where nothing lags, or all is asked to (mode concave)."""
    everywhere = any(region.word is None and region.mask is None for region in plan.regions)
    return Crowding(plan, steps, partial(say_of_crowding, say)) if plan.lags and not everywhere and steps > 2 else None


def _drawn(
    plan: Plan, noise: Tensor, denoise_mask: Tensor | None, patch: tuple[int, ...], shapes: Shapes | None, say: Notices
) -> Tensor | None:  # fmt: skip
    """How much of each token (B, *grid) is drawn, where the model sees known ones clean or ahead; None: they are noised."""
    if denoise_mask is None or not (plan.clean or plan.lead):
        return None
    if not torch.count_nonzero(noise):
        say(
            f"known_pixels is {'clean' if plan.clean else 'ahead'}, but the sampler adds no noise (add_noise is disabled): its "
            "latents come noisy, the known pixels too. They are taken as noised."
        )
        return None
    mask, picture = clip_of(denoise_mask, shapes), clip_of(noise, shapes)
    mask = mask[:, :, 0] if is_framed(picture) else mask
    return TokenGrid(size_of(picture), patch).most(drawn(mask))


@contextmanager
def _everyone(options: Options, start: Start, crowding: Watcher | None, shown: bool) -> Iterator[OnStep | None]:
    """An ``on_step`` that tells all who want to know of a run, one after another; None if nobody does.

    crowding: one more, or None. shown: whether the run is of a kind that ``on_run`` is for.
    """
    watcher = options.on_run(start) if shown and options.on_run is not None else None
    with ExitStack() as stack:
        for each in (watcher, crowding):
            if each is not None:
                stack.enter_context(each)
        listeners = [listener for listener in (options.on_step, watcher, crowding) if listener is not None]

        def on_step(snapshot: Snapshot) -> None:
            for listener in listeners:
                listener(snapshot)

        yield on_step if listeners else None


def _say_of_unknown_controls(say: Notices, controls: Sequence[Any]) -> None:
    """ComfyUI's ControlNets are told every pixel's noise level, T2I adapters need none; of others nothing is known."""
    chained = [each for control in controls for each in control_chain(control)]
    told = (comfy.controlnet.T2IAdapter,)
    unknown = {type(c).__name__ for c in chained if control_network_of(c) is None and not isinstance(c, told)}
    if unknown:
        say(f"{' and '.join(sorted(unknown))} is told one noise level for all pixels, so its hint is only approximately right.")


def _known_words(guider: Any, words: Sequence[str]) -> tuple[str, ...]:
    """The words that the conds of a guider know, if their attention can be read."""
    if not reads_words(guider.inner_model.diffusion_model):
        return ()
    known = {word for cond in positive_of(guider) for word in getattr(cond.get(ANNOTATION), "positions", ())}
    return tuple(word for word in words if word in known)


def _watch_stock(
    guider: Any, extra_args: dict, callback: Callable | None, noise: Tensor, words: Sequence[str], on_step: OnStep
) -> tuple[dict, Callable]:
    """Stock sampling with its words' attention read, if there are any, and its steps reported.

    Returns new extra_args and callback for the sampler.
    """
    host = None
    if words:
        host = ComfyHost(guider, extra_args, words, noise)
        host.watch_only()
        extra_args = {**extra_args, "model_options": host.model_options}
    shapes = shapes_of(guider, noise)
    shape = (noise.shape[0], *size_of(clip_of(noise, shapes)))

    def report(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        seen = host.attention() if host is not None else None
        level = torch.full(shape, float(step), device=x.device)
        shown = [clip_of(latents, shapes) for latents in (x, denoised)]
        shown = [latents[:, :, 0] if is_framed(latents) else latents for latents in shown]
        on_step(Snapshot(step, *shown, None, level, torch.full_like(level, -1, dtype=torch.long), seen))
        if callback is not None:
            callback(step, denoised, x, steps)

    return extra_args, report


class _Run:
    """One asynchronous run, or a sampler's part of it, in the place of ComfyUI's sampler function."""

    def __init__(
        self, ksampler: Any, sampler: Sampler, guider: Any, course: Course, extra_args: dict, noise: Tensor,
        latent: Tensor | None, denoise_mask: Tensor | None, share: Tensor | None, plan: Plan, say: Notices,
    ) -> None:  # fmt: skip
        check_guider(guider)
        self.shapes = shapes_of(guider, noise)
        network = network_of(guider.inner_model, clip_of(noise, self.shapes))
        conds = positive_of(guider)
        check_words(plan.words, conds)
        check_guidance(extra_args["model_options"])
        _say_of_unknown_controls(say, [cond["control"] for cond in conds if "control" in cond])
        sigmas = course.sigmas
        self.authors_end = plan.paper and float(sigmas[-1]) == 0
        if self.authors_end:
            sigmas = torch.cat([sigmas[:-1], guider.inner_model.model_sampling.sigmas[:1].to(sigmas)])
        noise = noise.float()  # before 0.33, ComfyUI samples latents in whatever type they come: too coarse for maps of sigmas
        latent = torch.zeros_like(noise) if latent is None else latent.float()
        if course.carried is not None:
            noise, latent = course.carried.noise, course.carried.latent
        self.ksampler, self.plan, self.sigmas, self.share = ksampler, plan, sigmas, share
        self.course, self.kind = course, type(guider.inner_model.latent_format)
        if not plan.level and not torch.count_nonzero(latent):
            say(
                "region_denoise and background_denoise differ, and the latent image is empty: what starts below the other "
                "starts from grey. Connect an encoded picture (VAE Encode) to latent_image."
            )
        self.seed = extra_args.get("seed")
        self.sampler = sampler
        self.host = ComfyHost(guider, extra_args, plan.words, noise, self.sampler.needs_uncond)
        self.host.inpaint(self._inpaint_model(guider, noise, latent), denoise_mask, as_comfy=share is None)
        self.comfy_noise, self.comfy_latent = noise, latent
        self.noise, self.latent = self.host.from_comfy(noise), self.host.from_comfy(latent)
        self.grid = grid_of(size_of(clip_of(noise, self.shapes)), network.patch, self.shapes)
        self.clock = self.host.clock(sigmas, plan.paper)
        ahead = plan.lead > 0 and (share is not None or not plan.level)
        say_of_length(say, plan, self.clock.to(torch.device("cpu")), ahead)
        self.last_word = last_word(plan.words, [cond for cond in conds if in_force(cond, sigmas[0])])
        self.max_denoise = ksampler.max_denoise(guider, sigmas)

    def sample(self, callback: Callable | None, disable_pbar: bool, on_step: OnStep | None = None) -> Tensor:
        """The latents of the run. Fixed regions take their attention from a synchronous pass before it.

        The paper's run ends at timestep 0 instead of sigma 0, and its result is the variance-preserving latents there.
        """
        part, device = self.course.part, self.clock.sigmas.device
        plan = self.plan.to(device)
        with tqdm(total=len(part), disable=disable_pbar) as bar:

            def report(snapshot: Snapshot) -> None:
                if callback is not None:
                    denoised, x = self.host.to_comfy(snapshot.denoised), self.host.to_comfy(snapshot.x)
                    callback(snapshot.step - part.start, denoised, x, len(part))
                if on_step is not None:
                    shown = [clip_of(latents, self.shapes) for latents in (snapshot.x, snapshot.denoised)]
                    on_step(snapshot._replace(x=shown[0], denoised=shown[1]))
                bar.update()

            pause = self.course.carried.pause if self.course.carried is not None else self._begin(plan)
            host = holding(self.host, pause.now, self._noised, self.grid)
            noise = self._noise_source(plan, part)
            pause = go_on(host, pause, part.stop, self.clock, plan, self.sampler, noise, report, grid=self.grid)
        samples = self.host.to_comfy(levelled(pause, self.clock, self._noised, self.grid))
        if self.course.goes_on:
            leave(self._carried(pause))
        elif self.authors_end:
            return samples / (1 + self.sigmas[-1] ** 2).sqrt()
        return self.host.sampling.inverse_noise_scaling(self.sigmas[part.stop], samples)

    def _begin(self, plan: Plan) -> Pause:
        """The run before its first step."""
        shape = (self.noise.shape[0], *self.noise.shape[2:])
        whole = range(self.clock.steps)
        return prepare(
            self.host, self.clock, plan, shape, self.sampler, self._noised, partial(self._noise_source, part=whole),
            self.last_word, self.share, grid=self.grid,
        )  # fmt: skip

    def _carried(self, pause: Pause) -> Carried:
        """What the next part goes on from."""
        kept = pause._replace(denoised=None)
        return Carried(self.course.sigmas, kept, self.plan, self.comfy_noise, self.comfy_latent, self.share, self.kind)

    def _noised(self, sigma: Tensor) -> Tensor:
        """The latents at ``sigma`` (B, 1, *size). At the table's first sigma they are what ComfyUI's sampler starts from.

        The paper's runs begin as pure noise of variance 1 at whatever timestep each pixel is.
        """
        if self.plan.paper:
            empty = not torch.count_nonzero(self.latent)
            return self.host.noised(self.noise, self.latent, sigma, max_denoise=empty)
        whole = self.host.sampling.noise_scaling(self.sigmas[0], self.noise, self.latent, self.max_denoise)
        if self.plan.level and self.share is None:
            return whole
        return torch.where(sigma < self.sigmas[0], self.host.noised(self.noise, self.latent, sigma), whole)

    def _noise_source(self, plan: Plan, part: range) -> Noise:
        """ComfyUI's own noise for the sampler of a part of the table: the same draws in the same order, from the seed."""
        if not self.sampler.draws:
            return k_diffusion.default_noise_sampler(self.noise)  # nothing asks for it
        if not self.sampler.noise.startswith("brownian"):
            if self.noise.device.type == "cpu":
                self._seed_after()
            return k_diffusion.default_noise_sampler(self.noise, seed=self.seed)
        table = noise_table(self.clock.to(torch.device("cpu")), plan)[part.start : part.stop + 1]
        tree = k_diffusion.BrownianTreeNoiseSampler(
            self.noise, table[table > 0].min(), table.max(), seed=self.seed, cpu=self.sampler.noise == "brownian"
        )
        return lambda sigma, sigma_next: tree(sigma, sigma_next).to(self.noise.device)

    def _seed_after(self) -> int:
        """The seed that ComfyUI's noise takes where it is not to be the picture's own; ValueError where there is none."""
        if self.seed == LAST_SEED:
            raise ValueError(
                f"The seed is {LAST_SEED}, the last there is, and ComfyUI's noise for this sampler takes the one after it. "
                "Set seed to any other number."
            )
        return (41 if self.seed is None else self.seed) + 1

    def _inpaint_model(self, guider: Any, noise: Tensor, latent: Tensor) -> Any:
        """ComfyUI's own model of masked latents, with the noise that its sampler would give it."""
        part = self.course.part
        model_k = comfy.samplers.KSamplerX0Inpaint(guider, self.sigmas[part.start : part.stop + 1])
        model_k.latent_image, model_k.noise = latent, noise
        if self.ksampler.inpaint_options.get("random", False):
            generator = torch.manual_seed(self._seed_after())
            drawn = torch.randn(noise.shape, generator=generator, device="cpu")
            model_k.noise = drawn.to(noise)
        return model_k
