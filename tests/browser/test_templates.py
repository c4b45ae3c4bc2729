"""Every template as it opens and after its run, in both renderers: nothing overlaps, nothing is cut, text can be read."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any
from uuid import uuid4

import pytest
from page import ROOT, Page

WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}
STEPS = 8
LONG = [
    f"Notice {number} of a run: as long as most, in two sentences. They say what to set, and on which node."
    for number in range(4)
]
"""What a sampler might say of a run, in more lines than it shows at once."""
FIRST = "asyndm_demo"
"""The template that a newcomer opens first."""
ZOOM, ZOOM_OF_FIRST = 0.58, 0.7
"""The least zoom to open at, in a window of 1600 x 1000. Below 0.571 ComfyUI draws no text (its threshold is 8 pixels of
14); its own first graph opens at 0.73."""

MEASURE = """
    const scale = app.canvas.ds.scale, [dx, dy] = app.canvas.ds.offset
    const canvas = app.canvas.canvas.getBoundingClientRect()
    const pen = document.createElement('canvas').getContext('2d')
    const nodes = app.rootGraph.nodes.map((node) => {
      const element = document.querySelector(`[data-node-id="${node.id}"]`)
      const name = `${node.title} (${node.id})`
      if (element) {
        const box = element.getBoundingClientRect()
        const title = element.querySelector('[data-testid="node-title"] .truncate')
        return { name, kind: node.type, whole: title.scrollWidth <= title.clientWidth,
                 box: [(box.left - canvas.left) / scale - dx, (box.top - canvas.top) / scale - dy,
                       box.width / scale, box.height / scale] }
      }
      pen.font = node.titleFontStyle
      const room = node.size[0] - 2 * LiteGraph.NODE_TITLE_HEIGHT
      const whole = node.flags.collapsed ? node.title.length <= 20 : pen.measureText(node.title).width <= room
      return { name, kind: node.type, whole, box: [...node.boundingRect] }
    })
    const groups = app.rootGraph.groups.map((group) => {
      pen.font = `${group.font_size}px ${LiteGraph.GROUP_FONT}`
      const box = [...group.boundingRect ?? group._bounding]
      return { name: group.title, whole: pen.measureText(group.title).width <= box[2], box }
    })
    return { scale, nodes, groups }
"""

Box = tuple[float, float, float, float]


def shared(a: Box, b: Box) -> tuple[float, float]:
    """How wide and how high the part is that two boxes (left, top, width, height) have in common; negative: the gap."""
    return tuple(min(a[n] + a[n + 2], b[n] + b[n + 2]) - max(a[n], b[n]) for n in (0, 1))


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have more in common than an edge."""
    return min(shared(a, b)) > 1


def inside(a: Box, b: Box) -> bool:
    """Whether box a lies in box b."""
    return all(common > length - 1 for common, length in zip(shared(a, b), a[2:], strict=True))


def untidy(seen: dict[str, Any]) -> list[str]:
    """What is wrong with a layout, in words."""
    nodes, groups = seen["nodes"], seen["groups"]
    found = [f"the title of {part['name']} is cut" for part in (*nodes, *groups) if not part["whole"]]
    for some in (nodes, groups):
        pairs = itertools.combinations(some, 2)
        found += [f"{a['name']} lies on {b['name']}" for a, b in pairs if overlap(a["box"], b["box"])]
    for node in nodes:
        around = [group for group in groups if overlap(node["box"], group["box"])]
        found += [f"{node['name']} reaches out of {g['name']}" for g in around if not inside(node["box"], g["box"])]
        if not around and node["kind"] != "MarkdownNote":
            found.append(f"{node['name']} is in no group")
    return found


def open_template(page: Page, name: str, changed: dict[str, Any] | None = None) -> None:
    """Open a template as the template browser does: at the zoom that shows all of it. It gets an id that no test knows."""
    workflow = {**(changed or WORKFLOWS[name]), "id": str(uuid4())}
    page.settled("await app.loadGraphData(arguments[0], true, true, arguments[1], { openSource: 'template' })", workflow, name)
    page.frames(8)


LOADERS = {
    "CheckpointLoaderSimple": 0, "UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2,
}  # fmt: skip
"""Where the first output of a node that loads files is on the demo model."""
SIZES = {
    "EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage", "EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo",
    "Wan22ImageToVideoLatent",
}  # fmt: skip
"""Nodes that say how large a picture, or a clip, is to be."""


