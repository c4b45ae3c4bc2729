"""Every template fits the nodes of the ComfyUI that is tested: types, links, widget values, layout, thumbnail."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nodes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
MINIMAX = [path.name for path in (Path(nodes.__file__).parent / "comfy_extras").glob("nodes_minimax_h3.py")]
"""Not in ComfyUI 0.8.0."""
EXTRAS = (
    "nodes_audio.py", "nodes_cfg.py", "nodes_custom_sampler.py", "nodes_edit_model.py", "nodes_flux.py", "nodes_hunyuan.py",
    "nodes_latent.py", "nodes_lt.py", "nodes_mask.py", *MINIMAX, "nodes_model_advanced.py", "nodes_post_processing.py",
    "nodes_primitive.py", "nodes_qwen.py", "nodes_sd3.py", "nodes_video.py", "nodes_wan.py",
)  # fmt: skip
"""The files of comfy_extras whose nodes the templates use."""
FILES = {
    "CheckpointLoaderSimple": ("ckpt_name",), "UNETLoader": ("unet_name",), "VAELoader": ("vae_name",),
    "CLIPLoader": ("clip_name",), "DualCLIPLoader": ("clip_name1", "clip_name2"),
}  # fmt: skip
"""Nodes that load a model, and their widgets that name files: the user's own, or to be downloaded."""
NEWER = {"krea2", "minimax"}
"""Kinds of text encoders that ComfyUI 0.8.0 has not."""
NOTES = {"MarkdownNote"}
"""Nodes that only the frontend knows."""
WIDGETS: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
CHOICE = "COMFY_DYNAMICCOMBO_V3"
"""A widget whose value brings further widgets."""
CONTROL = ("fixed", "increment", "decrement", "randomize")

Inputs = dict[str, tuple]


@pytest.fixture(scope="module")
def classes() -> dict[str, Any]:
    """All node classes a template may use, by id: ComfyUI's core, the extras above, and the pack's."""

    async def load() -> list[Any]:
        for name in EXTRAS:
            path = Path(nodes.__file__).parent / "comfy_extras" / name
            if not await nodes.load_custom_node(str(path), module_parent="comfy_extras"):
                raise RuntimeError(f"ComfyUI could not load its own {path.name}.")
        extension = await sys.modules["asyndm_pack"].comfy_entrypoint()
        return await extension.get_node_list()

    own = asyncio.run(load())
    return {**nodes.NODE_CLASS_MAPPINGS, **{node.GET_SCHEMA().node_id: node for node in own}}


def shown(declared: Mapping[str, Any]) -> Inputs:
    """All inputs of a declaration in the order of their widgets: name -> (type, options)."""
    pairs = itertools.chain(declared.get("required", {}).items(), declared.get("optional", {}).items())
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in pairs}


def inputs_of(node_class: Any) -> Inputs:
    """All inputs of a node: name -> (type, options)."""
    return shown(node_class.INPUT_TYPES())


def widgets_of(inputs: Inputs, values: Sequence[Any] = ()) -> Iterator[tuple[str, str, dict]]:
    """The inputs that are widgets, the extra entry that follows a seed, and after a choice the widgets that it brings.

    values: of the widgets, in their order; where there are none, the first choice.
    """
    given = iter(values)

    def walk(inputs: Inputs, before: str) -> Iterator[tuple[str, str, dict]]:
        for name, (kind, options) in inputs.items():
            kind, options = ("COMBO", {**options, "options": kind}) if isinstance(kind, list) else (kind.split(",")[0], options)
            if kind == CHOICE:
                brought = {option["key"]: option["inputs"] for option in options["options"]}
                value = next(given, next(iter(brought)))
                yield before + name, "COMBO", {"options": list(brought)}
                yield from walk(shown(brought.get(value, {})), f"{before}{name}.")
            elif kind == "COMBO" or kind in WIDGETS:
                next(given, None)
                yield before + name, kind, options
                if options.get("control_after_generate"):
                    next(given, None)
                    yield "control_after_generate", "COMBO", {"options": CONTROL}

    return walk(inputs, "")


