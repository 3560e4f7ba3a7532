"""What the tools that export COCO json do differently, undone after parsing.

The marks of a dialect are its own, so nothing here asks which tool wrote the file.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Any

from data.records import OUTSIDE, last_part

WHOLE = re.compile(r"\s*-?\d{1,18}\s*")
BOX_SHARE = 0.99, 1.01  # of a box: an area between is that of the box


def plain(content: dict[str, Any]) -> list[str]:
    """Changes COCO content in place; what deserves to be known, as sentences.

    - ids that are text, also in references alone (VIA), become numbers
    - classes that are listed twice count once (VIA); the class that stands for all others and has
      no objects goes (Roboflow)
    - names of files that all lead elsewhere become their last parts (Label Studio)
    - complex polygons that are marked iscrowd are objects, their sizes are turned (Darwin)
    - areas that are those of boxes for every object are not those of masks and go (Roboflow)
    """
    for key, reference in (("images", "image_id"), ("categories", "category_id")):
        whole_ids(content, key, reference)
    notes = [f"class {name!r} is left out: no object has it, it only groups other classes"
             for name in drop_categories(content)]  # fmt: skip
    if are_elsewhere(content):
        for one in dicts(content, "images"):
            one["file_name"] = last_part(one["file_name"])
        notes.append("its images lie in folders elsewhere, the last parts of their names are used")
    if number := complex_polygons(content):
        notes.append(f"{number} complex polygons are marked iscrowd and read as objects")
    if has_box_areas(content):
        for one in dicts(content, "annotations"):
            one.pop("area", None)
        notes.append("its areas are those of boxes, the areas of the masks are used")
    return notes


def dicts(content: dict, key: str) -> Iterator[dict]:
    """The records of a list; others are refused later."""
    return (one for one in content[key] if isinstance(one, dict))


def whole_ids(content: dict, key: str, reference: str) -> None:
    """Ids as the numbers that they write, or all as places in the list where one writes none."""
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
            elif isinstance(value, str) and WHOLE.fullmatch(value):
                one[name] = int(value)
            elif isinstance(value, float) and value.is_integer():
                one[name] = int(value)


def drop_categories(content: dict) -> list[str]:
    """Leaves out repeated categories and invented ones, returns the names of the latter."""
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


def are_elsewhere(content: dict) -> bool:
    """Whether all names of files lead out of the folder, and can be told by their last parts."""
    names = [one.get("file_name") for one in dicts(content, "images")]
    if not names or not all(isinstance(name, str) and OUTSIDE.search(name) for name in names):
        return False
    return len({last_part(name) for name in names}) == len(names)


def complex_polygons(content: dict) -> int:
    """Makes objects of masks that are crowds of area 0, and returns their number.

    Their size may be [width, height] although the counts go down the columns.
    """
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
