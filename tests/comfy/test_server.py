"""The pack in a real ComfyUI server process: it loads whole, and its templates run to pictures of what they promise."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_process import PACK, Server
from PIL import Image
from test_workflows import FILES, lacks, shown, widgets_of

from demo.scorer import score
from demo.world import SIZE, Claims, Promise

ROOT = Path(__file__).resolve().parents[2]
NODES = ("AsynDM_CrossAttentionMask", "AsynDM_TimestepMap", "AsynDM_KSampler", "AsynDM_Apply", "AsynDM_DemoModel",
         "AsynDM_Compare")  # fmt: skip
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}
ON_DEMO_MODEL = [n for n, w in WORKFLOWS.items() if any(node["type"] == "AsynDM_DemoModel" for node in w["nodes"])]
PROMPT = "a green boat on the sea under two moons"
PROMISED = Claims("sea", (Promise("boat", "green", 1), Promise("moon", None, 2)), ((0, "under", 1),))
"""What asyndm_demo and asyndm_transformer ask for, in words and as the scorer reads it."""


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, Any]:
    """What the server says of all its nodes."""
    return server.json("/object_info")


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a node that a person sees, by name."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def to_api(workflow: dict, object_info: dict[str, Any]) -> dict:
    """A template as the frontend would send it: each node's linked inputs and, in their order, its widgets' values."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        info = object_info.get(node["type"])
        if info is None:
            continue
        values = node.get("widgets_values", ())
        given = iter(values)
        inputs: dict[str, Any] = {}
        for name, _, options in widgets_of(shown(info["input"]), values):
            value = next(given, options.get("default", next(iter(options.get("options", ())), None)))
            if name != "control_after_generate":
                inputs[name] = value
        for slot in node["inputs"]:
            if slot["link"] is not None:
                _, source, output, *_ = links[slot["link"]]
                inputs[slot["name"]] = [str(source), output]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def ids_of(prompt: dict, kind: str) -> list[str]:
    """The ids of a prompt's nodes of one type."""
    return [number for number, node in prompt.items() if node["class_type"] == kind]


def test_the_log_of_the_start_shows_no_error(server: Server) -> None:
    log, started, _ = server.log.partition("To see the GUI")  # what follows is of prompts that other tests queue
    assert PACK in log and started
    for trouble in ("IMPORT FAILED", "Cannot import", "Traceback", "Error while calling comfy_entrypoint"):
        assert trouble not in log, log


def test_every_node_and_input_explains_itself(object_info: dict[str, Any]) -> None:
    assert set(NODES) == {name for name in object_info if name.startswith("AsynDM")}
    for name in NODES:
        info = object_info[name]
        assert info["category"] == "AsynDM" and len(info["description"]) > 40
        for input_name, spec in inputs_of(info).items():
            assert len(spec[1].get("tooltip") or "") > 20, f"{name}.{input_name} has no tooltip"


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_a_help_page_that_names_all_inputs_and_outputs(
    name: str, server: Server, object_info: dict[str, Any]
) -> None:
    page = server.get(f"/extensions/{PACK}/docs/{name}.md").decode()
    for language in ("zh", "ja"):
        assert server.get(f"/extensions/{PACK}/docs/{name}/{language}.md").decode().startswith("# ")
    info = object_info[name]
    for word in [*inputs_of(info), *info["output_name"]]:
        assert f"**{word}**" in page, f"{name}.md does not explain {word}"
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):
        assert server.get(f"/extensions/{PACK}/docs/{picture}")[:2] == b"\xff\xd8"


def test_templates_are_offered_with_their_thumbnails(server: Server) -> None:
    assert set(server.json("/workflow_templates")[PACK]) == set(WORKFLOWS)
    for name, workflow in WORKFLOWS.items():
        assert server.json(f"/api/workflow_templates/{PACK}/{name}.json") == workflow
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - set(ON_DEMO_MODEL)))
def test_nothing_but_the_models_is_missing(name: str, server: Server, object_info: dict[str, Any]) -> None:
    if lacking := lacks(WORKFLOWS[name], shown(object_info["CLIPLoader"]["input"])):
        pytest.skip(lacking)
    prompt = to_api(WORKFLOWS[name], object_info)
    errors = server.post(prompt)["node_errors"]
    assert set(errors) == {number for kind in FILES for number in ids_of(prompt, kind)}
    assert {error["type"] for entry in errors.values() for error in entry["errors"]} == {"value_not_in_list"}


@pytest.mark.parametrize("name", ON_DEMO_MODEL)
def test_template_runs(name: str, server: Server, object_info: dict[str, Any]) -> None:
    """It runs unchanged, and every picture node of it has a picture that is not of one colour."""
    prompt = to_api(WORKFLOWS[name], object_info)
    outputs = server.run(prompt)
    for kind in ("SaveImage", "PreviewImage", "MaskPreview"):
        for number in ids_of(prompt, kind):
            if kind == "MaskPreview" and number not in outputs:
                continue  # another template has shown the same mask: ComfyUI 0.8.0 does not say again what is in its cache
            for entry in outputs[number]["images"]:
                assert server.image(entry).std() > 5, f"{kind} {number} of {name} is blank"


