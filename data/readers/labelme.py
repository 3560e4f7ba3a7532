"""LabelMe: one json for each image. X-AnyLabeling writes the same.

Shapes with the same label and group_id are one object. Rectangles are boxes, `__ignore__` is void,
`_background_` is not an object. Points refer to the image with its EXIF rotation applied.
"""

from __future__ import annotations

import math
import posixpath
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from data import rle
from data.errors import MALFORMED, BadRecords, InputError, counted
from data.images import SUFFIXES, upright_size
from data.readers import checks
from data.readers.content import Content, Shapes, segmentation_of
from data.readers.image_files import ImageFiles, canonical, files_of_images
from data.readers.source import Source, ellipse, head_of, lines_of

NAME, TITLE = "labelme", "LabelMe"
LAYOUT = "x.json beside x.jpg"
OWN_IDS = False

FIX = "correct it in LabelMe or remove it"
VOID, BACKGROUND = "__ignore__", "_background_"  # labels that LabelMe reserves
POINTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "polygon": range(3, 1 << 30)}
BOXES = ("rectangle", "oriented_rectangle", "rotation")
NO_AREA = ("point", "points", "line", "linestrip")
KINDS = ("polygon", "circle", "mask", *BOXES, *NO_AREA)
CLASSES = "labels.txt"


def find(path: Path) -> dict[str, Source] | None:
    """The json files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_labelme, CLASSES)


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes in the order of labels.txt if there, else sorted.

    "embedded": file name -> path of the image or the json that holds it, if some have no file.
    """
    classes = source.path / CLASSES
    listed = lines_of(classes, "write one label per line") if classes.is_file() else []
    reading = Reading(source, bad, [name for name in listed if name not in (VOID, BACKGROUND)])
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file", FIX, where=str(file)):
            record = checks.load_json(file)
            if isinstance(record, dict) and {"shapes", "imagePath"} & record.keys():
                shapes = list(record["shapes"])
                image = reading.add_image(record, file, PurePosixPath(name))
                reading.add_objects(reading.objects(shapes, image, file), image)
            else:
                reading.content.counts["other json files"] += 1
    # A set has one image folder, so if some images are embedded, all are written to it.
    held = reading.embedded if reading.missing else {}
    for name, file in reading.absent.items() if held else ():
        error = f"{file}: its image {name} is not there, and its imageData is empty: add the image"
        bad.note(InputError(error), file, "the file")
        reading.content.remove_image(name)
    found = reading.content.finished() | {"embedded": held}
    if renamed := reading.renamed:
        found["notes"] = [
            f"{counted(len(renamed), 'json file')} with the name of an image that is not there "
            f"({renamed[0]}): the image with the name of the json is used"
        ]
    return found


def embedded_image(path: Path) -> bytes:
    """The content of an image file, or of the image embedded in a LabelMe json."""
    if path.suffix.lower() != ".json":
        return path.read_bytes()
    return checks.base64_bytes(checks.load_json(path)["imageData"])


def is_labelme(path: Path) -> bool:
    start = head_of(path)
    keys = ('"imagePath"', '"imageData"', '"shape_type"')  # imageData may fill the head
    shapes = '"shapes"' in start and '"version"' in start
    return start.startswith("{") and (shapes or any(key in start for key in keys))


class Reading:
    """COCO content while files are read."""

    def __init__(self, source: Source, bad: BadRecords, classes: list[str]) -> None:
        self.content, self.bad = Content(bad, classes), bad
        self.embedded: dict[str, str] = {}  # file name -> the file that holds the image
        self.absent: dict[str, Path] = {}  # file name -> the json of a missing image
        self.missing = False  # whether an image exists only in its json
        self.renamed: list[str] = []  # json files that name another image than is found
        self.folder = source.images[0]
        self.files = ImageFiles(self.folder)

    def add_image(self, record: dict, file: Path, name: PurePosixPath) -> dict[str, Any]:
        listed, data = record.get("imagePath") or "", record.get("imageData")
        listed = listed.replace("\\", "/")
        width, height = record.get("imageWidth"), record.get("imageHeight")
        found, held = self.files.find(listed, str(name.parent), name.stem), ""
        if found is not None:
            held = str(self.folder / found)
            stem = PurePosixPath(listed).stem
            if stem and canonical(stem) != canonical(PurePosixPath(found).stem):
                self.renamed.append(f"{name}: {listed}")
            if not (checks.is_side(width) and checks.is_side(height)):
                height, width = upright_size(self.folder / found)
        else:
            base = posixpath.basename(listed)
            base = base if base.lower().endswith(SUFFIXES) else f"{name.stem}.png"
            found = str(name.parent / base)
            if data:
                height, width = checks.image_size(checks.base64_bytes(data))
                held, self.missing = str(file), True
        image = self.content.add_image(found, width, height, str(name))
        if held:
            self.embedded[found] = held
        else:
            self.absent[found] = file
        return image

    def objects(self, shapes: list, image: dict, file: Path) -> dict[tuple, Shapes]:
        """(label, ...) -> the shapes of an object."""
        objects: dict[tuple, Shapes] = defaultdict(Shapes)
        for number, shape in enumerate(shapes, start=1):
            what, key = f"shape {number}", (None, number)
            try:
                label = checks.class_name(shape["label"])
                what, key = f"{what} ({label})", (label, None, number)
                group, kind = shape.get("group_id"), shape.get("shape_type") or "polygon"
                if isinstance(group, (int, str)):
                    key = (label, group)
                if kind not in KINDS:
                    raise InputError(f"has the unknown shape_type {checks.shortened(kind)}")
                if kind in NO_AREA or label == BACKGROUND:
                    left = "lines and points" if kind in NO_AREA else f"shapes of {BACKGROUND}"
                    self.content.counts[left] += 1
                    continue
                points = checks.flatten(shape.get("points"))
                if len(points) // 2 not in POINTS.get(kind, (4,)):
                    raise InputError(f"is a {kind} of {counted(len(points) // 2, 'point')}")
                if kind in BOXES and label != VOID:
                    corners = checks.rectangle(points) if kind == "rectangle" else points
                    objects[key].corners += checks.polygon(corners, image).tolist()
                else:
                    objects[key].outlines.append(outline(shape, kind, points, image))
            except MALFORMED as error:
                self.bad.note_error(error, file, what, FIX)
                objects[key].broken = True
                objects[key].outlines += checks.box_of_points(checks.nested(shape, "points"), image)
        return objects

    def add_objects(self, objects: dict[tuple, Shapes], image: dict) -> None:
        keys = [key for key in objects if key[0] == VOID]
        void = [outline for key in keys for outline in objects.pop(key).outlines]
        self.content.add_shapes(image, objects)
        if void:
            region = rle.from_annotation(
                segmentation_of(void, image), image["height"], image["width"]
            )
            image["void"] = rle.to_json(region)


def outline(shape: dict, kind: Any, points: list[float], image: dict) -> checks.Outline:
    """A shape that has an area; a rectangle is its outline."""
    if kind == "mask":  # the second point is its last pixel, but the size of the PNG is right
        mask, (corner, _) = checks.base64_bytes(shape.get("mask")), checks.bounds(points)
        return checks.mask_at(checks.png_mask(mask), *corner, image)
    if kind == "circle":  # its centre and a point of its rim
        x, y, rim_x, rim_y = points
        radius = math.hypot(rim_x - x, rim_y - y)
        return checks.polygon(ellipse(x, y, radius, radius), image)
    return checks.polygon(checks.rectangle(points) if kind == "rectangle" else points, image)
