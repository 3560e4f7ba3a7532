"""Kills: a training is killed at random moments, resumed, and compared with an uninterrupted run.

The training has a loader process, accumulation, EMA, copy-paste and drop path. After every SIGKILL
all files of the run folder must be readable, and the log must equal that of the uninterrupted run
to the last bit; at the end the weights must be equal.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from data.demo import pond
from engine import checkpoint, log
from engine.files import FailedRun
from tests.stress.rows import Row

ROOT = Path(__file__).resolve().parents[2]
IMAGES, STEP = 16, 4  # of the training split, and of one optimizer step
EPOCH = IMAGES // STEP  # iterations from one evaluation to the next
COMMON = (
    "--from-scratch --device cpu --threads 1 --workers 1 --image-size 64 --canvas 64x64 64x128 "
    "--batch-size 2 --accumulate 2 --average 0.9 --copy-paste 0.5 --warmup 4 --eval-every 1 "
    "--save-every 2 --log-every 1"
).split()
SYSTEMS = {
    "MobileInst": (
        "--model mobileinst_topformer_tiny "
        "--set width=32 kernel_dim=16 query_width=32 num_heads=2 num_queries=6"
    ),
    "Mask2Former": (
        "--model mask2former_swin_tiny --set embed_dim=16 depths=1,1,1,1 backbone_heads=1,2,2,4 "
        "window_size=4 drop_path=0.2 width=32 mask_dim=16 num_heads=2 num_encoder_layers=1 "
        "encoder_ffn_width=32 num_queries=6 num_layers=2 ffn_width=32 train_points=128"
    ),
    "SparseInst": (
        "--model sparseinst_topformer_tiny --set width=32 kernel_dim=16 num_queries=6 drop_path=0.2"
    ),
}
# Fields of a log row that differ between runs.
TIMES = ("seconds", "minutes", "cpu_minutes", "images_per_second")
TIMEOUT = 600.0  # seconds until the harness fails


@dataclass
class Training:
    """A training that is started repeatedly in one run folder."""

    argv: list[str]
    folder: Path

    def options(self) -> list[str]:
        """Of a new start, or of resuming if there is a checkpoint."""
        resume = ["--resume"] if (self.folder / "last.pt").exists() else []
        return [*self.argv, *resume, "--out", str(self.folder)]

    def start(self) -> subprocess.Popen:
        """Starts or resumes the training in a process of its own."""
        with open(self.folder.with_suffix(".log"), "a", encoding="utf-8") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "engine.train", *self.options()],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # groups it with its loader processes
            )

    def finish(self) -> float:
        """Runs the training to its end and returns the seconds it took.

        Raises:
            FailedRun: if it failed.
        """
        began, process = time.monotonic(), self.start()
        try:
            code = process.wait(TIMEOUT)
        finally:
            process.kill()
        if code:
            raise FailedRun(f"{self.folder}: the training ended with exit code {code}")
        return time.monotonic() - began

    def rows(self) -> list[dict]:
        """The complete rows of its log."""
        path = self.folder / "log.jsonl"
        return log.read_jsonl(path) if path.exists() else []

    def reached(self) -> int:
        """The last iteration in the log."""
        rows = self.rows()
        return rows[-1]["iteration"] if rows else 0


def training(system: str, data: Path, folder: Path, iterations: int) -> Training:
    """A short training of a small model."""
    argv = [*COMMON, "--iterations", str(iterations), "--data", str(data)]
    return Training([*argv, *SYSTEMS[system].split()], folder)


# ------------------------------------------------------------------------------------ moments


def wait_for(process: subprocess.Popen, happened: Callable[[], bool], pause: float) -> None:
    """Waits until something has happened or the process has ended.

    Raises:
        FailedRun: after a timeout.
    """
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not happened():
        if time.monotonic() > deadline:
            raise FailedRun(f"the training made no progress for {TIMEOUT:.0f} seconds")
        time.sleep(pause)


def while_starting(process: subprocess.Popen, run: Training, target: int, fraction: float) -> None:
    """Before the first step: imports, building, reading of the checkpoint."""
    time.sleep(8 * fraction)


def in_a_step(process: subprocess.Popen, run: Training, target: int, fraction: float) -> None:
    wait_for(process, lambda: run.reached() >= target, 0.02)
    time.sleep(0.3 * fraction)


def while_writing(process: subprocess.Popen, run: Training, target: int, fraction: float) -> None:
    """While a checkpoint is written: its temporary file has just appeared."""
    wait_for(process, lambda: run.reached() >= target, 0.005)
    names = [run.folder / f"{name}.pt.tmp" for name in ("last", "best")]
    wait_for(process, lambda: any(map(os.path.exists, names)), 0.0005)
    time.sleep(0.02 * fraction)


def while_evaluating(
    process: subprocess.Popen, run: Training, target: int, fraction: float
) -> None:
    """During an evaluation, right after a checkpoint: no iteration is lost."""
    due = -(-target // EPOCH) * EPOCH
    wait_for(process, lambda: run.reached() >= due, 0.005)
    time.sleep(0.1 + 0.5 * fraction)


MOMENTS = (while_writing, in_a_step, while_evaluating, while_writing, while_starting)


@dataclass(frozen=True)
class Kill:
    """Result of one kill: moment, iterations lost, faults found, and the process group."""

    moment: str
    lost: int
    faults: tuple[str, ...]
    group: int


def kill(run: Training, moment: Callable, target: int, fraction: float) -> Kill:
    """Starts or resumes a run and kills it with SIGKILL.

    Only the process itself is killed, as when memory runs out: its loader process has to notice.

    Raises:
        FailedRun: if the process ended by itself before.
    """
    left = half_written(run.folder)
    process = run.start()
    try:
        moment(process, run, target, fraction)
        if process.poll() is not None:
            raise FailedRun(
                f"{run.folder}: the process ended by itself, with exit code {process.returncode}"
            )
    finally:
        process.kill()
        process.wait()
    faults = unreadable(run.folder)
    kept = 0
    if (run.folder / "last.pt").exists() and not faults:
        kept = checkpoint.load(run.folder / "last.pt")["iteration"]
    hit = moment.__name__.replace("_", " ")
    if half_written(run.folder) - left:
        hit = "while writing a checkpoint"
    elif moment is while_writing:
        hit = "right after writing a checkpoint"
    return Kill(hit, max(0, run.reached() - kept), tuple(faults), process.pid)


def half_written(folder: Path) -> set[tuple[str, int]]:
    """Temporary checkpoint files and their times."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*.pt.tmp")}


