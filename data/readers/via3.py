"""Projects of VGG Image Annotator 3, as the records of version 2.

A view shows a file; the regions of all views are in one list, each with a number for its shape and
the ids of attributes and of their options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.readers.content import numbers, require, short

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
    content: dict, file: Path, counts: Counter[str], broken: Callable[[InputError, str], None]
) -> tuple[dict[str, dict], dict[str, dict]]:
    """The images, and the attributes with their options; what cannot be used goes to `broken`."""
    try:
        files, views, regions = (
            require(content, key, dict) for key in ("file", "view", "metadata")
        )
        attributes = require({"attribute": {}} | content, "attribute", dict)
    except InputError as reason:
        raise InputError(f"{file} {reason}: export it again") from None
    images: dict[str, dict] = {}
    for id_, one in files.items():
        if isinstance(one, dict) and one.get("type") == IMAGE:
            images[id_] = {"filename": one.get("fname"), "regions": []}
        else:
            counts["files that are no images"] += 1
    shown = {id_: view.get("fid_list") for id_, view in views.items() if isinstance(view, dict)}
    for id_, region in regions.items():
        try:
            xy = require({"region": region}, "region", dict).get("xy")
            if xy == [] or region.get("z"):
                counts["regions without a shape, or of videos"] += 1
                continue
            listed = shown.get(str(region.get("vid")))
            if not isinstance(listed, list) or len(listed) != 1 or str(listed[0]) not in files:
                raise InputError(f"is in view {short(region.get('vid'))}, which shows no one file")
            if (image := images.get(str(listed[0]))) is not None:
                values = require({"av": {}} | region, "av", dict)
                shape = {"shape_attributes": shape_of(numbers(xy))}
                image["regions"].append(shape | {"region_attributes": named(values, attributes)})
        except InputError as reason:
            broken(reason, f"region {id_}")
    options = {
        one["aname"]: {"options": dict.fromkeys(map(str, one["options"].values()))}
        for one in attributes.values()
        if isinstance(one, dict)
        and isinstance(one.get("aname"), str)
        and isinstance(one.get("options"), dict)
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
        one = attributes.get(id_)
        if isinstance(one, dict) and isinstance(one.get("aname"), str):
            options = one["options"] if isinstance(one.get("options"), dict) else {}
            parts = [str(options.get(part, part)) for part in str(value).split(",")]
            found[one["aname"]] = ", ".join(parts) if options else str(value)
    return found
