"""What else is in an artist's graph: each of it with AsynDM, on real ComfyUI nodes; docs/compatibility.md is this table.

``yes`` means, for the nodes here:
- our loop on a uniform map gives the stock sampler's latents, with the other node at work;
- in a batch of a picture that lags everywhere and one that nowhere does (so the map is not uniform, and all per-pixel code is
  in use), each picture is what stock ComfyUI makes of it alone, on its own sigmas;
- a map within one picture makes a difference, and the other node's effect is there.

``ASYNDM_WRITE_PAGES=1 python -m pytest tests/comfy/test_compatibility.py`` writes the page anew.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips
import comfy.hooks
import comfy.model_base
import comfy.samplers
import families as tested
import pytest
import test_ltx
import test_minimax
import test_nested
import test_transformer_clips
import test_transformer_machines
import test_transformer_words
import test_transformers
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from asyndm_pack.nodes.comfy.guidance import with_own_sigmas
from comfy import gligen
from comfy.ldm.modules.attention import BasicTransformerBlock
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
    difference,
    make_model,
    node,
    painted,
    patcher,
    plain,
    unet_config,
)
from torch import Tensor

import nodes as comfy_nodes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
SIZE = 16
ALL, NONE = torch.ones(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
NO_STRENGTH = Regions((Target("fox", 0.0),))
TOLERANCE = 2e-5
BATCH = 2e-4
"""A batch of two rounds otherwise than one picture, and these models magnify it."""
STEPS = 4

Model = Any
Conds = dict[str, list]
PLAIN: Conds = {"positive": POSITIVE, "negative": NEGATIVE}


def patched_by(module: str, name: str, *values: Any) -> Callable[[Model], Model]:
    """A node that takes a MODEL and gives one."""
    return lambda model: node(module, name, model, *values)


def lora(model: Model) -> Model:
    """Low-rank patches on every kind of layer, as LoraLoader adds them; also those that read the timestep."""
    patched = model.clone()
    names = ("attn2.to_k.weight", "attn2.to_q.weight", "attn1.to_v.weight", "emb_layers.1.weight", "in_layers.2.weight")
    generator = torch.Generator().manual_seed(9)
    weights = {key: value for key, value in model.model.state_dict().items() if key.endswith(names)}
    changes = {key: (0.3 * value.std() * torch.randn(value.shape, generator=generator),) for key, value in weights.items()}
    assert len(patched.add_patches(changes, 0.8)) == len(changes) > 10
    return patched


def attention_patch(model: Model) -> Model:
    """An attn2 patch that adds tokens with an attention of their own, as IPAdapter does."""
    patched = model.clone()
    image = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(12))

    def replace(q: Tensor, context: Tensor, value: Tensor, extra_options: dict) -> Tensor:
        heads = extra_options["n_heads"]
        attend = importlib.import_module("comfy.ldm.modules.attention").optimized_attention
        more = image.repeat(q.shape[0], 1, q.shape[-1] // 32)
        return attend(q, context, value, heads) + 0.5 * attend(q, more, more, heads)

    for block in (("input", 1), ("middle", 0), ("output", 0)):
        patched.set_model_attn2_replace(replace, *block, 0)
    return patched


def hooked_lora(positive: list) -> list:
    """A LoRA on one cond only, by ComfyUI's hooks, with its strength on a schedule."""
    layer = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v"
    generator = torch.Generator().manual_seed(10)
    up, down = torch.randn(256, 4, generator=generator), torch.randn(4, 256, generator=generator)
    group = comfy.hooks.create_hook_lora({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}, 0.05, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.2, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    group.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(positive, group)


def with_positive(change: Callable[[list], list]) -> Callable[[Conds], Conds]:
    return lambda conds: {**conds, "positive": change(conds["positive"])}


SECOND = cond(3)
NODES = comfy_nodes


@dataclass(frozen=True)
class Row:
    """One line of the table. change: of the MODEL; conds: of positive and negative.

    alone: whether a picture of a batch is what it is alone, without AsynDM. by_background: whether the other node goes by
    the run's schedule, which is the background's. note: for the page.
    """

    name: str
    change: Callable[[Model], Model] = lambda model: model
    conds: Callable[[Conds], Conds] = lambda conds: conds
    alone: bool = True
    by_background: bool = False
    note: str = ""


def set_area(positive: list) -> list:
    return [*NODES.ConditioningSetArea().append(positive, 64, 96, 32, 16, 1.0)[0], *SECOND]


def set_mask(positive: list) -> list:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    return [*NODES.ConditioningSetMask().append(positive, mask, "default", 1.0)[0], *SECOND]


def set_range(positive: list) -> list:
    return [*NODES.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0], *SECOND]


