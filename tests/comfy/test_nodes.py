"""The nodes as ComfyUI sees them: schemas, ids and their order, and a whole graph through ComfyUI's executor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyndm_pack
import comfy.samplers
import execution
import pytest
from asyndm_pack.asyndm_core.samplers import SAMPLERS
from comfy_api.latest import io
from tiny import clip, ksampler, latent, model, same
from torch import Tensor

import nodes as comfy_nodes

ROOT = Path(__file__).resolve().parents[2]

PROMISE: dict[str, tuple[str, list[tuple[str, str, bool]], list[tuple[str, str]]]] = {
    "AsynDM_CrossAttentionMask": (
        "Cross-Attention Mask",
        [
            ("clip", "CLIP", False),
            ("text", "STRING", False),
            ("targets", "STRING", False),
            ("threshold", "FLOAT", False),
            ("update", "COMBO", False),
            ("conditioning", "CONDITIONING", True),
            ("mask", "MASK", True),
            ("mask_mode", "COMBO", True),
            ("grow", "INT", True),
            ("feather", "FLOAT", True),
            ("lost_targets", "COMBO", True),
            ("hold", "INT", True),
            ("fade", "INT", True),
        ],
        [("conditioning", "CONDITIONING"), ("regions", "ASYNDM_REGIONS")],
    ),
    "AsynDM_TimestepMap": (
        "Asynchronous Timestep Map",
        [
            ("regions", "ASYNDM_REGIONS", False),
            ("curve", "COMBO", False),
            ("strength", "FLOAT", False),
            ("mode", "COMBO", False),
            ("previous", "ASYNDM_TIMESTEP_MAP", True),
            ("preset", "COMBO", True),
            ("region_denoise", "FLOAT", True),
            ("background_denoise", "FLOAT", True),
            ("known_pixels", "COMBO", True),
            ("lead", "FLOAT", True),
            ("sigmas", "SIGMAS", True),
        ],
        [("timestep_map", "ASYNDM_TIMESTEP_MAP")],
    ),
    "AsynDM_KSampler": (
        "AsynDM KSampler",
        [
            ("model", "MODEL", False),
            ("timestep_map", "ASYNDM_TIMESTEP_MAP", False),
            ("seed", "INT", False),
            ("steps", "INT", False),
            ("cfg", "FLOAT", False),
            ("sampler_name", "COMBO", False),
            ("scheduler", "COMBO", False),
            ("positive", "CONDITIONING", False),
            ("negative", "CONDITIONING", False),
            ("latent_image", "LATENT", False),
            ("denoise", "FLOAT", False),
            ("eta", "FLOAT", True),
            ("preview", "BOOLEAN", True),
        ],
        [("latent", "LATENT"), ("mask", "MASK"), ("timeline", "IMAGE")],
    ),
    "AsynDM_Apply": (
        "Apply AsynDM",
        [("model", "MODEL", False), ("timestep_map", "ASYNDM_TIMESTEP_MAP", False), ("preview", "BOOLEAN", True)],
        [("model", "MODEL")],
    ),
    "AsynDM_DemoModel": (
        "AsynDM Demo Model",
        [("network", "COMBO", True)],
        [("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
    ),
    "AsynDM_Compare": ("AsynDM Compare", [("image_a", "IMAGE", False), ("image_b", "IMAGE", False)], []),
}
"""Node ids, display names, inputs (id, type, optional) and outputs (name, type). Saved workflows rely on all of it: lines
may be added at the end of a list, never changed."""

CHOICES = {
    ("AsynDM_CrossAttentionMask", "update"): ["every step", "fixed"],
    ("AsynDM_CrossAttentionMask", "mask_mode"): ["limit", "add", "replace"],
    ("AsynDM_CrossAttentionMask", "lost_targets"): ["stop", "skip"],
    ("AsynDM_TimestepMap", "curve"): ["quadratic", "piecewise linear", "exponential", "linear"],
    ("AsynDM_TimestepMap", "mode"): ["asynchronous", "concave", "synchronous"],
    ("AsynDM_TimestepMap", "preset"): ["default", "paper"],
    ("AsynDM_TimestepMap", "known_pixels"): ["noised", "clean", "ahead"],
}
"""The choices of the pack's own combos, append-only too."""


