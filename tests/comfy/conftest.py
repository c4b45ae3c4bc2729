"""Tests inside a real ComfyUI: found by COMFYUI_PATH, else at comfy-cli's default place.

Set but unusable fails loudly; none at all skips the folder, and says in one line how to get one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from comfy_process import Server, comfyui_path, start

ROOT = Path(__file__).resolve().parents[2]
MISSING = (
    "tests/comfy skipped: no ComfyUI found. Set COMFYUI_PATH to a ComfyUI folder (with its requirements installed), "
    "or let comfy-cli install one to ~/comfy/ComfyUI."
)


PATH = comfyui_path()


def load_pack() -> ModuleType:
    """The pack, loaded as ComfyUI loads it: by path, under a name of its own, with relative imports only."""
    spec = importlib.util.spec_from_file_location("asyndm_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["asyndm_pack"] = module
    spec.loader.exec_module(module)
    return module


if PATH is not None:
    sys.path.insert(0, str(PATH))
    from comfy.cli_args import args

    args.cpu = True
    import comfyui_version
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    import nodes as comfy_nodes

    if Path(comfy_nodes.__file__).resolve() != (PATH / "nodes.py").resolve():
        raise pytest.UsageError(f"The module nodes is {comfy_nodes.__file__}, not ComfyUI's: check PYTHONPATH.")
    load_pack()
    import comfy.model_management
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False


@pytest.fixture(scope="session", autouse=True)
def _temporary_pictures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Previews of the nodes are not for the ComfyUI folder."""
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("previews")))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that ask for one."""
    assert PATH is not None
    with start(PATH, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(autouse=True)
def _as_in_comfyui() -> Iterator[None]:
    """ComfyUI executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _no_dead_models() -> Iterator[None]:
    """ComfyUI collects all garbage at every run, about a second each here, while a model is loaded whose last clone is gone."""
    yield
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [model for model in loaded if not model.is_dead()]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip the folder without a ComfyUI."""
    if PATH is None and collection_path.is_relative_to(Path(__file__).parent):
        return True
    return None


def pytest_report_header() -> str:
    """Which ComfyUI is tested."""
    return MISSING if PATH is None else f"ComfyUI {comfyui_version.__version__} at {PATH.name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The same at the end, where -q leaves out the header."""
    terminalreporter.write_line(pytest_report_header())
