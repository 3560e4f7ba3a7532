"""The short form of the kills; the harness detects faults."""

import json
import shutil

import pytest
import torch

from engine import checkpoint, train
from tests.stress import kills as stress_kills


def test_a_kill(tmp_path, monkeypatch, no_finish):
    """What is not killed runs in this process. tests/engine/test_dist.py kills MobileInst."""
    monkeypatch.setattr(stress_kills.Training, "finish", lambda run: train.main(run.options()))
    row = stress_kills.survive("SparseInst", tmp_path, kills=1)
    assert row.passed, row
    assert row.tried.startswith("1 kills: ") and "1 resumed identically" in row.result


@pytest.fixture
def pair(toy_run, tmp_path):
    """Two equal finished runs."""
    return [
        stress_kills.Training([], shutil.copytree(toy_run, tmp_path / name))
        for name in ("one", "two")
    ]


def test_equal_runs_have_no_differences(pair):
    assert stress_kills.differences(*pair) == []
    assert stress_kills.unreadable(pair[0].folder) == []


def edit_weight(folder):
    content = checkpoint.load(folder / "last.pt")
    weight = next(iter(content["model"].values()))
    first = (0,) * weight.ndim
    weight[first] = weight[first].nextafter(torch.tensor(9.0))
    checkpoint.save(folder / "last.pt", content)


def edit_log(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows[1]["loss"] += 1e-12
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_csv(folder):
    path = folder / "metrics.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    "edit, found", [(edit_weight, "last.pt"), (edit_log, "iteration 24"), (edit_csv, "metrics.csv")]
)
def test_a_difference_is_found(pair, edit, found):
    edit(pair[0].folder)
    assert stress_kills.differences(*pair) == [found]
