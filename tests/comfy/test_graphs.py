"""Graphs of more than one sampler, and the nodes around one: guiders, samplers and tables of sigmas, batches, tiles.

The oracle is stock ComfyUI: in a batch of a picture that lags everywhere and one that nowhere does, the map is not uniform
and all per-pixel code in use; the second picture must be what stock ComfyUI makes
of it alone, the first what mode concave does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DisableNoise,
    Noise_RandomNoise,
    SamplerCustomAdvanced,
    SplitSigmas,
)
from tiny import (
    FOX_AND_HAT,
    LEFT,
    NEGATIVE,
    POSITIVE,
    asyn,
    clip,
    cond,
    custom,
    difference,
    flat,
    ksampler,
    latent,
    make_model,
    node,
    painted,
    plain,
    same,
)
from torch import Tensor

import nodes as comfy_nodes

TOLERANCE = 2e-5
ALL, NONE = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
NO_STRENGTH = Regions((Target("fox", 0.0),))
CONCAVE = {"regions": Regions(), "mode": "concave"}

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends


def euler() -> comfy.samplers.KSAMPLER:
    return comfy.samplers.sampler_object("euler")


def sigmas_of(patched: Any, steps: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "karras", steps)


def rows(*numbers: int) -> dict[str, Any]:
    """Empty latents, each with the noise of its number in a batch."""
    return latent(batch=len(numbers), batch_index=list(numbers))


# --- guiders ----------------------------------------------------------------------------------------------------------


class Halfway(comfy.samplers.CFGGuider):
    """A guider as other packs write them: two predictions of its own, and their mean."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        def at(scale: float) -> Tensor:
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, self.conds["negative"], self.conds["positive"], scale, model_options, seed=seed
            )

        return (at(3.0) + at(7.0)) / 2


def halfway(patched: Any) -> Any:
    guider = Halfway(patched)
    guider.set_conds(POSITIVE, NEGATIVE)
    return guider


def dual_model(patched: Any) -> Any:
    other = make_model(
        channels=64, num_res_blocks=[1], channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1]
    )
    return node("nodes_custom_sampler", "DualModelGuider", patched, POSITIVE, 4.0, other, NEGATIVE)


GUIDERS: dict[str, Callable[[Any], Any]] = {
    "PerpNegGuider": lambda m: node("nodes_perpneg", "PerpNegGuider", m, POSITIVE, NEGATIVE, cond(5), 5.0, 0.7),
    "DualModelGuider": dual_model,
    "of another pack": halfway,
}


@pytest.mark.parametrize("tokens", [77, 154])
@pytest.mark.parametrize("name", ["PerpNegGuider", "DualCFGGuider"])
def test_a_prompt_in_an_area_is_read_from_that_prompt_only(name: str, tokens: int) -> None:
    """ComfyUI copies its dict into the guider's other prompts, which hold other tokens. At the first step all guiders ask
    the model the same of it."""
    positive = comfy_nodes.ConditioningSetArea().append(
        cond(1, tokens=tokens, words={"fox": (tokens - 2,)}), 32, 64, 16, 0, 1.0
    )[0]
    fox = Regions((Target("fox"),))

    def first_attention(guider: Callable[[Any], Any]) -> Tensor:
        seen: list[Tensor] = []
        patched = asyn(flat(), fox, on_step=lambda snapshot: seen.append(snapshot.attention.shares))
        sigmas = torch.tensor([14.0, 3.0, 0.0])
        SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider(patched), euler(), sigmas, latent())
        return seen[0]

    guiders = {
        "PerpNegGuider": lambda m: node("nodes_perpneg", "PerpNegGuider", m, positive, NEGATIVE, cond(5), 5.0, 0.7),
        "DualCFGGuider": lambda m: node(
            "nodes_custom_sampler", "DualCFGGuider", m, positive, cond(5), NEGATIVE, 5.0, 5.0, "regular"
        ),
    }
    expected = first_attention(lambda m: CFGGuider.execute(m, positive, NEGATIVE, 5.0).result[0])
    assert difference(first_attention(guiders[name]), expected) < TOLERANCE


