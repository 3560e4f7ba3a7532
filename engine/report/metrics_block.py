"""The block of test metrics: one `key = value` line per number, under fixed names.

The names are those that the Trainer of `transformers` prints with torchmetrics' mean average
precision, so that two runs can be compared line by line. That set-up scores images at the size of
the network's input; here masks are compared, and called small, medium or large, at the size of the
image files. A set with objects of which none was found has AP 0, as in COCO (torchmetrics: -1).
Void counts as background, as in COCO.
"""

from datetime import timedelta
from itertools import chain

import torch
from torch import nn

from data.batch import Batch
from engine import dist
from engine.coco_ap import METRICS, Scores

TITLE = "***** test metrics *****"
# The names of the numbers in the order of METRICS.
NAMES = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)
# These differ in every run.
TIMES = ("test_runtime", "test_samples_per_second", "test_steps_per_second")


class MeanLoss:
    """The criterion's loss of each image on its own: batch size and order do not change the mean.

    In eval mode a model has no auxiliary outputs, so only the loss of the last output counts.
    """

    def __init__(self, criterion: nn.Module):
        self.criterion = criterion
        self.losses: list[list[float]] = []  # by batch, by image

    def __call__(self, outputs: dict, batch: Batch) -> None:
        """Adds the losses of a batch."""
        self.losses.append([])
        tensors = {key: value for key, value in outputs.items() if torch.is_tensor(value)}
        for index, target in enumerate(batch.targets):
            one = {key: value[index : index + 1] for key, value in tensors.items()}
            losses = self.criterion({**one, "aux": []}, [target])
            self.losses[-1].append(sum(losses.values()).item())

    def gather(self) -> None:
        """Collective: collects the losses of all ranks on rank 0."""
        self.losses = dist.gather_interleaved(self.losses)


def all_metrics(scores: Scores, loss: MeanLoss, seconds: float, epoch: float) -> dict[str, float]:
    """All numbers of the block by name, unrounded; -1.0 where the ground truth has none.

    Args:
        seconds: duration of the whole evaluation.
        epoch: number of epochs that the weights were trained for.
    """
    metrics = {f"test_{name}": scores.metrics[key] for name, key in zip(NAMES, METRICS)}
    rows = scores.per_class
    for name, row in zip(class_names([row["name"] for row in rows]), rows):
        metrics |= {f"test_map_{name}": row["AP"], f"test_mar_100_{name}": row["AR"]}
    losses = list(chain.from_iterable(loss.losses))
    return metrics | {
        "epoch": epoch,
        "test_loss": sum(losses) / max(1, len(losses)),
        "test_runtime": seconds,
        "test_samples_per_second": len(losses) / seconds,
        "test_steps_per_second": len(loss.losses) / seconds,
    }


def class_names(names: list[str]) -> list[str]:
    """Names of classes as suffixes of keys, with `_class` added where a key exists already."""
    taken = [name.removeprefix("map_") for name in NAMES]
    for name in names:
        while name in taken:
            name += "_class"
        taken.append(name)
    return taken[len(NAMES) :]


def block(metrics: dict[str, float]) -> str:
    """The metrics as text, sorted by name, values with four digits."""
    width = max(map(len, metrics))
    lines = [TITLE]
    for key, value in sorted(metrics.items()):
        text = str(round(value, 4))
        if key == "test_runtime":
            text = f"{timedelta(seconds=int(value))}.{int(value * 100) % 100:02d}"
        lines.append(f"  {key:<{width}} = {text}")
    return "\n".join(lines)