def node_list() -> list[type[io.ComfyNode]]:
    """As ComfyUI asks for it."""

    async def ask() -> list[type[io.ComfyNode]]:
        extension = await asyndm_pack.comfy_entrypoint()
        return await extension.get_node_list()

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def schemas() -> dict[str, io.Schema]:
    """Validated and finalised, as at ComfyUI's start."""
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in node_list())}


def test_six_nodes(schemas: dict[str, io.Schema]) -> None:
    assert list(schemas) == [
        "AsynDM_CrossAttentionMask",
        "AsynDM_TimestepMap",
        "AsynDM_KSampler",
        "AsynDM_Apply",
        "AsynDM_DemoModel",
        "AsynDM_Compare",
    ]
    assert {schema.category for schema in schemas.values()} == {"AsynDM"}


@pytest.mark.parametrize("node_id", PROMISE)
def test_the_promise(schemas: dict[str, io.Schema], node_id: str) -> None:
    schema = schemas[node_id]
    name, inputs, outputs = PROMISE[node_id]
    assert schema.display_name == name
    assert [(i.id, i.get_io_type(), bool(i.optional)) for i in schema.inputs] == inputs
    assert [(o.display_name, o.get_io_type()) for o in schema.outputs] == outputs


@pytest.mark.parametrize("node_id, input_id", CHOICES)
def test_the_choices(schemas: dict[str, io.Schema], node_id: str, input_id: str) -> None:
    (combo,) = [i for i in schemas[node_id].inputs if i.id == input_id]
    assert list(combo.options) == CHOICES[node_id, input_id]
    assert combo.default in (None, combo.options[0])


@pytest.mark.parametrize("node_id", PROMISE)
def test_everything_is_explained(schemas: dict[str, io.Schema], node_id: str) -> None:
    schema = schemas[node_id]
    assert len(schema.description) > 40
    for entry in schema.inputs:
        assert entry.tooltip and len(entry.tooltip) > 15 and entry.tooltip[-1] in ".)", entry.id


@pytest.mark.parametrize("node_id", PROMISE)
def test_what_the_frontend_gets(schemas: dict[str, io.Schema], node_id: str) -> None:
    """The JSON of /object_info: made by ComfyUI from the class, in the promised order."""
    (node,) = [n for n in node_list() if n.GET_SCHEMA().node_id == node_id]
    info = node.INPUT_TYPES()
    order = [*info.get("required", {}), *info.get("optional", {})]
    assert order == [input_id for input_id, _, _ in PROMISE[node_id][1]]
    assert list(node.RETURN_TYPES) == [kind for _, kind in PROMISE[node_id][2]]
    assert list(node.RETURN_NAMES) == [name for name, _ in PROMISE[node_id][2]]
    advanced = {i for i in order if (info.get("optional", {}).get(i, (0, {}))[1] or {}).get("advanced")}
    hidden = {"grow", "feather", "lost_targets", "hold", "fade", "eta", "preview"}
    hidden |= {"preset", "region_denoise", "background_denoise", "known_pixels", "lead"}
    assert advanced == hidden & set(order)


# --- the pack in ComfyUI's hands -------------------------------------------------------------------------------------------


class TinyModel:
    """A node that gives a tiny random model."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def run(self) -> tuple:
        return model(), clip()


class Keep:
    """An output node that keeps what it gets."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True
    kept: dict[str, Any]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"name": ("STRING", {})},
            "optional": {"latent": ("LATENT",), "mask": ("MASK",), "image": ("IMAGE",)},
        }

    def run(self, name: str, **value: Any) -> dict:
        (Keep.kept[name],) = value.values()
        return {"result": ()}


class Server:
    """What the executor tells a browser."""

    client_id: str | None = None
    last_node_id: str | None = None

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data))


@pytest.fixture(scope="module")
def installed() -> None:
    """The pack loaded from its folder by ComfyUI's own loader, and two nodes of this test."""
    assert asyncio.run(comfy_nodes.load_custom_node(str(ROOT)))
    comfy_nodes.NODE_CLASS_MAPPINGS.update(TestTinyModel=TinyModel, TestKeep=Keep)


