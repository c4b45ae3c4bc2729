"""The texts of the nodes in three languages: complete, nothing left over, English as the schemas say it, and served."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_process import Server

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja")
TEXTS = {
    language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in LANGUAGES
}
SYNTAX = re.compile(r"[@{}|]")
"""What the frontend's translation library does not read as plain text."""
SCRIPTS = {"zh": re.compile(r"[\u4e00-\u9fff]"), "ja": re.compile(r"[\u3040-\u30ff]")}
"""Chinese characters; Japanese kana."""


def texts_of(node_class: Any) -> dict[str, Any]:
    """What a node's schema says to the user, in the form of nodeDefs.json."""
    info = node_class.GET_NODE_INFO_V1()
    declared = itertools.chain.from_iterable(info["input"].get(group, {}).items() for group in ("required", "optional"))
    inputs = {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in declared}
    tooltips = info["output_tooltips"] or [None] * len(info["output_name"])
    outputs = {
        str(index): {"name": name} | ({"tooltip": tooltip} if tooltip else {})
        for index, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The texts of all nodes of the pack, as their schemas have them."""
    extension = asyncio.run(sys.modules["asyndm_pack"].comfy_entrypoint())
    classes = asyncio.run(extension.get_node_list())
    return {node_class.GET_SCHEMA().node_id: texts_of(node_class) for node_class in classes}


def leaves(texts: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All texts of a nodeDefs.json with their places in it."""
    if isinstance(texts, str):
        yield path, texts
        return
    for key, value in texts.items():
        yield from leaves(value, (*path, key))


def test_english_is_what_the_schemas_say(schemas: dict[str, Any]) -> None:
    should_be = json.dumps(schemas, ensure_ascii=False, indent=2)
    assert TEXTS["en"] == schemas, f"locales/en/nodeDefs.json should be:\n{should_be}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_has_an_entry_for_every_text_and_no_other(language: str, schemas: dict[str, Any]) -> None:
    there, wanted = dict(leaves(TEXTS[language])), dict(leaves(schemas))
    assert there.keys() - wanted.keys() == set(), "entries of nothing"
    assert wanted.keys() - there.keys() == set(), "entries that are missing"
    assert set(TEXTS[language]) == set(schemas)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_shown_as_they_are_written(language: str) -> None:
    for path, text in leaves(TEXTS[language]):
        assert text.strip() and text == text.strip() and not SYNTAX.search(text), (path, text)


@pytest.mark.parametrize("language", SCRIPTS)
def test_is_translated(language: str) -> None:
    """Descriptions and tooltips are in the language's own script, and name every option and number of the English text."""
    english = dict(leaves(TEXTS["en"]))
    for path, text in leaves(TEXTS[language]):
        if path[-1] in ("description", "tooltip"):
            assert SCRIPTS[language].search(text), (path, text)
            numbers = set(re.findall(r"\d+(?:\.\d+)?", english[path]))
            assert numbers <= set(re.findall(r"\d+(?:\.\d+)?", text)), (path, numbers, text)


@pytest.mark.parametrize("language", SCRIPTS)
def test_tooltips_name_the_options_as_the_widget_shows_them(language: str, schemas: dict[str, Any]) -> None:
    for node, name, options in (
        ("AsynDM_CrossAttentionMask", "update", ("every step", "fixed")),
        ("AsynDM_CrossAttentionMask", "mask_mode", ("limit", "add", "replace")),
        ("AsynDM_CrossAttentionMask", "lost_targets", ("stop", "skip")),
        ("AsynDM_TimestepMap", "curve", ("quadratic", "piecewise linear", "exponential", "linear")),
        ("AsynDM_TimestepMap", "mode", ("asynchronous", "concave", "synchronous")),
        ("AsynDM_TimestepMap", "preset", ("paper", "default")),
        ("AsynDM_TimestepMap", "known_pixels", ("noised", "clean", "ahead")),
    ):
        tooltip = TEXTS[language][node]["inputs"][name]["tooltip"]
        assert all(option in tooltip for option in options), (node, name, tooltip)


def test_the_server_offers_them(server: Server) -> None:
    served = server.json("/api/i18n")
    assert {language: served[language]["nodeDefs"] for language in LANGUAGES} == TEXTS
