"""Entry: costs of the models, parts of a training step, and ratios between variants.

Variants are measured alternately in one process and reported as medians and ratios.
"""

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.errors import InputError, counted
from engine import backends, evaluate, options, recipes
from engine.coco_ap import score
from engine.commands import command, show_next, train_script
from engine.datasets import open_split
from engine.inference import predictions
from engine.log import StepTimer, info
from engine.values import builder_keywords, device_for, unknown
from mobileinst import zoo
from mobileinst.deploy import fold_batchnorms

# Variants compared with the model of the options, where it has the keywords.
VARIANTS = {
    "as given": {},
    "width=64": {"width": 64, "kernel_dim": 64},
    "width=128": {"width": 128, "kernel_dim": 128},
    "kv_stride=16": {"kv_stride": 16},
    "self_attention=false": {"self_attention": False},
    "num_encoder_layers=3": {"num_encoder_layers": 3},
    "num_layers=3": {"num_layers": 3},
    "train_points=3136": {"train_points": 3136},
}


def add_synthetic(parser: argparse.ArgumentParser, batch_size: int, rounds: int) -> None:
    """Adds the options of a model, a synthetic batch for it, and the machine."""
    options.add_config(parser)
    for name, default, about in (
        ("image-size", 320, "both sides of the images"),
        ("batch-size", batch_size, "images at a time"),
        ("num-classes", 20, "classes of the model"),
        ("rounds", rounds, "runs for the median time"),
    ):
        parser.add_argument(f"--{name}", type=options.positive, default=default, help=about)
    options.add_device(parser)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Costs of the models, parts of a training step, paired ratios.")
    add_synthetic(parser, batch_size=8, rounds=5)
    parser.add_argument(
        "--models", nargs="+", metavar="NAME",
        help="instead: sizes and CPU time of an image of these models side by side; RECIPE:NAME "
        "has the numbers of a recipe",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path,
        help="instead: CPU time of each part of an evaluation of its validation split",
    )  # fmt: skip
    return parser.parse_args(argv)


