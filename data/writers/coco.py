"""COCO json: annotations/instances_<split>.json, images in <split>. It holds everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.writers.target import Losses, Splits, Wrap, corners, with_parent

NAME, TITLE, BY_STEM = "coco", "COCO json", False


def image_path(split: str, name: str) -> str:
    return f"{split}/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    for split, content in splits.items():
        by_id = {image["id"]: image for image in content["images"]}
        annotations = wrap(content["annotations"])
        records = {
            "images": (
                one | {"void": rle.to_json(one["void"])} if one.get("void") else one
                for one in content["images"]
            ),
            "categories": content["categories"],
            "annotations": (plain(one, by_id[one["image_id"]]) for one in annotations),
        }
        path = with_parent(folder / "annotations" / f"instances_{split}.json")
        with open(path, "w", encoding="utf-8") as file:
            for key, mark in zip(records, "{,,"):
                file.write(f'{mark}\n"{key}": [')
                for number, one in enumerate(records[key]):
                    file.write(f"{',' * (number > 0)}\n{json.dumps(one)}")
                file.write("]")
            file.write("\n}\n")


def plain(record: dict, image: dict) -> dict[str, Any]:
    """An annotation as json holds it, with the box and the area of its mask if it has none."""
    outline = record["segmentation"]
    if not outline:
        _, _, width, height = record["bbox"]
        return {"area": width * height} | record
    mask = rle.from_annotation(outline, image["height"], image["width"])
    if isinstance(outline, dict):
        written, (left, top, right, bottom) = rle.to_json(outline), rle.boxes([mask])[0].tolist()
    else:
        written = [list(map(float, part)) for part in outline]
        points = np.concatenate([corners(part) for part in outline])
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    box = [left, top, right - left, bottom - top]
    area = record.get("area") or int(rle.area([mask])[0])
    return record | {"segmentation": written, "area": area, "bbox": box}
