"""The speed benchmark's rows of a GPU, rehearsed on the CPU with small models, through the same functions."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from asyndm_pack.asyndm_core.transfer import Transfer

from benchmarks.speed.card import SYNCHRONIZES, Card, noticing
from benchmarks.speed.duel import Bench, random_pair
from benchmarks.speed.gpu import FEWEST, measure, parity, profiled
from benchmarks.speed.report import gpu_table, write_gpu
from benchmarks.speed.rows import SD_GPU, rehearsed

CARD = Card("cpu")
ROW = rehearsed(SD_GPU)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(ROW, random_pair(ROW.model, "cpu", "float32"))


@pytest.mark.whole
def test_a_row_and_its_table(bench: Bench, tmp_path: Path) -> None:
    """The map has as many distinct timesteps as the row says, and every number of the table is there."""
    line = {"row": vars(ROW), **measure(bench, CARD, 0.0)}
    assert bench.distinct == ROW.distinct
    assert line["pairs"] == FEWEST
    assert line["device"] > 0 and line["added"] == {}
    found = {"row": vars(ROW), **parity(Bench(ROW, (bench.models["stock"], bench.models["stock"])))}
    assert found["strength 0"]["same"]
    assert all(found[arm]["difference"] < 1e-5 for arm in found if arm not in ("row", f"{ROW.distinct} distinct"))
    assert found[f"{ROW.distinct} distinct"]["difference"] > 1e-2
    results = {**CARD.described(), "planted": 0, "rows": [line], "parity": [found], "failed": {"no time left": ["a row"]}}
    results["kernels"] = {ROW.name: profiled(bench, CARD, tmp_path / "profile.txt")}
    write_gpu(results, tmp_path)
    assert gpu_table(json.loads((tmp_path / "cuda.json").read_text())) == (tmp_path / "cuda.md").read_text()
    assert "asyndm_core/run.py" in (tmp_path / "profile.txt").read_text()


def test_waits_are_noticed() -> None:
    """PyTorch's warnings while it is asked to, and numbers that have not arrived; other warnings go where they went."""
    number = Transfer(torch.ones(1))
    late = Transfer(torch.ones(1))
    late._arrived = type("Event", (), {"query": lambda self: False, "synchronize": lambda self: None})()
    with pytest.warns(UserWarning, match="something else"), noticing(CARD) as waits:
        warnings.warn(SYNCHRONIZES, stacklevel=1)
        waits.on = True
        warnings.warn(SYNCHRONIZES, stacklevel=1)
        warnings.warn(SYNCHRONIZES, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        number.read()
        late.read()
    assert waits.places.total() == 2
    assert len(waits.late) == 1
