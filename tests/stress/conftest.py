"""A server under stress, where there is a ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfy.comfy_process import comfyui_path

PATH = comfyui_path()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip the folder without a ComfyUI; tests/comfy says in one line how to get one."""
    return True if PATH is None and collection_path.is_relative_to(Path(__file__).parent) else None


if PATH is not None:
    from .runner import Runner, stress_server

    @pytest.fixture(scope="session")
    def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
        """One server for all tests of this folder."""
        with stress_server(PATH, tmp_path_factory.mktemp("stress") / "comfyui") as server:
            yield Runner(server)
