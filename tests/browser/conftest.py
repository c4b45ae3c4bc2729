"""Tests in a real browser (Chromium) on a real ComfyUI server, in both of the frontend's renderers.

One server for all of them, and a browser for each file. They are skipped, with one line that says what to install, where
something is missing.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "comfy"))
from comfy_process import Server, comfyui_path, start

HERE = Path(__file__).parent

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.49.6",
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.EnableTooltips": False,
    "Comfy.Graph.CanvasInfo": False,
}


def missing() -> str | None:
    """What the machine lacks for these tests, as one line, or None."""
    wants = [
        (comfyui_path() is not None, "a ComfyUI (set COMFYUI_PATH)"),
        (importlib.util.find_spec("comfyui_frontend_package") is not None, "ComfyUI's requirements (comfyui-frontend-package)"),
        (importlib.util.find_spec("selenium") is not None, "selenium (pip install -r tests/requirements.txt)"),
        (shutil.which("chromium") or shutil.which("google-chrome"), "Chromium (Debian: apt install chromium)"),
        (shutil.which("chromedriver"), "its driver (Debian: apt install chromium-driver)"),
    ]
    lacking = [what for there, what in wants if not there]
    return f"tests/browser skipped: install {', '.join(lacking)}." if lacking else None


LACKING = missing()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip the folder where something is missing."""
    return True if LACKING and collection_path.is_relative_to(HERE) and collection_path.name != "conftest.py" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so in one line."""
    if LACKING:
        terminalreporter.write_line(LACKING)


@pytest.fixture(scope="session")
def web_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, without the guided tour."""
    path = comfyui_path()
    assert path is not None
    with start(path, tmp_path_factory.mktemp("browser"), SETTINGS) as running:
        yield running


if LACKING is None:
    from page import Page, chromium

    @pytest.fixture(scope="module")
    def opened(web_server: Server) -> Iterator[Page]:
        """The one browser window of a file's tests: one that stayed open would draw on and on beside all that follow."""
        with chromium() as driver:
            yield Page(driver, web_server)

    @pytest.fixture(scope="module", params=[pytest.param("classic", marks=pytest.mark.whole), "nodes2"])
    def renderer(request: pytest.FixtureRequest, opened: Page) -> str:
        """The frontend with one of its two renderers, freshly loaded."""
        opened.use_renderer(request.param)
        return request.param

    @pytest.fixture
    def page(opened: Page, renderer: str, request: pytest.FixtureRequest) -> Iterator[Page]:
        """The window with an empty graph; after the test, nothing unknown may stand in the console."""
        opened.new_workflow()
        yield opened
        opened.screenshot(request.node.name)
        assert opened.complaints() == []
