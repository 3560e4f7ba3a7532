"""Runs that are stopped: by signals wherever they are, by a full disk, by bad numbers."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import engine
from data.errors import BadRecord, BadRecords
from engine import checkpoint, files, log, options, run, skipped, train
from engine.files import FailedRun
from engine.interrupt import GracefulStop, Interrupted
from engine.loop import Trainer
from engine.report import evidence

# Evaluated after steps 2 and 4 of 4; a log row for each step.
STEPS = "--iterations 4 --eval-every 1 --average 0.9 --log-every 1".split()


def fingerprint(folder, name="last.pt"):
    return checkpoint.fingerprint(checkpoint.load(folder / name))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The same run, never stopped, without its last images."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish", lambda run: None)
        assert train.main([*tiny, *STEPS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def argv(tiny, tmp_path):
    return [*tiny, *STEPS, "--out", str(tmp_path / "run")]


@pytest.fixture
def entry(monkeypatch, capsys):
    """Runs an entry as a command would: exit code and last line of the output."""

    def call(argv, main=train.main):
        monkeypatch.setattr(sys, "argv", ["entry", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            options.run_entry(main)
        said = capsys.readouterr()
        return end.value.code, (said.err or said.out).splitlines()[-1]

    return call


def at_iteration(monkeypatch, owner, name, number, act):
    """Do something when a method of a run, or a function, is called for the nth time."""
    call, calls = getattr(owner, name), []

    def acting(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            act()
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, acting)


@pytest.mark.parametrize(
    "owner, place, number, code",
    [
        (evidence, "run_pass", signal.SIGTERM, 143),
        (train, "score_with_curves", signal.SIGINT, 130),
    ],
)
def test_a_stop_during_an_evaluation(
    argv, whole, tmp_path, monkeypatch, entry, no_finish, owner, place, number, code
):
    """It is at once; the training is saved, and the resumed run evaluates to the same scores."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_iteration(patch, owner, place, 1, lambda: signal.raise_signal(number))
        said = "stopped at iteration 2; the same command with --resume goes on"
        assert entry(argv) == (code, said)
    assert checkpoint.load(out / "last.pt")["iteration"] == 2
    assert not (out / "metrics.csv").exists() and not (out / "best.pt").exists()
    assert entry([*argv, "--resume"])[0] == 0
    for name in ("last.pt", "best.pt"):
        assert fingerprint(out, name) == fingerprint(whole, name)
    assert (out / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_a_kill_after_the_scores_were_written(argv, whole, tmp_path, monkeypatch, no_finish):
    """Before the next checkpoint is: the row is not written twice, and best.pt is not lost."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        kill = Interrupted(signal.SIGINT)
        save = train.Run.save

        def killed(run):
            if run.evaluated == 2:
                raise kill
            save(run)

        patch.setattr(train.Run, "save", killed)
        patch.setattr(train, "Interrupted", OSError)  # what a kill leaves: nothing is caught
        train.main(argv)
    assert len(log.read_csv(out / "metrics.csv")) == 1
    (out / "best.pt.tmp").write_bytes(b"half")
    assert train.main([*argv, "--resume"]) == 0
    assert (out / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert fingerprint(out, "best.pt") == fingerprint(whole, "best.pt")
    assert not list(out.glob("*.tmp"))


def test_a_stop_while_the_data_are_opened(argv, tmp_path, monkeypatch, entry):
    at_iteration(monkeypatch, train, "open_data", 1, lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert entry(argv) == (143, "interrupted")
    assert not (tmp_path / "run").exists() and signal.getsignal(signal.SIGTERM) is before


def test_a_stop_while_the_last_images_are_drawn(argv, tmp_path, monkeypatch, entry):
    with monkeypatch.context() as patch:
        patch.setattr(train, "finish", lambda run: signal.raise_signal(signal.SIGTERM))
        assert entry(argv)[0] == 143
    assert entry([*argv, "--resume"])[0] == 0
    assert (tmp_path / "run" / "summary.md").exists()


def test_an_evaluation_after_a_signal_is_not_begun():
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), stop.immediate():
            raise AssertionError


def test_a_second_signal_leaves_without_saving(argv, tmp_path, monkeypatch, entry):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_iteration(monkeypatch, Trainer, "update", 1, twice)
    assert entry(argv)[0] == 130
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 0


def test_saving_every_so_many_iterations_or_by_the_clock(argv, monkeypatch):
    now = [0.0]

    def steps(trainer, loader):
        while trainer.iteration < 4:
            trainer.iteration, now[0] = trainer.iteration + 1, now[0] + 50
            yield {"loss": 1.0}, {"forward": 1.0}

    def saved(*others, seconds=0.0):
        seen = []

        def save(path, content):
            seen.append(content["iteration"])
            now[0] += seconds

        monkeypatch.setattr(checkpoint, "save", save)
        assert train.main([*argv, "--eval-every", "0", "--overwrite", *others]) == 0
        return seen

    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Trainer, "steps", steps)
    for name in ("finish", "evaluate"):
        monkeypatch.setattr(train, name, lambda run: setattr(run, "evaluated", 4))
    end = [4, 4]  # before the evaluation and after it
    assert saved("--save-every", "1") == [0, 1, 2, 3, *end]
    assert saved("--save-every", "3") == [0, 3, *end]
    assert saved() == [0, 2, *end]  # a minute and more after the one before
    assert saved(seconds=3.0) == [0, 3, *end]  # 2 % of the time at most


def test_the_log_of_an_interval_goes_on_where_it_was(tiny, whole, tmp_path, monkeypatch, no_finish):
    """A row is the mean over its interval, also over the steps before a stop."""
    argv = [*tiny, "--iterations", "4", "--average", "0.9", "--eval-every", "0"]
    argv += ["--log-every", "4", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        at_iteration(patch, Trainer, "update", 3, lambda: signal.raise_signal(signal.SIGTERM))
        assert train.main(argv) == 143
    assert train.main([*argv, "--resume"]) == 0
    (row,) = log.read_jsonl(tmp_path / "run" / "log.jsonl")
    losses = [each["loss"] for each in log.read_jsonl(whole / "log.jsonl")]
    assert row["loss"] == sum(losses) / 4


# ------------------------------------------------------------------------------- a full disk


@pytest.fixture
def full_disk(monkeypatch):
    """No file may grow beyond so many bytes from the moment this is called on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def records(length: int) -> BadRecords:
    bad = BadRecords(skip=True)
    bad.add([BadRecord(f"{number}.json", "image 1", "none") for number in range(length // 10)])
    return bad


WRITERS = {
    "last.pt": lambda path, n: checkpoint.save(path, {"model": {"x": torch.ones(n)}}),
    "metrics.csv": lambda path, n: log.append_csv(path, {"AP": "1" * n}),
    "options.json": lambda path, n: files.write_json(path, ["1" * n]),
    "skipped.json": lambda path, n: skipped.write(path.parent, records(n)),
    "log.jsonl": lambda path, n: log.append_jsonl(path, {"loss": "1" * n}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_a_file_as_it_was(tmp_path, full_disk, name):
    path = tmp_path / name
    WRITERS[name](path, 10)
    before = path.read_bytes()
    full_disk(5000)
    said = rf"{name}: cannot be written \(.*\), .* is kept; make room and go on with --resume"
    with pytest.raises(FailedRun, match=said):
        WRITERS[name](path, 100_000)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [name]
    full_disk(resource.RLIM_INFINITY)
    WRITERS[name](path, 100_000)  # once there is room again
    assert path.stat().st_size > 100_000


def test_a_run_whose_disk_is_full(argv, whole, tmp_path, monkeypatch, entry, full_disk, no_finish):
    """Exit code 3, the checkpoint before is kept, and the same command goes on from it."""
    out = tmp_path / "run"
    argv = [*argv, "--save-every", "1"]
    with monkeypatch.context() as patch:
        at_iteration(patch, Trainer, "update", 2, lambda: full_disk(1_000_000))
        code, said = entry(argv)
    full_disk(resource.RLIM_INFINITY)
    assert code == 3 and said.startswith(f"error: {out / 'last.pt'}: cannot be written (")
    assert "the one before it is kept; make room and go on with --resume" in said
    assert checkpoint.load(out / "last.pt")["iteration"] == 1 and not list(out.glob("*.tmp"))
    assert entry([*argv, "--resume"])[0] == 0
    assert fingerprint(out) == fingerprint(whole)


# ------------------------------------------------------------------------------- bad numbers


def test_bad_steps_are_counted_and_resumed_over(argv, tmp_path, monkeypatch, entry, capsys):
    """In the log, the summary and the checkpoint; one more than allowed ends the run."""
    losses = Trainer.finite_losses

    def spoilt(trainer, outputs, batch, counts):
        if trainer.iteration in (1, 2):
            outputs["class_logits"] = outputs["class_logits"] * math.nan
        return losses(trainer, outputs, batch, counts)

    monkeypatch.setattr(Trainer, "finite_losses", spoilt)
    out = tmp_path / "run"
    code, said = entry([*argv, "--skip-bad-steps", "1", "--save-every", "1"])
    assert code == 3 and "is not finite at iteration 2 (matching cost of image" in said
    assert "--skip-bad-steps N" in said and "run/last.pt" in said
    assert checkpoint.load(out / "last.pt")["skipped"] == 1
    assert entry([*argv, "--skip-bad-steps", "2", "--resume"])[0] == 0
    rows = log.read_jsonl(out / "log.jsonl")
    assert [row.get("skipped") for row in rows] == [None, 1, 2, 2]
    assert ["loss" in row for row in rows] == [True, False, False, True]
    assert (
        "- skipped: 2 steps with a loss or gradient not finite" in (out / "summary.md").read_text()
    )
    whole = tmp_path / "whole"
    monkeypatch.setattr(train, "finish", lambda run: None)
    assert entry([*argv, "--skip-bad-steps", "2", "--out", whole])[0] == 0
    assert fingerprint(out) == fingerprint(whole)
    content = checkpoint.load(out / "last.pt")
    for part in ("model", "average"):
        assert all(value.isfinite().all() for value in content[part].values())


def test_determinism_is_on_by_default(argv, tmp_path, no_finish):
    for option, on in (([], True), (["--no-deterministic"], False), (["--deterministic"], True)):
        train.main([*argv, "--iterations", "1", "--overwrite", *option])
        assert torch.are_deterministic_algorithms_enabled() is on
    stored = json.loads((tmp_path / "run" / "options.json").read_text())
    assert stored["deterministic"] is True


def test_ctrl_c_while_libraries_are_imported_shows_no_traceback(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "torch.py").write_text(code)
    ended = subprocess.run(
        [sys.executable, "-m", "engine.evaluate"],
        cwd=Path(engine.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")  # the shell makes it 130
