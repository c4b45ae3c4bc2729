"""The plot of the schedules on Asynchronous Timestep Map, in both renderers."""

from __future__ import annotations

import json

import pytest
from page import Page
from selenium.webdriver.common.keys import Keys

from asyndm_core.curves import CURVES
from asyndm_core.pictures import plain_clock, progress_line

MASK, MAP = "AsynDM_CrossAttentionMask", "AsynDM_TimestepMap"


def masked_map(page: Page, targets: str = "boat, sea:0.4") -> None:
    """A Cross-Attention Mask that feeds an Asynchronous Timestep Map."""
    page.add(MASK)
    page.add(MAP, 500)
    page.js("testing.find(arguments[0]).connect(1, testing.find(arguments[1]), 'regions')", MASK, MAP)
    page.set(MASK, "text", "a boat on the sea")
    page.set(MASK, "targets", targets)
    page.fit()


def lines(page: Page) -> dict[str, list[float]]:
    """The lines that are drawn, by the names of their regions."""
    entries = json.loads(page.element(".asyndm-plot").get_attribute("data-lines"))
    return {entry["name"]: entry["line"] for entry in entries}


ORANGE, BLUE = (232, 119, 34), (46, 134, 222)


def painted(page: Page, colour: tuple[int, int, int] = ORANGE) -> int:
    """How many pixels of the canvas have the colour of a region, the first's or another's."""
    return page.js(
        """
        const canvas = document.querySelector('.asyndm-plot'), [r, g, b] = arguments[0]
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        let count = 0
        for (let n = 0; n < data.length; n += 4) if (data[n] === r && data[n + 1] === g && data[n + 2] === b) count++
        return count
        """,
        colour,
    )


def dots(page: Page) -> list[list[float] | None]:
    """Where the dots of the lines are, in shares of the plot; None for a line that cannot be dragged."""
    return json.loads(page.element(".asyndm-plot").get_attribute("data-dots"))


def drag(page: Page, index: int, pixels: float) -> None:
    """Drag the dot of a line up by so many pixels of the node."""
    canvas = page.element(".asyndm-plot")
    x, y = dots(page)[index]
    page.drag(canvas, (x, y), (x, y - pixels / page.js("return arguments[0].clientHeight", canvas)))


def note(page: Page) -> str:
    """The sentence under the plot."""
    return page.element(".asyndm-schedule .asyndm-note").text


@pytest.mark.parametrize("curve", CURVES)
def test_lines_are_the_samplers(page: Page, curve: str) -> None:
    masked_map(page)
    page.set(MAP, "curve", curve)
    page.set(MAP, "strength", 0.85)
    drawn = lines(page)
    assert list(drawn) == ["boat", "sea"] and painted(page)
    for name, strength in (("boat", 0.85), ("sea", 0.4)):
        assert drawn[name] == pytest.approx(progress_line(plain_clock(20), curve, strength).tolist(), abs=1e-4)


def test_regions_start_at_their_own_denoise(page: Page) -> None:
    """Lines begin where regions do, and a line that begins lower is dragged as the others are."""
    masked_map(page)
    page.set(MAP, "region_denoise", 0.5)
    drawn = lines(page)
    wanted = progress_line(plain_clock(20), page.value(MAP, "curve"), 0.4, 0.5).tolist()
    assert drawn["sea"] == pytest.approx(wanted, abs=1e-4) and drawn["sea"][0] == 10
    page.set(MAP, "background_denoise", 0.5)
    assert lines(page)["sea"][0] == 0


def test_dragging_a_line_sets_its_strength(page: Page) -> None:
    masked_map(page)
    drag(page, 0, -48)  # 120 pixels are the whole range
    assert page.value(MAP, "strength") == pytest.approx(0.3, abs=0.03) and page.value(MASK, "targets") == "boat, sea:0.4"
    page.set(MAP, "strength", 0.9)
    drag(page, 1, 150)
    assert page.value(MAP, "strength") == 0.9 and page.value(MASK, "targets") == "boat, sea:1"
    page.keys(Keys.CONTROL, "z")
    page.wait("testing.widget(arguments[0], 'targets')?.value === 'boat, sea:0.4'", MASK)


def test_a_line_is_dragged_anywhere_along_it(page: Page) -> None:
    masked_map(page, "boat")
    canvas = page.element(".asyndm-plot")
    page.set(MAP, "curve", "piecewise linear")
    left = 1 - lines(page)["boat"][5] / 20
    wide, high = page.js("return [arguments[0].clientWidth, arguments[0].clientHeight]", canvas)
    x, y = (18 + 0.25 * (wide - 26)) / wide, (8 + (1 - left) * (high - 24)) / high
    page.drag(canvas, (x, y), (x, y - 24 / high))
    assert page.value(MAP, "strength") == pytest.approx(0.9, abs=0.03)


