"""LabelMe: <split>/x.json beside <split>/x.jpg, and labels.txt.

Polygons stay polygons, those of one object under one group_id; masks are shapes of kind "mask".
Crowds and void become `__ignore__`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from data import rle
from data.writers import target
from data.writers.target import Losses, Object, Splits, Wrap

NAME, TITLE, BY_STEM = "labelme", "LabelMe", True

VERSION = "5.5.0"  # of LabelMe, the first digits of which decide what it reads
IGNORED, BACKGROUND = "__ignore__", "_background_"  # labels that LabelMe reserves


def image_path(split: str, name: str) -> str:
    return f"{split}/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    target.note_equal_names(splits, lost)
    for split, content in splits.items():
        for image, objects in target.images_of(content, wrap):
            shapes = [each for number, one in enumerate(objects, start=1)
                      for each in shapes_of(one, number, lost)]  # fmt: skip
            if image.get("void"):
                shapes.append(mask_shape(IGNORED, image["void"]))
            record = {
                "version": VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": Path(image["file_name"]).name,
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            }
            path = target.with_parent(folder / split / f"{target.stem_of(image['file_name'])}.json")
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        names = [IGNORED, BACKGROUND, *(each["name"] for each in content["categories"])]
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def shapes_of(one: Object, number: int, lost: Losses) -> Iterator[dict[str, Any]]:
    """The shapes of an object; `number` is the group_id of several."""
    label = one.label
    if one.is_crowd:
        lost.note(f"crowds, which become {IGNORED} and lose their class", one.where)
        label = IGNORED
    more = {"description": f"score {one.annotation['score']}"} if "score" in one.annotation else {}
    if one.is_box:
        left, top, right, bottom = one.box()
        yield shape(label, "rectangle", [[left, top], [right, bottom]]) | more
    elif one.parts:
        group = number if len(one.parts) > 1 else None
        for part in one.parts:
            yield shape(label, "polygon", part.tolist(), group) | more
    else:
        yield mask_shape(label, one.mask()) | more


def mask_shape(label: str, mask: rle.Rle) -> dict[str, Any]:
    """A PNG of zeros and ones; its points are the first and the last pixel."""
    inside, (left, top) = rle.decode_inside(mask)
    height, width = inside.shape
    buffer = io.BytesIO()
    Image.fromarray(inside.astype("uint8")).save(buffer, "PNG")
    points = [[left, top], [left + width - 1, top + height - 1]]
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return shape(label, "mask", points) | {"mask": text}


def shape(label: str, kind: str, points: list, group: int | None = None) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }
