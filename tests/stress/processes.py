"""Entry: a training is the same computation, however its batches are split over processes.

`compare` trains small models on 1 x 8, 2 x 4 and 1 x (4 + 4 accumulated) images a step, each in
separate processes, and reports the differences of losses and first gradients. These processes run
this entry: training steps of engine.train in a given precision, with frozen batch norm statistics,
because each norm would see the images of its own process only.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data.demo import organs
from data.errors import InputError
from engine import dist, options, train
from engine.files import FailedRun, FolderLock
from engine.run import Run
from mobileinst import zoo
from mobileinst.layers.freeze import freeze_norms
from tests.stress.rows import Row

SYSTEMS = {
    "MobileInst": "--model mobileinst_topformer_tiny --set width=32 kernel_dim=16 query_width=32 "
    "num_heads=2 num_queries=20 drop_path=0 kv_stride=16 guided=true semantic_weight=1",
    "Mask2Former": "--model mask2former_swin_tiny --set embed_dim=16 depths=1,1,1,1 "
    "backbone_heads=1,2,2,4 window_size=4 drop_path=0 width=32 mask_dim=16 num_heads=2 "
    "num_encoder_layers=1 "
    "encoder_ffn_width=32 num_queries=20 num_layers=3 ffn_width=32 train_points=256",
    "SparseInst": "--model sparseinst_topformer_tiny --set width=32 kernel_dim=16 num_queries=20",
}
TRAINING = (
    "--from-scratch --device cpu --threads 1 --workers 0 --image-size 64 --canvas 64x64 64x128 "
    "--warmup 5 --copy-paste 0.3"
)
SPLITS = {  # of eight images: number of processes, options of each
    "1 x 8": (1, "--batch-size 8 --accumulate 1"),
    "2 x 4": (2, "--batch-size 4 --accumulate 1"),
    "1 x (4 + 4)": (1, "--batch-size 4 --accumulate 2"),
}
REFERENCE = "1 x 8"
LIMITS = {"float64": 1e-8, "float32": 1e-5}  # of the relative difference
STEPS = {"float64": 50, "float32": 1}  # for each precision


class Difference(NamedTuple):
    """The largest relative difference of a split from the reference, over all terms and steps."""

    system: str
    split: str
    precision: str
    steps: int
    losses: float
    gradients: float

    @property
    def passed(self) -> bool:
        return max(self.losses, self.gradients) < LIMITS[self.precision]


def build(config, seed: int = 0, *, precision: str) -> zoo.Built:
    """Builds the standard model in another precision with frozen batch norms."""
    model, criterion, postprocess = zoo.build_from_config(config, seed=seed)
    settle_norms(model)
    freeze_norms(model)
    dtype = getattr(torch, precision)
    model.to(dtype).register_forward_pre_hook(lambda _, seen: (seen[0].to(dtype), *seen[1:]))
    return model, criterion, postprocess


@torch.no_grad()
def settle_norms(model: nn.Module) -> None:
    """Sets batch norm statistics from blurred noise.

    With the initial ones the maps fade from layer to layer, and little would be compared.
    """
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    noise = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model.train()(F.interpolate(noise, scale_factor=16, mode="bilinear"))


def measure(argv: list[str], precision: str) -> dict:
    """Trains without a run folder; returns all losses and the gradients of the first step."""
    opts = train.parse(argv)
    data = dist.local_first(lambda: train.open_data(opts), InputError)
    builder = partial(build, precision=precision)
    trainer, *others, _ = train.build(opts, data, torch.device("cpu"), builder)
    run = Run(opts, Path(), data, trainer, *others, {}, FolderLock())
    measured = {"losses": [], "gradients": {}}
    for losses, _ in trainer.steps(run.loader(workers=0)):
        measured["losses"].append(losses)
        if len(measured["losses"]) == 1:
            measured["gradients"] = {
                name: parameter.grad.clone(memory_format=torch.contiguous_format)
                for name, parameter in trainer.model.named_parameters()
                if parameter.requires_grad
            }
    return measured


def of_losses(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Returns the largest relative difference of two lists of named losses."""
    pairs = [
        (value, second[name])
        for first, second in zip(one, other, strict=True)
        for name, value in first.items()
    ]
    return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs)


def of_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Returns the norm of the difference of all gradients, relative to their norm."""
    difference = sum((value - other[name]).square().sum().double() for name, value in one.items())
    length = sum(value.square().sum().double() for value in one.values())
    return (difference / length).sqrt().item()


def in_processes(split: str, argv: list[str], precision: str, out: Path) -> dict:
    """Runs `measure` in fresh processes, as many as the split has.

    Raises:
        FailedRun: if they failed; they have printed why.
    """
    number, sizes = SPLITS[split]
    worker = ["-m", __spec__.name, precision, str(out), *argv, *sizes.split()]
    if number > 1:
        launch = ["-m", "engine.launch", "--standalone", "--nproc-per-node", str(number)]
        worker = [*launch, *worker]
    if subprocess.run([sys.executable, *worker], stdout=subprocess.DEVNULL).returncode:
        raise FailedRun(f"the training of {split} failed, see above")
    return torch.load(out, weights_only=True)


def compare(folder: Path, steps: dict[str, int] = STEPS) -> Iterator[Difference]:
    """Compares each system, precision and split with the reference, on drawn images.

    Args:
        folder: for the images and the measurements, which stay there.
        steps: for each precision.
    """
    data = folder / "organs"
    organs.write(data, train=20, val=2)
    for system, model in SYSTEMS.items():
        for precision, number in steps.items():
            argv = f"{TRAINING} --iterations {number} {model}".split() + ["--data", str(data)]
            measured = {
                split: in_processes(split, argv, precision, folder / f"{index}.pt")
                for index, split in enumerate(SPLITS)
            }
            for split in SPLITS.keys() - {REFERENCE}:
                yield difference(system, split, precision, measured)


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """Yields the rows of the stress table; few steps unless thorough."""
    for found in compare(scratch, STEPS if thorough else {**STEPS, "float64": 5}):
        yield Row(
            f"{found.system}, {found.split} against {REFERENCE}, {found.precision}",
            f"{found.steps} steps" if found.steps > 1 else "first step",
            f"losses differ by {found.losses:.1e} at most, gradients by {found.gradients:.1e}",
            found.passed,
        )


def difference(system: str, split: str, precision: str, measured: dict[str, dict]) -> Difference:
    """Returns the difference of one split from the reference."""
    one, other = measured[REFERENCE], measured[split]
    losses = of_losses(one["losses"], other["losses"])
    gradients = of_gradients(one["gradients"], other["gradients"])
    return Difference(system, split, precision, len(one["losses"]), losses, gradients)


def main(argv: list[str]) -> None:
    """PRECISION OUT, then options of engine.train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("precision", choices=LIMITS)
    parser.add_argument("out", type=Path)
    opts, rest = parser.parse_known_args(argv)
    torch.set_num_threads(1)
    measured = measure(rest, opts.precision)
    if dist.is_main_process():
        torch.save(measured, opts.out)


if __name__ == "__main__":
    options.run_entry(main)
