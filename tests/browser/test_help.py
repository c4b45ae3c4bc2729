"""Help pages as ComfyUI shows them: in the page's language, with all their pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from page import ROOT, Page

LANGUAGES = ("en", *(pytest.param(language, marks=pytest.mark.whole) for language in ("zh", "ja")))


@pytest.fixture(scope="module")
def help_panel(opened: Page) -> Iterator[Page]:
    """The window, in English again afterwards."""
    opened.open()
    yield opened
    opened.set_setting("Comfy.Locale", "en")
    opened.open()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_info_button_opens_the_page(help_panel: Page, language: str) -> None:
    """In English it is the page that any language without one of its own gets."""
    page = help_panel
    page.set_setting("Comfy.Locale", language)
    page.open()
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node, own in texts.items():
        page.new_workflow()
        page.add(node)
        page.js("app.canvas.ds.scale = 1; app.canvas.ds.offset = [200, 250]; app.canvas.selectItems([app.rootGraph.nodes[0]])")
        page.frames()
        page.click(page.element("[data-testid=info-button]"))
        shown = "document.querySelector('.markdown-content')"
        page.wait(f"{shown}?.querySelector('h1')?.textContent.trim() === arguments[0]", own["display_name"])
        page.wait(f"[...{shown}.querySelectorAll('img')].every((image) => image.complete && image.naturalWidth > 0)")
        page.screenshot(f"help_{node}_{language}")
        text = page.js(f"return {shown}.textContent")
        assert "*" not in text and "](" not in text, "Markdown that is not read as such"
        entries = page.js(f"return [...{shown}.querySelectorAll('li > strong:first-child')].map((e) => e.textContent)")
        assert {socket["name"] for socket in own["inputs"].values()} <= set(entries)
    asked_before = f"/{language}.md"  # where it is not there, the English page is asked for next
    assert [message for message in page.complaints() if asked_before not in message] == []
