"""Runs on clips, latents (batch, channels, frames, height, width), with Wan's own network and ComfyUI's own nodes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import comfy.context_windows
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_wan as wan
import pytest
import torch
from asyndm_pack.asyndm_core.live import maps_of
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from asyndm_pack.nodes.comfy.arrival import InterferenceError
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.model import UnsupportedModelError
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from families import MODELS, empty, prompt, random, transformer, vae
from tiny import asyn, difference, ksampler, node, plain, same, untouched
from torch import Tensor

import nodes as comfy_nodes

WAN = "Wan 2.1 and 2.2 T2V"
SIZE = FRAMES, HEIGHT, WIDTH = 3, 12, 16
TOLERANCE = 2e-5
WORDS: dict[str, tuple[int, ...]] = {"fox": (3,), "hat": (5, 6)}
FOX_AND_HAT = Regions((Target("fox"), Target("hat", 0.4)))
LEFT = torch.cat([torch.ones(1, HEIGHT, WIDTH // 2), torch.zeros(1, HEIGHT, WIDTH // 2)], dim=-1)
MOVING = torch.stack([LEFT[0].roll(4 * frame, -1) for frame in range(FRAMES)])
"""A mask for each latent frame, of whole tokens."""
SOFT = torch.linspace(0, 1, WIDTH).expand(FRAMES, HEIGHT, WIDTH) * torch.tensor([1.0, 0.6, 0.2])[:, None, None]


def marked(seed: int = 5, **more: Any) -> list:
    """A prompt as Cross-Attention Mask marks it."""
    return [[prompt(WAN, seed)[0][0], {ANNOTATION: Annotation(WORDS, MODELS[WAN].tokens), **more}]]


def sampled(patched: Any, batch: int = 1, positive: list | None = None, **more: Any) -> Tensor:
    """A small run of the stock KSampler on clips."""
    more = {"steps": 4, "cfg": 2.0, "scheduler": "simple", "image": empty(WAN, batch), "negative": prompt(WAN, 6), **more}
    return ksampler(patched, positive=positive or marked(), **more)


def steps_of(asked: Regions | TimestepMap, **more: Any) -> list[Snapshot]:
    """A run, step by step."""
    seen: list[Snapshot] = []
    asked = TimestepMap(asked) if isinstance(asked, Regions) else asked
    sampled(apply(transformer(WAN), asked, Options(on_step=seen.append)), **more)
    return seen


def painted(mask: Tensor, **changes: Any) -> Regions:
    return Regions(mask=mask, mask_mode="replace", **changes)


def given(batch: int = 1, mask: Tensor | None = None) -> dict[str, Any]:
    """A LATENT of a clip, with a noise mask."""
    image = {"samples": random(*empty(WAN, batch)["samples"].shape, seed=11)}
    return image if mask is None else {**image, "noise_mask": mask}


# --- parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", [FOX_AND_HAT, painted(MOVING)], ids=["words", "masks"])
def test_strength_zero_is_stock_bit_for_bit(regions: Regions) -> None:
    """So it is to rounding where our own loop runs: words are watched and regions found, but nobody lags."""
    even = Regions((Target("fox"), Target("hat", 0.0))) if regions.targets else regions
    stock = sampled(transformer(WAN), batch=2)
    assert same(sampled(asyn(transformer(WAN), even, strength=0.0), batch=2), stock)
    assert difference(sampled(plain(transformer(WAN), even, strength=0.0), batch=2), stock) < TOLERANCE
    assert difference(sampled(asyn(transformer(WAN), regions), batch=2), stock) > 1e-3


@pytest.mark.parametrize("mask", [None, MOVING], ids=["", "inpainting"])
def test_a_map_that_is_the_same_everywhere_is_stock_on_its_sigmas(mask: Tensor | None) -> None:
    """All frames lag: as mode concave, which is the stock sampler on other sigmas."""
    image = given(2, mask)
    everywhere = sampled(asyn(transformer(WAN), painted(torch.ones(FRAMES, 4, 4)), strength=0.8), image=image)
    concave = sampled(asyn(transformer(WAN), painted(LEFT), strength=0.8, mode="concave"), image=image)
    assert difference(everywhere, concave) < TOLERANCE
    assert difference(everywhere, sampled(transformer(WAN), image=image)) > 1e-3


USUAL = ("euler", "res_multistep", "er_sde", "dpmpp_2m_sde")


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends
@pytest.mark.parametrize(
    "sampler", [*USUAL, *(pytest.param(each, marks=pytest.mark.whole) for each in SAMPLERS if each not in USUAL)]
)
def test_every_sampler(sampler: str) -> None:
    """In our own loop, to rounding (which this network makes larger, and dpmpp_sde in an inner sigma)."""
    stock = sampled(transformer(WAN), sampler=sampler)
    level = sampled(plain(transformer(WAN), FOX_AND_HAT, mode="synchronous"), sampler=sampler)
    assert difference(level, stock) < (2e-4 if sampler.startswith("dpmpp_sde") else 2 * TOLERANCE)
    assert difference(sampled(asyn(transformer(WAN), painted(MOVING)), sampler=sampler), stock) > 1e-3


def test_a_clip_of_a_batch_is_its_own_run() -> None:
    both = sampled(asyn(transformer(WAN), FOX_AND_HAT), batch=2)
    for item in range(2):
        alone = sampled(asyn(transformer(WAN), FOX_AND_HAT), image={**empty(WAN), "batch_index": [item]})
        assert difference(both[item : item + 1], alone) < TOLERANCE


def test_a_run_in_two_parts_is_one_run() -> None:
    """KSampler (Advanced) twice, as Wan 2.2's two experts are sampled."""
    sigmas = comfy.samplers.calculate_sigmas(transformer(WAN).model.model_sampling, "simple", 6)
    patched, advanced = asyn(transformer(WAN), painted(MOVING), sigmas=sigmas), comfy_nodes.KSamplerAdvanced()
    common = (7, 6, 2.0, "euler", "simple", marked(), prompt(WAN, 6))
    whole = advanced.sample(patched, "enable", *common, empty(WAN), 0, 6, "disable")[0]
    first = advanced.sample(patched, "enable", *common, empty(WAN), 0, 3, "enable")[0]
    second = advanced.sample(patched, "disable", *common, first, 3, 6, "disable")[0]
    assert difference(second["samples"], whole["samples"]) < TOLERANCE


