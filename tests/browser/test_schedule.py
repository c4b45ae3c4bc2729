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


def is_painted(page: Page) -> bool:
    """Whether the canvas shows a pixel of the first region's colour (orange)."""
    return page.js(
        """
        const canvas = document.querySelector('.asyndm-plot')
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        for (let n = 0; n < data.length; n += 4) if (data[n] === 232 && data[n + 1] === 119 && data[n + 2] === 34) return true
        return false
        """
    )


@pytest.mark.parametrize("curve", CURVES)
def test_lines_are_the_samplers(page: Page, curve: str) -> None:
    masked_map(page)
    page.set(MAP, "curve", curve)
    page.set(MAP, "strength", 0.85)
    drawn = lines(page)
    assert list(drawn) == ["boat", "sea"] and is_painted(page)
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
    canvas = page.element(".asyndm-plot")
    page.drag(canvas, (0.5, 0.31), (0.5, 0.43))
    strength = page.value(MAP, "strength")
    assert 0.05 < strength < 0.4 and page.value(MASK, "targets") == "boat, sea:0.4"
    page.set(MAP, "strength", 0.9)
    page.drag(canvas, (0.5, 0.38), (0.5, 0.1))
    assert page.value(MAP, "strength") == 0.9 and page.value(MASK, "targets") == "boat, sea:1"


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
    assert list(lines(page)) == ["all pixels"]
    page.set(MAP, "mode", "synchronous")
    assert lines(page) == {} and "stock sampler" in page.element(".asyndm-legend").text


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