def set_area_strength(positive: list) -> list:
    return [*NODES.ConditioningSetAreaStrength().append(positive, 0.4)[0], *SECOND]


def zeroed(conds: Conds) -> Conds:
    return {**conds, "negative": NODES.ConditioningZeroOut().zero_out(conds["negative"])[0]}


def text_box(positive: list) -> list:
    """GLIGEN, of random weights, with one box of text."""
    blocks = [block for block in bare().model.diffusion_model.modules() if isinstance(block, BasicTransformerBlock)]
    widths = [block.attn1.to_q.in_features for block in blocks]
    gated = [gligen.GatedSelfAttentionDense(width, CONTEXT, 4, width // 4) for width in widths]
    made = gligen.Gligen(gated, gligen.PositionNet(CONTEXT, CONTEXT), CONTEXT)
    generator = torch.Generator().manual_seed(13)
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return NODES.GLIGENTextBoxApply().append(positive, clip(), patcher(made), "a fox", 64, 64, 0, 64)[0]


@cache
def unclip_model() -> Model:
    """A small SD2.1 unCLIP: its vector is that of a picture, noised by a level of its own."""
    augmentation = {"noise_schedule_config": {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, "timestep_dim": POOLED}

    def family(config: Any, kind: ModelType, device: Any) -> Any:
        return comfy.model_base.SD21UNCLIP(config, augmentation, kind, device)

    config = unet_config(64, adm_in_channels=2 * POOLED, num_classes="sequential")
    return patcher(base_model(family, config, ModelType.V_PREDICTION))


def of_picture(positive: list) -> list:
    seen = SimpleNamespace(image_embeds=torch.randn(1, POOLED, generator=torch.Generator().manual_seed(14)))
    return NODES.unCLIPConditioning().apply_adm(positive, seen, 1.0, 0.1)[0]


def merged(model: Model) -> Model:
    """With a model of other weights."""
    other = make_model(channels=64, channel_mult=[1, 2, 4])
    generator = torch.Generator().manual_seed(15)
    for parameter in other.model.diffusion_model.parameters():
        parameter.data = parameter + 0.2 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return node("nodes_model_merging", "ModelMergeSimple", model, other, 0.5)


YES = (
    Row("LoRA", lora, note="on attention, convolutions and the layers that read the timestep"),
    Row("LoRA by hooks, with keyframes", conds=with_positive(hooked_lora), by_background=True),
    Row("attn2 patches (IPAdapter and kin)", attention_patch, note="the model's own attention is read beside them"),
    Row("Perturbed-Attention Guidance", patched_by("nodes_pag", "PerturbedAttentionGuidance", 3.0)),
    Row("Self-Attention Guidance", patched_by("nodes_sag", "SelfAttentionGuidance", 0.5, 2.0)),
    Row("FreeU", patched_by("nodes_freelunch", "FreeU", 1.1, 1.2, 0.9, 0.2)),
    Row("FreeU V2", patched_by("nodes_freelunch", "FreeU_V2", 1.3, 1.4, 0.9, 0.2)),
    Row("NAG", patched_by("nodes_nag", "NAGuidance", 3.0, 0.5, 1.5)),
    Row("APG", patched_by("nodes_apg", "APG", 1.0, 5.0, 0.0)),
    Row("CFG-Zero*", patched_by("nodes_cfg", "CFGZeroStar")),
    Row("TCFG", patched_by("nodes_tcfg", "TCFG")),
    Row("FreSca", patched_by("nodes_fresca", "FreSca", 1.0, 1.25, 3)),
    Row("Mahiro", patched_by("nodes_mahiro", "Mahiro"), alone=False),
    Row("RescaleCFG", patched_by("nodes_model_advanced", "RescaleCFG", 0.7), note="with every pixel's own noise level"),
    Row("TSR", patched_by("nodes_eps", "TemporalScoreRescaling", 0.95, 1.0), note="asked once for each noise level"),
    Row("Epsilon Scaling", patched_by("nodes_eps", "EpsilonScaling", 1.01)),
    Row("Perp-Neg", patched_by("nodes_perpneg", "PerpNeg", cond(5), 0.7), alone=False),
    Row("Token merging (ToMe)", patched_by("nodes_tomesd", "TomePatchModel", 0.3), alone=False),
    Row("HyperTile", patched_by("nodes_hypertile", "HyperTile", 64, 2, 0, False), alone=False),
    Row(
        "DeepShrink (PatchModelAddDownscale)",
        patched_by("nodes_model_downscale", "PatchModelAddDownscale", 1, 2.0, 0.0, 0.6, True, "bicubic", "bicubic"),
        by_background=True,
    ),
    Row("ModelMergeSimple", merged),
    Row("CFG Override", patched_by("nodes_custom_sampler", "CFGOverride", 2.0, 0.0, 0.6), by_background=True),
    Row("UNetCrossAttentionMultiply", patched_by("nodes_attention_multiply", "UNetCrossAttentionMultiply", 1.0, 1.2, 1.0, 1.0)),
    Row("ModelSamplingDiscrete", patched_by("nodes_model_advanced", "ModelSamplingDiscrete", "v_prediction", True),
        note="v-prediction, zsnr"),
    Row("LCM (ModelSamplingDiscrete)", patched_by("nodes_model_advanced", "ModelSamplingDiscrete", "lcm", False)),
    Row("ModelSamplingContinuousEDM", patched_by("nodes_model_advanced", "ModelSamplingContinuousEDM", "eps", 120.0, 0.002)),
    Row("Conditioning (Combine)", conds=with_positive(lambda p: NODES.ConditioningCombine().combine(p, SECOND)[0])),
    Row("Conditioning (Concat)", conds=with_positive(lambda p: NODES.ConditioningConcat().concat(p, SECOND)[0])),
    Row("Conditioning (Average)", conds=with_positive(lambda p: NODES.ConditioningAverage().addWeighted(p, SECOND, 0.7)[0])),
    Row("Conditioning (Set Area)", conds=with_positive(set_area)),
    Row("ConditioningSetAreaStrength", conds=with_positive(set_area_strength)),
    Row("Conditioning (Set Mask)", conds=with_positive(set_mask)),
    Row("ConditioningSetTimestepRange", conds=with_positive(set_range), by_background=True),
    Row("Conditioning Zero Out", conds=zeroed),
    Row("GLIGEN", conds=with_positive(text_box)),
    Row("unCLIP", lambda model: unclip_model(), with_positive(of_picture)),
    Row("Prompts of several lengths", conds=lambda conds: {**conds, "negative": cond(2, tokens=154)}),
)  # fmt: skip

REFUSED = (
    "dpm_adaptive", "dpm_fast", "heunpp2", "ipndm_v", "sa_solver", "sa_solver_pece"
)  # fmt: skip
"""ComfyUI's samplers that have no per-pixel formula."""

ELSEWHERE = (
    ("ControlNet, T2I adapter", "yes", "also union, chains, ranges, areas", "test_controlnet"),
    (
        "EasyCache, LazyCache",
        "yes, roughly",
        "they skip by the whole picture's change, as they do without AsynDM; words are not read in a step that they skip",
        "test_other_packs",
    ),
    (
        "ControlNets of Flux.1, SD3, SD3.5, Qwen-Image, HunyuanDiT; model patches of Z-Image, Qwen-Image, Anima",
        "yes",
        "with every token's own timestep",
        "test_transformer_controls",
    ),
    ("Controls of other packs", "yes, roughly", "one noise level for all pixels, with a warning", "test_controlnet"),
    (
        "Inpainting: Set Latent Noise Mask",
        "yes",
        "hard, soft and batch masks; known pixels at their own noise level",
        "test_inpainting",
    ),
    ("Inpainting: VAE Encode (for Inpainting)", "yes", "", "test_inpainting"),
    (
        "Models made for inpainting (concat), InstructPix2Pix",
        "yes",
        "InpaintModelConditioning, with and without noise_mask",
        "test_inpainting",
    ),
    (
        "Inpainting, known_pixels: clean",
        "yes",
        "not with preset paper; pixels that are 1 % or more to be drawn are not known",
        "test_inpainting",
    ),
    (
        "Inpainting, known_pixels: ahead",
        "yes",
        "not with preset paper; with a mask, or with region_denoise and background_denoise; soft masks lead in part",
        "test_inpainting",
    ),
    ("Differential Diffusion", "yes", "each pixel is set free by its own noise level; any strength", "test_inpainting"),
    ("Image to image, regional denoise", "yes", "", "test_regional_denoise"),
    ("CFGGuider, BasicGuider, DualCFGGuider", "yes", "with SamplerCustomAdvanced", "test_parity"),
    ("KSampler (Advanced), start and end steps", "yes", "regional denoise needs add_noise", "test_parity"),
    ("Perp-Neg Guider, Dual Model CFG Guider, guiders of other packs", "yes", "", "test_graphs"),
    ("Sampler nodes with options", "yes", "SamplerDPMPP_2M_SDE and kin: eta, s_noise, r, solver_type", "test_graphs"),
    ("Scheduler nodes", "yes", "AlignYourSteps, GITS, SDTurbo, Laplace, ...; any table that goes down", "test_graphs"),
    ("SplitSigmas, two stages", "yes", "AsynDM in one or both: a stage ends with all pixels level", "test_graphs"),
    (
        "One clock over KSampler (Advanced) in a row, or SplitSigmas",
        "yes",
        "with sigmas of Asynchronous Timestep Map; samplers with memory, and noise, begin anew in each part, as stock ones do",
        "test_split_runs",
    ),
    (
        "One clock over several samplers, of clips with sound",
        "yes",
        "if clip and sound come as the sampler left them",
        "test_nested",
    ),
    (
        "LTXVAddGuide, small-grid IC-LoRA guides",
        "yes",
        "guides are no part of the clip: no words, no masks in them",
        "test_nested",
    ),
    ("Several samplers in one graph", "yes", "each run by itself, even one within another", "test_graphs"),
    (
        "Tiled upscalers, detailers",
        "yes",
        "each tile is a run of its own: words are looked for in every tile, a painted mask is laid over every tile anew",
        "test_graphs",
    ),
    ("Batches (RepeatLatentBatch, LatentFromBatch, ...)", "yes", "each picture has its own regions", "test_graphs"),
    ("Several prompts in one conditioning, regions painted", "yes", "", "test_graphs"),
    (
        "Several prompts in one conditioning, regions by words",
        "refused",
        "the words are known of one prompt only",
        "test_graphs",
    ),
    ("LatentComposite, ThresholdMask, CLIP Set Last Layer", "yes", "and other nodes that only prepare", "test_graphs"),
    (
        "--lowvram, --novram, partly loaded models",
        "yes",
        "LoRA applied on the fly too; bit for bit as loaded whole",
        "test_machines",
    ),
    ("Models unloaded between runs", "yes", "", "test_machines"),
    ("fp16, bf16, fp8 weights", "yes", "timesteps stay float32; as near to the float32 picture as stock is", "test_machines"),
    (
        "torch.compile (TorchCompileModel)",
        "yes",
        "the first run compiles the model up to three times more, later ones not, with any number of timesteps; inductor too",
        "test_machines",
    ),
    (
        "Several GPUs (MultiGPU CFG Split)",
        "yes, roughly",
        "not run on two: ComfyUI's own split on two copies of the model on one CPU, with words, painted masks and ControlNets",
        "test_several_gpus",
    ),
    (
        "Apple GPUs (MPS)",
        "yes, roughly",
        "not run on one: no float64 and only operators that PyTorch has there, checked in every sampler",
        "test_machines",
    ),
    (
        "CFGZeroStar, CFGNorm, SkipLayerGuidanceDiT, RescaleCFG, Differential Diffusion, shifts, areas on transformers",
        "yes",
        "tested with Flux.1 and Qwen-Image",
        "test_transformers",
    ),
    ("Textual inversion, weights, long prompts", "yes", "", "test_tokens"),
    (
        "Words by the text encoders of the families below",
        "yes",
        "all that ComfyUI has for them but Gemma 4 (not run); vocabularies that come with a checkpoint (Llama 3, Mistral, "
        "gpt-oss, Gemma 2 and 3, UMT5, mT5, Jina) by stand-ins of their kind; Mistral's not in 0.8.0 with transformers 5",
        "test_text_encoders",
    ),
    (
        "Conditionings with pictures before the text (TextEncodeQwenImageEdit, ...)",
        "yes, roughly",
        "the words are those of the same text; one that differs in a word or two is not told from it there",
        "test_text_encoders",
    ),
    ("Wrappers and patches of other packs", "yes", "they are called as before", "test_state"),
    (
        "Clips: batches, noise masks, Differential Diffusion, areas, prompts' masks, every sampler",
        "yes",
        "a mask for all frames, or one for each",
        "test_clip_runs",
    ),
    (
        "Context windows on clips, regions painted",
        "yes",
        "the model sees its frames' part of the map; FreeNoise; before 0.33 not in mode concave",
        "test_clip_runs",
    ),
    ("Areas and masks of prompts, on clips with sound", "refused", "ComfyUI cannot place them either", "test_nested"),
    ("Context windows on clips, regions by words", "refused", "the attention would be that of a part", "test_clip_runs"),
    ("Tiles within one sampling", "refused", "they cut the latents under the map", "test_errors"),
    (
        "Samplers of other packs, and ComfyUI's within another pack's function",
        "refused",
        "told by identity, not by name: detailers that wrap the sde samplers, LanPaint, ...",
        "test_other_packs",
    ),
    (
        "Packs that evaluate the model in a way of their own",
        "refused",
        "DeepCache, Tiled Diffusion, presets of Automatic CFG, ...: the message names what stands between",
        "test_other_packs",
    ),
    (
        "Samplers without a per-pixel formula",
        "refused",
        f"{', '.join(REFUSED)}: they choose steps or noise for the picture as a whole, look at the step after the next, or "
        "(ipndm_v) have weights that do not add up to 1 where steps are uneven; the message lists those that have one",
        "test_errors",
    ),
    ("Diffusion transformers of images", "yes", "the families below", "test_transformers"),
    ("Diffusion transformers of video", "yes", "the families below", "test_transformer_clips"),
    (
        "LTX-Video, LTX-2 and MiniMax H3, with their sound",
        "yes",
        "every token of a clip has its own timestep; sound is told the schedule's; words and painted regions",
        "test_nested",
    ),
    (
        "Transformers with quantised weights, LoRA, torch.compile",
        "yes",
        "layers that compute in fp8 see ordinary batches; LoRA applied on the fly too; one more graph for maps; inductor too",
        "test_transformer_machines",
    ),
    ("Other transformers, and UNets of video", "refused", "by name, with the reason where there is one", "test_transformers"),
)
"""Rows whose tests are in other files: name, verdict, note, file."""


@cache
def bare() -> Model:
    """The tiny model, with enough channels for FreeU's two widths."""
    return make_model(channels=64, channel_mult=[1, 2, 4])


def sampled(model: Model, conds: Conds, rows: list[int], cfg: float = 5.0) -> Tensor:
    """The stock KSampler on pictures of one batch, each with the noise that it has there."""
    torch.manual_seed(0)
    image = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))[rows]
    latent = {"samples": image, "batch_index": rows}
    return NODES.common_ksampler(
        model, 7, STEPS, cfg, "dpmpp_2m", "karras", conds["positive"], conds["negative"], latent, denoise=0.9
    )[0]["samples"]


@cache
def alone_in_the_graph() -> Tensor:
    """The stock KSampler's latents without another node."""
    return sampled(bare(), PLAIN, [0])


@pytest.mark.parametrize("row", YES, ids=lambda row: row.name)
def test_yes(row: Row) -> None:
    """See the top of this file."""
    conds = row.conds(PLAIN)

    def model() -> Model:
        return row.change(bare())

    stock = [sampled(model(), conds, [n]) for n in range(2)]
    assert difference(stock[0], alone_in_the_graph()) > 1e-4, "the other node has no effect here"
    assert difference(sampled(plain(model(), NO_STRENGTH, strength=0.0), conds, [0]), stock[0]) < TOLERANCE
    half = painted(torch.nn.functional.interpolate(LEFT[None], size=(SIZE, SIZE))[0])
    assert difference(sampled(asyn(model(), half), conds, [0]), stock[0]) > 1e-3
    if not row.alone:
        return
    together = sampled(asyn(model(), painted(ALL, NONE)), conds, [0, 1])
    assert difference(together[1:], stock[1]) < BATCH
    if row.by_background:
        alone = sampled(asyn(model(), painted(ALL)), conds, [0])
    else:
        alone = sampled(asyn(model(), Regions(), mode="concave"), conds, [0])
    assert difference(together[:1], alone) < BATCH
    assert difference(alone, stock[0]) > 1e-3


@pytest.mark.parametrize("name", ["RescaleCFG", "TSR"])
def test_a_pixels_own_sigma_to_the_last_bit(name: str) -> None:
    """Where all pixels have one, it is ComfyUI's own; where pictures have several, each has its own."""
    (row,) = [row for row in YES if row.name == name]
    patched = row.change(bare())
    generator = torch.Generator().manual_seed(4)
    x, cond, uncond = (torch.randn(2, 4, SIZE, SIZE, generator=generator) for _ in range(3))
    levels = torch.tensor([3.7, 0.9])

    def guided(options: dict, rows: slice, sigma: Tensor) -> Tensor:
        args = {
            "cond": (x - cond)[rows], "uncond": (x - uncond)[rows], "cond_scale": 5.0, "input": x[rows], "sigma": sigma,
            "cond_denoised": cond[rows], "uncond_denoised": uncond[rows], "denoised": cond[rows],
            "model": SimpleNamespace(current_patcher=patched),
        }  # fmt: skip
        functions = [options.get("sampler_cfg_function"), *options.get("sampler_post_cfg_function", [])]
        (function,) = [function for function in functions if function is not None]
        return function(args)

    alone = [guided(patched.model_options, slice(n, n + 1), levels[n : n + 1]) for n in range(2)]
    assert difference(alone[0], guided(patched.model_options, slice(0, 1), levels[1:])) > 1e-3
    for n in range(2):
        even = PixelTimesteps(levels[n : n + 1], torch.zeros(1, SIZE, SIZE, dtype=torch.long))
        ours = with_own_sigmas(patched.model_options, lambda even=even: even)
        assert torch.equal(guided(ours, slice(n, n + 1), levels[:1]), alone[n])
    each = PixelTimesteps(levels, torch.arange(2).view(2, 1, 1).expand(2, SIZE, SIZE))
    ours = with_own_sigmas(patched.model_options, lambda: each)
    assert difference(guided(ours, slice(None), levels[:1].expand(2)), torch.cat(alone)) < 1e-6


VERDICTS = ("yes", "yes, roughly", "refused", "not applicable")


STRESS = """## Stress

`python -m tests.stress` runs random valid graphs against a live ComfyUI server: all samplers, odd sizes, masks,
conditionings, patches, guiders and two samplers with one clock, on UNets, transformers of pictures (the demo model's, and small
random ones of Flux.1, Z-Image and SD3) and of clips (of Wan 2.1 and LTX-Video); in between the run is cancelled, or
memory runs out, or another pack's patch fails, at a random call.
Each must end in a picture or in an error that helps. After them a fixed graph (the stock KSampler on
every model, and AsynDM KSampler) must give what it gave at first, bit for bit, and nothing may hang on the models.

Seen on ComfyUI 0.33.0, 350 graphs of seed 7 in one run, with no other end:

| | all | UNets | transformers | clips |
|---|---|---|---|---|
| graphs | 350 | 177 | 133 | 40 |
| a picture | 239 | 116 | 92 | 31 |
| refused with a reason | 60 | 35 | 20 | 5 |
| out of memory | 14 | 7 | 5 | 2 |
| cancelled | 18 | 12 | 6 | 0 |
| ended by another pack's patch | 6 | 4 | 1 | 1 |
| stock ComfyUI ends alike without AsynDM | 13 | 3 | 9 | 1 |

Where nothing may lag, 43 were the stock picture bit for bit; the fixed graph was unchanged all 169 times. After the graphs as
many tensors were alive as before them (1,289, 87.2 MiB), and no run. On ComfyUI 0.8.0, 60 graphs of
seeds 8 and 31 (25 with UNets, 22 with transformers, 13 with clips): 40 pictures, 12 refused, 6 ended by a cancel, memory or
another pack's patch, 2 as in stock ComfyUI.

An earlier run was longer, with the two UNets only: of 1,000 graphs of seed 1 in an hour 592 gave pictures, 261 were refused,
and one refusal was wrong, which is mended: a phrase chosen across a bracket of the prompt. What the server held:

| after graphs | 0 | 100 | 400 | 700 | 1,000 |
|---|---|---|---|---|---|
| live tensors | 698, 31.8 MiB | 698, 31.8 MiB | 698, 31.8 MiB | 698, 31.8 MiB | 698, 31.8 MiB |
| Python's containers, without the next line | 33,054 | 36,826 | 36,835 | 36,863 | 36,803 |
| those of keys in ComfyUI's cache of results | 1,094 | 44,382 | 161,541 | 272,928 | 384,602 |
| resident, after malloc gave back what is free | 978 MiB | 1,070 MiB | 1,104 MiB | 1,165 MiB | 1,210 MiB |

Nothing of AsynDM grows. What does is ComfyUI's: its cache remembers the key of every node that was asked for and not found,
which holds all that the node was made from. The same graphs without the pack's nodes grow alike (1,102 MiB resident after 150,
with them 1,105).

`python -m tests.stress --hostile` puts values of every kind into every input of every node, and sends requests that are none:
its 2,196 cases ended in 963 refusals, 1,031 refused by ComfyUI before they ran, 191 pictures and 11 errors that ComfyUI's own
nodes give alike (ComfyUI 0.33.0)."""
"""For the page; figures that were seen, not made by this test."""


FAMILIES_HEAD = """## Diffusion transformers

Every token of the picture has its own timestep, exactly: on tiny random models of ComfyUI's own classes, what asks for nothing
is stock, with attention that lets nothing through every token is what it would be at its own timestep everywhere, and with
attention each evaluation equals an independent reference (the network run on a copy of the picture for each timestep, their
tokens exchanged before every layer). So do batches whose pictures have different maps, odd sizes and bfloat16. Text, and
reference pictures, are told the noisiest level of their picture. Not in the table, because the mechanism is one for all: LoRA,
inpainting, areas, guidance nodes, the samplers.

"""
FAMILIES_NOTE = """
The numbers are versions of ComfyUI, and whether they have the family; further on, the only one with which it is tested. *even*:
nothing is asked for, or the map is the same everywhere: stock. *regions*: two regions in a picture against the independent
reference. *batch*: each picture its own map. *odd*: a size that is no whole number of tokens (–: ComfyUI itself has none such).
*words*: its attention to the words of the prompt is read, as found from outside (–: paint the regions). *compiled*: by
torch.compile; *quantised*: layers that compute in fp8, and quantised tensors (–: not tested).
"""
FAMILIES_TAIL = """
A family is one row in `nodes/comfy/families.py` and one tiny model in `tests/comfy/families.py`. The row says what the network
does not say itself: how large its tokens are, whether the picture comes first where it is joined to text, which modules
modulate text alone, and what follows the picture's tokens in its stream. With the tiny model, `pytest --whole
tests/comfy/test_transformers.py` shows whether the row is right: a timestep that it leaves unplaced raises, a wrong place fails
the tests of tokens alone. A network that spreads its timestep in a new way may need a rule in `asyndm_core/timestep_rows.py`,
never code of its own.
"""

CLIPS_HEAD = """## Video models

The same of clips, latents with frames: every token of every frame has its own timestep, and in every evaluation of a map each
clip of a batch its own map, against the independent reference. A frame that is given (image to video by a noise mask in Wan 2.2
5B, Cosmos Predict2) is told less noise as the model itself has it. Networks that take a timestep per token or frame themselves
(Wan, Cosmos Predict2) say the same to 1e-6. Wan's two experts are sampled by two samplers with one clock. A picture that Wan
VACE or Animate refers to is the first frame of the latents and no part of the clip: masks and words pass it by.

"""

SOUND_HEAD = """
Clips with sound are sampled as ComfyUI packs them. The sound keeps to the scheduler's noise levels, whatever the clip does.
Masks, given frames and keyframes are noise levels as these models have them. Keyframes that follow a clip are no part of it:
words are not looked for in them, and painted masks are not for them.

"""

COLUMNS: dict[str, tuple[Callable, ...]] = {
    "even": (
        test_transformers.test_what_asks_for_nothing_is_stock,
        test_transformers.test_a_uniform_map_given_as_rows_is_stock,
    ),
    "regions": (
        test_transformers.test_two_regions_are_exact,
        test_transformers.test_alone_every_token_is_at_its_own_timestep,
    ),
    "batch": (test_transformers.test_pictures_of_a_batch_at_different_sigmas,),
    "odd": (test_transformers.test_odd_sizes,),
    "words": (test_transformer_words.test_it_is_the_attention_to_the_words,),
    "compiled": (test_transformer_machines.test_compiled,),
    "quantised": (
        test_transformer_machines.test_fp8_layers_stay_in_fp8,
        test_transformer_machines.test_quantised_tensors,
    ),
}
"""What the table of families says, and the tests that it says it by."""
CLIP_COLUMNS: dict[str, tuple[Callable, ...]] = {
    "even": (test_transformer_clips.test_a_uniform_map_given_as_rows_is_stock, test_transformer_clips.test_bfloat16),
    "regions": (test_transformer_clips.test_every_token_of_every_frame_is_exact,),
    "odd": (test_transformer_clips.test_odd_sizes,),
    "words": COLUMNS["words"],
    "compiled": COLUMNS["compiled"],
    "quantised": (test_transformer_clips.test_fp8_layers_stay_in_fp8, test_transformer_clips.test_quantised_tensors),
}
"""The same of clips."""
EITHER = (test_ltx.test_every_token_is_at_its_own_level, test_minimax.test_every_token_is_at_its_own_level)
SOUND_COLUMNS: dict[str, tuple[Callable | tuple[Callable, ...], ...]] = {
    "even": (test_nested.test_what_asks_for_nothing_is_stock,),
    "regions": (EITHER, test_nested.test_alone_every_token_is_at_its_own_timestep),
    "odd": (EITHER,),
    "words": (
        (
            test_nested.test_words_are_read_where_the_clip_attends_to_the_text,
            test_nested.test_words_are_read_between_text_and_clip_of_minimax,
        ),
    ),
}
"""The same of clips with sound, and LTX-Video. Regions are against the timesteps per token that these networks take."""


LACKS = {version: lacking | clips.LACKS[version] for version, lacking in tested.LACKS.items()}


def names_of(test: Callable | tuple[Callable, ...]) -> set[str]:
    """The families that a test runs with, or either of several."""
    if isinstance(test, tuple):
        return set().union(*map(names_of, test))
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] == "name"]
    return {getattr(value, "values", (value,))[0] for value in mark.args[1]}


