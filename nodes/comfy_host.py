"""ComfyUI as a host: one run of the core inside ComfyUI's own sampling, by wrappers and hooks that last for the run.

How a map of noise levels gets in: ComfyUI keeps its one sigma per step everywhere. The map rides beside it as one more
model_cond (so that it is cropped, repeated and batched like the latents), and is taken out around the model, where
``model_sampling`` is replaced by one that knows the map, for the time of the call. Attention is read by hooks beside
the model's own. All of it hangs on a copy of the options that ComfyUI gives its sampler, so nothing outlives the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import comfy.conds
import comfy.controlnet
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..asyndm_core.attention import AttentionSum, Layer, choose_factor, fit_columns, probabilities, token_columns, watching
from ..asyndm_core.clock import Clock, NoiseGrid, paper_clock, table_clock
from ..asyndm_core.embedding import PixelTimesteps, distinct
from ..asyndm_core.regions import Plan, Region, TimestepMap, make_plan
from ..asyndm_core.run import Snapshot, generate, noise_table
from ..asyndm_core.samplers import Prediction, Sampler, find_sampler
from .comfy_model import (
    MapControl,
    check_model,
    control_chain,
    cross_attention_layers,
    fold,
    noise_law,
    reads_timestep,
    told,
    unfold,
)
from .conditioning import ANNOTATION, Annotation, check_words, last_word

log = logging.getLogger("asyndm")

WRAPPER_KEY = "asyndm"
PIXELS = "asyndm_pixels"
WrappersMP = comfy.patcher_extension.WrappersMP


def _is_image_unet(model: Any, latent: Tensor) -> bool:
    """Whether a ComfyUI model is a UNet and samples images."""
    return isinstance(model.diffusion_model, UNetModel) and latent.ndim == 4


# --- the host -------------------------------------------------------------------------------------------------------


class _Watched(NamedTuple):
    """A cond whose attention is read: columns (tokens, words); words that it has (words,); its area or None."""

    columns: Tensor
    present: Tensor
    area: tuple[int, ...] | None


class ComfyHost:
    """One run of a ComfyUI model through its guider. Implements ``run.Host``; lives as long as the run.

    guider: of ComfyUI, inside its sampling. extra_args: what ComfyUI's samplers get (model_options, seed). words: whose
    attention is wanted. needs_uncond: whether the sampler wants the unconditional prediction too.
    """

    def __init__(
        self, guider: Any, extra_args: Mapping[str, Any], words: Sequence[str], latent: Tensor, needs_uncond: bool = False
    ) -> None:
        self.guider = guider
        self.model = guider.inner_model
        self.unet = check_model(self.model, latent)
        self.sampling = self.model.model_sampling
        self.law = noise_law(self.sampling)
        self.seed = extra_args.get("seed")
        self.words = tuple(words)
        self.layers = self._layers_to_read() if words else []
        self.model_options = self._with_wrappers(extra_args["model_options"], needs_uncond)
        self._latent_size = latent.shape[-2:]
        self._pixels: PixelTimesteps | None = None
        self._watching = False
        self._every_prediction = False
        self._input: Tensor | None = None
        self._watched: dict[tuple[Any, int], _Watched] = {}
        self._done: set[tuple[Any, int]] = set()
        self._seen = AttentionSum()
        self._uncond: Tensor | None = None
        self._controls: dict[Any, MapControl] = {}

    def inpaint(self, model_k: Any, denoise_mask: Tensor | None) -> None:
        """Take over ComfyUI's own model of masked latents (KSamplerX0Inpaint) and its mask (1 where to denoise)."""
        self._model_k, self._denoise_mask = model_k, denoise_mask

    def clock(self, sigmas: Tensor, paper: bool) -> Clock:
        """The clock of a run over ComfyUI's table of sigmas; ``ModelSampling.sigmas`` is the model's noise grid."""
        table = sigmas.detach().float().cpu()
        grid = NoiseGrid(self.sampling.sigmas.detach().float().cpu())
        nearest = (table[:, None].clamp(min=1e-12).log() - grid.sigmas.log()).abs().argmin(dim=1)
        return (paper_clock if paper else table_clock)(table, nearest.float(), grid).to(sigmas.device)

    def denoise(self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False) -> Prediction:
        """See ``run.Host``. A map that is ``reference`` everywhere is a stock call.

        Where it is another value everywhere, ComfyUI's ranges and hooks still go by ``reference``, as for any map.
        """
        self._watching, self._seen, self._done = watch, AttentionSum(), set()
        pixels = distinct(sigma[:, 0])
        uniform = pixels.values.shape[0] == 1 and (reference is None or float(pixels.values) == float(reference.to(x.dtype)))
        self._pixels = None if uniform else pixels
        if uniform:
            scalar = pixels.values.to(x.dtype).expand(x.shape[0])
            denoised = self._model_k(
                x, scalar, denoise_mask=self._denoise_mask, model_options=self.model_options, seed=self.seed
            )
            return Prediction(denoised, self._uncond)
        smallest = sigma.amin(dim=(1, 2, 3)) if reference is None else reference
        scalar = smallest.to(x).expand(x.shape[0])
        mask, kept = self._denoise_mask, self._model_k.latent_image
        if mask is not None:
            x = x * mask + self.noised(self._model_k.noise, kept, sigma) * (1 - mask)
        denoised = self.guider(x, scalar, model_options=self.model_options, seed=self.seed)
        if mask is not None:
            denoised = denoised * mask + kept * (1 - mask)
        return Prediction(denoised, self._uncond)

    def attention(self) -> Tensor | None:
        """See ``run.Host``."""
        return self._seen.mean()

    def noised(self, noise: Tensor, latent: Tensor, sigma: Tensor, max_denoise: bool = False) -> Tensor:
        """``latent`` with ``noise`` at the map ``sigma`` (B, 1, H, W), by the model's own noise_scaling."""
        folded = self.sampling.noise_scaling(sigma.reshape(-1), fold(noise), fold(latent), max_denoise)
        return unfold(folded, latent)

    def watch_only(self) -> None:
        """Read attention in every prediction from now on, without maps: for stock sampling that is to be looked at.

        ``attention`` is the latest prediction's. ComfyUI's samplers report a step before its second prediction, if any.
        """
        self._watching, self._every_prediction = True, True

    def _layers_to_read(self) -> list[Layer]:
        layers = cross_attention_layers(self.unet)
        return layers[choose_factor(list(layers))]

    def _with_wrappers(self, model_options: dict, needs_uncond: bool) -> dict:
        """ComfyUI's options for this run: a copy with our wrappers beside everyone else's."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        add = comfy.patcher_extension.add_wrapper_with_key
        add(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, self._calc_cond_batch, options, is_model_options=True)
        add(WrappersMP.APPLY_MODEL, WRAPPER_KEY, self._apply_model, options, is_model_options=True)
        if needs_uncond:
            options = comfy.model_patcher.set_model_options_post_cfg_function(
                options, self._keep_uncond, disable_cfg1_optimization=True
            )
        return options

    def _keep_uncond(self, args: dict) -> Tensor:
        self._uncond = args["uncond_denoised"]
        return args["denoised"]

    def _calc_cond_batch(
        self, executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict, **kwargs: Any
    ) -> Any:
        """Send the map along with every cond, and note which conds are to be watched in this call."""
        if self._watching:
            if self._every_prediction and x is not self._input:  # one prediction may call this more than once
                self._input, self._seen, self._done = x, AttentionSum(), set()
            self._watched = self._conds_to_watch(conds)
        if self._pixels is not None:
            index = self._pixels.index[:, None]
            if x.shape[0] != index.shape[0] or x.shape[-2:] != index.shape[-2:]:
                raise ValueError(
                    f"Another node samples the model on latents of {tuple(x.shape)} while AsynDM samples "
                    f"{tuple(index.shape)}: context windows and tiled diffusion do not go with AsynDM. Bypass one of them."
                )
            conds = [None if group is None else [self._with_map(cond, index) for cond in group] for group in conds]
        try:
            return executor(model, conds, x, timestep, model_options, **kwargs)
        finally:
            self._done |= self._watched.keys()
            self._watched = {}

    def _with_map(self, cond: dict, index: Tensor) -> dict:
        """A cond with the map beside it, for its ControlNets too. ComfyUI batches conds of the same control object."""
        cond = {**cond, "model_conds": {**cond["model_conds"], PIXELS: comfy.conds.CONDNoiseShape(index)}}
        control = cond.get("control")
        if control is not None:
            cond["control"] = self._controls.setdefault(control, MapControl(control, PIXELS, self._levels))
        return cond

    def _levels(self) -> Tensor:
        """The distinct sigmas of the map in force."""
        return self._pixels.values

    def _conds_to_watch(self, conds: list) -> dict[tuple[Any, int], _Watched]:
        """Annotated conds of this call by (uuid, index of their group), but for the negative's and those already seen.

        ComfyUI copies a positive's dict into the negative's list in places, with its uuid; the list tells them apart.
        """
        watched = {}
        for group_index, group in enumerate(conds):
            if group is None or group is self.guider.conds.get("negative"):
                continue
            for cond in group:
                annotation: Annotation | None = cond.get(ANNOTATION)
                key = (cond.get("uuid"), group_index)
                if annotation is None or key in self._done:
                    continue
                context = cond["model_conds"]["c_crossattn"].cond
                positions = [annotation.positions.get(word, ()) for word in self.words]
                present = torch.tensor([float(bool(p)) for p in positions], device=context.device)
                columns = token_columns(positions, context.shape[1]).to(context.device)
                watched[key] = _Watched(columns, present, cond.get("area"))
        return watched

    def _apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The model's call: with the map if one came along, watched if asked."""
        index = kwargs.pop(PIXELS, None)
        options = kwargs.get("transformer_options") or (args[3] if len(args) > 3 else {})
        chunks = list(zip(options.get("uuids", ()), options.get("cond_or_uncond", ()), strict=True))
        model = executor.class_obj
        with ExitStack() as stack:
            if index is not None and self._pixels is not None:
                stack.enter_context(told(model, "model_sampling", model.diffusion_model, self._pixels.values, index[:, 0]))
            if any(chunk in self._watched for chunk in chunks):
                stack.enter_context(watching(self.layers, self._reader(chunks, x)))
            return executor(x, t, *args, **kwargs)

    def _reader(self, chunks: list[tuple[Any, int]], x: Tensor) -> Callable:
        """Reads one layer's attention for every watched chunk of the batch (a chunk is one cond for all images)."""
        batch = x.shape[0] // len(chunks)

        def read(query: Tensor, key: Tensor, heads: int, height: int, width: int) -> None:
            for position, chunk in enumerate(chunks):
                watched = self._watched.get(chunk)
                if watched is None:
                    continue
                rows = slice(position * batch, (position + 1) * batch)
                columns = fit_columns(watched.columns, key.shape[1])
                seen = probabilities(query[rows], key[rows], heads, columns).unflatten(-1, (height, width))
                self._add(seen, watched, x.shape[-2])

        return read

    def _add(self, seen: Tensor, watched: _Watched, input_height: int) -> None:
        count = watched.present.view(1, -1, 1, 1)
        if watched.area is None:
            self._seen.add(seen, count)
            return
        factor = round(input_height / seen.shape[-2])
        height, width = (-(-side // factor) for side in self._latent_size)
        top, left = watched.area[-2] // factor, watched.area[-1] // factor
        seen = seen[..., : height - top, : width - left]
        pad = (left, width - left - seen.shape[-1], top, height - top - seen.shape[-2])
        self._seen.add(nn.functional.pad(seen, pad), nn.functional.pad(count.expand_as(seen), pad))


# --- the run --------------------------------------------------------------------------------------------------------


OnStep = Callable[[Snapshot], None]


class Start(NamedTuple):
    """What is known of a run before its first step.

    steps: N. batch: how many pictures. regions: in the order of ``Snapshot.owner``. words: in the order of
    ``Snapshot.attention``. latent_format: ComfyUI's, of the model.
    """

    steps: int
    batch: int
    regions: tuple[Region, ...]
    words: tuple[str, ...]
    latent_format: Any


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
    it begins at the map's denoise already.
    """

    eta: float | None = None
    on_step: OnStep | None = None
    shortcut: bool = True
    on_run: Callable[[Start], Watcher | None] | None = None
    cut: bool = True


def apply(model: Any, timestep_map: TimestepMap, options: Options | None = None) -> Any:
    """A clone of the MODEL that samples asynchronously wherever it is sampled. The last map applied counts."""
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY)
    wrapper = sampler_wrapper(timestep_map, options or Options())
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY, wrapper)
    return patched


def sampler_wrapper(timestep_map: TimestepMap, options: Options) -> Callable:
    """A SAMPLER_SAMPLE wrapper of ComfyUI: samples by ``timestep_map``, or the stock way where it asks for nothing."""

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
        plan = make_plan(timestep_map, *noise.shape[-2:])
        if not (plan.level and timestep_map.denoise == 1) and not torch.count_nonzero(noise):
            raise ValueError(
                "region_denoise or background_denoise of Asynchronous Timestep Map is below 1, and the sampler adds no "
                "noise (add_noise is disabled): nothing can start at another noise level. Enable it, or set both to 1."
            )
        if options.cut:
            if timestep_map.denoise == 0:
                return torch.zeros_like(noise) if latent_image is None else latent_image
            sigmas = sigmas[-1 - max(1, round((len(sigmas) - 1) * timestep_map.denoise)) :]
        idle = (options.shortcut and plan.idle and not options.eta) or len(sigmas) < 2
        words = plan.words
        if idle:
            words = _known_words(guider, timestep_map.words) if options.on_step is not None else ()
        latent_format = guider.inner_model.latent_format
        start = Start(len(sigmas) - 1, noise.shape[0], plan.regions, words, latent_format)
        with _everyone(options, start, shown=_is_image_unet(guider.inner_model, noise)) as on_step:
            if idle:
                if on_step is not None:
                    extra_args, callback = _watch_stock(guider, extra_args, callback, noise, words, on_step)
                return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar, **kwargs)
            _warn_of_stretched_masks(timestep_map, *noise.shape[-2:])
            run = _Run(executor.class_obj, guider, sigmas, extra_args, noise, latent_image, denoise_mask, plan, options.eta)
            return run.sample(callback, disable_pbar, on_step)

    return sampler_sample


@contextmanager
def _everyone(options: Options, start: Start, shown: bool) -> Iterator[OnStep | None]:
    """An ``on_step`` that tells all who want to know of a run, one after another; None if nobody does.

    shown: whether the run is of a kind that ``on_run`` is for.
    """
    watcher = options.on_run(start) if shown and options.on_run is not None else None
    with watcher if watcher is not None else nullcontext():
        listeners = [listener for listener in (options.on_step, watcher) if listener is not None]

        def on_step(snapshot: Snapshot) -> None:
            for listener in listeners:
                listener(snapshot)

        yield on_step if listeners else None


def _warn_of_stretched_masks(timestep_map: TimestepMap, height: int, width: int) -> None:
    """Any size of mask is right, but proportions that differ by more than a latent pixel are probably a slip."""
    masks = [layer.regions.mask for layer in timestep_map.chain if layer.regions.mask is not None]
    sizes = {tuple(mask.shape[-2:]) for mask in masks}
    stretched = [f"{w} x {h}" for h, w in sorted(sizes) if abs(h * width - w * height) > max(h, w)]
    if stretched:
        log.warning(
            "AsynDM: the painted mask of %s (width x height) has not the proportions of the latents, %d x %d: it is "
            "stretched over the whole picture. Paint it on a picture of the same shape.",
            " and ".join(stretched), width, height,
        )  # fmt: skip


ONE_SIGMA = {"RescaleCFG": "RescaleCFG", "TemporalScoreRescaling": "TSR"}
"""Guidance of ComfyUI's nodes that computes with the one sigma it is told, by the class that it comes from."""


def check_options(model_options: Mapping[str, Any], denoise_mask: Tensor | None) -> None:
    """ValueError, naming the node, where something computes or decides by one sigma for all pixels."""
    functions = [model_options.get("sampler_cfg_function"), *model_options.get("sampler_post_cfg_function", [])]
    owners = [getattr(function, "__qualname__", "").split(".")[0] for function in functions]
    found = [ONE_SIGMA[owner] for owner in owners if owner in ONE_SIGMA]
    if "easycache" in model_options.get("transformer_options", {}):
        found.append("EasyCache (or LazyCache)")
    if denoise_mask is not None and "denoise_mask_function" in model_options:
        found.append("Differential Diffusion")
    if found:
        raise ValueError(
            f"{' and '.join(found)} and AsynDM do not go together: it goes by one noise level for all pixels, and they have "
            "several. Bypass one of the two nodes."
        )


def _warn_of_unknown_controls(controls: Sequence[Any]) -> None:
    """ControlNets for UNets are told every pixel's noise level, T2I adapters need none; of others nothing is known."""
    chained = [each for control in controls for each in control_chain(control)]
    unknown = {type(c).__name__ for c in chained if not (reads_timestep(c) or isinstance(c, comfy.controlnet.T2IAdapter))}
    if unknown:
        log.warning(
            "AsynDM: %s is told one noise level for all pixels, so its hint is only approximately right.",
            " and ".join(sorted(unknown)),
        )


def _positive(guider: Any) -> list[dict]:
    """All conds of a guider but the negative's."""
    return [cond for name, group in guider.conds.items() if name != "negative" for cond in group]


def _known_words(guider: Any, words: Sequence[str]) -> tuple[str, ...]:
    """The words that the conds of a guider know, if their attention can be read."""
    if not isinstance(guider.inner_model.diffusion_model, UNetModel):
        return ()
    known = {word for cond in _positive(guider) for word in getattr(cond.get(ANNOTATION), "positions", ())}
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
    shape = (noise.shape[0], *noise.shape[-2:])

    def report(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        seen = host.attention() if host is not None else None
        level = torch.full(shape, float(step), device=x.device)
        on_step(Snapshot(step, x, denoised, None, level, torch.full_like(level, -1, dtype=torch.long), seen))
        if callback is not None:
            callback(step, denoised, x, steps)

    return extra_args, report


class _Run:
    """One asynchronous run in the place of ComfyUI's sampler function."""

    def __init__(
        self, ksampler: Any, guider: Any, sigmas: Tensor, extra_args: dict, noise: Tensor, latent: Tensor | None,
        denoise_mask: Tensor | None, plan: Plan, eta: float | None,
    ) -> None:  # fmt: skip
        check_model(guider.inner_model, noise)
        conds = _positive(guider)
        check_words(plan.words, conds)
        check_options(extra_args["model_options"], denoise_mask)
        _warn_of_unknown_controls([cond["control"] for cond in conds if "control" in cond])
        self.authors_end = plan.paper and float(sigmas[-1]) == 0
        if self.authors_end:
            sigmas = torch.cat([sigmas[:-1], guider.inner_model.model_sampling.sigmas[:1].to(sigmas)])
        self.ksampler, self.plan, self.sigmas, self.noise = ksampler, plan, sigmas, noise
        self.latent = torch.zeros_like(noise) if latent is None else latent
        if not plan.level and not torch.count_nonzero(self.latent):
            log.warning(
                "AsynDM: region_denoise and background_denoise differ, and the latent image is empty: what starts below "
                "the other starts from grey. Connect an encoded picture (VAE Encode) to latent_image."
            )
        self.seed = extra_args.get("seed")
        self.sampler = sampler_of(ksampler, eta)
        self.host = ComfyHost(guider, extra_args, plan.words, noise, self.sampler.needs_uncond)
        self.host.inpaint(self._inpaint_model(guider), denoise_mask)
        self.clock = self.host.clock(sigmas, plan.paper)
        self.last_word = last_word(plan.words, conds)
        self.max_denoise = ksampler.max_denoise(guider, sigmas)

    def sample(self, callback: Callable | None, disable_pbar: bool, on_step: OnStep | None = None) -> Tensor:
        """The latents of the run. Fixed regions take their attention from a synchronous pass before it.

        The paper's run ends at timestep 0 instead of sigma 0, and its result is the variance-preserving latents there.
        """
        shape = (self.noise.shape[0], self.noise.shape[-2], self.noise.shape[-1])
        with tqdm(total=self.clock.steps, disable=disable_pbar) as bar:

            def report(snapshot: Snapshot) -> None:
                if callback is not None:
                    callback(snapshot.step, snapshot.denoised, snapshot.x, self.clock.steps)
                if on_step is not None:
                    on_step(snapshot)
                bar.update()

            samples = generate(
                self.host, self.clock, self.plan, shape, self.sampler, self._noised, self._noise_source, self.last_word,
                report,
            )  # fmt: skip
        if self.authors_end:
            return samples / (1 + self.sigmas[-1] ** 2).sqrt()
        return self.host.sampling.inverse_noise_scaling(self.sigmas[-1], samples)

    def _noised(self, sigma: Tensor) -> Tensor:
        """The latents at ``sigma`` (B, 1, H, W). At the table's first sigma they are what ComfyUI's sampler starts from.

        The paper's runs begin as pure noise of variance 1 at whatever timestep each pixel is.
        """
        if self.plan.paper:
            empty = not torch.count_nonzero(self.latent)
            return self.host.noised(self.noise, self.latent, sigma, max_denoise=empty)
        whole = self.host.sampling.noise_scaling(self.sigmas[0], self.noise, self.latent, self.max_denoise)
        if self.plan.level:
            return whole
        return torch.where(sigma < self.sigmas[0], self.host.noised(self.noise, self.latent, sigma), whole)

    def _noise_source(self, plan: Plan) -> Callable[[Tensor, Tensor], Tensor]:
        """ComfyUI's own noise for the sampler: the same draws in the same order, from the seed."""
        if not self.sampler.noise.startswith("brownian"):
            return k_diffusion.default_noise_sampler(self.noise, seed=self.seed)
        table = noise_table(self.clock.to(torch.device("cpu")), plan)
        tree = k_diffusion.BrownianTreeNoiseSampler(
            self.noise, table[table > 0].min(), table.max(), seed=self.seed, cpu=self.sampler.noise == "brownian"
        )
        return lambda sigma, sigma_next: tree(sigma, sigma_next).to(self.noise.device)

    def _inpaint_model(self, guider: Any) -> Any:
        """ComfyUI's own model of masked latents, with the noise that its sampler would give it."""
        model_k = comfy.samplers.KSamplerX0Inpaint(guider, self.sigmas)
        model_k.latent_image, model_k.noise = self.latent, self.noise
        if self.ksampler.inpaint_options.get("random", False):
            generator = torch.manual_seed((41 if self.seed is None else self.seed) + 1)
            drawn = torch.randn(self.noise.shape, generator=generator, device="cpu")
            model_k.noise = drawn.to(self.noise)
        return model_k


def sampler_of(ksampler: Any, eta: float | None) -> Sampler:
    """The per-pixel formula of a ComfyUI SAMPLER with its options; ``ddim`` where ``eta`` is given.

    Raises UnsupportedSampler for a sampler that has none, ValueError for an option that has no per-pixel form.
    """
    if eta is not None:
        return find_sampler("ddim").with_options(eta=eta)
    function = getattr(ksampler, "sampler_function", None)
    name = getattr(function, "__name__", type(ksampler).__name__)
    name = name.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")
    options = dict(getattr(ksampler, "extra_options", {}))
    if options.get("s_churn", 1) == 0:
        options = {key: value for key, value in options.items() if key not in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    return find_sampler(name).with_options(**options)
