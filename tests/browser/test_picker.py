"""The word picker on Cross-Attention Mask, clicked and dragged in both renderers."""

from __future__ import annotations

import pytest
from page import Page
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

MASK, MAP = "AsynDM_CrossAttentionMask", "AsynDM_TimestepMap"
TEXT = "a green boat on the sea under two moons, a boat"


def one_mask(page: Page, targets: str = "", text: str = TEXT) -> None:
    """A graph of one Cross-Attention Mask."""
    page.add(MASK)
    page.set(MASK, "text", text)
    page.set(MASK, "targets", targets)
    page.fit()


def targets(page: Page) -> str:
    """What the API would be sent."""
    (node,) = [n for n in page.prompt().values() if n["class_type"] == MASK]
    return node["inputs"]["targets"]


def marks(page: Page) -> list[str]:
    """The marked parts of the prompt."""
    return [e.text for e in page.elements(".asyndm-mark")]


def rows(page: Page) -> list[str]:
    """The listed targets."""
    return [e.get_attribute("data-target") for e in page.elements(".asyndm-target")]


def row_button(page: Page, target: str, label: str) -> WebElement:
    """A button of a target's row."""
    return page.element(f'.asyndm-target[data-target="{target}"] button[aria-label="{label}"]')


def test_a_click_makes_a_word_a_target_and_another_unmakes_it(page: Page) -> None:
    one_mask(page)
    page.click(page.word("sea"))
    assert targets(page) == "sea" and rows(page) == ["sea"] and marks(page) == ["sea"]
    page.click(page.word("boat"))
    assert targets(page) == "sea, boat" and marks(page) == ["boat", "sea", "boat"]
    page.click(page.word("sea"))
    assert targets(page) == "boat" and page.value(MASK, "targets") == "boat"


def test_a_drag_over_words_makes_a_phrase(page: Page) -> None:
    one_mask(page, "sea")
    drag = page.mouse().move_to_element(page.word("green")).click_and_hold()
    drag.move_to_element(page.word("boat")).release().perform()
    page.frames()
    assert targets(page) == "sea, green boat"
    page.click(page.word("green"))
    assert targets(page) == "sea"


def test_shift_and_keyboard(page: Page) -> None:
    one_mask(page, "sea")
    page.click(page.word("two"))
    assert targets(page) == "sea, two"
    page.js("arguments[0].focus()", page.word("moons"))
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.frames()
    assert targets(page) == "sea, two, moons"
    page.driver.switch_to.active_element.send_keys(Keys.DELETE)
    page.frames()
    assert page.js("return app.rootGraph.nodes.length") == 1


def test_strength_by_buttons_drag_and_back_to_the_map(page: Page) -> None:
    one_mask(page, "sea, green boat:0.4")
    page.click(row_button(page, "green boat", "More strength"))
    assert targets(page) == "sea, green boat:0.45"
    page.click(row_button(page, "sea", "Less strength"))
    assert targets(page) == "sea:0.65, green boat:0.45"
    page.drag(page.element('.asyndm-target[data-target="sea"] .asyndm-bar'), (0.5, 0.5), (0.25, 0.5))
    dragged = float(targets(page).split(",")[0].split(":")[1])
    assert abs(dragged - 0.25) <= 0.05
    page.click(row_button(page, "sea", "Use the strength of Asynchronous Timestep Map"))
    page.click(row_button(page, "green boat", "No longer a target"))
    assert targets(page) == "sea"


def test_typing_and_picking_are_one_value(page: Page) -> None:
    one_mask(page)
    page.set(MASK, "targets", "two moons:0.3, sea")
    assert rows(page) == ["two moons", "sea"] and marks(page) == ["sea", "two moons"]
    page.set(MASK, "targets", "sea:7, sea")
    assert [e.text for e in page.elements(".asyndm-trouble")] == ["strength is not in 0 to 1", "listed twice"]
    assert targets(page) == "sea:7, sea"


def test_a_lost_word_is_shown_and_kept(page: Page) -> None:
    one_mask(page, "green boat, sea:0.4")
    page.set(MASK, "text", "a red house by the sea")
    assert targets(page) == "green boat, sea:0.4" and marks(page) == ["sea"]
    (trouble,) = page.elements(".asyndm-lost")
    assert "not in the prompt" in trouble.text and trouble.get_attribute("data-target") == "green boat"
    assert "green boat: not in the prompt, the run would stop." in page.element(".asyndm-line-trouble").text
    page.set(MASK, "text", "a green boat on the sea")
    assert page.elements(".asyndm-lost") == [] and marks(page) == ["green boat", "sea"]


