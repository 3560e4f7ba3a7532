"""Why objects are missed: recall by any mask, neighbours in one mask, AP with perfect parts.

A detection is the mask of a query with the best class of the query and its score. Where the set has
void, pixels of detections inside it are removed. Objects are those that are not crowds.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from data import rle
from engine.coco_ap import (
    NOTHING,
    Scores,
    by_image,
    remove_void,
    run_cocoeval,
    twelve_numbers,
    with_geometry,
)
from engine.report.tables import aligned, number
from mobileinst.set_prediction.postprocess import Postprocess

SMALL, LARGE = 32**2, 96**2  # largest area of a small object, of a medium one
FOUND = 0.5  # IoU from which an object is found; also the least part of one inside a merged mask
GROUPS, SIZES = ("all", "alone", "not alone"), ("all", "small", "medium", "large")
ORACLES = ("best class only", "right class", "right score", "both", "perfect masks")
MEANING = {
    "as evaluated": "every class of a mask is a detection",
    "best class only": "one detection per mask",
    "right class": "that of the nearest object, where IoU >= 0.5",
    "right score": "the IoU with the nearest object of its class",
    "both": "right class, then right score",
    "perfect masks": "the mask of the object where IoU >= 0.5 and the class is right",
}


class Object(NamedTuple):
    """One object, and what the masks of its image make of it.

    alone: no other object of its class is in the image. iou: the highest with any mask. merged: it
    is missed, and a mask covers half or more of it and of other objects of its class, and has
    IoU >= 0.5 with the union of those that it covers so.
    """

    alone: bool
    size: str
    iou: float
    merged: bool


def one_per_query(postprocess: Postprocess) -> Postprocess:
    """The same with one detection per query first, marked `best`, whether an object or not."""

    def rank(outputs: dict) -> tuple[Tensor, Tensor]:
        scores, _ = postprocess.rank(outputs)  # [Q,K]
        best = scores.argmax(1, keepdim=True)  # [Q,1]
        scores = torch.full_like(scores, -1).scatter(1, best, scores.gather(1, best))
        return scores, torch.ones_like(scores[:, 0], dtype=torch.bool)

    changed = copy.copy(postprocess)
    changed.rank, changed.duplicate_iou = rank, 1.0
    return changed


def diagnose(
    ground_truth: dict, detections: list[dict], scores: Scores, duplicate_iou: float
) -> dict:
    """All numbers as plain values, 0..1, or -1.0 where there is no such object.

    Args:
        detections: COCO results with `best`, those of `one_per_query`.
        scores: the ordinary evaluation of the same weights.
        duplicate_iou: that of the ordinary evaluation.
    """
    detections = remove_void(ground_truth, [each for each in detections if each["best"]])
    objects = compare(ground_truth, detections)
    missed = [one for one in objects if one.iou < FOUND]
    as_evaluated = {key: scores.headline[key] for key in ("AP", "AP50")}
    return {
        "images": len(ground_truth["images"]),
        "masks": len(detections),
        "max_masks": scores.max_dets,
        "recall": recall(objects),
        "missed": {
            "objects": len(missed),
            "not alone": sum(not one.alone for one in missed),
            "in a merged mask": sum(one.merged for one in missed),
        },
        "oracles": {
            "as evaluated": as_evaluated,
            **oracles(ground_truth, detections, scores.max_dets, duplicate_iou),
        },
    }


def objects_of(ground_truth: dict) -> dict[int, list[dict]]:
    """The objects of each image, with areas; crowds are none."""
    truths = with_geometry(ground_truth["annotations"])
    return by_image([each for each in truths if not each["iscrowd"]])


def compare(ground_truth: dict, detections: list[dict]) -> list[Object]:
    """Compares each object with all masks of its image, whatever their class and score."""
    found, detections = [], by_image(detections)
    for image, truths in objects_of(ground_truth).items():
        masks = [each["segmentation"] for each in detections[image]]
        outlines = [each["segmentation"] for each in truths]
        labels = np.array([each["category_id"] for each in truths])
        best = rle.iou(masks, outlines).max(0, initial=0.0)  # [N]
        covered = shares(outlines, masks) >= FOUND  # [N,M]
        for row, truth in enumerate(truths):
            same, area = labels == labels[row], truth["area"]  # [N]
            groups = [(masks[m], same & covered[:, m]) for m in np.flatnonzero(covered[row])]
            unions = [
                (mask, rle.union([outlines[k] for k in np.flatnonzero(group)]))
                for mask, group in groups
                if best[row] < FOUND and group.sum() > 1
            ]
            merged = any(rle.iou([mask], [union])[0, 0] >= FOUND for mask, union in unions)
            size = "small" if area <= SMALL else "medium" if area <= LARGE else "large"
            found.append(Object(bool(same.sum() == 1), size, float(best[row]), merged))
    return found


def shares(objects: list[dict], masks: list[dict]) -> np.ndarray:
    """The share of each object that lies inside each mask [N,M]."""
    if not objects or not masks:
        return np.zeros((len(objects), len(masks)))
    # To pycocotools the IoU with a crowd is the share of the first mask inside the second.
    return np.asarray(coco_mask.iou(objects, masks, [1] * len(masks)))


def recall(objects: list[Object]) -> dict[str, dict[str, dict[str, float]]]:
    """Number of objects and recall at IoU 0.5 and 0.75 by group and size."""

    def row(group: str, size: str) -> dict[str, float]:
        chosen = [
            one.iou
            for one in objects
            if size in ("all", one.size) and group in ("all", "alone" if one.alone else "not alone")
        ]
        hits = {f"recall{iou * 100:.0f}": [best >= iou for best in chosen] for iou in (0.5, 0.75)}
        means = {name: float(np.mean(hit)) if hit else NOTHING for name, hit in hits.items()}
        return {"objects": len(chosen)} | means

    return {group: {size: row(group, size) for size in SIZES} for group in GROUPS}


def oracles(
    ground_truth: dict, detections: list[dict], max_dets: int, duplicate_iou: float
) -> dict[str, dict[str, float]]:
    """AP and AP50 of the detections, and with a part of them made perfect; see MEANING. What has
    become a duplicate is dropped, by the IoU at the original size.
    """
    changed, objects = {name: [] for name in ORACLES}, objects_of(ground_truth)
    for image, group in by_image(detections).items():
        outlines = [each["segmentation"] for each in objects[image]]
        labels = np.array([each["category_id"] for each in objects[image]], dtype=np.int64)
        of_image = {name: [] for name in ORACLES}
        ious = rle.iou([each["segmentation"] for each in group], outlines)  # [M,N]
        for detection, row in zip(group, ious):
            right, perfect = detection, detection
            if row.max(initial=0.0) >= FOUND:
                right = detection | {"category_id": int(labels[row.argmax()])}
            own, after = (
                np.where(labels == one["category_id"], row, 0.0) for one in (detection, right)
            )
            if own.max(initial=0.0) >= FOUND:
                perfect = detection | {"segmentation": outlines[own.argmax()]}
            scored = detection | {"score": float(own.max(initial=0.0))}
            both = right | {"score": float(after.max(initial=0.0))}
            for name, each in zip(ORACLES, (detection, right, scored, both, perfect), strict=True):
                of_image[name].append(each)
        for name, found in of_image.items():
            changed[name] += without_duplicates(found, duplicate_iou)
    truths, numbers = with_geometry(ground_truth["annotations"]), {}
    for name, found in changed.items():
        found = with_geometry(found)
        numbers[name] = twelve_numbers(run_cocoeval(ground_truth, truths, found, "segm", max_dets))
    return {name: {key: values[key] for key in ("AP", "AP50")} for name, values in numbers.items()}


def without_duplicates(detections: list[dict], limit: float) -> list[dict]:
    """Drops the detections of an image whose IoU with a better one of their class is larger."""
    detections = sorted(detections, key=lambda one: -one["score"])
    masks = [one["segmentation"] for one in detections]
    labels = np.array([one["category_id"] for one in detections])
    near = (rle.iou(masks, masks) > limit) & (labels[:, None] == labels)  # [M,M]
    return [
        one for one, better in zip(detections, np.tril(near, -1), strict=True) if not better.any()
    ]


def recall_rows(result: dict) -> list[list[str]]:
    """The recall of `diagnose` below a header."""
    rows = [["objects", "size", "number", "IoU 0.50", "IoU 0.75"]]
    for group, sizes in result["recall"].items():
        for size, row in sizes.items():
            hits = [number(row[key]) for key in ("recall50", "recall75")]
            rows.append([group, size, str(row["objects"]), *hits])
    return rows


def text(result: dict) -> str:
    """The result of `diagnose` as two tables and a sentence between them."""
    aps = [["AP if, without duplicates", "meaning", "AP", "AP50"]]
    for name, values in result["oracles"].items():
        aps.append([name, MEANING[name], number(values["AP"]), number(values["AP50"])])
    missed = result["missed"]
    return "\n\n".join(
        [
            f"recall by any of the masks of an image (at most {result['max_masks']}), class and "
            "score ignored; alone: no other object of its class in the image",
            aligned(recall_rows(result), 2),
            f"missed at IoU 0.5: {missed['objects']} objects, {missed['not alone']} of them not "
            f"alone, {missed['in a merged mask']} in a merged mask (it covers half or more of the "
            "object and of others of its class, and has IoU >= 0.5 with their union)",
            aligned(aps, 2),
        ]
    )
