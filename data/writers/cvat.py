"""CVAT XML 1.1 ("CVAT for images"): annotations.xml, images in images/<split>.

Polygons of one object have one group_id. The runs of a mask go row by row inside its own box.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from data import rle
from data.writers import target
from data.writers.target import Losses, Object, Splits, Wrap

NAME, TITLE, BY_STEM = "cvat", "CVAT XML 1.1", False


def image_path(split: str, name: str) -> str:
    return f"images/{split}/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    target.note_equal_names(splits, lost)
    with open(folder / "annotations.xml", "w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        file.write("<version>1.1</version>\n<meta><project><labels>\n")
        for category in next(iter(splits.values()))["categories"]:
            file.write(f"<label><name>{escape(category['name'])}</name></label>\n")
        file.write("</labels></project></meta>\n")
        for split, content in splits.items():
            for image, objects in target.images_of(content, wrap):
                about = {
                    "id": image["id"],
                    "name": image["file_name"],
                    "subset": split,
                    "width": image["width"],
                    "height": image["height"],
                }
                file.write(tag("image", about, end=">"))
                for number, one in enumerate(
                    target.drop_unsupported(image, objects, lost, boxes=False), start=1
                ):
                    file.writelines(shapes_of(one, number))
                file.write("</image>\n")
        file.write("</annotations>\n")


def shapes_of(one: Object, number: int) -> Iterator[str]:
    """The elements of an object; `number` is the group_id of several."""
    about = {
        "label": one.label,
        "source": "auto" if "score" in one.annotation else "file",
        "occluded": 0,
        "z_order": 0,
    }
    if one.is_box:
        yield tag("box", about | dict(zip(("xtl", "ytl", "xbr", "ybr"), one.box())))
    elif one.parts:
        if len(one.parts) > 1:
            about["group_id"] = number
        for part in one.parts:
            points = ";".join(f"{x!r},{y!r}" for x, y in part.tolist())
            yield tag("polygon", about | {"points": points})
    else:
        inside, (left, top) = rle.decode_inside(one.mask())
        height, width = inside.shape
        runs = ", ".join(map(str, rle.runs_at(inside.T, 0, 0, width, height).tolist()))
        place = {"left": left, "top": top, "width": width, "height": height}
        yield tag("mask", about | {"rle": runs} | place)


def tag(name: str, attributes: dict, end: str = "/>") -> str:
    words = [f"{key}={quoteattr(str(value))}" for key, value in attributes.items()]
    return f"<{name} {' '.join(words)}{end}\n"
