"""Entry: compares the systems on the same backbone weights, data and CPU minutes.

Each is trained with its own recipe, for a number of steps that follows from the CPU time of a step
in a short trial, and evaluated once at the end. The folder holds a run folder for each system; the
same command with --resume continues after an interruption.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.dataset import CocoDataset
from data.errors import InputError
from engine import backends, evaluate, fetch, files, log, options, start_weights, train
from engine.commands import command, show_next
from engine.datasets import open_split
from engine.graphs import FORMATS
from engine.log import info
from engine.report.mask_grid import mask_grid_scores
from engine.report.tables import aligned, number, pipes
from engine.tools.benchmark import alternately, parameters, timed
from engine.tools.reproduce import start
from engine.values import positive, positive_real
from mobileinst import zoo
from mobileinst.deploy import deploy

RESULTS = "systems.json"
SYSTEMS = ("mobileinst", "sparseinst", "mask2former")
ROWS = 4  # of the log of a trial, the first of which is left out: it includes the start


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        "Train the systems on the same backbone weights for the same CPU minutes and compare them. "
        "Options that are not listed here go to engine.train."
    )
    add = parser.add_argument
    add("--backbone", choices=zoo.BACKBONES, default="efficientnet_lite0", metavar="NAME",
        help=f"one of {', '.join(zoo.BACKBONES)}")  # fmt: skip
    add("--pretrained", type=Path, help="its weights; those in datasets/weights if not given")
    add("--systems", nargs="+", choices=SYSTEMS, metavar="NAME", default=list(SYSTEMS), 
        help=f"systems to train, some of {', '.join(SYSTEMS)}")  # fmt: skip
    add("--cpu-minutes", type=positive_real, default=20.0, help="CPU minutes of each training")
    add("--trial-steps", type=positive, default=80, help="steps of the trial that times them")
    add("--recipe", choices=("small", "demo"), default="small", help="the recipe of each system")
    add("--rounds", type=positive, default=10, help="runs for the median time of a forward")
    add("--resume", action="store_true", help="go on in --out; what is finished stays")
    options.add_out(parser, "folder; runs/systems-NNN if not given")
    opts, opts.training = parser.parse_known_args(argv)
    for system in opts.systems:
        if f"{system}_{opts.backbone}" not in zoo.MODELS:
            raise InputError(f"--backbone {opts.backbone}: there is no {system}_{opts.backbone}")
        train.parse(training_argv(opts, system) + ["--iterations", "1"])
    if opts.resume and opts.out is None:
        raise InputError("--resume: name the folder with --out")
    return opts


def training_argv(opts: argparse.Namespace, system: str) -> list[str]:
    """Options of the training of a system, all but its length and folder."""
    recipe = opts.recipe if system == "mobileinst" else f"{system}-{opts.recipe}"
    argv = ["--recipe", recipe, "--model", f"{system}_{opts.backbone}", "--device", "cpu"]
    argv += ["--pretrained", str(opts.pretrained)] if opts.pretrained else []
    return [*argv, "--eval-every", "0", "--eval-train", "0", *opts.training]


def seconds_per_step(rows: list[dict]) -> float:
    """CPU seconds of a training step from the rows of a log, without the start."""
    first, last = rows[0], rows[-1]
    steps = last["iteration"] - first["iteration"]
    return max(1e-6, 60 * (last["cpu_minutes"] - first["cpu_minutes"]) / max(1, steps))


def try_out(opts: argparse.Namespace, folder: Path, system: str) -> float:
    """CPU seconds of a training step, from a training of a few steps."""
    out, every = folder / f"{system}-trial", max(1, opts.trial_steps // ROWS)
    argv = training_argv(opts, system) + ["--iterations", str(every * ROWS)]
    argv += ["--log-every", str(every), "--out", str(out), "--overwrite"]
    files.make_folder(out)
    files.clear(out)
    start("engine.train", argv, folder / f"{system}.log")
    return seconds_per_step(log.read_jsonl(out / "log.jsonl"))


def train_and_evaluate(
    opts: argparse.Namespace, folder: Path, system: str, iterations: int
) -> None:
    """Trains in a run folder, or goes on there, and evaluates the last weights."""
    out, output = folder / system, folder / f"{system}.log"
    if not (out / "test.json").exists():
        argv = training_argv(opts, system) + ["--iterations", str(iterations), "--out", str(out)]
        start("engine.train", argv + ["--resume"] * (out / "last.pt").exists(), output)
        argv = ["--checkpoint", str(out / "best.pt"), "--diagnose", "--device", "cpu"]
        argv += ["--out", str(out / "test.json"), "--overwrite"]
        start("engine.evaluate", argv, output)


class Trained(NamedTuple):
    """The best.pt of a run folder, opened, and its validation split."""

    loaded: backends.Loaded
    dataset: CocoDataset

    @classmethod
    def of(cls, folder: Path) -> "Trained":
        loaded = backends.load(folder / "best.pt")
        words = evaluate.parse(["--checkpoint", str(loaded.path)])
        return cls(loaded, open_split(words, (loaded.path, loaded.content)))

    def canvas(self) -> tuple[int, int]:
        """The padded size of the first image."""
        first = self.dataset.images[0]
        return self.loaded.preset.padded_size(first.height, first.width)

    def image(self) -> Tensor:
        """Noise of that size, [1,3,H,W]."""
        return torch.rand(1, 3, *self.canvas(), generator=torch.Generator().manual_seed(0))

    def forward(self) -> Callable[[], dict[str, float]]:
        """A call that takes one forward of an image, and returns its wall and CPU seconds."""
        image = self.image()
        return timed(torch.inference_mode()(lambda: self.loaded.model(image)))


def onnx_forward(trained: Trained) -> Callable[[], dict[str, float]] | None:
    """The same of the exported model in ONNX Runtime; None where it is not installed."""
    onnx = FORMATS["onnx"]
    if not all(map(importlib.util.find_spec, onnx.packages)):
        return None
    size = trained.canvas()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / onnx.name
        onnx.write(deploy(trained.loaded.model, trained.loaded.postprocess, size), path)
        _, run = backends.open_onnx(path)
    image = trained.image()[0]
    return timed(lambda: run(image))


def medians(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median CPU seconds of calls that run alternately."""
    measured = alternately(calls, rounds)
    return {
        name: statistics.median(each["cpu"] for each in runs) for name, runs in measured.items()
    }


