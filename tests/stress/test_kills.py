"""The short form of the kills; the harness detects faults."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from engine import checkpoint, train
from engine.files import FailedRun
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


def test_half_files_are_found(pair):
    folder = pair[0].folder
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 9 // 10])
    (folder / "last.pt.tmp").write_bytes(b"half")  # temporary
    found = {fault.split(":")[0] for fault in stress_kills.unreadable(folder)}
    assert {"best.pt", "last.pt", "options.json", "predictions.png"} <= found
    assert "log.jsonl" not in found  # its last line may be cut short
    with open(folder / "log.jsonl", "a") as file:
        file.write('\n{"iteration": 49}\n')
    assert "log.jsonl" in {fault.split(":")[0] for fault in stress_kills.unreadable(folder)}


def test_processes_that_stay_are_found():
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(sleep, start_new_session=True)
    assert stress_kills.outliving(process.pid, patience=0.5)
    assert process.wait(10) != 0 and stress_kills.outliving(process.pid) == []


def test_a_process_that_ends_by_itself_is_no_kill(tmp_path, monkeypatch):
    run = stress_kills.Training([], tmp_path / "run")
    command = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(run, "start", lambda: subprocess.Popen(command))
    with pytest.raises(FailedRun, match="ended by itself, with exit code 2"):
        stress_kills.kill(run, stress_kills.in_a_step, 1, 0.5)
