"""The benchmark on a checkpoint of the user's own: alone, and shared out over processes. On the demo model, in few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asyndm_pack.benchmarks.inpainting.cases import choose_cases
from asyndm_pack.benchmarks.own_checkpoint import __main__ as command
from asyndm_pack.benchmarks.own_checkpoint.processes import Processes
from asyndm_pack.benchmarks.own_checkpoint.report import around, seam, summary
from asyndm_pack.benchmarks.own_checkpoint.sampling import DEMOS, MODES, WAYS
from comfy_process import comfyui_path
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--checkpoint", "demo", "--size", "128", "--steps", "3", "--cfg", "4.5"]


@pytest.fixture(autouse=True)
def _loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI and the pack are in this process already."""
    monkeypatch.setattr(command, "load_pack", lambda cpu: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Drawings of the demo world with holes where a thing stood, and prompts for another one there."""
    (tmp_path / "pictures").mkdir()
    for number, case in enumerate(choose_cases("replace", 3, 5)):
        path = tmp_path / "pictures" / f"{number}.png"
        Image.fromarray(case.drawing).save(path)
        Image.fromarray(case.mask()).save(path.with_name(f"{number}_mask.png"))
        path.with_suffix(".txt").write_text(f"{case.scene.prompt()} | {case.target}\n", encoding="utf-8")
    return tmp_path / "pictures"


class Brightness:
    """A scorer in the place of CLIPScore."""

    def __call__(self, image: torch.Tensor, prompt: str) -> torch.Tensor:
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and prompt
        return image.float().mean()


def kept(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", DEMOS)
def test_triplets_of_prompts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    """A picture of every mode from each seed; strips, a sheet, and one number for each."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two\na green boat on the sea | boat\n\na red ball in a room\n", encoding="utf-8")
    monkeypatch.setattr(command, "make_scorer", lambda name, told: Brightness())
    out = tmp_path / "out"
    call = [*SMALL, "--checkpoint", model, "--prompts", str(prompts), "--seeds", "1", "2", "--out", str(out)]
    assert command.main(call) == 0
    found = kept(out)
    assert found["checkpoint"] == model
    rows = [("a green boat on the sea", "boat"), ("a red ball in a room", "")]
    assert [(r["prompt"], r["targets"], r["seed"]) for r in found["rows"]] == [(*row, seed) for row in rows for seed in (1, 2)]
    assert list(found["scores"]["CLIPScore"]) == list(MODES)
    for number, seed in ((0, 1), (0, 2), (1, 1), (1, 2)):
        with Image.open(out / f"{number:03d}_{seed}.jpg") as strip:
            assert strip.size == (3 * 128, 128)
            means = np.array(strip).astype(float).reshape(128, 3, 128, 3).mean((0, 2, 3))
        assert means == pytest.approx([found["scores"]["CLIPScore"][mode][2 * number + seed - 1] for mode in MODES], abs=1)
    with Image.open(out / "sheet.jpg") as sheet:
        assert sheet.width > 3 * 200 and sheet.height > 4 * 200
    assert "CLIPScore   asynchronous: " in capsys.readouterr().out