# --- regions --------------------------------------------------------------------------------------------------------------


def test_a_mask_for_each_frame() -> None:
    for snapshot in steps_of(painted(MOVING)):
        assert snapshot.denoised.shape == (1, 16, *SIZE) and snapshot.sigma.shape == (1, 1, *SIZE)
        assert torch.equal(snapshot.owner[0] == 0, MOVING > 0)


def test_one_mask_is_for_all_frames_and_many_masks_for_the_frames_of_the_clip() -> None:
    """Nine frames are three latent ones: 1 + 2 x 4."""
    for snapshot in steps_of(painted(LEFT)):
        assert torch.equal(snapshot.owner[0] == 0, LEFT.expand(SIZE) > 0)
    frames = torch.cat([MOVING[:1], *(MOVING[frame : frame + 1].expand(4, -1, -1) for frame in (1, 2))])
    assert len(frames) == 9
    for got, wanted in zip(steps_of(painted(frames)), steps_of(painted(MOVING)), strict=True):
        assert torch.equal(got.owner, wanted.owner) and same(got.x, wanted.x)


def with_reference(name: str, reference: bool = True) -> dict[str, Any]:
    """What ComfyUI's node makes of a picture that a clip refers to: conditionings, and latents that it is a frame of."""
    picture = {"reference_image": torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3)} if reference else {}
    make = {"Wan VACE": wan.WanVaceToVideo, "Wan Animate": wan.WanAnimateToVideo}[name].execute
    size = {"width": 8 * WIDTH, "height": 8 * HEIGHT, "length": 4 * FRAMES - 3, "batch_size": 1}
    own = {"strength": 1.0} if name == "Wan VACE" else {"continue_motion_max_frames": 5, "video_frame_offset": 0}
    made = make(marked(), prompt(name, 6), vae=vae(frames=True), **size, **own, **picture).result
    return {"positive": made[0], "negative": made[1], "image": made[2]}


@pytest.mark.parametrize("name", ["Wan VACE", "Wan Animate"])
@pytest.mark.parametrize("regions", [painted(MOVING), Regions((Target("fox"),))], ids=["painted", "words"])
def test_a_picture_that_a_clip_refers_to_is_no_part_of_it(name: str, regions: Regions) -> None:
    """Its frame comes first and is cut off in the end: it keeps pace, and the first mask is for the frame after it."""
    seen: list[Snapshot] = []
    sampled(asyn(transformer(name), regions, on_step=seen.append), **with_reference(name))
    for snapshot in seen:
        assert snapshot.owner.shape == (1, 1 + FRAMES, *SIZE[1:])
        assert (snapshot.owner[:, 0] == -1).all() and (snapshot.progress[:, 0] == snapshot.step).all()
        if regions.mask is not None:
            assert torch.equal(snapshot.owner[0, 1:] == 0, MOVING > 0)
    if regions.mask is None:
        for before, now in pairwise(seen):
            shares = before.attention.shares[:, 0, 1:]
            owned = (shares >= shares.mean()).float()
            assert torch.equal(now.owner[:, 1:] == 0, torch.nn.functional.interpolate(owned, scale_factor=2) > 0)


