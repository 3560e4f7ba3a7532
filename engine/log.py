"""What a run says: lines on the terminal, json lines per interval, csv rows per evaluation."""

import csv
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from engine import dist


def say(text: str = "") -> None:
    """Print without tearing a progress bar; of several processes the main one speaks."""
    if dist.is_main():
        tqdm.write(text)


def progress(*items: Iterable, **settings) -> tqdm:
    """A bar, for people: none in a file or a pipe, and that of the main process only."""
    hidden = None if dist.is_main() else True  # None: tqdm looks for a terminal
    return tqdm(*items, dynamic_ncols=True, disable=hidden, **settings)


class Meter:
    """Means of named numbers over one interval, and the seconds spent in each part of a step."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0

    def add(self, values: dict[str, float], seconds: dict[str, float]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] += value
        for name, value in seconds.items():
            self.seconds[name] += value

    def flush(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the interval (values, seconds per step); the next interval starts empty."""
        steps = max(1, self.steps)
        means = {name: value / steps for name, value in self.sums.items()}
        seconds = {name: value / steps for name, value in self.seconds.items()}
        self.__init__()
        return means, seconds


class Stopwatch:
    """Splits the time of a step into named parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name] += now - self.last
        self.last = now

    def share(self, name: str, of: str, seconds: float) -> None:
        """Name a share of a part that was timed on its own."""
        self.parts[name] += seconds
        self.parts[of] -= seconds


class Timed:
    """A callable that adds up the seconds it takes."""

    def __init__(self, call: Callable):
        self.call, self.seconds = call, 0.0

    def __call__(self, *inputs):
        start = time.perf_counter()
        result = self.call(*inputs)
        self.seconds += time.perf_counter() - start
        return result

    def take(self) -> float:
        """The seconds since it was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def append_json(path: Path, row: dict) -> None:
    """Add one line to a log of json lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def append_csv(path: Path, row: dict) -> None:
    """Add one row to a csv; the first row writes the header."""
    fresh = not path.exists()
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def whole_rows(path: Path) -> list[dict]:
    """The rows of a log of json lines; a last line that a crash cut short is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def truncate_after(folder: Path, iteration: int) -> None:
    """Drop what the log says beyond `iteration`: a resumed run writes it again."""
    log, metrics = folder / "log.jsonl", folder / "metrics.csv"
    if log.exists():
        rows = whole_rows(log)
        kept = [json.dumps(row) for row in rows if row["iteration"] <= iteration]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    if metrics.exists():
        with open(metrics, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]
        metrics.unlink()
        for row in rows:
            append_csv(metrics, row)
