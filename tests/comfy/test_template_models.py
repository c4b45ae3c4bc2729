"""Templates for models that are downloaded: they run in ComfyUI's executor, with tiny random models in the place of the files,
whose loaders and text encoders are ComfyUI's own."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.ops
import comfy.sd
import comfy.utils
import execution
import folder_paths
import numpy as np
import pytest
from asyndm_pack.benchmarks.own_checkpoint import __main__ as command
from clips import CLIPS, clip_model
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan import vae2_2
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import TAESD
from families import MODELS, SD3, TEXT, make_transformer, randomise
from PIL import Image
from test_nodes import Server
from test_server import ids_of, to_api
from test_text_encoders import clip, small_eyes
from test_workflows import EXTRAS, FILES, WORKFLOWS, lacks, shown
from torch import Tensor, nn

import nodes

ROOT = Path(__file__).resolve().parents[2]
SIDE, STEPS, LENGTH = 128, 3, 9


def tiny_autoencoder() -> nn.Module:
    """Of 16 channels, for latents of 1/8 of the size."""
    return TAESD(latent_channels=16)


def qwen_autoencoder() -> nn.Module:
    """Of Qwen-Image's class, whose latents have frames."""
    halved = [False, True, True]
    return WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=halved)


class SmallWan22(vae2_2.WanVAE):
    """Of Wan 2.2 5B's class. ComfyUI knows its width beforehand."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**{**config, "dim": 8, "dec_dim": 8})


def wan22_autoencoder() -> nn.Module:
    """For latents of 48 channels, of 1/16 of the size."""
    return SmallWan22(z_dim=48, temperal_downsample=[False, True, True])


LTX_VAE = {
    "dims": 3, "latent_channels": 128, "patch_size": 4, "norm_layer": "pixel_norm", "latent_log_var": "uniform",
    "use_quant_conv": False, "causal_decoder": False, "encoder_base_channels": 8, "decoder_base_channels": 8,
    "blocks": [["res_x", 1], ["compress_all", 1], ["res_x", 1], ["compress_all", 1], ["res_x", 1], ["compress_all", 1],
               ["res_x", 1]],
}  # fmt: skip


def ltx_autoencoder() -> nn.Module:
    """Of LTX-Video's class: its file says how wide it is."""
    made = VideoVAE(config=LTX_VAE)
    made.config = LTX_VAE  # which that of 0.8.0 does not keep
    return made


def minimax_autoencoder() -> nn.Module:
    """Of MiniMax H3's class for clips."""
    from comfy.ldm.minimax import vae

    return vae.MiniMaxH3VideoVAE()


def minimax_sound() -> nn.Module:
    """Of MiniMax H3's class for sound."""
    from comfy.ldm.minimax import audio_vae

    return audio_vae.MiniMaxH3AudioVAE()


def narrow_minimax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, small. ComfyUI knows their widths beforehand."""
    from comfy.ldm.minimax import audio_vae, vae

    for module, kind, config in (
        (vae, "MiniMaxH3VideoVAE", {"ch": 32, "ch_mult": (1, 1, 1, 1, 1, 1)}),
        (vae, "ViT3DDecoder", {"num_layers": 1, "heads": 2}),
        (audio_vae, "MiniMaxH3AudioVAE", {"encoder_dim": 2, "latent_dim": 64, "decoder_dim": 128}),
    ):
        monkeypatch.setattr(module, kind, partial(getattr(module, kind), **config))


def flux2_autoencoder() -> nn.Module:
    """Of Flux.2's class. ComfyUI reads the width of its decoder from the file; that of the encoder is given."""
    wide = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
            "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
            "batch_norm_latent": True}  # fmt: skip
    return AutoencoderKL(ddconfig=dict(wide), embed_dim=32, decoder_ddconfig={**wide, "ch": 32})


class Tiny(NamedTuple):
    """What stands in for a template's files.

    family: its network, of families.py. text: what of that network changes, so that it takes the text of the encoder.
    encoder: of test_text_encoders. sound: the autoencoder of its sound, where it has one. steps: of its run; more where most of
    them are at much noise, which the map changes little.
    """

    family: str
    text: Mapping[str, Any]
    encoder: str
    autoencoder: Callable[[], nn.Module] = tiny_autoencoder
    sound: Callable[[], nn.Module] | None = None
    steps: int = STEPS


