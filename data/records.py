"""Checks of the images, classes and annotations of COCO content.

File names must be relative and without "..", so that only the folder of the user is read; links in
it are followed.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import rle
from data.errors import BadRecord, BadRecords, InputError, counted, printable
from data.images import MOST_PIXELS
from data.packed import ImageRecord

LISTS = {"images": "image", "categories": "category", "annotations": "annotation"}
LONGEST_NAME = 1000  # characters of a path or class name
OUTSIDE = re.compile(r"\0|(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:")  # on any system
MOST_PLACES = 10_000  # kept of each kind that is left out
LARGEST_AREA = 1e18  # of an annotation; more is a mistake


class Category(NamedTuple):
    """A class: its index in the network, its id in the file, its name."""

    index: int
    id: int
    name: str


# Kinds of annotations. A brush mask is what annotation tools export for a brush: iscrowd 1,
# uncompressed RLE, "attributes". Broken: the known region of an object that cannot be used.
OBJECT, CROWD, BRUSH, BROKEN = range(4)
UNKNOWN = -1  # label of a broken object without a valid class


class Row(NamedTuple):
    """An annotation: position of its image, polygons or RLE counts, area in the file or 0."""

    position: int
    label: int
    kind: int
    outline: bytes | list
    area: float


class Dropped:
    """Annotations that are left out or changed without being errors: counts and first places."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.places: list[tuple[str, str, str]] = []  # kind, file name of the image, record

    def __getitem__(self, kind: str) -> int:
        return self._counts[kind]

    def note(self, kind: str, image: str, record: str, number: int = 1) -> None:
        self._counts[kind] += number
        if self._counts[kind] <= MOST_PLACES:
            self.places.append((kind, image, record))


def require_lists(content: Any, source: str | Path) -> None:
    """Checks that the content has the three lists, raises InputError."""
    for key in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(
                f"{source} is not a COCO file, its {key!r} is not a list of records: "
                "give a json with the lists images, categories and annotations"
            )


def left_out(content: dict) -> list[BadRecord]:
    """What a conversion to this format could not use, as noted in the file."""
    listed = content.get("left_out", ())
    return [BadRecord(*(one[key] for key in BadRecord._fields)) for one in listed]


def notes(content: dict) -> Iterator[str]:
    """Notes on the content, and on what a conversion left out without being an error."""
    for key in ("notes", "counts"):
        found = content.get(key)
        for one in found if isinstance(found, list) else []:
            yield printable(one if isinstance(one, str) else f"{one[0]} left out: {one[1]}")


def categories(content: dict, source: str | Path, bad: BadRecords) -> list[Category]:
    """The classes in the order of their ids."""

    def check(record: dict) -> tuple[int, str]:
        name = record.get("name", record["id"])
        text = str(name) if isinstance(name, (str, int)) else ""
        if not 0 < len(text) <= LONGEST_NAME or any(ord(character) < 32 for character in text):
            raise InputError(f"has the name {name!r}: it must be a short text of one line")
        return record["id"], text

    named = sorted(checked(content, "categories", check, source, bad))
    if not named:
        raise InputError(
            f"{source} has no categories: annotate at least one object, or list the categories "
            "with id and name in COCO json"
        )
    return [Category(index, id_, name) for index, (id_, name) in enumerate(named)]


def images(content: dict, source: str | Path, bad: BadRecords) -> list[tuple[ImageRecord, bytes]]:
    """The images, each with the counts of its void region (empty where there is none)."""

    def check(record: dict) -> tuple[ImageRecord, bytes]:
        width, height = integer(record, "width"), integer(record, "height")
        if width < 1 or height < 1 or width * height > MOST_PIXELS:
            raise InputError(
                f"is {width} x {height} pixels: correct its size, {MOST_PIXELS} pixels are the most"
            )
        void = b""
        if record.get("void") is not None:
            try:
                void = rle.from_annotation(record["void"], height, width)["counts"]
            except InputError as reason:
                raise InputError(
                    f"has a void region that cannot be used, {reason}: give it an RLE or remove it"
                ) from None
        return ImageRecord(record["id"], file_name(record), width, height), void

    found = list(checked(content, "images", check, source, bad))
    if not found:
        raise InputError(f"{source} lists no images: give a file with at least one")
    return found


