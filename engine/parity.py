"""Compares the results of an exported file and its model on real images."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import nn

from data import rle
from data.batch import Annotation, collate
from data.presets import WholeImage
from engine.graphs import Limits
from engine.log import progress
from mobileinst.set_prediction.postprocess import Postprocess

MIN_IMAGES, MIN_DETECTIONS = 8, 20
# Of results whose scores are compared: in a mask of few cells, one that a rounding takes across the
# threshold changes the mask quality by 1e-3 and more.
SHARE = 0.99

Read = Callable[[], tuple[Image.Image, Annotation]]  # of one image


@dataclass
class Detections:
    """What a model found in images, and the median CPU seconds of its network.

    results: of the contract in data/batch.py for each image, masks as RLE. every: the same with
        duplicates, of which a rounding decides which one is dropped.
    """

    results: list[dict] = field(default_factory=list)
    every: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def above(self, threshold: float) -> list[dict[int, tuple[int, float, dict]]]:
        """The best detection of each query above a score, of each image: label, score and mask."""
        found = []
        for result in self.every:
            columns = (result[key].tolist() for key in ("query_idx", "labels", "scores"))
            best: dict[int, tuple[int, float, dict]] = {}
            for query, *detection in zip(*columns, result["masks"]):
                if detection[1] > threshold:
                    best.setdefault(query, tuple(detection))
            found.append(best)
        return found


@dataclass(frozen=True)
class Comparison:
    """Differences of detections above the threshold; those within `score` of it do not count."""

    detections: int
    missing: int  # detections of one side alone, or of another class
    score_difference: float  # the largest, but for one result in a hundred; see `SHARE`
    mask_iou_worst: float
    mask_iou_median: float

    def within(self, limits: Limits) -> bool:
        return (
            self.missing <= limits.missing * self.detections
            and self.score_difference <= limits.score
            and self.mask_iou_worst >= limits.iou
            and self.mask_iou_median >= limits.median_iou
        )


@torch.inference_mode()
def run(
    model: nn.Module,
    postprocess: Postprocess,
    preset: WholeImage,
    images: Sequence[Read],
    name: str,
) -> Detections:
    """Runs a model on the CPU on each image alone."""
    detections, seconds = Detections(), []
    with_duplicates = copy.copy(postprocess)
    with_duplicates.duplicate_iou = 1.0
    for read in progress(images, desc=name, leave=False):
        batch = collate([preset(*read())]).to("cpu")
        start = time.process_time()
        outputs = model(batch.images, batch.padding)
        seconds.append(time.process_time() - start)
        detections.results += postprocess(outputs, batch.sizes(), encode=rle.encode)
        detections.every += with_duplicates(outputs, batch.sizes(), encode=rle.encode)
    detections.seconds = statistics.median(seconds)
    return detections


def compare(reference: Detections, found: Detections, threshold: float, limit: float) -> Comparison:
    """Compares the detections of the same queries; `limit` is that of a score."""
    missing, differences, ious = 0, [], []
    pairs = zip(reference.above(threshold - limit), found.above(threshold - limit), strict=True)
    for expected, other in pairs:
        for query in expected.keys() | other.keys():
            both = [side[query] for side in (expected, other) if query in side]
            if max(score for _, score, _ in both) <= threshold + limit:
                continue  # a rounding may decide
            if len(both) == 1 or both[0][0] != both[1][0]:
                missing += 1
                continue
            differences.append(abs(both[0][1] - both[1][1]))
            ious.append(float(rle.iou([both[0][2]], [both[1][2]])[0, 0]))
    return Comparison(
        detections=len(ious),
        missing=missing,
        score_difference=float(np.quantile(differences, SHARE, method="lower"))
        if differences
        else 0.0,
        mask_iou_worst=min(ious, default=1.0),
        mask_iou_median=statistics.median(ious) if ious else 1.0,
    )
