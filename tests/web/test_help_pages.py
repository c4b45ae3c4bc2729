"""The help pages of the nodes, in all languages: where ComfyUI looks for them, complete, with pictures that it finds.

ComfyUI asks for docs/NODE/LANGUAGE.md, then for docs/NODE.md, which is the English page. It takes paths of pictures from
docs, whichever page they are on. So the English pages show theirs on a code host too; in a folder of its own, a page has
no path that is right in both places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<address>[^)\s]+)\)")
ENTRY = re.compile(r"^- \*\*(?P<name>[^*]+)\*\*", re.MULTILINE)
LARGEST = 60_000
"""Bytes of a picture."""
HEADINGS = {
    "en": ("Inputs", "Outputs", "When something looks wrong"),
    "zh": ("输入", "输出", "出现问题时"),
    "ja": ("入力", "出力", "うまくいかないとき"),
}
TEXTS: dict[str, Any] = {
    language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in HEADINGS
}
"""What the nodes say in each language; tests/comfy holds them against the schemas."""


class HelpPage(NamedTuple):
    """A node's page in a language."""

    node: str
    language: str

    @property
    def path(self) -> Path:
        """Where ComfyUI looks for it."""
        return DOCS / (f"{self.node}.md" if self.language == "en" else f"{self.node}/{self.language}.md")

    @property
    def text(self) -> str:
        """Its Markdown."""
        return self.path.read_text(encoding="utf-8")

    @property
    def pictures(self) -> list[str]:
        """Paths of its pictures."""
        return [match["path"] for match in PICTURE.finditer(self.text)]

    def section(self, heading: int) -> str:
        """What stands under one of HEADINGS."""
        title = HEADINGS[self.language][heading]
        assert f"\n## {title}\n" in self.text, f"{self.path} has no section {title}"
        return self.text.split(f"\n## {title}\n")[1].split("\n## ")[0]


PAGES = [HelpPage(node, language) for language in HEADINGS for node in TEXTS["en"]]
each_page = pytest.mark.parametrize("page", PAGES, ids="-".join)


def test_there_is_one_page_for_each_node_and_language_and_no_other() -> None:
    nodes = {
        match["id"]
        for path in (ROOT / "nodes").glob("*.py")
        for match in re.finditer(r'node_id="(?P<id>\w+)"', path.read_text(encoding="utf-8"))
    }
    assert nodes and all(set(texts) == nodes for texts in TEXTS.values())
    assert set(DOCS.rglob("*.md")) == {page.path for page in PAGES}


@each_page
def test_explains_every_input_and_output_by_the_name_that_the_node_shows(page: HelpPage) -> None:
    """In the node's order. An input that was appended is missing here until all pages have it."""
    texts = TEXTS[page.language][page.node]
    for heading, sockets in enumerate((texts["inputs"], texts["outputs"])):
        named = [match["name"] for match in ENTRY.finditer(page.section(heading))]
        assert named == [socket["name"] for socket in sockets.values()], f"{page.path}: {HEADINGS[page.language][heading]}"


@each_page
def test_speaks_of_inputs_by_the_names_of_its_language(page: HelpPage) -> None:
    names = {name: own["name"] for texts in TEXTS[page.language].values() for name, own in texts["inputs"].items()}
    for match in re.finditer(r"(?<!\*)\*([a-z_]+)\*(?!\*)", page.text):
        assert names.get(match[1], match[1]) == match[1], f"{page.path} says {match[0]} for {names[match[1]]}"


@each_page
def test_pictures_are_where_comfyui_looks_and_links_lead_somewhere(page: HelpPage) -> None:
    """ComfyUI takes paths of links from its own page."""
    for match in PICTURE.finditer(page.text):
        picture = DOCS / match["path"]
        assert match["text"] and picture.is_file(), match[0]
        assert picture.read_bytes()[:2] == b"\xff\xd8" and picture.stat().st_size < LARGEST, picture.name
        assert page.language != "en" or (page.path.parent / match["path"]).is_file(), match[0]
    for match in LINK.finditer(page.text):
        assert match["address"].startswith("https://"), match[0]


@each_page
def test_says_what_to_do_when_something_looks_wrong(page: HelpPage) -> None:
    assert page.text.startswith("# ") and page.text.count("\n# ") == 0
    assert page.section(2).count("\n|") >= 4


@each_page
def test_a_translation_has_the_parts_and_pictures_of_the_english_page(page: HelpPage) -> None:
    english = HelpPage(page.node, "en")
    assert page.text.startswith(f"# {TEXTS[page.language][page.node]['display_name']}\n")
    assert page.pictures == english.pictures
    assert page.text.count("\n## ") == english.text.count("\n## ")


def test_no_picture_is_left_over() -> None:
    used = {path for page in PAGES for path in page.pictures}
    assert {path.name for path in DOCS.iterdir() if path.suffix != ".md" and path.is_file()} == used


def test_links_of_the_readme_lead_to_files() -> None:
    for match in re.finditer(
        r"\]\(((web|docs|tests|benchmarks)/[^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        assert (ROOT / match[1]).is_file(), match[0]


ADVISERS = [
    *(path for pattern in ("README.md", "docs/*.md", "nodes/*.py", "asyndm_core/**/*.py", "workflows/*.json")
      for path in sorted(ROOT.glob(pattern))),
    *(page.path for page in PAGES),
]  # fmt: skip
"""Texts that may tell the user to switch something off."""


@pytest.mark.parametrize("path", ADVISERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_advises_to_bypass_what_cannot_be_bypassed(path: Path) -> None:
    """Bypassing all nodes of the pack, or AsynDM KSampler, loses the prompt or samples nothing (tests/browser/test_bypass)."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[Bb]ypass (the|all) AsynDM nodes|[Bb]ypass AsynDM KSampler|[Bb]ypass one of the two", text)
