"""OpenImages: a csv with a row for each object, and a PNG for its mask.

A mask may have another size than its image. Classes are those that occur, with the names of
class-descriptions.csv. Boxes of groups, in the csv of boxes if it is there, are boxes without mask.
"""

from __future__ import annotations

import csv
import os
import posixpath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import rle
from data.errors import BadRecords, InputError
from data.images import SUFFIXES, upright_size
from data.readers.checks import class_name, polygon, rectangle
from data.readers.content import Content
from data.readers.image_files import DEPTH, walk
from data.readers.maps import read_numbers
from data.readers.source import SPLITS, Source, head_of, rows_of

NAME, TITLE = "openimages", "OpenImages"
LAYOUT = "annotations/train-annotations-object-segmentation.csv, masks, images"
OWN_IDS = False

FOLDERS = ("", "annotations", "labels", "metadata")  # of csv files
COLUMNS = {"MaskPath", "ImageID", "LabelName"}
MASKS, BOXES = "annotations-object-segmentation", "annotations-bbox"
DESCRIPTIONS = ("*class-descriptions*.csv", "classes.csv")


def find(path: Path) -> dict[str, Source] | None:
    """The csv files of masks; the first word of their names is the split."""
    if path.is_file():
        root = path.parent.parent if path.parent.name in FOLDERS else path.parent
        files = [path]
    else:
        root, files = path, csv_files(path, "*segmentation*.csv")
    found = {}
    for file in files:
        header = head_of(file).split("\n")[0] if file.suffix.lower() == ".csv" else ""
        if set(header.strip().split(",")) >= COLUMNS:
            split = SPLITS.get(file.name.split("-")[0].lower(), "all")
            others = [boxes_of(file), *csv_files(root, *DESCRIPTIONS)]
            name = file.relative_to(root).as_posix()
            found[split] = Source(root, split, [root], [name], [file, *others])
    return found or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images that are there as COCO content; file names are relative to the root.

    Raises:
        InputError: if none of the images is there, or a csv file cannot be read.
    """
    reading = Reading(source.path, bad)
    for name in source.names:
        file = source.path / name
        for number, row in enumerate(rows_of(file, restval=""), start=1):
            reading.add_object(row, file, number)
        for row in rows_of(boxes_of(file), restval="") if boxes_of(file).is_file() else ():
            reading.add_group(row)
    if not any(reading.images.values()):
        raise InputError(
            f"{source.path} has none of the images of {', '.join(source.names)}: put them there, "
            "in any folder"
        )
    return reading.content.finished()


def csv_files(root: Path, *patterns: str) -> list[Path]:
    places = [root / folder for folder in FOLDERS]
    return [file for place in places for one in patterns for file in sorted(place.glob(one))]


def boxes_of(file: Path) -> Path:
    """The csv of boxes that belongs to one of masks."""
    return file.with_name(file.name.replace(MASKS, BOXES))


def class_names(root: Path) -> dict[str, str]:
    """LabelName ("/m/...") -> the name of the class; some files have no header."""
    names: dict[str, str] = {}
    for file in csv_files(root, *DESCRIPTIONS):
        for row in rows_of(file, csv.reader):
            if len(row) == 2:
                names.setdefault(*row)
    return names


def box_in(row: dict[str, str], image: dict, prefix: str) -> np.ndarray:
    """The outline of a box that is given as parts of the image's sides."""
    try:
        x = [float(row[f"{prefix}X{end}"]) * image["width"] for end in ("Min", "Max")]
        y = [float(row[f"{prefix}Y{end}"]) * image["height"] for end in ("Min", "Max")]
    except (KeyError, ValueError):
        raise InputError("has a box of no usable numbers") from None
    return polygon(rectangle([x[0], y[0], x[1], y[1]]), image)


class Reading:
    """COCO content while rows are read."""

    def __init__(self, root: Path, bad: BadRecords) -> None:
        self.root, self.content, self.bad = root, Content(bad), bad
        self.names = class_names(root)
        self.images: dict[str, dict | None] = {}  # by ImageID; None: not there, or broken
        self.masks: dict[str, str] = {}  # name -> path
        self.paths: dict[str, str] = {}  # ImageID -> path of the image
        for folder, names in walk(root, DEPTH):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    path = (folder / name).as_posix()
                    self.masks.setdefault(name, path)
                    self.paths.setdefault(stem, path)

    def image_of(self, row: dict[str, str], file: Path) -> dict | None:
        id_ = row.get("ImageID", "")
        if id_ not in self.images:
            self.images[id_] = None
            path = self.paths.get(id_)
            if path is None:
                self.content.counts["images that are not there"] += 1
                return None
            try:
                height, width = upright_size(self.root / path)
                self.images[id_] = self.content.add_image(path, width, height, str(file))
            except InputError as reason:
                self.bad.note(InputError(f"{file}: {id_}: {reason}"), file, f"image {id_}")
        return self.images[id_]

    def add_object(self, row: dict[str, str], file: Path, number: int) -> None:
        image = self.image_of(row, file)
        if image is None:
            return
        label = None
        try:
            label = self.label_of(row)
            self.content.add(image, label, [self.mask_of(row, image)])
        except InputError as error:
            fix, left = "download its mask again or remove the row", self.rest(row, image)
            self.content.add_broken(image, label, error, file, f"row {number}", fix, left)

    def add_group(self, row: dict[str, str]) -> None:
        image = self.images.get(row.get("ImageID", ""))
        if image is not None and row.get("IsGroupOf") == "1":
            try:
                box = box_in(row, image, "")
                self.content.add_box(image, self.label_of(row), box, iscrowd=1)
            except InputError:
                self.content.counts["broken boxes of groups"] += 1

    def label_of(self, row: dict[str, str]) -> str:
        label = row.get("LabelName", "")
        return class_name(self.names.get(label, label))

    def mask_of(self, row: dict[str, str], image: dict) -> rle.Rle:
        name = posixpath.basename(row.get("MaskPath", ""))
        if name not in self.masks:
            raise InputError(f"has the mask {name!r}, which is not there")
        mask = read_numbers(self.root / self.masks[name]) > 0
        size = (image["width"], image["height"])
        if mask.shape != size[::-1]:
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        return rle.encode(mask[None])[0]

    def rest(self, row: dict[str, str], image: dict) -> list[np.ndarray]:
        """The box of an object without a mask."""
        try:
            return [box_in(row, image, "Box")]
        except InputError:
            return []