def test_the_pointer_brings_a_line_forward(page: Page) -> None:
    masked_map(page)
    canvas = page.element(".asyndm-plot")
    plain = page.js("return arguments[0].toDataURL()", canvas)
    (x, y), (wide, high) = dots(page)[1], page.size(canvas)
    page.mouse().move_to_element_with_offset(canvas, round((x - 0.5) * wide), round((y - 0.5) * high)).perform()
    page.frames()
    assert page.js("return arguments[0].style.cursor", canvas) == "ns-resize"
    assert [e.text for e in page.elements(".asyndm-schedule .asyndm-lit")] == ["sea\n0.40"]
    assert page.js("return arguments[0].toDataURL()", canvas) != plain
    page.mouse().move_to_element(page.elements(".asyndm-schedule .asyndm-entry")[0]).perform()
    page.frames()
    assert [e.text for e in page.elements(".asyndm-schedule .asyndm-lit")] == ["boat\n0.70"]
    page.mouse().move_to_element(page.element(".asyndm-picker")).perform()
    page.frames()
    assert page.js("return arguments[0].toDataURL()", canvas) == plain


def test_regions_of_one_strength_are_all_seen_and_have_their_own_dots(page: Page) -> None:
    masked_map(page, "boat:0.5, sea:0.5")
    first, second = painted(page), painted(page, BLUE)
    assert min(first, second) > 0.5 * max(first, second)
    drag(page, 1, 24)
    assert page.value(MASK, "targets").startswith("boat:0.5, sea:0.7")


def test_a_line_that_another_node_sets_has_no_dot(page: Page) -> None:
    masked_map(page, "boat")
    assert dots(page)[0] is not None
    page.set(MAP, "curve", "linear")
    assert dots(page) == [None] and "ordinary sampler" in note(page)


def test_nothing_connected_says_what_to_connect(page: Page) -> None:
    page.add(MAP)
    page.fit()
    assert "Connect regions" in note(page) and lines(page) == {}
    page.set(MAP, "mode", "synchronous")
    assert "synchronous: nothing waits" in note(page)


def test_lost_targets_are_not_drawn(page: Page) -> None:
    masked_map(page, "zebra:0.9, boat, sea:0.4, on:7, boat")
    assert list(lines(page)) == ["boat", "sea"]
    page.set(MASK, "targets", "zebra:9, boat, sea:0.4")
    assert list(lines(page)) == ["boat", "sea"]
    drag(page, 1, 24)
    assert page.value(MASK, "targets").startswith("zebra:9, boat, sea:0.6")
    page.set(MASK, "targets", "zebra:0.9, boat, sea:0.4")
    page.set(MASK, "text", "a zebra in a boat on the sea")
    assert list(lines(page)) == ["zebra", "boat", "sea"]


def test_an_edit_shows_where_everything_starts(page: Page) -> None:
    """At strength 0: the template asyndm_edit."""
    masked_map(page, "boat")
    page.set(MAP, "strength", 0)
    assert note(page).startswith("Nothing waits")
    straight = painted(page)
    page.set(MAP, "region_denoise", 0.7)
    page.set(MAP, "background_denoise", 0.3)
    assert note(page).startswith("Editing: ")
    entries = [e.text.split("\n") for e in page.elements(".asyndm-schedule .asyndm-entry")]
    assert entries == [["boat", "70 %"], ["the rest", "30 %"]]
    high = page.js("return arguments[0].clientHeight", page.element(".asyndm-plot"))
    assert dots(page)[0][1] == pytest.approx((8 + (1 - 0.35) * (high - 24)) / high, abs=0.01)
    assert painted(page) != straight


def test_clean_known_pixels_are_shown(page: Page) -> None:
    """The template asyndm_remove."""
    masked_map(page, "boat")
    page.set(MAP, "strength", 0)
    picture = "return document.querySelector('.asyndm-plot').toDataURL()"
    before = page.js(picture)
    page.set(MAP, "known_pixels", "clean")
    assert "free of noise" in note(page) and page.js(picture) != before
    assert page.elements(".asyndm-schedule .asyndm-entry")[-1].text == "kept by a mask"
    clean = page.js(picture)
    page.set(MAP, "known_pixels", "ahead")
    assert "less noise" in note(page) and page.js(picture) not in (before, clean)
    page.set(MAP, "lead", 0)
    assert page.js(picture) == before


