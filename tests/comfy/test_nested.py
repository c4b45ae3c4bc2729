"""Whole runs on clips, with their sound where they have one: ComfyUI samples both as one packed tensor.

The sound keeps to the scheduler's table, whatever the clip does.
"""

from __future__ import annotations

import gc
from itertools import pairwise
from math import prod
from typing import Any

import comfy.supported_models
import comfy_extras.nodes_lt as nodes_lt
import pytest
import torch
from asyndm_pack.asyndm_core.attention import BlockMean, Sequences
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy import attention, relay
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.families import family_of
from asyndm_pack.nodes.comfy.network import network_of
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from clips import CLIPS, LACKS, SIZE, Evaluation, clip_model, first_frame_known, joined, latents, prompt, sampled, streams_of
from families import TOKENS, random
from test_split_runs import WAYS, Graph, every_way, lines, shared
from test_transformers import VERSION, nothing_attended  # noqa: F401
from tiny import asyn, difference, hooks_of, node, painted, plain, same
from torch import Tensor

import nodes

TOLERANCE = 1e-5
NO_STRENGTH = Regions((Target("fox", 0.0),), mask=torch.ones(1, 8, 8), mask_mode="replace")
NAMES = ["LTX-Video", "LTX-2", "MiniMax H3"]
SOUNDING = NAMES[1:]
WORDS = {"fox": (3,), "hat": (5, 6)}
FOX = Regions((Target("fox", 1.0),))
small_ones = pytest.mark.skipif(not hasattr(nodes_lt, "GetICLoRAParameters"), reason="this ComfyUI has no smaller keyframes")
every_clip = pytest.mark.parametrize("name", NAMES)
every_sounding = pytest.mark.parametrize("name", SOUNDING)


