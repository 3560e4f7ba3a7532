"""YOLO-seg: labels/<split>/x.txt beside images/<split>/x.jpg, and data.yaml.

A line is a class and one polygon, relative to the size of the image. Holes and parts are joined by
seams of no width, so that the polygon is drawn as the same mask.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data import rle
from data.writers import target
from data.writers.shapes import join_rings, relative, trace_rings
from data.writers.target import Losses, Object, Splits, Wrap

NAME, TITLE, BY_STEM = "yolo", "YOLO-seg", True


def image_path(split: str, name: str) -> str:
    return f"images/{split}/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    lines = [f"{split}: images/{split}" for split in splits] + ["names:"]
    for split, content in splits.items():
        for image, objects in target.images_of(content, wrap):
            size = image["width"], image["height"]
            name = f"{target.stem_of(image['file_name'])}.txt"
            path = target.with_parent(folder / "labels" / split / name)
            rows = []
            for one in target.drop_unsupported(image, objects, lost):
                numbers = relative(outline(one, lost), size).ravel().tolist()
                rows.append(" ".join([str(one.category), *map(repr, numbers)]) + "\n")
            path.write_text("".join(rows))
        names = [each["name"] for each in content["categories"]]
    lines += [
        f"  {place}: {json.dumps(name, ensure_ascii=False)}" for place, name in enumerate(names)
    ]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def outline(one: Object, lost: Losses) -> np.ndarray:
    """One polygon [P,2] for the whole object, inside the image."""
    size = one.image["width"], one.image["height"]
    inside = all((part >= 0).all() and (part <= size).all() for part in one.parts)
    if len(one.parts) == 1 and inside:
        return one.parts[0]
    outer, holes = trace_rings(one.mask())
    if holes:
        lost.note("objects with holes, which a seam joins to their outline", one.where)
    if len(outer) > 1 or len(one.parts) > 1:
        lost.note("objects in several parts, which a seam joins to one outline", one.where)
    if inside and one.parts and is_disjoint(one):
        return join_rings(one.parts)
    return join_rings(outer + holes)


def is_disjoint(one: Object) -> bool:
    """Whether no two parts share a pixel: where they did, a seam would make a hole."""
    height, width = one.image["height"], one.image["width"]
    parts = [rle.from_polygons([part.ravel()], height, width) for part in one.parts]
    return rle.area(parts).sum() == rle.area([one.mask()])[0]
