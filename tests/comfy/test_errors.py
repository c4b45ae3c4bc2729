"""What goes wrong says what came, what was expected, and which node to change; and leaves the model as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.regions import SWITCH_OFF, Regions, Target
from asyndm_pack.asyndm_core.samplers import SAMPLERS, UnsupportedSampler
from asyndm_pack.asyndm_core.tokens import UnknownWordError
from asyndm_pack.nodes.apply import Apply
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION
from asyndm_pack.nodes.comfy.model import UnsupportedModelError
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from asyndm_pack.nodes.timestep_map import TimestepMapNode
from tiny import (
    CONTEXT,
    LEFT,
    NEGATIVE,
    POOLED,
    POSITIVE,
    ModelType,
    asyn,
    base_model,
    clip,
    cond,
    custom,
    difference,
    flat,
    ksampler,
    latent,
    make_model,
    model,
    painted,
    patcher,
    same,
    untouched,
)
from torch import Tensor

TEXT = "a red fox with a hat"


def mask_node(**changes: Any) -> tuple[list, Regions]:
    """Cross-Attention Mask, executed."""
    inputs = {"clip": clip(), "text": TEXT, "targets": "fox", "threshold": 1.0, "update": "every step", **changes}
    return CrossAttentionMask.execute(**inputs).result


def map_node(regions: Regions | None = None, **changes: Any) -> Any:
    """Asynchronous Timestep Map, executed."""
    inputs = {"curve": "quadratic", "strength": 0.7, "mode": "asynchronous", **changes}
    return TimestepMapNode.execute(mask_node()[1] if regions is None else regions, **inputs).result[0]


def sampler_node(patched: Any = None, **changes: Any) -> Any:
    """AsynDM KSampler, executed."""
    inputs = {
        "seed": 7, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "positive": mask_node()[0],
        "negative": NEGATIVE, "latent_image": latent(), "denoise": 1.0, "preview": False, **changes,
    }  # fmt: skip
    timestep_map = inputs.pop("timestep_map", None) or map_node()
    return AsynDMKSampler.execute(model() if patched is None else patched, timestep_map, **inputs).result


def switched_off_is_stock(patched: Any) -> None:
    """What messages advise where a run is refused: mode synchronous samples as the stock sampler does, in both nodes."""
    stock = ksampler(patched, scheduler="simple", steps=2)
    off = map_node(mode="synchronous")
    assert same(ksampler(Apply.execute(patched, off).result[0], scheduler="simple", steps=2), stock)
    assert same(sampler_node(patched, timestep_map=off, positive=POSITIVE)[0]["samples"], stock)
    stock = ksampler(patched, "ddim", scheduler="simple", steps=2)
    with_ddim = sampler_node(patched, timestep_map=off, positive=POSITIVE, sampler_name="ddim", eta=0.0)
    assert same(with_ddim[0]["samples"], stock)


def says(error: type[Exception], call: Callable[[], Any], *parts: str) -> None:
    """``call`` raises ``error`` whose message has all parts, and is a sentence for artists: no tensor, no module path."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "tensor(" not in message and "asyndm_core" not in message and len(message) < 900


def test_the_helpers_are_sound() -> None:
    """The same inputs without the errors run."""
    samples, masks, timeline = sampler_node()
    assert samples["samples"].isfinite().all() and masks.shape == (1, 8, 8) and timeline.ndim == 4


# --- words and conditionings -------------------------------------------------------------------------------------------


def test_unknown_word() -> None:
    says(UnknownWordError, lambda: mask_node(targets="wolf"), "'wolf'", "a, red, fox, with, hat", "targets", "text")
    says(UnknownWordError, lambda: mask_node(targets="fox, red hat:0.5"), "'red hat'", "fox")


def test_word_listed_twice() -> None:
    says(ValueError, lambda: mask_node(targets="fox, Fox:0.4"), "Fox", "twice", "targets")


@pytest.mark.parametrize("text", ["", "   \n"])
def test_empty_prompt(text: str) -> None:
    says(ValueError, lambda: mask_node(text=text), "prompt is empty", "text", "mask_mode", "replace")
    conditioning, regions = mask_node(text=text, mask=LEFT, mask_mode="replace")
    assert regions.targets == () and conditioning[0][0].shape[1] == 77


def test_prompt_without_content() -> None:
    says(UnknownWordError, lambda: mask_node(text="of the and", targets=""), "No content word", "targets")


def test_text_that_does_not_fit_the_conditioning() -> None:
    for given in (cond(1, tokens=154), encoded("in a meadow")):
        says(ValueError, lambda given=given: mask_node(conditioning=given), "'fox'", "another text", "the same text", "Average")


def encoded(text: str) -> list:
    """What CLIP Text Encode makes."""
    return clip().encode_from_tokens_scheduled(clip().tokenize(text))


def test_conditioning_made_elsewhere() -> None:
    """The right one is annotated instead of encoded again, and its other entries stay."""
    ((made, given),) = encoded(TEXT)
    ((tensor, options),), _ = mask_node(conditioning=[[made, {**given, "strength": 0.8}]])
    assert tensor is made and options["strength"] == 0.8 and options[ANNOTATION].positions == {"fox": (3,)}


def test_a_text_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison costs nothing where no conditioning is connected."""
    calls: list[int] = []
    encoder = clip().cond_stage_model
    stock = encoder.encode_token_weights
    monkeypatch.setattr(encoder, "encode_token_weights", lambda pairs: calls.append(1) or stock(pairs))
    mask_node()
    assert len(calls) == 1
    given = encoded(TEXT)
    mask_node(conditioning=given)
    assert len(calls) == 3


def test_lost_targets(caplog: pytest.LogCaptureFixture) -> None:
    """They stop the queue or are skipped with a warning, as the widget says; where none is left, sampling is ordinary."""
    says(UnknownWordError, lambda: mask_node(targets="wolf, fox"), "'wolf'", "lost_targets", "skip")
    conditioning, regions = mask_node(targets="wolf, fox:0.4", lost_targets="skip")
    assert [(t.text, t.strength) for t in regions.targets] == [("fox", 0.4)]
    assert "AsynDM: Targets: fox:0.4 (not in the prompt, skipped: wolf)" in caplog.text
    conditioning, regions = mask_node(targets="wolf", lost_targets="skip")
    assert "No target is left" in caplog.text
    ours, masks, _ = sampler_node(positive=conditioning, timestep_map=map_node(regions))
    stock = ksampler(model(), scheduler="simple", steps=2, positive=encoded(TEXT), negative=NEGATIVE)
    assert same(ours["samples"], stock) and masks.sum() == 0
    says(ValueError, lambda: mask_node(lost_targets="never"), "lost_targets of Cross-Attention Mask", "stop, skip")


def test_conditioning_without_annotation() -> None:
    with untouched(flat()):
        says(
            ValueError, lambda: ksampler(asyn(flat()), positive=NEGATIVE), "'fox', 'hat'", "output conditioning",
            "Cross-Attention Mask", "positive",
        )  # fmt: skip
        says(ValueError, lambda: ksampler(asyn(flat()), positive=NEGATIVE, negative=POSITIVE), "'fox', 'hat'", "positive")
        says(ValueError, lambda: ksampler(asyn(flat()), positive=cond(1, words={"fox": (3,)})), "'hat'", "each Cross-Attention")


def test_no_clip() -> None:
    says(ValueError, lambda: mask_node(clip=None), "clip", "Load CLIP")


# --- masks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_mask_that_is_not_numbers(value: float) -> None:
    broken = LEFT.clone()
    broken[0, 3, 3] = value
    says(ValueError, lambda: mask_node(mask=broken), "mask", "NaN", "node that made it")
    with untouched(flat()):
        says(ValueError, lambda: ksampler(asyn(flat(), painted(broken))), "mask", "NaN")


def test_mask_of_a_wrong_shape() -> None:
    regions = Regions((Target("fox"),), mask=torch.ones(1, 1, 8, 8), mask_mode="replace")
    says(ValueError, lambda: ksampler(asyn(flat(), regions)), "(1, 1, 8, 8)", "height", "width")


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the pack logged. (ComfyUI may warn of models that other tests still hold.)"""
    return [record for record in caplog.records if record.name == "asyndm"]


def test_mask_at_the_size_of_the_picture(caplog: pytest.LogCaptureFixture) -> None:
    """As masks come in ComfyUI: 8 pixels for one of the latents. No warning."""
    large = LEFT.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    with caplog.at_level(logging.WARNING, logger="asyndm"):
        assert same(*(ksampler(asyn(flat(), painted(mask)), steps=8) for mask in (large, LEFT)))
    assert not ours(caplog)


@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_mask_of_other_proportions(update: str, caplog: pytest.LogCaptureFixture) -> None:
    """Stretched, with one warning for the run."""
    wide = torch.cat([torch.ones(1, 32, 64), torch.zeros(1, 32, 64)], dim=-1)
    regions = Regions((Target("fox"),), update=update, mask=wide)
    with caplog.at_level(logging.WARNING, logger="asyndm"):
        stretched = ksampler(asyn(flat(), regions), steps=8)
    (record,) = ours(caplog)
    assert record.name == "asyndm" and "128 x 32" in record.getMessage() and "8 x 8" in record.getMessage()
    assert same(stretched, ksampler(asyn(flat(), Regions((Target("fox"),), update=update, mask=LEFT)), steps=8))


@pytest.mark.parametrize("mode", ["limit", "replace"])
def test_empty_mask_is_stock(mode: str) -> None:
    regions = Regions((Target("fox"),), mask=torch.zeros(1, 64, 64), mask_mode=mode)
    assert same(ksampler(asyn(flat(), regions)), ksampler(flat()))


def test_empty_mask_adds_nothing() -> None:
    regions = Regions((Target("fox"),), mask=torch.zeros(1, 8, 8), mask_mode="add")
    assert difference(ksampler(asyn(flat(), regions)), ksampler(asyn(flat(), Regions((Target("fox"),))))) < 1e-5


def test_full_mask() -> None:
    """It limits nothing; alone, it is the mode concave."""
    full = torch.ones(1, 8, 8)
    limited = ksampler(asyn(flat(), Regions((Target("fox"),), mask=full)))
    assert difference(limited, ksampler(asyn(flat(), Regions((Target("fox"),))))) < 1e-5
    alone = ksampler(asyn(flat(), painted(full)))
    assert difference(alone, ksampler(asyn(flat(), Regions(), mode="concave"))) < 1e-5


# --- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strength_out_of_range(strength: float) -> None:
    says(ValueError, lambda: map_node(strength=strength), f"{strength}", "Asynchronous Timestep Map", "between 0", "1")


@pytest.mark.parametrize("typed", ["1.5", "-0.2", "nan"])
def test_strength_of_a_target_out_of_range(typed: str) -> None:
    says(ValueError, lambda: mask_node(targets=f"fox:{typed}"), f"{float(typed)}", "'fox'", "targets", "between 0")


def test_no_steps() -> None:
    with untouched(model()):
        says(ValueError, lambda: sampler_node(steps=0), "steps of AsynDM KSampler is 0", "between 1 and 10000")
        says(ValueError, lambda: sampler_node(steps=10**18), "steps of AsynDM KSampler", "between 1 and 10000")
        says(ValueError, lambda: sampler_node(denoise=5e-324), "denoise of AsynDM KSampler", "between 0.001 and 1")


def test_denoise_0_returns_the_latents() -> None:
    """As KSampler does: nothing is sampled."""
    image = latent(full=True)
    samples, masks, _ = sampler_node(latent_image=image, denoise=0.0)
    assert torch.equal(samples["samples"], image["samples"]) and masks.shape == (1, 8, 8)


# --- samplers and schedules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(comfy.samplers.KSampler.SAMPLERS) - set(SAMPLERS)))
def test_unsupported_sampler(name: str) -> None:
    with untouched(flat()):
        says(UnsupportedSampler, lambda: ksampler(asyn(flat()), name), f"'{name}'", "sampler_name", "euler,", "dpmpp_2m,")


def test_unsupported_sampler_where_nothing_is_asked_for() -> None:
    assert same(ksampler(asyn(flat(), mode="synchronous"), "heunpp2"), ksampler(flat(), "heunpp2"))


def test_option_without_a_formula() -> None:
    churned = comfy.samplers.ksampler("euler", {"s_churn": 0.5})
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.0])
    with untouched(flat()):
        says(ValueError, lambda: custom(asyn(flat()), churned, sigmas), "euler", "s_churn")