def cell(name: str, column: str, tests: Sequence[Callable | tuple[Callable, ...]]) -> str:
    """What a table says of a family, by the tests of a column."""
    if not all(name in names_of(test) for test in tests):
        return "–"
    having = [version for version, lacking in LACKS.items() if name not in lacking]
    without = [tested.ONE_AT_A_TIME] + [tested.NOT_ODD] * (column == "odd")
    working = [version for version in having if not any(name in names[version] for names in without)]
    return "yes" if working == having else ", ".join(working) or "–"


def table(names: Iterable[str], columns: Mapping[str, Sequence[Callable | tuple[Callable, ...]]]) -> str:
    """A line for each family."""
    heads = ["family", *LACKS, *columns]
    lines = [heads, ["---"] * len(heads)]
    for name in names:
        versions = ["–" if name in lacking else "yes" for lacking in LACKS.values()]
        lines.append([name, *versions, *(cell(name, column, tests) for column, tests in columns.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def families() -> str:
    """The tables of families."""
    pictures, frames = table(tested.FAMILIES, COLUMNS), table(tested.CLIPS, CLIP_COLUMNS)
    sound = table(test_nested.NAMES, SOUND_COLUMNS)
    return f"{FAMILIES_HEAD}{pictures}\n{FAMILIES_NOTE}{FAMILIES_TAIL}\n{CLIPS_HEAD}{frames}\n{SOUND_HEAD}{sound}\n"


def page() -> str:
    """docs/compatibility.md."""
    lines = [(row.name, "yes", row.note, "test_compatibility") for row in YES]
    ordered = sorted([*lines, *ELSEWHERE], key=lambda line: VERDICTS.index(line[1]))
    rows = "\n".join(f"| {name} | **{verdict}** | {note} | {file} |" for name, verdict, note, file in ordered)
    return f"""# What goes together with AsynDM

**yes**: tested on ComfyUI's own nodes with small random models, in ComfyUI 0.8.0 and 0.33.0 (a node that a version lacks is
left out there): the model and everything that needs the noise level is told that of every pixel, and where nothing lags the
picture is the stock one. **refused**: sampling stops with a message that names the node to bypass, instead of giving a
silently wrong picture.

| in the graph | | | tests/comfy |
|---|---|---|---|
{rows}

{families()}
{STRESS}
"""


def test_the_page_is_this_table() -> None:
    """With ASYNDM_WRITE_PAGES set, it is written anew."""
    if os.environ.get("ASYNDM_WRITE_PAGES"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
    assert set(REFUSED) == set(comfy.samplers.SAMPLER_NAMES) - set(SAMPLERS)
    files = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert {file for *_, file in ELSEWHERE} <= files
