"""The run on its node: live frames, the scrubber, lit regions; on AsynDM KSampler and Apply AsynDM, in both renderers."""

from __future__ import annotations

import base64
import json
import uuid
from math import prod
from typing import Any

import pytest
from page import ROOT, Page
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.whole

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
    """The template of the demo model with an id of its own, a short run, a seed that no cache knows, and room for the sampler.

    sampler: its widgets to change.
    """
    workflow = json.loads((ROOT / "workflows/asyndm_demo.json").read_text(encoding="utf-8")) | {"id": str(uuid.uuid4())}
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


def most_behind(frames: list[dict]) -> int:
    """The step where the pixels are the most behind the background, all together; of frames as they were sent."""

    def behind(frame: dict) -> int:
        planes = frame["planes"]
        start = sum(prod(shape) for name, shape in planes.items() if name in ("image", "owner"))
        progress = base64.b64decode(frame["data"])[start : start + prod(planes["progress"])]
        return sum(max(128 - value, 0) for value in progress)

    return max(frames, key=behind)["step"]


def seen_frames(page: Page) -> list[dict]:
    """The frames that came since ``listen``."""
    return [frame for message in page.js("return testing.seen") for frame in message["frames"]]


def run_and_rest(page: Page) -> int:
    """Run the graph; the step that the view has to rest on."""
    listen(page)
    page.run()
    return most_behind(seen_frames(page))


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
    assert [frame["step"] for frame in seen_frames(page)] == list(range(30))
    node = page.js("return String(testing.find(arguments[0]).id)", SAMPLER)
    assert len(seen) > 1 and {message["node"] for message in seen} == {node}
    rest = most_behind(seen_frames(page))
    assert 5 < rest < 25 and shown(page) == str(rest)
    assert page.element(".asyndm-step").text == f"step {rest + 1} of 30"
    thumb, peak = (page.js("const b = arguments[0].getBoundingClientRect(); return [b.left, b.width]", page.element(selector))
                   for selector in (".asyndm-track .asyndm-slider", ".asyndm-peak"))  # fmt: skip
    assert abs((peak[0] + peak[1] / 2 - thumb[0]) / thumb[1] - rest / 29) < 0.05
    assert [e.text for e in page.elements(".asyndm-run .asyndm-entry")] == ["green boat", "two moons"]
    assert pixels(page)[0] > 50


def test_the_scrubber_moves_the_picture(page: Page) -> None:
    load(page, demo())
    rest = run_and_rest(page)
    assert shown(page) == str(rest)
    resting = [pixels(page, n) for n in (0, 1)]
    assert resting[1][0] > 1, "the view rests where nobody is behind"
    scrub(page, 1)
    assert shown(page) == str(STEPS - 1) and page.element(".asyndm-step").text == f"step {STEPS} of {STEPS}"
    assert all(pixels(page, n) != resting[n] for n in (0, 1)) and pixels(page, 1)[0] == 1
    scrub(page, rest / (STEPS - 1))
    assert [pixels(page, n) for n in (0, 1)] == resting


def test_where_nothing_waits_it_rests_on_the_last_step(page: Page) -> None:
    workflow = demo()
    next(node for node in workflow["nodes"] if node["type"] == MAP)["widgets_values"][2] = "synchronous"
    load(page, workflow)
    page.run()
    assert shown(page) == str(STEPS - 1)


def test_the_picture_without_its_regions(page: Page) -> None:
    """While the pointer is on it, and for good by the switch under it."""
    load(page, demo())
    page.run()
    canvas, switch = page.elements(".asyndm-map")[0], page.element(".asyndm-switch")
    step = page.element(".asyndm-step")

    def point_at(element: WebElement) -> Any:
        page.mouse().move_to_element(element).perform()
        page.frames()
        return pixels(page)

    tinted = point_at(step)
    bare = point_at(canvas)
    assert bare != tinted == point_at(step)
    page.click(switch)
    assert switch.get_attribute("aria-pressed") == "false" and pixels(page) == bare
    page.click(switch)
    assert point_at(step) == tinted