@pytest.mark.parametrize("name", GUIDERS)
def test_guiders(name: str) -> None:
    """Every model of theirs is told the noise level of every pixel."""

    def run(patched: Any, *numbers: int) -> Tensor:
        made = SamplerCustomAdvanced.execute(
            Noise_RandomNoise(7), GUIDERS[name](patched), euler(), sigmas_of(patched, 3), rows(*numbers)
        )
        return made.result[0]["samples"]

    stock, alone = run(flat(), 0), run(asyn(flat(), **CONCAVE), 0)
    assert difference(run(plain(flat(), NO_STRENGTH, strength=0.0), 0), stock) < TOLERANCE
    assert difference(alone, stock) > 1e-3
    assert difference(run(asyn(flat(), painted(LEFT)), 0), alone) > 1e-3
    if name == "PerpNegGuider":  # it takes norms over the whole batch
        return
    together = run(asyn(flat(), painted(ALL, NONE)), 0, 1)
    assert difference(together[:1], alone) < TOLERANCE
    assert difference(together[1:], run(flat(), 1)) < TOLERANCE


# --- samplers with options, and tables of sigmas ----------------------------------------------------------------------

SAMPLER_NODES: dict[str, tuple[Any, ...]] = {
    "SamplerEulerAncestral": (0.5, 0.9),
    "SamplerEulerAncestralCFGPP": (0.5, 0.9),
    "SamplerDPMPP_2S_Ancestral": (0.6, 1.1),
    "SamplerDPMPP_SDE": (0.5, 0.9, 0.7, "cpu"),
    "SamplerDPMPP_2M_SDE": ("heun", 0.5, 0.9, "gpu"),
    "SamplerDPMPP_3M_SDE": (0.0, 1.0, "cpu"),
}


@pytest.mark.parametrize("name", SAMPLER_NODES)
def test_sampler_nodes_with_options(name: str) -> None:
    sampler, sigmas = node("nodes_custom_sampler", name, *SAMPLER_NODES[name]), sigmas_of(flat(), 4)
    stock = custom(flat(), sampler, sigmas)
    assert difference(custom(plain(flat(), NO_STRENGTH, strength=0.0), sampler, sigmas), stock) < TOLERANCE
    assert difference(custom(asyn(flat()), sampler, sigmas), stock) > 1e-3


TABLES: dict[str, Callable[[], Tensor]] = {
    "AlignYourSteps": lambda: node("nodes_align_your_steps", "AlignYourStepsScheduler", "SD1", 4, 1.0),
    "GITS": lambda: node("nodes_gits", "GITSScheduler", 1.2, 4, 1.0),
    "SDTurbo, one step": lambda: node("nodes_custom_sampler", "SDTurboScheduler", flat(), 1, 1.0),
    "SDTurbo": lambda: node("nodes_custom_sampler", "SDTurboScheduler", flat(), 4, 1.0),
    "Laplace": lambda: node("nodes_custom_sampler", "LaplaceScheduler", 4, 14.6, 0.03, 0.0, 0.5),
    "VP": lambda: node("nodes_custom_sampler", "VPScheduler", 4, 19.9, 0.1, 0.001),
    "not down to 0": lambda: sigmas_of(flat(), 6)[:5],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_sigmas(name: str) -> None:
    sigmas = TABLES[name]()
    stock = custom(flat(), euler(), sigmas)
    assert difference(custom(plain(flat(), NO_STRENGTH, strength=0.0), euler(), sigmas), stock) < TOLERANCE
    lagging = difference(custom(asyn(flat()), euler(), sigmas), stock)
    assert lagging < TOLERANCE if len(sigmas) < 4 else lagging > 1e-3


@pytest.mark.parametrize("stages", ["first", "second", "both"])
def test_two_stages_by_split_sigmas(stages: str) -> None:
    """All pixels are level where a stage ends, so that the next may be another model's."""
    high, low = SplitSigmas.execute(sigmas_of(flat(), 8), 3).result

    def run(patched: Any, *numbers: int) -> Tensor:
        first = patched if stages != "second" else flat()
        second = patched if stages != "first" else flat()

        def stage(model: Any, noise: Any, sigmas: Tensor, image: dict) -> dict:
            guider = CFGGuider.execute(model, POSITIVE, NEGATIVE, 5.0).result[0]
            return SamplerCustomAdvanced.execute(noise, guider, euler(), sigmas, image).result[0]

        middle = stage(first, Noise_RandomNoise(7), high, rows(*numbers))
        return stage(second, DisableNoise.execute().result[0], low, middle)["samples"]

    together = run(asyn(flat(), painted(ALL, NONE)), 0, 1)
    alone = run(asyn(flat(), **CONCAVE), 0)
    rounding = difference(together[:1], alone)
    assert max(rounding, difference(together[1:], run(flat(), 1))) < 0.1 * TOLERANCE
    assert difference(alone, run(flat(), 0)) > 5 * TOLERANCE  # these models leave a second stage little to do


# --- several runs -----------------------------------------------------------------------------------------------------


@cache
def second() -> Any:
    """Another model: ComfyUI itself cannot sample a model within the sampling of the same."""
    return make_model(sdxl=True, num_res_blocks=[1], channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1])


