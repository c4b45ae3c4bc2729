"""ComfyUI as a host: the model's predictions at a map of noise levels, and its attention, through ComfyUI's own guider.

How a map of noise levels gets in: ComfyUI keeps its one sigma per step everywhere. The map rides beside it as one more
model_cond (so that it is cropped, repeated and batched like the latents), and is taken out around the model, where
``model_sampling`` is replaced by one that knows the map, for the time of the call. Attention is read by hooks beside
the model's own. All of it hangs on a copy of the options that ComfyUI gives its sampler, so nothing outlives the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.context_windows import IndexListContextWindow
from torch import Tensor, nn

from ...asyndm_core.attention import Attention, AttentionSum, BlockMean, LayerSum, enlarged, token_columns
from ...asyndm_core.clock import Clock, NoiseGrid, paper_clock, table_clock
from ...asyndm_core.embedding import Groups, PixelTimesteps, grouped
from ...asyndm_core.grid import TokenGrid, with_frames_outside
from ...asyndm_core.inpainting import blend
from ...asyndm_core.regions import SWITCH_OFF
from ...asyndm_core.samplers import Prediction
from .arrival import Arrival, in_force
from .conditioning import ANNOTATION, Annotation
from .guidance import by_level, with_own_sigmas
from .model import MapControl, fold, noise_law, unfold
from .nested import beside_of, clip_of, shapes_of
from .network import control_network_of, is_framed, network_of, size_of
from .origin import uncompiled
from .outside import outside_of
from .sampler import check_prediction, conds_of
from .transformer import MASK, Masked

WRAPPER_KEY = "asyndm"
PIXELS = "asyndm_pixels"
WrappersMP = comfy.patcher_extension.WrappersMP


class _Weight(NamedTuple):
    """How much a cond counts at every token, as ComfyUI weighs it: weight (B, 1, *grid), or a number for all of them.

    area: of the part of the picture that the model is shown its size, (H, W) or (T, H, W), and then where it begins; or None
    for all of it.
    """

    weight: Tensor | float
    area: tuple[int, ...] | None = None


class _MapCond(comfy.conds.CONDNoiseShape):
    """The map of a cond. It reaches the model without the dimension of channels, (B, *size).

    So packs that cut into tiles all tensors that look like latents leave it whole, and it is seen not to fit. dims: of size.
    """

    def __init__(self, cond: Tensor, dims: int) -> None:
        super().__init__(cond)
        self._dims = dims

    def _copy_with(self, cond: Tensor) -> _MapCond:
        return _MapCond(cond, self._dims)

    def concat(self, others: Sequence[Any]) -> Tensor:
        """The maps of the conds of one batch."""
        maps = super().concat(others)
        return maps.view(maps.shape[0], *maps.shape[-self._dims :])


class _Watched(NamedTuple):
    """A cond whose attention is read: each word's token positions; how many tokens it has in all; how much it counts.

    rows: of its tensor, before ComfyUI's model made it ready.
    """

    positions: tuple[tuple[int, ...], ...]
    length: int
    weight: _Weight
    rows: int


class _Part(NamedTuple):
    """A part of a batch whose attention is read: its rows, what is seen of it, its cond, and its size in latent pixels."""

    rows: slice
    sum: LayerSum | BlockMean
    watched: _Watched
    size: tuple[int, ...]


class _Seen(NamedTuple):
    """What the model saw in a part of a batch: the words' shares (B, words, *grid), its cond, and its size in latent pixels."""

    shares: Tensor
    watched: _Watched
    size: tuple[int, ...]


PLACED_BY = {"area", "mask", "default"}
WEIGHED_BY = ("uuid", "strength", "mask_strength", *PLACED_BY)
"""The keys of a cond by which ComfyUI decides where it acts, and how strongly."""


