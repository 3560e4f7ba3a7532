"""Reading a COCO json: every record is checked, and packed while the file is parsed.

A file of COCO's size is half a gigabyte, and as Python objects four times that. So each record is
slimmed down as soon as its closing brace is read: unknown keys go, lists of numbers become arrays.

What a stranger's file may not do: name pictures outside the picture folder, or make anything as
large as it says it is. Paths must be relative and without "..": the one folder that is read is the
one the user named. Links inside it are followed when reading, as many data sets consist of them;
nothing is ever written there.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data import rle
from data.errors import BadRecord, BadRecords, InputError, printable
from data.images import MOST_PIXELS
from data.packed import ImageRecord

LISTS = ("images", "categories", "annotations")
_KEPT = {
    *LISTS, "left_out", "id", "name", "file_name", "width", "height", "void",
    "image_id", "category_id", "iscrowd", "segmentation", "size", "counts",
    *BadRecord._fields,
}  # fmt: skip
_LONGEST_NAME = 1000  # characters of a path or of a class name
_UP = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")  # of any system: a set made on one is used on others


class Category(NamedTuple):
    """A class: its index in the network, its id in the file, its name."""

    index: int
    id: int
    name: str


class Row(NamedTuple):
    """An annotation: the position of its picture, class index, crowd or not, and its outline."""

    place: int
    label: int
    crowd: bool
    outline: Any


def load(annotations: str | Path | dict, source: str | Path) -> dict[str, Any]:
    """The content of a json file, or a dict, in which the three lists are lists.

    Raises InputError where it is no COCO file.
    """
    content = annotations if isinstance(annotations, dict) else _load_json(Path(annotations))
    for key in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(_no_coco(source, key))
    return content


def left_out(content: dict) -> Iterator[BadRecord]:
    """What a conversion to this format had to leave out (data/readers/voc.py notes it)."""
    found = content.get("left_out")
    for one in found if isinstance(found, list) else []:
        texts = [one.get(key) for key in BadRecord._fields[:3]] if isinstance(one, dict) else [None]
        if all(isinstance(text, str) for text in texts):
            yield BadRecord(*map(printable, texts))


def categories(records: list, source: str | Path, bad: BadRecords) -> list[Category]:
    """The classes in the order of their ids."""

    def check(record: dict, number: int) -> tuple[int, str]:
        id_ = whole(record, "id", source, "a category")
        return id_, _class_name(record.get("name", id_), id_, source)

    named = sorted(_each(records, "categories", check, source, bad, unique="category"))
    if not named:
        raise InputError(f"{source} has no categories: list at least one with id and name")
    return [Category(index, id_, name) for index, (id_, name) in enumerate(named)]


def images(
    records: list, source: str | Path, bad: BadRecords
) -> tuple[list[ImageRecord], list[bytes]]:
    """The pictures, and of each the counts of its void region (empty where there is none)."""

    def check(record: dict, number: int) -> tuple[ImageRecord, bytes]:
        image = _image(record, source)
        return image, _void(record, image, source)

    found = list(_each(records, "images", check, source, bad, unique="image"))
    if not found:
        raise InputError(f"{source} lists no images: give a file with at least one")
    return [image for image, _ in found], [void for _, void in found]


def annotations(
    records: list,
    pictures: list[ImageRecord],
    classes: list[Category],
    source: str | Path,
    bad: BadRecords,
) -> Iterator[Row]:
    """The objects, in the order of the file, each checked when it is asked for."""
    position_of = {image.id: position for position, image in enumerate(pictures)}
    index_of = {category.id: category.index for category in classes}

    def check(record: dict, number: int) -> Row:
        id_ = whole(record, "id", source, f"annotation number {number} of the list")
        place = _lookup(record, "image_id", position_of, id_, source)
        label = _lookup(record, "category_id", index_of, id_, source)
        crowd = record.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise InputError(f"{source}: annotation {id_} has iscrowd {crowd!r}: it must be 0 or 1")
        return Row(place, label, bool(crowd), _outline(record, pictures[place], source))

    return _each(records, "annotations", check, source, bad, unique="annotation")


def inside(name: object) -> str:
    """A relative path that stays in its folder, as it is; InputError with the reason for others."""
    if not isinstance(name, str) or not name:
        raise InputError("has no file_name")
    if len(name) > _LONGEST_NAME:
        raise InputError(f"has a file_name of {len(name)} characters")
    if "\0" in name or _UP.search(name) or _ABSOLUTE.match(name):
        raise InputError(f"has the file_name {name!r}, which leads out of the picture folder")
    return name


def whole(record: dict, key: str, source: str | Path, what: str) -> int:
    """A value that is a whole number of 64 bits; InputError for any other."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{source}: {what} has {key} {value!r}: it must be a whole number")
    if not -(1 << 63) <= value < 1 << 63:
        raise InputError(f"{source}: {what} has a {key} of more than 64 bits: number it anew")
    return value


