"""Supervisely: meta.json, and for each dataset a folder with ann/x.jpg.json and img/x.jpg.

Polygons have holes. Bitmaps are PNGs, usually packed, with their place in the image.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data import rle
from data.errors import MALFORMED, BadRecords, InputError
from data.images import upright_size
from data.readers import checks
from data.readers.content import Content
from data.readers.image_files import ImageFiles, files_of_images
from data.readers.source import Source, head_of, top_keys

NAME, TITLE = "supervisely", "Supervisely"
LAYOUT = "meta.json, dataset/ann/x.jpg.json, dataset/img/x.jpg"
OWN_IDS = False

FIX = "correct it in Supervisely or remove it"
META = "meta.json"
DEPTH = 5  # folders below a project; datasets may hold datasets
NO_AREA = ("point", "line", "polyline", "graph", "cuboid", "cuboid_3d", "multichannel_bitmap")
PNG = b"\x89PNG"


def find(path: Path) -> dict[str, Source] | None:
    """The datasets of a project, by the splits in their names; or one dataset."""
    if not path.is_dir() or not ((path / META).is_file() or (path / "ann").is_dir()):
        return None
    return files_of_images(path, is_annotation, META, depth=DEPTH)


def is_annotation(file: Path) -> bool:
    keys = top_keys(head_of(file)) if file.parent.name == "ann" else {}
    return keys.get("objects") == "[" and keys.get("size") == "{"


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes in the order of meta.json if there, else sorted."""
    content, images = Content(bad, classes_in(source.path / META)), ImageFiles(source.path, DEPTH)
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file", FIX, where=str(file)):
            image, objects = opened(file, PurePosixPath(name), source.path, images, content)
            for number, record in enumerate(objects, start=1):
                add_object(content, image, record, file, f"object {number}")
    return content.finished()


def classes_in(meta: Path) -> list[str]:
    """The names of the classes whose shape has an area, in a meta.json."""
    content = checks.load_json(meta) if meta.is_file() else {"classes": []}
    try:
        kept = [one for one in content["classes"] if one.get("shape") not in NO_AREA]
        return [checks.class_name(one["title"]) for one in kept]
    except MALFORMED as reason:
        raise InputError(f"{meta} lists no classes with titles ({reason}): {FIX}") from None


def opened(
    file: Path, name: PurePosixPath, root: Path, images: ImageFiles, content: Content
) -> tuple[dict, list[Any]]:
    """The image of an annotation file, and its objects."""
    record = checks.load_json(file)
    objects, size = list(record["objects"]), record["size"]
    folder, base = name.parent.parent / "img", name.stem
    found = images.find(base, str(folder), base)
    width, height = size.get("width"), size.get("height")
    if found is None or PurePosixPath(found).parent != folder:
        found = str(folder / base)
    elif not (checks.is_side(width) and checks.is_side(height)):
        height, width = upright_size(root / found)
    return content.add_image(found, width, height, str(name)), objects


def add_object(content: Content, image: dict, record: Any, file: Path, what: str) -> None:
    label = None
    try:
        label = checks.class_name(record["classTitle"])
        what = f"{what} ({label})"
        kind = record.get("geometryType") or ("bitmap" if record.get("bitmap") else "polygon")
        if kind in NO_AREA:
            content.counts["objects without an area"] += 1
        elif kind == "bitmap":
            content.add(image, label, [bitmap(record["bitmap"], image)])
        elif kind in ("polygon", "rectangle"):
            points = record["points"]
            exterior = checks.flatten(points.get("exterior"))
            if kind == "rectangle":
                corners = checks.polygon(checks.rectangle(exterior), image)
                content.add_box(image, label, corners.tolist())
            else:
                holes = [checks.flatten(hole) for hole in points.get("interior") or []]
                content.add(image, label, [checks.with_holes(exterior, holes, image)])
        else:
            raise InputError(f"has the unknown geometryType {checks.shortened(kind)}")
    except MALFORMED as error:
        left = checks.nested(record, "points", "exterior")
        content.add_broken(image, label, error, file, what, FIX, points=left)


def bitmap(value: dict, image: dict) -> rle.Rle:
    left, top = checks.numbers(value.get("origin"), 2)
    return checks.mask_at(bitmap_mask(value.get("data")), left, top, image)


def bitmap_mask(data: Any) -> np.ndarray:
    """The data of a bitmap, base64 of a PNG that may be packed -> its pixels, bool [h,w]."""
    raw = checks.base64_bytes(data)
    return checks.png_mask(raw if raw.startswith(PNG) else checks.unzipped(raw))