class ComfyHost:
    """One run of a ComfyUI model through its guider. Implements ``hosts.Host``; lives as long as the run.

    guider: of ComfyUI, inside its sampling. extra_args: what ComfyUI's samplers get (model_options, seed). words: whose
    attention is wanted. latent: of ComfyUI, (B, C, H, W), (B, C, T, H, W) of clips, or (B, C, 1, H, W) of pictures that are
    single frames: the host's own latents of these have no frames. needs_uncond: whether the sampler wants the unconditional
    prediction too.
    """

    def __init__(
        self, guider: Any, extra_args: Mapping[str, Any], words: Sequence[str], latent: Tensor, needs_uncond: bool = False
    ) -> None:
        self.guider = guider
        self.model = guider.inner_model
        self._shapes = shapes_of(guider, latent)
        picture = clip_of(latent, self._shapes)
        self.network = network_of(self.model, picture)
        if isinstance(self.network, Masked):
            self.network.look_at_masks(conds_of(guider))
        self._framed, self._size = is_framed(picture), size_of(picture)
        self._dims = len(self._size) if self._shapes is None else 1
        self._outside = outside_of(conds_of(guider), self.model, self._size)
        self.sampling = self.model.model_sampling
        self.law = noise_law(self.sampling)
        self.seed = extra_args.get("seed")
        self.words = tuple(words)
        self.models = self._copies(extra_args["model_options"])
        for model in self.models if words else ():
            self.network.prepare_reading(model.diffusion_model)
        self.model_options = self._with_wrappers(extra_args["model_options"], needs_uncond)
        self._picture = latent[:, :1]
        self._reference: Tensor | None = None
        self._table: list[float] = []
        entrances = {model: self.network.entrance(model.diffusion_model) for model in self.models}
        start = ComfyHost.denoise.__code__
        self._arrival = Arrival(guider, entrances, lambda: self.model_options, self._size, start, WRAPPER_KEY)
        self._pixels: PixelTimesteps | None = None
        self._as_comfy = True
        self._watching = False
        self._every_prediction = False
        self._input: Tensor | None = None
        self._watched: dict[tuple[Any, int], _Watched] = {}
        self._columns: dict[tuple[Any, ...], Tensor] = {}
        self._weights: dict[tuple[Any, ...], dict[Any, _Weight]] = {}
        self._acts: dict[tuple[Any, ...], Tensor | None] = {}
        self._done: set[tuple[Any, int]] = set()
        self._seen = self._nothing_seen()
        self._uncond: Tensor | None = None
        self._controls: dict[Any, MapControl] = {}
        self._control_networks: dict[Any, Any] = {}

    def inpaint(self, model_k: Any, denoise_mask: Tensor | None, as_comfy: bool = True) -> None:
        """Take over ComfyUI's own model of masked latents (KSamplerX0Inpaint) and its mask (1 where to denoise).

        as_comfy: known pixels are what the model makes of them in ComfyUI; else the map says how noisy they are.
        """
        self._model_k, self._denoise_mask, self._as_comfy = model_k, denoise_mask, as_comfy

    def to_comfy(self, x: Tensor) -> Tensor:
        """Latents (B, C, *size) as ComfyUI has them for this model."""
        return x[:, :, None] if self._framed else x

    def from_comfy(self, x: Tensor) -> Tensor:
        """ComfyUI's latents without the dimension of frames where it is one."""
        return x[:, :, 0] if self._framed else x

    def clock(self, sigmas: Tensor, paper: bool) -> Clock:
        """The clock of a run over ComfyUI's table of sigmas; ``ModelSampling.sigmas`` is the model's noise grid.

        ValueError for a table of another kind of model: above a flow's 1 there is no picture, and no log-SNR.
        """
        table = sigmas.detach().float().cpu()
        if self.law.flow and table.shape[0] and table[0] > 1.001:
            raise ValueError(
                f"The table of sigmas begins at {float(table[0]):.4g}, and those of this model (a flow) end at 1: they are of "
                f"another kind of model. Use a scheduler node that takes the model, such as BasicScheduler, or {SWITCH_OFF}."
            )
        self._table = table.tolist()
        grid = NoiseGrid(self.sampling.sigmas.detach().float().cpu())
        nearest = (table[:, None].clamp(min=1e-12).log() - grid.sigmas.log()).abs().argmin(dim=1)
        return (paper_clock if paper else table_clock)(table, nearest.float(), grid).to(sigmas.device)

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``. A map that is ``reference`` everywhere is a stock call.

        Where it is another value everywhere, ComfyUI's ranges and hooks still go by ``reference``, as for any map.
        """
        self._watching, self._seen, self._done = watch, self._nothing_seen(), set()
        groups = groups or grouped(sigma[:, 0])
        uniform = groups.count == 1 and (reference is None or groups.least == float(reference.to(x.dtype)))
        self._pixels = None if uniform else groups.of(sigma[:, 0])
        if reference is not None:
            self._enter_step(reference)
        lacking = "AsynDM reading its attention" if uniform else "the noise level of every pixel"
        with self._arrival.guarded(lacking) if watch or not uniform else nullcontext():
            denoised = self._stock(x, sigma) if uniform else self._at_map(x, sigma, reference)
        if watch:
            self._arrival.check_read(self.words, self._reference)
        return Prediction(denoised, self._uncond)

    def _stock(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ComfyUI's own call, at the sigma of each picture."""
        scalar = sigma.flatten(1)[:, 0].to(x.dtype)
        x = self.to_comfy(x)
        denoised = self._model_k(x, scalar, denoise_mask=self._denoise_mask, model_options=self.model_options, seed=self.seed)
        check_prediction(self.guider, denoised, x)
        return self.from_comfy(denoised)

    def _at_map(self, x: Tensor, sigma: Tensor, reference: Tensor | None) -> Tensor:
        """The same with every pixel at its own sigma."""
        scalar = self._within_step(sigma).to(x) if reference is None else x.new_full((x.shape[0],), float(reference))
        mask, given = self._mask_now(), self.from_comfy(self._model_k.latent_image)
        if mask is not None:
            x = blend(x, self._known(x, self.from_comfy(self._model_k.noise), given, sigma, mask), mask)
        x = self.to_comfy(x)
        denoised = self.guider(x, scalar, model_options=self.model_options, seed=self.seed)
        check_prediction(self.guider, denoised, x)
        denoised = self.from_comfy(denoised)
        return denoised if mask is None else blend(denoised, given, mask)

    def _within_step(self, sigma: Tensor) -> Tensor:
        """The one sigma (B,) of an evaluation within the step that was entered last: the background's.

        That is the smallest of the map, unless pixels run ahead of the schedule: not below where the step ends.
        """
        reference = self._reference
        ends = 0.0 if reference is None else max((level for level in self._table if level < float(reference)), default=0.0)
        return sigma.flatten(1).amin(dim=1).clamp(min=ends)

    def _enter_step(self, reference: Tensor) -> None:
        """Note the sigma of this step. Where it rises another pass begins: a cache (EasyCache, LazyCache) begins anew."""
        options, before = self.model_options.get("transformer_options", {}), self._reference
        if "easycache" in options and before is not None and reference > before:
            options["easycache"] = options["easycache"].clone().prepare_timesteps(self.sampling)
        self._reference = reference

    def _mask_now(self) -> Tensor | None:
        """The denoise mask, as another node's function of one noise level (Differential Diffusion) has it for every pixel.

        The function is asked once for each distinct level of the map.
        """
        mask, function = self._denoise_mask, self.model_options.get("denoise_mask_function")
        if mask is None:
            return None
        if function is None:
            return self.from_comfy(mask)
        extra_options = {"model": self.guider, "sigmas": self._model_k.sigmas}
        at_level = lambda level: function(level.expand(mask.shape[0]), mask, extra_options=extra_options)  # noqa: E731
        return self.from_comfy(by_level(self._levels(), at_level, mask))

    def _levels(self) -> PixelTimesteps | None:
        """The sigmas of the map, as the model is told them: not below its smallest. None where all are the same.

        The map is (B, *size), or (B, 1, H, W) of a single frame, as ComfyUI's latents.
        """
        if self._pixels is None:
            return None
        index = self._pixels.index[:, None] if self._framed else self._pixels.index
        return replace(self._pixels, values=self._pixels.values.clamp(min=self.sampling.sigmas[0]), index=index)

    def attention(self) -> Attention | None:
        """See ``hosts.Host``. A word is the mean over conds that have it, each weighted as ComfyUI weighs its prediction."""
        whole = AttentionSum()
        for parts in self._seen.values():
            for part in parts:
                whole.add(self._in_picture(part))
        return whole.mean()

    def acts(self, reference: Tensor) -> Tensor | None:
        """See ``hosts.Host``."""
        groups = {name: group for name, group in self.guider.conds.items() if name != "negative"}
        weighed = [
            (self._positions(cond), weights[cond["uuid"]])
            for name, group in groups.items()
            for weights in [self._weights_of(group, self._picture, reference)]
            for cond in self._own(name, group)
            if cond["uuid"] in weights
        ]
        key = tuple((positions, id(weight)) for positions, weight in weighed)
        if key not in self._acts:
            self._acts[key] = self._where(weighed)
        return self._acts[key]

    def _where(self, weighed: Sequence[tuple[tuple[tuple[int, ...], ...], _Weight]]) -> Tensor | None:
        """What ``acts`` gives for conds with these words and weights."""
        everywhere = [
            any(positions[word] and isinstance(each.weight, float) and each.weight > 0 for positions, each in weighed)
            for word in range(len(self.words))
        ]
        if all(everywhere):
            return None
        acts = self._picture.new_zeros(1, len(self.words), *[1] * len(self._size))
        for positions, each in weighed:
            acts = acts + each.weight * self._present(positions)
        return acts

    def noised(self, noise: Tensor, latent: Tensor, sigma: Tensor, max_denoise: bool = False) -> Tensor:
        """``latent`` with ``noise`` at the map ``sigma`` (B, 1, *size), by the model's own noise_scaling."""
        folded = self.sampling.noise_scaling(sigma.reshape(-1), fold(noise), fold(latent), max_denoise)
        return unfold(folded, latent)

    def _known(self, x: Tensor, noise: Tensor, given: Tensor, sigma: Tensor, mask: Tensor) -> Tensor:
        """What the model is shown of the given latents at the map ``sigma`` (B, 1, *size): some are shown them clean.

        Models of packed latents show a clip's clean, and know what to do with the sound at its one noise level.
        """
        if self._shapes is not None:
            shown = self.model.scale_latent_inpaint(
                x=x, sigma=sigma[:, 0, -1], noise=noise, latent_image=given, denoise_mask=mask
            )  # fmt: skip
            if self._as_comfy:
                return shown
            sound = beside_of(shown, self._shapes)
            return torch.cat([self.noised(noise, given, sigma)[..., : -sound.shape[-1]], sound], dim=-1)
        if not self._as_comfy:
            return self.noised(noise, given, sigma)
        shown = self.model.scale_latent_inpaint(sigma=sigma.reshape(-1), noise=fold(noise), latent_image=fold(given))
        return unfold(shown, given)

    def watch_only(self) -> None:
        """Read attention in every prediction from now on, without maps: for stock sampling that is to be looked at.

        ``attention`` is the latest prediction's. ComfyUI's samplers report a step before its second prediction, if any.
        """
        self._watching, self._every_prediction = True, True

    def _copies(self, model_options: dict) -> list[nn.Module]:
        """The model, and its copies on other GPUs (MultiGPU CFG Split)."""
        copies = model_options.get("multigpu_clones", {}).values()
        return list(dict.fromkeys([self.model, *(copy.model for copy in copies)]))

    def _nothing_seen(self) -> dict[nn.Module, list[_Seen]]:
        """A list for each copy of the model: ComfyUI calls each in a thread of its own."""
        return {model: [] for model in self.models}

    def _with_wrappers(self, model_options: dict, needs_uncond: bool) -> dict:
        """ComfyUI's options for this run: a copy with our wrappers beside everyone else's."""
        options = with_own_sigmas(model_options, self._levels)
        add = comfy.patcher_extension.add_wrapper_with_key
        add(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, self._calc_cond_batch, options, is_model_options=True)
        add(WrappersMP.APPLY_MODEL, WRAPPER_KEY, self._apply_model, options, is_model_options=True)
        if needs_uncond:
            options = comfy.model_patcher.set_model_options_post_cfg_function(
                options, self._keep_uncond, disable_cfg1_optimization=True
            )
        return options

    def _keep_uncond(self, args: dict) -> Tensor:
        self._uncond = self.from_comfy(args["uncond_denoised"])
        return args["denoised"]

    def _calc_cond_batch(
        self, executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict, **kwargs: Any
    ) -> Any:
        """Send the map along with every cond, and note which conds are to be watched in this call."""
        window = self._window(x, model_options)
        if self._watching:
            if window is not None and not self._every_prediction:
                raise self._arrival.words_in_windows()
            if self._every_prediction and x is not self._input:  # one prediction may call this more than once
                self._input, self._seen, self._done = x, self._nothing_seen(), set()
            sigma = timestep[0] if self._reference is None else self._reference
            self._watched = self._conds_to_watch(conds, x[:, :1], sigma)
        if self._pixels is not None:
            index = self.to_comfy(self._pixels.index[:, None])
            index = index if window is None else window(index)
            if x.shape[0] != index.shape[0] or x.shape[2:] != index.shape[2:]:
                raise self._arrival.cut_up(x)
            conds = [None if group is None else [self._with_map(cond, index) for cond in group] for group in conds]
        try:
            return executor(model, conds, x, timestep, model_options, **kwargs)
        finally:
            self._done |= self._watched.keys()
            self._watched = {}

    def _window(self, x: Tensor, model_options: dict) -> Callable[[Tensor], Tensor] | None:
        """What takes the frames of x from maps like ComfyUI's latents, where it shows the model a clip by context windows."""
        window = model_options.get("transformer_options", {}).get("context_window")
        if x.shape[2:] == self._picture.shape[2:] or not isinstance(window, IndexListContextWindow):
            return None
        kept = getattr(model_options.get("context_handler"), "latent_retain_index_list", [])
        return partial(window.get_tensor, retain_index_list=kept)

    def _with_map(self, cond: dict, index: Tensor) -> dict:
        """A cond with the map beside it, for its ControlNets too. ComfyUI batches conds of the same control object."""
        cond = {**cond, "model_conds": {**cond["model_conds"], PIXELS: _MapCond(index, self._dims)}}
        control = cond.get("control")
        if control is not None:
            cond["control"] = self._controls.setdefault(control, MapControl(control, PIXELS, self._tell_control))
        return cond

    def _tell_control(self, control: Any, index: Tensor) -> AbstractContextManager[None]:
        """While it lasts, a control of this run knows the map, if it can be told one. index (B, *size): of its cond."""
        if control not in self._control_networks:
            self._control_networks[control] = control_network_of(control, len(self._size))
        known = self._control_networks[control]
        if known is None:
            return nullcontext()
        return known.holder_told(control, "model_sampling_current", control.control_model, self._pixels, index, {})

    def _own(self, name: str | None, group: list[dict]) -> list[dict]:
        """The conds of a guider's list that carry our annotation of their own text.

        Where a cond has an area, ComfyUI copies its dict into every other list, with its uuid and annotation but that
        list's own text; what the list was made of tells them apart.
        """
        own = {cond.get("uuid") for cond in self.guider.original_conds.get(name, group)}
        return [cond for cond in group if ANNOTATION in cond and cond.get("uuid") in own]

    def _positions(self, cond: dict) -> tuple[tuple[int, ...], ...]:
        """For each word its token positions in an annotated cond; none where it has not the word."""
        annotation: Annotation = cond[ANNOTATION]
        return tuple(tuple(annotation.positions.get(word, ())) for word in self.words)

    def _conds_to_watch(self, conds: list, x: Tensor, sigma: Tensor) -> dict[tuple[Any, int], _Watched]:
        """Annotated conds of this call by (uuid, index of their group), but for the negative's and those already seen.

        x: one channel of the latents of this call. sigma: ComfyUI's of this step.
        """
        watched = {}
        for group_index, group in enumerate(conds):
            name = next((name for name, known in self.guider.conds.items() if group is known), None)
            if group is None or name == "negative":
                continue
            weights = self._weights_of(group, x, sigma)
            for cond in self._own(name, group):
                key = (cond["uuid"], group_index)
                if key not in self._done and cond["uuid"] in weights:
                    length = max(cond["model_conds"]["c_crossattn"].cond.shape[1], cond[ANNOTATION].length)
                    weight, rows = weights[cond["uuid"]], cond["cross_attn"].shape[1]
                    watched[key] = _Watched(self._positions(cond), length, weight, rows)
        return watched

    def _weights_of(self, group: list[dict], x: Tensor, sigma: Tensor) -> dict[Any, _Weight]:
        """How much those conds of a list count that are in force at ``sigma``, by uuid. Computed once for the same ones.

        At frames that are no part of the clip nothing counts.
        """
        x = clip_of(x, self._shapes)[:, :1]
        now = [cond for cond in group if in_force(cond, sigma)]
        key = (x.shape, *(cond["uuid"] for cond in now))
        if key not in self._weights:
            found = _weigh(now, x, sigma, TokenGrid(self._size_in(x), self.network.patch))
            if any(self._outside) and self._size_in(x) == self._size:  # words are refused in windows of a clip
                found = {uuid: each._replace(weight=each.weight * self._in_clip()) for uuid, each in found.items()}
            self._weights[key] = found
        return self._weights[key]

    def _in_clip(self) -> Tensor:
        """1 in the frames of the clip, 0 in those that are no part of it: (1, 1, *grid)."""
        frames, *size = TokenGrid(self._size, self.network.patch).shape
        own = self._picture.new_ones(1, 1, frames - sum(self._outside), *size)
        return with_frames_outside(own, *self._outside)

    def _columns_of(self, watched: _Watched, device: torch.device) -> Tensor:
        """The columns (tokens, words) of a cond. They are put on the device once for a run: that waits for it."""
        key = (watched.positions, watched.length, device)
        if key not in self._columns:
            self._columns[key] = token_columns(watched.positions, watched.length).to(device)
        return self._columns[key]

    def _present(self, positions: tuple[tuple[int, ...], ...]) -> Tensor:
        """(1, words) and one pixel: 1 for words that have a position. Put on the device once for a run."""
        if positions not in self._columns:
            present = torch.tensor([float(bool(tokens)) for tokens in positions])
            present = present.view(1, -1, *[1] * len(self._size))
            self._columns[positions] = present.to(self._picture.device)
        return self._columns[positions]

    def _apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The model's call: with the map if one came along, watched if asked."""
        index, inputs = kwargs.pop(PIXELS, None), dict(kwargs)
        if self._pixels is not None and not self._as_comfy:
            kwargs.pop(MASK, None)  # some models scale their timestep by it
        if self._pixels is not None and index is None:
            self._arrival.interfered()
        if self._pixels is not None and index.shape != (x.shape[0], *x.shape[-self._dims :]):
            raise self._arrival.cut_up(x)
        options = kwargs.get("transformer_options") or (args[3] if len(args) > 3 else {})
        chunks = list(zip(options.get("uuids", ()), options.get("cond_or_uncond", ()), strict=True))
        model = executor.class_obj
        with ExitStack() as stack:
            stack.enter_context(self._arrival.let_through(model))
            if index is not None and self._pixels is not None:
                stack.enter_context(self.network.told(model, self._pixels, index, inputs, self._as_comfy))
            parts: list[_Part] = []
            if self._watched:
                text = (args[1] if len(args) > 1 else kwargs["c_crossattn"]).shape[1]
                reader = self.network.reader(uncompiled(model.diffusion_model), clip_of(x, self._shapes), text, inputs)
                parts = self._parts_to_watch(chunks, x, reader)
                seen = stack.enter_context(reader.watching([part[:2] for part in parts], options)) if parts else options
                args, kwargs = _with_options(args, kwargs, seen)
            output = executor(x, t, *args, **kwargs)
        for part in parts:
            shares = part.sum.mean()
            if shares is not None:
                self._arrival.read = True
                self._seen[model].append(_Seen(shares, part.watched, part.size))
        return output

    def _parts_to_watch(self, chunks: list[tuple[Any, int]], x: Tensor, reader: Any) -> list[_Part]:
        """The parts of the batch x whose attention is read (a chunk is one cond for all images). reader: of the network."""
        parts: list[_Part] = []
        batch = x.shape[0] // max(len(chunks), 1)
        whole = [self._watched[chunk].weight.area is None for chunk in chunks if chunk in self._watched]
        if whole and (batch != self._picture.shape[0] or (any(whole) and x.shape[2:] != self._picture.shape[2:])):
            if self._every_prediction:  # a stock run goes on unwatched
                return parts
            raise self._arrival.cut_up(x)
        for position, chunk in enumerate(chunks):
            if chunk in self._watched:
                watched = self._watched[chunk]
                rows = slice(position * batch, (position + 1) * batch)
                seen = reader.sum(self._columns_of(watched, x.device), watched.rows)
                parts.append(_Part(rows, seen, watched, self._size_in(x)))
        return parts

    def _in_picture(self, seen: _Seen) -> Attention:
        """What a cond saw, at its place in the whole picture: at latent size where it does not act alike everywhere."""
        weight, area = seen.watched.weight
        shares, present = seen.shares.to(self._picture.device), self._present(seen.watched.positions)
        if isinstance(weight, float):
            return Attention(shares, weight * present)
        keyframes = self._outside[1]
        if keyframes:  # their tokens are not read
            shares = with_frames_outside(shares, 0, keyframes)
        pixels = enlarged(TokenGrid(seen.size, self.network.patch).to_pixels(shares), seen.size)
        whole = TokenGrid(self._size, self.network.patch)
        return Attention(_of_tokens(whole, _placed(pixels, area, self._size)), weight * present)

    def _size_in(self, x: Tensor) -> tuple[int, ...]:
        """The size of latents that the model is given: of the whole picture or a part of it."""
        return self._size if self._shapes is not None else tuple(x.shape[-len(self._size) :])