def _each(
    records: list,
    key: str,
    check: Callable[[dict, int], Any],
    source: str | Path,
    bad: BadRecords,
    unique: str,
) -> Iterator[Any]:
    """What `check` makes of each record and its number; the bad ones go to `bad`.

    Of several with one id the first counts.
    """
    seen: set[int] = set()
    for number, record in enumerate(records, start=1):
        try:
            if not isinstance(record, dict):
                raise InputError(_no_coco(source, key, f" (number {number} of them is none)"))
            found = check(record, number)
            if record["id"] in seen:
                raise InputError(
                    f"{source}: the {unique} id {record['id']} is used twice: number them apart"
                )
        except InputError as error:
            bad.take(error, source, f"number {number} of {key}")
            continue
        seen.add(record["id"])
        yield found


def _image(record: dict, source: str | Path) -> ImageRecord:
    id_ = whole(record, "id", source, "an image")
    width, height = (whole(record, key, source, f"image {id_}") for key in ("width", "height"))
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        mend = "correct its size" if width < 1 or height < 1 else f"{MOST_PIXELS} are the most"
        raise InputError(f"{source}: image {id_} is {width} x {height} pixels: {mend}")
    try:
        return ImageRecord(id_, inside(record.get("file_name")), width, height)
    except InputError as reason:
        raise InputError(
            f"{source}: image {id_} {reason}: name its file relative to the folder of --images"
        ) from None


def _void(record: dict, image: ImageRecord, source: str | Path) -> bytes:
    if record.get("void") is None:
        return b""
    try:
        return rle.from_annotation(record["void"], image.height, image.width)["counts"]
    except InputError as reason:
        raise InputError(
            f"{source}: the void region of image {image.id} cannot be used, {reason}: "
            "give it an RLE or remove it"
        ) from None


def _class_name(name: object, id_: int, source: str | Path) -> str:
    text = str(name) if isinstance(name, (str, int)) else ""
    if not 0 < len(text) <= _LONGEST_NAME or any(ord(character) < 32 for character in text):
        raise InputError(
            f"{source}: category {id_} has the name {name!r}: it must be a short text of one line"
        )
    return text


def _lookup(record: dict, key: str, known: dict[int, int], id_: int, source: str | Path) -> int:
    value = record.get(key)
    if not isinstance(value, int) or value not in known:
        listed = "images" if key == "image_id" else "categories"
        raise InputError(
            f"{source}: annotation {id_} has {key} {value!r}, which is not among the {listed}: "
            f"add it to {listed!r} or remove the annotation"
        )
    return known[value]


def _outline(record: dict, image: ImageRecord, source: str | Path) -> bytes | list:
    """The counts of an RLE, or the polygons; InputError with file and annotation id."""
    segmentation = record.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return rle.from_annotation(segmentation, image.height, image.width)["counts"]
        return rle.polygons_of(segmentation, image.height, image.width)
    except InputError as reason:
        raise InputError(
            f"{source}: annotation {record['id']} of image {image.id} ({image.file_name}) "
            f"cannot be used, {reason}: give it polygons or an RLE, or remove it"
        ) from None


def _load_json(path: Path) -> Any:
    try:
        if os.path.exists(path) and not os.path.isfile(
            path
        ):  # a pipe or a device would be read for ever
            raise InputError(f"{path} is no file: give the path of a COCO json file")
        raw = path.read_bytes()
        text = raw.decode(json.detect_encoding(raw))
        del raw  # before the records take its place
        return json.loads(text, object_pairs_hook=_slim)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give the path of a COCO json file") from None
    except OSError as reason:
        raise InputError(f"{path} cannot be read ({reason.strerror}): check the path") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path} is no json file ({reason}): export it again") from None


def _slim(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object without what is never read, numbers packed."""
    record = {key: value for key, value in pairs if key in _KEPT}
    if "segmentation" in record:
        record["segmentation"] = _packed_polygons(record["segmentation"])
    elif "counts" in record:
        record["counts"] = _packed(record["counts"], "i")
    return record


def _packed_polygons(segmentation: Any) -> Any:
    if not isinstance(segmentation, list):
        return segmentation
    return [_packed(part, "f") for part in segmentation]


def _packed(numbers: Any, kind: str) -> Any:
    """A list of numbers as an array; anything else as it is, to be complained about by name."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers


def _no_coco(source: str | Path, key: str, which: str = "") -> str:
    return (
        f"{source} is no COCO file, its {key!r} is not a list of records{which}: "
        "give a json with the lists images, categories and annotations"
    )


def missing(folder: Path, names: list[str]) -> set[str]:
    """Names without a file. Each folder is listed once instead of asking for every file."""
    listings: dict[str, set[str]] = {}
    found = set()
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listings:
            place = folder / parent
            # Unlike pathlib's, this question has an answer for names of any length.
            listings[parent] = set(os.listdir(place)) if os.path.isdir(place) else set()
        if base not in listings[parent]:
            found.add(name)
    return found
