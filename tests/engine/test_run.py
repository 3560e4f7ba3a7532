"""The run folder: one writer, a summary at any time, a training without a command line."""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.errors import InputError
from engine import checkpoint, log, train
from engine.files import FolderLock
from engine.options import TrainOptions
from engine.report import summary, write
from engine.run import cpu_seconds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def opts(toy_coco, tmp_path):
    """The options of a run of two steps, as a program gives them."""
    keywords = {"width": 32, "kernel_dim": 16, "query_width": 32, "num_heads": 2, "num_queries": 6}
    return {
        "from_scratch": True, "data": toy_coco, "out": tmp_path / "run", "device": "cpu",
        "threads": 1, "workers": 0, "image_size": 64, "canvas": [(64, 64)], "batch_size": 4,
        "warmup": 4, "set": keywords, "iterations": 2,
    }  # fmt: skip


def test_a_program_trains_without_a_command_line(opts):
    folder = train.train(TrainOptions(recipe="demo", **opts))
    assert folder == opts["out"] and (folder / "summary.md").exists()
    stored = json.loads((folder / "options.json").read_text())
    assert (stored["recipe"], stored["iterations"], stored["average"]) == ("demo", 2, 0.998)
    origins = [stored["origins"][name] for name in ("iterations", "average", "flip", "set.guided")]
    assert origins == ["user", "recipe", "default", "recipe"]
    assert stored["derived"] == {"classes": 3}
    assert checkpoint.load(folder / "best.pt")["options"]["set"]["guided"] is True


def test_a_folder_has_one_writer(tiny, tmp_path, no_finish):
    """The lock ends with its process, and a forked loader process does not keep it."""
    code = "import sys, os, time; from pathlib import Path; from engine.files import FolderLock; "
    code += "FolderLock().acquire(Path(sys.argv[1])); print(os.fork() and 1, flush=True); "
    code += "time.sleep(60)"
    out = tmp_path / "run"
    argv = [*tiny, "--iterations", "1", "--out", str(out)]
    assert train.main(argv) == 0
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        writer.stdout.readline()
        for option in ("--resume", "--overwrite"):
            with pytest.raises(InputError, match="another process is writing in this folder"):
                train.main([*argv, option])
    finally:
        writer.kill()
        writer.wait()
    assert train.main([*argv, "--iterations", "2", "--resume"]) == 0
    lock = FolderLock()
    lock.acquire(out)  # released at the end of the run
    lock.release()


def test_a_summary_of_any_run_at_any_time(opts, monkeypatch, capsys):
    monkeypatch.setattr(train, "finish", lambda run: None)
    folder = train.train(TrainOptions(**opts))
    assert not (folder / "summary.md").exists()
    write.main([str(folder)])
    whole = (folder / "summary.md").read_text()
    assert "| AP50" in whole and "CPU minutes" in whole and "| 2 | 1.0 |" in whole
    (folder / "best.pt").rename(folder / "kept.pt")
    (folder / "metrics.csv").unlink()
    assert "best weights" not in summary.summary(folder)  # before the first evaluation
    (folder / "kept.pt").rename(folder / "best.pt")
    (folder / "last.pt").unlink()
    assert "iteration 2, split val" in summary.summary(folder)
    with pytest.raises(InputError, match="no run folder"):
        write.main([str(folder.parent)])


def test_cpu_minutes_stand_beside_minutes(toy_run):
    rows = log.read_jsonl(toy_run / "log.jsonl")
    assert all(0 < row["cpu_minutes"] for row in rows[1:]) and "minutes" in rows[0]
    assert checkpoint.load(toy_run / "last.pt")["cpu_seconds"] > 0
    assert "CPU minutes (process and loaders)" in (toy_run / "summary.md").read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has /proc")
def test_cpu_time_includes_loaders_that_are_running():
    def compute(connection):
        while time.process_time() < 0.3:
            pass
        connection.send("done")
        connection.recv()

    ours, theirs = multiprocessing.Pipe()
    loader = multiprocessing.get_context("fork").Process(target=compute, args=(theirs,))
    before = cpu_seconds()
    loader.start()
    ours.recv()
    running = cpu_seconds()
    ours.send("end")
    loader.join()
    ended = cpu_seconds()
    assert before + 0.25 < running <= ended < running + 0.2  # and is not counted twice
