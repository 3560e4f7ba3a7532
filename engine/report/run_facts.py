"""What is known about a run when it is asked why its AP is low."""

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import files, log, options
from engine.coco_ap import NOTHING
from engine.commands import data_arguments
from engine.datasets import Parts


class RunFacts(NamedTuple):
    """What is known about a run; all but the first five are missing without a best.pt.

    log, metrics: rows of log.jsonl and of metrics.csv. named, named_in_train: the `confusion` of
    the detections of all queries on val and on training images. num_queries, mask_stride: of the
    model.
    """

    folder: Path
    options: dict
    log: list[dict]
    metrics: list[dict]
    weights: dict | None
    evidence: dict = {}
    parts: Parts | None = None
    named: np.ndarray | None = None
    named_in_train: np.ndarray | None = None
    num_queries: int = 100
    mask_stride: int = 8

    @staticmethod
    def read(folder: Path) -> "RunFacts":
        """The part that the files of a run folder hold."""
        return RunFacts(
            folder,
            files.read_json(folder / options.MARK) or {},
            log.read_jsonl(folder / "log.jsonl"),
            log.read_csv(folder / "metrics.csv"),
            files.read_json(folder / "weights.json"),
        )

    @property
    def names(self) -> list[str]:
        return self.evidence["confusion"]["names"]

    @property
    def data(self) -> str:
        """The data set as options of check_data, which lists bad records in any case."""
        return shlex.join(data_arguments(self.options | {"skip_bad_records": None}))

    def last_ap(self, name: str) -> float | None:
        """AP of `name`, "train" or "val", at the last evaluation."""
        row = self.metrics[-1] if self.metrics else {}
        if name == "val" and row:
            name = evaluated_split(self.metrics)
        value = row.get(f"{name}/AP")
        return None if not value or float(value) == NOTHING else float(value)


def evaluated_split(rows: list[dict]) -> str:
    """The name of the split in rows of metrics.csv that is not a part of the training set."""
    splits = [name.rpartition("/")[0] for name in rows[-1] if "/" in name]
    return next(split for split in splits if split != "train")


def warning(level: str, what: str, why: str, do: str) -> dict[str, str]:
    return {"level": level, "what": what, "why": why, "do": do}


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