@pytest.mark.parametrize("changes", [{}, {"mode": "synchronous"}, {"regions": Regions()}], ids=["", "synchronous", "no words"])
def test_the_nodes_masks_are_the_clips_own(changes: dict[str, Any]) -> None:
    """So they fit where a mask goes in."""
    given = with_reference("Wan VACE")
    asked = TimestepMap(**{"regions": Regions((Target("fox"),)), **changes})
    conditionings = given["positive"], given["negative"]
    sampler = 7, 3, 2.0, "euler", "simple"
    made = AsynDMKSampler.execute(
        transformer("Wan VACE"), asked, *sampler, *conditionings, given["image"], 1.0, preview=False
    ).result  # fmt: skip
    assert made[0]["samples"].shape == (1, 16, 1 + FRAMES, *SIZE[1:]) and made[1].shape == SIZE
    assert made[1].amax() == (0 if asked.regions.targets == () else 1)


def test_without_a_reference_the_first_frame_is_the_clips() -> None:
    seen: list[Snapshot] = []
    sampled(asyn(transformer("Wan VACE"), painted(MOVING), on_step=seen.append), **with_reference("Wan VACE", reference=False))
    assert seen and all(torch.equal(snapshot.owner[0] == 0, MOVING > 0) for snapshot in seen)


