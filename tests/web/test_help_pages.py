"""The help pages of the nodes: where ComfyUI looks for them, with pictures that it finds, and nothing that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PAGES = sorted(DOCS.glob("*/en.md"))
PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<address>[^)\s]+)\)")
LARGEST = 60_000
"""Bytes of a picture."""


def test_there_is_one_page_for_each_node_and_no_second_copy() -> None:
    nodes = {
        match["id"]
        for path in (ROOT / "nodes").glob("*.py")
        for match in re.finditer(r'node_id="(?P<id>\w+)"', path.read_text(encoding="utf-8"))
    }
    assert nodes and {page.parent.name for page in PAGES} == nodes
    assert {path.name for path in DOCS.rglob("*.md")} == {"en.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pictures_are_where_comfyui_looks_and_links_lead_somewhere(page: Path) -> None:
    """ComfyUI takes paths of pictures from web/docs, not from the page's folder, and paths of links from its own page."""
    text = page.read_text(encoding="utf-8")
    for match in PICTURE.finditer(text):
        picture = DOCS / match["path"]
        assert match["text"] and picture.is_file(), match[0]
        assert picture.read_bytes()[:2] == b"\xff\xd8" and picture.stat().st_size < LARGEST, picture.name
    for match in LINK.finditer(text):
        assert match["address"].startswith("https://"), match[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_says_what_to_do_when_something_looks_wrong(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ") and text.count("\n# ") == 0
    for heading in ("## Inputs", "## Outputs", "## When something looks wrong"):
        assert f"\n{heading}\n" in text
    assert text.split("## When something looks wrong")[1].count("\n|") >= 4


def test_no_picture_is_left_over() -> None:
    used = {match["path"] for page in PAGES for match in PICTURE.finditer(page.read_text(encoding="utf-8"))}
    assert {path.name for path in DOCS.iterdir() if path.is_file()} == used


def test_the_readme_and_the_page_say_the_same_of_strength() -> None:
    """The advice stands in both places, in the same words; links of the README to pages lead to files."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (DOCS / "AsynDM_TimestepMap" / "en.md").read_text(encoding="utf-8")
    start = readme.index("Strength 0 is the ordinary sampler")
    assert readme[start : readme.index("\n\nIt helps some", start)] in page
    for match in re.finditer(r"\]\((web/[^)]+)\)", readme):
        assert (ROOT / match[1]).is_file(), match[0]