def test_lost_words_go_with_one_click(page: Page) -> None:
    one_mask(page, "green boat, sea:0.4, two moons")
    assert page.elements(".asyndm-drop") == []
    page.set(MASK, "text", "a red house by the sea")
    page.click(page.element(".asyndm-drop"))
    assert targets(page) == "sea:0.4" and page.elements(".asyndm-line-trouble") == []
    page.keys(Keys.CONTROL, "z")
    page.wait("testing.widget(arguments[0], 'targets')?.value === 'green boat, sea:0.4, two moons'", MASK)


def test_a_long_prompt_scrolls_within_the_node(page: Page) -> None:
    """The node stays as large as it was, so that it does not grow over its neighbours."""
    one_mask(page)
    size = "return testing.box(testing.find(arguments[0]))"
    before = page.js(size, MASK)
    page.set(MASK, "text", ", ".join(f"a {colour} boat on the sea" for colour in ("red", "green", "blue") * 12))
    page.set(MASK, "targets", ", ".join(f"{colour} boat" for colour in ("red", "green", "blue")) + ", sea, boat, on the sea")
    assert page.js(size, MASK) == before
    prompt, body = page.element(".asyndm-prompt"), page.element(".asyndm-picker")
    assert page.js("return arguments[0].scrollHeight > arguments[0].clientHeight + 50", prompt)
    assert page.js("const [a, b] = [arguments[0], arguments[1]].map((e) => e.getBoundingClientRect());"
                   "return a.bottom <= b.bottom + 1", page.element(".asyndm-targets"), body)  # fmt: skip
    page.js("arguments[0].scrollTop = 1e6", page.element(".asyndm-targets"))
    page.click(row_button(page, "on the sea", "No longer a target"))
    assert targets(page).endswith("sea, boat")


def test_a_narrow_node_keeps_its_buttons_inside(page: Page) -> None:
    one_mask(page, "sea, green boat:0.4, zebra")
    page.js("testing.find(arguments[0]).setSize([210, 560])", MASK)
    page.fit()
    outside = page.js(
        """
        const frame = document.querySelector('.asyndm-picker').getBoundingClientRect()
        return [...document.querySelectorAll('.asyndm-picker :is(.asyndm-button, .asyndm-value, .asyndm-bar, .asyndm-drop)')]
          .filter((e) => { const box = e.getBoundingClientRect()
                           return box.left < frame.left - 0.5 || box.right > frame.right + 0.5 || box.width < 1 })
          .map((e) => e.className)
        """
    )
    assert outside == []
    page.click(row_button(page, "green boat", "More strength"))
    page.click(row_button(page, "green boat", "Use the strength of Asynchronous Timestep Map"))
    page.click(row_button(page, "sea", "No longer a target"))
    assert targets(page) == "green boat, zebra"


def test_names_can_be_read_at_a_usual_width(page: Page) -> None:
    """And a name that is longer than its place ends in dots, with the whole of it in the tooltip."""
    long = "a green boat on the sea under two moons"
    one_mask(page, f"two moons, green boat, {long}")
    names = """
        return Object.fromEntries([...document.querySelectorAll('.asyndm-target .asyndm-name')].map((e) =>
          [e.title, e.scrollWidth <= e.clientWidth]))
    """
    for width in (420, 355, 300):
        page.js("testing.find(arguments[0]).setSize([arguments[1], 620])", MASK, width)
        page.fit()
        whole = page.js(names)
        assert whole == {"two moons": True, "green boat": True, long: False}, width
    style = "return getComputedStyle(document.querySelector('.asyndm-target .asyndm-name')).textOverflow"
    assert page.js(style) == "ellipsis"


def test_a_bypassed_node_is_dimmed(page: Page) -> None:
    """By itself on the classic canvas; the Nodes 2.0 renderer dims the whole node."""
    one_mask(page)
    shade = """
        let opacity = 1
        for (let e = document.querySelector('.asyndm-picker'); e; e = e.parentElement) opacity *= getComputedStyle(e).opacity
        return opacity
    """
    assert page.js(shade) == 1
    for command in ("Bypass", "Mute"):
        page.js("app.canvas.selectItems([testing.find(arguments[0])])", MASK)
        page.settled("await app.extensionManager.command.execute(`Comfy.Canvas.ToggleSelectedNodes.${arguments[0]}`)", command)
        page.frames()
        assert page.js(shade) <= 0.5, command
        page.settled("await app.extensionManager.command.execute(`Comfy.Canvas.ToggleSelectedNodes.${arguments[0]}`)", command)
        page.frames()
        assert page.js(shade) == 1, command


LOST = {"zh": "提示词中没有", "ja": "プロンプトにありません", "fr": "not in the prompt"}


