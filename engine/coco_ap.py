"""COCO average precision of instance masks, through pycocotools, without a score threshold.

Sets that carry void regions are scored twice: as COCO does, and after the predicted pixels inside
void were removed, because a mask that is perfect on VOC may cover half of the void border.
"""

import contextlib
import io
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
AREAS = ("all", "small", "medium", "large")  # the order of COCOeval's area ranges
FIELDS = ("image_id", "category_id", "segmentation", "score")  # what counts of a detection
NOTHING = -1.0  # COCO's mark for "the ground truth holds nothing of this kind"


class ClassScore(NamedTuple):
    """One row of the per-category table; crowds are not counted as objects."""

    name: str
    objects: int
    AP: float
    AP50: float
    AR: float


@dataclass(frozen=True)
class Scores:
    """What one evaluation found.

    metrics, void_removed and boxes hold the 12 COCO numbers under the keys of `METRICS`; 0..1, or
    -1.0 where the ground truth has nothing of the kind. AR100 is the recall at `max_dets`, whatever
    its value. void_removed and per_class_void_removed are None for sets without void.
    best_threshold lies between two scores, so that `>` and `>=` keep the same predictions; it, f1,
    precision and recall are None where no prediction hits an object.
    """

    images: int
    objects: int
    detections: int
    max_dets: int
    metrics: dict[str, float]
    per_class: list[ClassScore]
    void_removed: dict[str, float] | None
    per_class_void_removed: list[ClassScore] | None
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
    def headline_per_class(self) -> list[ClassScore]:
        """The per-category table that belongs to `headline`."""
        if self.per_class_void_removed is None:
            return self.per_class
        return self.per_class_void_removed

    def as_dict(self) -> dict:
        """Plain values only, ready for json."""
        plain = asdict(self)
        for key in ("per_class", "per_class_void_removed"):
            rows = getattr(self, key)
            plain[key] = None if rows is None else [row._asdict() for row in rows]
        return plain


def score(ground_truth: dict, detections: list[dict], *, max_dets: int = 100) -> Scores:
    """Scores detections against a COCO ground truth.

    ground_truth: images (id, height, width, optional void: RLE of the region that is neither object
    nor background), categories (id, name), annotations (image_id, category_id, segmentation as RLE;
    area, bbox and iscrowd as in COCO, taken from the mask where absent).
    detections: dicts of image_id, category_id, segmentation (RLE at the size of the image), score.
    The best `max_dets` of each picture and class count. Neither argument is changed.
    Raises ValueError for a detection that names an unknown image or category, whose mask has
    another size than its image, or whose score is not finite.

    Detections may have `best`: those for which it is False are answers that count for AP and are
    not shown in use, so the threshold is sought without them.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, not {max_dets}")
    _check(ground_truth, detections)
    detections = [
        {"best": each.get("best", True), **{field: each[field] for field in FIELDS}}
        for each in detections
    ]
    truths = _with_geometry(ground_truth["annotations"])
    found = _with_geometry(detections)
    plain = _evaluate(ground_truth, truths, found, "segm", max_dets)
    boxes = _evaluate(ground_truth, truths, _as_boxes(found), "bbox", max_dets)
    scored, removed = found, None
    if any(image.get("void") for image in ground_truth["images"]):
        scored = _with_geometry(remove_void(ground_truth, detections))
        removed = _evaluate(ground_truth, truths, scored, "segm", max_dets)
    shown = [each for each in scored if each["best"]]
    return Scores(
        images=len(ground_truth["images"]),
        objects=sum(not truth["iscrowd"] for truth in truths),
        detections=len(detections),
        max_dets=max_dets,
        metrics=_twelve(plain),
        per_class=_per_class(plain, ground_truth, truths),
        void_removed=None if removed is None else _twelve(removed),
        per_class_void_removed=(
            None if removed is None else _per_class(removed, ground_truth, truths)
        ),
        boxes=_twelve(boxes),
        **_best_f1(_evaluate(ground_truth, truths, shown, "segm", max_dets)),
    )


def remove_void(ground_truth: dict, detections: list[dict]) -> list[dict]:
    """The detections with the pixels inside the void of their image taken out of the masks.

    A mask that lay wholly inside void goes: void is neither object nor background, so nobody can
    say whether something was found there. (Training treats such queries the same way.)
    """
    voids = {image["id"]: image["void"] for image in ground_truth["images"] if image.get("void")}
    of_image = defaultdict(list)
    for position, detection in enumerate(detections):
        of_image[detection["image_id"]].append(position)
    outside: list[dict | None] = list(detections)
    for image_id, void in voids.items():
        positions = of_image[image_id]
        masks = rle.subtract([detections[i]["segmentation"] for i in positions], void)
        areas = rle.area(masks)
        for i, mask, area in zip(positions, masks, areas, strict=True):
            outside[i] = {**detections[i], "segmentation": mask} if area else None
    return [detection for detection in outside if detection is not None]


def _check(ground_truth: dict, detections: list[dict]) -> None:
    """Refuses what COCOeval would drop or misread without a word."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for number, detection in enumerate(detections):
        image_id, category_id = detection["image_id"], detection["category_id"]
        if image_id not in sizes:
            raise ValueError(f"detection {number} names the unknown image id {image_id}")
        if category_id not in categories:
            raise ValueError(f"detection {number} names the unknown category id {category_id}")
        size = list(detection["segmentation"]["size"])
        if size != sizes[image_id]:
            raise ValueError(
                f"detection {number} has a mask of height and width {size}, "
                f"but image {image_id} has {sizes[image_id]}"
            )
        if not math.isfinite(detection["score"]):
            raise ValueError(f"detection {number} has the score {detection['score']}")