ANIMA = Tiny("Anima", {}, "Anima", qwen_autoencoder)
KREA2 = Tiny("Krea 2", {"txtlayers": 12, "txtdim": 16}, "Krea2", qwen_autoencoder)
Z_IMAGE = Tiny("Z-Image", {"cap_feat_dim": 16}, "Z-Image")
KLEIN = Tiny("Flux.2 Klein", {"context_in_dim": 48}, "Flux.2 Klein", flux2_autoencoder)
OF_FLUX = {"context_in_dim": 16, "vec_in_dim": 16}
OF_4096 = {**SD3["context_embedder_config"], "params": {"in_features": 4096, "out_features": 128}}
SD35 = Tiny("Stable Diffusion 3", {"adm_in_channels": 32, "context_embedder_config": OF_4096}, "SD3")
WAN = {"text_dim": 16}
WAN_5B = Tiny("Wan 2.2 5B", WAN, "Wan", wan22_autoencoder)
TINY = {
    "asyndm_z_image": Z_IMAGE,
    "asyndm_z_image_remove": Z_IMAGE,
    "asyndm_qwen_image": Tiny("Qwen-Image", {"joint_attention_dim": 16}, "Qwen-Image", qwen_autoencoder),
    "asyndm_qwen_image_edit": Tiny("Qwen-Image-Edit 2511", {"joint_attention_dim": 16}, "Qwen-Image", qwen_autoencoder),
    "asyndm_krea2": KREA2,
    "asyndm_krea2_remove": KREA2,
    "asyndm_flux2_klein": KLEIN,
    "asyndm_flux2_klein_edit": KLEIN,
    "asyndm_flux1": Tiny("Flux.1 dev", OF_FLUX, "Flux"),
    "asyndm_flux1_kontext_edit": Tiny("Flux.1 Kontext", OF_FLUX, "Flux"),
    "asyndm_sd35": SD35,
    "asyndm_sd35_edit": SD35,
    "asyndm_anima": ANIMA,
    "asyndm_anima_edit": ANIMA,
    "asyndm_wan22_t2v": Tiny("Wan 2.1 and 2.2 T2V", WAN, "Wan", qwen_autoencoder),
    "asyndm_wan22_i2v": Tiny("Wan 2.1 and 2.2 I2V", WAN, "Wan", qwen_autoencoder),
    "asyndm_wan22_5b_edit": WAN_5B,
    "asyndm_wan22_5b_inpaint": WAN_5B,
    "asyndm_ltxv": Tiny("LTX-Video", {"caption_channels": 16}, "LTX-Video", ltx_autoencoder),
    "asyndm_minimax_h3": Tiny(
        "MiniMax H3 with a curve", {"text_dim": 16}, "MiniMax H3", minimax_autoencoder, minimax_sound, steps=8
    ),
}


@pytest.fixture(scope="module")
def object_info() -> dict[str, Any]:
    """The pack and the extra nodes loaded by ComfyUI's own loader; the inputs of all nodes."""

    async def load() -> None:
        extras = Path(nodes.__file__).parent / "comfy_extras"
        for path in (ROOT, *(extras / name for name in EXTRAS)):
            assert await nodes.load_custom_node(str(path), module_parent="comfy_extras" if path != ROOT else "custom_nodes")

    asyncio.run(load())
    return {name: {"input": node.INPUT_TYPES()} for name, node in nodes.NODE_CLASS_MAPPINGS.items()}


def network(tiny: Tiny) -> Any:
    """A new MODEL of a template's family."""
    model = make_transformer(tiny.family) if tiny.family in MODELS else clip_model.__wrapped__(tiny.family)
    if tiny.family == "Anima":
        from comfy.ldm.anima.model import LLMAdapter

        ops = comfy.ops.disable_weight_init
        adapter = LLMAdapter(source_dim=1024, target_dim=TEXT, model_dim=32, num_layers=1, num_heads=2, operations=ops)
        randomise(adapter)
        model.model.diffusion_model.llm_adapter = adapter
    return model


