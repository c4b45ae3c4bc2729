"""The run on its node: live frames, the scrubber, lit regions; on AsynDM KSampler and Apply AsynDM, in both renderers."""

from __future__ import annotations

import json
from typing import Any

from page import ROOT, Page

SAMPLER, APPLY, MAP = "AsynDM_KSampler", "AsynDM_Apply", "AsynDM_TimestepMap"
STEPS = 6

PIXELS = """
    const canvas = document.querySelectorAll('.asyndm-map')[arguments[0]]
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    const colours = new Uint32Array(data.buffer)
    return [new Set(colours).size, colours.reduce((hash, colour) => (Math.imul(hash, 31) + colour) >>> 0, 7)]
"""
QUEUE = """
    const api = window.comfyAPI.api.api
    window.ended = null
    for (const name of ['execution_success', 'execution_error', 'execution_interrupted']) {
      api.addEventListener(name, () => { window.ended = name }, { once: true })
    }
    return await app.queuePrompt(0, 1)
"""


def demo(**sampler: Any) -> dict:
    """The template of the demo model with a short run, a seed that no cache knows, and room for the sampler.

    sampler: its widgets to change.
    """
    workflow = json.loads((ROOT / "workflows/asyndm_demo.json").read_text(encoding="utf-8"))
    node = next(node for node in workflow["nodes"] if node["type"] == SAMPLER)
    names = ["seed", "control", "steps", "cfg", "sampler_name", "scheduler", "denoise", "eta", "preview"]
    demo.seed += 1
    changes = {"seed": demo.seed, "control": "fixed", "steps": STEPS, "preview": True, **sampler}
    node["pos"] = [2200, 0]
    node["widgets_values"] = list({**dict(zip(names, node["widgets_values"], strict=True)), **changes}.values())
    return workflow


demo.seed = 1000


def load(page: Page, workflow: dict, node_type: str = SAMPLER) -> None:
    """Open a workflow and look at the node that shows the run."""
    page.load(workflow)
    page.fit(node_type)


def shown(page: Page) -> str | None:
    """The step that is shown, counted from 0, or None."""
    return page.js("return document.querySelector('.asyndm-run')?.dataset.step ?? null")


def listen(page: Page) -> None:
    """Keep the messages from now on in ``testing.seen``."""
    page.js(
        """
        if (!testing.seen) {
          window.comfyAPI.api.api.addEventListener('asyndm.frames', (event) => testing.seen.push(event.detail))
        }
        testing.seen = []
        """
    )


def pixels(page: Page, panel: int = 0) -> list[int]:
    """How many colours a panel shows (0 the picture, 1 the progress), and a number that tells pictures apart."""
    page.frames()
    return page.js(PIXELS, panel)


def scrub(page: Page, share: float) -> None:
    """Click the slider at a share of its width."""
    page.click_at(page.element(".asyndm-slider"), share)


def use_apply(page: Page) -> None:
    """The demo's sampler replaced by Apply AsynDM and the stock KSampler."""
    page.js(
        """
        const ours = testing.find(arguments[0]), graph = app.rootGraph
        const apply = LiteGraph.createNode(arguments[1]), stock = LiteGraph.createNode('KSampler')
        graph.add(apply); graph.add(stock)
        apply.pos = [ours.pos[0], ours.pos[1] + 900]
        stock.pos = [ours.pos[0] + 500, ours.pos[1] + 900]
        const origin = (name) => { const l = graph.getLink(ours.inputs.find((i) => i.name === name).link)
                                   return [graph.getNodeById(l.origin_id), l.origin_slot] }
        const to = (name, node) => { const [from, slot] = origin(name); from.connect(slot, node, name) }
        to('model', apply); to('timestep_map', apply); apply.connect(0, stock, 'model')
        for (const name of ['positive', 'negative', 'latent_image']) to(name, stock)
        for (const name of ['seed', 'steps', 'cfg', 'sampler_name', 'scheduler', 'denoise']) {
          stock.widgets.find((w) => w.name === name).value = ours.widgets.find((w) => w.name === name).value
        }
        const decode = testing.find('VAEDecode')
        stock.connect(0, decode, 'samples')
        for (const node of testing.all()) {
          if (['MaskToImage', 'ImageScale', 'PreviewImage'].includes(node.type)) graph.remove(node)
        }
        graph.remove(ours)
        """,
        SAMPLER, APPLY,
    )  # fmt: skip
    page.fit(APPLY)


