"""Detections above a score threshold against the objects of their image, whatever their class.

In the order of their scores, each detection takes the free object of its class with the highest
mask IoU, if that is at least 0.5; then, in the same way, detections without one take what is left
of other classes. So a right mask with a wrong class is a confusion of two classes, where COCO's AP,
class by class, counts a false positive and a miss. What is left over is extra or missed; what lies
in a crowd of its class is neither. Pixels of detections inside void are removed first.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data import rle
from engine.coco_ap import by_image, remove_void
from engine.report.diagnose import FOUND, shares


class Matches(NamedTuple):
    """One image. pairs: class index of object and detection, and their IoU. missed: classes
    of objects without a detection. extra: classes of detections without an object.
    """

    pairs: list[tuple[int, int, float]]
    missed: list[int]
    extra: list[int]

    @property
    def found(self) -> int:
        """Objects with a detection of their class."""
        return sum(truth == detection for truth, detection, _ in self.pairs)

    @property
    def objects(self) -> int:
        return len(self.pairs) + len(self.missed)

    @property
    def quality(self) -> float:
        """The panoptic quality of the image (Kirillov et al., 2019, equation 1), all classes
        together: the sum of the IoUs of objects with a detection of their class, over the mean of
        the numbers of objects and detections. 1 for an image without both.
        """
        detections = len(self.pairs) + len(self.extra)
        if not self.objects + detections:
            return 1.0
        right = sum(iou for truth, detection, iou in self.pairs if truth == detection)
        return 2 * right / (self.objects + detections)


def match(ground_truth: dict, detections: list[dict], threshold: float) -> dict[int, Matches]:
    """Image id -> its matches, for every image of the ground truth.

    Args:
        detections: COCO results with `best`; only these count, if their score is above `threshold`.
    """
    index_of = {one["id"]: index for index, one in enumerate(ground_truth["categories"])}
    shown = [each for each in detections if each["best"] and each["score"] > threshold]
    detections = by_image(remove_void(ground_truth, shown))
    records = by_image(ground_truth["annotations"])
    return {
        image["id"]: match_image(records[image["id"]], detections[image["id"]], index_of)
        for image in ground_truth["images"]
    }


def match_image(records: list[dict], detections: list[dict], index_of: dict[int, int]) -> Matches:
    """The matches of one image; `index_of` is the class index of each category id."""
    objects = [each for each in records if not each.get("iscrowd")]
    crowds = [each for each in records if each.get("iscrowd")]
    detections = sorted(detections, key=lambda each: -each["score"])
    masks = [each["segmentation"] for each in detections]
    ious = rle.iou(masks, [each["segmentation"] for each in objects])  # [M,N]
    labels, given = (
        np.array([index_of[each["category_id"]] for each in some], int)
        for some in (objects, detections)
    )
    pairs = assign(ious, given[:, None] == labels)
    of_crowds = np.array([index_of[each["category_id"]] for each in crowds], int)
    inside = shares(masks, [each["segmentation"] for each in crowds]) >= FOUND  # [M, crowds]
    in_crowd = (inside & (given[:, None] == of_crowds)).any(1)
    extra = [int(given[i]) for i in range(len(detections)) if i not in pairs and not in_crowd[i]]
    return Matches(
        [(int(labels[j]), int(given[i]), float(ious[i, j])) for i, j in pairs.items()],
        np.delete(labels, list(pairs.values())).tolist(),
        extra,
    )


def assign(ious: np.ndarray, same_class: np.ndarray) -> dict[int, int]:
    """Detection -> its object, as at the head of this file.

    Args:
        ious: [M,N] of M detections, best first, with N objects. same_class: bool [M,N].
    """
    free, pairs = np.ones(ious.shape[1]), {}
    for allowed in (same_class, ~same_class):
        for i, row in enumerate(ious):
            row = row * free * allowed[i]
            if i not in pairs and row.max(initial=0.0) >= FOUND:
                pairs[i] = int(row.argmax())
                free[pairs[i]] = 0
    return pairs


def confusion(matches: Iterable[Matches], num_classes: int) -> np.ndarray:
    """Counts [K+1,K+1]: objects by their class in rows, detections in columns; the last row holds
    extra detections, the last column missed objects.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for one in matches:
        for truth, detection, _ in one.pairs:
            counts[truth, detection] += 1
        for label in one.missed:
            counts[label, -1] += 1
        for label in one.extra:
            counts[-1, label] += 1
    return counts