def test_a_word_lights_its_region(page: Page) -> None:
    load(page, demo())
    page.run()
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
    assert shown(page) == "0"
    rest = run_and_rest(page)
    assert shown(page) == str(rest) and page.js("return document.querySelector('.asyndm-slider').max") == str(STEPS - 1)


def test_switched_off_shows_nothing(page: Page) -> None:
    load(page, demo(preview=False, steps=ENOUGH))
    listen(page)
    page.run()
    assert page.js("return testing.seen") == [] and shown(page) is None
    assert not page.element(".asyndm-run").is_displayed()
    page.set(SAMPLER, "preview", True)
    page.wait("!document.querySelector('.asyndm-run').hidden")
    rest = run_and_rest(page)
    assert page.js("return testing.seen") != [] and shown(page) == str(rest)


def test_apply_shows_the_runs_of_the_stock_sampler(page: Page) -> None:
    page.load(demo())
    use_apply(page)
    assert shown(page) is None
    rest = run_and_rest(page)
    assert shown(page) == str(rest)
    assert [e.text for e in page.elements(".asyndm-run .asyndm-entry")] == ["green boat", "two moons"]
    page.set("KSampler", "seed", demo.seed + 5000)
    page.set("KSampler", "steps", STEPS + 2)
    rest = run_and_rest(page)  # Apply AsynDM is cached now
    assert shown(page) == str(rest)


def use_part(page: Page, end: int) -> None:
    """Of the stock KSampler, KSampler (Advanced) with its first steps; the map is told the table of all."""
    page.js(
        """
        const old = testing.find('KSampler'), graph = app.rootGraph
        const part = LiteGraph.createNode('KSamplerAdvanced'), table = LiteGraph.createNode('BasicScheduler')
        graph.add(part); graph.add(table)
        part.pos = [...old.pos]; table.pos = [old.pos[0], old.pos[1] + 900]
        const value = (name) => old.widgets.find((widget) => widget.name === name).value
        const set = (node, name, value) => { node.widgets.find((widget) => widget.name === name).value = value }
        for (const name of ['model', 'positive', 'negative', 'latent_image']) {
          const link = graph.getLink(old.inputs.find((input) => input.name === name).link)
          graph.getNodeById(link.origin_id).connect(link.origin_slot, part, name)
        }
        testing.find('AsynDM_DemoModel').connect(0, table, 'model')
        table.connect(0, testing.find('AsynDM_TimestepMap'), 'sigmas')
        part.connect(0, testing.find('VAEDecode'), 'samples')
        set(part, 'noise_seed', value('seed'))
        for (const name of ['steps', 'cfg', 'sampler_name', 'scheduler']) set(part, name, value(name))
        for (const name of ['steps', 'scheduler']) set(table, name, value(name))
        set(part, 'end_at_step', arguments[0]); set(part, 'return_with_leftover_noise', 'enable')
        graph.remove(old)
        """,
        end,
    )
    page.frames()


def test_a_part_of_a_run_says_which(page: Page) -> None:
    """And comes to rest at its own last step, which is not the run's."""
    page.load(demo())
    use_apply(page)
    use_part(page, 4)
    rest = run_and_rest(page)
    assert [frame["step"] for frame in seen_frames(page)] == [0, 1, 2, 3] and shown(page) == str(rest)
    assert page.element(".asyndm-step").text == f"step {rest + 1} of {STEPS}"
    assert f"Steps 1 to 4 of a run of {STEPS}: the clock goes on." in page.element(".asyndm-run .asyndm-note").text


def test_in_a_subgraph_and_after_undo(page: Page) -> None:
    page.load(demo())
    page.js("app.rootGraph.convertToSubgraph(new Set([testing.find(arguments[0])]))", SAMPLER)
    page.js("app.canvas.setGraph(app.rootGraph.nodes.find((n) => n.subgraph).subgraph)")
    page.fit(SAMPLER)
    rest = run_and_rest(page)
    page.wait("document.querySelector('.asyndm-run')?.dataset.step === arguments[0]", str(rest))
    page.js("app.canvas.setGraph(app.rootGraph)")
    page.frames()


