"""Switching AsynDM off, as an artist would in the page: what help pages and messages advise gives the stock picture.

What bypassing each node of the pack does is ComfyUI's rule (a bypassed node hands on its first input of the same type), so
the advice names the ways that work: bypass Apply AsynDM, mode synchronous, KSampler in the place of AsynDM KSampler.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from page import Page
from test_saved import SAVED

pytestmark = pytest.mark.whole

BYPASSED = 4
"""ComfyUI's mode of a bypassed node."""
CHECKPOINT, NEGATIVE, LATENT, WORDS, MAP, APPLY, SAMPLER, DECODE, SAVE = range(2, 11)
"""Ids of the nodes of GRAPH."""


def demo_graph() -> dict:
    """The template with Apply AsynDM and KSampler, on the demo model."""
    graph = copy.deepcopy(SAVED["asyndm_sdxl"])
    nodes = {node["id"]: node for node in graph["nodes"]}
    nodes[CHECKPOINT] |= {"type": "AsynDM_DemoModel", "inputs": [], "widgets_values": []}
    nodes[LATENT]["widgets_values"] = [128, 128, 1]
    nodes[WORDS]["widgets_values"][:2] = ["a green boat on the sea under two moons", "green boat, two moons:0.4"]
    nodes[SAMPLER]["widgets_values"][2] = 6
    return graph


GRAPH = demo_graph()


def bypass(page: Page, *node_ids: int) -> dict:
    """Select nodes, press Ctrl+B, and return the prompt as it would be sent."""
    page.js(
        "app.canvas.deselectAll(); for (const id of arguments[0]) app.canvas.select(app.rootGraph.getNodeById(id))",
        list(node_ids),
    )
    page.keys("\ue009", "b")
    modes = page.js("return arguments[0].map((id) => app.rootGraph.getNodeById(id).mode)", list(node_ids))
    assert modes == [BYPASSED] * len(node_ids)
    return page.prompt()


def picture(page: Page, prompt: dict) -> np.ndarray:
    """What the graph saves."""
    outputs = page.server.run(prompt)
    (saved,) = (outputs[name]["images"] for name, node in prompt.items() if node["class_type"] == "SaveImage")
    return page.server.image(saved[0])


@pytest.fixture(scope="module")
def stock(opened: Page) -> np.ndarray:
    """The picture of the graph that never had a node of AsynDM."""
    opened.open()
    opened.load(GRAPH)
    prompt = opened.prompt()
    text = prompt[str(WORDS)]["inputs"]["text"]
    prompt[str(WORDS)] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [str(CHECKPOINT), 1], "text": text}}
    prompt[str(SAMPLER)]["inputs"]["model"] = [str(CHECKPOINT), 0]
    del prompt[str(MAP)], prompt[str(APPLY)]
    return picture(opened, prompt)


def ours(prompt: dict) -> set[str]:
    """The pack's own nodes in a prompt, but for the demo model."""
    return {node["class_type"] for node in prompt.values() if node["class_type"].startswith("AsynDM_")} - {"AsynDM_DemoModel"}


def test_bypassing_apply_is_the_stock_picture(page: Page, stock: np.ndarray) -> None:
    page.load(GRAPH)
    assert not np.array_equal(picture(page, page.prompt()), stock), "nothing lagged before"
    prompt = bypass(page, APPLY)
    assert prompt[str(SAMPLER)]["inputs"]["model"] == [str(CHECKPOINT), 0]
    assert np.array_equal(picture(page, prompt), stock)


def test_mode_synchronous_is_the_stock_picture(page: Page, stock: np.ndarray) -> None:
    page.load(GRAPH)
    page.set("AsynDM_TimestepMap", "mode", "synchronous")
    assert np.array_equal(picture(page, page.prompt()), stock)


