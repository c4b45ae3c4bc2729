"""What ComfyUI's server reports of an error: the sentence that a user reads first, and no path of a module before it."""

from __future__ import annotations

import importlib
import inspect
import time
from typing import Any

import pytest
import torch
from asyndm_pack.asyndm_core.errors import AsynDMError
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ops import disable_weight_init
from comfy_process import ROOT, RUN_SECONDS, Server
from execution import full_type_name
from safetensors.torch import save_file

SD3 = "tiny_sd3.safetensors"


def graph(targets: str = "boat", sampler: str = "euler", model: str | None = None) -> dict[str, Any]:
    """The demo model, or another, by Apply AsynDM and KSampler."""
    loader = {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": "default"}}
    return {
        "1": {"class_type": "AsynDM_DemoModel", "inputs": {}},
        "2": {"class_type": "AsynDM_CrossAttentionMask", "inputs": {
            "clip": ["1", 1], "text": "a green boat", "targets": targets, "threshold": 1.0, "update": "every step"}},
        "3": {"class_type": "AsynDM_TimestepMap", "inputs": {
            "regions": ["2", 1], "curve": "quadratic", "strength": 0.7, "mode": "asynchronous"}},
        "4": loader if model else {"class_type": "AsynDM_DemoModel", "inputs": {}},
        "5": {"class_type": "AsynDM_Apply", "inputs": {"model": ["4", 0], "timestep_map": ["3", 0], "preview": False}},
        "6": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 128, "height": 128, "length": 5, "batch_size": 1}}
        if model
        else {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "7": {"class_type": "KSampler", "inputs": {
            "model": ["5", 0], "seed": 1, "steps": 2, "cfg": 4.5, "sampler_name": sampler, "scheduler": "normal",
            "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["6", 0], "denoise": 1.0}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip


def failure(server: Server, prompt: dict[str, Any]) -> dict[str, Any]:
    """Queue a prompt that fails while it runs: the server's report."""
    answer = server.post(prompt)
    assert not answer.get("node_errors") and "prompt_id" in answer, answer
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        entry = server.json(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])
        if entry:
            assert entry["status"]["status_str"] == "error", entry["status"]
            return dict(entry["status"]["messages"])["execution_error"]
        time.sleep(0.2)
    pytest.fail("the run did not end")


@pytest.fixture(scope="module")
def unsupported(server: Server) -> str:
    """The file of a tiny Stable Diffusion 3, which is given the latents of a video here, in the server's folder."""
    network = MMDiT(
        input_size=None, pos_embed_max_size=8, num_patches=64, depth=1, in_channels=16, adm_in_channels=2048,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64}},
        operations=disable_weight_init,
    )  # fmt: skip
    folder = server.log_file.parent / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_file({name: torch.zeros_like(value) for name, value in network.state_dict().items()}, folder / SD3)
    return SD3


def test_the_graph_runs_without_the_error(server: Server) -> None:
    server.run(graph())


def test_unknown_word(server: Server) -> None:
    report = failure(server, graph(targets="wolf"))
    assert (report["node_id"], report["exception_type"]) == ("2", "UnknownWordError")
    assert report["exception_message"].startswith("The target 'wolf'") and report["exception_message"].strip().endswith(".")


def test_unsupported_sampler(server: Server) -> None:
    report = failure(server, graph(sampler="heunpp2"))
    assert (report["node_id"], report["exception_type"]) == ("7", "UnsupportedSampler")
    assert report["exception_message"].startswith("The sampler 'heunpp2'") and "euler" in report["exception_message"]


def test_unsupported_model(server: Server, unsupported: str) -> None:
    report = failure(server, graph(model=unsupported))
    assert report["exception_type"] == "UnsupportedModelError"
    assert report["exception_message"].startswith("AsynDM does not support SD3")


def test_every_kind_of_error_goes_by_its_bare_name() -> None:
    files = [path for folder in ("asyndm_core", "nodes", "nodes/comfy") for path in (ROOT / folder).glob("[a-z]*.py")]
    modules = [
        importlib.import_module(".".join(("asyndm_pack", *path.relative_to(ROOT).with_suffix("").parts))) for path in files
    ]
    own = {
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and f"class {kind.__name__}(" in inspect.getsource(module)
    } - {AsynDMError}
    assert {kind.__name__ for kind in own} >= {"UnknownWordError", "UnsupportedModelError", "UnsupportedSampler"}
    for kind in own:
        assert issubclass(kind, AsynDMError) and full_type_name(kind) == kind.__name__, "derive it from AsynDMError"
