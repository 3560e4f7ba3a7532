"""COCO average precision of instance masks, through pycocotools, without a score threshold.

Sets with void are scored twice: as COCO does, and with predicted pixels inside void removed,
because a mask that is perfect on VOC may cover half of the void border.
"""

import contextlib
import gc
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
FIELDS = ("image_id", "category_id", "segmentation", "score")  # of a COCO result
NOTHING = -1.0  # COCO's mark for "the ground truth holds nothing of this kind"


@dataclass(frozen=True)
class Scores:
    """Result of one evaluation.

    metrics, void_removed, boxes: the 12 numbers of `METRICS`, 0..1, or -1.0 if the ground truth has
        nothing of the kind; AR100 is the recall at `max_dets`. The fields with void removed are
        None for sets without void.
    per_class: rows of name, objects (crowds are not counted), AP, AP50, AR.
    best_threshold: lies between two scores, so that `>` and `>=` keep the same predictions. None,
        as f1, precision and recall, if no prediction hits an object.
    """

    images: int
    objects: int
    detections: int
    max_dets: int
    metrics: dict[str, float]
    per_class: list[dict]
    void_removed: dict[str, float] | None
    per_class_void_removed: list[dict] | None
    boxes: dict[str, float]
    best_threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None

    @property
    def headline(self) -> dict[str, float]:
        """The numbers to quote: void removed where the set has void, else plain COCO."""
        return self.metrics if self.void_removed is None else self.void_removed

    @property
    def headline_per_class(self) -> list[dict]:
        return self.per_class_void_removed or self.per_class


def score(ground_truth: dict, detections: list[dict], *, max_dets: int = 100) -> Scores:
    """The scores of `score_with_curves` alone."""
    return score_with_curves(ground_truth, detections, max_dets=max_dets)[0]


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """COCOeval makes many objects, none in cycles: collecting is a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_garbage_collection()
def score_with_curves(
    ground_truth: dict, detections: list[dict], *, max_dets: int = 100
) -> tuple[Scores, dict]:
    """Scores detections against a COCO ground truth; changes neither. Beside the scores, the curves
    behind them, of the headline numbers: "curves" of `precision_recall`, "thresholds" of
    `by_threshold`.

    Args:
        ground_truth: images (id, height, width, optional void: RLE of the region that is neither
            object nor background), categories (id, name), annotations (image_id, category_id,
            segmentation as RLE; area, bbox and iscrowd as in COCO, from the mask if missing).
        detections: image_id, category_id, segmentation (RLE at the size of the image), score, and
            optionally best: False for those that count for AP, but not for the threshold, because
            they are not displayed.
        max_dets: how many detections per image and class count, the best ones.
    Raises:
        ValueError: if COCOeval would silently drop or misread a detection.
    """
    check(ground_truth, detections)
    detections = [
        {"best": each.get("best", True), **{field: each[field] for field in FIELDS}}
        for each in detections
    ]
    truths = with_geometry(ground_truth["annotations"])
    found = with_geometry(detections)
    plain = run_cocoeval(ground_truth, truths, found, "segm", max_dets)
    # pycocotools takes the area of the box for box results.
    boxed = [{**each, "area": each["bbox"][2] * each["bbox"][3]} for each in found]
    boxes = run_cocoeval(ground_truth, truths, boxed, "bbox", max_dets)
    scored, removed = found, None
    if any(image.get("void") for image in ground_truth["images"]):
        scored = with_geometry(remove_void(ground_truth, detections))
        removed = run_cocoeval(ground_truth, truths, scored, "segm", max_dets)
    shown = [each for each in scored if each["best"]]
    half = run_cocoeval(ground_truth, truths, shown, "segm", max_dets, half=True)
    scores = Scores(
        images=len(ground_truth["images"]),
        objects=sum(not truth["iscrowd"] for truth in truths),
        detections=len(detections),
        max_dets=max_dets,
        metrics=twelve_numbers(plain),
        per_class=class_scores(plain, ground_truth, truths),
        void_removed=removed and twelve_numbers(removed),
        per_class_void_removed=removed and class_scores(removed, ground_truth, truths),
        boxes=twelve_numbers(boxes),
        **best_f1(half),
    )
    return scores, {"curves": precision_recall(removed or plain), "thresholds": by_threshold(half)}


def by_image(records: list[dict]) -> dict[int, list[dict]]:
    found = defaultdict(list)
    for each in records:
        found[each["image_id"]].append(each)
    return found


def remove_void(ground_truth: dict, detections: list[dict]) -> list[dict]:
    """Removes pixels inside void from detections, and detections that are inside void."""
    of_image, outside = by_image(detections), []
    for image in ground_truth["images"]:
        found = of_image[image["id"]]
        if image.get("void"):
            # A query gives its mask to detections of several classes.
            masks = {each["segmentation"]["counts"]: each["segmentation"] for each in found}
            rest = rle.subtract(list(masks.values()), image["void"])
            rest = {old: new for old, new, area in zip(masks, rest, rle.area(rest)) if area}
            found = [
                {**each, "segmentation": rest[each["segmentation"]["counts"]]}
                for each in found
                if each["segmentation"]["counts"] in rest
            ]
        outside += found
    return outside


def check(ground_truth: dict, detections: list[dict]) -> None:
    """Raises ValueError if COCOeval would silently drop or misread a detection."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for number, each in enumerate(detections):
        size = list(each["segmentation"]["size"])
        known = sizes.get(each["image_id"]) == size and each["category_id"] in categories
        if not (known and math.isfinite(each["score"])):
            raise ValueError(
                f"detection {number} (image {each['image_id']}, category {each['category_id']}, "
                f"size {size}, score {each['score']}) does not fit the ground truth"
            )


