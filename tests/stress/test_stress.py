"""The short form of ``python -m tests.stress``: the same graphs at every run."""

from __future__ import annotations

import pytest

from tests.stress import hostile
from tests.stress.graphs import Graph, without_asyndm
from tests.stress.runner import Runner
from tests.stress.verdicts import ending_of, refusal

GRAPHS, SEED = 30, 31


@pytest.mark.whole
def test_random_graphs(runner: Runner) -> None:
    report = runner.graphs(SEED, range(GRAPHS))
    assert not report.finds, str(report)
    assert report.endings["picture"] > GRAPHS / 3 and report.endings["refused"] > 0 and report.stock > 0
    assert report.endings["out of memory"] > 0 and report.endings["cancelled"] > 0 and report.frames > 0
    assert report.alive[-1] == report.alive[0]
    (_, first), *_, (_, last) = report.memory
    assert abs(last["tensors MiB"] - first["tensors MiB"]) < 3, report.memory


@pytest.mark.whole
def test_hostile_input(runner: Runner) -> None:
    assert not hostile.run(runner, every=29)
    assert not runner.report.finds, runner.report.finds


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("'NoneType' object has no attribute 'clone'", None),
        ("The size of tensor a (8) must match the size of tensor b (16) at non-singleton dimension 3", None),
        ("curve of Asynchronous Timestep Map is 'x': it is one of quadratic, linear.", "choice"),
    ],
)
def test_what_is_a_refusal(message: str, kind: str | None) -> None:
    assert refusal(message) == kind
    error = {"exception_message": message, "exception_type": "ValueError", "traceback": [], "node_type": "KSampler"}
    ending = ending_of({"status": {"messages": [("execution_error", error)]}, "outputs": {}})
    assert ending.how == ("error" if kind is None else "refused")


def test_a_changed_model_is_found(runner: Runner) -> None:
    """The fixed prompt is told apart from another one."""
    runner.check("before")
    was, first = list(runner.report.finds), runner.first
    runner.first = {**first, next(iter(first)): {"latent": {"sha256": "another"}}}
    runner.check("a changed model")
    finds, runner.report.finds, runner.first = runner.report.finds, was, first
    assert len(finds) == len(was) + 1 and "something else" in finds[-1]


def test_bypassed() -> None:
    prompt = {
        "1": {"class_type": "AsynDM_DemoModel", "inputs": {}},
        "2": {"class_type": "AsynDM_Apply", "inputs": {"model": ["1", 0], "timestep_map": ["9", 0]}},
        "3": {"class_type": "AsynDM_KSampler", "inputs": {"model": ["2", 0], "timestep_map": ["9", 0], "eta": 1.0, "seed": 1}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 2]}},
    }
    assert without_asyndm(Graph(prompt).prompt) == {
        "1": prompt["1"],
        "3": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 1}},
    }
