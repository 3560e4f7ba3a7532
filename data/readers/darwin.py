"""Darwin (V7): one json for each image, of version 2.0 or 1.0.

The paths of a polygon are filled by the even-odd rule. Masks are empty records; their pixels are in
one annotation, the raster layer, row by row.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data import rle
from data.errors import MALFORMED, BadRecords, InputError
from data.images import upright_size
from data.readers import checks
from data.readers.content import Content
from data.readers.image_files import ImageFiles, files_of_images
from data.readers.source import Source, ellipse, head_of, top_keys

NAME, TITLE = "darwin", "Darwin json"
LAYOUT = "annotations/x.json, images/x.jpg"
OWN_IDS = False

FIX = "correct it in V7 or remove it"
AREAS = ("polygon", "complex_polygon", "ellipse", "mask", "bounding_box")  # a polygon has a box too


def find(path: Path) -> dict[str, Source] | None:
    """The json files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_darwin)


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes sorted by name."""
    reading = Reading(source.images[0], bad)
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file", FIX, where=str(file)):
            record = checks.load_json(file)
            if not isinstance(record, dict) or not {"item", "image"} & record.keys():
                reading.content.counts["other json files"] += 1
                continue
            image, annotations, masks = reading.open(record, file, PurePosixPath(name))
            for number, annotation in enumerate(annotations, start=1):
                what = f"annotation {number}"
                add_annotation(reading.content, image, annotation, masks, file, what)
    return reading.content.finished()


def is_darwin(path: Path) -> bool:
    keys = top_keys(head_of(path))
    return "{" in (keys.get("item"), keys.get("image")) and keys.get("annotations") == "["


class Reading:
    """COCO content while files are read. Several files may be about one image."""

    def __init__(self, folder: Path, bad: BadRecords) -> None:
        self.content, self.folder, self.files = Content(bad), folder, ImageFiles(folder)
        self.images: dict[str, dict] = {}
        self.ids: dict[str, set] = defaultdict(set)  # of the annotations of each image

    def open(
        self, record: dict, file: Path, place: PurePosixPath
    ) -> tuple[dict, list[Any], dict[str, rle.Rle]]:
        """The image of a file, the new annotations of its first slot, and the masks of its raster
        layer by annotation id. `place`: the file, relative to the folder.
        """
        annotations = list(record["annotations"])
        item = record["item"] if "item" in record else record["image"]
        slot = (item.get("slots") or [item])[0]  # version 1.0 has none
        if slot.get("type", "image") != "image":
            raise InputError(
                f"is about a {checks.shortened(slot['type'])}, only images can be used"
            )
        name = item["name"] if "name" in item else item["filename"]
        name = f"{item.get('path') or ''}/{name}".strip("/")
        found = self.files.find(name, str(place.parent))
        width, height = slot.get("width"), slot.get("height")
        if found is not None and not (checks.is_side(width) and checks.is_side(height)):
            height, width = upright_size(self.folder / found)
        kept = [one for one in annotations if is_of(one, slot.get("slot_name"))]
        masks: dict[str, rle.Rle] = {}
        for one in kept if checks.is_side(width) and checks.is_side(height) else ():
            if isinstance(one, dict) and "raster_layer" in one:
                masks |= masks_in(one["raster_layer"], height, width)
        name = found or name
        image = self.images.get(name)
        if image is None or (image["width"], image["height"]) != (width, height):
            image = self.content.add_image(name, width, height, file.name)
            self.images[name] = image
        self.content.counts["annotations of further slots"] += len(annotations) - len(kept)
        new = [one for one in kept if id_of(one) not in self.ids[name]]
        self.content.counts["annotations that another file has"] += len(kept) - len(new)
        self.ids[name].update(filter(None, map(id_of, new)))
        return image, new, masks


def id_of(annotation: Any) -> str | None:
    id_ = annotation.get("id") if isinstance(annotation, dict) else None
    return id_ if isinstance(id_, str) else None


def is_of(annotation: Any, slot: Any) -> bool:
    names = annotation.get("slot_names") if isinstance(annotation, dict) else None
    return slot is None or not isinstance(names, list) or names == [] or slot in names


def masks_in(layer: dict, height: int, width: int) -> dict[str, rle.Rle]:
    """The masks of a raster layer, by the ids of their annotations."""
    numbers_of = layer["mask_annotation_ids_mapping"]
    indices = index_map(layer.get("dense_rle"), height, width)
    present = set(np.unique(indices).tolist())
    used = {id_: n for id_, n in numbers_of.items() if type(n) is int and n in present}
    return dict(zip(used, rle.from_index_map(indices, list(used.values()))))


def index_map(dense_rle: Any, height: int, width: int) -> np.ndarray:
    """A list of value, run length, ... row by row -> int64 [h,w]."""
    try:
        values, runs = np.array(array("q", dense_rle), np.int64).reshape(-1, 2).T
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"has the dense_rle {checks.shortened(dense_rle)}, which is not usable"
        ) from None
    if (runs < 0).any() or runs.astype(float).sum() != height * width:
        raise InputError(
            f"has a dense_rle of {runs.astype(float).sum():.0f} pixels where its image has "
            f"{height * width}"
        )
    return np.repeat(values, runs).reshape(height, width)


def add_annotation(
    content: Content, image: dict, annotation: Any, masks: dict, file: Path, what: str
) -> None:
    label = None
    try:
        label = checks.class_name(annotation["name"])
        what = f"{what} ({label})"
        kind = next((key for key in AREAS if key in annotation), None)
        if "raster_layer" in annotation:
            return
        if kind is None:
            content.counts["annotations without an area"] += 1
        elif kind == "mask":
            mask = masks.get(id_of(annotation) or "")
            if mask is None:
                content.counts["masks without pixels in a raster layer"] += 1
            else:
                content.add(image, label, [mask])
        else:
            value = annotation[kind]
            if kind == "bounding_box":
                sides = checks.numbers([value.get(key) for key in "xywh"])
                content.add_box(image, label, checks.box(*sides, image))
            elif kind == "ellipse":
                content.add(image, label, [ellipse_polygon(value, image)])
            else:
                content.add(image, label, outlines(value, image))
    except MALFORMED as error:
        left = checks.nested(annotation, "polygon")
        content.add_broken(image, label, error, file, what, FIX, points=left)


def ellipse_polygon(value: dict, image: dict) -> np.ndarray:
    sizes = checks.numbers([value[part][key] for part in ("center", "radius") for key in "xy"])
    (radians,) = checks.numbers([value.get("angle") or 0])
    return checks.polygon(ellipse(*sizes, math.degrees(radians)), image)


def outlines(value: dict, image: dict) -> list[checks.Outline]:
    """The parts of a polygon; one mask if they overlap, which makes holes."""
    found = [checks.flatten([xy(point) for point in ring]) for ring in rings(value)]
    found = [ring for ring in found if len(ring) > 4] or found  # others enclose nothing
    return checks.even_odd([checks.polygon(ring, image) for ring in found], image)


def rings(value: dict) -> list[list]:
    """The paths of a polygon, of either version."""
    paths = value["paths"] if "paths" in value else value["path"]
    if "paths" not in value and not (paths and isinstance(paths[0], list)):
        paths = [paths, *value.get("additional_paths", ())]
    if not paths or not all(isinstance(path, list) and path for path in paths):
        raise InputError(
            f"has the paths {checks.shortened(paths)} where lists of points are needed"
        )
    return paths


def xy(point: Any) -> list:
    return [point.get("x"), point.get("y")] if isinstance(point, dict) else [point]