def execute(graph: dict[str, dict]) -> tuple[execution.PromptExecutor, Server]:
    """Validate and run a graph in ComfyUI's API format."""
    Keep.kept = {}
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", graph, None))
    assert valid, (error, node_errors)
    server = Server()
    cache = {"ram": 0.0, "ram_inactive": 0.0, "lru": 0}
    executor = execution.PromptExecutor(server, cache_type=execution.CacheType.CLASSIC, cache_args=cache)
    executor.execute(graph, "test", {"client_id": "test"}, outputs)
    return executor, server


def graph(**sampler: Any) -> dict[str, dict]:
    settings = {"seed": 7, "steps": 3, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sockets = {"positive": ["mask", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return {
        "model": {"class_type": "TestTinyModel", "inputs": {}},
        "mask": {
            "class_type": "AsynDM_CrossAttentionMask",
            "inputs": {
                "clip": ["model", 1], "text": "a red fox with a hat", "targets": "fox, hat:0.4", "threshold": 1.0,
                "update": "every step",
            },
        },
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "blurry"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 96, "batch_size": 2}},
        "map": {
            "class_type": "AsynDM_TimestepMap",
            "inputs": {"regions": ["mask", 1], "curve": "quadratic", "strength": 0.7, "mode": "asynchronous"},
        },
        "ours": {
            "class_type": "AsynDM_KSampler",
            "inputs": {"model": ["model", 0], "timestep_map": ["map", 0], **settings, **sockets, **sampler},
        },
        "apply": {"class_type": "AsynDM_Apply", "inputs": {"model": ["model", 0], "timestep_map": ["map", 0]}},
        "stock": {"class_type": "KSampler", "inputs": {"model": ["apply", 0], **settings, **sockets}},
        "keep ours": {"class_type": "TestKeep", "inputs": {"name": "ours", "latent": ["ours", 0]}},
        "keep mask": {"class_type": "TestKeep", "inputs": {"name": "mask", "mask": ["ours", 1]}},
        "keep timeline": {"class_type": "TestKeep", "inputs": {"name": "timeline", "image": ["ours", 2]}},
        "keep stock": {"class_type": "TestKeep", "inputs": {"name": "stock", "latent": ["stock", 0]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["ours", 2]}},
    }  # fmt: skip


def test_a_graph_through_the_executor(installed: None) -> None:
    """Both ways into the sampler give the same picture; the pictures on the nodes are announced to the browser."""
    executor, server = execute(graph())
    assert executor.success, executor.status_messages
    kept = Keep.kept
    assert kept["ours"]["samples"].shape == (2, 4, 12, 8)
    assert same(kept["ours"]["samples"], kept["stock"]["samples"])
    assert kept["mask"].shape == (4, 12, 8)
    assert kept["mask"].min() >= 0 and kept["mask"].max() == 1 and (kept["mask"].amax(dim=(1, 2)) == 1).all()
    assert kept["timeline"].shape[0] == 1 and kept["timeline"].shape[-1] == 3
    assert kept["timeline"].min() >= 0 and kept["timeline"].max() <= 1 and kept["timeline"].std() > 0.01
    announced = {data["node"]: data["output"] for event, data in server.sent if event == "executed"}
    assert {"mask", "map", "ours"} <= announced.keys()
    assert announced["ours"]["images"]
    assert "fox" in announced["mask"]["text"][0] and "hat:0.4" in announced["mask"]["text"][0]
    assert announced["mask"]["asyndm"] == [{"text": "a red fox with a hat", "targets": "fox, hat:0.4"}]
    schedule = {"curve": "quadratic", "strength": 0.7, "mode": "asynchronous", "preset": "default"}
    assert announced["map"]["asyndm"] == [schedule]
    conditioning = clip().encode_from_tokens_scheduled(clip().tokenize("a red fox with a hat"))
    negative = clip().encode_from_tokens_scheduled(clip().tokenize("blurry"))
    stock = ksampler(model(), scheduler="simple", steps=3, positive=conditioning, negative=negative, image=latent(12, 8, 2))
    assert (kept["ours"]["samples"] - stock).abs().max() > 1e-3 * stock.std()


def test_eta_of_ddim(installed: None) -> None:
    """ddim in our sampler node is the paper's (eta 1) unless eta is 0; other samplers do not know eta."""
    pictures: dict[str, Tensor] = {}
    for name, settings in {
        "default": {"sampler_name": "ddim"},
        "eta 0": {"sampler_name": "ddim", "eta": 0.0},
        "euler": {"sampler_name": "euler", "eta": 1.0},
    }.items():
        wanted = graph(preview=False, **settings)
        for other in ("apply", "stock", "keep stock", "keep mask", "keep timeline", "show"):
            del wanted[other]
        executor, _ = execute(wanted)
        assert executor.success, executor.status_messages
        pictures[name] = Keep.kept["ours"]["samples"]
    assert (pictures["default"] - pictures["eta 0"]).abs().max() > 0.1 * pictures["eta 0"].std()
    assert same(pictures["euler"], pictures["eta 0"])


def test_an_error_reaches_the_browser(installed: None) -> None:
    """With the node that it belongs to."""
    wanted = graph()
    wanted["mask"]["inputs"]["targets"] = "wolf"
    executor, server = execute(wanted)
    assert not executor.success
    (error,) = [data for event, data in server.sent if event == "execution_error"]
    assert error["node_id"] == "mask" and "'wolf'" in error["exception_message"] and "fox" in error["exception_message"]


def test_samplers_that_work(schemas: dict[str, io.Schema]) -> None:
    """Those are listed, in ComfyUI's order; with each, a map makes a difference."""
    (combo,) = [i for i in schemas["AsynDM_KSampler"].inputs if i.id == "sampler_name"]
    assert set(combo.options) == set(SAMPLERS) & set(comfy.samplers.KSampler.SAMPLERS)
    assert len(combo.options) > 20
    assert list(combo.options) == [name for name in comfy.samplers.KSampler.SAMPLERS if name in combo.options]
    assert combo.options[0] == comfy.samplers.KSampler.SAMPLERS[0]


def test_a_saved_sampler_that_does_not_work_is_refused_before_it_runs(installed: None) -> None:
    """With the list of those that do; on the node, and nothing else is wrong with the graph."""
    wanted = graph(sampler_name="heunpp2")
    _, _, _, node_errors = asyncio.run(execution.validate_prompt("test", wanted, None))
    (error,) = node_errors["ours"]["errors"]
    assert error["extra_info"]["input_name"] == "sampler_name"
    assert "'heunpp2' has no formula" in error["details"] and "dpmpp_2m_sde" in error["details"]
    assert "ours" in node_errors and set(node_errors) == {"ours"}


def test_a_linked_sampler_name(installed: None) -> None:
    """As packs give it: the output's type is ComfyUI's whole list."""

    class Names:
        RETURN_TYPES, FUNCTION, CATEGORY = (comfy.samplers.KSampler.SAMPLERS,), "run", "test"

        @classmethod
        def INPUT_TYPES(cls) -> dict:
            return {"required": {"name": ("STRING", {})}}

        def run(self, name: str) -> tuple:
            return (name,)

    comfy_nodes.NODE_CLASS_MAPPINGS["TestNames"] = Names
    wanted = graph(sampler_name=["names", 0])
    wanted["names"] = {"class_type": "TestNames", "inputs": {"name": "heun"}}
    executor, _ = execute(wanted)
    assert executor.success, executor.status_messages
    linked = Keep.kept["ours"]["samples"]
    execute(graph(sampler_name="heun"))
    assert same(linked, Keep.kept["ours"]["samples"])
    wanted["names"]["inputs"]["name"] = "heunpp2"
    executor, server = execute(wanted)
    (error,) = [data for event, data in server.sent if event == "execution_error"]
    assert error["node_id"] == "ours" and "'heunpp2' has no formula" in error["exception_message"]


def test_a_value_out_of_range_is_refused_before_it_runs(installed: None) -> None:
    wanted = graph()
    wanted["map"]["inputs"]["strength"] = 1.5
    _, _, _, node_errors = asyncio.run(execution.validate_prompt("test", wanted, None))
    assert "map" in node_errors and "strength" in str(node_errors["map"])
