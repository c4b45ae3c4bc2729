"""Code of other packs in the sampler's place, or between AsynDM and the model: it works, or is named; never a wrong picture.

The packs here are small, and do what public ones do. They lie in a folder of custom nodes of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.samplers import SAMPLERS, UnsupportedSampler
from asyndm_pack.nodes.comfy.arrival import InterferenceError
from asyndm_pack.nodes.comfy.sampler import UnsupportedGuider, own_name
from comfy.k_diffusion import sampling as k_diffusion
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from tiny import (
    FOX_AND_HAT,
    LEFT,
    NEGATIVE,
    POSITIVE,
    WORDS,
    asyn,
    cond,
    custom,
    difference,
    flat,
    ksampler,
    latent,
    node,
    painted,
    same,
    untouched,
)
from torch import Tensor

import nodes as comfy_nodes

Pack = Callable[[str, str], ModuleType]
KSAMPLER = comfy.samplers.KSAMPLER
REGIONS = {"words": FOX_AND_HAT, "painted": painted(LEFT)}

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """Installs a pack: (its folder's name, the code of its __init__.py) -> its module."""
    roots, extensions = folder_paths.folder_names_and_paths["custom_nodes"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([*roots, str(tmp_path)], extensions))

    def install(name: str, code: str) -> ModuleType:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(textwrap.dedent(code), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(str(folder), folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, str(folder), module)
        spec.loader.exec_module(module)
        return module

    return install


def sigmas() -> Tensor:
    return comfy.samplers.calculate_sigmas(flat().get_model_object("model_sampling"), "karras", 4)


def refused(sampler: Any, *parts: str) -> str:
    """By a message with these parts, where a map asks for something; else it samples as without AsynDM."""
    with untouched(flat()), pytest.raises(UnsupportedSampler) as caught:
        custom(asyn(flat()), sampler, sigmas())
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert same(custom(asyn(flat(), mode="synchronous"), sampler, sigmas()), custom(flat(), sampler, sigmas()))
    return message


# --- samplers ---------------------------------------------------------------------------------------------------------

DETAILER = """
    from comfy.k_diffusion import sampling

    def wrapped(table):
        def sample_dpmpp_sde(model, x, sigmas, **kwargs):
            lowest, highest = table[table > 0].min(), table.max()
            kwargs["noise_sampler"] = sampling.BrownianTreeNoiseSampler(x, lowest, highest, seed=3, cpu=True)
            return sampling.sample_dpmpp_2m_sde(model, x, sigmas, **kwargs)

        return sample_dpmpp_sde
"""


def test_comfyuis_samplers_are_known_by_identity() -> None:
    for name in comfy.samplers.SAMPLER_NAMES:
        expected = "euler" if name == "ddim" else name
        assert own_name(comfy.samplers.sampler_object(name).sampler_function) == expected


def test_a_wrapper_with_anothers_name(pack: Pack) -> None:
    """What it wraps is set by the user, so the message does not recommend it."""
    message = refused(
        KSAMPLER(pack("Detailers", DETAILER).wrapped(sigmas())), "'sample_dpmpp_sde' of Detailers", "euler,", "Apply AsynDM"
    )
    assert "dpmpp_2m_sde" not in message and "dpmpp_2m," in message


@pytest.mark.parametrize("decorated", [False, True])
def test_a_function_with_comfyuis_name(pack: Pack, decorated: bool) -> None:
    module = pack(
        "noisy-euler",
        """
        from comfy.k_diffusion import sampling

        def sample_euler(*args, **kwargs):
            return sampling.sample_euler_ancestral(*args, **kwargs)
        """,
    )
    function = functools.wraps(k_diffusion.sample_euler)(module.sample_euler) if decorated else module.sample_euler
    refused(KSAMPLER(torch.no_grad()(function)), "sample_euler' of noisy-euler")


def test_a_function_in_comfyuis_own_module(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As packs add samplers, or put theirs in the place of one."""
    function = pack("smea", "def sample_euler(model, x, sigmas, **kwargs):\n    return x / sigmas[0]\n").sample_euler
    monkeypatch.setattr(k_diffusion, "sample_euler", function)
    refused(comfy.samplers.ksampler("euler"), "'sample_euler' of smea")


def test_samplers_of_comfyui_that_are_not_in_its_list() -> None:
    refused(node("nodes_advanced_samplers", "SamplerLCMUpscale", 1.0, -1, "bislerp"), "'sample_lcm_upscale' of ComfyUI")
    refused(node("nodes_advanced_samplers", "SamplerEulerCFGpp", "alternative"), "'sample_euler_pp' of ComfyUI")


OWN_CLASS = """
    import comfy.samplers

    class KSAMPLER(comfy.samplers.KSAMPLER):
        def sample(self, *args, **kwargs):
            return 0.5 * super().sample(*args, **kwargs)

    class Named(comfy.samplers.KSAMPLER):
        pass

    class Other(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            return 0.5 * noise
"""


def test_classes(pack: Pack) -> None:
    module = pack("classes", OWN_CLASS)
    euler = k_diffusion.sample_euler
    refused(module.KSAMPLER(euler), "'KSAMPLER.sample' of classes")
    refused(module.Other(), "'Other' of classes")
    replaced = KSAMPLER(euler)
    replaced.sample = lambda *args, **kwargs: 0.5 * KSAMPLER.sample(replaced, *args, **kwargs)
    refused(replaced, "<lambda>")
    assert same(custom(asyn(flat()), module.Named(euler), sigmas()), custom(asyn(flat()), KSAMPLER(euler), sigmas()))


def test_nothing_but_options() -> None:
    expected = custom(asyn(flat()), KSAMPLER(k_diffusion.sample_euler_ancestral, {"eta": 0.5}), sigmas())
    partial = functools.partial(k_diffusion.sample_euler_ancestral, eta=0.5)
    assert same(custom(asyn(flat()), KSAMPLER(partial), sigmas()), expected)
    assert same(custom(asyn(flat()), KSAMPLER(partial, {"eta": 1.0}), sigmas()), ksampler(asyn(flat()), "euler_ancestral"))
    with pytest.raises(ValueError, match="no per-pixel option 'noise_sampler'"):
        with_noise = functools.partial(k_diffusion.sample_euler_ancestral, noise_sampler=lambda *_: 0)
        custom(asyn(flat()), KSAMPLER(with_noise), sigmas())


REPLACING = """
    import contextlib
    import comfy.samplers

    original = comfy.samplers.KSAMPLER.sample

    def sample(self, model_wrap, *args, **kwargs):
        model_wrap.scale_big = 2.0
        return original(self, model_wrap, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        conds = self.conds["negative"], self.conds["positive"]
        denoised = comfy.samplers.sampling_function(self.inner_model, x, timestep, *conds, self.cfg, model_options, seed)
        return denoised, denoised * self.scale_big

    class Pairs(comfy.samplers.CFGGuider):
        scale_big = 1.0
        predict_noise = predict_noise

    class Own:
        def __init__(self, guider):
            self.inner_model, self.model_options = guider.inner_model, guider.model_options
"""


def test_a_sampler_class_replaced_for_the_run_of_a_node(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LanPaint's nodes do. Where it stays replaced for everyone, AsynDM works, and says what is left out."""
    module, expected = pack("painter", REPLACING), ksampler(asyn(flat()))
    patched = asyn(flat())
    with monkeypatch.context() as within:
        within.setattr(KSAMPLER, "sample", module.sample)
        with pytest.raises(UnsupportedSampler, match="'sample' of painter"):
            ksampler(patched)
    assert same(ksampler(patched), expected)


def test_a_sampler_class_replaced_for_all(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ksampler(asyn(flat()))
    monkeypatch.setattr(KSAMPLER, "sample", pack("timing", REPLACING).sample)
    with caplog.at_level(logging.WARNING, logger="asyndm"):
        assert same(ksampler(asyn(flat())), expected)
    assert "'sample' of timing" in caplog.text


# --- guiders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", REGIONS)
def test_a_guider_that_gives_something_else(pack: Pack, regions: str) -> None:
    patched = asyn(flat(), REGIONS[regions])
    guider = pack("painter", REPLACING).Pairs(patched)
    guider.set_conds(POSITIVE, NEGATIVE)
    with untouched(flat()), pytest.raises(UnsupportedGuider, match=r"'predict_noise' of painter.* a tuple where latents of \("):
        sampler = comfy.samplers.sampler_object("euler")
        SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, sampler, sigmas(), latent())


def test_an_object_that_is_no_guider(pack: Pack) -> None:
    """Handed on by a wrapper around the sampler."""
    module = pack("own-guider", REPLACING)
    patched = asyn(flat())

    def sampler_sample(executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Tensor:
        return executor(module.Own(guider), *args, **kwargs)

    wrappers = patched.wrappers[comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE]
    patched.wrappers[comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE] = {"own": [sampler_sample], **wrappers}
    with untouched(flat()), pytest.raises(UnsupportedGuider, match=r"'Own' of own-guider.*no conds, original_conds"):
        ksampler(patched)


# --- between AsynDM and the model -------------------------------------------------------------------------------------

BETWEEN = """
    import copy

    import comfy.model_management
    import comfy.samplers
    import torch

    def known_only(apply_model, args):
        known = ("c_crossattn", "c_concat", "control", "transformer_options")
        return apply_model(args["input"], args["timestep"], **{k: v for k, v in args["c"].items() if k in known})

    def text_only(apply_model, args):
        return apply_model(args["input"], args["timestep"], c_crossattn=args["c"]["c_crossattn"])

    def careless(apply_model, args):
        try:
            return text_only(apply_model, args)
        except Exception:
            return args["input"]

    def by_hand(model):
        def deep(apply_model, args):
            sampling, unet, c = model.model.model_sampling, model.model.diffusion_model, args["c"]
            x = sampling.calculate_input(args["timestep"], args["input"])
            output = unet.forward(x, sampling.timestep(args["timestep"]).float(), context=c["c_crossattn"])
            return sampling.calculate_denoised(args["timestep"], output, args["input"])

        return deep

    def tiles(apply_model, args):
        x, c = args["input"], args["c"]
        made = []
        for tile in (slice(0, 6), slice(2, 8)):
            part = {k: v[..., tile] if torch.is_tensor(v) and v.ndim == x.ndim else v for k, v in c.items()}
            made.append(apply_model(x[..., tile], args["timestep"], **part))
        return torch.cat([made[0][..., :4], made[1][..., 2:]], dim=-1)

    def own_options(options):
        options = copy.deepcopy(options)

        def sampling_function(model, x, timestep, uncond, cond, scale, model_options={}, seed=None, **kwargs):
            out = comfy.samplers.calc_cond_batch(model, [cond, uncond], x, timestep, options)
            return torch.lerp(out[1], out[0], scale)

        return sampling_function

    def once_more(options):
        options = copy.deepcopy(options)

        def post_cfg(args):
            (more,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return torch.lerp(args["denoised"], more, 0.5)

        return post_cfg

    def rows(apply_model, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        made = []
        for row in range(x.shape[0]):
            part = {k: v[row : row + 1] if torch.is_tensor(v) else v for k, v in c.items()}
            made.append(apply_model(x[row : row + 1], t[row : row + 1], **part))
        return torch.cat(made)

    def own_attention(unet):
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.forward = lambda x, context=None, **kwargs: torch.zeros_like(x)
"""


def wrapped(function: Callable) -> Any:
    patched = flat().clone()
    patched.set_model_unet_function_wrapper(function)
    return patched


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("name", ["known_only", "text_only", "careless", "by_hand"])
def test_a_wrapper_that_hands_on_what_it_knows(pack: Pack, name: str, regions: str) -> None:
    """As DeepCache and its kin do."""
    module = pack("deep", BETWEEN)
    function = module.by_hand(flat()) if name == "by_hand" else getattr(module, name)
    with untouched(flat()):
        with pytest.raises(InterferenceError) as caught:
            ksampler(asyn(wrapped(function), REGIONS[regions]))
        message = str(caught.value)
        innermost = "text_only" if name == "careless" else function.__name__
        at_once = regions == "words" and name != "known_only"  # which hands on what attention is read by
        lacking = "reading its attention" if at_once else "the noise level of every pixel"
        assert f"{lacking}: '{innermost}' of deep stands" in message
        assert "Bypass its node" in message and "tensor(" not in message and len(message) < 600
    assert same(ksampler(asyn(wrapped(function), mode="synchronous")), ksampler(wrapped(function)))


@pytest.mark.parametrize("regions", REGIONS)
def test_tiles_within_a_wrapper(pack: Pack, regions: str) -> None:
    """As Tiled Diffusion makes them."""
    function = pack("tiler", BETWEEN).tiles
    says = r"latents of \(2, 4, 8, 6\).* 8 x 8 \('tiles' of tiler\).*tiled"
    with untouched(flat()), pytest.raises(InterferenceError, match=says):
        ksampler(asyn(wrapped(function), REGIONS[regions]))
    assert same(ksampler(asyn(wrapped(function), mode="synchronous", on_step=lambda s: None)), ksampler(wrapped(function)))


@pytest.mark.parametrize("regions", REGIONS)
def test_guidance_with_options_of_its_own(pack: Pack, monkeypatch: pytest.MonkeyPatch, regions: str) -> None:
    """As presets of Automatic CFG evaluate the model: without the wrappers of this run."""
    module = pack("presets", BETWEEN)
    monkeypatch.setattr(comfy.samplers, "sampling_function", module.own_options(flat().model_options))
    with untouched(flat()), pytest.raises(InterferenceError, match="'sampling_function' of presets"):
        ksampler(asyn(flat(), REGIONS[regions]))


@pytest.mark.parametrize("regions", REGIONS)
def test_a_further_evaluation_with_options_of_its_own(pack: Pack, regions: str) -> None:
    patched = flat().clone()
    patched.set_model_sampler_post_cfg_function(pack("more", BETWEEN).once_more(patched.model_options))
    with untouched(flat()), pytest.raises(InterferenceError, match="'post_cfg' of more"):
        ksampler(asyn(patched, REGIONS[regions]))


def test_attention_that_is_not_the_models_own(pack: Pack) -> None:
    """Words cannot be read; painted regions need none."""
    module = pack("attention", BETWEEN)
    patched = wrapped(lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]))
    attentions = [m for name, m in flat().model.diffusion_model.named_modules() if name.endswith("attn2")]
    try:
        module.own_attention(flat().model.diffusion_model)
        with pytest.raises(InterferenceError, match=r"attention of 'fox', 'hat' could not be read.*mask_mode to replace"):
            ksampler(asyn(patched))
        assert difference(ksampler(asyn(patched, painted(LEFT))), ksampler(patched)) > 1e-3
    finally:
        for attention in attentions:
            del attention.forward


def test_a_wrapper_that_splits_the_batch(pack: Pack) -> None:
    """Every row gets its own map. Whose attention is whose cannot be told then."""
    split = wrapped(pack("splitter", BETWEEN).rows)
    assert difference(ksampler(asyn(split, painted(LEFT))), ksampler(asyn(flat(), painted(LEFT)))) < 1e-5
    with pytest.raises(InterferenceError, match="'rows' of splitter"):
        ksampler(asyn(split))


# --- what is right where little or nothing is evaluated ---------------------------------------------------------------

SECOND = cond(3)


def ranged(conds: list, start: float, end: float) -> list:
    return comfy_nodes.ConditioningSetTimestepRange().set_range(conds, start, end)[0]


RIGHT: dict[str, dict[str, Any]] = {
    "words in the first half": {"positive": [*ranged(POSITIVE, 0, 0.5), *ranged(SECOND, 0.5, 1)]},
    "words in the second half": {"positive": [*ranged(POSITIVE, 0.5, 1), *ranged(SECOND, 0, 0.5)]},
    "nothing in the first half": {"positive": ranged(POSITIVE, 0.5, 1), "negative": ranged(NEGATIVE, 0.5, 1)},
    "cfg 1": {"cfg": 1.0},
    "two evaluations a step": {"sampler": "heun"},
    "areas": {"positive": [*comfy_nodes.ConditioningSetArea().append(POSITIVE, 32, 64, 0, 32, 1.0)[0], *SECOND]},
    "words where no other is": {
        "positive": [
            *[[tensor, {**options, "default": True}] for tensor, options in POSITIVE],
            *comfy_nodes.ConditioningSetArea().append(SECOND, 32, 64, 0, 32, 1.0)[0],
        ]
    },
    "prompts of two lengths": {"positive": [*POSITIVE, *cond(3, tokens=154, words=WORDS)]},
}


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("name", RIGHT)
def test_nothing_stands_between(name: str, regions: str) -> None:
    with untouched(flat()):
        settings = {"steps": 6, "scheduler": "simple", **RIGHT[name]}
        ours = ksampler(asyn(flat(), REGIONS[regions], strength=0.9), **settings)
        assert ours.isfinite().all()


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize(
    "changes", [{}, {"regions": Regions((Target("fox"),), update="fixed")}, {"regions": FOX_AND_HAT, "region_denoise": 0.8}]
)
def test_caches(name: str, changes: dict[str, Any]) -> None:
    """One that never skips changes nothing; one that skips goes by the whole picture. A pass knows nothing of another."""
    skipping = lambda threshold: node("nodes_easycache", name, flat(), threshold, 0.0, 0.9, False)  # noqa: E731
    settings = {"steps": 10, "image": latent(16, 16, full=True)}
    exact = ksampler(asyn(flat(), **changes), **settings)
    assert same(ksampler(asyn(skipping(0.0), **changes), **settings), exact)
    stock = difference(ksampler(skipping(0.2), **settings), ksampler(flat(), **settings))
    assert 1e-3 < difference(ksampler(asyn(skipping(0.2), **changes), **settings), exact) < 2 * stock


@pytest.mark.parametrize("known", ["clean", "ahead"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde"])
def test_what_goes_by_one_level_sees_it_fall(known: str, sampler: str) -> None:
    """Within a step too, where known pixels are far less noisy: a cache that has ended would find nothing when it goes on."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    seen: list[float] = []

    def listening(call: Callable, given: dict) -> Tensor:
        seen.append(float(given["timestep"][0]))
        return call(given["input"], given["timestep"], **given["c"])

    patched = node("nodes_easycache", "LazyCacheNode", flat(), 0.2, 0.15, 0.95, False)
    patched.set_model_unet_function_wrapper(listening)
    made = asyn(patched, FOX_AND_HAT, known_pixels=known, lead=0.3)
    ours = ksampler(made, sampler, steps=8, image=latent(16, 16, full=True, noise_mask=mask))
    assert ours.isfinite().all()
    assert all(after <= before for before, after in pairwise(seen)) and seen[0] > 1


# --- the last seed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_seed(sampler: str) -> None:
    """Samplers that draw no noise take it, and those whose noise takes it in ComfyUI."""
    if sampler == "ddim" or (SAMPLERS[sampler].noise == "gaussian" and SAMPLERS[sampler].draws):
        with pytest.raises((RuntimeError, OverflowError, ValueError), match="Overflow"):
            ksampler(flat(), sampler, seed=2**64 - 1)
        with pytest.raises(ValueError, match=r"seed is 18446744073709551615, the last.*any other"):
            ksampler(asyn(flat()), sampler, seed=2**64 - 1)
    else:
        ours = ksampler(asyn(flat()), sampler, seed=2**64 - 1)
        assert difference(ours, ksampler(asyn(flat()), sampler, seed=2**64 - 2)) > 1e-2
