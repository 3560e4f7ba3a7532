"""Kills: a real training is killed at random moments, resumed, and compared with one that was not.

Each life of it is a process of its own, with a loader process and everything that could go wrong
on: accumulation, EMA, copy-paste, drop path. SIGKILL leaves it no time for anything. After every
one, all files of the run folder must be readable and the log must say to the last bit what that of
the uninterrupted run says; at the end the weights must be the same.
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
PICTURES, STEP = 16, 4  # of the training split, and of one optimizer step
EPOCH = PICTURES // STEP  # iterations from one evaluation to the next
COMMON = (
    "--device cpu --threads 1 --workers 1 --image-size 64 --canvas 64x64 64x128 --batch-size 2 "
    "--accumulate 2 --average 0.9 --copy-paste 0.5 --warmup 4 --eval-every 1 --save-every 2 "
    "--log-every 1"
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
}
TIMES = ("seconds", "minutes", "pictures_per_second")  # of a row of the log; never the same
LONGEST = 600.0  # seconds that anything may take before the harness gives up


@dataclass
class Training:
    """A training that is started again and again, in one run folder."""

    argv: list[str]
    folder: Path

    def start(self) -> subprocess.Popen:
        """One life: it begins anew, or goes on where the last one was killed."""
        resume = ["--resume"] if (self.folder / "last.pt").exists() else []
        with open(self.folder.with_suffix(".log"), "a", encoding="utf-8") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "engine.train", *self.argv, *resume]
                + ["--out", str(self.folder)],
                cwd=ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its loader processes can be found
            )

    def finish(self) -> float:
        """Let it run to its end; returns the seconds it took.

        Raises:
            FailedRun: it did not end as it should.
        """
        began, process = time.monotonic(), self.start()
        try:
            code = process.wait(LONGEST)
        finally:
            process.kill()
        if code:
            raise FailedRun(f"{self.folder}: the training ended with exit code {code}")
        return time.monotonic() - began

    def rows(self) -> list[dict]:
        """The whole rows of its log."""
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
    """Wait until something has happened, or the process has ended.

    Raises:
        FailedRun: neither came.
    """
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and not happened():
        if time.monotonic() > deadline:
            raise FailedRun("the training came to a halt")
        time.sleep(pause)


def while_starting(life: subprocess.Popen, run: Training, target: int, luck: float) -> None:
    """Before the first step: torch is imported, data and model come up, the checkpoint is read."""
    time.sleep(8 * luck)


def in_a_step(life: subprocess.Popen, run: Training, target: int, luck: float) -> None:
    wait_for(life, lambda: run.reached() >= target, 0.02)
    time.sleep(0.3 * luck)


def while_writing(life: subprocess.Popen, run: Training, target: int, luck: float) -> None:
    """Inside a checkpoint: its temporary file has just appeared."""
    wait_for(life, lambda: run.reached() >= target, 0.005)
    names = [run.folder / f"{name}.pt.tmp" for name in ("last", "best")]
    wait_for(life, lambda: any(map(os.path.exists, names)), 0.0005)
    time.sleep(0.02 * luck)


def while_evaluating(life: subprocess.Popen, run: Training, target: int, luck: float) -> None:
    """After the checkpoint that is written before, so that nothing of the training is lost."""
    due = -(-target // EPOCH) * EPOCH
    wait_for(life, lambda: run.reached() >= due, 0.005)
    time.sleep(0.1 + 0.5 * luck)


MOMENTS = (while_writing, in_a_step, while_evaluating, while_writing, while_starting)


@dataclass(frozen=True)
class Kill:
    """What one kill met: the moment it fell in, how many iterations it cost, the faults it left, in
    words, and the group of processes it left.
    """

    moment: str
    lost: int
    faults: tuple[str, ...]
    group: int


def kill(run: Training, moment: Callable, target: int, luck: float) -> Kill:
    """One life of a run, up to a SIGKILL. Only the process itself gets it, as from a full memory:
    its loader process has to notice.

    Raises:
        FailedRun: the life ended before the moment came.
    """
    left = half_written(run.folder)
    life = run.start()
    try:
        moment(life, run, target, luck)
        if life.poll() is not None:
            raise FailedRun(f"{run.folder}: a life ended by itself, with {life.returncode}")
    finally:
        life.kill()
        life.wait()
    faults = unreadable(run.folder)
    kept = 0
    if (run.folder / "last.pt").exists() and not faults:
        kept = checkpoint.load(run.folder / "last.pt")["iteration"]
    hit = moment.__name__.replace("_", " ")
    if half_written(run.folder) - left:
        hit = "while writing a checkpoint"
    elif moment is while_writing:
        hit = "right after writing a checkpoint"
    return Kill(hit, max(0, run.reached() - kept), tuple(faults), life.pid)


def half_written(folder: Path) -> set[tuple[str, int]]:
    """The checkpoints under a temporary name, and since when."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*.pt.tmp")}