@pytest.mark.parametrize("locale", ["zh", *(pytest.param(locale, marks=pytest.mark.whole) for locale in ("ja", "fr"))])
def test_it_speaks_the_language_of_comfyui(page: Page, locale: str) -> None:
    page.set_setting("Comfy.Locale", locale)
    try:
        page.open()
        one_mask(page, "zebra")
        assert page.element(".asyndm-trouble").text == LOST[locale]
    finally:
        page.set_setting("Comfy.Locale", "en")
        page.open()


def test_automatic_targets_are_shown_as_such(page: Page) -> None:
    one_mask(page)
    assert len(page.elements(".asyndm-mark.asyndm-auto")) == len(marks(page)) == 3
    assert "Chosen automatically: green boat, sea, two moons" in page.element(".asyndm-note").text
    page.click(page.word("green"))
    assert targets(page) == "green boat" and page.elements(".asyndm-auto") == []
    page.click(page.word("green"))
    assert targets(page) == "" and page.elements(".asyndm-auto") != []


def test_undo_redo_and_copies(page: Page) -> None:
    one_mask(page, "sea")
    page.click(page.word("green"))
    page.click(page.word("two"))
    assert targets(page) == "sea, green, two"
    page.keys(Keys.CONTROL, "z")
    page.wait("testing.widget(arguments[0], 'targets')?.value === 'sea, green'", MASK)
    page.frames()
    page.click(page.word("moons"))
    assert targets(page) == "sea, green, moons" and rows(page) == ["sea", "green", "moons"]
    page.keys(Keys.CONTROL, "z")
    page.wait("testing.widget(arguments[0], 'targets')?.value === 'sea, green'", MASK)
    page.keys(Keys.CONTROL, "y")
    page.wait("testing.widget(arguments[0], 'targets')?.value === 'sea, green, moons'", MASK)
    page.js("app.canvas.selectNodes(app.rootGraph.nodes); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()")
    page.wait("app.rootGraph.nodes.length === 2")
    page.js("app.rootGraph.nodes[1].pos = [700, 0]")
    page.fit()
    page.click(page.word("under", 1))
    values = page.js("return app.rootGraph.nodes.map((n) => n.widgets.find((w) => w.name === 'targets').value).sort()")
    assert values == ["sea, green, moons", "sea, green, moons, under"]


def test_saved_and_loaded(page: Page) -> None:
    one_mask(page, "two moons:0.4, sea")
    saved = page.saved()
    (node,) = saved["nodes"]
    assert node["widgets_values"] == [TEXT, "two moons:0.4, sea", 1, "every step", "limit", 0, 0, "stop", 0, 0]
    page.new_workflow()
    page.load(saved)
    assert targets(page) == "two moons:0.4, sea" and rows(page) == ["two moons", "sea"]


def test_text_of_a_primitive_through_reroutes(page: Page) -> None:
    one_mask(page, "sea")
    page.js(
        """
        const source = LiteGraph.createNode('PrimitiveStringMultiline'), reroute = LiteGraph.createNode('Reroute')
        app.rootGraph.add(source); app.rootGraph.add(reroute)
        source.pos = [-700, 0]; reroute.pos = [-200, 100]
        source.widgets[0].value = 'a cat under the sun'
        const mask = testing.find(arguments[0])
        source.connect(0, reroute, 0)
        reroute.connect(0, mask, mask.inputs.findIndex((input) => input.name === 'text'))
        """,
        MASK,
    )
    page.fit()
    page.click(page.word("cat"))
    assert page.value(MASK, "targets") == "sea, cat" and len(page.elements(".asyndm-lost")) == 1
    page.set("PrimitiveStringMultiline", "value", "a dog in the sea")
    page.wait("document.querySelector('.asyndm-lost')?.dataset.target === 'cat'")


def test_in_a_subgraph(page: Page) -> None:
    one_mask(page, "sea")
    page.js("app.canvas.selectItems([app.rootGraph.nodes[0]]); app.rootGraph.convertToSubgraph(new Set(app.rootGraph.nodes))")
    page.wait("app.rootGraph.nodes[0].subgraph")
    page.js("app.canvas.setGraph(app.rootGraph.nodes[0].subgraph)")
    page.frames()
    page.fit()
    page.click(page.word("green"))
    assert page.value(MASK, "targets") == "sea, green"
    page.js("app.canvas.setGraph(app.rootGraph)")


def test_a_painted_mask_alone(page: Page) -> None:
    one_mask(page, "sea")
    page.set(MASK, "mask_mode", "replace")
    assert marks(page) == ["sea"]
    page.js(
        """
        const source = LiteGraph.createNode('SolidMask')
        app.rootGraph.add(source)
        source.pos = [-400, 0]
        source.connect(0, testing.find(arguments[0]), 'mask')
        """,
        MASK,
    )
    page.wait("document.querySelector('.asyndm-note').textContent.startsWith('The painted mask is the only region')")
    assert marks(page) == [] and rows(page) == []
