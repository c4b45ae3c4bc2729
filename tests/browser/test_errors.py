"""What went wrong in a run is in sight as a sentence, in both renderers, and gone with the next run."""

from __future__ import annotations

import json

import pytest
from page import ROOT, Page

TOAST = ".p-toast-message"


def toasts(page: Page) -> list[str]:
    """The texts of the toasts that are seen."""
    return page.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.replace(/\\s+/g, ' '))", TOAST)


def test_the_sentence_is_in_sight(page: Page, request: pytest.FixtureRequest) -> None:
    page.load(json.loads((ROOT / "workflows/asyndm_demo.json").read_text(encoding="utf-8")))
    page.set("AsynDM_CrossAttentionMask", "targets", "wolf")
    assert page.run_to_end()[0] == "execution_error"
    page.wait("document.querySelector(arguments[0])", TOAST)
    page.frames(20)
    page.screenshot(f"{request.node.name}_told")
    (told,) = toasts(page)
    assert told.startswith("Cross-Attention Mask The target 'wolf'")
    assert "UnknownWordError" not in told and "asyndm_core" not in told
    page.set("AsynDM_CrossAttentionMask", "targets", "boat")
    page.set("AsynDM_KSampler", "steps", 2)
    page.run()
    page.wait("!document.querySelector(arguments[0])", TOAST)