@pytest.mark.whole
def test_processes_share_the_rows_out(folder: Path, tmp_path: Path) -> None:
    """Two under torchrun make what one makes: every row once, in the same order, with the same figures."""
    flags = [*SMALL, "--edit", str(folder), "--seeds", "3", "--clip", str(tmp_path / "no such CLIP")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*launcher, "benchmarks.own_checkpoint", *flags, "--out", str(tmp_path / "two")],
        cwd=ROOT, env={**environment, "OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(comfyui_path())},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2/2" in done.stdout and "3 rows" in done.stdout, done.stdout
    assert command.main([*flags, "--out", str(tmp_path / "one")]) == 0
    two, one = kept(tmp_path / "two"), kept(tmp_path / "one")
    assert two["rows"] == one["rows"] and [row["picture"] for row in two["rows"]] == ["0.png", "1.png", "2.png"]
    for way in WAYS:
        assert two["scores"]["seam"][way] == pytest.approx(one["scores"]["seam"][way], abs=0.1)
    names = [sorted(path.name for path in (tmp_path / out).iterdir()) for out in ("two", "one")]
    assert names == [["000_3.jpg", "001_3.jpg", "002_3.jpg", "scores.json", "sheet.jpg"]] * 2


def test_a_hole_is_drawn_and_the_rest_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every way; ``noised`` is ComfyUI's own inpainting. The scorer sees the hole with its surroundings, or nothing."""
    seen: list[tuple[int, ...]] = []

    class Watching(Brightness):
        def __call__(self, image: torch.Tensor, prompt: str) -> torch.Tensor:
            seen.append((*image.shape, prompt))
            return super().__call__(image, prompt)

    monkeypatch.setattr(command, "make_scorer", lambda name, told: Watching())
    for path in folder.glob("[12]*"):
        path.unlink()
    (case, *_) = choose_cases("replace", 3, 5)
    for task in ("edit", "remove"):
        assert command.main([*SMALL, f"--{task}", str(folder), "--seeds", "3", "--out", str(tmp_path / task)]) == 0
    rows, columns = around(case.mask())
    shape = case.mask()[rows, columns].shape
    assert seen == [(3, *shape, case.target)] * len(WAYS)
    assert list(kept(tmp_path / "edit")["scores"]) == ["seam", "CLIPScore"]
    assert list(kept(tmp_path / "remove")["scores"]) == ["seam"]
    with Image.open(tmp_path / "edit" / "000_3.jpg") as strip:
        before, *drawn = np.array(strip).astype(int).reshape(128, 4, 128, 3).transpose(1, 0, 2, 3)
    left, top, right, bottom = case.hole
    far = np.ones((128, 128), bool)
    far[max(0, top - 24) : bottom + 24, max(0, left - 24) : right + 24] = False
    for picture in drawn:
        assert np.abs(picture - before)[far].mean() < 6 < np.abs(picture - before)[case.mask()].mean()
    assert np.abs(drawn[0] - drawn[1]).mean() > 0.2 and np.abs(drawn[1] - drawn[2]).mean() > 0.2


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(*flags: str) -> str:
        assert command.main([*SMALL, *flags, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    (folder / "1.txt").unlink()
    assert "1.png has no prompt" in said("--edit", str(folder)) and not (tmp_path / "out").exists()
    (folder / "0_mask.png").unlink()
    assert "put 0_mask.png beside it" in said("--remove", str(folder))
    assert "no picture" in said("--edit", str(tmp_path / "nowhere"))
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    assert "No prompt in" in said("--prompts", str(tmp_path / "empty.txt"))


def test_shares() -> None:
    """Every job belongs to one process."""
    jobs = list(range(11))
    shares = [Processes(rank, 4).mine(jobs) for rank in range(4)]
    assert sorted(job for share in shares for job in share) == jobs and {len(share) for share in shares} == {2, 3}
    assert Processes().mine(jobs) == jobs and Processes().gathered(jobs) == jobs


def test_seam_and_summary() -> None:
    """On pictures whose seam is known; a smooth slope has none."""
    hole = np.zeros((64, 64), bool)
    hole[16:40, 24:48] = True
    slope = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 2, (1, 64, 3))
    assert seam(slope, hole) == pytest.approx(0, abs=0.2)
    stepped = slope + np.uint8(10) * hole[..., None]
    assert 8 < seam(stepped, hole) < 11 and seam(slope, np.ones_like(hole)) == 0
    assert summary({"seam": {"noised": [4.0, 6.0], "ahead": [1.0, 5.0]}}) == [
        "seam   noised: 5.000", "seam   ahead: 3.000   against noised -2.000 ± 0.707",
    ]  # fmt: skip