def row_of(folder: Path, trained: Trained) -> dict[str, float | str]:
    """The numbers of a trained system, but for the times of a forward."""
    found = json.loads((folder / "test.json").read_text(encoding="utf-8"))["scores"]
    recall = json.loads((folder / "diagnose.json").read_text(encoding="utf-8"))["recall"]
    rows = log.read_jsonl(folder / "log.jsonl")
    headline = found["void_removed"] or found["metrics"]
    _, content, model, _, postprocess, preset = trained.loaded
    grid = mask_grid_scores(trained.dataset, preset, postprocess, model.mask_stride).headline
    chosen = content["options"]
    extra = sum(parameters(getattr(model, name)) for name in model.training_layers)
    return {
        "recipe": chosen["recipe"],
        "short side, mask stride": f"{chosen['image_size']}, {model.mask_stride}",
        "CPU minutes": rows[-1]["cpu_minutes"],
        "steps": content["iteration"],
        "epochs": round(rows[-1]["epoch"], 1),
        "AP": headline["AP"],
        "AP50": headline["AP50"],
        "AP, as COCO": found["metrics"]["AP"],
        "AP50, as COCO": found["metrics"]["AP50"],
        "recall, all objects": recall["all"]["all"]["recall50"],
        "recall, alone": recall["alone"]["all"]["recall50"],
        "recall, not alone": recall["not alone"]["all"]["recall50"],
        "recall, large and not alone": recall["not alone"]["large"]["recall50"],
        "AP of the ground truth through the mask grid": grid["AP"],
        "AP50 of the same": grid["AP50"],
        "CPU seconds of a training step": seconds_per_step(rows),
        "images of a step": chosen["batch_size"] * chosen["accumulate"],
        "parameters": f"{parameters(model) - extra:,}",
        "best.pt, MB": (folder / "best.pt").stat().st_size / 1e6,
    }


