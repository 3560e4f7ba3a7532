"""Projects of VGG Image Annotator 3, as the records of version 2.

A view shows a file; the regions of all views are in one list, each with a number for its shape and
the ids of attributes and of their options.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data.errors import BadRecords, InputError
from data.readers.checks import numbers, shortened

FIX = "correct it in VIA or remove it"
IMAGE = 2  # type of a file; others are videos and sounds
NAMES = {
    1: ("point", ("cx", "cy")),
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    5: ("line", ()),
    6: ("polyline", None),
    7: ("polygon", None),
}  # shape: its name, and the keys of its numbers or None for points


def is_project(content: Any) -> bool:
    return isinstance(content, dict) and {"project", "file", "view", "metadata"} <= content.keys()


def records(
    content: dict, file: Path, counts: Counter[str], bad: BadRecords
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The images, and the attributes with their options; what cannot be used goes to `bad`."""
    files, views = content["file"], content["view"]
    attributes = content.get("attribute", {})
    images: dict[str, dict] = {}
    for id_, one in files.items():
        if one.get("type") == IMAGE:
            images[id_] = {"filename": one.get("fname"), "regions": []}
        else:
            counts["files that are no images"] += 1
    for id_, region in content["metadata"].items():
        with bad.noting(file, f"region {id_}", FIX):
            xy = region["xy"]
            if xy == [] or region.get("z"):
                counts["regions without a shape, or of videos"] += 1
                continue
            listed = views.get(str(region["vid"]), {}).get("fid_list") or ()
            if len(listed) != 1 or str(listed[0]) not in files:
                raise InputError(f"is in view {shortened(region['vid'])}, which shows no one file")
            if (image := images.get(str(listed[0]))) is not None:
                values = named(region.get("av", {}), attributes)
                shape = {"shape_attributes": shape_of(numbers(xy))}
                image["regions"].append(shape | {"region_attributes": values})
    options = {
        one["aname"]: {"options": dict.fromkeys(map(str, (one.get("options") or {}).values()))}
        for one in attributes.values()
    }
    return images, options


def shape_of(xy: list[float]) -> dict[str, Any]:
    name, keys = NAMES.get(int(xy[0]), (f"number {xy[0]:g}", ()))
    if keys is None:
        return {"name": name, "all_points_x": xy[1::2], "all_points_y": xy[2::2]}
    return {"name": name, **dict(zip(keys, xy[1:]))}


def named(values: dict, attributes: dict) -> dict[str, str]:
    """The values of a region, by ids -> by names; of checkboxes there may be several."""
    found = {}
    for id_, value in values.items():
        if id_ in attributes:
            options = attributes[id_].get("options") or {}
            parts = [str(options.get(part, part)) for part in str(value).split(",")]
            found[attributes[id_]["aname"]] = ", ".join(parts) if options else str(value)
    return found
