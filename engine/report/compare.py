"""The numbers of several runs beside each other, from their options.json and evidence.json."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from data.dataset import CocoDataset
from engine import backends, checkpoint, files, options
from engine.coco_ap import METRICS
from engine.inference import predictions
from engine.report import evidence
from engine.report.run_facts import sentence
from engine.values import shown
from mobileinst import zoo

FIRST = ("model", "pretrained", "recipe", "data")  # of the options that differ
# Options that change no number of a result.
NO_MATTER = {
    *("out", "resume", "overwrite", "threads", "workers", "device", "save_every", "log_every"),
    *("derived", "origins", "set"),
}
IMAGES = 8  # on which the runs differ most


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """What is equal and what differs, as plain values.

    Returns:
        names: of the runs, no two alike. notes: why numbers do not compare, in sentences. options:
        rows of name and values, as texts, of those that differ. headline: rows of metric and
        values. classes: rows of name and AP. images: rows of file, and of each run index in its
        set and score, those that differ most first. Values of what a run lacks are None.
    """
    found = [evidence.load(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    scored = [one for one in found if one]
    notes = [
        f"{name} has no evidence.json: its AP, classes and images are left out"
        for name, one in zip(names, found)
        if not one
    ]
    by_image = [{row["file"]: row["objects"] for row in one["per_image"]} for one in scored]
    by_class = [{row["name"]: row["objects"] for row in one["classes"]} for one in scored]
    same_images, same_classes = (
        len(set(map(frozenset, each))) == 1 for each in (by_image, by_class)
    )
    if scored and not same_images:
        notes.append("the runs were scored on different images: their AP does not compare")
    if scored and not same_classes:
        notes.append("the runs have different classes: AP over all classes does not compare")
    elif same_images and any(one != each[0] for each in (by_image, by_class) for one in each):
        notes.append(
            "the runs were scored on the same images with other objects: their AP does not compare"
        )
    whole = len(scored) == len(found) and same_classes
    return {
        "names": names,
        "notes": [sentence(text) for text in notes],
        "options": differing_options(folders),
        "headline": headline(found),
        "classes": classes(found),
        "images": images(found) if whole else [],
    }


def differing_options(folders: Sequence[Path]) -> list[dict]:
    """Options whose values are not equal in all runs, and keywords of the model that any was given;
    "-" where a run has no value.
    """
    contents = [files.read_json(folder / options.MARK) or {} for folder in folders]
    keywords = dict.fromkeys(key for one in contents for key in one.get("set") or ())
    given = []
    for one in contents:
        model = asdict(zoo.config_for(one["model"])) | one["set"] if one else {}
        values = one | one.get("derived", {}) | {f"set.{key}": model.get(key) for key in keywords}
        given.append({key: value for key, value in values.items() if key not in NO_MATTER})
    rows = []
    for name in dict.fromkeys(chain(FIRST, *given)):
        values = [one.get(name) for one in given]
        texts = ["-" if value is None else shown(value) or "-" for value in values]
        if len(set(texts)) > 1:
            rows.append({"name": name, "values": texts})
    return rows


def headline(found: Sequence[dict]) -> list[dict]:
    """The 12 COCO numbers of masks, then AP of boxes."""
    wanted = [(name, "mask", name) for name in METRICS] + [("box AP", "box", "AP")]
    return [
        {
            "metric": title,
            "values": [one.get("headline", {}).get(kind, {}).get(key) for one in found],
        }
        for title, kind, key in wanted
    ]


def classes(found: Sequence[dict]) -> list[dict]:
    """AP of every class of any run."""
    tables = [{row["name"]: row["AP"] for row in one.get("classes", ())} for one in found]
    names = dict.fromkeys(name for table in tables for name in table)
    return [{"name": name, "AP": [table.get(name) for table in tables]} for name in names]


def images(found: Sequence[dict]) -> list[dict]:
    """The images that all were scored on, by the largest difference of their scores."""
    tables = [{row["file"]: row for row in one["per_image"]} for one in found]
    rows = []
    for file in tables[0]:
        if all(file in table for table in tables):
            index, scores = zip(*((table[file]["index"], table[file]["score"]) for table in tables))
            spread = max(scores) - min(scores)
            rows.append({"file": file, "index": index, "scores": scores, "spread": spread})
    rows.sort(key=lambda row: -row["spread"])
    return [row for row in rows[:IMAGES] if row["spread"] > 0]


def detections_of(
    folder: Path, dataset: CocoDataset, indices: Sequence[int], device: torch.device, workers: int
) -> dict[str, list[dict]]:
    """What the best weights of a run find on some images of its set; see evidence.detections_of."""
    _, content, model, _, postprocess, preset = backends.load(folder / "best.pt")
    threshold, _ = checkpoint.score_threshold(content["best"])
    settings = {"preset": preset, "workers": workers, "device": device, "threshold": threshold}
    part = dataset.subset(indices)
    detections = predictions(model.to(device), postprocess, part, **settings)
    return evidence.detections_of(dataset, detections, threshold, indices)
