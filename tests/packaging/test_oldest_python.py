"""The pack runs on the oldest Python that ComfyUI runs on: by grammar and standard library, and, where it is there, itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_process import comfyui_path
from shipped import ROOT, shipped

OLDEST = "3.10"
SOURCES = [str(path) for path in shipped() if path.suffix == ".py"]
IMPORT = """
import asyncio, importlib.util, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import nodes
root = sys.argv[2]
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
print(sys.version_info[:2], *sorted(node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())))
"""


def vermin(*files: str) -> subprocess.CompletedProcess:
    """Vermin's verdict on files: code 0 if the oldest Python has all that they use."""
    command = [sys.executable, "-c", "import vermin; vermin.main()", f"--target={OLDEST}-", "--violations", "--no-tips", *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def python() -> str | None:
    """A Python of this version that has torch: ASYNDM_PYTHON310's, or one that is installed."""
    found = [os.environ.get("ASYNDM_PYTHON310"), shutil.which(f"python{OLDEST}")]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import torch"], capture_output=True).returncode == 0:
            return path
    return None


def test_all_that_is_used_is_there() -> None:
    verdict = vermin(*SOURCES)
    assert len(SOURCES) > 30 and verdict.returncode == 0, verdict.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [("from typing import Self", "Self"), ("import tomllib", "tomllib"), ("try: ...\nexcept* ValueError: ...", "except*")],
)
def test_what_is_not_there_is_found(line: str, found: str, tmp_path: Path) -> None:
    """The check is one."""
    (tmp_path / "new.py").write_text(line + "\n", encoding="utf-8")
    verdict = vermin(str(tmp_path / "new.py"))
    assert verdict.returncode == 1 and found in verdict.stdout and "3.11" in verdict.stdout


@pytest.mark.skipif(comfyui_path() is None, reason="no ComfyUI found: set COMFYUI_PATH")
def test_it_is_imported() -> None:
    """By the Python itself, as ComfyUI does."""
    path = python()
    if path is None:
        pytest.skip(f"no Python {OLDEST} with torch and ComfyUI's requirements: name one in ASYNDM_PYTHON310 to import with it")
    command = [path, "-c", IMPORT, str(comfyui_path()), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=comfyui_path())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"({OLDEST.replace('.', ', ')}) AsynDM_Apply"), done.stdout