def asyndm_sampler(page: Page) -> dict[str, Any]:
    """The graph with AsynDM KSampler in the place of Apply AsynDM and KSampler; returns its prompt."""
    page.load(GRAPH)
    page.js(
        """
        const [graph, ids] = [app.rootGraph, arguments[0]]
        const at = (id) => graph.getNodeById(id)
        const node = LiteGraph.createNode('AsynDM_KSampler')
        graph.add(node)
        const slot = (name) => node.inputs.findIndex((input) => input.name === name)
        at(ids.checkpoint).connect(0, node, slot('model'))
        at(ids.map).connect(0, node, slot('timestep_map'))
        at(ids.words).connect(0, node, slot('positive'))
        at(ids.negative).connect(0, node, slot('negative'))
        at(ids.latent).connect(0, node, slot('latent_image'))
        node.connect(0, at(ids.decode), 0)
        for (const widget of at(ids.sampler).widgets) {
          const own = node.widgets.find((w) => w.name === widget.name)
          if (own) own.value = widget.value
        }
        graph.remove(at(ids.apply))
        graph.remove(at(ids.sampler))
        """,
        {"checkpoint": CHECKPOINT, "negative": NEGATIVE, "latent": LATENT, "words": WORDS, "map": MAP, "apply": APPLY,
         "sampler": SAMPLER, "decode": DECODE},
    )  # fmt: skip
    page.frames()
    return page.prompt()


def test_ksampler_in_the_place_of_asyndm_ksampler_is_the_stock_picture(page: Page, stock: np.ndarray) -> None:
    """And the other way round: the graph with AsynDM KSampler is the stock picture with mode synchronous."""
    prompt = asyndm_sampler(page)
    assert not np.array_equal(picture(page, prompt), stock)
    page.set("AsynDM_TimestepMap", "mode", "synchronous")
    assert np.array_equal(picture(page, page.prompt()), stock)
    (name,) = (name for name, node in prompt.items() if node["class_type"] == "AsynDM_KSampler")
    prompt[name]["class_type"] = "KSampler"
    for own in ("timestep_map", "eta", "preview"):
        del prompt[name]["inputs"][own]
    assert np.array_equal(picture(page, prompt), stock)


def test_bypassing_asyndm_ksampler_hands_on_the_empty_latents(page: Page) -> None:
    """As of any KSampler: nothing is sampled, which is why no text advises it."""
    before = asyndm_sampler(page)
    (name,) = (name for name, node in before.items() if node["class_type"] == "AsynDM_KSampler")
    prompt = bypass(page, int(name))
    assert prompt[str(DECODE)]["inputs"]["samples"] == [str(LATENT), 0]


def test_bypassing_the_words_alone_loses_the_prompt(page: Page) -> None:
    """ComfyUI says so by itself; the whole set can be bypassed where CLIP Text Encode feeds the input conditioning."""
    page.load(GRAPH)
    prompt = bypass(page, WORDS, MAP, APPLY)
    errors = page.server.post(prompt)["node_errors"]
    assert [e["details"] for e in errors[str(SAMPLER)]["errors"]] == ["positive"]


def test_all_can_be_bypassed_where_the_prompt_comes_from_clip_text_encode(page: Page, stock: np.ndarray) -> None:
    page.load(GRAPH)
    page.js(
        """
        const [graph, [checkpoint, words]] = [app.rootGraph, arguments[0].map((id) => app.rootGraph.getNodeById(id))]
        const node = LiteGraph.createNode('CLIPTextEncode')
        graph.add(node)
        node.widgets.find((w) => w.name === 'text').value = words.widgets.find((w) => w.name === 'text').value
        checkpoint.connect(1, node, node.inputs.findIndex((input) => input.name === 'clip'))
        node.connect(0, words, words.inputs.findIndex((input) => input.name === 'conditioning'))
        """,
        [CHECKPOINT, WORDS],
    )
    page.frames()
    assert not np.array_equal(picture(page, page.prompt()), stock)
    prompt = bypass(page, WORDS, MAP, APPLY)
    assert ours(prompt) == set()
    assert np.array_equal(picture(page, prompt), stock)


def test_a_bypassed_map_of_a_chain_drops_out(page: Page) -> None:
    """The maps before it still count; a map that is the only one is switched off by its mode."""
    page.load(GRAPH)
    first = page.add("AsynDM_TimestepMap", 900, 600)
    page.js(
        """
        const [words, first, map] = arguments[0].map((id) => app.rootGraph.getNodeById(id))
        words.connect(1, first, first.inputs.findIndex((input) => input.name === 'regions'))
        first.connect(0, map, map.inputs.findIndex((input) => input.name === 'previous'))
        """,
        [WORDS, first, MAP],
    )
    page.frames()
    prompt = bypass(page, MAP)
    assert prompt[str(APPLY)]["inputs"]["timestep_map"] == [first, 0]
    prompt = bypass(page, int(first))
    assert "timestep_map" not in prompt[str(APPLY)]["inputs"]
