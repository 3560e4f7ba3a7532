"""Several ranks are one training: same losses, same bits after a kill, same AP, one message.

The processes are real and connected by gloo; most are forks of the test, because those are cheap.
"""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from data.errors import InputError
from data.loaders import TrainSampler
from engine import checkpoint, dist, evaluate, log, options, train
from tests.stress import processes as stress_processes
from tests.stress.processes import REFERENCE, SPLITS, SYSTEMS, TRAINING

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


def in_processes(number: int, function: Callable) -> list:
    """What `function()` returns in each process, by rank; None for one that did not return.

    The store takes a free port, as that of torchrun does. Its thread must not run during a fork:
    it may hold a lock of the C library, which would then be locked in the child forever.
    """
    environment = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    children = []
    for rank in range(number):
        ours, theirs = FORK.Pipe()
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        child = FORK.Process(target=run_rank, args=(function, own, theirs), daemon=True)
        child.start()
        theirs.close()
        children.append((child, ours))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _, pipe in children:
        pipe.send(str(store.port))
    results = [received(pipe) for _, pipe in children]
    for child, _ in children:
        child.join(60)
        assert child.exitcode is not None, "a process hangs"
    return results


def run_rank(function: Callable, environment: dict[str, str], pipe) -> None:
    os.environ.update(environment, MASTER_PORT=pipe.recv())
    try:
        dist.init()
        result = function()
        dist.shutdown()
        pipe.send_bytes(pickle.dumps(result))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def received(pipe) -> object:
    assert pipe.poll(180), "a process hangs"
    try:
        return pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        return None


def test_collectives():
    def run():
        warnings.simplefilter("error")  # those of torch would reach the user
        rank, norm = dist.rank(), nn.BatchNorm2d(2)
        norm.running_mean += rank
        dist.average_batchnorm_stats(norm)
        values = torch.full((7,), (1e16, 1.0, -1e16)[rank], dtype=torch.float64)
        return {
            "rank": (rank, dist.world_size(), dist.is_main_process()),
            "maximum": dist.max_over_ranks(5 * rank),
            "total": dist.sum_over_ranks({"a": rank + 0.5, "b": torch.tensor(float(rank))}),
            "in order": dist.ordered_all_reduce(values).tolist(),
            "interleaved": dist.gather_interleaved(list(range(10))[rank::3]),
            "broadcast": dist.broadcast_from_main(os.getpid),
            "statistics": norm.running_mean.tolist() + norm.running_var.tolist(),
        }

    found = in_processes(3, run)
    assert [each["rank"] for each in found] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    assert found[0]["interleaved"] == list(range(10)) and found[1]["interleaved"] == [1, 4, 7]
    for each in found:
        assert each["maximum"] == 10 and each["total"] == {"a": 4.5, "b": torch.tensor(3.0)}
        assert each["in order"] == [0.0] * 7  # (1e16 + 1) - 1e16; any other order gives 1
        assert each["statistics"] == [1.0, 1.0, 1.0, 1.0]
    assert len({each["broadcast"] for each in found}) == 1 != os.getpid()


def test_an_error_of_one_rank_is_raised_by_all_and_reported_by_one():
    def items():
        yield "first"
        if dist.rank() == 2:
            raise InputError("an image of the last rank")
        yield "second"

    def fail():
        seen, reported = [], []
        with contextlib.suppress(InputError):
            for item in dist.lockstep(items(), InputError):
                seen.append(item)
        try:
            with dist.synced_errors(InputError, KeyError):
                if dist.rank() > 0:
                    raise InputError(f"of {dist.rank()}")
        except InputError as error:
            reported = [str(error), dist.should_report(error)]
        try:
            raise ValueError from dist.mark_synced(InputError("of all"))
        except ValueError as error:
            reported.append(dist.is_synced(error))
        return seen, reported

    found = in_processes(3, fail)
    assert [seen for seen, _ in found] == [["first"]] * 3
    assert [reported for _, reported in found] == [["of 1", n == 0, True] for n in range(3)]
    assert dist.should_report(InputError("alone"))


@pytest.fixture(scope="module")
def half_empty(toy_coco, tmp_path_factory) -> list[str]:
    """Options for the toy set, without objects in the first batch of the second of two ranks."""
    content = json.loads((toy_coco / "annotations" / "instances_train.json").read_text())
    sizes = {"batch_size": 4, "accumulate": 1, "seed": 0, "steps": range(1)}
    sampler = TrainSampler([1.0] * 8, **sizes, canvases=((64, 64),), rank=1, world_size=2)
    empty = {content["images"][key.index]["id"] for key in sampler.keys(0, 0)}
    kept = [each for each in content["annotations"] if each["image_id"] not in empty]
    assert len(empty) == 4 and kept
    path = tmp_path_factory.mktemp("half_empty") / "train.json"
    path.write_text(json.dumps(content | {"annotations": kept}))
    argv = ["--train-json", str(path), "--images", str(toy_coco / "train"), "--copy-paste", "0"]
    return [*argv, "--val-json", str(path)]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("precision, steps", [("float64", 2), ("float32", 1)])