def value_problem(value: Any, kind: str, options: dict) -> str | None:
    """What is wrong with a widget's value, or None."""
    if kind == "COMBO":
        return None if value in options["options"] else f"{value!r} is not one of {list(options['options'])[:6]}"
    if not isinstance(value, WIDGETS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        return f"{value!r} is no {kind}"
    if kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
        return f"{value!r} is out of range"
    return None


def link_problems(workflow: dict, classes: dict[str, Any]) -> Iterator[str]:
    """Links whose two ends do not agree with each other, with the list of links, or with the nodes' schemas."""
    by_id = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    for number, (source, output, target, slot, kind) in ((link[0], link[1:]) for link in workflow["links"]):
        if source not in by_id or target not in by_id:
            yield f"link {number} has an end at no node"
            continue
        ends = by_id[source]["outputs"][output], by_id[target]["inputs"][slot]
        if number not in (ends[0]["links"] or ()) or ends[1]["link"] != number:
            yield f"link {number} is not known at both its ends"
        produced = classes[by_id[source]["type"]].RETURN_TYPES[output]
        wanted = inputs_of(classes[by_id[target]["type"]]).get(ends[1]["name"], (None,))[0]
        if not kind == ends[0]["type"] == ends[1]["type"] == produced == wanted:
            yield f"link {number} from {produced} to {wanted} is written down as {kind}"
    for node in workflow["nodes"]:
        used = [slot["link"] for slot in node.get("inputs", ()) if slot["link"] is not None]
        used += [number for slot in node.get("outputs", ()) for number in slot["links"] or ()]
        yield from (f"node {node['id']} names link {number}, which is not listed" for number in used if number not in links)


def node_problems(node: dict, node_class: Any) -> Iterator[str]:
    """Sockets that a run needs but are open, and widget values that do not fit."""
    inputs, where = inputs_of(node_class), f"node {node['id']} ({node['type']})"
    linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
    values = node.get("widgets_values", [])
    widgets = list(widgets_of(inputs, values))
    for name in set(node_class.INPUT_TYPES().get("required", {})) - {name for name, *_ in widgets} - linked:
        yield f"{where}: required input {name} is not connected"
    for slot in node["inputs"]:
        if slot["name"] not in inputs:
            yield f"{where}: there is no input {slot['name']}"
    outputs = tuple(slot["type"] for slot in node["outputs"])
    if node_class.RETURN_TYPES and outputs != tuple(node_class.RETURN_TYPES)[: len(outputs)]:  # those that save had none once
        yield f"{where}: it gives {node_class.RETURN_TYPES}, and not {outputs}"
    lacking = [name for name, _, options in widgets[len(values) :] if "default" not in options and "options" not in options]
    if len(values) > len(widgets) or lacking:
        yield f"{where}: {len(values)} widget values for {len(widgets)} widgets"
        return
    for value, (name, kind, options) in zip(values, widgets, strict=False):  # widgets that came later have their defaults
        problem = None if name in FILES.get(node["type"], ()) else value_problem(value, kind, options)
        if problem:
            yield f"{where}, {name}: {problem}"


def problems(workflow: dict, classes: dict[str, Any]) -> list[str]:
    """Everything that keeps a template from loading whole and running."""
    missing = [node["type"] for node in workflow["nodes"] if node["type"] not in classes.keys() | NOTES]
    if missing:
        return [f"there is no node {name}" for name in missing]
    found = list(link_problems(workflow, classes))
    ids = [node["id"] for node in workflow["nodes"]]
    if len(set(ids)) != len(ids) or max(ids) > workflow["last_node_id"]:
        found.append("node ids are not unique, or last_node_id is too small")
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            found.extend(node_problems(node, classes[node["type"]]))
    return found


def test_there_are_templates() -> None:
    assert {
        "asyndm_demo",
        "asyndm_painted_mask",
        "asyndm_triplet",
        "asyndm_compare",
        "asyndm_sd15",
        "asyndm_sdxl",
    } <= WORKFLOWS.keys()


def lacks(workflow: dict, clip_loader: Inputs) -> str | None:
    """What a template needs that this ComfyUI is too old for, or None. clip_loader: what its CLIPLoader takes."""
    for node in workflow["nodes"]:
        if node["type"] == "CLIPLoader" and node["widgets_values"][1] in NEWER:
            kind = node["widgets_values"][1]
            if kind not in clip_loader["type"][0]:
                return f"this ComfyUI has no {kind} in {node['type']}"
    return None


@pytest.mark.parametrize("name", WORKFLOWS)
def test_fits_the_nodes(name: str, classes: dict[str, Any]) -> None:
    if lacking := lacks(WORKFLOWS[name], inputs_of(classes["CLIPLoader"])):
        pytest.skip(lacking)
    assert problems(WORKFLOWS[name], classes) == []


def _find(workflow: dict, kind: str) -> dict:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def _drop_a_value(workflow: dict) -> None:
    _find(workflow, "AsynDM_KSampler")["widgets_values"].pop(1)


def _swap_two_values(workflow: dict) -> None:
    values = _find(workflow, "AsynDM_KSampler")["widgets_values"]
    values[4], values[5] = values[5], values[4]


def _strength_out_of_range(workflow: dict) -> None:
    _find(workflow, "AsynDM_TimestepMap")["widgets_values"][1] = 1.5


def _rename_a_node(workflow: dict) -> None:
    _find(workflow, "AsynDM_TimestepMap")["type"] = "AsynDM_Map"


def _cut_a_required_link(workflow: dict) -> None:
    node = _find(workflow, "AsynDM_KSampler")
    slot = next(slot for slot in node["inputs"] if slot["name"] == "positive")
    source = next(link for link in workflow["links"] if link[0] == slot["link"])
    workflow["links"].remove(source)
    for other in workflow["nodes"]:
        for output in other["outputs"]:
            if source[0] in (output["links"] or ()):
                output["links"].remove(source[0])
    slot["link"] = None


def _leave_a_loose_end(workflow: dict) -> None:
    workflow["links"].pop()


def _cross_two_links(workflow: dict) -> None:
    link = next(link for link in workflow["links"] if link[5] == "LATENT")
    link[5] = "IMAGE"


@pytest.mark.parametrize(
    "spoil",
    [_drop_a_value, _swap_two_values, _strength_out_of_range, _rename_a_node, _cut_a_required_link, _leave_a_loose_end,
     _cross_two_links],
)  # fmt: skip
def test_a_spoilt_template_is_noticed(spoil: Callable[[dict], None], classes: dict[str, Any]) -> None:
    """The checks above can fail."""
    workflow = copy.deepcopy(WORKFLOWS["asyndm_demo"])
    spoil(workflow)
    assert problems(workflow, classes)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_targets_are_words_of_their_prompt(name: str) -> None:
    for node in WORKFLOWS[name]["nodes"]:
        if node["type"] == "AsynDM_CrossAttentionMask":
            text, targets = node["widgets_values"][:2]
            for target in filter(None, targets.split(",")):
                words = target.split(":")[0].strip()
                assert re.search(rf"\b{re.escape(words)}\b", text), f"{words!r} is not in {text!r}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_has_a_note_and_a_thumbnail(name: str) -> None:
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0].strip() for node in WORKFLOWS[name]["nodes"])
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (512, 512))
    assert path.stat().st_size < 150_000