def left() -> Tensor:
    """A painted mask: the left half of all frames."""
    mask = torch.zeros(1, *SIZE[1:])
    mask[..., : SIZE[2] // 2] = 1
    return mask


def all_same(ours: list[Tensor], stock: list[Tensor]) -> bool:
    return len(ours) == len(stock) and all(map(same, ours, stock))


def worst(ours: list[Tensor], stock: list[Tensor]) -> float:
    return max(map(difference, ours, stock))


def masked(name: str, what: str) -> dict[str, Any]:
    """A LATENT with a mask that keeps the first frame and a part of the second; of the sound its beginning."""
    clip, *sound = first_frame_known(name)
    clip[:, :, 1, :, :4] = 0.4
    for mask in sound:
        mask.flatten(3)[..., :5] = 0
    return latents(name, full=True, noise_mask=clip if what == "the clip" else joined(clip, *sound))


@pytest.mark.skipif(VERSION not in LACKS, reason="it is not known what this ComfyUI has")
def test_what_this_comfyui_lacks() -> None:
    assert {name for name in NAMES if not hasattr(comfy.supported_models, CLIPS[name].kind)} == LACKS[VERSION]


@every_clip
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_what_asks_for_nothing_is_stock(name: str, sampler: str) -> None:
    patched = clip_model(name)
    stock = sampled(name, patched, sampler)
    assert all_same(sampled(name, asyn(patched, NO_STRENGTH, strength=0.0), sampler), stock)
    assert worst(sampled(name, plain(patched, NO_STRENGTH, strength=0.0), sampler), stock) < TOLERANCE
    assert all_same(sampled(name, patched, sampler), stock)


@every_clip
@pytest.mark.parametrize("what", ["the clip", "both"])
def test_a_given_frame_is_as_in_stock(name: str, what: str) -> None:
    patched, image = clip_model(name), masked(name, what)
    stock = sampled(name, patched, image=image)
    assert all_same(sampled(name, asyn(patched, NO_STRENGTH, strength=0.0), image=image), stock)
    assert worst(sampled(name, plain(patched, NO_STRENGTH, strength=0.0), image=image), stock) < TOLERANCE
    ours = sampled(name, asyn(patched, painted(left())), image=image)
    assert difference(ours[0], stock[0]) > 1e-3
    assert difference(ours[0][:, :, 0], stock[0][:, :, 0]) < TOLERANCE


@every_clip
@pytest.mark.parametrize("known", ["clean", "ahead"])
def test_a_given_frame_ahead(name: str, known: str) -> None:
    """It comes out as it was given, and the rest sees it."""
    patched, image = clip_model(name), masked(name, "both")
    noised = sampled(name, asyn(patched, painted(left())), image=image)
    ours = sampled(name, asyn(patched, painted(left()), known_pixels=known), image=image)
    given, *sound = streams_of(image["samples"])
    assert difference(ours[0][:, :, 0], given[:, :, 0]) < TOLERANCE
    assert difference(ours[0], noised[0]) > 1e-3
    for stream, was in zip(ours[1:], sound, strict=True):
        assert difference(stream.flatten(3)[..., :5], was.flatten(3)[..., :5]) < TOLERANCE


@every_clip
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.usefixtures("nothing_attended")
def test_alone_every_token_is_at_its_own_timestep(name: str, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without attention, the left half is that of a run where all lag, the right half stock, and the sound too.

    LTX-2 weighs what its sound hears of the clip by the clip's noisiest level: here it is to hear nothing at all.
    """
    patched = clip_model(name)
    for layer, module in patched.model.diffusion_model.named_modules():
        if layer.endswith("video_to_audio_attn.to_out.0"):
            monkeypatch.setitem(module._parameters, "bias", torch.nn.Parameter(torch.zeros_like(module.bias)))
    stock = sampled(name, patched, sampler)
    lagging = sampled(name, asyn(patched, painted(left()), mode="concave"), sampler)
    ours = sampled(name, asyn(patched, painted(left())), sampler)
    middle = SIZE[2] // 2
    assert difference(lagging[0], stock[0]) > 1e-3
    assert difference(ours[0][..., middle:], stock[0][..., middle:]) < TOLERANCE
    assert difference(ours[0][..., :middle], lagging[0][..., :middle]) < TOLERANCE
    for sound, was in zip(ours[1:], stock[1:], strict=True):
        assert difference(sound, was) < TOLERANCE


@every_sounding
def test_the_sound_hears_of_the_clip(name: str) -> None:
    """It attends to it, so it changes with it; it is whole."""
    patched = clip_model(name)
    stock, ours = sampled(name, patched), sampled(name, asyn(patched, painted(left())))
    assert 1e-5 < difference(ours[1], stock[1]) < 0.5


@every_sounding
def test_latents_below_the_noise(name: str) -> None:
    """Clip and sound of a background that is never changed stay as they are; the region is drawn anew."""
    patched, image = clip_model(name), latents(name, full=True)
    map_of = {"region_denoise": 0.5, "background_denoise": 0.0}
    ours = sampled(name, asyn(patched, painted(left()), **map_of), image=image, steps=6)
    given = streams_of(image["samples"])
    middle = SIZE[2] // 2
    assert difference(ours[0][..., middle:], given[0][..., middle:]) < TOLERANCE
    assert difference(ours[0][..., :middle], given[0][..., :middle]) > 1e-2
    assert difference(ours[1], given[1]) < TOLERANCE


class Encoder:
    """In the place of LTX's VAE."""

    downscale_index_formula = (8, 32, 32)

    def encode(self, pixels: Tensor) -> Tensor:
        return random(1, 128, 1, *(extent // 32 for extent in pixels.shape[1:3]), seed=9)


def with_keyframe(name: str, strength: float = 1.0, small: bool = False) -> dict[str, Any]:
    """A frame that ComfyUI's node appends, which is at a place in time: conditionings and latents.

    small: it is of half the width and height, as some LoRAs have them: of its tokens three of four are dropped.
    """
    factor = {"iclora_parameters": {"reference_downscale_factor": 2}} if small else {}
    clip, *sound = streams_of(latents(name)["samples"])
    picture = torch.rand(1, 32 * SIZE[1], 32 * SIZE[2], 3, generator=torch.Generator().manual_seed(2))
    add = getattr(nodes_lt.LTXVAddGuide, "execute", None) or nodes_lt.LTXVAddGuide().generate
    positive = prompt(name, **{ANNOTATION: Annotation(WORDS, TOKENS)})
    made = add(positive, prompt(name, 6), Encoder(), {"samples": clip}, picture, 8, strength, **factor)
    positive, negative, image = getattr(made, "result", made)
    masks = [torch.ones(1, 1, *stream.shape[2:]) for stream in sound]
    image = {"samples": joined(image["samples"], *sound), "noise_mask": joined(image["noise_mask"], *masks)}
    return {"positive": positive, "negative": negative, "image": image}


every_keyframe = pytest.mark.parametrize("small", [False, pytest.param(True, marks=small_ones)], ids=["whole", "small"])
every_ltx = pytest.mark.parametrize("name", ["LTX-Video", "LTX-2"])


@every_ltx
@every_keyframe
def test_a_frame_of_keyframes(name: str, small: bool) -> None:
    """It stays as it was given."""
    patched, given = clip_model(name), with_keyframe(name, small=small)
    stock = sampled(name, patched, **given)
    assert all_same(sampled(name, asyn(patched, NO_STRENGTH, strength=0.0), **given), stock)
    assert worst(sampled(name, plain(patched, NO_STRENGTH, strength=0.0), **given), stock) < TOLERANCE
    for known in ("noised", "clean", "ahead"):
        ours = sampled(name, asyn(patched, painted(left()), known_pixels=known), **given)
        each = 2 if small else 1  # of what is dropped nothing is said
        assert difference(ours[0][:, :, -1, ::each, ::each], stock[0][:, :, -1, ::each, ::each]) < TOLERANCE
        assert difference(ours[0][:, :, :-1], stock[0][:, :, :-1]) > 1e-3


@every_ltx
@pytest.mark.parametrize("regions", ["painted", "words", "both"])
def test_a_keyframe_is_no_part_of_the_clip(name: str, regions: str) -> None:
    """Not even where a part of it is drawn: it keeps pace, and neither a mask that moves nor hold and fade reach it."""
    moving = torch.stack([torch.roll(left()[0], frame, dims=-1) for frame in range(SIZE[0])])
    asked = {
        "painted": Regions((Target("fox", 1.0),), mask=moving, mask_mode="replace"),
        "words": Regions((Target("fox", 1.0),), hold=1, fade=1),
        "both": Regions((Target("fox", 1.0),), mask=moving, mask_mode="limit"),
    }[regions]
    seen: list[Snapshot] = []
    sampled(name, asyn(clip_model(name), asked, on_step=seen.append), **with_keyframe(name, 0.6))
    for before, now in pairwise(seen):
        assert now.owner.shape == (1, SIZE[0] + 1, *SIZE[1:])
        assert (now.owner[:, -1] == -1).all() and (now.progress[:, -1] == now.step).all()
        expected = moving[None] if regions == "painted" else seen_in_clip(before)
        if regions == "both":
            expected = expected * moving
        if regions == "words":
            expected = torch.nn.functional.max_pool3d(expected, (5, 1, 1), stride=1, padding=(2, 0, 0))
        assert torch.equal(now.owner[:, :-1] == 0, expected > 0)


@every_ltx
def test_the_nodes_masks_are_of_the_clips_own_frames(name: str) -> None:
    given = with_keyframe(name)
    asked = TimestepMap(Regions((Target("fox"),)))
    made = AsynDMKSampler.execute(
        clip_model(name), asked, 7, 2, 2.0, "euler", "simple", given["positive"], given["negative"], given["image"], 1.0,
        preview=False,
    ).result  # fmt: skip
    assert streams_of(made[0]["samples"])[0].shape[2] == SIZE[0] + 1 and made[1].shape == SIZE and made[1].amax() == 1


def seen_in_clip(snapshot: Snapshot) -> Tensor:
    """Where the fox is by the paper's threshold in the clip's own frames, (1, T, H, W)."""
    shares = snapshot.attention.shares[:, 0, :-1]
    return (shares >= shares.mean()).float()


@every_ltx
@every_keyframe
def test_words_are_read_in_the_clip_beside_its_keyframes(name: str, small: bool) -> None:
    """What the layers themselves make of queries and keys says the same, of the clip's own tokens."""
    network, given = clip_model(name).model.diffusion_model, with_keyframe(name, small=small)
    columns = torch.zeros(TOKENS, 1)
    columns[list(WORDS["fox"])] = 1 / len(WORDS["fox"])
    heads, clip = network.num_attention_heads, Sequences(prod(SIZE), TOKENS, 0, SIZE)
    mean, came = BlockMean(columns, clip), {}
    read = sorted(family_of(network).reading.chosen(network))

    def add(block: int, kind: str, vectors: Tensor) -> None:
        own = vectors[: len(vectors) // 2] if vectors.shape[0] > 1 else vectors
        came[block, kind] = own.unflatten(-1, (heads, -1)).transpose(1, 2)
        if kind == "k":
            mean.add(came[block, "q"][:, :, : prod(SIZE)], came[block, "k"])

    handles = [
        getattr(network.transformer_blocks[block].attn2, f"{kind}_norm").register_forward_hook(
            lambda module, args, output, block=block, kind=kind: add(block, kind, output)
        )
        for block in read
        for kind in "qk"
    ]
    seen: list[Snapshot] = []
    try:
        sampled(name, asyn(clip_model(name), FOX, on_step=seen.append), cfg=1.0, steps=1, **given)
    finally:
        for handle in handles:
            handle.remove()
    (snapshot,) = seen
    assert snapshot.attention.weight[0, 0, -1].max() == 0 and snapshot.attention.weight[0, 0, :-1].min() > 0
    assert difference(snapshot.attention.shares[:, :, :-1], mean.mean()) < TOLERANCE


@every_sounding
@pytest.mark.parametrize("how", ["mask", "area", "share of the area"])
def test_a_prompt_for_a_part_of_a_clip_with_sound_is_refused(name: str, how: str) -> None:
    """ComfyUI can't place it: it fails itself, and does not say why."""
    place = {
        "mask": lambda given: nodes.ConditioningSetMask().append(given, torch.ones(1, 8, 8), "default", 1.0)[0],
        "area": lambda given: nodes.ConditioningSetArea().append(given, 32, 32, 0, 0, 1.0)[0],
        "share of the area": lambda given: nodes.ConditioningSetAreaPercentage().append(given, 0.5, 0.5, 0, 0, 1.0)[0],
    }[how]
    with pytest.raises((IndexError, RuntimeError)):
        sampled(name, clip_model(name), positive=place(prompt(name)))
    with pytest.raises(ValueError, match=r"a clip with sound: ComfyUI cannot place.*mask to Cross-Attention Mask"):
        sampled(name, asyn(clip_model(name), painted(left())), positive=place(prompt(name)))


@every_sounding
def test_a_prompt_by_default(name: str) -> None:
    """Where the others leave something, which is nowhere."""
    both = node(
        "nodes_hooks",
        "ConditioningSetDefaultAndCombine",
        prompt(name, **{ANNOTATION: Annotation(WORDS, TOKENS)}),
        prompt(name, 8),
    )
    patched, alone = asyn(clip_model(name), FOX), prompt(name, **{ANNOTATION: Annotation(WORDS, TOKENS)})
    assert worst(sampled(name, patched, positive=both), sampled(name, patched, positive=alone)) < TOLERANCE


@every_sounding
def test_steps_are_reported_of_the_clip(name: str) -> None:
    seen: list[Snapshot] = []
    patched = asyn(clip_model(name), painted(left()), on_step=seen.append)
    sampled(name, patched)
    shape = (1, CLIPS[name].channels, *SIZE)
    assert [snapshot.x.shape for snapshot in seen] == [torch.Size(shape)] * 4
    assert seen[-1].sigma.shape == (1, 1, *SIZE) and seen[-1].denoised.shape == shape
    idle: list[Snapshot] = []
    sampled(name, asyn(clip_model(name), NO_STRENGTH, strength=0.0, on_step=idle.append))
    assert [snapshot.denoised.shape for snapshot in idle] == [torch.Size(shape)] * 4


@every_clip
def test_a_run_that_is_cut_short_leaves_the_model_as_it_was(name: str) -> None:
    patched = clip_model(name)
    stock, model = sampled(name, patched), patched.model
    sampling = model.model_sampling

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.diffusion_model.register_forward_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            sampled(name, asyn(patched, painted(left()), region_denoise=0.5), image=latents(name, full=True))
    finally:
        handle.remove()
    assert model.model_sampling is sampling and "process_timestep" not in vars(model)
    assert not hooks_of(model.diffusion_model)
    assert all_same(sampled(name, patched), stock)


# --- several samplers, one clock -------------------------------------------------------------------------------------------


def graph_of(name: str, **more: Any) -> Graph:
    """What samples such a clip, by any of the ways to split a run."""
    positive = prompt(name, **{ANNOTATION: Annotation(WORDS, TOKENS)})
    image = more.pop("image", None) or latents(name)
    return Graph(scheduler="simple", steps=6, image=image, positive=positive, negative=prompt(name, 6), cfg=2.0, **more)


def in_table(patched: Any, regions: Regions, **changes: Any) -> Any:
    return shared(patched, regions, "simple", 6, **changes)


@every_clip
@every_way
def test_parts_of_a_run_equal_the_whole(name: str, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the clip goes on, and its sound, is known to the next sampler; stock's own parts equal its whole as well."""
    graph, patched = graph_of(name), clip_model(name)
    run = lambda model, *splits: streams_of(WAYS[way](graph, model, *splits))  # noqa: E731
    stock = run(patched)
    if VERSION != "0.8.0" or name not in SOUNDING:  # there ComfyUI has noise for a clip without sound alone
        assert worst(run(patched, 3), stock) < TOLERANCE
    whole = run(asyn(patched, FOX))
    assert difference(whole[0], stock[0]) > 1e-3
    assert worst(run(in_table(patched, FOX), 1, 4), whole) < TOLERANCE
    assert worst(run(in_table(patched, painted(left())), 3), run(asyn(patched, painted(left())))) < TOLERANCE
    assert lines(caplog) == []


@every_clip
@pytest.mark.parametrize("known", ["noised", "ahead", "clean"])
def test_parts_of_a_run_with_a_given_frame(name: str, known: str) -> None:
    graph, patched = graph_of(name, image=masked(name, "both")), clip_model(name)
    changes: dict[str, Any] = {"regions": painted(left()), "known_pixels": known}
    whole = streams_of(graph.by_ksamplers(asyn(patched, **changes)))
    assert worst(streams_of(graph.by_ksamplers(in_table(patched, **changes), 2, 5)), whole) < TOLERANCE


@every_clip
@pytest.mark.parametrize("background", [0.0, 0.4])
def test_parts_of_a_run_on_given_latents(name: str, background: float) -> None:
    graph, patched = graph_of(name, image=latents(name, full=True)), clip_model(name)
    changes: dict[str, Any] = {"regions": painted(left()), "background_denoise": background}
    whole = streams_of(graph.by_ksamplers(asyn(patched, **changes)))
    assert worst(streams_of(graph.by_ksamplers(in_table(patched, **changes), 2, 5)), whole) < TOLERANCE


@every_sounding
def test_clip_and_sound_may_part_between_samplers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The clock is that of what they hold: as they were they go on, and changed they begin level."""
    graph, patched = graph_of(name), in_table(clip_model(name), painted(left()))
    whole = streams_of(graph.by_ksamplers(patched))
    first = graph.advanced(patched, graph.image, 0, 3)
    clip, sound = streams_of(first["samples"])
    end = lambda *streams: streams_of(graph.advanced(patched, {"samples": joined(*streams)}, 3, 6)["samples"])  # noqa: E731
    assert worst(end(clip, sound), whole) < TOLERANCE
    assert lines(caplog) == []
    changed = end(clip, 1.01 * sound)
    assert difference(changed[0], whole[0]) > 1e-3
    assert "The latents bring no clock to go on with" in "".join(lines(caplog))
    sound *= 1.01  # in their own memory
    assert all_same(end(clip, sound), changed)


@every_sounding
def test_the_clock_of_packed_latents_goes_with_them(name: str) -> None:
    """Nothing of it is kept once nobody has the latents any more."""
    graph, patched = graph_of(name), in_table(clip_model(name), painted(left()))
    gc.collect()
    before = len(relay._ON_PACKED)
    first = graph.advanced(patched, graph.image, 0, 3)
    assert len(relay._ON_PACKED) == before + 1
    part = streams_of(first.pop("samples"))[1]
    gc.collect()
    assert len(relay._ON_PACKED) == before + 1 and part.isfinite().all()
    del part
    gc.collect()
    assert len(relay._ON_PACKED) == before


# --- words -----------------------------------------------------------------------------------------------------------------


def watched(name: str, **more: Any) -> list[Snapshot]:
    """The steps of a run in which words are followed."""
    seen: list[Snapshot] = []
    positive = prompt(name, **{ANNOTATION: Annotation(WORDS, TOKENS)})
    sampled(name, asyn(clip_model(name), FOX, on_step=seen.append), positive=positive, **more)
    return seen


@pytest.mark.parametrize("name", ["LTX-Video", "LTX-2"])
@pytest.mark.parametrize("sound", [TOKENS, prod(SIZE), 21])
def test_words_are_read_where_the_clip_attends_to_the_text(name: str, sound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the one attention of a block that is the clip's to the text, however long text, sound and clip are."""
    within: list[str] = []
    read: list[str] = []
    network = clip_model(name).model.diffusion_model
    handles = [
        module.register_forward_pre_hook(lambda *_, layer=layer: within.append(layer))
        for layer, module in network.named_modules()
        if "attn" in layer.rsplit(".", 1)[-1]
    ]
    own = attention._Override._read
    monkeypatch.setattr(attention._Override, "_read", lambda *args, **kwargs: (read.append(within[-1]), own(*args, **kwargs)))
    clip = latents(name)["samples"]
    image = clip if name == "LTX-Video" else joined(streams_of(clip)[0], torch.zeros(1, 8, sound, 16))
    try:
        seen = watched(name, image={"samples": image})
    finally:
        for handle in handles:
            handle.remove()
    blocks = family_of(network).reading.chosen(network)
    assert read == [f"transformer_blocks.{block}.attn2" for block in sorted(blocks)] * len(seen)
    assert all(snapshot.attention.shares.shape == (1, 1, *SIZE) for snapshot in seen)


@pytest.mark.parametrize("name", ["MiniMax H3"])
def test_words_are_read_between_text_and_clip_of_minimax(name: str) -> None:
    """Where its own layout has them, with a given picture between them."""
    case = Evaluation(name, minimax_keyframes=[{"resolved_frame_index": 0, "latent": random(1, 24, 1, 6, 8)}])
    kind = network_of(case.model, case.streams[0])
    kind.prepare_reading(kind.network)
    place = kind.family.reading.place(kind.reader(kind.network, case.streams[0], TOKENS, case.inputs).call)
    layout = case.inputs["minimax_payload"]["layout"]
    start, stop, _ = next(segment for segment in layout.segments if segment[2] == "video")
    assert (place.sequences.picture, place.sequences.queries) == (start, layout.seq_len)
    assert prod(place.sequences.grid) == stop - start and place.text == ((0, 0, TOKENS),)
    seen = watched("MiniMax H3")
    assert all(snapshot.attention is not None for snapshot in seen)
