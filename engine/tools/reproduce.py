"""Entry: repeats a training and compares metrics and weights to the last bit.

Each training and its evaluation run in separate processes; one more run has loader processes, and
one has parts inherited from the standard ones (engine.tools.own_parts). Exit code 3 if anything
differs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from engine import checkpoint, files, options, train
from engine.commands import command, show_next
from engine.files import FailedRun
from engine.log import info
from engine.report.metrics_block import TIMES, block
from engine.tools import own_parts
from engine.values import device_for

RESULTS = "reproduce.json"
NOISE = 0.05  # with a lower test_map the model has hardly learned, and little could differ


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        "Train several times and compare all metrics and weights, bit by bit. Options that are not "
        "listed here go to engine.train."
    )
    parser.add_argument(
        "--runs", type=options.positive, default=3, help="runs without loader processes"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of every run")
    workers = "loader processes of the additional run"
    parser.add_argument("--workers", type=options.positive, default=2, help=workers)
    options.add_out(parser, "folder of all runs; runs/reproduce-NNN if not given")
    opts, rest = parser.parse_known_args(argv)
    opts.training = [*rest, "--seed", str(opts.seed)]
    understood = train.parse(opts.training)
    device_for(understood.device)
    opts.model, opts.threads, opts.device = understood.model, understood.threads, understood.device
    return opts


class Result(NamedTuple):
    """Result of a run; `weights` is the fingerprint of the last ones."""

    name: str
    workers: int
    metrics: dict[str, float]
    weights: str
    seconds: float


def start(module: str, argv: list[str], log: Path) -> None:
    """Runs an entry in a process, output to a log; raises InputError (exit code 2) or FailedRun."""
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, "-m", module, *argv], stdout=file).returncode
    if code:
        kind = InputError if code == 2 else FailedRun
        raise kind(f"{module} ended with exit code {code}, see above and {log}")


def run_once(
    opts: argparse.Namespace, name: str, workers: int = 0, module: str = "engine.train"
) -> Result:
    """Trains, evaluates the last weights and prints their metrics."""
    folder, log = opts.out / name, opts.out / f"{name}.log"
    info(f"{name}: training; its output is in {log}")
    began = time.monotonic()
    in_process = ["--workers", str(workers)]
    start(module, [*opts.training, *in_process, "--out", str(folder)], log)
    argv = ["--checkpoint", str(folder / "last.pt"), "--metrics-block", *in_process]
    argv += ["--threads", str(opts.threads), *(["--device", opts.device] if opts.device else [])]
    start("engine.evaluate", [*argv, "--out", str(folder / "test.json")], log)
    content = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    weights = checkpoint.fingerprint(checkpoint.load(folder / "last.pt"))
    result = Result(name, workers, content["metrics"], weights, time.monotonic() - began)
    info(f"{block(result.metrics)}\n")
    return result


def differences(result: Result, first: Result) -> list[str]:
    """Lists what differs in any bit, run times excluded."""
    names = sorted((result.metrics.keys() | first.metrics.keys()) - set(TIMES))
    differing = [name for name in names if result.metrics.get(name) != first.metrics.get(name)]
    return differing + (["the weights"] if result.weights != first.weights else [])


def main(argv: list[str]) -> int:
    opts = parse(argv)
    lock = files.FolderLock()
    opts.out = lock.claim(opts.out, options.RUNS, "reproduce", RESULTS, opts.overwrite)
    results = [run_once(opts, f"run-{number}") for number in range(1, opts.runs + 1)]
    results.append(run_once(opts, "workers", workers=opts.workers))
    if opts.model == own_parts.MODEL:
        results.append(run_once(opts, "own-parts", module="engine.tools.own_parts"))
    else:
        info(f"no run with inherited parts: engine.tools.own_parts needs {own_parts.MODEL}\n")
    info(f"{'run':<12}{'metrics':<12}{'weights':<12}{'sha-256':<20}{'workers':>7}{'seconds':>9}")
    differing = {result.name: differences(result, results[0]) for result in results}
    for result in results:
        what, same = differing[result.name], "-" if result is results[0] else "identical"
        metrics = "DIFFER" if {*what} - {"the weights"} else same
        weights = "DIFFER" if "the weights" in what else same
        info(
            f"{result.name:<12}{metrics:<12}{weights:<12}{result.weights[:16]:<20}"
            f"{result.workers:>7}{result.seconds:>9.1f}"
        )
    for name, what in differing.items():
        if what:
            info(f"{name} differs from {results[0].name} in {', '.join(what)}")
    if results[0].metrics["test_map"] <= NOISE:
        info(f"test_map is not above {NOISE}: equality means little, train longer (--epochs)")
    identical = not any(differing.values())
    content = {"identical": identical, "training": opts.training}
    content["runs"] = [result._asdict() for result in results]
    files.write_json(opts.out / RESULTS, content)
    lock.release()
    info("identical to the last bit" if identical else "NOT identical")
    if identical:
        checkpoint_path = opts.out / "run-1" / "best.pt"
        show_next({"score it": command("test", "--checkpoint", checkpoint_path)})
        return 0
    words = (*opts.training, "--device", "cpu", "--threads", 1)
    show_next({"where the bits are the same": command("reproduce", *words)})
    return 3


if __name__ == "__main__":
    options.run_entry(main)