def _with_options(args: tuple, kwargs: dict, options: Mapping[str, Any]) -> tuple[tuple, dict]:
    """What the model is called with, with other transformer_options."""
    if len(args) > 3:
        return (*args[:3], options, *args[4:]), kwargs
    return args, {**kwargs, "transformer_options": options}


def _of_tokens(grid: TokenGrid, maps: Tensor) -> Tensor:
    """Maps of latent pixels (B, n, *size) as means of tokens (B, n, *grid)."""
    return grid.mean(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


def _weigh(conds: list[dict], x: Tensor, sigma: Tensor, grid: TokenGrid) -> dict[Any, _Weight]:
    """How much each of these conds counts beside the others, by uuid: ComfyUI's own ``mult`` for areas with their edges,
    masks and strengths, and of default conds what the others leave. x: one channel of the latents; grid: their tokens."""
    alike = {cond["uuid"]: max(0.0, float(cond.get("strength", 1.0))) for cond in conds if not cond.keys() & PLACED_BY}
    weights = {uuid: _Weight(strength) for uuid, strength in alike.items()}
    if len(weights) == len(conds):
        return weights
    sigma = sigma.reshape(1)
    bare = [{"model_conds": {}, **{key: cond[key] for key in WEIGHED_BY if key in cond}} for cond in conds]
    found = [comfy.samplers.get_area_and_mult(cond, x, sigma) for cond in bare if "default" not in cond]
    default = [cond for cond in bare if "default" in cond]
    if default:
        to_run = {None: [(each, 0) for each in found]}
        comfy.samplers.finalize_default_conds(None, to_run, [default], x, sigma, {})
        found = [each for each, _ in to_run[None]]
    for each in found:
        if each.uuid not in weights:
            dims, half = len(grid.size), 0 if each.area is None else len(each.area) // 2
            area = None if each.area is None else (*each.area[half - dims : half], *each.area[-dims:])
            mult = each.mult[:, :, 0] if is_framed(x) else each.mult
            mult = mult.expand(*mult.shape[:2], *(grid.size if area is None else area[:dims]))  # one mask is for all frames
            weights[each.uuid] = _Weight(_of_tokens(grid, _placed(mult.clamp(min=0), area, grid.size)), area)
    return weights


def _placed(maps: Tensor, area: tuple[int, ...] | None, size: Sequence[int]) -> Tensor:
    """Maps (B, n, ...) of an area, see ``_Weight``, at its place in a picture of ``size``; 0 around it."""
    if area is None:
        return maps
    extents, starts = area[: len(size)], area[len(size) :]
    around = [(start, whole - start - extent) for whole, extent, start in zip(size, extents, starts, strict=True)]
    return nn.functional.pad(maps, [each for pair in reversed(around) for each in pair])
