"""What a run says: lines on the terminal, json lines per interval, csv rows per evaluation."""

import csv
import io
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from engine import dist, runs


def info(text: str = "") -> None:
    """Print without tearing a progress bar; of several processes the main one speaks."""
    if dist.is_main():
        tqdm.write(text)


def progress(*items: Iterable, **settings) -> tqdm:
    """A bar, for people: none in a file or a pipe, and that of the main process only."""
    hidden = None if dist.is_main() else True  # None: tqdm looks for a terminal
    return tqdm(*items, dynamic_ncols=True, disable=hidden, **settings)


class Meter:
    """Means of named numbers over one interval, and the seconds spent in each part of a step.

    A name that some steps have no value for, as all have that were skipped, is averaged over the
    others.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0

    def add(self, values: dict[str, float], seconds: dict[str, float]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] += value
            self.counts[name] += 1
        for name, value in seconds.items():
            self.seconds[name] += value

    def flush(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the interval (values, seconds per step); the next interval starts empty."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        seconds = {name: value / self.steps for name, value in self.seconds.items()}
        self.__init__()
        return means, seconds

    def state(self) -> dict:
        """What a checkpoint keeps of an interval that is not over."""
        kept = {"sums": self.sums, "counts": self.counts, "seconds": self.seconds}
        return {name: dict(value) for name, value in kept.items()} | {"steps": self.steps}

    def restore(self, state: dict) -> None:
        """Go on in the interval that `state` was taken in."""
        self.sums.update(state["sums"])
        self.counts.update(state["counts"])
        self.seconds.update(state["seconds"])
        self.steps = state["steps"]


class StepTimer:
    """Splits the time of a step into named parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name] += now - self.last
        self.last = now


def append_jsonl(path: Path, row: dict) -> None:
    """Add one line to a log of json lines; raises FailedRun if the disk is full."""
    runs.append(path, json.dumps(row) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """A csv of these rows under one header, whole or not at all; raises FailedRun likewise."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    with runs.replacing_in_run(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def append_csv(path: Path, row: dict) -> None:
    """Add one row to a csv. It is written anew: half a row could not be told from a whole one."""
    write_csv(path, [*(read_csv(path) if path.exists() else []), row])


def read_csv(path: Path) -> list[dict]:
    """The rows of a csv, as text under the names of its header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a log of json lines; a last line that a crash cut short is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def truncate_after(folder: Path, iteration: int, evaluated: int) -> None:
    """Drop what the log says beyond `iteration`, and the scores of evaluations after the one at
    `evaluated`: a resumed run writes them again.
    """
    log, metrics = folder / "log.jsonl", folder / "metrics.csv"
    if log.exists():
        rows = [row for row in read_jsonl(log) if row["iteration"] <= iteration]
        with runs.replacing_in_run(log) as temporary:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            temporary.write_text(lines, encoding="utf-8")
    if metrics.exists():
        rows = [row for row in read_csv(metrics) if int(row["iteration"]) <= evaluated]
        if rows:
            write_csv(metrics, rows)
        else:
            metrics.unlink()