@pytest.mark.parametrize("outer", [painted(LEFT), FOX_AND_HAT], ids=["painted", "words"])
def test_a_run_within_a_run(outer: Regions) -> None:
    """Two AsynDM samplers at once, one in the other's callback (at another size): each as alone."""

    def inner(patched: Any) -> Tensor:
        return ksampler(patched, seed=8, image=latent(12, 8))

    alone = ksampler(asyn(flat(), outer)), inner(asyn(second())), inner(second())
    within: list[Tensor] = []

    def another_run(snapshot: Any) -> None:
        if snapshot.step in (1, 2):
            within.extend([inner(asyn(second())), inner(second())])

    assert same(ksampler(asyn(flat(), outer, on_step=another_run)), alone[0])
    assert [same(*pair) for pair in zip(within, alone[1:] * 2, strict=True)] == [True] * 4


def test_tiles() -> None:
    """As tiled upscalers do: one MODEL, many runs of other sizes; each as with a fresh MODEL."""
    picture = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(4))
    tiles = [picture[..., :8, :12], picture[..., 4:, 8:], picture[..., 3:8, 1:8]]
    patched = asyn(flat())
    for tile in tiles:
        run = {"image": {"samples": tile}, "denoise": 0.6}
        assert same(ksampler(patched, **run), ksampler(asyn(flat()), **run))
        assert difference(ksampler(patched, **run), ksampler(flat(), **run)) > 1e-3