def test_words_are_read_in_every_frame() -> None:
    seen = steps_of(FOX_AND_HAT)
    for snapshot in seen:
        assert snapshot.attention.shares.shape == (1, 2, FRAMES, HEIGHT // 2, WIDTH // 2)
        assert snapshot.attention.shares.std(dim=2).amax() > 1e-3
    later = seen[1:]
    assert any((snapshot.owner[0] != snapshot.owner[0, :1]).any() for snapshot in later)


def test_words_that_are_held_own_more_frames() -> None:
    plainly, held = (steps_of(Regions((Target("fox"),), threshold=1.3, hold=hold))[2].owner[0] == 0 for hold in (0, FRAMES))
    assert torch.equal(held, plainly.any(dim=0).expand(SIZE)) and not torch.equal(held, plainly)


def test_fixed_regions_are_the_same_at_every_step() -> None:
    seen = steps_of(Regions((Target("fox"),), update="fixed"))[-4:]
    assert all(torch.equal(snapshot.owner, seen[0].owner) for snapshot in seen)
    assert 0 < (seen[0].owner == 0).float().mean() < 1


def test_a_prompts_area_and_mask_are_where_its_words_count() -> None:
    """An area of the picture is in all frames; one with frames in these; a mask in all, or one for each."""
    area = [[tensor, {**more, "area": (HEIGHT, 8, 0, 8), "strength": 1.0}] for tensor, more in marked()]
    of_frames = [[tensor, {**more, "area": (2, HEIGHT, 8, 1, 0, 8), "strength": 1.0}] for tensor, more in marked()]
    masks = {"all": LEFT, "each": MOVING}
    other = prompt(WAN, 9)
    expected = {"area": torch.zeros(SIZE), "frames": torch.zeros(SIZE)}
    expected["area"][..., 8:] = 1
    expected["frames"][1:, :, 8:] = 1
    conds = {"area": area, "frames": of_frames}
    for name, mask in masks.items():
        conds[name] = comfy_nodes.ConditioningSetMask().append(marked(), mask, "default", 1.0)[0]
        expected[name] = mask.expand(SIZE)
    for name, cond in conds.items():
        for snapshot in steps_of(FOX_AND_HAT, positive=[*cond, *other]):
            assert not (snapshot.owner[0] >= 0)[expected[name] == 0].any(), name
            assert (snapshot.owner[0] >= 0).any() and snapshot.attention.shares.isfinite().all()
        assert torch.equal(steps_of(FOX_AND_HAT, positive=[*cond, *other])[0].owner[0] >= 0, expected[name] > 0), name


# --- known pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["noised", "clean", "ahead"])
@pytest.mark.parametrize("mask", [LEFT, MOVING], ids=["one", "each"])
def test_known_pixels_end_as_they_were_given(mask: Tensor, known: str) -> None:
    """A noise mask of ComfyUI, for all frames or for each."""
    image = given(1, mask)
    ours = sampled(asyn(transformer(WAN), painted(LEFT), known_pixels=known), image=image)
    keep = (mask == 0).expand(SIZE)
    assert difference(ours * keep, image["samples"] * keep) < TOLERANCE
    assert difference(ours, image["samples"]) > 0.05


@pytest.mark.parametrize("known", ["clean", "ahead"])
def test_known_frames_run_ahead(known: str) -> None:
    """As of a clip whose first frame is given."""
    first = torch.ones(FRAMES, 1, 1)
    first[0] = 0
    for snapshot in steps_of(TimestepMap(painted(LEFT), known_pixels=known), image=given(1, first.expand(SIZE))):
        levels = snapshot.sigma[0, 0].flatten(1)
        assert levels[0].max() < levels[1:].min() or snapshot.step == 3
        assert known == "ahead" or levels[0].max() == 0


def test_differential_diffusion() -> None:
    """Another node's function of one noise level, asked for every pixel's own: all lag, as in mode concave."""
    patched = node("nodes_differential_diffusion", "DifferentialDiffusion", transformer(WAN))
    image = given(2, SOFT)
    everywhere = sampled(asyn(patched, painted(torch.ones(1, 4, 4))), image=image)
    concave = sampled(asyn(patched, painted(LEFT), mode="concave"), image=image)
    assert difference(everywhere, concave) < 2 * TOLERANCE
    assert sampled(asyn(patched, painted(MOVING)), image=image).isfinite().all()


def test_regional_denoise() -> None:
    """What is outside of a mask that moves is kept."""
    image = given()
    ours = sampled(asyn(transformer(WAN), painted(MOVING), background_denoise=0.0, region_denoise=0.8), image=image)
    keep = MOVING == 0
    assert difference(ours * keep, image["samples"] * keep) < TOLERANCE
    assert difference(ours * ~keep, image["samples"] * ~keep) > 0.05


# --- the rest -------------------------------------------------------------------------------------------------------------


def test_a_clip_of_one_frame_is_a_picture() -> None:
    seen = steps_of(painted(LEFT), image=empty(WAN, size=(1, HEIGHT, WIDTH)))
    assert {snapshot.denoised.shape for snapshot in seen} == {(1, 16, HEIGHT, WIDTH)}
    assert {snapshot.owner.shape for snapshot in seen} == {(1, HEIGHT, WIDTH)}


def test_odd_sizes() -> None:
    """The last tokens are cut off by the edge."""
    size = (2, HEIGHT + 1, WIDTH - 1)
    image = empty(WAN, size=size)
    masks = torch.stack([torch.ones(size[1:]), torch.zeros(size[1:])])
    for snapshot in steps_of(painted(masks), image=image):
        assert torch.equal(snapshot.owner[0] == 0, masks > 0)


def test_a_model_of_pictures_refuses_clips_by_name() -> None:
    clip = {"samples": torch.zeros(1, 16, 3, 12, 16)}
    with pytest.raises(UnsupportedModelError, match=r"Krea2 .*\(1, 16, 3, 12, 16\).*images"):
        ksampler(asyn(transformer("Krea 2"), painted(LEFT)), positive=prompt("Krea 2"), negative=prompt("Krea 2"), image=clip)


def test_previews_get_clips_as_comfyui_has_them() -> None:
    shapes: list[tuple[int, ...]] = []
    samples = empty(WAN)["samples"]
    comfy.sample.sample(
        asyn(transformer(WAN), painted(LEFT)), comfy.sample.prepare_noise(samples, 7), 3, 1.0, "euler", "simple", marked(),
        prompt(WAN, 6), samples, seed=7, disable_pbar=True,
        callback=lambda step, denoised, x, steps: shapes.append((denoised.shape, x.shape)),
    )  # fmt: skip
    assert shapes == [(samples.shape, samples.shape)] * 3


@pytest.mark.parametrize("changes", [{}, {"mode": "synchronous"}])
def test_the_node_shows_a_clip(changes: dict[str, Any]) -> None:
    """A mask for each word and latent frame, and a timeline."""
    output = AsynDMKSampler.execute(
        transformer(WAN), TimestepMap(FOX_AND_HAT, **changes), 7, 3, 2.0, "euler", "simple", marked(), prompt(WAN, 6),
        empty(WAN), 1.0, preview=False,
    ).result  # fmt: skip
    assert output[0]["samples"].shape == empty(WAN)["samples"].shape
    assert output[1].shape == (2 * FRAMES, HEIGHT, WIDTH) and output[1].amax() == 1
    assert output[2].ndim == 4 and output[2].shape[-1] == 3


def test_the_live_view_has_the_maps_of_some_frames() -> None:
    for snapshot in steps_of(FOX_AND_HAT):
        maps = maps_of(snapshot, 4, None)
        assert maps["owner"].shape == maps["progress"].shape == (HEIGHT, FRAMES * WIDTH)


class Cancel(BaseException):
    """As ComfyUI's cancel does, from inside a step."""


@pytest.mark.parametrize("regions", [FOX_AND_HAT, painted(MOVING)], ids=["words", "masks"])
def test_cancel_leaves_nothing(regions: Regions) -> None:
    patched = transformer(WAN)

    def stop(snapshot: Snapshot) -> None:
        if snapshot.step == 1:
            raise Cancel

    with untouched(patched, sampled), pytest.raises(Cancel):
        sampled(asyn(patched, regions, on_step=stop))


# --- context windows ------------------------------------------------------------------------------------------------------

LONG = 7
"""Latent frames, of which five are shown at a time: windows of 17 frames that share 5."""


def in_windows(freenoise: bool = False, retained: str = "") -> Any:
    """Wan with ComfyUI's context windows."""
    try:
        from comfy_extras.nodes_context_windows import WanContextWindowsManualNode as Windows
    except ImportError:
        pytest.skip("this ComfyUI has no context windows")
    more = {"latent_retain_index_list": retained} if retained else {}
    return Windows.execute(transformer(WAN), 17, 5, "standard_static", 1, False, "pyramid", freenoise, **more).result[0]


def long_run(patched: Any, positive: list | None = None) -> Tensor:
    return sampled(patched, positive=positive or prompt(WAN), image=empty(WAN, size=(LONG, HEIGHT, WIDTH)))


@pytest.mark.parametrize("freenoise", [False, True])
def test_a_window_has_its_frames_of_the_map(freenoise: bool) -> None:
    """Where all lag, a clip in windows is the stock sampler's in windows (mode concave)."""
    if not hasattr(comfy.context_windows, "WindowingState"):
        pytest.skip("before 0.33, context windows raise at sigmas that are not in the sampler's table")
    patched = in_windows(freenoise)
    everywhere = long_run(asyn(patched, painted(torch.ones(LONG, 4, 4)), strength=0.8))
    assert difference(everywhere, long_run(asyn(patched, painted(LEFT), strength=0.8, mode="concave"))) < TOLERANCE
    whole = asyn(transformer(WAN), painted(torch.ones(LONG, 4, 4)), strength=0.8)
    assert difference(everywhere, long_run(whole)) > 1e-3


@pytest.mark.parametrize("frame", [0, LONG - 1])
def test_a_frame_that_lags_does_so_in_its_own_window(frame: int) -> None:
    """In the first step after it lags, what the model says of frames in another window is stock's."""
    mask = torch.zeros(LONG, HEIGHT, WIDTH)
    mask[frame] = 1
    seen: dict[float, list[Snapshot]] = {0.0: [], 0.8: []}
    for strength, snapshots in seen.items():
        long_run(asyn(in_windows(), painted(mask), snapshots.append, strength=strength))
    ours, stock = (seen[strength][1].denoised.unbind(2) for strength in (0.8, 0.0))
    assert difference(ours[frame], stock[frame]) > 1e-3
    assert difference(ours[LONG - 1 - frame], stock[LONG - 1 - frame]) < TOLERANCE


def test_the_order_of_the_nodes_does_not_matter() -> None:
    """FreeNoise, which windows put around the sampler, counts behind Apply AsynDM too."""
    region = painted(torch.ones(LONG, 4, 4)[..., :2])
    behind = in_windows(True).clone()
    ours = asyn(transformer(WAN), region)
    for place in ("sampler_sample", "prepare_sampling"):
        for key, wrappers in behind.wrappers.get(place, {}).items():
            for wrapper in wrappers:
                ours.add_wrapper_with_key(place, key, wrapper)
    ours.model_options["context_handler"] = behind.model_options["context_handler"]
    assert same(long_run(ours), long_run(asyn(in_windows(True), region)))


def test_words_are_not_followed_in_windows() -> None:
    with pytest.raises(InterferenceError, match=r"words in context windows.*Paint the regions"):
        long_run(asyn(in_windows(), FOX_AND_HAT), marked())
    assert sampled(asyn(in_windows(), FOX_AND_HAT)).isfinite().all()  # of few frames there is one window