def on_the_demo_model(workflow: dict[str, Any]) -> dict[str, Any]:
    """A template with the demo model in the place of its checkpoint or its networks, and a picture that it can draw."""
    changed = copy.deepcopy(workflow)
    nodes = {node["id"]: node for node in changed["nodes"]}
    model, *others = (node for node in nodes.values() if LOADERS.get(node["type"]) == 0)
    for link in changed["links"]:
        if nodes[link[1]]["type"] in LOADERS:
            link[1], link[2] = model["id"], LOADERS[nodes[link[1]]["type"]] or link[2]
    for node in others:
        node["outputs"][0]["links"] = []
    for node in nodes.values():
        if LOADERS.get(node["type"]):
            node["outputs"][0]["links"] = []
        elif node["type"] in SIZES:
            links = {slot["link"] for slot in node["inputs"] if "widget" not in slot}
            node["inputs"] = [slot for slot in node["inputs"] if "widget" in slot]
            changed["links"] = [link for link in changed["links"] if link[0] not in links]
            node |= {"type": "EmptyLatentImage", "widgets_values": [128, 128, 1]}
        elif node["type"] == "ImageScaleToTotalPixels":
            node["widgets_values"][1] = (128 / 1024) ** 2
        elif node["type"] == "FluxKontextImageScale":
            node |= {"type": "ImageScaleBy", "widgets_values": ["area", 128 / 768]}
    network = "unet" if model["type"] == "CheckpointLoaderSimple" else "transformer"
    outputs: list[dict[str, Any]] = [{"name": kind.lower(), "type": kind, "links": []} for kind in ("MODEL", "CLIP", "VAE")]
    for number, source, slot, *_ in changed["links"]:
        if source == model["id"]:
            outputs[slot]["links"].append(number)
    model |= {"type": "AsynDM_DemoModel", "inputs": [], "widgets_values": [network], "properties": {}, "outputs": outputs}
    return changed


def files_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """The models that a template names."""
    return [model for node in workflow["nodes"] for model in node["properties"].get("models", ())]


def sees_pictures(workflow: dict[str, Any]) -> bool:
    """Whether a template's text encoder or network is shown pictures, or has sound: the demo model has no eyes and ears."""
    return any(node["type"].startswith(("TextEncode", "WanImage", "MiniMax")) for node in workflow["nodes"])


QUICK = ("asyndm_demo", "asyndm_remove")
"""The first that a newcomer opens."""
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.whole) for name in WORKFLOWS]


@pytest.mark.parametrize("name", ALL)
def test_opens_tidy_and_stays_so(page: Page, name: str) -> None:
    open_template(page, name)
    seen = page.js(MEASURE)
    assert untidy(seen) == []
    assert seen["scale"] >= (ZOOM_OF_FIRST if name == FIRST else ZOOM)
    if sees_pictures(WORKFLOWS[name]):
        return
    if page.js("return !testing.find('AsynDM_DemoModel')"):
        open_template(page, name, on_the_demo_model(WORKFLOWS[name]))
    page.js(
        "for (const w of testing.all().flatMap((n) => n.widgets ?? [])) if (w.name === 'steps') w.value = arguments[0]", STEPS
    )
    page.run()
    page.frames(8)
    assert untidy(page.js(MEASURE)) == []
    page.js(
        """
        for (const node of testing.all().filter((n) => ['AsynDM_KSampler', 'AsynDM_Apply'].includes(n.type)))
          for (const text of arguments[0])
            window.comfyAPI.api.api.dispatchCustomEvent('asyndm.notice', { node: String(node.id), prompt: 'a prompt', text })
        """,
        LONG,
    )
    page.frames(8)
    assert page.js("return document.querySelectorAll('.asyndm-lines .asyndm-line-notice').length") >= len(LONG)
    assert untidy(page.js(MEASURE)) == []


def test_an_untidy_layout_is_noticed(page: Page) -> None:
    """A node on another, one that reaches out of its group, one in no group, and a title that is cut."""
    open_template(page, FIRST)
    page.js(
        """
        const [words, map, model] = ['CrossAttentionMask', 'TimestepMap', 'DemoModel'].map((n) => testing.find(`AsynDM_${n}`))
        map.pos = [words.pos[0] + 40, words.pos[1] + 200]
        model.pos = [-2000, 0]
        model.title = 'A title that is much too long for a node that is as narrow as this one'
        const save = testing.find('SaveImage')
        save.pos = [save.pos[0] + 100, save.pos[1]]
        app.canvas.setDirty(true, true)
        """
    )
    page.frames(8)
    words = " / ".join(untidy(page.js(MEASURE)))
    for complaint in ("lies on", "reaches out of 3  Sample, and look", "is in no group", "is cut"):
        assert complaint in words


OFFERED = """
    arguments[0].every((file) => document.getElementById('vue-app').__vue_app__.config.globalProperties.$pinia.state.value
      .missingModel.missingModelCandidates?.some(
        (each) => ['name', 'url', 'directory'].every((key) => each[key] === file[key])))"""
"""Whether all of the files are in the list that ComfyUI's panel of missing models shows."""


@pytest.mark.parametrize("name", [name for name, workflow in WORKFLOWS.items() if files_of(workflow)])
def test_a_missing_file_comes_with_its_address(page: Page, name: str) -> None:
    """ComfyUI offers to get what the template names, for the folder it belongs into."""
    open_template(page, name)
    page.wait(OFFERED, files_of(WORKFLOWS[name]))
    if len(files_of(WORKFLOWS[name])) == 1:
        page.wait("document.body.innerText.includes(arguments[0])", f"{files_of(WORKFLOWS[name])[0]['name']} is missing")