def test_a_table_that_rises() -> None:
    """As for unsampling: Flip Sigmas before the sampler."""
    euler, rising = comfy.samplers.ksampler("euler"), torch.tensor([0.0001, 1.0, 3.0, 10.0])
    with untouched(flat()):
        says(ValueError, lambda: custom(asyn(flat()), euler, rising), "rises", "Flip Sigmas", SWITCH_OFF)
    assert same(custom(asyn(flat(), mode="synchronous"), euler, rising), custom(flat(), euler, rising))


def test_a_table_of_no_numbers() -> None:
    """As kl_optimal's for one step."""
    table = comfy.samplers.calculate_sigmas(flat().get_model_object("model_sampling"), "kl_optimal", 1)
    with untouched(flat()):
        says(ValueError, lambda: custom(asyn(flat()), comfy.samplers.ksampler("lms"), table), "not numbers", SWITCH_OFF)


def test_a_table_of_another_kind_of_model() -> None:
    """As AlignYourStepsScheduler gives it; dpmpp_sde would never end on it."""
    sde, foreign = comfy.samplers.ksampler("dpmpp_sde"), torch.tensor([14.6, 6.5, 0.7, 0.0])
    flow = make_model(ModelType.FLOW)
    with untouched(flow):
        says(ValueError, lambda: custom(asyn(flow), sde, foreign), "begins at 14.6", "BasicScheduler", SWITCH_OFF)