@pytest.fixture
def prompt(
    request: pytest.FixtureRequest, object_info: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A template as it is sent, on a picture that is quick to draw, while tiny models stand where its files would be."""
    name: str = request.param
    if lacking := lacks(WORKFLOWS[name], shown(object_info["CLIPLoader"]["input"])):
        pytest.skip(lacking)
    tiny = TINY[name]
    kinds = MODELS if tiny.family in MODELS else CLIPS
    family = kinds[tiny.family]
    monkeypatch.setitem(kinds, tiny.family, family._replace(network={**family.network, **tiny.text}))
    model, encoder = network(tiny), clip(tiny.encoder)
    if ids_of(to_api(WORKFLOWS[name], object_info), "TextEncodeQwenImageEditPlus"):
        small_eyes(encoder)
    if tiny.sound is minimax_sound:
        narrow_minimax(monkeypatch)

    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for node in WORKFLOWS[name]["nodes"]:
        for file in node["properties"].get("models", ()):
            folder = tmp_path / file["directory"]
            folder.mkdir(exist_ok=True)
            extensions = folder_paths.folder_names_and_paths[file["directory"]][1]
            monkeypatch.setitem(folder_paths.folder_names_and_paths, file["directory"], ([str(folder)], extensions))
            (folder / file["name"]).touch()
            if file["directory"] == "vae":
                made = tiny.sound if tiny.sound and "audio" in file["name"] else tiny.autoencoder
                comfy.utils.save_torch_file(weights(made()), str(folder / file["name"]))

    def load_clip(ckpt_paths: list[str], clip_type: Any, **_: Any) -> Any:
        (loader,) = (node for node in WORKFLOWS[name]["nodes"] if node["type"].endswith("CLIPLoader"))
        assert len(ckpt_paths) == len(loader["properties"]["models"])
        assert clip_type.name.lower() in loader["widgets_values"]
        return encoder

    def load_checkpoint(*_: Any, **__: Any) -> tuple:
        autoencoder = tiny.autoencoder()
        metadata = {"config": json.dumps({"vae": getattr(autoencoder, "config", None)})}
        return model, encoder, comfy.sd.VAE(sd=weights(autoencoder), metadata=metadata), None

    encode = comfy.sd.VAE.encode

    def encode_small(self: Any, pixels: Tensor) -> Tensor:
        """References are made of a million pixels, whatever the picture's size is."""
        shrink = max(1, pixels.shape[1] // SIDE)
        return encode(self, pixels[:, ::shrink, ::shrink])

    monkeypatch.setattr(comfy.sd.VAE, "encode", encode_small)
    monkeypatch.setattr(vae2_2, "WanVAE", SmallWan22)
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", load_checkpoint)
    monkeypatch.setattr(comfy.sd, "load_diffusion_model", lambda *_, **__: model)
    monkeypatch.setattr(comfy.sd, "load_clip", load_clip)
    return small(to_api(WORKFLOWS[name], object_info), tiny.steps)


def weights(network: nn.Module) -> dict[str, Any]:
    """Random ones."""
    randomise(network)
    with suppress(AttributeError):
        network.bn.running_var.data.fill_(1.0)
    return {key: tensor.contiguous() for key, tensor in network.state_dict().items()}


def small(prompt: dict[str, Any], steps: int) -> dict[str, Any]:
    """A prompt for a small picture, in few steps."""
    for number in ids_of(prompt, "FluxKontextImageScale"):
        image = prompt[number]["inputs"]["image"]
        inputs = {"image": image, "upscale_method": "area", "width": SIDE, "height": SIDE, "crop": "disabled"}
        prompt[number] = {"class_type": "ImageScale", "inputs": inputs}
    for number in ids_of(prompt, "CreateVideo"):
        prompt[f"{number}000"] = {"class_type": "SaveImage", "inputs": {"images": prompt[number]["inputs"]["images"]}}
    for node in prompt.values():
        if node["class_type"] == "SolidMask":  # a part of the picture, whatever the size
            continue
        inputs = node["inputs"]
        changes = {"width": SIDE, "height": SIDE, "steps": steps, "megapixels": (SIDE / 1024) ** 2, "length": LENGTH}
        if node["class_type"] == "EmptyImage" and inputs["batch_size"] > 1:
            changes["batch_size"] = LENGTH - 1
        for key in ("start_at_step", "end_at_step"):
            if 0 < inputs.get(key, 0) < inputs.get("steps", 0):
                changes[key] = steps - 1
        inputs.update({key: value for key, value in changes.items() if key in inputs and not isinstance(inputs[key], list)})
    return prompt


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], list[np.ndarray]]]:
    """Runs prompts; gives the pictures that they save."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    cache = {"ram": 0.0, "ram_inactive": 0.0, "lru": 0}
    executor = execution.PromptExecutor(Server(), cache_type=execution.CacheType.CLASSIC, cache_args=cache)
    runs = 0

    def run(prompt: dict[str, Any]) -> list[np.ndarray]:
        nonlocal runs
        runs += 1
        for number in ids_of(prompt, "SaveImage"):
            prompt[number]["inputs"]["filename_prefix"] = f"run_{runs}_{number}"
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
        assert valid, (error, node_errors)
        executor.execute(prompt, f"test {runs}", {"client_id": "test"}, outputs)
        assert executor.success, executor.status_messages[-1]
        files = sorted(tmp_path.glob(f"run_{runs}_*.png"))
        assert len(files) >= len(ids_of(prompt, "SaveImage"))
        assert len(list(tmp_path.glob("video/*"))) >= len(ids_of(prompt, "SaveVideo"))
        return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]

    yield run
    folder_paths.set_output_directory(before)


def synchronous(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same with every map's mode as its note says, to compare."""
    changed = copy.deepcopy(prompt)
    for number in ids_of(changed, "AsynDM_TimestepMap"):
        changed[number]["inputs"]["mode"] = "synchronous"
    return changed