def test_another_workflow_is_not_shown_this_ones_run(page: Page) -> None:
    workflow = demo()
    load(page, workflow)
    rest = run_and_rest(page)
    load(page, {**workflow, "id": "00000000-1111-4222-8333-444444444444"})
    assert shown(page) is None
    load(page, workflow)
    assert shown(page) == str(rest)


def test_a_tab_shows_its_own_runs(page: Page) -> None:
    """Two tabs with copies of one workflow, which have its id and its nodes' ids."""
    workflow = demo()
    load(page, workflow)
    first = run_and_rest(page)
    page.new_tab(workflow)
    page.fit(SAMPLER)
    assert shown(page) is None and page.js("return app.rootGraph.id") == workflow["id"]
    page.set(SAMPLER, "steps", STEPS + 6)
    second = run_and_rest(page)
    assert shown(page) == str(second) != str(first)
    page.next_tab()
    page.fit(SAMPLER)
    assert shown(page) == str(first) and page.element(".asyndm-step").text.startswith(f"step {first + 1} of {STEPS}")


def test_a_run_is_still_shown_after_the_page_is_loaded_anew(page: Page) -> None:
    page.set_setting("Comfy.Workflow.Persist", True)
    try:
        load(page, demo())
        page.set(SAMPLER, "cfg", 4.4)
        rest = run_and_rest(page)
        before = pixels(page)
        page.js("return app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()")
        page.wait("Object.keys(localStorage).some((key) => localStorage[key].includes(arguments[0]))", "AsynDM_KSampler")
        page.open()
        page.wait("testing.find(arguments[0])", SAMPLER)
        page.fit(SAMPLER)
        page.wait("document.querySelector('.asyndm-run')?.dataset.step === arguments[0]", str(rest))
        assert pixels(page)[0] == before[0]
        page.run()  # everything is cached
        assert shown(page) == str(rest)
    finally:
        page.set_setting("Comfy.Workflow.Persist", False)


def test_a_cached_result_says_so(page: Page) -> None:
    """In a browser that did not see the run."""
    workflow = demo()
    load(page, workflow)
    page.run()
    page.settled("await new Promise((go) => { indexedDB.deleteDatabase('asyndm').onsuccess = go })")
    page.open()
    load(page, workflow)
    assert shown(page) is None and "while it samples" in page.element(".asyndm-run").text
    page.run()
    assert shown(page) is None and "came from ComfyUI's cache" in page.element(".asyndm-run").text


# --- lines under the view --------------------------------------------------------------------------------------------------


def notices(page: Page) -> list[str]:
    """What the node says of its last run."""
    return [e.text for e in page.elements(".asyndm-lines .asyndm-line-notice .asyndm-said")]


def troubles(page: Page) -> list[str]:
    """What the node says that would stop its run."""
    return [e.text for e in page.elements(".asyndm-lines .asyndm-line-trouble .asyndm-said")]


def notify(page: Page, node_type: str, *texts: str, prompt: str = "a prompt") -> None:
    """Notices of a node, as the server sends them."""
    for text in texts:
        page.js(
            """
            const detail = { node: String(testing.find(arguments[0]).id), prompt: arguments[1], text: arguments[2] }
            window.comfyAPI.api.api.dispatchCustomEvent('asyndm.notice', detail)
            """,
            node_type, prompt, text,
        )  # fmt: skip
    page.frames()


MASK_EMPTY, NO_LAG = "The painted mask is empty: nothing waits.", "In 2 steps nothing can lag: use 20 or more."


ENOUGH = STEPS + 2
"""Steps for a lag of more than one."""