def test_the_paper_preset_needs_its_schedule() -> None:
    with untouched(flat()):
        says(ValueError, lambda: ksampler(asyn(flat(), preset="paper")), "paper", "ddim_uniform", "default")


def test_chained_maps_that_disagree() -> None:
    chained = map_node(previous=map_node(preset="paper"), preset="paper")
    assert chained.previous is not None
    says(ValueError, lambda: map_node(previous=map_node(preset="paper")), "preset", "default, paper", "same")


# --- models and other nodes ----------------------------------------------------------------------------------------------


def test_unsupported_model() -> None:
    """A transformer of another pack, made of a known one: refused by its name, and it samples as before."""
    config = {
        "in_channels": 4, "patch_size": 2, "depth": 1, "pos_embed_max_size": 8, "num_patches": 64, "input_size": None,
        "adm_in_channels": POOLED, "dtype": torch.float32,
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 64},
        },
    }  # fmt: skip
    dit = patcher(base_model(comfy.model_base.SD3, config, ModelType.FLOW, shift=3.0))
    network = dit.model.diffusion_model
    network.__class__ = type("MMDITOfAnotherPack", (type(network),), {"__module__": "custom_nodes.other"})
    with untouched(dit):
        says(UnsupportedModelError, lambda: ksampler(asyn(dit)), "SD3", "MMDIT", "SD1.x", "SDXL", "checkpoint", SWITCH_OFF)
        says(UnsupportedModelError, lambda: sampler_node(dit), "SD3")
    switched_off_is_stock(dit)