def with_geometry(records: list[dict]) -> list[dict]:
    """Copies with area, bbox and ids from 1 on: COCOeval reads a match with id 0 as no match."""
    masks = [record["segmentation"] for record in records]
    areas = rle.area(masks)
    boxes = coco_mask.toBbox(masks) if masks else ()
    return [
        {
            **record,
            "id": number,
            "iscrowd": int(record.get("iscrowd") or 0),
            "area": float(area if record.get("area") is None else record["area"]),
            "bbox": box.tolist() if record.get("bbox") is None else record["bbox"],
        }
        for number, (record, area, box) in enumerate(zip(records, areas, boxes, strict=True), 1)
    ]


def run_cocoeval(
    ground_truth: dict,
    truths: list[dict],
    found: list[dict],
    kind: str,
    max_dets: int,
    half: bool = False,
) -> COCOeval:
    """An accumulated COCOeval on copies of the records; `half`: its matches at IoU 0.5 only."""
    with contextlib.redirect_stdout(io.StringIO()):
        sides = COCO(), COCO()
        for coco, records in zip(sides, (truths, found)):
            coco.dataset = {**ground_truth, "annotations": [dict(record) for record in records]}
            coco.createIndex()
        evaluation = COCOeval(*sides, kind)
        evaluation.params.maxDets = [1, min(10, max_dets), max_dets]
        if half:
            params = evaluation.params
            params.iouThrs, params.areaRng = params.iouThrs[:1], params.areaRng[:1]
        evaluation.evaluate()
        if not half:
            evaluation.accumulate()
    return evaluation


def mean_of_valid(values: np.ndarray) -> float:
    """Mean over what exists; COCOeval marks the rest with -1."""
    present = values[values > NOTHING]
    return float(present.mean()) if present.size else NOTHING


def twelve_numbers(evaluation: COCOeval) -> dict[str, float]:
    """The 12 COCO numbers. COCOeval.summarize prints, and fails for other values of maxDets."""
    precision = evaluation.eval["precision"][..., 2]  # [T,R,K,A=4]: IoU, recall, class, area
    recall = evaluation.eval["recall"]  # [T,K,A,M], M: maxDets
    values = (
        *(precision[ious, :, :, 0] for ious in (slice(None), 0, 5)),  # IoU 0.50:0.95, 0.50, 0.75
        *(precision[..., area] for area in range(1, 4)),
        *(recall[:, :, 0, dets] for dets in range(3)),
        *(recall[:, :, area, 2] for area in range(1, 4)),
    )
    return dict(zip(METRICS, map(mean_of_valid, values), strict=True))