def opened(opts: argparse.Namespace, lock: files.FolderLock) -> tuple[Path, dict]:
    """The folder and what was measured there before: CPU seconds of a step, by system.

    Raises:
        InputError: if it is in use, or is to be resumed with other options.
    """
    given = vars(opts) | {"resume": None, "overwrite": None, "out": None, "debug": None}
    given = json.loads(json.dumps(given, default=str))
    if not opts.resume:
        folder = lock.claim(opts.out, options.RUNS, "systems", RESULTS, opts.overwrite)
        return folder, {"options": given, "seconds_per_step": {}}
    lock.acquire(opts.out)
    content = files.read_json(opts.out / RESULTS)
    if not content:
        raise InputError(f"{opts.out}: holds no {RESULTS} to go on from; start without --resume")
    changed = [name for name, value in given.items() if content["options"].get(name) != value]
    if changed:
        name = changed[0].replace("_", "-")
        raise InputError(f"{opts.out}: was made with another --{name}; give the same options")
    return opts.out, content


def main(argv: list[str]) -> None:
    opts = parse(argv)
    if opts.pretrained is None:
        opts.pretrained = start_weights.find().get(opts.backbone) or fetch.fetch(opts.backbone)
    lock = files.FolderLock()
    folder, content = opened(opts, lock)
    rows, trained = {}, {}
    for system in opts.systems:
        times = content["seconds_per_step"]
        if system not in times:
            info(f"{system}: a trial of {opts.trial_steps} steps; output in {folder}/{system}.log")
            times[system] = try_out(opts, folder, system)
            files.write_json(folder / RESULTS, content)
        iterations = max(1, round(60 * opts.cpu_minutes / times[system]))
        info(
            f"{system}: {times[system]:.2f} CPU seconds a step, so {iterations} steps in "
            f"{opts.cpu_minutes:g} CPU minutes"
        )
        train_and_evaluate(opts, folder, system, iterations)
        trained[system] = Trained.of(folder / system)
        rows[system] = row_of(folder / system, trained[system])
        info(f"{system}: AP {rows[system]['AP']:.3f}, AP50 {rows[system]['AP50']:.3f}")
    threads = next(iter(trained.values())).loaded.content["options"]["threads"]
    torch.set_num_threads(threads)
    forwards = medians({name: one.forward() for name, one in trained.items()}, opts.rounds)
    exported = {name: onnx_forward(one) for name, one in trained.items()}
    onnx = medians(exported, opts.rounds) if all(exported.values()) else {}
    for system, row in rows.items():
        height, width = trained[system].canvas()
        row[f"CPU seconds of a forward, {height} x {width}"] = forwards[system]
        row["the same, ONNX Runtime, scores included"] = onnx.get(system)
    first = trained[opts.systems[0]].dataset
    about = (
        f"{opts.backbone} from {opts.pretrained.name}, {opts.cpu_minutes:g} CPU minutes each on "
        f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}; scored on "
        f"{len(first)} images, void removed where the set has void. Recall: objects that any mask "
        "covers with IoU >= 0.5; alone: no other object of the class in the image."
    )
    if not onnx:
        about += " ONNX Runtime is not installed, so its row is empty."
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    texts = [["", *rows]]
    for name in names:
        values = ["-" if row.get(name) is None else row[name] for row in rows.values()]
        texts.append([name, *(number(x) if isinstance(x, float) else str(x) for x in values)])
    info(f"\n{about}\n\n{aligned(texts, 1)}\n\n{folder}")
    files.write_text(folder / "systems.md", f"{about}\n\n{pipes(texts, 1)}\n")
    files.write_json(folder / RESULTS, content | {"rows": rows})
    lock.release()
    runs = [folder / system for system in opts.systems]
    show_next({"curves side by side": command("report", *runs)})


if __name__ == "__main__":
    options.run_entry(main)