def test_another_node_that_samples_tiles() -> None:
    """A wrapper that cuts the latents up, as tiled diffusion does."""
    import comfy.patcher_extension

    def tiles(executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> Any:
        halves = [executor(model, conds, half, timestep, options) for half in x.chunk(2, dim=-1)]
        return [torch.cat(parts, dim=-1) for parts in zip(*halves, strict=True)]

    patched = flat().clone()
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "tiles", tiles)
    with untouched(patched):
        says(ValueError, lambda: ksampler(asyn(patched, painted(LEFT))), "(1, 4, 8, 4)", "tiled diffusion", SWITCH_OFF)
    switched_off_is_stock(patched)


def test_apply_gives_a_clone() -> None:
    with untouched(flat()):
        applied = Apply.execute(flat(), map_node()).result[0]
        assert applied is not flat() and applied.model is flat().model
        ksampler(applied, positive=mask_node()[0])


# --- what a link brings that no widget holds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("threshold", float("nan"), "nan: it is a number"),
        ("grow", 10**9, "1000000000: it is a number between -64 and 64"),
        ("feather", float("nan"), "nan: it is a number between 0 and 64"),
        ("feather", 1e9, "it is a number between 0 and 64"),
        ("update", "sometimes", "'sometimes': it is one of every step, fixed"),
        ("mask_mode", "invert", "'invert': it is one of limit"),
        ("mask", "a picture", "got a str"),
        ("text", None, "NoneType instead of a text"),
    ],
)
def test_cross_attention_mask_out_of_range(name: str, value: Any, part: str) -> None:
    says(ValueError, lambda: mask_node(**{name: value}), name, "Cross-Attention Mask", part)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("curve", "cubic", "'cubic': it is one of quadratic"),
        ("mode", "", "'': it is one of asynchronous"),
        ("preset", None, "None: it is one of default"),
        ("known_pixels", {}, "dict: it is one of"),
        ("lead", torch.tensor(0.2), "Tensor: it is a number between 0"),
        ("strength", "strong", "'strong': a strength is between 0"),
        ("background_denoise", None, "None: it is a number between 0"),
        ("region_denoise", torch.zeros(1, 0, 0), "Tensor: it is a number between 0"),
        ("previous", "a map", "got a str"),
    ],
)
def test_timestep_map_out_of_range(name: str, value: Any, part: str) -> None:
    says(ValueError, lambda: map_node(**{name: value}), name, "Asynchronous Timestep Map", part)