def test_frames_arrive_while_it_runs_and_stay(page: Page) -> None:
    load(page, demo(steps=30))
    assert "while it samples" in page.element(".asyndm-run").text
    listen(page)
    assert page.settled(QUEUE)
    page.wait("document.querySelector('.asyndm-run').dataset.step !== undefined && window.ended === null")
    page.wait("window.ended !== null")
    page.frames()
    assert page.js("return window.ended") == "execution_success"
    seen = page.js("return testing.seen")
    assert [frame["step"] for message in seen for frame in message["frames"]] == list(range(30))
    node = page.js("return String(testing.find(arguments[0]).id)", SAMPLER)
    assert len(seen) > 1 and {message["node"] for message in seen} == {node}
    assert shown(page) == "29" and page.element(".asyndm-step").text == "step 30 of 30"
    assert [e.text for e in page.elements(".asyndm-run .asyndm-entry")] == ["green boat", "two moons"]
    assert pixels(page)[0] > 50


def test_the_scrubber_moves_the_picture(page: Page) -> None:
    load(page, demo())
    page.run()
    assert shown(page) == str(STEPS - 1)
    last = [pixels(page, n) for n in (0, 1)]
    scrub(page, 0.4)
    assert shown(page) == "2" and page.element(".asyndm-step").text == f"step 3 of {STEPS}"
    assert all(pixels(page, n) != last[n] for n in (0, 1))
    scrub(page, 1)
    assert [pixels(page, n) for n in (0, 1)] == last


def test_a_word_lights_its_region(page: Page) -> None:
    load(page, demo())
    page.run()
    scrub(page, 0.4)
    plain = pixels(page)
    entries = page.elements(".asyndm-run .asyndm-entry")
    lit = []
    for entry in entries:
        page.mouse().move_to_element(entry).perform()
        lit.append(pixels(page))
    assert plain != lit[0] != lit[1] != plain
    page.mouse().move_to_element(page.element(".asyndm-step")).perform()
    assert pixels(page) == plain


def test_cancel_leaves_it_usable_and_the_next_run_begins_anew(page: Page) -> None:
    load(page, demo(steps=400))
    assert page.settled(QUEUE)
    page.wait("Number(document.querySelector('.asyndm-run').dataset.step) > 9")
    page.settled("await window.comfyAPI.api.api.interrupt(null)")
    page.wait("window.ended === 'execution_interrupted'")
    page.frames()
    stopped = shown(page)
    assert stopped is not None and 9 < int(stopped) < 399
    scrub(page, 0)
    assert shown(page) == "0"
    page.set(SAMPLER, "steps", STEPS)
    page.run()
    assert shown(page) == str(STEPS - 1) and page.js("return document.querySelector('.asyndm-slider').max") == str(STEPS - 1)


def test_switched_off_shows_nothing(page: Page) -> None:
    load(page, demo(preview=False))
    listen(page)
    page.run()
    assert page.js("return testing.seen") == [] and shown(page) is None
    assert not page.element(".asyndm-run").is_displayed()
    page.set(SAMPLER, "preview", True)
    page.wait("!document.querySelector('.asyndm-run').hidden")
    page.run()
    assert page.js("return testing.seen") != [] and shown(page) == str(STEPS - 1)


def test_apply_shows_the_runs_of_the_stock_sampler(page: Page) -> None:
    page.load(demo())
    use_apply(page)
    page.run()
    assert shown(page) == str(STEPS - 1)
    assert [e.text for e in page.elements(".asyndm-run .asyndm-entry")] == ["green boat", "two moons"]
    page.set("KSampler", "seed", demo.seed + 5000)
    page.set("KSampler", "steps", STEPS + 2)
    page.run()  # Apply AsynDM is cached now
    assert shown(page) == str(STEPS + 1)


def test_in_a_subgraph_and_after_undo(page: Page) -> None:
    page.load(demo())
    page.js("app.rootGraph.convertToSubgraph(new Set([testing.find(arguments[0])]))", SAMPLER)
    page.js("app.canvas.setGraph(app.rootGraph.nodes.find((n) => n.subgraph).subgraph)")
    page.fit(SAMPLER)
    page.run()
    page.wait("document.querySelector('.asyndm-run')?.dataset.step === arguments[0]", str(STEPS - 1))
    page.js("app.canvas.setGraph(app.rootGraph)")
    page.frames()


def test_another_workflow_is_not_shown_this_ones_run(page: Page) -> None:
    workflow = demo()
    load(page, workflow)
    page.run()
    load(page, {**workflow, "id": "00000000-1111-4222-8333-444444444444"})
    assert shown(page) is None
    load(page, workflow)
    assert shown(page) == str(STEPS - 1)


def test_a_batch_says_that_it_shows_the_first(page: Page) -> None:
    workflow = demo()
    latent = next(node for node in workflow["nodes"] if node["type"] == "EmptyLatentImage")
    latent["widgets_values"][2] = 2
    load(page, workflow)
    page.run()
    assert "The first of 2 pictures." in page.element(".asyndm-run .asyndm-note").text
