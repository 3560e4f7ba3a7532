"""Console lines, JSON lines per logging interval, CSV rows per evaluation."""

import csv
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from engine import dist, files

is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
has_progress: ContextVar[bool | None] = ContextVar("has_progress", default=None)


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Suppresses printing in the block, and progress bars unless `progress` is True."""
    tokens = is_quiet.set(True), has_progress.set(progress)
    try:
        yield
    finally:
        is_quiet.reset(tokens[0])
        has_progress.reset(tokens[1])


def info(text: str = "") -> None:
    """Prints on rank 0 only, above a progress bar if there is one."""
    if dist.is_main_process() and not is_quiet.get():
        tqdm.write(text)


def progress(*items: Iterable, **settings) -> tqdm:
    """A progress bar on rank 0, if the output is a terminal or `quiet` asks for it."""
    shown = has_progress.get() if dist.is_main_process() else False
    hidden = None if shown is None else not shown  # None: tqdm looks for a terminal
    return tqdm(*items, dynamic_ncols=True, disable=hidden, **settings)


class Meter:
    """Means over a logging interval: of named numbers, over the steps that are not skipped, and of
    the seconds per part of a step.
    """

    def __init__(self) -> None:
        self.sums, self.counts, self.seconds = Counter(), Counter(), Counter()
        self.steps = 0

    def add(self, values: dict[str, float], seconds: dict[str, float]) -> None:
        self.steps += 1
        self.sums.update(values)
        self.counts.update(values.keys())
        self.seconds.update(seconds)

    def flush(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns means of the interval (values, seconds per step) and starts an empty one."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        seconds = {name: value / self.steps for name, value in self.seconds.items()}
        self.__init__()
        return means, seconds

    def state(self) -> dict:
        """The unfinished interval as plain values, for a checkpoint."""
        kept = {"sums": self.sums, "counts": self.counts, "seconds": self.seconds}
        return {name: dict(value) for name, value in kept.items()} | {"steps": self.steps}

    def restore(self, state: dict) -> None:
        """Continues the interval of `state`."""
        self.sums, self.counts, self.seconds = (
            Counter(state[name]) for name in ("sums", "counts", "seconds")
        )
        self.steps = state["steps"]


class StepTimer:
    """Splits the time of a step into named parts, in seconds."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = Counter()
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name] += now - self.last
        self.last = now


def append_jsonl(path: Path, row: dict) -> None:
    """Appends a line to a JSON lines file, or raises FailedRun and leaves the file unchanged."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        raise files.failure(path, error, "what was in it is kept") from error


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes rows under one header atomically; raises FailedRun if that fails."""
    names = dict.fromkeys(chain.from_iterable(rows))
    files.write_csv(path, [names, *([row.get(name) for name in names] for row in rows)])


def append_csv(path: Path, row: dict) -> None:
    """Appends a row by rewriting the file, because half a row would look like a whole one."""
    write_csv(path, [*read_csv(path), row])


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a log; none if it is missing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return [line for line in lines[:-1] if "\0" not in line]


def read_csv(path: Path) -> list[dict]:
    """The complete rows of a `metrics.csv` as dicts of texts; none if it is missing."""
    return list(csv.DictReader(whole_lines(path)))


def read_jsonl(path: Path) -> list[dict]:
    """The complete rows of a `log.jsonl`; none if it is missing."""
    return [json.loads(line) for line in whole_lines(path)]


def truncate_after(folder: Path, iteration: int, evaluated: int) -> None:
    """Drops log rows after `iteration` and scores after `evaluated`."""
    log, metrics = folder / "log.jsonl", folder / "metrics.csv"
    steps = [row for row in read_jsonl(log) if row["iteration"] <= iteration]
    scores = [row for row in read_csv(metrics) if int(row["iteration"]) <= evaluated]
    files.write_text(log, "".join(json.dumps(row) + "\n" for row in steps))
    if scores:
        write_csv(metrics, scores)
    else:
        metrics.unlink(missing_ok=True)