@pytest.mark.parametrize(
    ("name", "value"),
    [("preview", "on"), ("cfg", float("nan")), ("denoise", float("nan")), ("eta", 2.0), ("sampler_name", "x"),
     ("scheduler", None), ("positive", None), ("latent_image", None), ("steps", "many")],
)  # fmt: skip
def test_sampler_out_of_range(name: str, value: Any) -> None:
    says(ValueError, lambda: sampler_node(**{name: value}), name, "AsynDM KSampler")


def test_switches_that_give_nothing() -> None:
    says(ValueError, lambda: TimestepMapNode.execute(None, "quadratic", 0.7, "asynchronous"), "regions", "nothing", "switch")
    says(ValueError, lambda: Apply.execute(model(), None), "timestep_map", "nothing", "Apply AsynDM")
    says(ValueError, lambda: Apply.execute(None, map_node()), "model", "nothing", "Apply AsynDM")


def test_mask_without_a_pixel() -> None:
    says(ValueError, lambda: map_node(Regions((), mask=torch.zeros(1, 0, 0), mask_mode="replace")), "(1, 0, 0)", "height")


# --- more text than any prompt has ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("widget", ["text", "targets"])
def test_a_megabyte_of_text(widget: str) -> None:
    says(
        ValueError, lambda: mask_node(**{widget: "a red fox and " * 80_000}), f"widget {widget}", "1120000", "20000", "Shorten"
    )


def test_thousands_of_targets() -> None:
    many = ", ".join(f"fox{n}" for n in range(2000))
    says(ValueError, lambda: mask_node(targets=many), "2000 targets", "256", "1 to 3 things")
    assert len(mask_node(text=many, targets="")[1].targets) == 3


def test_long_words_are_quoted_in_short() -> None:
    says(UnknownWordError, lambda: mask_node(text="fox " + "wolf " * 999 + "x" * 9000, targets="y" * 9000), "yyy…", "fox, wolf")
