"""VGG Image Annotator: exports as json or csv of versions 1 and 2, and projects of 2 and 3.

The files have no image sizes, so each image is opened. The class is the attribute that most regions
have. Rectangles are boxes. Images that several files describe equally are read once.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.errors import MALFORMED, BadRecords, FileError, InputError
from data.images import upright_size
from data.readers import checks
from data.readers.content import Content
from data.readers.image_files import ImageFiles, annotation_files
from data.readers.source import Source, ellipse, head_of, rows_of
from data.readers.via3 import FIX, is_project
from data.readers.via3 import records as records_of_project

NAME, TITLE = "via", "VGG Image Annotator"
LAYOUT = "via_region_data.json or .csv beside the images"
OWN_IDS = False

COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
ENTRY = ('"regions"', '"file_attributes"', '"base64_img_data"')  # keys beside "filename"
VERSION_3 = "CSV_HEADER = metadata_id,"
USUAL = ("class", "class_id", "class_name", "category", "label", "name", "type")  # attributes
FLAGS = {"1", "true", "yes", "on"}  # values that make the attribute itself the class
ONLY_CLASS = "object"  # of regions without attributes
OPEN = "open polylines (outlines are to be named polygon in the file)"
SIZES = {
    "rect": ("x", "y", "width", "height"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}


class Entry(NamedTuple):
    """An image as one of the files describes it."""

    file: Path
    name: str
    regions: list[Any]


def find(path: Path) -> dict[str, Source] | None:
    """The files of VIA in a folder, or one of them; by split if all file names contain one."""
    return annotation_files(path, (".json", ".csv"), is_via) or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes sorted by name."""
    files = Files(source, bad)
    entries, folder = list(files.entries.values()), source.images[0]
    label_of, unused = choose_label(entries, files.options, source.path)
    classes: set[str] = set()  # those of missing images too
    labels = [label_of(each) for entry in entries for each in attributes_of(entry)]
    for label in (*labels, *unused):
        with contextlib.suppress(InputError):
            classes.add(checks.class_name(label))
    content, images = Content(bad, sorted(classes)), ImageFiles(folder)
    content.counts += files.counts
    names = [images.find_in_split(entry.name, source.split) for entry in entries]
    missing = [entry for entry, name in zip(entries, names) if name is None]
    for entry in missing:
        error = InputError(
            f"{entry.file}: {len(missing)} of {len(entries)} images are not in {folder}, the first "
            f"is {missing[0].name}, and VIA writes no sizes: add them, give their folder with "
            "--images, or remove them from the file"
        )
        if len(missing) == len(entries):
            raise error
        bad.note(error, entry.file, entry.name)
    for entry, name in zip(entries, names):
        if name is None:
            continue
        with bad.noting(entry.file, entry.name, FIX):
            height, width = upright_size(folder / name)
            image = content.add_image(name, width, height, entry.name)
            for number, region in enumerate(entry.regions):
                try:
                    add_region(content, image, region, label_of)
                except MALFORMED as error:
                    what = f"region {number} of {entry.name}"
                    left = points_of(region)
                    content.add_broken(image, None, error, entry.file, what, FIX, points=left)
    return content.finished()


class Files:
    """The content of all files, each image once; `options`: values of the region attributes."""

    def __init__(self, source: Source, bad: BadRecords) -> None:
        self.entries: dict[str, Entry] = {}
        self.options: dict[str, set[str]] = defaultdict(set)
        self.counts: Counter[str] = Counter()
        self.bad = bad
        for name in source.names:
            file = source.path / name
            with bad.noting(file, "the file", "export it again", where=str(file)):
                found = load_csv(file) if is_csv(file) else self.load(file)
                for entry in entries_of(found, file, bad):
                    known = self.entries.setdefault(entry.name, entry)
                    if known.regions != entry.regions:
                        error = InputError(
                            f"{file} has other regions for {entry.name} than {known.file}: remove "
                            "one of them"
                        )
                        bad.note(error, file, entry.name)

    def load(self, file: Path) -> dict[str, Any]:
        """The records of images in a json; their keys are file names with the size in bytes."""
        content, attributes = checks.load_json(file), {}
        if is_project(content):
            content, attributes = records_of_project(content, file, self.counts, self.bad)
        elif "_via_img_metadata" in content:  # of a project
            attributes = content.get("_via_attributes", {}).get("region", {})
            content = content["_via_img_metadata"]
        for name, one in attributes.items():
            self.options[name].update(one.get("options") or ())
        return content


def is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def is_via(file: Path) -> bool:
    start = head_of(file)
    if is_csv(file):
        return VERSION_3 in start or all(column in start.split("\n", 1)[0] for column in COLUMNS)
    if not start.startswith("{"):
        return False
    if '"project"' in start and '"vid_list"' in start:  # version 3
        return True
    return '"_via_' in start or ('"filename"' in start and any(key in start for key in ENTRY))