def test_a_step_does_not_depend_on_how_its_batch_is_split(half_empty, system, precision, steps):
    """Losses of all steps and gradients of the first, with a rank that has no objects.

    `bash sbin/stress.sh` runs fifty steps, in processes that torchrun starts.
    """
    argv = [*TRAINING.split(), "--iterations", str(steps), *SYSTEMS[system].split(), *half_empty]

    def measure(split):
        number, sizes = SPLITS[split]
        options = [*argv, *sizes.split()]
        if number == 1:
            return [stress_processes.measure(options, precision)]
        return in_processes(number, lambda: stress_processes.measure(options, precision))

    measured = {split: measure(split) for split in SPLITS}
    first, second = measured["2 x 4"]
    assert first["losses"] == second["losses"] and len(first["losses"]) == steps
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name]), name
    ones = {split: each[0] for split, each in measured.items()}
    for split in SPLITS.keys() - {REFERENCE}:
        found = stress_processes.difference(system, split, precision, ones)
        assert found.passed and found.steps == steps, found
        assert ones[split]["losses"] != ones[REFERENCE]["losses"] or precision == "float64"


bits = checkpoint.fingerprint

# With drop path, augmentation, several canvases, trained batch norms and an average.
STEPS = "--iterations 4 --batch-size 2 --average 0.9 --eval-every 1 --copy-paste 0.3".split()
STEPS += ["--eval-train", "3"]


@pytest.fixture
def final_bits(monkeypatch) -> list[str]:
    """Fingerprint of the final weights and averages, taken instead of the final evaluation."""
    seen = []
    monkeypatch.setattr(
        train, "finish", lambda run: seen.append(bits(checkpoint.state_of(run.trainer)))
    )
    return seen


def test_three_ranks_stop_together_and_resume_with_the_same_bits(
    tiny, tmp_path, monkeypatch, final_bits
):
    """One of them gets the signal. With three, a plain all-reduce would give other bits."""

    def run(name, *more):
        argv = [*tiny, *STEPS, "--out", str(tmp_path / name), *more]
        return in_processes(3, lambda: (train.main(argv), *final_bits))

    whole = run("whole")
    assert len(set(whole)) == 1 and whole[0][0] == 0
    with monkeypatch.context() as patch:
        at_step(patch, 1, rank=2, act=lambda trainer: signal.raise_signal(signal.SIGTERM))
        assert run("part") == [(143,)] * 3
    assert checkpoint.load(tmp_path / "part" / "last.pt")["iteration"] == 2
    assert run("part", "--resume") == whole
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoint.load(tmp_path / folder / name) for folder in ("whole", "part"))
        assert bits(one) == bits(two) and one["best"] == two["best"]
    one, two = (log.read_csv(tmp_path / folder / "metrics.csv") for folder in ("whole", "part"))
    assert one == two and one[0]["train/AP"]
    rows = [json.loads(line) for line in (tmp_path / "part" / "log.jsonl").open()]
    assert [row["iteration"] for row in rows] == [2, 4]
    assert rows[-1]["epoch"] == 4 * 3 * 2 / 8


def at_step(patch, iteration: int, rank: int, act: Callable) -> None:
    """Lets one rank do something at the start of a step."""
    step = train.Trainer.step

    def acting(trainer, *args):
        if (trainer.iteration, dist.rank()) == (iteration, rank):
            act(trainer)
        return step(trainer, *args)

    patch.setattr(train.Trainer, "step", acting)


KILLED = """
import os, signal
from engine import dist, options, train

step = train.Trainer.step

def killed(trainer, *args):
    if (trainer.iteration, dist.rank()) == (3, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *args)

train.Trainer.step = killed
options.run_entry(train.main)
"""


