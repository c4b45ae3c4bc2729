"""The benchmark of clips, with networks and a clip that a CPU computes at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed.clips import STOCK, TINY, clips_table, measure_clips, write_clips


@pytest.fixture(scope="module")
def measured() -> dict:
    return measure_clips((3, 8, 8), TINY)


def test_rows_say_what_comfyui_says_per_token(measured: dict) -> None:
    """And hold no more than it does: of a few tokens only where there are few levels."""
    clip, given = (measured["cases"][case.model]["lines"] for case in TINY)
    for distinct in (20, 300):
        assert clip[f"rows, {distinct} distinct"]["difference"] < 1e-5
    assert clip["rows, 20 distinct"]["peak"] < clip["ComfyUI's own per token, 20 distinct"]["peak"]
    assert clip["rows, 20 distinct"]["as large"] <= clip[STOCK]["as large"]
    assert clip["ComfyUI's own per token, 20 distinct"]["as large"] > clip[STOCK]["as large"]
    assert set(given) == {STOCK, "rows, 20 distinct", "rows, 300 distinct"}


def test_the_table(measured: dict, tmp_path: Path) -> None:
    write_clips(measured, tmp_path)
    assert json.loads((tmp_path / "clips.json").read_text()) == json.loads(json.dumps(measured))
    assert (tmp_path / "clips.md").read_text() == clips_table(measured)
    assert "The live view takes" in clips_table(measured)
