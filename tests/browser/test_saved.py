"""Workflows that earlier versions of the pack saved: they open with the values they were saved with, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page import Page

SAVED = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(__file__).parent / "saved").glob("*.json"))
}
SINCE = {
    "AsynDM_TimestepMap": {"region_denoise": 1, "background_denoise": 1, "known_pixels": "noised", "lead": 0.2},
    "AsynDM_Apply": {"preview": True},
    "AsynDM_CrossAttentionMask": {"lost_targets": "stop", "hold": 0, "fade": 0},
    "AsynDM_DemoModel": {"network": "unet"},
}
"""Inputs that came later, and what they have to be in an older workflow: as if they were not there."""


def widgets(page: Page, node_id: int) -> list[tuple[str, Any]]:
    """Names and values of a node's widgets that are saved, in their order."""
    return page.js(
        """
        const node = app.rootGraph.getNodeById(arguments[0])
        return node.widgets.filter((w) => w.serialize !== false).map((w) => [w.name, w.value])
        """,
        node_id,
    )


@pytest.mark.parametrize("name", SAVED)
def test_opens_as_it_was_saved(page: Page, name: str) -> None:
    """The values that were saved first, then those that came later; and all of them are sent."""
    page.load(SAVED[name])
    sent = page.prompt()
    own = [node for node in SAVED[name]["nodes"] if node["type"].startswith("AsynDM_")]
    assert own
    for node in own:
        old, now = node.get("widgets_values", []), widgets(page, node["id"])
        assert [value for _, value in now[: len(old)]] == old
        later = dict(now[len(old) :])
        assert later.items() <= SINCE.get(node["type"], {}).items()
        for key, value in SINCE.get(node["type"], {}).items():
            assert sent[str(node["id"])]["inputs"][key] == value


def test_runs(page: Page) -> None:
    """A saved demo workflow, queued and finished."""
    page.load(SAVED["asyndm_demo"])
    page.run()