def test_an_edit_whose_kept_pixels_run_ahead(page: Page) -> None:
    """Its lines begin as noisy as the run, but for their lead, where those of noised ones begin at their denoise."""
    masked_map(page, "boat")
    for name, value in (("strength", 0), ("region_denoise", 0.7), ("background_denoise", 0)):
        page.set(MAP, name, value)
    assert lines(page)["boat"][0] == 0
    page.set(MAP, "background_denoise", 1)
    noised = lines(page)["boat"]
    page.set(MAP, "known_pixels", "ahead")
    assert noised[0] == pytest.approx(6) and lines(page)["boat"][0] == pytest.approx(0.3 * 0.2 * 20)
    page.set(MAP, "lead", 0)
    assert lines(page)["boat"] == noised


def test_what_the_run_would_refuse_is_said_before(page: Page) -> None:
    masked_map(page)
    page.set(MAP, "preset", "paper")
    assert page.elements(".asyndm-line-trouble") == []
    page.set(MAP, "region_denoise", 0.5)
    assert "region_denoise = background_denoise" in page.element(".asyndm-line-trouble").text
    page.set(MAP, "preset", "default")
    assert page.elements(".asyndm-line-trouble") == []


def test_bypassed_maps_and_masks_count_as_the_run_counts_them(page: Page) -> None:
    masked_map(page, "boat")
    page.js("testing.find(arguments[0]).mode = 4", MASK)
    page.set(MAP, "strength", 0.6)
    assert lines(page) == {} and "Connect regions" in note(page)
    page.js("testing.find(arguments[0]).mode = 0", MASK)
    page.set(MAP, "strength", 0.7)
    assert list(lines(page)) == ["boat"]


def test_the_plot_is_drawn_anew_in_another_theme(page: Page) -> None:
    masked_map(page)
    picture = "return document.querySelector('.asyndm-plot').toDataURL()"
    dark = page.js(picture)
    page.set_setting("Comfy.ColorPalette", "light")
    try:
        page.wait("document.querySelector('.asyndm-plot').toDataURL() !== arguments[0]", dark)
    finally:
        page.set_setting("Comfy.ColorPalette", "dark")
    page.wait("document.querySelector('.asyndm-plot').toDataURL() === arguments[0]", dark)


def test_modes(page: Page) -> None:
    masked_map(page)
    page.set(MAP, "mode", "concave")
    assert list(lines(page)) == ["all pixels"] and "the whole picture waits" in note(page)
    page.set(MAP, "mode", "synchronous")
    assert lines(page) == {} and "ordinary sampler" in note(page)


def test_a_clock_that_samplers_share_is_said(page: Page) -> None:
    """Where the map is told the table of the whole run."""
    masked_map(page)
    assert "One clock" not in note(page)
    page.add("BasicScheduler")
    link = "testing.find('BasicScheduler').connect(0, testing.find(arguments[0]), 'sigmas')"
    page.js(link, MAP)
    page.frames()
    assert "One clock: it goes on from one sampler to the next." in note(page)
    page.js("testing.find(arguments[0]).disconnectInput(testing.find(arguments[0]).findInputSlot('sigmas'))", MAP)
    page.frames()
    assert "One clock" not in note(page)


def test_colours_are_those_of_the_picker_in_a_chain(page: Page) -> None:
    masked_map(page)
    page.js(
        """
        const first = testing.find(arguments[0])
        const mask = LiteGraph.createNode(arguments[1]), map = LiteGraph.createNode(arguments[0])
        app.rootGraph.add(mask); app.rootGraph.add(map)
        mask.pos = [0, 700]; map.pos = [500, 700]
        mask.widgets.find((w) => w.name === 'text').value = 'a moon'
        mask.widgets.find((w) => w.name === 'targets').value = 'moon'
        mask.connect(1, map, 'regions'); first.connect(0, map, 'previous')
        """,
        MAP, MASK,
    )  # fmt: skip
    page.fit()
    page.wait("[...document.querySelectorAll('.asyndm-legend')].some((e) => e.querySelectorAll('.asyndm-entry').length === 3)")
    colour = "return getComputedStyle(arguments[0]).getPropertyValue('--colour')"
    legend = {e.text.split()[0]: page.js(colour, e) for e in page.elements(".asyndm-entry")}
    marks = {e.text: page.js(colour, e) for e in page.elements(".asyndm-mark")}
    assert legend == marks and len(set(legend.values())) == 3


def test_undo_repaints(page: Page) -> None:
    masked_map(page)
    page.set(MAP, "strength", 0.2)
    before = lines(page)
    page.set(MAP, "strength", 0.9)
    assert lines(page) != before
    page.keys(Keys.CONTROL, "z")
    page.wait("testing.widget(arguments[0], 'strength')?.value === 0.2", MAP)
    page.wait("document.querySelector('.asyndm-plot')?.dataset.lines === arguments[0]", json.dumps(
        [{"name": name, "line": line} for name, line in before.items()], separators=(",", ":")))  # fmt: skip