def test_compare_shows_the_two_saved_pictures_of_one_seed(server: Server, object_info: dict[str, Any]) -> None:
    """Left KSampler's, right AsynDM KSampler's; they start from the same noise, with the same values, and differ."""
    prompt = to_api(WORKFLOWS["asyndm_compare"], object_info)
    ordinary, ours = (prompt[ids_of(prompt, kind)[0]]["inputs"] for kind in ("KSampler", "AsynDM_KSampler"))
    assert ordinary.items() <= ours.items()
    prompt[ids_of(prompt, "PrimitiveInt")[0]]["inputs"]["value"] += 1  # what is cached from an earlier run is not told again
    outputs = server.run(prompt)
    (compared,) = (outputs[number]["asyndm"][0] for number in ids_of(prompt, "AsynDM_Compare"))
    saved = [server.image(outputs[number]["images"][0]) for number in ids_of(prompt, "SaveImage")]
    assert compared["batch"] == 1
    assert np.array_equal(server.image(compared["a"]), saved[0]) and np.array_equal(server.image(compared["b"]), saved[1])
    assert np.abs(saved[0].astype(int) - saved[1]).max() > 16


@pytest.mark.whole
def test_the_triplet_tells_three_pictures_apart(server: Server, object_info: dict[str, Any]) -> None:
    """Its first sampler is the stock one, bit for bit; the others differ visibly from it and from each other."""
    prompt = to_api(WORKFLOWS["asyndm_triplet"], object_info)
    samplers = ids_of(prompt, "AsynDM_KSampler")
    prompt[ids_of(prompt, "PrimitiveInt")[0]]["inputs"]["value"] += 1  # what is cached from an earlier run is not told again
    outputs = server.run(prompt)
    pictures = [server.image(outputs[number]["images"][0]).astype(int) for number in ids_of(prompt, "SaveImage")]

    stock = {number: node for number, node in prompt.items() if node["class_type"] in ("AsynDM_DemoModel", "PrimitiveInt")}
    asyn = prompt[samplers[0]]["inputs"]
    for number in (asyn["negative"][0], asyn["latent_image"][0]):
        stock[number] = prompt[number]
    words = prompt[asyn["positive"][0]]["inputs"]
    stock["positive"] = {"class_type": "CLIPTextEncode", "inputs": {"text": words["text"], "clip": words["clip"]}}
    kept = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "negative", "latent_image", "denoise")
    inputs = {name: asyn[name] for name in kept} | {"positive": ["positive", 0]}
    stock["sampler"] = {"class_type": "KSampler", "inputs": inputs}
    decode = prompt[ids_of(prompt, "VAEDecode")[0]]["inputs"] | {"samples": ["sampler", 0]}
    stock["decode"] = {"class_type": "VAEDecode", "inputs": decode}
    enlarge = prompt[ids_of(prompt, "ImageScaleBy")[0]]["inputs"] | {"image": ["decode", 0]}
    stock["enlarge"] = {"class_type": "ImageScaleBy", "inputs": enlarge}
    stock["save"] = {"class_type": "SaveImage", "inputs": {"images": ["enlarge", 0], "filename_prefix": "stock"}}
    ordinary = server.image(server.run(stock)["save"]["images"][0])

    assert np.array_equal(pictures[0], ordinary)
    for a, b in itertools.combinations(pictures, 2):
        assert np.abs(a - b).max() > 16


def drawn(server: Server, entry: dict) -> np.ndarray:
    """A saved picture at the size that the demo model draws."""
    return np.asarray(Image.fromarray(server.image(entry)).resize((SIZE, SIZE), Image.Resampling.BOX))


def before_and_after(name: str, server: Server, object_info: dict[str, Any]) -> list[np.ndarray]:
    """The two pictures that a template saves."""
    prompt = to_api(WORKFLOWS[name], object_info)
    numbers = ids_of(prompt, "SaveImage")
    for number in numbers:
        prompt[number]["inputs"]["filename_prefix"] = f"{name}_again"  # a cached run would not be told again
    outputs = server.run(prompt)
    before, after = (drawn(server, outputs[number]["images"][0]) for number in numbers)
    return [before, after]


BOAT, MOON, SUN = Promise("boat", "white", 1), Promise("moon", None, 1), Promise("sun", None, 1)
BELOW = slice(SIZE * 3 // 4, None)


@pytest.mark.parametrize(
    ("name", "there", "then"),
    [
        ("asyndm_remove", (BOAT, MOON), (BOAT,)),
        ("asyndm_inpaint", (BOAT,), (BOAT, SUN)),
        ("asyndm_edit", (BOAT, MOON), (BOAT, SUN)),
    ],
)
def test_what_a_template_changes(
    name: str, there: tuple[Promise, ...], then: tuple[Promise, ...], server: Server, object_info: dict[str, Any]
) -> None:
    """The moon goes, or becomes a sun; a sun comes. What a hole does not reach is as it was; the decoder sees it from afar."""
    before, after = before_and_after(name, server, object_info)
    assert score(before, Claims("sea", there, ())).objects_right
    assert score(after, Claims("sea", then, ())).objects_right
    kept = np.abs(before[BELOW].astype(int) - after[BELOW])
    assert kept.mean() < 8 if name == "asyndm_edit" else kept.max() <= 2


@pytest.mark.parametrize("name", ["asyndm_demo", "asyndm_transformer"])
def test_the_demo_shows_what_its_prompt_promises(name: str, server: Server, object_info: dict[str, Any]) -> None:
    """Judged from the pixels of the saved picture, at the size that the model draws; another promise is not kept."""
    prompt = to_api(WORKFLOWS[name], object_info)
    assert [prompt[number]["inputs"]["text"] for number in ids_of(prompt, "AsynDM_CrossAttentionMask")] == [PROMPT]
    prompt[ids_of(prompt, "SaveImage")[0]]["inputs"]["filename_prefix"] = "scored"  # a cached run would not be told again
    picture = drawn(server, server.run(prompt)[ids_of(prompt, "SaveImage")[0]]["images"][0])

    kept = score(picture, PROMISED)
    assert kept.objects_right and kept.colour_right and kept.place_right, kept
    other = score(picture, Claims("night", (Promise("house", "red", 1),), ()))
    assert not other.objects_right and not other.place_right, other