def test_a_painted_mask_is_laid_over_each_tile(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody tells a sampler where in the picture its tile lies. Other proportions are warned of."""
    patched = asyn(flat(), painted(LEFT))
    wide = torch.cat([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)], dim=-1)
    with caplog.at_level(logging.WARNING, logger="asyndm"):
        ours = ksampler(patched, image=latent(8, 16))
    assert "stretched over the whole picture" in caplog.text
    assert same(ours, ksampler(asyn(flat(), painted(wide)), image=latent(8, 16)))


def test_a_detailer() -> None:
    """A crop at a size of its own, with a noise mask: what is known stays, the hole follows its own clock."""
    crop = latent(12, 8, full=True)
    crop["noise_mask"] = torch.zeros(1, 12, 8)
    crop["noise_mask"][..., 3:9, 2:6] = 1
    ours = ksampler(asyn(flat()), image=crop, denoise=0.7)
    assert difference(ours, ksampler(flat(), image=crop, denoise=0.7)) > 1e-3
    known = crop["noise_mask"][:, None].expand_as(ours) == 0
    assert torch.allclose(ours[known], crop["samples"][known], atol=1e-5)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_a_picture_of_a_batch_is_what_it_is_alone(update: str) -> None:
    """RepeatLatentBatch and LatentFromBatch give the noise by number; every picture finds its own words."""
    batch = comfy_nodes.RepeatLatentBatch().repeat(latent(full=True), 3)[0]
    patched = asyn(flat(), Regions((Target("fox"), Target("hat", 0.4)), update=update))
    together = ksampler(patched, image=batch, denoise=0.9)
    for number in range(3):
        one = comfy_nodes.LatentFromBatch().frombatch(batch, number, 1)[0]
        assert difference(together[number : number + 1], ksampler(patched, image=one, denoise=0.9)) < TOLERANCE
    assert difference(together[:1], together[1:2]) > 1e-2


def prompts() -> list:
    """A conditioning of one prompt for each picture, as packs for schedules of prompts make it."""
    return [[torch.cat([POSITIVE[0][0], cond(3)[0][0]]), POSITIVE[0][1]]]


def test_several_prompts_in_one_conditioning() -> None:
    """Painted regions need no words: each picture is that of its own prompt alone."""
    patched = asyn(flat(), painted(LEFT))
    together = ksampler(patched, positive=prompts(), image=rows(0, 1))
    assert difference(together[:1], ksampler(patched, image=rows(0))) < TOLERANCE
    assert difference(together[1:], ksampler(patched, positive=cond(3), image=rows(1))) < TOLERANCE


def test_words_of_several_prompts_are_refused() -> None:
    """Where the words are is known of one prompt only. The same prompt for each picture is no other prompt."""
    with pytest.raises(ValueError, match=r"2 different prompts.*Cross-Attention Mask.*one after another.*mask_mode"):
        ksampler(asyn(flat()), positive=prompts(), image=rows(0, 1))
    repeated = [[POSITIVE[0][0].repeat(2, 1, 1), POSITIVE[0][1]]]
    assert same(ksampler(asyn(flat()), positive=repeated, image=rows(0, 1)), ksampler(asyn(flat()), image=rows(0, 1)))
    assert same(
        ksampler(asyn(flat(), mode="synchronous"), positive=prompts(), image=rows(0, 1)),
        ksampler(flat(), positive=prompts(), image=rows(0, 1)),
    )


# --- nodes that only prepare ------------------------------------------------------------------------------------------


def test_nodes_that_only_prepare() -> None:
    """LatentComposite, ThresholdMask, a guider without a negative: latents, masks and conds as any other."""
    composed = comfy_nodes.LatentComposite().composite(latent(12, 12, full=True), latent(8, 8), 16, 16, feather=16)[0]
    grey = torch.linspace(0, 1, 12).expand(1, 12, 12)
    mask = node("nodes_mask", "ThresholdMask", grey, 0.5)
    assert set(mask.unique().tolist()) == {0.0, 1.0}

    def run(patched: Any) -> Tensor:
        guider = BasicGuider.execute(patched, POSITIVE).result[0]
        sigmas = sigmas_of(flat(), 4)
        return SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, euler(), sigmas, composed).result[0]["samples"]

    stock = run(flat())
    assert difference(run(plain(flat(), NO_STRENGTH, strength=0.0)), stock) < TOLERANCE
    assert difference(run(asyn(flat(), painted(mask))), stock) > 1e-3


def test_clip_skip() -> None:
    """CLIP Set Last Layer: encoded as CLIP Text Encode does, the words at the same tokens."""
    skipped = comfy_nodes.CLIPSetLastLayer().set_last_layer(clip(), -2)[0]
    text = "a red fox with a hat"

    def mask_node(given: Any) -> list:
        return CrossAttentionMask.execute(clip=given, text=text, targets="fox", threshold=1.0, update="every step").result[0]

    assert same(mask_node(skipped)[0][0], comfy_nodes.CLIPTextEncode().encode(skipped, text)[0][0][0])
    assert difference(mask_node(skipped)[0][0], mask_node(clip())[0][0]) > 1e-3
    assert mask_node(skipped)[0][1]["asyndm_targets"] == mask_node(clip())[0][1]["asyndm_targets"]
