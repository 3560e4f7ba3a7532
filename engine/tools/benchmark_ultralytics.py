"""Entry: our phone models beside a YOLO of ultralytics, both with random values, on the CPU.

The peer runs in its own interpreter, which has ultralytics; it is timed from outside. Models are
measured alternately; medians of CPU time and of the ratios to the peer are reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.errors import InputError
from data.presets import EvalPreset
from data.records import Category
from engine import backends, graphs, options
from engine.api import Model
from engine.files import FailedRun
from engine.log import info
from engine.optim import MovingAverage
from engine.tools.benchmark import (
    alternately,
    build,
    optimizer_step,
    synthetic_batch,
    timed,
)
from mobileinst.deploy import deploy, fold_batchnorms
from mobileinst.layers.winograd import with_winograd

PEER = Path(__file__).with_name("ultralytics_peer.py")
TINY = "mobileinst_topformer_tiny"
DETECTIONS = 10  # masks of each image
PHOTO = (4000, 3000)  # 12 megapixels
ROWS = ("onnx", "files", "executorch", "eager", "training")
CLASSES = 80  # those of the peer

Run = Callable[[], dict[str, float]]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("CPU time of our phone models and of a YOLO with random values.")
    add = parser.add_argument
    add(
        "--peer-python", type=Path, required=True,
        help="interpreter of an environment with ultralytics, onnx and onnxruntime",
    )  # fmt: skip
    add("--peer-model", default="yolo26n-seg", help="name of its configuration")
    add("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW",
        help=f"what is measured, some of {', '.join(ROWS)}")  # fmt: skip
    add("--models", nargs="+", help="ours: NAME, or RECIPE:NAME for the numbers of a recipe")
    add("--image-size", type=options.positive, default=640, help="both sides of the image")
    add("--train-size", type=options.positive, default=320, help="the same in training")
    add("--batch-size", type=options.positive, default=8, help="images of a training step")
    add("--image", type=Path, help="a photo for the row of files; one is drawn if not given")
    add("--rounds", type=options.positive, default=15, help="runs for the median time")
    add("--threads", type=options.positive, default=1, help="threads of both")
    opts = parser.parse_args(argv)
    opts.models = opts.models or [f"small:{TINY}", f"small:{TINY}_lite", TINY]
    return opts


class Peer:
    """A process of the peer for one task; a call is one run and returns its CPU seconds.

    Raises:
        InputError: if the interpreter cannot be started.
        FailedRun: if the process ends.
    """

    def __init__(self, opts: argparse.Namespace, folder: Path, task: str, **given: object) -> None:
        command = [str(opts.peer_python.absolute()), str(PEER.absolute()), task, opts.peer_model]
        self.errors = folder / f"{task}.txt"
        self.task, self.count = task, 0
        try:
            with open(self.errors, "w", encoding="utf-8") as errors:
                self.process = subprocess.Popen(
                    [*command, str(opts.threads), json.dumps(given)], cwd=folder, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    env=os.environ | {"YOLO_CONFIG_DIR": str(folder)},
                )  # fmt: skip
        except OSError as error:
            raise InputError(
                f"--peer-python {opts.peer_python}: cannot be started ({error.strerror}); name "
                "the interpreter of an environment with ultralytics"
            ) from error

    def __call__(self) -> dict[str, float]:
        try:
            print(file=self.process.stdin, flush=True)
            seconds, self.count = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise self.failed() from None
        return {"cpu": seconds}

    def finish(self) -> None:
        """Waits for a task that runs once."""
        if self.process.wait():
            raise self.failed()

    def failed(self) -> FailedRun:
        self.process.kill()
        lines = self.errors.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
        return FailedRun(f"the peer's {self.task} ended: {lines[-1]}")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Scores(nn.Module):
    """Class scores and mask logits of a network, as exported: image [1,3,H,W] -> both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(image)
        scores = outputs["class_logits"].sigmoid() * outputs["objectness"].sigmoid()
        return scores, outputs["mask_logits"]


def session(path: Path, size: int) -> Run:
    """A run of an ONNX file on one image."""
    opened = backends.onnx_session(path)
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    feed = {opened.get_inputs()[0].name: image}
    return timed(lambda: opened.run(None, feed))


def to_onnx(module: nn.Module, size: int, path: Path) -> Path:
    """Writes an ONNX file as exported, but with float32 as input, as the peer's is."""
    graphs.save_onnx(with_winograd(module.eval()), torch.rand(1, 3, size, size), path)
    return path


def onnx_rows(opts: argparse.Namespace, folder: Path) -> None:
    size = opts.image_size
    Peer(opts, folder, "export", size=size).finish()
    runs = {opts.peer_model: session(folder / f"{opts.peer_model}.onnx", size)}
    for name in opts.models:
        model, _, postprocess = build(name)
        deployed = deploy(model, postprocess, (size, size))
        whole = to_onnx(deployed, size, folder / "whole.onnx")
        folded = fold_batchnorms(model).to(memory_format=torch.contiguous_format)
        network = to_onnx(Scores(folded), size, folder / "network.onnx")
        runs[name] = session(network, size)
        runs[f"{name}, final scores"] = session(whole, size)
    report(f"ONNX Runtime, {size} x {size}", runs, opts.rounds)