def without(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same with ComfyUI's own nodes in the places of the pack's."""
    stock = {number: node for number, node in copy.deepcopy(prompt).items() if "Compare" not in node["class_type"]}
    instead: dict[str, Any] = {}
    for number in ids_of(stock, "AsynDM_CrossAttentionMask"):
        inputs = stock[number]["inputs"]
        stock[number] = {"class_type": "CLIPTextEncode", "inputs": {name: inputs[name] for name in ("clip", "text")}}
        if "conditioning" in inputs:
            instead[number] = inputs["conditioning"]
    for number in ids_of(stock, "AsynDM_Apply"):
        instead[number] = stock.pop(number)["inputs"]["model"]
    for number in ids_of(stock, "AsynDM_KSampler"):
        inputs = stock[number]["inputs"]
        dropped = ("timestep_map", "eta", "preview")
        stock[number] = {"class_type": "KSampler", "inputs": {key: inputs[key] for key in inputs if key not in dropped}}
    for number in ids_of(stock, "AsynDM_TimestepMap"):
        del stock[number]
    for node in stock.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in instead:
                node["inputs"][key] = instead[value[0]]
    return stock


def test_every_downloaded_model_has_its_tiny_one() -> None:
    """Checkpoints of SD1.5 and SDXL are tested everywhere else."""
    loading = {name for name, workflow in WORKFLOWS.items() if any(node["type"] in FILES for node in workflow["nodes"])}
    assert set(TINY) == loading - {"asyndm_sd15", "asyndm_sdxl"}


@pytest.mark.parametrize("prompt", TINY, indirect=True)
def test_it_runs(prompt: dict[str, Any], run: Callable[[dict[str, Any]], list[np.ndarray]]) -> None:
    """Its words are read and its map acts; in mode synchronous it is ComfyUI's own graph, bit for bit."""
    ours, level = run(prompt), run(synchronous(prompt))
    assert len(ours) == len(level) > 0 and all(image.std() > 5 for image in ours)
    changed = [np.abs(a - b).max() > 2 for a, b in zip(ours, level, strict=True)]
    assert sum(changed) >= (LENGTH if ids_of(prompt, "SaveVideo") else len(ours))  # of clips, the one before is saved too
    given = [value for node in prompt.values() for value in node["inputs"].values()]
    if not any([number, 1] in given for number in ids_of(prompt, "AsynDM_KSampler")):  # the mask, which KSampler has not
        for a, b in zip(level, run(without(prompt)), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "prompt",
    ["asyndm_z_image", *(pytest.param(f"asyndm_{name}", marks=pytest.mark.whole) for name in ("qwen_image", "flux1"))],
    indirect=True,
)
def test_the_benchmark_takes_a_model_in_parts(
    prompt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Its files are found where Load Diffusion Model, Load CLIP and Load VAE find them."""
    monkeypatch.setattr(command, "load_pack", lambda cpu: None)
    loaders = [node["inputs"] for node in prompt.values() if "Loader" in node["class_type"]]
    given = {name: value for inputs in loaders for name, value in inputs.items()}
    encoders = [given[name] for name in ("clip_name", "clip_name1", "clip_name2") if name in given]
    files = ["--diffusion-model", given["unet_name"], "--text-encoders", *encoders, "--vae", given["vae_name"]]
    (tmp_path / "prompts.txt").write_text("a red fox in a hat | fox", encoding="utf-8")
    out = tmp_path / "out"
    call = [*files, "--encoder-type", given["type"], "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out)]
    short = ["--size", str(SIDE), "--steps", "4", "--cfg", "2", "--scheduler", "simple", "--seeds", "1"]
    assert command.main([*call, *short, "--clip", str(tmp_path / "no such CLIP")]) == 0
    with Image.open(out / "000_1.jpg") as strip:
        level, concave, late = np.array(strip).astype(int).reshape(SIDE, 3, SIDE, 3).transpose(1, 0, 2, 3)
    assert level.std() > 5 and np.abs(level - late).max() > 8 and np.abs(concave - late).max() > 8
    assert json.loads((out / "scores.json").read_text(encoding="utf-8"))["text_encoders"] == encoders


def test_parts_go_together(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["--diffusion-model", "a.safetensors", "--prompts", "b.txt"])
    assert "--text-encoders, --encoder-type and --vae go together" in capsys.readouterr().err
