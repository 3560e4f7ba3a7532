"""CVAT XML 1.1 ("CVAT for images"), exports of tasks, projects and jobs.

Polygons and ellipses are outlines, boxes stay boxes. Shapes of one label and group are one object.
The runs of a mask go row by row inside its own box, where COCO's go down the columns of the image.
"""

from __future__ import annotations

import html
import math
import mmap
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from data import records, rle
from data.errors import BadRecords, InputError
from data.images import MOST_PIXELS
from data.readers.source import Source, ellipse, head_of, split_of

NAME, TITLE = "cvat-xml", "CVAT XML 1.1"
LAYOUT = "annotations.xml, images"
OWN_IDS = False

FIX = 'correct or remove it, or export again as "CVAT for images 1.1"'
NO_AREA = {"polyline": "lines", "points": "points", "skeleton": "skeletons", "tag": "tags"}
FARTHEST = 1e9  # pixels; more is a mistake
SUBSET = re.compile(rb'<image\s[^>]*?\bsubset="([^"]*)"')
CHUNK = 1 << 20  # bytes


def find(path: Path) -> dict[str, Source] | None:
    """The subsets of the xml file, or of all those in the folder."""
    files = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    if not files or not is_cvat(files[0]):
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
    reading = Reading(bad)
    for name in source.names:
        file = source.path / name
        splits, own = splits_in(file), subset_of(file)
        for element in elements(file, bad):
            if element.tag == "label":
                reading.add_class(element)
            elif len(splits) == 1 or split_among(element.get("subset", own)) == source.split:
                reading.add_image(element, file)
    return reading.content()


def is_cvat(file: Path) -> bool:
    root = re.search(r"<(\w+)", head_of(file)) if file.suffix.lower() == ".xml" else None
    return root is not None and root.group(1) == "annotations"


def subset_of(file: Path) -> str:
    """The subset that a task or job belongs to."""
    found = re.search("<subset>([^<]+)</subset>", head_of(file))
    return html.unescape(found.group(1)) if found else "default"


def splits_in(file: Path) -> set[str]:
    """The splits of the images in a file."""
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = {html.unescape(name.decode("utf-8", "replace")) for name in SUBSET.findall(text)}
        if not found and text.find(b"<image ") < 0 <= text.find(b"<track "):
            raise InputError(f'{file} is a video of CVAT: export it as "CVAT for images 1.1"')
    if len(found) < 2:
        return {split_of(name) for name in found or {subset_of(file)}}
    return {split_among(name) for name in found}


def split_among(subset: str) -> str:
    """The split of a subset beside others; what was left in "default" is for training."""
    split = split_of(subset)
    return "train" if split == "all" else split


def image_folders(folder: Path, split: str) -> list[Path]:
    """Folders that may hold the images, those named as the split first."""
    tops = [folder / "images", folder]
    if folder.name.lower() == "annotations":
        tops.append(folder.parent / "images")
    found = [each for top in tops for each in (top, *sorted(top.glob("*"))) if each.is_dir()]
    return sorted(found, key=lambda each: split_of(each.name) != split)


