"""Entry: images per second, memory, and the share of the time that a training waits for data.

Each recipe trains in a process of its own, on the same data. Its first steps are not counted.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

import torch

from engine import options, train
from engine.commands import command, show_next
from engine.files import FailedRun
from engine.log import info
from mobileinst import zoo

FIRST = 10  # steps that are not counted: loader processes start, kernels are chosen

# Options added to a recipe: a GPU of 11 GB holds 8 images of 640 x 640.
ADDED = {"small": [], "coco": ["--batch-size", "8", "--accumulate", "1"]}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        "Train a few steps of each recipe; measure speed, memory, waiting for data. Options that "
        "are not listed here go to engine.train."
    )
    parser.add_argument("--recipes", nargs="+", default=list(ADDED), help="recipes to train")
    parser.add_argument("--steps", type=options.positive, default=50, help="steps that are counted")
    parser.add_argument("--memory", type=float, default=11.0, help="GB of a GPU that may be used")
    opts, opts.training = parser.parse_known_args(argv)
    return opts


def measure(argv: list[str], steps: int, memory: float) -> tuple[float, float, float]:
    """Trains in this process, without evaluation.

    Returns:
        images per second, GB used (of the GPU; else of this process), share of time spent waiting.
    Raises:
        FailedRun: if `memory` GB of a GPU are not enough.
    """
    opts = train.parse([*argv, "--iterations", str(FIRST + steps), "--eval-every", "0"])
    with train.prepare(opts, zoo.build_from_config) as run:
        device = run.trainer.device
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory * 1e9 / total))
        try:
            taken = [seconds for _, seconds in run.trainer.steps(run.loader(opts.workers))][FIRST:]
        except torch.cuda.OutOfMemoryError as error:
            raise FailedRun(f"more than {memory:g} GB are needed; lower --batch-size") from error
        if device.type == "cuda":
            used = torch.cuda.max_memory_reserved(device)
        else:
            used = (1 if sys.platform == "darwin" else 1024) * resource.getrusage(
                resource.RUSAGE_SELF
            ).ru_maxrss
        everything = sum(sum(seconds.values()) for seconds in taken)
        waiting = sum(seconds["data"] for seconds in taken)
        return steps * run.opts.images_per_step / everything, used / 1e9, waiting / everything


def main(argv: list[str]) -> None:
    opts = parse(argv)
    rows = [f"{'recipe':<20}{'images/s':>10}{'GB':>8}{'waiting for data':>18}"]
    for name in opts.recipes:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        ):
            chosen = ["--recipe", name, *ADDED.get(name, []), "--out", f"{folder}/run"]
            names = [word.partition("=")[0] for word in opts.training]
            chosen += [] if "--pretrained" in names else ["--from-scratch"]
            call = pool.submit(measure, [*chosen, *opts.training], opts.steps, opts.memory)
            speed, memory, waiting = call.result()
        rows.append(f"{name:<20}{speed:>10.1f}{memory:>8.2f}{waiting:>18.1%}")
    info("\n".join(rows))
    show_next({"train": command("train", "--data", "DIR")})


if __name__ == "__main__":
    options.run_entry(main)