def _with_geometry(records: list[dict]) -> list[dict]:
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


def _as_boxes(found: list[dict]) -> list[dict]:
    """Detections whose area is that of the box, as pycocotools has it for box results."""
    return [{**each, "area": each["bbox"][2] * each["bbox"][3]} for each in found]


def _evaluate(
    ground_truth: dict, truths: list[dict], found: list[dict], kind: str, max_dets: int
) -> COCOeval:
    """An accumulated COCOeval. The records are copied, as COCOeval writes into its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(ground_truth, truths), _coco(ground_truth, found), kind)
        evaluation.params.maxDets = [1, min(10, max_dets), max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _coco(ground_truth: dict, annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float:
    """Mean over what exists; COCOeval marks the rest with -1."""
    present = values[values > NOTHING]
    return float(present.mean()) if present.size else NOTHING


def _twelve(evaluation: COCOeval) -> dict[str, float]:
    """The 12 COCO numbers; unlike COCOeval.summarize for every maxDets, and without printing."""
    precision = evaluation.eval["precision"]  # [T,R,K,A,M]: IoU, recall, class, area, maxDets
    recall = evaluation.eval["recall"]  # [T,K,A,M]
    at = {round(float(t), 2): i for i, t in enumerate(evaluation.params.iouThrs)}
    values = [
        _mean(precision[:, :, :, 0, 2]),
        _mean(precision[at[0.5], :, :, 0, 2]),
        _mean(precision[at[0.75], :, :, 0, 2]),
        *(_mean(precision[:, :, :, area, 2]) for area in range(1, len(AREAS))),
        *(_mean(recall[:, :, 0, dets]) for dets in range(3)),
        *(_mean(recall[:, :, area, 2]) for area in range(1, len(AREAS))),
    ]
    return dict(zip(METRICS, values, strict=True))


def _per_class(evaluation: COCOeval, ground_truth: dict, truths: list[dict]) -> list[ClassScore]:
    """One row per category, in the order of the ground truth's categories."""
    objects = defaultdict(int)
    for truth in truths:
        objects[truth["category_id"]] += not truth["iscrowd"]
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    column = {k: i for i, k in enumerate(evaluation.params.catIds)}
    rows = []
    for category in ground_truth["categories"]:
        k = column[category["id"]]
        ap, ap50 = _mean(precision[:, :, k, 0, 2]), _mean(precision[0, :, k, 0, 2])
        ar = _mean(recall[:, k, 0, 2])
        rows.append(ClassScore(category["name"], objects[category["id"]], ap, ap50, ar))
    return rows