def annotations(
    content: dict,
    records: Sequence[ImageRecord],
    classes: Sequence[Category],
    source: str | Path,
    bad: BadRecords,
    dropped: Dropped,
    boxes_as_masks: bool = False,
) -> Iterator[tuple[dict, Row]]:
    """The objects that cover a pixel, in the order of the file: the record and what it means.

    Ids may repeat or be missing. `dropped` counts "objects" that cover no pixel, "parts" of fewer
    than three points, and "boxes": objects without a mask, whose region is ignored. With
    `boxes_as_masks` boxes that are no crowds are objects, counted as "filled".
    """
    position_of = {image.id: position for position, image in enumerate(records)}
    listed = (image.get("id") for image in content["images"] if isinstance(image, dict))
    left_out = {id_ for id_ in listed if isinstance(id_, int)} - position_of.keys()
    index_of = {category.id: category.index for category in classes}

    def check(record: dict, position: int) -> Row:
        label = lookup(record, "category_id", index_of, "categories")
        crowd = record.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise InputError(f"has iscrowd {crowd!r}: it must be 0 or 1")
        image, segmentation = records[position], record.get("segmentation")
        brush = False
        try:
            if isinstance(segmentation, dict):
                outline = rle.from_annotation(segmentation, image.height, image.width)["counts"]
                brush = "attributes" in record and isinstance(segmentation["counts"], (list, array))
            else:
                outline, stray = rle.polygons_of(segmentation, image.height, image.width)
                if stray:
                    dropped.note("parts", image.file_name, what, stray)
        except InputError as reason:
            raise InputError(
                f"of image {image.id} ({image.file_name}) cannot be used, {reason}: "
                "give it polygons or an RLE, or remove it"
            ) from None
        kind = OBJECT if not crowd else BRUSH if brush else CROWD
        return Row(position, label, kind, outline, area(record))

    def remains(record: dict, position: int) -> Row:
        """The region of a broken object, its mask or box as far as they can be used."""
        image, category = records[position], record.get("category_id")
        label = index_of.get(category, UNKNOWN) if isinstance(category, int) else UNKNOWN
        outline = record.get("segmentation"), record.get("bbox")
        region = rle.region_of(*outline, image.height, image.width)
        return Row(position, label, BROKEN, region, 0.0)

    seen: set[int] = set()
    for number, record in enumerate(content["annotations"], start=1):
        what, position = f"annotation number {number} of the list", None
        try:
            require_record(record, "annotations")
            if type(id_ := record.get("id")) is int and id_ not in seen:
                what = f"annotation {id_}"
                seen.add(id_)
            if isinstance(of := record.get("image_id"), int) and of in left_out:
                raise InputError(f"is of image {of}, which is left out")
            position = lookup(record, "image_id", position_of, "images")
            if record.get("broken") is True:  # a reader of another format noted it
                row = remains(record, position)
            elif record.get("segmentation") or not (row := remains(record, position)).outline:
                row = check(record, position)
            else:
                lookup(record, "category_id", index_of, "categories")
                fills = boxes_as_masks and not record.get("iscrowd")
                dropped.note("filled" if fills else "boxes", records[position].file_name, what)
                if fills:
                    row = check(record | {"segmentation": box_of(record) or row.outline}, position)
        except InputError as reason:
            note = InputError(f"{source}: {what} {reason}")
            bad.note(note, source, f"number {number} of annotations")
            if position is None:
                continue
            row = remains(record, position)
        image = records[row.position]
        if not rle.is_empty(row.outline, image.height, image.width):
            yield record, row
        elif row.kind != BROKEN:
            dropped.note("objects", image.file_name, what)


def brush_objects(labels: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which brush masks are objects, bool [N]: those of classes without other masks."""
    others = np.unique(labels[(kinds != BRUSH) & (kinds != BROKEN)])
    return (kinds == BRUSH) & ~np.isin(labels, others)


def brushes_left(number: int) -> str:
    """A note on the brush masks that stay crowds."""
    return (
        f"{counted(number, 'brush mask')} marked iscrowd by an annotation tool left as crowds, as "
        "their classes have other objects; --crowd-as-instances makes them objects"
    )


def box_of(record: dict) -> list:
    """The outlines of rotated or several boxes, which other readers keep in "corners"."""
    corners = record.get("corners")
    known = isinstance(corners, list) and len(corners) % 8 == 0
    return [corners[start : start + 8] for start in range(0, len(corners), 8)] if known else []


def area(record: dict) -> float:
    value = record.get("area")
    return float(value) if type(value) in (int, float) and 0 < value < LARGEST_AREA else 0.0


def checked(
    content: dict, key: str, check: Callable[[dict], Any], source: str | Path, bad: BadRecords
) -> Iterator[Any]:
    """The result of `check` for each record of a list; bad records go to `bad`.

    Of several records with one id the first is used. Errors of `check` are the rest of a sentence
    that starts with "FILE: image 7".
    """
    seen: set[int] = set()
    for number, record in enumerate(content[key], start=1):
        what = f"{LISTS[key]} number {number} of the list"
        try:
            require_record(record, key)
            id_ = integer(record, "id")
            what = f"{LISTS[key]} {id_}"
            found = check(record)
            if id_ in seen:
                raise InputError("has an id that is used twice: number them apart")
        except InputError as reason:
            bad.note(InputError(f"{source}: {what} {reason}"), source, f"number {number} of {key}")
            continue
        seen.add(id_)
        yield found


def require_record(record: Any, key: str) -> None:
    if not isinstance(record, dict):
        raise InputError(f"is not a record: write an object with an id into {key!r}")


def integer(record: dict, key: str) -> int:
    value = record.get(key)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise InputError(f"has {key} {value!r}: it must be a whole number of at most 64 bits")
    return value


def lookup(record: dict, key: str, known: dict[int, int], listed: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or value not in known:
        raise InputError(
            f"has {key} {value!r}, which is not among the {listed}: add it to {listed!r} or remove "
            "the annotation"
        )
    return known[value]


def file_name(record: dict) -> str:
    """A relative path that stays in its folder."""
    name, reason = record.get("file_name"), ""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        reason = f"has no file_name of 1 to {LONGEST_NAME} characters"
    elif OUTSIDE.search(name):
        reason = f"has the file_name {name!r}, which leads out of the image folder"
    if reason:
        raise InputError(f"{reason}: name its file relative to the folder of --images")
    return name