class Elements(ElementTree.TreeBuilder):
    """Builds elements; entities, which need a DOCTYPE, are refused before any is expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Element] = []

    def doctype(self, *_: object) -> None:
        raise InputError("it has a DOCTYPE, which CVAT never writes")

    def end(self, tag: str) -> Element:
        element = super().end(tag)
        if tag in ("label", "image"):
            self.done.append(element)
        return element


def elements(file: Path, bad: BadRecords) -> Iterator[Element]:
    """The `label` and `image` elements, each when it is complete; a broken file goes to `bad`."""
    builder = Elements()
    parser = ElementTree.XMLParser(target=builder)
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(CHUNK):
                parser.feed(chunk)
                for element in builder.done:
                    yield element
                    element.clear()
                builder.done.clear()
        parser.close()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as reason:
        error = InputError(f"{file} cannot be read as XML, {reason}: export it again")
        bad.note(error, file, "the end of the file")


class Reading:
    """COCO content while files are read; classes are numbered at the end."""

    def __init__(self, bad: BadRecords) -> None:
        self.bad, self.counts = bad, Counter()
        self.classes: dict[str, None] = {}  # in order
        self.images: dict[str, dict] = {}  # by file name
        self.annotations: list[dict] = []

    def content(self) -> dict[str, Any]:
        used = {one["category_id"] for one in self.annotations} - {None}
        names = [*self.classes, *sorted(used - self.classes.keys())]  # a file may lack its meta
        ids = {name: id_ for id_, name in enumerate(names, start=1)}
        for number, one in enumerate(self.annotations, start=1):
            one.update(id=number, category_id=ids.get(one["category_id"]))
        return {
            "images": list(self.images.values()),
            "annotations": self.annotations,
            "categories": [{"id": id_, "name": name} for name, id_ in ids.items()],
            "counts": self.counts,
        }

    def add_class(self, element: Element) -> None:
        name, kind = element.findtext("name"), element.findtext("type")
        if name and element.find("parent") is None and kind not in NO_AREA:
            self.classes[name] = None

    def add_image(self, element: Element, file: Path) -> None:
        name = element.get("name", "")
        try:
            records.file_name({"file_name": name})
            width, height = numbers(element, int, "width", "height")
            if width < 1 or height < 1 or width * height > MOST_PIXELS:
                raise InputError(f"is {width} x {height} pixels")
            if name in self.images:
                raise InputError("is listed twice")
        except InputError as reason:
            error = InputError(f"{file}: image {name!r} {reason}: {FIX}")
            self.bad.note(error, file, f"image {name}")
            return
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images[name] = image
        self.add_shapes(element, image, file)

    def add_shapes(self, element: Element, image: dict, file: Path) -> None:
        """The annotations of an image; outlines of one label and group are one."""
        objects: dict[tuple, list] = defaultdict(list)
        boxes = []
        for number, shape in enumerate(element, start=1):
            if shape.tag not in OUTLINES:
                self.counts[NO_AREA.get(shape.tag, "other shapes")] += 1
                continue
            label, group = shape.get("label") or None, shape.get("group_id", "0")
            outline = None
            try:
                outline = OUTLINES[shape.tag](shape, image["height"], image["width"])
                if label is None:
                    raise InputError("has no label")
            except InputError as reason:
                where = f"{shape.tag} {number} of image {image['file_name']}"
                self.bad.note(InputError(f"{file}: {where} {reason}: {FIX}"), file, where)
                self.add(image, label, [] if outline is None else [outline], broken=True)
                continue
            key = (label, number if group == "0" else f"group {group}")
            if shape.tag == "box":
                boxes.append((key, outline))
            else:
                objects[key].append(outline)
        for (label, _), outlines in objects.items():
            self.add(image, label, outlines)
        for key, corners in boxes:
            if key in objects:  # the tool's own exports make it the box of the object
                self.counts["boxes of outlined objects"] += 1
            else:
                x, y = corners[::2], corners[1::2]
                bounds = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
                self.add(image, key[0], [], bbox=bounds, box=True)

    def add(self, image: dict, label: str | None, outlines: list, **more: Any) -> None:
        """An annotation; its outlines are polygons or RLEs, all become one RLE if any is."""
        segmentation: Any = outlines
        if any(isinstance(one, dict) for one in outlines):
            size = image["height"], image["width"]
            rles = [
                one if isinstance(one, dict) else rle.from_annotation([one], *size)
                for one in outlines
            ]
            segmentation = rle.to_json(rle.union(rles))
        record = {"image_id": image["id"], "category_id": label, "segmentation": segmentation}
        self.annotations.append(record | more)


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


def polygon(shape: Element, height: int, width: int) -> list[float]:
    points = shape.get("points", "")
    try:
        values = [float(part) for part in points.replace(";", ",").split(",")]
    except ValueError:
        raise InputError(f"has the points {points[:40]!r}, which are no numbers") from None
    return usable(values, height, width)


def usable(points: list[float], height: int, width: int) -> list[float]:
    try:
        rle.polygons_of([points], height, width)
    except InputError as reason:
        raise InputError(f"cannot be used, {reason}") from None
    return points


def oval(shape: Element, height: int, width: int) -> list[float]:
    values = numbers(shape, float, "cx", "cy", "rx", "ry")
    return usable(ellipse(*values, turn_of(shape)), height, width)


def box(shape: Element, height: int, width: int) -> list[float]:
    """The corners of a box, turned about its middle."""
    left, top, right, bottom = numbers(shape, float, "xtl", "ytl", "xbr", "ybr")
    x, y, turn = (left + right) / 2, (top + bottom) / 2, math.radians(turn_of(shape))
    corners = []
    for across, down in ((left, top), (right, top), (right, bottom), (left, bottom)):
        across, down = across - x, down - y
        corners.append(x + across * math.cos(turn) - down * math.sin(turn))
        corners.append(y + across * math.sin(turn) + down * math.cos(turn))
    return usable(corners, height, width)


def turn_of(shape: Element) -> float:
    return numbers(shape, float, "rotation")[0] if "rotation" in shape.attrib else 0.0


def mask(shape: Element, height: int, width: int) -> rle.Rle:
    left, top, across, down = numbers(shape, int, "left", "top", "width", "height")
    if across < 1 or down < 1 or across * down > MOST_PIXELS:
        raise InputError(f"has a box of {across} x {down} pixels")
    try:
        runs = [int(part) for part in shape.get("rle", "").split(",")]
    except ValueError:
        raise InputError("has an rle that is no list of whole numbers") from None
    if min(runs) < 0 or sum(runs) != across * down:
        raise InputError(f"has an rle of {sum(runs)} pixels where its box has {across * down}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(down, across)
    return rle.encode_at(inside, left, top, height, width)


OUTLINES = {"polygon": polygon, "mask": mask, "ellipse": oval, "box": box}