def test_a_killed_rank_ends_the_job_and_a_relaunch_resumes(tiny, tmp_path, final_bits):
    (tmp_path / "killed.py").write_text(KILLED)
    argv = [*tiny, *STEPS]
    ended = subprocess.run(
        [sys.executable, "-m", "engine.launch", "--standalone", "--nproc-per-node", "2"]
        + [str(tmp_path / "killed.py"), *argv, "--out", str(tmp_path / "part")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 137, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: rank 1 was killed (SIGKILL, as") and "--resume" in last
    assert "Traceback" not in ended.stderr and "ChildFailedError" not in ended.stderr
    assert checkpoint.load(tmp_path / "part" / "last.pt")["iteration"] == 2

    def run(name, *more):
        words = [*argv, "--out", str(tmp_path / name), *more]
        return in_processes(2, lambda: (train.main(words), *final_bits))

    assert run("part", "--resume") == run("whole")
    one, two = (checkpoint.load(tmp_path / folder / "last.pt") for folder in ("whole", "part"))
    assert bits(one) == bits(two) and one["world_size"] == 2

    more = [*argv, "--iterations", "5", "--out", str(tmp_path / "part"), "--resume"]
    with pytest.raises(InputError, match="2 processes, 4 images a step; for 1 .* it 2"):
        train.main(more)
    assert train.main([*more, "--batch-size", "4"]) == 0
    content = checkpoint.load(tmp_path / "part" / "last.pt")
    assert (content["iteration"], content["world_size"]) == (5, 1)


def ends(argv: list[str]) -> list[tuple[int, str]]:
    """Exit code and error output of the entry on each of two ranks."""

    def run():
        said, sys.argv = io.StringIO(), ["train", *argv]
        with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
            options.run_entry(train.main)
        return end.value.code, said.getvalue()

    return in_processes(2, run)


def test_one_message_for_an_error_of_all_ranks_or_of_one(tiny, toy_coco, tmp_path, monkeypatch):
    (code, said), other = ends([*tiny, "--batch-size", "0"])
    assert code == 2 and said.count("\n") == 1 and "--batch-size: 0" in said
    assert other == (2, "")

    argv = [*tiny, *STEPS, "--out", str(tmp_path / "nan")]
    with monkeypatch.context() as patch:
        at_step(patch, 1, 1, lambda trainer: next(trainer.model.parameters()).data.fill_(torch.nan))
        (code, said), other = ends(argv)
    assert code == 3 and said.count("\n") == 1 and "not finite at iteration 1" in said
    assert "images: " in said and "--resume" in said and other == (3, "")

    argv = [*tiny, *STEPS, "--out", str(tmp_path / "gone")]
    with monkeypatch.context() as patch:
        at_step(patch, 1, 1, lambda trainer: os._exit(1))
        (code, said), other = ends(argv)
    assert code == dist.EXIT_RANK_LOST and said.startswith("rank 0 ends because")
    assert other is None


def test_a_broken_image_of_one_rank_is_named_once(toy_coco, tiny, tmp_path, monkeypatch):
    sizes = {"batch_size": 4, "accumulate": 1, "seed": 0, "steps": range(1)}
    sampler = TrainSampler([1.0] * 8, **sizes, canvases=((64, 64),), rank=1, world_size=2)
    index = sampler.keys(0, 0)[0].index
    content = json.loads((toy_coco / "annotations" / "instances_train.json").read_text())
    image = Path(content["images"][index]["file_name"])
    for path in (toy_coco / "train").iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:40] if path.name == image.name else data)
    labels = toy_coco / "annotations" / "instances_train.json"
    argv = [*tiny[: tiny.index("--data")], "--train-json", str(labels), "--val-json", str(labels)]
    argv += ["--images", str(tmp_path), "--iterations", "2", "--out", str(tmp_path / "run")]
    (code, said), other = ends(argv)
    assert code == 2 and said.count("\n") == 1 and f"{image} cannot be read" in said
    assert other == (2, "")

    with monkeypatch.context() as patch:  # left out instead, and listed although the run is stopped
        at_step(patch, 0, 1, lambda trainer: signal.raise_signal(signal.SIGTERM))
        assert [code for code, _ in ends([*argv, "--skip-bad-records", "--overwrite"])] == [
            143,
            143,
        ]
    (one,) = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert one["image_id"] == content["images"][index]["id"]


def test_a_bad_step_of_one_rank_is_skipped_by_all(tiny, tmp_path, monkeypatch, final_bits):
    """In the first or the second micro-batch of the step."""
    losses = train.Trainer.finite_losses
    seen = []

    def spoilt(trainer, outputs, batch, counts):
        seen.append(trainer.iteration)
        place = (trainer.iteration, seen.count(trainer.iteration), dist.rank())
        if place in ((0, 1, 0), (1, 2, 1)):
            outputs["class_logits"] = outputs["class_logits"] * torch.nan
        return losses(trainer, outputs, batch, counts)

    monkeypatch.setattr(train.Trainer, "finite_losses", spoilt)
    argv = [*tiny, *STEPS, "--accumulate", "2", "--skip-bad-steps", "2"]
    argv += ["--out", str(tmp_path / "a")]
    first, second = in_processes(2, lambda: (train.main(argv), *final_bits))
    assert first == second and first[0] == 0
    content = checkpoint.load(tmp_path / "a" / "last.pt")
    assert (content["iteration"], content["skipped"]) == (4, 2)


def test_evaluation_by_several_ranks_gives_the_same_results(toy_run, tmp_path):
    """Three ranks, five batches of at most three: every score and every bit of every mask."""

    def found(name):
        argv = ["--checkpoint", str(toy_run / "best.pt"), "--split", "train", "--batch-size", "3"]
        argv += ["--metrics-block", "--device", "cpu", "--threads", "1", "--workers", "0"]
        evaluate.main([*argv, "--out", str(tmp_path / name)])

    found("single.json")
    in_processes(3, lambda: found("shared.json"))
    single, shared = (
        json.loads((tmp_path / name).read_text()) for name in ("single.json", "shared.json")
    )
    assert shared["detections"] == single["detections"] and len(single["detections"]) > 20
    assert shared["scores"] == single["scores"] and single["scores"]["metrics"]["AP50"] > 0.05
    assert shared["metrics"]["test_loss"] == single["metrics"]["test_loss"] > 0
