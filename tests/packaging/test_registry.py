"""What the Comfy Registry is told and hands out (its rules: docs.comfy.org/registry/specifications)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from comfy_process import comfyui_path, start
from shipped import ROOT, shipped

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ID = PROJECT["project"]["name"]
PAGES = {"AsynDM_Apply", "AsynDM_CrossAttentionMask", "AsynDM_KSampler", "AsynDM_TimestepMap"}


def test_the_id() -> None:
    """It can't be changed later."""
    assert ID == "asyndm"
    assert len(ID) < 100 and re.fullmatch(r"[A-Za-z]([._-]?[A-Za-z0-9])*", ID) and "comfyui" not in ID.lower()


def test_what_the_registry_shows() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and len(project["description"]) > 40
    assert project["urls"].keys() >= {"Repository", "Documentation", "Bug Tracker"}
    assert all(url.startswith(project["urls"]["Repository"]) for url in project["urls"].values())
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.8.0"
    assert project["dependencies"] == []


def test_the_icon() -> None:
    """Of this repository, and within 800 x 400 pixels."""
    *_, branch, folder, name = urlsplit(PROJECT["tool"]["comfy"]["Icon"]).path.split("/")
    assert branch == "main" and name.endswith(".svg")
    icon = (ROOT / folder / name).read_text(encoding="utf-8")
    width, height = (int(re.search(rf'<svg[^>]* {side}="(\d+)"', icon)[1]) for side in ("width", "height"))
    assert width <= 800 and height <= 400


def test_it_is_published_after_the_tests_only() -> None:
    publish = (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8")
    assert "uses: ./.github/workflows/tests.yml" in publish and "needs: tests" in publish
    assert "run: bash .ci/run" in (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")


def test_only_what_a_user_needs() -> None:
    files = shipped()
    assert {path.parts[0] for path in files} == {
        "LICENSE", "README.md", "__init__.py", "asyndm_core", "demo", "locales", "nodes", "pyproject.toml", "web", "workflows",
    }  # fmt: skip
    assert sum((ROOT / path).stat().st_size for path in files) < 19e6


@pytest.mark.whole
@pytest.mark.skipif(comfyui_path() is None, reason="no ComfyUI found: set COMFYUI_PATH")
def test_it_runs_as_it_is_handed_out(tmp_path: Path) -> None:
    """The shipped files alone, in a folder of the registry's name: nodes, help, templates, and a run of the demo model."""
    pack = tmp_path / ID
    for path in shipped():
        (pack / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, pack / path)
    with start(comfyui_path(), tmp_path / "comfyui", pack=pack) as server:
        assert server.json("/object_info").keys() >= PAGES
        assert f"/extensions/{ID}/asyndm.js" in server.json("/extensions")
        for page in PAGES:
            assert server.get(f"/extensions/{ID}/docs/{page}.md")
        assert set(server.json("/workflow_templates")[ID]) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
        outputs = server.run(
            {
                "1": {"class_type": "AsynDM_DemoModel", "inputs": {}},
                "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a green boat"}},
                "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
                "4": {"class_type": "KSampler", "inputs": {
                    "model": ["1", 0], "seed": 1, "steps": 2, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal",
                    "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "denoise": 1.0}},
                "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
                "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
            }
        )  # fmt: skip
        assert server.image(outputs["6"]["images"][0]).shape == (128, 128, 3)
        assert "Traceback" not in server.log, server.log


def test_versions_agree() -> None:
    """README, the registry and the checks say the same oldest Python."""
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
