"""evidence.json of a run folder: what the best weights find on val, image by image and class by
class, and why AP is low where it is. The report page draws it.

All numbers of images and classes are at mask IoU 0.5 and at the score threshold of the checkpoint
(engine/report/confusion.py); the score of an image is its panoptic quality.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import rle
from data.dataset import CocoDataset
from data.loaders import spread
from engine import checkpoint, files
from engine.coco_ap import Scores, score, score_with_curves
from engine.datasets import Parts
from engine.findings import class_counts
from engine.inference import predictions
from engine.report.confusion import Matches, confusion, match
from engine.report.diagnose import diagnose, one_per_query
from engine.report.run_facts import RunFacts
from engine.report.warnings import warnings_of
from mobileinst.set_prediction.postprocess import DUPLICATE_IOU, Postprocess

NAME = "evidence.json"
SHOWN = 4  # images of each kind
DIAGNOSED = 1000  # images; the detections of every query on 5,000 would take gigabytes


class Pass(NamedTuple):
    """What a model finds, as COCO results with `best`.

    detections: of the evaluation of val. every: of every query on the images of `diagnosed`. seen:
    of the evaluation on training images. scores, curves: those of `score_with_curves` on val, if
    they are there already.
    """

    detections: list[dict]
    every: list[dict]
    seen: list[dict]
    scores: Scores | None = None
    curves: dict | None = None


def run_pass(
    model: nn.Module,
    postprocess: Postprocess,
    parts: Parts,
    *,
    every: bool = True,
    **settings: object,
) -> Pass:
    """Predicts val and some training images; rank 0 gets the results.

    Args:
        every: whether to predict the detections of every query as well.
        settings: those of `predictions`.
    """
    detections = predictions(model, postprocess, parts.val, **settings)
    queries = one_per_query(postprocess)
    of_queries = predictions(model, queries, diagnosed(parts.val), **settings) if every else []
    seen = predictions(model, postprocess, parts.seen, **settings) if parts.seen else []
    return Pass(detections, of_queries, seen)


def diagnosed(val: CocoDataset) -> CocoDataset:
    """The part of val on which every query counts."""
    return val if len(val) <= DIAGNOSED else val.subset(spread(len(val), DIAGNOSED))


def compute(
    folder: Path, content: checkpoint.Fields, parts: Parts, device: torch.device, workers: int = 0
) -> dict:
    """Makes the evidence of a run from the content of its best.pt, and writes it.

    Raises:
        InputError: if the model cannot be built.
    """
    model, _, postprocess = checkpoint.build(content)
    settings = {"preset": checkpoint.preset_of(content), "workers": workers, "device": device}
    found = run_pass(model.to(device), postprocess, parts, **settings)
    return make(folder, content, parts, found, model.mask_stride)


def make(
    folder: Path, content: checkpoint.Fields, parts: Parts, found: Pass, mask_stride: int
) -> dict:
    """Writes the evidence of a run and returns it; see the head of this file.

    Args:
        content: of best.pt, whose detections `found` are.
    """
    val, ground_truth = parts.val, parts.val.ground_truth()
    threshold, _ = checkpoint.score_threshold(content["best"])
    scores, curves = found.scores, found.curves
    if scores is None:
        limit = checkpoint.config_of(content).max_detections
        scores, curves = score_with_curves(ground_truth, found.detections, max_dets=limit)
    part, of_part, scores_of_part = diagnosed(val), ground_truth, scores
    if part is not val:
        of_part, images = part.ground_truth(), {record.id for record in part.images}
        kept = [one for one in found.detections if one["image_id"] in images]
        scores_of_part = score(of_part, kept, max_dets=scores.max_dets)
    names, matches = val.class_names, match(ground_truth, found.detections, threshold)
    images = per_image(val, matches)
    shown = choose([(row["score"], row["objects"]) for row in images])
    shown = {kind: [images[place]["index"] for place in places] for kind, places in shown.items()}
    headline = {"mask": scores.headline, "box": scores.boxes}
    if scores.void_removed is not None:
        headline["mask_as_coco"] = scores.metrics
    train_objects = class_counts({"train": parts.train})[0].tolist()
    classes = [
        row | {"train_objects": number}
        for row, number in zip(scores.headline_per_class, train_objects, strict=True)
    ]
    evidence = {
        "split": val.name,
        "iteration": content["iteration"],
        "threshold": threshold,
        "images": scores.images,
        "objects": scores.objects,
        "headline": headline,
        **curves,
        "confusion": {"names": names, "counts": confusion(matches.values(), len(names)).tolist()},
        "classes": classes,
        "per_image": images,
        "shown": shown,
        "detections": detections_of(val, found.detections, threshold, sum(shown.values(), [])),
        "diagnosis": diagnose(of_part, found.every, scores_of_part, DUPLICATE_IOU),
    }
    run = RunFacts.read(folder)._replace(
        num_queries=checkpoint.config_of(content).num_queries,
        mask_stride=mask_stride,
        evidence=evidence,
        parts=parts,
        named=confusion(match(of_part, found.every, -1.0).values(), len(names)),
        named_in_train=parts.seen
        and confusion(match(parts.seen.ground_truth(), found.seen, -1.0).values(), len(names)),
    )
    evidence["warnings"] = warnings_of(run)
    files.write_json(folder / NAME, evidence)
    return evidence


def load(folder: Path) -> dict:
    """The evidence of a run folder; empty where there is none, or that of another version."""
    found = files.read_json(folder / NAME) or {}
    return found if "detections" in found else {}


def per_image(dataset: CocoDataset, matches: dict[int, Matches]) -> list[dict]:
    """A row for each readable image, in the order of the set."""
    rows = []
    for index, record in enumerate(dataset.images):
        if (one := matches.get(record.id)) is None:
            continue
        rows.append({
            "file": record.file_name,
            "index": index,
            "score": one.quality,
            "objects": one.objects,
            "found": one.found,
            "missed": len(one.missed),
            "extra": len(one.extra),
            "wrong_class": len(one.pairs) - one.found,
        })  # fmt: skip
    return rows


def choose(scored: Sequence[tuple[float, int]]) -> dict[str, list[int]]:
    """The places of the best, median and worst images, at most `SHOWN` each and none twice; of
    equal scores those with more objects. Images without objects come last as best.

    Args:
        scored: score and number of objects of each image.
    """
    order = sorted(range(len(scored)), key=lambda i: (scored[i][0], -scored[i][1]))
    worst = order[: min(SHOWN, -(-len(order) // 3))]
    rest = order[len(worst) :]
    rest.sort(key=lambda i: (scored[i][1] == 0, -scored[i][0], -scored[i][1]))
    best = rest[: min(SHOWN, -(-len(rest) // 2))]
    rest = sorted(rest[len(best) :], key=order.index)
    first = max(0, (len(order) - SHOWN) // 2 - len(worst))
    first = min(first, max(0, len(rest) - SHOWN))
    return {"best": best, "median": rest[first : first + SHOWN], "worst": worst}


def detections_of(
    dataset: CocoDataset, detections: list[dict], threshold: float, indices: Sequence[int]
) -> dict[str, list[dict]]:
    """Index of an image, as text -> its detections above the threshold: class index, score, RLE."""
    label_of = {category.id: category.index for category in dataset.categories}
    kept = {dataset.images[index].id: str(index) for index in indices}
    found = {index: [] for index in kept.values()}
    for each in detections:
        if each["image_id"] in kept and each["best"] and each["score"] > threshold:
            found[kept[each["image_id"]]].append({
                "class": label_of[each["category_id"]],
                "score": each["score"],
                "rle": rle.to_json(each["segmentation"]),
            })  # fmt: skip
    return found
