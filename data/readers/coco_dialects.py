"""Normalises the dialects of COCO json that annotation tools export, after parsing."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from typing import Any

from data.errors import counted
from data.readers.image_files import last_part
from data.records import OUTSIDE

WHOLE = re.compile(r"\s*-?\d{1,18}\s*")
BOX_SHARE = 0.99, 1.01  # an area in this range of the box area is that of the box


def normalise(content: dict[str, Any]) -> list[str]:
    """Changes COCO content in place; returns notes on the changes.

    - text ids (also in references, VIA) and sizes like 640.0 become integers
    - duplicate classes are merged (VIA); a parent class without objects is dropped (Roboflow)
    - absolute file names become base names (Label Studio), or relative to their common folder
    - complex polygons marked iscrowd become objects, their sizes are transposed (Darwin)
    - areas are dropped if all of them are those of boxes (Roboflow)

    Classes that were annotated in some images only (LVIS) give a note.
    """
    for key, reference in (("images", "image_id"), ("categories", "category_id")):
        integer_ids(content, key, reference)
    for image in dicts(content, "images"):
        for side in ("width", "height"):
            image[side] = as_integer(image.get(side))
    notes = [f"class {name!r} is left out: no object has it, it only groups other classes"
             for name in drop_categories(content)]  # fmt: skip
    names = [one.get("file_name") for one in dicts(content, "images")]
    if shorter := relative_names(names):
        for one, name in zip(dicts(content, "images"), shorter):
            one["file_name"] = name
        notes.append("its images lie in folders elsewhere, the last parts of their names are used")
    if number := complex_polygons(content):
        notes.append(f"{counted(number, 'complex polygon')} marked iscrowd, read as objects")
    if any([one.pop("neg_category_ids", None) is not None for one in dicts(content, "images")]):
        notes.append(
            "a class that was not looked for in an image (LVIS) counts as absent there, also in "
            "scores, which LVIS computes otherwise"
        )
    if has_box_areas(content):
        for one in dicts(content, "annotations"):
            one.pop("area", None)
        notes.append("its areas are those of boxes, the areas of the masks are used")
    return notes


def dicts(content: dict, key: str) -> Iterator[dict]:
    """The records of a list; anything else is reported later."""
    return (one for one in content[key] if isinstance(one, dict))


def integer_ids(content: dict, key: str, reference: str) -> None:
    """Converts ids to integers: by value, or by position if one of them is not a number."""
    ids = [one.get("id") for one in dicts(content, key)]
    places = {}
    if any(isinstance(id_, str) and not WHOLE.fullmatch(id_) for id_ in ids):
        for place, id_ in enumerate(ids, start=1):
            places.setdefault(str(id_), place)
    for records, name in ((dicts(content, key), "id"), (dicts(content, "annotations"), reference)):
        for one in records:
            value = one.get(name)
            if places and isinstance(value, (int, str)):
                one[name] = places.get(str(value), value)
            else:
                one[name] = as_integer(value)


def as_integer(value: Any) -> Any:
    """A text or float with an integer value as int, anything else unchanged."""
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def drop_categories(content: dict) -> list[str]:
    """Drops duplicate categories and unused parent categories; returns the names of the latter."""
    used = {str(one.get("category_id")) for one in dicts(content, "annotations")}
    parents = [(one.get("supercategory"), one) for one in dicts(content, "categories")]
    kept: dict[str, Any] = {}
    invented = []
    for place, one in enumerate(content["categories"]):
        if not isinstance(one, dict):
            kept[f"place {place}"] = one  # refused later
            continue
        name, id_ = one.get("name"), str(one.get("id"))
        if (
            one.get("supercategory") == "none"
            and id_ not in used
            and any(parent == name and other is not one for parent, other in parents)
        ):
            invented.append(str(name))
        else:
            kept.setdefault(repr((id_, name)), one)
    content["categories"] = list(kept.values())
    return invented


def relative_names(names: list) -> list[str]:
    """Relative names, if all names are absolute or leave the folder; else none."""
    if not names or not all(isinstance(name, str) and OUTSIDE.search(name) for name in names):
        return []
    found = [last_part(name) for name in names]
    if len({*found}) < len(found):
        paths = [name.replace("\\", "/").split("/") for name in names]
        shared = len(os.path.commonprefix([path[:-1] for path in paths]))
        found = ["/".join(path[shared:]) for path in paths]
    return found if len({*found}) == len(found) else []


def complex_polygons(content: dict) -> int:
    """Makes objects of crowd masks of area 0, with a possibly transposed size; their number."""
    number, sizes = 0, None
    for one in dicts(content, "annotations"):
        mask = one.get("segmentation")
        if not (
            "extra" in one
            and one.get("iscrowd") == 1
            and not one.get("area")
            and isinstance(mask, dict)
            and isinstance(mask.get("counts"), (list, array))
        ):
            continue
        if sizes is None:
            sizes = {
                str(image.get("id")): [image.get("width"), image.get("height")]
                for image in dicts(content, "images")
            }
        if mask.get("size") == sizes.get(str(one.get("image_id"))):
            mask["size"] = mask["size"][::-1]
        one["iscrowd"] = 0
        number += 1
    return number


def has_box_areas(content: dict) -> bool:
    """Whether the area of every object is that of its box."""
    found = False
    for one in dicts(content, "annotations"):
        area, box = one.get("area"), one.get("bbox")
        if type(area) not in (int, float) or not isinstance(box, array) or len(box) != 4:
            return False
        low, high = (share * box[2] * box[3] for share in BOX_SHARE)
        if not 0 < low <= area <= high:
            return False
        found = True
    return found