def multiply_adds(module: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Multiply-adds of matrix products and convolutions in a forward, by path of each submodule."""
    module = copy.deepcopy(module).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        module(*(tensor.to("meta") for tensor in inputs))
    counted = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    paths = {name.partition(".")[2]: amount for name, amount in counted.items()}
    return paths | {"": counted["Global"]}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def costs(classes: int) -> list[str]:
    """Parameters and multiply-adds: backbones at 512 x 512, systems at 640 x 640."""
    rows = [f"{'':<30}{'parameters':>14}{'multiply-adds':>16}"]
    for title, names, size, make in (
        ("backbones", zoo.BACKBONES, 512, zoo.build_backbone),
        (f"systems, {classes} classes", zoo.names(), 640, lambda name: zoo.build(name, classes)[0]),
    ):
        rows.append(f"{title}, {size} x {size}")
        for name in names:
            with torch.device("meta"):  # nothing is drawn or computed
                module = make(name)
                amount = multiply_adds(module, torch.zeros(1, 3, size, size))[""] / 1e9
            rows.append(f"  {name:<28}{parameters(module):>14,}{amount:>14.3f} G")
    return rows


def build(name: str, classes: int = 80) -> zoo.Built:
    """What NAME or RECIPE:NAME describes, with random values, in eval mode; raises InputError."""
    recipe, _, model = name.rpartition(":")
    try:
        keywords = recipes.values_of(recipe, model)[1]["set"] if recipe else {}
        model, criterion, postprocess = zoo.build(model, classes, **keywords)
    except KeyError:
        raise InputError(f"--models {name}: {unknown(recipe, list(recipes.RECIPES))}") from None
    except ValueError as error:
        raise InputError(f"--models {name}: {error}") from error
    return model.eval(), criterion, postprocess


def side_by_side(names: list[str], classes: int, size: int, rounds: int) -> list[str]:
    """Sizes of models, and the CPU time of the forward of an image, measured alternately."""
    image, sizes, steps = torch.rand(1, 3, size, size), {}, {}
    for name in names:
        whole = build(name, classes)[0]
        extra = sum(parameters(getattr(whole, part)) for part in whole.training_layers)
        with torch.inference_mode():
            amount = multiply_adds(whole, image)[""] / 1e9
        sizes[name] = parameters(whole) - extra, amount
        steps[name] = timed(partial(fold_batchnorms(whole), image))
    with torch.inference_mode():
        measured = alternately(steps, rounds)
    first = measured[names[0]]
    width = max(map(len, names))
    rows = [f"{'':<{width}}{'parameters':>12}{'multiply-adds':>15}{'ms':>8}{'ratio':>7}"]
    for name, runs in measured.items():
        count, amount = sizes[name]
        time_ = 1000 * statistics.median(run["cpu"] for run in runs)
        ratio = statistics.median(a["cpu"] / b["cpu"] for a, b in zip(runs, first))
        rows.append(f"{name:<{width}}{count:>12,}{amount:>13.3f} G{time_:>8.1f}{ratio:>7.2f}")
    return rows


def synthetic_batch(
    size: int, batch: int, classes: int, device: torch.device
) -> tuple[Tensor, Tensor, list[dict]]:
    """Images, padding and targets of three objects each, on an unpadded square canvas."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    padding = torch.zeros(batch, size, size, dtype=torch.bool)
    targets = []
    for index in range(batch):
        masks = torch.zeros(3, size, size, dtype=torch.bool)
        for mask in masks:
            y, x = torch.randint(0, max(1, size // 2), (2,), generator=generator).tolist()
            mask[y : y + size // 2, x : x + size // 3] = True
        targets.append(
            {
                "labels": torch.randint(0, classes, (3,), generator=generator).to(device),
                "masks": masks.to(device),
                "ignore": torch.zeros(size, size, dtype=torch.bool, device=device),
                "image_id": index,
                "size": (size, size),
                "orig_size": (size, size),
            }
        )
    return images.to(device), padding.to(device), targets


def training_step(
    name: str, keywords: dict, opts: argparse.Namespace, device: torch.device
) -> Callable[[], dict[str, float]]:
    """A step on a synthetic batch, without loading, that returns the seconds of its parts."""
    model, criterion, _ = zoo.build(name, opts.num_classes, **keywords)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    size, batch_size = opts.image_size, opts.batch_size
    images, padding, targets = synthetic_batch(size, batch_size, opts.num_classes, device)
    timer, match = StepTimer(), criterion.matcher

    def lap(part: str) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        timer.lap(part)

    def timed_match(layers: Iterable) -> list:
        lap("loss")
        matches = match(layers)
        lap("matching")
        return matches

    def step() -> dict[str, float]:
        timer.__init__()
        optimizer.zero_grad(set_to_none=True)
        outputs = model(images, padding)
        lap("forward")
        loss = sum(criterion(outputs, targets).values())
        lap("loss")
        loss.backward()
        lap("backward")
        optimizer.step()
        lap("update")
        return dict(timer.parts)

    criterion.matcher = timed_match
    return step


def evaluation_parts(opts: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of each part of an evaluation of a checkpoint, for the whole split; raises
    InputError.
    """
    clock, seconds = time.process_time, Counter()
    path, content, model, _, postprocess, preset = backends.load(opts.checkpoint)
    dataset = open_split(evaluate.parse(["--skip-bad-records"]), (path, content))
    dataset.use_classes(content["classes"], str(path))
    # The copy that is evaluated has the hooks as well.
    model.register_forward_pre_hook(lambda *_: seconds.subtract({"forward": clock()}))
    model.register_forward_hook(lambda *_: seconds.update({"forward": clock()}))

    of_image = postprocess.of_image

    def timed_of_image(*args: object) -> dict:
        start = clock()
        result = of_image(*args)
        seconds["post-processing"] += clock() - start
        return result

    postprocess.of_image = timed_of_image
    settings = {"preset": preset, "workers": 0, "device": torch.device("cpu")}
    found = predictions(model, postprocess, dataset, **settings)
    ground_truth = dataset.ground_truth()
    start = clock()
    score(ground_truth, found, max_dets=postprocess.max_detections)
    seconds["scoring"] = clock() - start
    info(f"{path}: {len(dataset)} images, {len(found)} predictions")
    return dict(seconds) | {"all but the forward": sum(seconds.values()) - seconds["forward"]}


def optimizer_step(
    model: nn.Module, forward_and_loss: Callable[[], Tensor], clip: float
) -> Callable[[], float]:
    """A step: forward, loss, backward, clipping, AdamW; it returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward_and_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)
        optimizer.step()
        return loss.item()

    return step


def timed(call: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """Wraps a call to return its wall and CPU seconds."""

    def run() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    return run


def alternately(
    steps: dict[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Runs steps alternately, A B A B, so that drift favours none; one round warms up."""
    measured = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            measured[name].append(step())
    return {name: runs[1:] for name, runs in measured.items()}


def report_steps(measured: dict[str, list[dict[str, float]]], batch_size: int) -> list[str]:
    """The median step of each variant, its parts, and the paired ratio to the first one."""
    first = [sum(parts.values()) for parts in next(iter(measured.values()))]
    names = ("forward", "matching", "loss", "backward", "update")
    rows = [f"{'':<24}{'images/s':>11}{'ratio':>7}" + "".join(f"{part:>10}" for part in names)]
    for name, runs in measured.items():
        totals = [sum(parts.values()) for parts in runs]
        total = statistics.median(totals)
        ratio = statistics.median(total / base for total, base in zip(totals, first))
        shares = (statistics.median(parts[part] for parts in runs) / total for part in names)
        row = f"{name:<24}{batch_size / total:>11.2f}{ratio:>7.2f}"
        rows.append(row + "".join(f"{share:>10.0%}" for share in shares))
    return rows


def main(argv: list[str]) -> None:
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    if opts.checkpoint:
        parts = evaluation_parts(opts)
        info("CPU seconds, and ratio to the forward")
        info("\n".join(f"{k:<24}{v:>8.2f}{v / parts['forward']:>7.2f}" for k, v in parts.items()))
        show_next({"the scores": command("test", "--checkpoint", opts.checkpoint)})
        return
    if opts.models:
        size, threads = opts.image_size, counted(opts.threads, "thread")
        info(f"CPU time of an image of {size} x {size} on {threads}, batch norms folded")
        info("\n".join(side_by_side(opts.models, opts.num_classes, size, opts.rounds)))
        model = opts.models[0].rpartition(":")[2]
        words = ("--data", "DIR", "--model", model)
        show_next({"train the first": command(train_script(model), *words)})
        return
    device = device_for(opts.device)
    keywords = builder_keywords(opts.model, opts.set)
    info("\n".join(costs(opts.num_classes)))
    known = asdict(zoo.config_for(opts.model))
    steps = {
        name: training_step(opts.model, keywords | values, opts, device)
        for name, values in VARIANTS.items()
        if values.keys() <= known.keys()
    }
    info(
        f"\ntraining step of {opts.model}, {opts.image_size} x {opts.image_size}, batch "
        f"{opts.batch_size}, {opts.threads} threads, {device}; ratio of the time to the first row"
    )
    info("\n".join(report_steps(alternately(steps, opts.rounds), opts.batch_size)))
    words = ("--data", "DIR", "--model", opts.model)
    show_next({"train it": command(train_script(opts.model), *words)})


if __name__ == "__main__":
    options.run_entry(main)