OWN = "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"
"""Where ComfyUI's default graph, which is no template, gets its checkpoint from."""


@cache
def offered() -> set[tuple[str, str, str]]:
    """The models that ComfyUI's own templates name: name, folder, address. Those of this version's ComfyUI, with subgraphs."""
    package = pytest.importorskip("comfyui_workflow_templates_json", reason="this ComfyUI's own templates are elsewhere")
    found = {("v1-5-pruned-emaonly-fp16.safetensors", "checkpoints", OWN)}
    for path in (Path(package.__file__).parent / "templates").glob("*.json"):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(workflow, dict):
            graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", ())]
            nodes = [node for graph in graphs for node in graph.get("nodes", ())]
            models = [model for node in nodes for model in node.get("properties", {}).get("models", ())]
            found |= {(model["name"], model.get("directory"), model["url"].split("?")[0]) for model in models}
    return found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_file_comes_with_its_address(name: str) -> None:
    """ComfyUI offers to get a missing model that a node's properties name, under the name that the widget has."""
    for node in WORKFLOWS[name]["nodes"]:
        if node["type"] in FILES:
            models = node["properties"]["models"]
            assert [model["name"] for model in models] == node["widgets_values"][: len(FILES[node["type"]])]
            assert {(model["name"], model["directory"], model["url"].split("?")[0]) for model in models} <= offered()