def unreadable(folder: Path) -> list[str]:
    """Files of a run folder that cannot be read, but for what is under a temporary name."""
    faults = []
    for path in sorted(folder.glob("*")):
        try:
            READERS.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:  # whatever a reader makes of half a file
            faults.append(f"{path.name}: {type(error).__name__} {error}")
    return faults


def read_log(path: Path) -> None:
    """Every line is whole; only the last may have been cut short, which a resumed run drops."""
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line)


def read_csv(path: Path) -> None:
    with open(path, encoding="utf-8", newline="") as file:
        widths = {len(row) for row in csv.reader(file)}
    if len(widths) != 1:
        raise ValueError(f"rows of {sorted(widths)} cells")


def read_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


READERS = {
    ".pt": checkpoint.load,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": read_log,
    ".csv": read_csv,
    ".png": read_picture,
}


def outliving(group: int, patience: float = 20.0) -> list[str]:
    """Processes that are still there though the one that started them is dead."""
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
    """Iterations at which two logs say different things, times apart."""
    others = {row["iteration"]: row for row in whole.rows()}
    return [
        f"iteration {row['iteration']}"
        for row in run.rows()
        if without_times(row) != without_times(others[row["iteration"]])
    ]


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMES}


def differences(run: Training, whole: Training) -> list[str]:
    """In what two runs that came to their end are not the same, to the last bit."""
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
    """Kill a training so many times, let it end, and compare it with an uninterrupted one."""
    luck = random.Random(seed)
    data = pond.write(scratch / "pictures", train=PICTURES, val=3, progress=False)
    iterations = EPOCH * (2 + kills)
    whole = training(system, data, scratch / f"{system}-whole", iterations)
    run = training(system, data, scratch / f"{system}-killed", iterations)
    whole.finish()
    targets = sorted(luck.sample(range(1, iterations - EPOCH), kills))
    hits = []
    for number, target in enumerate(targets):
        hit = kill(run, MOMENTS[number % len(MOMENTS)], target, luck.random())
        wrong = (*hit.faults, *(f"{row} differs" for row in differing_rows(run, whole)))
        hits.append(replace(hit, faults=wrong))
    run.finish()
    wrong = [fault for hit in hits for fault in outliving(hit.group)]
    return row_of(system, hits, [*wrong, *unreadable(run.folder), *differences(run, whole)])


def row_of(system: str, hits: list[Kill], wrong: list[str]) -> Row:
    """What came out, for the table."""
    moments = Counter(hit.moment for hit in hits)
    good = sum(not hit.faults for hit in hits)
    faults = [*(fault for hit in hits for fault in hit.faults), *wrong]
    lost = max(hit.lost for hit in hits)
    result = f"{good} went on identically, at most {lost} iterations taken again; "
    result += f"{len(faults)} faults: {'; '.join(faults[:5])}" if faults else "the same final bits"
    return Row(
        f"{system}, SIGKILL and --resume",
        f"{len(hits)} kills: " + ", ".join(f"{n} {moment}" for moment, n in moments.items()),
        result,
        not faults,
    )


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """A row for each system."""
    yield survive("MobileInst", scratch, kills=25 if thorough else 5)
    if thorough:
        yield survive("Mask2Former", scratch, kills=25)