def _best_f1(evaluation: COCOeval) -> dict[str, float | None]:
    """best_threshold with its f1, precision and recall, from COCOeval's own matches at IoU 0.5.

    Matches are made in the order of the scores, so those above a threshold do not change when the
    ones below are dropped. Predictions on crowds count neither way. Of equal F1 the highest wins.
    """
    nothing = dict.fromkeys(("best_threshold", "f1", "precision", "recall"))
    images = len(evaluation.params.imgIds)
    whole_range = (  # evalImgs runs over classes, area ranges, images; area range 0 is "all"
        evaluation.evalImgs[start : start + images]
        for start in range(0, len(evaluation.evalImgs), len(AREAS) * max(images, 1))
    )
    matches = [each for of_class in whole_range for each in of_class if each is not None]
    if not matches:
        return nothing
    objects = sum(int((np.asarray(each["gtIgnore"]) == 0).sum()) for each in matches)
    counted = np.concatenate([~each["dtIgnore"][0].astype(bool) for each in matches])
    scores = np.concatenate([np.asarray(each["dtScores"], float) for each in matches])[counted]
    hits = np.concatenate([each["dtMatches"][0] > 0 for each in matches])[counted]
    if not objects or not hits.any():
        return nothing
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(hits[order])
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


def _number(value: float) -> str:
    return "-" if value == NOTHING else f"{value:.3f}"


def _metric_rows(scores: Scores) -> list[list[str]]:
    """Header and the 12 numbers; a column per scoring."""
    columns = {"mask": scores.metrics, "box": scores.boxes}
    if scores.void_removed is not None:
        columns = {
            "mask, void removed": scores.void_removed,
            "mask, as COCO": scores.metrics,
            "box": scores.boxes,
        }
    most = scores.max_dets
    meaning = (
        "IoU 0.50:0.95",
        "IoU 0.50",
        "IoU 0.75",
        "small, below 32 x 32",
        "medium",
        "large, above 96 x 96",
        "1 per picture",
        f"{min(10, most)} per picture",
        f"{most} per picture",
        "small",
        "medium",
        "large",
    )
    rows = [["metric", "of", *columns]]
    for key, what in zip(METRICS, meaning, strict=True):
        name = f"AR{most}" if key == "AR100" else key
        rows.append([name, what, *(_number(numbers[key]) for numbers in columns.values())])
    return rows


def _class_rows(scores: Scores) -> list[list[str]]:
    rows = [["category", "objects", "AP", "AP50", "AR"]]
    for name, objects, *numbers in scores.headline_per_class:
        rows.append([name, str(objects), *map(_number, numbers)])
    return rows


def _count_line(scores: Scores) -> str:
    return (
        f"{scores.images} images, {scores.objects} objects, {scores.detections} predictions, "
        f"at most {scores.max_dets} of a class per image"
    )


def _threshold_line(scores: Scores) -> str:
    if scores.best_threshold is None:
        return "no threshold: no prediction covers an object with IoU 0.5"
    return (
        f"best F1 at IoU 0.5: {scores.f1:.3f} at score threshold {scores.best_threshold:.3f} "
        f"(precision {scores.precision:.3f}, recall {scores.recall:.3f})"
    )


def _aligned(rows: list[list[str]], left: int) -> list[str]:
    """Columns of equal width: the first `left` flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _pipes(rows: list[list[str]], left: int) -> list[str]:
    """A markdown table: the first `left` columns flush left, the others flush right."""
    rule = [":---" if i < left else "---:" for i in range(len(rows[0]))]
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (escaped[0], rule, *escaped[1:])]


def table(scores: Scores) -> str:
    """The whole result as plain text for the terminal, values 0..1, `-` where nothing exists."""
    blocks = (
        [_count_line(scores)],
        _aligned(_metric_rows(scores), left=2),
        _aligned(_class_rows(scores), left=1),
        [_threshold_line(scores)],
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def markdown(scores: Scores) -> str:
    """The same as `table`, as markdown for summary.md."""
    blocks = (
        [_count_line(scores) + "."],
        _pipes(_metric_rows(scores), left=2),
        _pipes(_class_rows(scores), left=1),
        [_threshold_line(scores)[:1].upper() + _threshold_line(scores)[1:] + "."],
    )
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"