def class_scores(evaluation: COCOeval, ground_truth: dict, truths: list[dict]) -> list[dict]:
    """One row per category, in the order of the ground truth's categories."""
    objects = Counter(truth["category_id"] for truth in truths if not truth["iscrowd"])
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [T,R,K]
    recall = evaluation.eval["recall"][:, :, 0, 2]  # [T,K]
    rows = []
    for category in ground_truth["categories"]:
        k = evaluation.params.catIds.index(category["id"])
        values = {"AP": precision[:, :, k], "AP50": precision[0, :, k], "AR": recall[:, k]}
        means = {key: mean_of_valid(value) for key, value in values.items()}
        rows.append({"name": category["name"], "objects": objects[category["id"]]} | means)
    return rows


def precision_recall(evaluation: COCOeval) -> dict[str, list[float]]:
    """Mean precision over classes at COCO's 101 recalls: IoU 0.50, 0.75, 0.50:0.95; -1 if
    undefined.
    """
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [T,R,K]
    ious = {"precision50": precision[:1], "precision75": precision[5:6], "precision": precision}
    means = {
        name: [mean_of_valid(values[:, r]) for r in range(values.shape[1])]
        for name, values in ious.items()
    }
    return {"recall": evaluation.params.recThrs.tolist()} | means


def ranked_hits(evaluation: COCOeval) -> tuple[np.ndarray, np.ndarray, int]:
    """Sorted scores of predictions at IoU 0.5 without crowds, cumulative hits, number of objects.

    Matching is greedy by score, so hits above a threshold do not depend on lower scores.
    """
    matches = [each for each in evaluation.evalImgs if each is not None]
    objects = sum(int((np.asarray(each["gtIgnore"]) == 0).sum()) for each in matches)
    counted = [~each["dtIgnore"][0].astype(bool) for each in matches]
    scores = [np.asarray(each["dtScores"], float)[c] for each, c in zip(matches, counted)]
    hits = [(each["dtMatches"][0] > 0)[c] for each, c in zip(matches, counted)]
    scores = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-scores, kind="stable")
    return scores[order], np.cumsum(np.concatenate([np.zeros(0, bool), *hits])[order]), objects


def by_threshold(evaluation: COCOeval) -> dict[str, list[float]]:
    """Precision, recall and F1 at IoU 0.5 for 100 score thresholds; empty without predictions."""
    scores, true, objects = ranked_hits(evaluation)
    if not objects or not len(scores):
        return {"score": [], "precision": [], "recall": [], "f1": []}
    thresholds = np.linspace(0, scores[0], 101)[:-1]
    kept = np.searchsorted(-scores, -thresholds)  # predictions above each
    right = np.append(0, true)[kept]
    return {
        "score": thresholds.tolist(),
        "precision": np.where(kept, right / np.maximum(kept, 1), NOTHING).tolist(),
        "recall": (right / objects).tolist(),
        "f1": (2 * right / (kept + objects)).tolist(),
    }


def best_f1(evaluation: COCOeval) -> dict[str, float | None]:
    """The score threshold of the best F1 at IoU 0.5, the highest of equal ones, and its values."""
    scores, true, objects = ranked_hits(evaluation)
    if not objects or not true.any():
        return dict.fromkeys(("best_threshold", "f1", "precision", "recall"))
    kept = np.arange(1, len(scores) + 1)
    last = np.append(scores[1:] < scores[:-1], True)  # a threshold cannot split equal scores
    f1 = np.where(last, 2 * true / (kept + objects), 0)
    best = int(f1.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else min(0.0, 2 * scores[best])
    return {
        "best_threshold": float((scores[best] + below) / 2),
        "f1": float(f1[best]),
        "precision": float(true[best] / kept[best]),
        "recall": float(true[best] / objects),
    }