def test_notices_stay_until_the_next_run(page: Page) -> None:
    load(page, demo(steps=ENOUGH))
    notify(page, SAMPLER, MASK_EMPTY, NO_LAG, MASK_EMPTY)
    assert notices(page) == [MASK_EMPTY, NO_LAG]
    page.set(SAMPLER, "cfg", 4.1)
    assert notices(page) == [MASK_EMPTY, NO_LAG]
    page.run()
    assert notices(page) == []
    notify(page, SAMPLER, NO_LAG, prompt="another")
    page.run()  # everything is cached: what was said still holds
    assert notices(page) == [NO_LAG]
    page.set(SAMPLER, "cfg", 4.2)
    page.run()
    assert notices(page) == []


def test_notices_of_apply_stay_until_its_sampler_runs(page: Page) -> None:
    page.load(demo())
    use_apply(page)
    page.set("KSampler", "steps", ENOUGH)
    page.run()
    notify(page, APPLY, MASK_EMPTY)
    assert notices(page) == [MASK_EMPTY]
    page.set("KSampler", "seed", demo.seed + 6000)
    page.run()  # Apply AsynDM itself is cached
    assert notices(page) == []


def test_what_the_server_says_of_a_run_is_on_its_node(page: Page) -> None:
    """Steps too few for a lag; the next run with enough of them takes the line away."""
    load(page, demo(steps=2))
    page.run()
    said = notices(page)
    assert len(said) == 1 and "2 steps" in said[0]
    page.set(SAMPLER, "steps", ENOUGH)
    page.run()
    assert notices(page) == []


def test_what_was_skipped_is_on_cross_attention_mask(page: Page) -> None:
    """As wildcards lose a target that the text before the run has: the line comes with the run, and goes with the next."""
    load(page, demo(), "AsynDM_CrossAttentionMask")
    mask = "AsynDM_CrossAttentionMask"
    page.set(mask, "text", "a green boat on the sea under {two moons|two moons}, {sun|sun|}")
    page.set(mask, "targets", "boat, moons, sun")
    page.set(mask, "lost_targets", "skip")
    said = "return [...document.querySelectorAll('.asyndm-picker .asyndm-said')].map((e) => e.textContent)"
    assert page.js(said) == []
    page.js("testing.widget(arguments[0], 'text').serializeValue = () => 'a green boat on the sea under two moons'", mask)
    page.run()
    assert page.js(said) == ["Targets: boat, moons (not in the prompt, skipped: sun)"]
    page.set(mask, "targets", "boat, moons")
    page.run()
    assert page.js(said) == []


def test_notices_are_shown_without_a_preview_too(page: Page) -> None:
    load(page, demo(preview=False, steps=ENOUGH))
    assert not page.element(".asyndm-run").is_displayed()
    notify(page, SAMPLER, MASK_EMPTY)
    assert page.element(".asyndm-run").is_displayed() and notices(page) == [MASK_EMPTY]
    load(page, demo(preview=False))
    assert not page.element(".asyndm-run").is_displayed()  # another workflow in the same tab


def test_a_sampler_that_cannot_be_used_is_named_before_the_run(page: Page) -> None:
    load(page, demo())
    assert troubles(page) == []
    page.set(SAMPLER, "sampler_name", "heunpp2")
    assert len(troubles(page)) == 1 and troubles(page)[0].startswith("heunpp2 cannot give every pixel its own noise level")
    page.set(SAMPLER, "sampler_name", "dpmpp_2m")
    assert troubles(page) == []


def test_the_sampler_after_apply_is_named_before_the_run(page: Page) -> None:
    page.load(demo())
    use_apply(page)
    page.set("KSampler", "sampler_name", "heunpp2")
    assert len(troubles(page)) == 1 and troubles(page)[0].startswith("heunpp2 ")
    page.set(MAP, "mode", "synchronous")  # the stock sampler: it may be any
    assert troubles(page) == []


def test_a_batch_says_that_it_shows_the_first(page: Page) -> None:
    workflow = demo()
    latent = next(node for node in workflow["nodes"] if node["type"] == "EmptyLatentImage")
    latent["widgets_values"][2] = 2
    load(page, workflow)
    page.run()
    assert "The first of 2 pictures." in page.element(".asyndm-run .asyndm-note").text
