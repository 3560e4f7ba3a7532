"""Times a model of ultralytics through its documented calls, for `benchmark_ultralytics`.

It runs in its own interpreter, which has ultralytics and not this library. Every input line starts
a run; the output is its CPU seconds and a count. Weights are random.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import torch


def forward(model, size: int) -> Callable[[], int]:
    """The network with folded BatchNorms, channels last."""
    network = model.model.eval().fuse().to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> int:
        network(image)
        return 1

    return run


def predict(model, size: int, image: str, detections: int) -> Callable[[], int]:
    """A file -> its best detections, with masks at the size of the image."""

    def run() -> int:
        (result,) = model.predict(
            image, imgsz=size, conf=1e-9, max_det=detections, retina_masks=True, verbose=False
        )
        return len(result.masks.data.numpy())

    return run


def train(model, size: int, batch: int, data: str, answer: Callable, wait: Callable) -> None:
    """Training; every step waits to be asked for. Loading is not part of a step."""
    start = 0.0

    def begin(_: object) -> None:
        nonlocal start
        if not wait():
            sys.exit(0)
        start = time.process_time()

    def end(_: object) -> None:
        answer(time.process_time() - start, batch)

    model.add_callback("on_train_batch_start", begin)
    model.add_callback("on_train_batch_end", end)
    model.train(
        data=data, imgsz=size, batch=batch, nbs=batch, epochs=10_000, optimizer="AdamW",
        workers=0, device="cpu", amp=False, val=False, plots=False, save=False, mosaic=0.0,
        warmup_epochs=0, verbose=False,
    )  # fmt: skip


def main() -> None:
    task, name, threads, keywords = sys.argv[1:]
    given = json.loads(keywords)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the library prints goes with its errors
    from ultralytics import YOLO

    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")

    def answer(seconds: float, count: int) -> None:
        print(json.dumps([seconds, count]), file=answers)

    if task == "export":
        model.export(format="onnx", imgsz=given["size"])
        return
    if task == "train":
        train(model, **given, answer=answer, wait=sys.stdin.readline)
        return
    run = {"forward": forward, "predict": predict}[task](model, **given)
    while sys.stdin.readline():
        start = time.process_time()
        count = run()
        answer(time.process_time() - start, count)


if __name__ == "__main__":
    main()
