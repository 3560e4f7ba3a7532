"""The block of test metrics: one `key = value` line per number, under fixed names.

The names are those that the Trainer of `transformers` prints with torchmetrics' mean average
precision, so that two runs can be laid side by side. The numbers are ours, and differ where that
set-up scores the resized pictures that the network saw: here masks are compared, and called small,
medium or large, at the size of the pictures' files. A set where something is to be found and
nothing was has the AP 0, as COCO has it (torchmetrics: -1). Regions that are void count as COCO
counts them, as background.
"""

from datetime import timedelta
from itertools import chain

import torch
from torch import nn

from data.batch import Batch
from engine import dist
from engine.coco_ap import ClassScore, Scores

TITLE = "***** test metrics *****"
OVERALL = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "APs",
    "map_medium": "APm",
    "map_large": "APl",
    "mar_1": "AR1",
    "mar_10": "AR10",
    "mar_100": "AR100",
    "mar_small": "ARs",
    "mar_medium": "ARm",
    "mar_large": "ARl",
}
# What no two runs share.
TIMES = ("test_runtime", "test_samples_per_second", "test_steps_per_second")


class MeanLoss:
    """The criterion's loss of a set: of each picture on its own, averaged over the pictures.

    Taken in eval mode, where a model has no auxiliary outputs: it is the loss of the last output,
    without what only training adds. Pictures by themselves, because then neither the batch size nor
    the order changes the value.
    """

    def __init__(self, criterion: nn.Module):
        self.criterion = criterion
        self.losses: list[list[float]] = []  # batch by batch, picture by picture

    def __call__(self, outputs: dict, batch: Batch) -> None:
        """Take in one batch."""
        self.losses.append([])
        for index, target in enumerate(batch.targets):
            one = {
                key: value[index : index + 1]
                for key, value in outputs.items()
                if torch.is_tensor(value)
            }
            losses = self.criterion({**one, "aux": []}, [target])
            self.losses[-1].append(sum(losses.values()).item())

    def gather(self) -> None:
        """Take in what the other processes saw, as if this one had seen it all."""
        self.losses = dist.gather_interleaved(self.losses)

    @property
    def batches(self) -> int:
        return len(self.losses)

    @property
    def pictures(self) -> int:
        return sum(map(len, self.losses))

    @property
    def mean(self) -> float:
        return sum(chain.from_iterable(self.losses)) / max(1, self.pictures)


def all_metrics(scores: Scores, loss: MeanLoss, seconds: float, epoch: float) -> dict[str, float]:
    """All numbers of the block by name, unrounded; -1.0 for what the ground truth has not.

    Args:
        seconds: of the whole evaluation.
        epoch: passes over the training set that the weights have seen.
    """
    metrics = {f"test_{name}": scores.metrics[key] for name, key in OVERALL.items()}
    for name, row in zip(class_names(scores.per_class), scores.per_class):
        metrics |= {f"test_map_{name}": row.AP, f"test_mar_100_{name}": row.AR}
    return metrics | {
        "epoch": epoch,
        "test_loss": loss.mean,
        "test_runtime": seconds,
        "test_samples_per_second": loss.pictures / seconds,
        "test_steps_per_second": loss.batches / seconds,
    }


def class_names(rows: list[ClassScore]) -> list[str]:
    """The names of classes as they end a key; one that would make a key twice gets `_class`."""
    taken = {name.removeprefix("map_") for name in OVERALL}
    names = []
    for row in rows:
        name = row.name
        while name in taken:
            name += "_class"
        taken.add(name)
        names.append(name)
    return names


def block(metrics: dict[str, float]) -> str:
    """The metrics as text, sorted by name, values with four digits."""
    width = max(map(len, metrics))
    lines = [f"  {key:<{width}} = {_shown(key, metrics[key])}" for key in sorted(metrics)]
    return "\n".join([TITLE, *lines])


def _shown(key: str, value: float) -> str:
    if key == "test_runtime":
        return f"{timedelta(seconds=int(value))}.{int(value * 100) % 100:02d}"
    return str(round(value, 4))