def file_rows(opts: argparse.Namespace, folder: Path) -> None:
    """File -> masks at the size of the image; both networks see the same number of pixels."""
    image = draw_photo() if opts.image is None else Image.open(opts.image).convert("RGB")
    landscape = image if image.width >= image.height else image.transpose(Image.Transpose.ROTATE_90)
    for size in (landscape.size, PHOTO):
        path = folder / f"{size[0]}x{size[1]}.jpg"
        landscape.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        given = {"size": opts.image_size, "image": str(path), "detections": DETECTIONS}
        with Peer(opts, folder, "predict", **given) as peer:
            runs = {opts.peer_model: peer}
            for name in opts.models:
                model, _, postprocess = build(name)
                postprocess.max_detections, postprocess.duplicate_iou = DETECTIONS, 1.0
                postprocess.cut = 0.0  # of random weights, above .5 no mask may have a pixel
                classes = [Category(number, number, str(number)) for number in range(CLASSES)]
                # The peer's size is of the long side, ours of the short one.
                preset = EvalPreset(round(opts.image_size * size[1] / size[0]))
                use = Model(
                    fold_batchnorms(model), postprocess, classes, preset, -1.0, torch.device("cpu")
                )
                runs[name] = timed(lambda use=use, path=path: use(path).masks)
            report(f"file -> {DETECTIONS} masks, {size[0]} x {size[1]}", runs, opts.rounds)


def draw_photo() -> Image.Image:
    """A smooth image with some noise, as large as those of VOC."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(smooth.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    noisy = pixels + generator.normal(0, 6, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def eager_rows(opts: argparse.Namespace, folder: Path) -> None:
    size = opts.image_size
    image = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    with Peer(opts, folder, "forward", size=size) as peer, torch.inference_mode():
        runs = {opts.peer_model: peer}
        for name in opts.models:
            model = fold_batchnorms(build(name)[0])
            runs[name] = timed(lambda model=model: model(image))
        report(f"eager, folded, channels last, {size} x {size}", runs, opts.rounds)


def training_rows(opts: argparse.Namespace, folder: Path) -> None:
    """Forward, loss, backward, clipping, optimizer and average, without loading."""
    data = write_training_set(folder / "set", opts.train_size, opts.batch_size)
    given = {"size": opts.train_size, "batch": opts.batch_size, "data": str(data)}
    with Peer(opts, folder, "train", **given) as peer:
        runs = {opts.peer_model: peer}
        for name in opts.models:
            runs[name] = timed(training_step(name, opts.train_size, opts.batch_size))
        title = f"training step, {opts.train_size} x {opts.train_size}, batch {opts.batch_size}"
        report(title, runs, max(3, opts.rounds // 2))


def training_step(name: str, size: int, batch_size: int) -> Callable[[], None]:
    model, criterion, _ = build(name)
    model.to(memory_format=torch.channels_last).train()
    average = MovingAverage(model, 0.999)
    images, padding, targets = synthetic_batch(size, batch_size, CLASSES, torch.device("cpu"))
    images = images.contiguous(memory_format=torch.channels_last)
    optimize = optimizer_step(
        model, lambda: sum(criterion(model(images, padding), targets).values()), clip=10.0
    )

    def step() -> None:
        optimize()
        average.update()

    return step


def write_training_set(folder: Path, size: int, count: int) -> Path:
    """As many objects as in our synthetic batch, in the peer's format; returns its data.yaml."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/train/{number}.jpg")
        rows = []
        for corner in generator.random((3, 2)) / 2:
            (left, top), (right, bottom) = corner, corner + (1 / 3, 1 / 2)
            outline = f"{left} {top} {right} {top} {right} {bottom} {left} {bottom}"
            rows.append(f"{generator.integers(CLASSES)} {outline}")
        (folder / f"labels/train/{number}.txt").write_text("\n".join(rows), encoding="utf-8")
    names = [str(number) for number in range(CLASSES)]
    content = {"path": str(folder), "train": "images/train", "val": "images/train", "names": names}
    path = folder / "data.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def executorch_rows(opts: argparse.Namespace, folder: Path) -> None:
    """ExecuTorch with XNNPACK beside ONNX Runtime: the graph with final scores, as exported."""
    from executorch.runtime import Runtime  # only needed here

    backends.set_executorch_threads()
    size = opts.image_size
    image = torch.rand(1, 3, size, size)
    for name in opts.models:
        model, _, postprocess = build(name)
        deployed = deploy(model, postprocess, (size, size))
        graphs.write_pte(deployed, folder / "model.pte")
        method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
        runs = {
            f"{name}, ONNX Runtime": session(to_onnx(deployed, size, folder / "model.onnx"), size),
            f"{name}, ExecuTorch": timed(lambda method=method: method.execute([image])),
        }
        report(f"ExecuTorch, {size} x {size}", runs, opts.rounds)


def report(title: str, runs: dict[str, Run], rounds: int) -> None:
    """Prints the median time of each run, and the median ratio to the first by round."""
    measured = alternately(runs, rounds)
    first = [one["cpu"] for one in next(iter(measured.values()))]
    info(f"\n{title}\n{'':<56}{'CPU ms':>11}{'ratio':>8}")
    for name, results in measured.items():
        times = [one["cpu"] for one in results]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times, first))
        info(f"  {name:<54}{1000 * statistics.median(times):>11.1f} {ratio:>7.3f}")


MEASURE = dict(
    zip(ROWS, (onnx_rows, file_rows, executorch_rows, eager_rows, training_rows), strict=True)
)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    info(
        f"{opts.peer_model} of ultralytics beside ours; torch {torch.__version__}, float32, "
        f"{opts.threads} thread(s), Python {sys.version.split()[0]}; medians of {opts.rounds} "
        "rounds in turn, CPU time"
    )
    for row in opts.rows:
        with tempfile.TemporaryDirectory() as folder:
            MEASURE[row](opts, Path(folder))


if __name__ == "__main__":
    options.run_entry(main)
