"""Which pixel belongs to which target now: thresholds, painted masks, overlap (arXiv 2510.04504, section 3.3).

A ``Plan`` is what a run needs to know: a flat list of regions. Every evaluation of the model gives the attention map
of every word region; ``weights`` turns it into weights in [0, 1], and ``assign`` settles overlaps. A weight scales
the region's strength: 1 inside, 0 outside, and between where a mask is grey or feathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import LINEAR, Attention, enlarged
from .curves import CURVES
from .grid import TokenGrid, with_frames_outside

MASK_MODES = ("limit", "add", "replace")
UPDATES = ("every step", "fixed")
MODES = ("asynchronous", "concave", "synchronous")
PRESETS = ("default", "paper")
KNOWN_PIXELS = ("noised", "clean", "ahead")
LEAD = 0.2
"""How far known pixels run ahead unless told otherwise, as a share of the schedule."""
MOST_GROW, MOST_FEATHER = 64, 64
"""Latent pixels, at most."""
MOST_FRAMES = 64
"""Latent frames that a region is held, or fades over, at most."""
SWITCH_OFF = (
    "switch AsynDM off (bypass Apply AsynDM, put KSampler in the place of AsynDM KSampler, or set mode of Asynchronous "
    "Timestep Map to synchronous, with eta 0 for sampler ddim)"
)
"""How to get the ordinary sampler, for messages. Bypassing the other nodes loses the prompt, or samples nothing."""


@dataclass(frozen=True)
class Target:
    """A word or phrase of the prompt, with its own strength in [0, 1] or None (the timestep map's strength)."""

    text: str
    strength: float | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """A set of regions as the artist asks for it.

    threshold: a pixel belongs to a target where its attention is at least threshold times the spatial mean.
    update: "every step", or "fixed" (the mean attention of a first, synchronous pass).
    mask: (B or 1, h, w) painted, in [0, 1], any size, or None; of a clip (frames or 1, h, w). mask_mode: "limit" words to it,
    "add" it as one more region, or "replace" the words by it. grow: latent pixels by which word regions grow (negative:
    shrink). feather: latent pixels over which their edge fades. hold: latent frames of a clip that word regions stay before and
    after those where the word is seen. fade: further ones over which they fade.
    """

    targets: tuple[Target, ...] = ()
    threshold: float = 1.0
    update: str = "every step"
    mask: Tensor | None = None
    mask_mode: str = "limit"
    grow: int = 0
    feather: float = 0.0
    hold: int = 0
    fade: int = 0

    @property
    def followed(self) -> bool:
        """Whether words are followed: there are some, and no painted mask stands in their place."""
        return bool(self.targets) and not (self.mask is not None and self.mask_mode == "replace")

    def __post_init__(self) -> None:
        """ValueError for what is out of its range."""
        node = "of Cross-Attention Mask"
        check_number(self.threshold, 0, math.inf, f"threshold {node}")
        check_choice(self.update, UPDATES, f"update {node}")
        check_choice(self.mask_mode, MASK_MODES, f"mask_mode {node}")
        check_number(self.grow, -MOST_GROW, MOST_GROW, f"grow {node}")
        check_number(self.feather, 0, MOST_FEATHER, f"feather {node}")
        check_number(self.hold, 0, MOST_FRAMES, f"hold {node}")
        check_number(self.fade, 0, MOST_FRAMES, f"fade {node}")


@dataclass(frozen=True, eq=False)
class TimestepMap:
    """A set of regions with its schedule; ``previous`` maps come first where strengths are equal.

    region_denoise, background_denoise: how much of the given latents the regions and the rest replace, in [0, 1]: each
    starts where a run of that denoise would. 0 keeps its pixels as they are.
    known_pixels: what the model is shown of the pixels that an inpainting mask keeps: "noised" to the background's level,
    "clean" as they are, at sigma 0, or "ahead" at the level that the background has ``lead`` later, a share of the
    schedule in [0, 1]. What a denoise below the greatest keeps of the given latents runs ahead too.
    sigmas: the table of the whole run, (N + 1,), where several samplers make the steps of it and share its clock; or None.
    """

    regions: Regions
    curve: str = "quadratic"
    strength: float = 0.7
    mode: str = "asynchronous"
    preset: str = "default"
    previous: TimestepMap | None = None
    region_denoise: float = 1.0
    background_denoise: float = 1.0
    known_pixels: str = "noised"
    lead: float = LEAD
    sigmas: Tensor | None = None

    def __post_init__(self) -> None:
        """ValueError for what is none of the choices."""
        node = "of Asynchronous Timestep Map"
        check_choice(self.curve, CURVES, f"curve {node}")
        check_choice(self.mode, MODES, f"mode {node}")
        check_choice(self.preset, PRESETS, f"preset {node}")
        check_choice(self.known_pixels, KNOWN_PIXELS, f"known_pixels {node}")
        check_number(self.lead, 0, 1, f"lead {node}")

    @property
    def chain(self) -> list[TimestepMap]:
        """This map and all before it, the earliest first."""
        return [*(self.previous.chain if self.previous else []), self]

    @property
    def words(self) -> tuple[str, ...]:
        """All target words of the chain, each once, whatever the modes."""
        return tuple(dict.fromkeys(t.text for layer in self.chain for t in layer.regions.targets))

    @property
    def table(self) -> Tensor | None:
        """The ``sigmas`` of the chain, which not all of it need have."""
        return next((layer.sigmas for layer in self.chain if layer.sigmas is not None), None)

    @property
    def denoise(self) -> float:
        """The greatest denoise of the chain: where the run as a whole starts."""
        return max(max(layer.region_denoise, layer.background_denoise) for layer in self.chain)


@dataclass(frozen=True, eq=False)
class Region:
    """One region of a run.

    name: for pictures. word: the target's text if the region follows attention, else None. mask: painted (B or 1, *size)
    at latent size, or None for everywhere. denoise: in [0, 1], of the run's (see ``Plan``).
    """

    name: str
    curve: str
    strength: float
    word: str | None = None
    threshold: float = 1.0
    mask: Tensor | None = None
    grow: int = 0
    feather: float = 0.0
    denoise: float = 1.0
    hold: int = 0
    fade: int = 0

    @property
    def soft(self) -> bool:
        """Whether its weights may lie between 0 and 1: grey masks, feathered edges and fading frames."""
        return self.mask is not None or self.feather > 0 or self.fade > 0

    def same_pixels(self, other: Region) -> bool:
        """Whether both stand for the same word or mask, and start alike."""
        if (self.name, self.word, self.denoise) != (other.name, other.word, other.denoise):
            return False
        if self.mask is None or other.mask is None:
            return self.mask is other.mask
        return torch.equal(self.mask, other.mask)

    @property
    def lags(self) -> bool:
        """Whether a pixel of this region can ever fall behind the background. Reads the mask: call it once per run."""
        return self.strength > 0 and self.curve != "linear" and (self.mask is None or bool(self.mask.any()))


@dataclass(frozen=True)
class Plan:
    """All regions of a run, first listed first, and how they are read from attention.

    background_denoise, and the regions' denoise, are shares of the run's own denoise: 1 starts with the scheduler's
    table, 0 is never changed. clean: known pixels of an inpainting mask are shown to the model as they are. lead: the share
    of the schedule by which known pixels, and what a denoise below 1 keeps, run ahead of the background; 0: they do not.
    """

    regions: tuple[Region, ...] = ()
    fixed: bool = False
    paper: bool = False
    background_denoise: float = 1.0
    clean: bool = False
    lead: float = 0.0
    words: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the words whose attention the run needs, each once."""
        words = dict.fromkeys(r.word for r in self.regions if r.word is not None)
        object.__setattr__(self, "words", tuple(words))

    def to(self, device: torch.device) -> Plan:
        """The same plan with its masks on ``device``."""
        masks = [None if region.mask is None else region.mask.to(device) for region in self.regions]
        return replace(self, regions=tuple(replace(r, mask=m) for r, m in zip(self.regions, masks, strict=True)))

    @property
    def lags(self) -> bool:
        """Whether any pixel can ever fall behind the background."""
        return any(region.lags for region in self.regions)

    @property
    def level(self) -> bool:
        """Whether all pixels start at the same noise level: that of the table."""
        return self.background_denoise == 1 and all(region.denoise == 1 for region in self.regions)

    @property
    def idle(self) -> bool:
        """Whether the plan asks for nothing but stock sampling, where no pixels are known and ``clean`` or ahead."""
        return self.level and not self.lags

    def same_regions(self, other: Plan) -> bool:
        """Whether a run begun by the other plan can go on by this one: the same regions in the same order.

        Their curves and strengths may differ, and how they are found in attention from now on. Compares masks: call it once
        per run.
        """
        own = (self.fixed, self.paper, self.background_denoise, self.clean, self.lead)
        if own != (other.fixed, other.paper, other.background_denoise, other.clean, other.lead):
            return False
        return len(self.regions) == len(other.regions) and all(map(Region.same_pixels, self.regions, other.regions))

    @property
    def uniform(self) -> Region | None:
        """The region that covers every pixel whatever attention says (mode concave), if it is alone."""
        if len(self.regions) == 1 and self.regions[0].word is None and self.regions[0].mask is None:
            return self.regions[0]
        return None


class Ownership(NamedTuple):
    """Who owns each pixel: owner (B, *size) long, index into the plan's regions or -1; weights (R, B, *size) in [0, 1]."""

    owner: Tensor
    weights: Tensor


def check_number(value: float, low: float, high: float, where: str) -> None:
    """ValueError naming ``where`` for what is no number in [low, high]. (A link brings values that no widget holds.)"""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{where} is {_quoted(value)}: it is a number between {low:g} and {high:g}.")


def check_choice(value: str, choices: Iterable[str], where: str) -> None:
    """ValueError naming ``where`` for what is none of the choices."""
    if value not in tuple(choices):
        raise ValueError(f"{where} is {_quoted(value)}: it is one of {', '.join(choices)}.")


def _quoted(value: object) -> str:
    """What came, in a few words."""
    short = value is None or (isinstance(value, (str, int, float)) and len(repr(value)) < 80)
    return repr(value) if short else type(value).__name__


def check_strength(strength: float, where: str) -> float:
    """``strength`` if it is in [0, 1]; ValueError naming ``where`` otherwise."""
    if not isinstance(strength, (int, float)) or not 0.0 <= strength <= 1.0:
        raise ValueError(f"{where} is {_quoted(strength)}: a strength is between 0 (like the stock sampler) and 1 (steepest).")
    return float(strength)


def fit_mask(mask: Tensor, *size: int) -> Tensor:
    """A painted mask brought to the latent's ``size``: (h, w) or (B, h, w), any size -> (B, H, W) float32 in [0, 1].

    Of a clip of ``size`` (T, H, W), (h, w) or (frames, h, w) -> (1, T, H, W), see ``fit_frames``: as in ComfyUI, several masks
    are frames, and the same for all clips of a batch.
    On the CPU: Apple GPUs average areas of whole numbers of pixels only. Raises ValueError for another shape, or for values
    that are not finite.
    """
    mask = mask.float().cpu()
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or mask.numel() == 0:
        raise ValueError(f"The mask has shape {tuple(mask.shape)}: expected (height, width) or (batch, height, width).")
    if not torch.isfinite(mask).all():
        raise ValueError("The mask has values that are not numbers (NaN or infinite): check the node that made it.")
    if mask.shape[-2:] != size[-2:]:
        mask = F.interpolate(mask[:, None], size=size[-2:], mode="area")[:, 0]
    mask = mask.clamp(0, 1)
    return mask if len(size) == 2 else fit_frames(mask, size[0])[None]


def _fit_inside(mask: Tensor, outside: tuple[int, int], *size: int) -> Tensor:
    """The same for all but the frames before and behind a clip's own, so many, where it is 0."""
    if not any(outside):
        return fit_mask(mask, *size)
    return with_frames_outside(fit_mask(mask, size[0] - sum(outside), *size[1:]), *outside)


def fit_frames(masks: Tensor, count: int) -> Tensor:
    """Masks (frames, H, W) of a clip for its ``count`` latent frames: (count, H, W).

    A latent frame stands for several of a clip, and has their mean. Video autoencoders keep the first one apart and put equally
    many of the others together (81 frames are 1 + 20 x 4); where frames and latent frames are in no such proportion, they are
    divided evenly. One mask is for all frames; otherwise fewer than there are latent frames blend into one another, as in
    ComfyUI.
    """
    frames = masks.shape[0]
    if frames == count:
        return masks
    if frames == 1 or count == 1:
        return masks.mean(dim=0, keepdim=True).expand(count, -1, -1)
    if frames > count and (frames - 1) % (count - 1) == 0:
        return torch.cat([masks[:1], masks[1:].unflatten(0, (count - 1, -1)).mean(dim=1)])
    rows = masks.flatten(1).T[None]
    rows = F.adaptive_avg_pool1d(rows, count) if frames > count else F.interpolate(rows, count, mode="linear")
    return rows[0].T.unflatten(1, masks.shape[1:])


def make_plan(
    timestep_map: TimestepMap, *size: int, patch: tuple[int, ...] = (1, 1), outside: tuple[int, int] = (0, 0)
) -> Plan:
    """The plan of a run on latents of ``size``, (H, W) or (T, H, W), for a model that reads them in patches: all of it is in
    tokens.

    outside: how many frames are no part of the clip, before and behind its own: painted masks are not for them.
    Chained maps keep their order, the earliest first. Fixed masks or the paper's preset hold for the run as a whole, so
    ValueError where chained maps disagree on them.
    """
    layers = timestep_map.chain
    asynchronous = [layer for layer in layers if layer.mode == "asynchronous"]
    updates = {layer.regions.update for layer in layers if layer.regions.followed}
    for what, values in (
        ("preset", {layer.preset for layer in layers}),
        ("known_pixels", {layer.known_pixels for layer in layers}),
        ("lead", {f"{layer.lead:g}" for layer in layers if layer.known_pixels == "ahead"}),
        ("update", updates),
        ("background_denoise", {f"{layer.background_denoise:g}" for layer in asynchronous}),
    ):
        if len(values) > 1:
            raise ValueError(
                f"Chained timestep maps disagree on {what} ({', '.join(sorted(values))}): a run has one. "
                "Set the same on all of them."
            )
    tables = [layer.sigmas for layer in layers if layer.sigmas is not None]
    if any(table.shape != tables[0].shape or not torch.allclose(table, tables[0]) for table in tables):
        raise ValueError("Chained timestep maps disagree on sigmas: a run has one table. Connect the same to all of them.")
    whole = timestep_map.denoise
    grid = TokenGrid(size, patch)
    regions = tuple(region for layer in layers for region in _regions_of(layer, grid, whole, outside))
    background = _share(asynchronous[0].background_denoise, whole) if asynchronous else 1.0
    fixed = "fixed" in updates
    known = layers[0].known_pixels if any(layer.mode != "synchronous" for layer in layers) else "noised"
    lead = layers[0].lead if known == "ahead" else 0.0
    plan = Plan(regions, fixed, layers[0].preset == "paper", background, known == "clean", lead)
    if plan.paper and (plan.clean or plan.lead):
        raise ValueError(
            "The paper preset knows nothing of clean pixels, nor of pixels ahead: set known_pixels of Asynchronous Timestep "
            "Map to noised, or the preset to default."
        )
    if plan.paper and not plan.level:
        raise ValueError(
            "The paper preset starts all pixels at the same noise level: set region_denoise and background_denoise of "
            "Asynchronous Timestep Map to the same value, or the preset to default."
        )
    return plan


def _share(denoise: float, whole: float) -> float:
    """A denoise as a share of the run's; 1 where the run changes nothing at all."""
    return denoise / whole if whole > 0 else 1.0


def _regions_of(layer: TimestepMap, grid: TokenGrid, whole: float, outside: tuple[int, int]) -> list[Region]:
    """The regions of one timestep map: none if synchronous, one of all pixels if concave. ``whole``: the run's denoise."""
    asked, curve = layer.regions, layer.curve
    mask = None if asked.mask is None else grid.mean(_fit_inside(asked.mask, outside, *grid.size))
    if layer.mode == "synchronous":
        return []
    own = [(t, layer.strength if t.strength is None else t.strength) for t in asked.targets]
    if layer.mode == "concave":
        return [Region("all pixels", curve, max([k for _, k in own], default=layer.strength))]
    denoise = _share(layer.region_denoise, whole)
    painted = [] if mask is None else [Region("painted", curve, layer.strength, mask=mask, denoise=denoise)]
    if asked.mask_mode == "replace" and painted:
        return painted
    limit = mask if asked.mask_mode == "limit" else None
    pixels, frames = max(grid.extents[-2:]), grid.extents[:-2]
    grow, feather = _in_tokens(asked.grow, pixels), asked.feather / pixels
    hold, fade = (_in_tokens(asked.hold, *frames), _in_tokens(asked.fade, *frames)) if frames else (0, 0)
    words = [
        Region(t.text, curve, k, t.text, asked.threshold, limit, grow, feather, denoise, hold, fade) for t, k in own
    ]  # fmt: skip
    return words + (painted if asked.mask_mode == "add" else [])


def _in_tokens(count: int, extent: int) -> int:
    """A number of latent pixels or frames in tokens of that ``extent``: at least one where it is not 0."""
    return int(math.copysign(-(-abs(count) // extent), count))


def synchronous(plan: Plan) -> Plan:
    """The same words, watched, but nobody lags: the first pass of fixed regions."""
    regions = tuple(replace(region, strength=0.0, denoise=1.0) for region in plan.regions)
    return replace(plan, regions=regions, background_denoise=1.0)


def threshold(attention: Tensor, factor: float, weight: Tensor | None = None, dims: int = 2) -> Tensor:
    """The paper's mask: 1 where attention (..., h, w) is at least ``factor`` times its spatial mean, else 0.

    weight (broadcasts to attention; None: 1): how much a pixel counts in the mean. Where it is 0 the mask is 0. dims: 3 of
    clips (..., t, h, w). Their mean is that of all frames: a word that is absent in some owns nothing there, where the frame's
    own mean would be that of faint traces, and some pixels always above it.
    """
    places = tuple(range(-dims, 0))
    if weight is None or weight.shape[-dims:] == (1,) * dims:
        mean = attention.mean(dim=places, keepdim=True)
    else:
        whole = weight.sum(dim=places, keepdim=True)
        mean = (attention * weight).sum(dim=places, keepdim=True) / whole.where(whole > 0, 1)
    inside = attention >= factor * mean
    return (inside if weight is None else inside & (weight > 0)).to(attention.dtype)


def grow(weight: Tensor, pixels: int) -> Tensor:
    """A region (B, H, W) grown by ``pixels`` in all eight directions; shrunk if negative (the border counts as inside).

    Of a clip, (B, T, H, W), each frame.
    """
    if pixels == 0:
        return weight
    size = 2 * abs(pixels) + 1
    signed = weight if pixels > 0 else -weight
    grown = F.max_pool2d(signed.flatten(0, -3)[:, None], size, stride=1, padding=abs(pixels)).view_as(weight)
    return grown if pixels > 0 else -grown


def feather(weight: Tensor, pixels: float) -> Tensor:
    """A region (B, H, W) whose edge fades over about ``pixels``: Gaussian blur of standard deviation pixels / 2.

    Of a clip, (B, T, H, W), each frame. Below a tenth of a pixel nothing would fade, and nothing is done.
    """
    if pixels < 0.1:
        return weight
    reach = max(1, round(1.5 * pixels))
    offsets = torch.arange(-reach, reach + 1, dtype=weight.dtype, device=weight.device)
    kernel = torch.exp(-0.5 * (offsets / (pixels / 2)) ** 2)
    kernel = kernel / kernel.sum()
    blurred = F.pad(weight.flatten(0, -3)[:, None], (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(blurred, kernel.view(1, 1, 1, -1))
    return F.conv2d(blurred, kernel.view(1, 1, -1, 1)).view_as(weight)


def held(weight: Tensor, hold: int, fade: int) -> Tensor:
    """A region of a clip (B, T, H, W) that stays ``hold`` frames before and after it was there, and fades over ``fade`` more.

    Where several frames reach, the greatest counts. A picture (B, H, W) stays as it is.
    """
    if weight.ndim == 3 or hold + fade == 0:
        return weight
    reach = min(hold + fade, weight.shape[1] - 1)
    distance = torch.arange(-reach, reach + 1, device=weight.device).abs()
    share = ((hold + fade + 1 - distance) / (fade + 1)).clamp(max=1).to(weight.dtype)
    around = F.pad(weight, (0, 0, 0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1)
    return (around * share).amax(dim=-1)


def weights(plan: Plan, attention: Attention | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The weight of every region at every pixel: (R, B, *size) in [0, 1], for ``shape`` (B, *size).

    attention: as seen by the model, in ``plan.words`` order, or None before the first evaluation: then a word region is
    everywhere. Attention is smoothly enlarged to the latent's size and then thresholded; the paper thresholds first and
    enlarges by nearest neighbour. A region does not grow or fade into pixels where no prompt with its word acts.
    """
    batch, *size = shape
    result = []
    for region in plan.regions:
        weight = torch.ones(shape, device=device)
        if region.word is not None and attention is not None:
            seen, acts = (maps[:, plan.words.index(region.word), None] for maps in attention)
            if plan.paper:
                weight = F.interpolate(threshold(seen, region.threshold, acts, len(size)), size=size)[:, 0]
            else:
                seen = F.interpolate(seen, size=size, mode=LINEAR[len(size)])
                weight = threshold(seen, region.threshold, enlarged(acts, size), len(size))[:, 0]
            weight = held(feather(grow(weight, region.grow), region.feather), region.hold, region.fade)
            weight = weight * (enlarged(acts, size)[:, 0] > 0)
            weight = weight.expand(shape)
        if region.mask is not None:
            weight = weight * _per_item(region.mask.to(device), batch)
        result.append(weight)
    return torch.stack(result) if result else torch.zeros(0, *shape, device=device)


def _per_item(mask: Tensor, batch: int) -> Tensor:
    """A painted mask (b, *size) for every item of the batch, repeated from its start where it has fewer."""
    return mask.repeat(-(-batch // mask.shape[0]), *[1] * (mask.ndim - 1))[:batch]


def assign(plan: Plan, region_weights: Tensor, acts: Tensor | None = None) -> Ownership:
    """Overlaps settled: the greater strength (k x weight) owns a pixel, then the first listed; nobody where it is 0.

    A region with another denoise than the background's owns its pixels at strength 0 too, where no other does. acts: where
    prompts with the plan's words act now, see ``hosts.Host``; elsewhere a word's region owns nothing, whatever its weight.
    """
    best = region_weights.new_zeros(region_weights.shape[1:])
    owner = torch.full_like(best, -1, dtype=torch.long)
    for index, region in enumerate(plan.regions):
        weight = region_weights[index]
        if region.word is not None and acts is not None:
            weight = weight * (acts[:, plan.words.index(region.word)] > 0)
        strength = region.strength * weight
        wins = strength > best
        if region.denoise != plan.background_denoise:
            wins = wins | ((weight > 0) & (owner < 0))
        owner = torch.where(wins, index, owner)
        best = torch.maximum(best, strength)
    return Ownership(owner, region_weights)


def first_assignment(
    plan: Plan, last_word: str | None, shape: tuple[int, ...], device: torch.device, acts: Tensor | None = None
) -> Ownership:
    """Who owns each pixel before any attention was seen: word regions are everywhere (where they act, see ``assign``),
    overlaps settled as always.

    In the paper preset, the region of the prompt's last target token (``last_word``) owns every pixel.
    """
    region_weights = weights(plan, None, shape, device)
    if plan.paper and last_word is not None:
        for index, region in enumerate(plan.regions):
            if region.word is not None and region.word != last_word:
                region_weights[index] = 0
    return assign(plan, region_weights, acts)


def denoise_map(plan: Plan, owned: Ownership) -> Tensor:
    """Each pixel's own denoise at the start, (B, *size) in [0, 1]: its owner's, towards the background's where it is soft."""
    background = torch.full(owned.owner.shape, plan.background_denoise, device=owned.owner.device)
    denoise = background
    for index, region in enumerate(plan.regions):
        own = torch.full_like(background, region.denoise)
        if region.soft:
            own = background.lerp(own, owned.weights[index])
        denoise = torch.where(owned.owner == index, own, denoise)
    return denoise
