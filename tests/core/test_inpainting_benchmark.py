"""The inpainting benchmark: its cases are what they say, and its figures are right on true drawings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from asyndm_core.clock import Clock
from asyndm_core.pictures import plain_clock
from asyndm_core.regions import Plan
from benchmarks.inpainting.__main__ import decoded, main, sample_arm
from benchmarks.inpainting.arms import ARMS, EDITS, PEERS, encoded, falling, latent_holes, rimmed
from benchmarks.inpainting.cases import TASKS, choose_cases, edge_error, outside_error, right_in_hole, ring_error
from demo.config import FACTOR
from demo.model import load
from demo.sample import Settings
from demo.world import draw

CASES = {task: choose_cases(task, 30, 5) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_cases(task: str) -> None:
    """The same for the same seed; drawing and empty place differ in the hole only, and the hole fits the latents."""
    again = choose_cases(task, 30, 5)
    assert [case.scene for case in again] == [case.scene for case in CASES[task]]
    for case in CASES[task]:
        assert all(edge % FACTOR == 0 for edge in case.hole)
        changed = (case.drawing != case.empty).any(-1)
        assert changed.any() and not (changed & ~case.mask()).any()
        assert case.target in case.scene.prompt().split()


def test_figures_on_true_drawings() -> None:
    """No error at all, the right thing, or nothing, in the hole; and the old drawing is wrong."""
    for case in CASES["remove"]:
        assert right_in_hole(case.empty, case) and not right_in_hole(case.drawing, case)
        assert ring_error(case.empty, case) == edge_error(case.empty, case) == 0
        spoilt = case.empty.copy()
        spoilt[case.mask()] ^= 64
        assert edge_error(spoilt, case) > 10 and ring_error(spoilt, case) == 0
        assert outside_error(case.empty, case) == 0 < outside_error(255 - case.empty, case)
    drawn = [right_in_hole(draw(case.scene, np.random.default_rng(0)), case) for case in CASES["replace"]]
    assert np.mean(drawn) > 0.9
    assert not any(right_in_hole(case.drawing, case) for case in CASES["replace"])


def test_a_rim_is_within_the_hole() -> None:
    """The outermost latent pixels of a hole, but not where it ends with the picture; what is around it is not touched."""
    model, cases = load(), CASES["replace"][:8]
    masks, sharp = rimmed(model, cases, 0.3).mask, latent_holes(cases)
    for mask, hole, case in zip(masks[:, 0], sharp[:, 0], cases, strict=True):
        left, top, right, bottom = (edge // FACTOR for edge in case.hole)
        core = torch.zeros_like(hole)
        side = hole.shape[0]
        core[top + (top > 0) : bottom - (bottom < side), left + (left > 0) : right - (right < side)] = 1
        assert torch.equal(mask, torch.where(core == 1, core, 0.3 * hole))


@pytest.mark.parametrize("name", ["synchronous, clean", "asynchronous, the hole painted, ahead 0.2"])
def test_an_arm_keeps_the_known_latents(name: str) -> None:
    """Outside the hole, but for the decoder's reach, the picture is the drawing through the autoencoder."""
    model, cases = load(), CASES["replace"][:2]
    (arm,) = [arm for arm in ARMS if arm.name == name]
    through = decoded(model, encoded(model, [case.drawing for case in cases]))
    with torch.no_grad():
        pictures = sample_arm(arm, model, cases, [1, 2], Settings())
    for picture, wanted, case in zip(pictures, through, cases, strict=True):
        left, top, right, bottom = case.hole
        far = np.ones((128, 128), bool)
        far[max(0, top - 24) : bottom + 24, max(0, left - 24) : right + 24] = False
        assert far.any() and np.abs(picture[far].astype(int) - wanted[far]).max() <= 4
        assert (picture[case.mask()] != wanted[case.mask()]).any()


def test_an_edit_starts_from_the_drawing() -> None:
    """Without a mask: it stays nearer to the drawing the less it may replace, and the hole is told to nobody."""
    model, cases = load(), CASES["edit"][:3]
    arms = {arm.name: arm for arm in EDITS}
    with torch.no_grad():
        found = {
            name: sample_arm(arms[name], model, cases, [1, 2, 3], Settings())
            for name in ("region 0.7, background 0.7", "region 0.7, background 0.3", "region 0.7, background 0.3, ahead 0.2")
        }
    level, even, ahead = (np.mean([outside_error(p, c) for p, c in zip(f, cases, strict=True)]) for f in found.values())
    assert even < level and ahead < level
    assert (found["region 0.7, background 0.3"] != found["region 0.7, background 0.3, ahead 0.2"]).any()


def test_a_falling_lead() -> None:
    """The whole lead at first, none at the end; known pixels never get noisier."""
    clock: Clock = plain_clock(20)
    found = falling(clock, Plan(lead=0.2))
    assert found[:9] == pytest.approx([step + 4.0 for step in range(9)])
    assert found[12:] == pytest.approx(list(range(12, 21)))
    assert all(later >= before - 1e-9 for before, later in pairwise(found))


def test_resampling_takes_each_step_several_times() -> None:
    """Another picture than one pass gives, from 6 times the evaluations; as many as 6 times the steps."""
    model, cases = load(), CASES["replace"][:1]
    arms, calls = {arm.name: arm for arm in (*ARMS, *PEERS)}, []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    pictures = []
    for name in ("synchronous, noised", "resampled 6 times", "6 times the steps"):
        calls.clear()
        with torch.no_grad():
            pictures.append(sample_arm(arms[name], model, cases, [1], Settings(steps=4)).astype(int))
        assert len(calls) == (4 if name == "synchronous, noised" else 24), name
    assert all(np.abs(pictures[0] - other).mean() > 0.1 for other in pictures[1:])


def test_the_table_says_what_each_arm_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["VAE Encode (for Inpainting)", "Differential Diffusion", "synchronous, ahead 0.2, falling"]
    flags = ["--pictures", "2", "--steps", "2", "--tasks", "remove", "--out", str(tmp_path)]
    assert main([*flags, "--arms", *names]) == 0
    said = (tmp_path / "remove" / "table.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in said.splitlines() if line.startswith("| ")][1:]
    assert said in capsys.readouterr().out and len(rows) == 5
    assert rows[0] == "synchronous, noised (ComfyUI's inpainting, with Set Latent Noise Mask)"
    assert [row.split(" (ComfyUI's,")[0].split(" (no lead")[0] for row in rows[1:4]] == names
