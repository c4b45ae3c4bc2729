"""The pictures of README, help pages and templates: the command makes each of them, and each is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (ROOT / "docs" / "pictures.py").read_text(encoding="utf-8")
MADE = re.findall(r'^@picture\("([^"]+)"\)', COMMAND, re.MULTILINE)
FOLDERS = ("docs", "web/docs", "workflows")


def test_the_command_makes_them_all() -> None:
    """A picture that was put there by hand would grow old unseen."""
    there = {path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).glob("*.jpg")}
    assert len(MADE) == len(set(MADE)) and set(MADE) == there


@pytest.mark.parametrize("path", [path for path in MADE if path.startswith("docs/")])
def test_the_readme_shows_it(path: str) -> None:
    assert f"]({path})" in (ROOT / "README.md").read_text(encoding="utf-8")
