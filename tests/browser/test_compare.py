"""Two pictures of one seed under a slider: the template asyndm_compare, run and looked at in both renderers."""

from __future__ import annotations

import json

import pytest
from page import ROOT, Page

pytestmark = pytest.mark.whole

COMPARE = "AsynDM_Compare"
LOADED = "[...document.querySelectorAll('.asyndm-picture')].every((e) => e.complete && e.naturalWidth === 512)"


def place(page: Page) -> float:
    """Where the line is, in percent of the picture."""
    stage, line = page.element(".asyndm-stage"), page.element(".asyndm-line")
    boxes = "return arguments[0].getBoundingClientRect().x"
    left, at = (page.js(boxes, element) for element in (stage, line))
    return 100 * (at - left) / page.size(stage)[0]


def test_one_click_compares_one_seed(page: Page) -> None:
    workflow = json.loads((ROOT / "workflows/asyndm_compare.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "AsynDM_KSampler":
            node["widgets_values"][2] = 6
    page.load(workflow)
    page.fit(COMPARE)
    assert "After a run" in page.element(".asyndm-compare").text
    page.run()
    page.wait(LOADED)
    first, second = (e.get_attribute("src") for e in page.elements(".asyndm-picture"))
    assert first != second
    assert abs(place(page) - 50) < 1.5
    stage = page.element(".asyndm-stage")
    page.click_at(stage, 0.25)
    assert abs(place(page) - 25) < 1.5
    clip = page.js("return getComputedStyle(document.querySelector('.asyndm-picture-b')).clipPath")
    assert clip.startswith("inset(0px 0px 0px 2") and abs(float(clip.split()[-1].rstrip("%)")) - 25) < 1.5
    page.click_at(page.element(".asyndm-compare .asyndm-slider"), 1)
    assert place(page) > 98
