"""Datumaro json: the items of a subset with polygons, masks (RLE) and boxes.

Shapes of one label in one group that is not 0 are one object; a box adds nothing to outlines.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from data import rle
from data.errors import MALFORMED, BadRecords, InputError
from data.images import upright_size
from data.readers import checks
from data.readers.content import Content, Shapes
from data.readers.image_files import ImageFiles
from data.readers.source import Source, head_of, split_of, top_keys

NAME, TITLE = "datumaro", "Datumaro json"
LAYOUT = "annotations/default.json with categories and items, images/default"
OWN_IDS = False

AGAIN = "export it again, or remove it"
SHAPES = ("polygon", "mask", "bbox")


def find(path: Path) -> dict[str, Source] | None:
    """The subsets in `annotations`, or one file."""
    if not path.is_dir():
        return {"all": source(path, "all")} if is_datumaro(path) else None
    files = [one for one in sorted(path.glob("annotations/*.json")) if is_datumaro(one)]
    return {split_of(one.stem): source(one, split_of(one.stem)) for one in files} or None


def is_datumaro(path: Path) -> bool:
    keys = top_keys(head_of(path)) if path.suffix.lower() == ".json" else {}
    return keys.get("categories") == "{" and keys.get("items", "[") == "["


def source(file: Path, split: str) -> Source:
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    folders = [root / "images" / file.stem, root / "images", root]
    images = next(folder for folder in folders if folder.is_dir())
    return Source(file, split, [images], [file.name], [file])


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """A subset as COCO content, classes in the order of the file."""
    content = checks.load_json(source.path)
    try:
        items = list(content["items"])
        classes = [
            checks.class_name(one["name"]) for one in content["categories"]["label"]["labels"]
        ]
    except MALFORMED as reason:
        raise InputError(f"{source.path} has no items or no labels ({reason}): {AGAIN}") from None
    found, files = Content(bad, classes), ImageFiles(source.images[0])
    for number, item in enumerate(items, start=1):
        id_ = item.get("id") if isinstance(item, dict) else None
        where = f"item {number}" if id_ is None else f"item {checks.shortened(id_)}"
        with bad.noting(source.path, where, AGAIN):
            shapes = list(item["annotations"])
            image = image_of(item, shapes, files, source.images[0], found)
            if image is None:
                found.counts["items without an image"] += 1
                continue
            add_objects(found, image, shapes, classes, source.path, where)
    return found.finished()


def image_of(
    item: dict, shapes: list, files: ImageFiles, folder: Path, content: Content
) -> dict | None:
    """The image of an item; None where it has neither one nor shapes, as a point cloud."""
    record = item.get("image") or {}
    listed = record.get("path") or item["id"]
    name, size = files.find(listed, stem=item["id"]), record.get("size")
    if name is None and not record:
        if any(isinstance(one, dict) and one.get("type") in SHAPES for one in shapes):
            raise InputError(f"has shapes, but its image is not in {folder}")
        return None
    if size:
        height, width = size
    elif name is not None:
        height, width = upright_size(folder / name)
    else:
        raise InputError(
            f"has the image {checks.shortened(listed)} without a size, which is not in {folder}"
        )
    return content.add_image(name or listed, width, height, f"item {checks.shortened(item['id'])}")


def add_objects(
    content: Content, image: dict, shapes: list, classes: list[str], file: Path, where: str
) -> None:
    objects: dict[tuple, Shapes] = defaultdict(Shapes)
    for number, shape in enumerate(shapes, start=1):
        key, outline, kind = (None, number), [], ""
        try:
            kind = shape["type"]
            if kind not in SHAPES:
                content.counts["captions, labels, points and other shapes that are not read"] += 1
                continue
            id_, group = shape.get("label_id"), shape.get("group")
            known = type(id_) is int and 0 <= id_ < len(classes)
            if known:
                label = classes[id_]
                key = (label, group) if type(group) is int and group else (label, None, number)
            outline = [outline_of(shape, kind, image)]
            if not known:
                raise InputError(
                    f"has label_id {checks.shortened(id_)} where there are {len(classes)} labels"
                )
        except MALFORMED as error:
            content.bad.note_error(error, file, f"{where}, annotation {number}", AGAIN)
            objects[key].broken = True
        if kind == "bbox":
            objects[key].corners += [float(value) for box in outline for value in box]
        else:
            objects[key].outlines += outline
        attributes = shape.get("attributes") if isinstance(shape, dict) else None
        objects[key].is_crowd |= isinstance(attributes, dict) and attributes.get("is_crowd") is True
    content.add_shapes(image, objects)


def outline_of(shape: dict, kind: str, image: dict) -> checks.Outline:
    if kind == "polygon":
        return checks.polygon(checks.numbers(shape.get("points")), image)
    if kind == "mask":
        return rle.from_annotation(shape["rle"], image["height"], image["width"])
    return checks.box(*checks.numbers(shape.get("bbox"), 4), image)
