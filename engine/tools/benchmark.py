"""Entry: costs of the models, parts of a training step, and ratios between variants.

Variants are measured alternately in one process and reported as medians and ratios.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine import options
from engine.log import StepTimer, info
from engine.values import device_for
from mobileinst import zoo

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


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser("Costs of the models, parts of a training step, paired ratios.")
    options.add_config(parser)
    parser.add_argument("--image-size", type=options.positive, default=320)
    parser.add_argument("--batch-size", type=options.positive, default=8)
    parser.add_argument("--num-classes", type=options.positive, default=20)
    parser.add_argument("--rounds", type=options.positive, default=5)
    options.add_device(parser)
    options.add_debug(parser)
    return parser.parse_args(argv)


def multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward in eval mode: matrix products and convolutions only."""
    return multiply_adds_of_parts(module, *inputs)[""]


def multiply_adds_of_parts(module: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """The same for every submodule that has any, by its path; the whole has the empty path.

    A copy on the meta device is counted: nothing is computed, and the module stays unchanged.
    """
    module = copy.deepcopy(module).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        module(*(tensor.to("meta") for tensor in inputs))
    counted = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    paths = {name.partition(".")[2]: amount for name, amount in counted.items()}
    return paths | {"": counted["Global"]}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def costs(classes: int) -> list[str]:
    """Lists parameters and multiply-adds: backbones at 512 x 512, systems at 640 x 640."""
    rows = [f"{'':<30}{'parameters':>14}{'multiply-adds':>16}"]
    systems = {name: lambda name=name: zoo.build(name, classes)[0] for name in zoo.names()}
    backbones = {name: lambda name=name: zoo.build_backbone(name) for name in zoo.BACKBONES}
    for title, size, builders in (
        ("backbones, 512 x 512", 512, backbones),
        (f"systems, {classes} classes, 640 x 640", 640, systems),
    ):
        rows.append(title)
        for name, build in builders.items():
            with torch.device("meta"):  # nothing is drawn or computed
                amount = multiply_adds(module := build(), torch.zeros(1, 3, size, size)) / 1e9
            rows.append(f"  {name:<28}{parameters(module):>14,}{amount:>14.3f} G")
    return rows


class Timed:
    """A callable that adds up its seconds."""

    def __init__(self, call: Callable):
        self.call, self.seconds = call, 0.0

    def __call__(self, *inputs):
        start = time.perf_counter()
        result = self.call(*inputs)
        self.seconds += time.perf_counter() - start
        return result


def synthetic_batch(
    size: int, batch: int, classes: int, device: torch.device
) -> tuple[Tensor, Tensor, list[dict]]:
    """Returns images, padding and targets of three objects each, on an unpadded square canvas."""
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


class Step:
    """A training step on a synthetic batch whose parts can be timed."""

    def __init__(self, name: str, keywords: dict, opts: argparse.Namespace, device: torch.device):
        self.device = device
        self.model, self.criterion, _ = zoo.build(name, opts.num_classes, **keywords)
        self.model.to(device, memory_format=torch.channels_last).train()
        self.criterion.matcher = Timed(self.criterion.matcher)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = synthetic_batch(opts.image_size, opts.batch_size, opts.num_classes, device)

    def lap(self, watch: StepTimer, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        watch.lap(part)

    def __call__(self) -> dict[str, float]:
        """Returns the seconds of each part of one step, without loading."""
        images, padding, targets = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion.matcher.seconds, watch = 0.0, StepTimer()
        outputs = self.model(images, padding)
        self.lap(watch, "forward")
        loss = sum(self.criterion(outputs, targets).values())
        self.lap(watch, "loss")
        watch.parts["matching"] += self.criterion.matcher.seconds
        watch.parts["loss"] -= self.criterion.matcher.seconds
        loss.backward()
        self.lap(watch, "backward")
        self.optimizer.step()
        self.lap(watch, "update")
        return dict(watch.parts)


def alternately(
    steps: dict[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Runs steps alternately, A B A B, so that drift favours none; one round warms up.

    A step returns the seconds of its parts.
    """
    measured = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            parts = step()
            if number:
                measured[name].append(parts)
    return measured


def report_steps(measured: dict[str, list[dict[str, float]]], batch_size: int) -> list[str]:
    """Formats the median step of each variant, its parts, and the paired ratio to the first one."""
    first = [sum(parts.values()) for parts in next(iter(measured.values()))]
    names = ("forward", "matching", "loss", "backward", "update")
    rows = [f"{'':<24}{'images/s':>11}{'ratio':>7}" + "".join(f"{part:>10}" for part in names)]
    for name, runs in measured.items():
        totals = [sum(parts.values()) for parts in runs]
        ratio = statistics.median(total / base for total, base in zip(totals, first))
        shares = [statistics.median(parts[part] for parts in runs) for part in names]
        rows.append(
            f"{name:<24}{batch_size / statistics.median(totals):>11.2f}{ratio:>7.2f}"
            + "".join(f"{share / statistics.median(totals):>10.0%}" for share in shares)
        )
    return rows


def main(argv: list[str]) -> None:
    opts = parse(argv)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    keywords = options.builder_keywords(opts.model, opts.set)
    info("\n".join(costs(opts.num_classes)))
    known = asdict(zoo.config_for(opts.model))
    steps = {
        name: Step(opts.model, keywords | values, opts, device)
        for name, values in VARIANTS.items()
        if values.keys() <= known.keys()
    }
    info(
        f"\ntraining step of {opts.model}, {opts.image_size} x {opts.image_size}, batch "
        f"{opts.batch_size}, {opts.threads} threads, {device}; ratio of the time to the first row"
    )
    info("\n".join(report_steps(alternately(steps, opts.rounds), opts.batch_size)))


if __name__ == "__main__":
    options.run_entry(main)
