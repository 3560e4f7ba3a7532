"""CVAT XML 1.1 ("CVAT for images"), exports of tasks, projects and jobs.

Shapes of one label and group are one object; a box adds nothing to outlines. The runs of a mask
are row by row inside its box, unlike COCO's, which are column by column in the image.
"""

from __future__ import annotations

import contextlib
import html
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from data import rle
from data.errors import BadRecords, InputError
from data.images import MOST_PIXELS
from data.readers.checks import Outline, box_of_points, mask_at, polygon, shortened
from data.readers.content import Content, Shapes
from data.readers.image_files import LOOKED_AT
from data.readers.source import Source, ellipse, head_of, rotated, split_of

NAME, TITLE = "cvat-xml", "CVAT XML 1.1"
LAYOUT = "annotations.xml, images"
OWN_IDS = False

FIX = 'correct or remove it, or export again as "CVAT for images 1.1"'
NO_AREA = {"polyline": "lines", "points": "points", "skeleton": "skeletons", "tag": "tags"}
FARTHEST = 1e9  # pixels; more is a mistake
SUBSET = re.compile(r'<image\s[^>]*?\bsubset="([^"]*)"')
TAG = re.compile(r"<(image|track)\s")


def find(path: Path) -> dict[str, Source] | None:
    """The subsets of the xml file, or of all those in the folder."""
    files = sorted(path.glob("[!.]*.xml")) if path.is_dir() else [path]
    if not any(map(is_cvat, files[:LOOKED_AT])):
        return None
    folder = files[0].parent
    splits: dict[str, list[str]] = defaultdict(list)
    for file in filter(is_cvat, files):
        for split in splits_in(file):
            splits[split].append(file.name)
    if len(splits) > 1 and "all" in splits:
        splits["train"] += splits.pop("all")
    found = {}
    for split, names in splits.items():
        files = [folder / name for name in names]
        found[split] = Source(folder, split, image_folders(folder, split), names, files)
    return found


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images of the split as COCO content; classes in the order of the labels in `meta`."""
    content = Content(bad)
    for name in source.names:
        file = source.path / name
        splits, own = splits_in(file), subset_of(file)
        for element in elements(file, bad):
            if element.tag == "label":
                add_class(content, element)
            elif len(splits) == 1 or split_among(element.get("subset", own)) == source.split:
                add_image(content, element, file)
    return content.finished()


def is_cvat(file: Path) -> bool:
    root = re.search(r"<(\w+)", head_of(file)) if file.suffix.lower() == ".xml" else None
    return root is not None and root.group(1) == "annotations"


def subset_of(file: Path) -> str:
    """The subset that a task or job belongs to."""
    found = re.search("<subset>([^<]+)</subset>", head_of(file))
    return html.unescape(found.group(1)) if found else "default"


def splits_in(file: Path) -> set[str]:
    """The splits of the images in a file."""
    subsets: set[str] = set()
    tags: set[str] = set()
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            subsets.update(map(html.unescape, SUBSET.findall(line)))
            tags.update(TAG.findall(line))
    if tags == {"track"}:
        raise InputError(f'{file} is a video of CVAT: export it as "CVAT for images 1.1"')
    if len(subsets) < 2:
        return {split_of(name) for name in subsets or {subset_of(file)}}
    return {split_among(name) for name in subsets}


def split_among(subset: str) -> str:
    """The split of one of several subsets; "default" is for training."""
    split = split_of(subset)
    return "train" if split == "all" else split


def image_folders(folder: Path, split: str) -> list[Path]:
    """Folders that may hold the images, those named as the split first."""
    tops = [folder / "images", folder]
    if folder.name.lower() == "annotations":
        tops.append(folder.parent / "images")
    found = [each for top in tops for each in (top, *sorted(top.glob("*"))) if each.is_dir()]
    return sorted(found, key=lambda each: split_of(each.name) != split)


def elements(file: Path, bad: BadRecords) -> Iterator[Element]:
    """The `label` and `image` elements, each when it is complete; a broken file goes to `bad`."""
    try:
        for _, element in ElementTree.iterparse(file):
            if element.tag in ("label", "image"):
                yield element
                element.clear()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as reason:
        error = InputError(f"{file} cannot be read as XML, {reason}: export it again")
        bad.note(error, file, "the end of the file")


def add_class(content: Content, element: Element) -> None:
    name, kind = element.findtext("name"), element.findtext("type")
    is_area = element.find("parent") is None and kind not in NO_AREA
    if name and is_area and name not in content.classes:
        content.classes.append(name)


def add_image(content: Content, element: Element, file: Path) -> None:
    name = element.get("name", "")
    with content.bad.noting(file, f"image {name}", FIX):
        width, height = numbers(element, int, "width", "height")
        image = content.add_image(name, width, height, str(file))
        add_shapes(content, image, element, file)


def add_shapes(content: Content, image: dict, element: Element, file: Path) -> None:
    objects: dict[tuple, Shapes] = defaultdict(Shapes)
    for number, shape in enumerate(element, start=1):
        if shape.tag not in OUTLINES:
            content.counts[NO_AREA.get(shape.tag, "other shapes")] += 1
            continue
        label, group = shape.get("label") or None, shape.get("group_id") or "0"
        one = objects[(label, number if group == "0" or label is None else f"group {group}")]
        outline: list[Outline] = []
        try:
            outline = [OUTLINES[shape.tag](shape, image)]
            if label is None:
                raise InputError("has no label")
        except InputError as error:
            what = f"{shape.tag} {number} of image {image['file_name']}"
            content.bad.note_error(error, file, what, FIX)
            one.broken = True
            outline = outline or box_of_points(corners_of(shape), image)
        if shape.tag == "box":
            one.corners += [value for each in outline for value in each.tolist()]
        else:
            one.outlines += outline
    content.add_shapes(image, objects)


def corners_of(shape: Element) -> list[list[float]]:
    """The readable corners of a broken shape."""
    with contextlib.suppress(InputError, ValueError):
        if shape.tag == "mask":
            left, top, width, height = numbers(shape, float, "left", "top", "width", "height")
            return [[left, top], [left + width, top + height]]
        corners = re.findall(r"([-.\d]+),([-.\d]+)", shape.get("points", ""))
        return [[float(x), float(y)] for x, y in corners]
    return []


def numbers(element: Element, kind: type, *keys: str) -> list:
    """Attributes of an element as numbers; raises InputError."""
    try:
        values = [kind(element.get(key, "")) for key in keys]
    except ValueError:
        values = [math.nan]
    if not all(abs(value) < FARTHEST for value in values):  # also for NaN
        found = " ".join(f'{key}="{element.get(key, "")}"' for key in keys)
        raise InputError(f"has {found}, which are no usable numbers")
    return values


def points(shape: Element, image: dict) -> np.ndarray:
    text = shape.get("points", "")
    try:
        values = [float(part) for part in text.replace(";", ",").split(",")]
    except ValueError:
        raise InputError(f"has the points {shortened(text)}, which are no numbers") from None
    return polygon(values, image)


def ellipse_polygon(shape: Element, image: dict) -> np.ndarray:
    values = numbers(shape, float, "cx", "cy", "rx", "ry")
    return polygon(ellipse(*values, rotation_of(shape)), image)


def box(shape: Element, image: dict) -> np.ndarray:
    """The outline of a box, turned about its middle."""
    left, top, right, bottom = numbers(shape, float, "xtl", "ytl", "xbr", "ybr")
    x, y = (right - left) / 2, (bottom - top) / 2
    corners = np.array([(-x, -y), (x, -y), (x, y), (-x, y)])
    return polygon(rotated(corners, (left + x, top + y), rotation_of(shape)), image)


def rotation_of(shape: Element) -> float:
    """Degrees, clockwise as seen."""
    return numbers(shape, float, "rotation")[0] if "rotation" in shape.attrib else 0.0


def mask(shape: Element, image: dict) -> rle.Rle:
    left, top, width, height = numbers(shape, int, "left", "top", "width", "height")
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise InputError(f"has a box of {width} x {height} pixels")
    try:
        runs = [int(part) for part in shape.get("rle", "").split(",")]
    except ValueError:
        raise InputError("has an rle that is no list of whole numbers") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise InputError(f"has an rle of {sum(runs)} pixels where its box has {width * height}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return mask_at(inside, left, top, image)


OUTLINES = {"polygon": points, "mask": mask, "ellipse": ellipse_polygon, "box": box}