def unreadable(folder: Path) -> list[str]:
    """Lists the files of a run folder that cannot be read; temporary files are not tried."""
    faults = []
    for path in sorted(folder.glob("*")):
        try:
            READERS.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:  # of any reader
            faults.append(f"{path.name}: {type(error).__name__} {error}")
    return faults


def read_log(path: Path) -> None:
    """Every line is complete; only the last may be cut off, which a resumed run drops."""
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line)


def read_csv(path: Path) -> None:
    with open(path, encoding="utf-8", newline="") as file:
        widths = {len(row) for row in csv.reader(file)}
    if len(widths) != 1:
        raise ValueError(f"rows of {sorted(widths)} cells")


def read_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


READERS = {
    ".pt": checkpoint.load,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": read_log,
    ".csv": read_csv,
    ".png": read_image,
}


def outliving(group: int, patience: float = 20.0) -> list[str]:
    """Reports processes that outlive the one that started them."""
    deadline = time.monotonic() + patience
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
        return [f"loader processes outlived their parent by {patience:.0f} seconds"]
    return []


# ----------------------------------------------------------------------------------- comparing


def differing_rows(run: Training, whole: Training) -> list[str]:
    """Iterations at which two logs differ, times excluded."""
    others = {row["iteration"]: row for row in whole.rows()}
    return [
        f"iteration {row['iteration']}"
        for row in run.rows()
        if without_times(row) != without_times(others[row["iteration"]])
    ]


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMES}


def differences(run: Training, whole: Training) -> list[str]:
    """Lists what differs, to the last bit, between two finished runs."""
    found = differing_rows(run, whole)
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoint.load(each.folder / name) for each in (run, whole))
        if checkpoint.fingerprint(one) != checkpoint.fingerprint(two):
            found.append(name)
        if (one["iteration"], one["best"]) != (two["iteration"], two["best"]):
            found.append(f"the scores in {name}")
    if len(run.rows()) != len(whole.rows()):
        found.append("the length of the log")
    if log.read_csv(run.folder / "metrics.csv") != log.read_csv(whole.folder / "metrics.csv"):
        found.append("metrics.csv")
    return found


def survive(system: str, scratch: Path, kills: int, seed: int = 0) -> Row:
    """Kills a training several times, lets it end, and compares it with an uninterrupted one."""
    rng = random.Random(seed)
    data = pond.write(scratch / "images", train=IMAGES, val=3)
    iterations = EPOCH * (2 + kills)
    whole = training(system, data, scratch / f"{system}-whole", iterations)
    run = training(system, data, scratch / f"{system}-killed", iterations)
    whole.finish()
    targets = sorted(rng.sample(range(1, iterations - EPOCH), kills))
    hits = []
    for number, target in enumerate(targets):
        hit = kill(run, MOMENTS[number % len(MOMENTS)], target, rng.random())
        wrong = (*hit.faults, *(f"{row} differs" for row in differing_rows(run, whole)))
        hits.append(replace(hit, faults=wrong))
    run.finish()
    wrong = [fault for hit in hits for fault in outliving(hit.group)]
    return row_of(system, hits, [*wrong, *unreadable(run.folder), *differences(run, whole)])


def row_of(system: str, hits: list[Kill], wrong: list[str]) -> Row:
    """Summarises all kills as one row."""
    moments = Counter(hit.moment for hit in hits)
    good = sum(not hit.faults for hit in hits)
    faults = [*(fault for hit in hits for fault in hit.faults), *wrong]
    lost = max(hit.lost for hit in hits)
    result = f"{good} resumed identically, at most {lost} iterations repeated; "
    result += f"{len(faults)} faults: {'; '.join(faults[:5])}" if faults else "same final bits"
    return Row(
        f"{system}, SIGKILL and --resume",
        f"{len(hits)} kills: " + ", ".join(f"{n} {moment}" for moment, n in moments.items()),
        result,
        not faults,
    )


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """A row for each system."""
    for system in SYSTEMS if thorough else ["MobileInst"]:
        yield survive(system, scratch, kills=25 if thorough else 5)