def load_csv(file: Path) -> dict[str, Any]:
    """The records of images in a csv, where a row is a region, or an image without regions."""
    if VERSION_3 in head_of(file):
        raise FileError(f"{file} is a csv of VIA 3: save the project as json and give that")
    records: dict[str, Any] = {}
    for number, row in enumerate(rows_of(file), start=2):
        row = {str(column).strip("# "): text for column, text in row.items()}
        name, *cells = (row.get(column) for column in COLUMNS)
        if not name or None in cells:
            records[f"of row {number}"] = None
            continue
        record = records.setdefault(name, {"filename": name, "regions": []})
        shape, attributes = map(parse_cell, cells)
        if shape != {}:
            region = {"shape_attributes": shape, "region_attributes": attributes}
            record["regions"].append(region)
    return records


def entries_of(records: dict[str, Any], file: Path, bad: BadRecords) -> Iterator[Entry]:
    for key, record in records.items():
        with bad.noting(file, f"image {key}", FIX):
            regions = record.get("regions", [])
            if isinstance(regions, dict):  # as VIA 1 has them
                regions = regions.values()
            yield Entry(file, record["filename"], list(regions))


def parse_cell(text: str) -> Any:
    """The json in a cell, or its text if it is not json."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def choose_label(
    entries: Sequence[Entry], options: Mapping[str, Iterable[str]], path: Path
) -> tuple[Callable[[dict], str | None], Iterable[str]]:
    """A function from the attributes of a region to its class, and the listed classes.

    Raises:
        InputError: if two attributes may be the class.
    """
    found: dict[str, Counter] = {}
    for entry in entries:
        for attributes in attributes_of(entry):
            for key, raw in attributes.items():
                if text := value(raw):
                    found.setdefault(key, Counter())[text] += 1
    if not found:
        return lambda attributes: ONLY_CLASS, ()
    usual = [key for key in found if key.lower() in USUAL]
    if not usual and set().union(*found.values()) <= FLAGS:
        return lambda attributes: next((k for k in attributes if value(attributes[k])), None), ()
    most = max(values.total() for values in found.values())
    likely = [key for key, values in found.items() if values.total() == most]
    usual = sorted(set(likely) & set(usual), key=lambda key: USUAL.index(key.lower()))
    if len(likely) > 1 and not usual:
        raise InputError(
            f"{path}: as many regions have the attribute {likely[0]!r} as {likely[1]!r}: remove "
            "those that are no class from the region attributes"
        )
    key = (usual or likely)[0]
    return lambda attributes: value(attributes.get(key)), options.get(key, ())


def attributes_of(entry: Entry) -> list[dict]:
    """The attributes of the regions that have some."""
    regions = [one for one in entry.regions if isinstance(one, dict)]
    found = [one.get("region_attributes") for one in regions]
    return [one for one in found if isinstance(one, dict)]


def value(raw: Any) -> str:
    """An attribute of a region as text; of checkboxes those that are checked."""
    if isinstance(raw, dict):
        raw = ", ".join(key for key, checked in raw.items() if checked not in (False, "false", ""))
    return str(raw).strip() if isinstance(raw, (str, int, float)) else ""


def add_region(content: Content, image: dict, region: Any, label_of: Callable) -> None:
    shape, label = region["shape_attributes"], label_of(region["region_attributes"])
    kind, points = shape["name"], points_of(region)
    is_open = kind == "polyline" and points[:1] != points[-1:]
    if is_open or kind in ("point", "line"):
        content.counts[OPEN if is_open else "points"] += 1
        return
    drawn = outline(shape, kind, points, image)
    if not label:
        content.counts["regions without a class"] += 1
        content.add(image, None, [drawn], broken=True)
    elif kind == "rect":
        content.add_box(image, checks.class_name(label), drawn.tolist())
    else:
        content.add(image, checks.class_name(label), [drawn])


def outline(shape: dict, kind: str, points: list, image: dict) -> np.ndarray:
    """The outline of a region; also of a rectangle, which is a box."""
    if kind in ("polygon", "polyline"):
        return checks.polygon(checks.flatten(points), image)
    if kind not in SIZES:
        raise InputError(f"has the unknown shape {checks.shortened(kind)}")
    sizes = checks.numbers([shape.get(key) for key in SIZES[kind]])
    if kind == "rect":
        return checks.box(*sizes, image)
    x, y, *radii = sizes
    (theta,) = checks.numbers([shape.get("theta") or 0])  # radians
    return checks.polygon(ellipse(x, y, radii[0], radii[-1], math.degrees(theta)), image)


def points_of(region: Any) -> list[list]:
    """The points [[x, y], ...] of a region, if it has some."""
    x, y = (checks.nested(region, "shape_attributes", f"all_points_{axis}") for axis in "xy")
    are_lists = isinstance(x, list) and isinstance(y, list) and len(x) == len(y)
    return [list(point) for point in zip(x, y)] if are_lists else []
