"""COCO content while a reader collects it, and the checks of values that come from files.

The errors of checks are the middle of a sentence, "FILE: shape 3 has no points: FIX".
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data import records, rle
from data.errors import BadRecords, FileError, InputError
from data.images import MOST_PIXELS, TYPES, upright_size
from data.readers.source import require_size

Outline = np.ndarray | rle.Rle  # a checked polygon (x, y, x, y, ... in pixels), or a mask


class Content:
    """Images, objects and classes as a reader finds them.

    classes: listed names, followed by others in use. counts: what is left out without being an
    error.
    """

    def __init__(self, bad: BadRecords, classes: Iterable[str] = ()) -> None:
        self.bad, self.classes = bad, list(dict.fromkeys(classes))
        self.counts: Counter[str] = Counter()
        self.images: list[dict[str, Any]] = []
        self.objects: list[tuple[str | int | None, dict[str, Any]]] = []
        self._origins: dict[str, str] = {}

    def add_class(self, name: str) -> None:
        if name not in self.classes:
            self.classes.append(name)

    def add_image(self, name: str, width: Any, height: Any, origin: str) -> dict[str, Any]:
        """A new image; raises InputError if its name or size cannot be used, or it exists."""
        records.file_name({"file_name": name})
        if width is None or height is None:
            raise InputError(f"has no size for its image {name}, which is not there")
        if not (is_side(width) and is_side(height) and width * height <= MOST_PIXELS):
            raise InputError(f"has an image of {width!r} x {height!r} pixels, which is no size")
        if name in self._origins:
            raise InputError(f"is about the image {name}, which {self._origins[name]} is about too")
        self._origins[name] = origin
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(image)
        return image

    def remove_image(self, name: str) -> None:
        """Removes an image and its objects."""
        (gone,) = (one for one in self.images if one["file_name"] == name)
        self.images.remove(gone)
        self.objects = [one for one in self.objects if one[1]["image_id"] != gone["id"]]

    def add_map(
        self,
        name: str,
        shape: Sequence[int],
        file: Path,
        folder: Path | None = None,
        void: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """A new image whose objects are in the map (h, w) of a file, or in a folder of masks.

        folder: that of the images; if the image is there, it must have the size of the map.
        void: bool [h,w], what is neither object nor background.
        """
        if folder is not None and os.path.isfile(folder / name):  # also of names that are too long
            require_size(file, shape, name, upright_size(folder / name))
        try:
            image = self.add_image(name, shape[1], shape[0], str(file))
        except InputError as reason:
            raise FileError(f"{file} {reason}: rename or remove it") from None
        if void is not None and void.any():
            image["void"] = rle.to_json(rle.encode(void[None])[0])
        return image

    def add(
        self, image: dict, label: str | int | None, outlines: Sequence[Outline], **more: Any
    ) -> None:
        """An object, the union of its outlines.

        `broken=True`: the region of a broken object, which is ignored; its label may be None.
        """
        record = {"id": len(self.objects) + 1, "image_id": image["id"], "iscrowd": 0}
        self.objects.append(
            (label, record | {"segmentation": segmentation_of(outlines, image)} | more)
        )

    def add_broken(
        self,
        image: dict,
        label: str | int | None,
        error: Exception,
        file: Path,
        record: str,
        fix: str,
        outlines: Sequence[Outline] = (),
        points: Any = None,
    ) -> None:
        """Notes an object that cannot be used; what is left of it will be ignored.

        That is its outlines, else the box around those of its `points`, in lists or records of any
        depth, that are in the image.
        """
        self.bad.note_error(error, file, record, fix)
        self.add(image, label, outlines or box_of_points(points, image), broken=True)

    def add_box(
        self, image: dict, label: str | int | None, corners: Sequence[float], iscrowd: int = 0
    ) -> None:
        """A box without a mask, from two corners x, y, x, y or four; several boxes have four each.

        It is recorded as the upright box around all corners; `corners` is what it covers.
        """
        (left, top), (right, bottom) = bounds(corners)
        box = [left, top, right - left, bottom - top]
        four = list(corners) if len(corners) % 8 == 0 else rectangle(corners)
        self.add(image, label, [], bbox=box, corners=four, iscrowd=iscrowd)

    def finished(self, own: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The content; category ids count from 1, or are those of `own` (id -> name)."""
        if own is None:
            found = {label for label, _ in self.objects if label is not None}
            own = dict(enumerate([*self.classes, *sorted(found - set(self.classes))], start=1))
            ids = {name: number for number, name in own.items()}
        else:
            ids = {id_: id_ for id_ in own}
        return {
            "images": self.images,
            "annotations": [
                record if label is None else record | {"category_id": ids[label]}
                for label, record in self.objects
            ],
            "categories": [{"id": number, "name": name} for number, name in own.items()],
            "counts": {what: number for what, number in self.counts.items() if number},
        }


def is_side(value: Any) -> bool:
    return type(value) is int and value > 0


def segmentation_of(outlines: Sequence[Outline], image: dict) -> list | rle.Rle:
    """The union of outlines as `segmentation`: polygons, or an RLE if one of them is a mask."""
    polygons = [one for one in outlines if isinstance(one, np.ndarray)]
    if len(polygons) == len(outlines):
        return [one.tolist() for one in polygons]
    masks = [one for one in outlines if not isinstance(one, np.ndarray)]
    if polygons:
        masks.append(rle.from_polygons(polygons, image["height"], image["width"]))
    return rle.to_json(rle.union(masks))


def bounds(points: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Points x, y, x, y, ... -> the corners (left, top), (right, bottom) of the box around them."""
    x, y = points[::2], points[1::2]
    return (min(x), min(y)), (max(x), max(y))


def rectangle(points: Sequence[float]) -> list[float]:
    """The outline of the box around points x, y, x, y, ..."""
    (left, top), (right, bottom) = bounds(points)
    return [left, top, right, top, right, bottom, left, bottom]


def polygon(points: Sequence[float], image: dict) -> np.ndarray:
    """A checked polygon from its points x, y, x, y, ... in pixels."""
    try:
        return rle.polygons_of([points], image["height"], image["width"])[0][0]
    except InputError as reason:
        raise InputError(f"cannot be used, {reason}") from None


def with_holes(outer: Sequence[float], holes: Sequence[Sequence[float]], image: dict) -> Outline:
    """A polygon from its points x, y, x, y, ... in pixels; a mask if it has holes."""
    drawn, size = polygon(outer, image), (image["height"], image["width"])
    if not holes:
        return drawn
    region = rle.from_polygons([polygon(hole, image) for hole in holes], *size)
    return rle.subtract([rle.from_polygons([drawn], *size)], region)[0]


def even_odd(parts: list[np.ndarray], image: dict) -> list[Outline]:
    """The outlines of checked polygons; one mask if they overlap, which makes holes."""
    if len(parts) < 2:
        return list(parts)
    masks = [rle.from_polygons([part], image["height"], image["width"]) for part in parts]
    odd = rle.even_odd(masks)
    return list(parts) if rle.area([odd]).sum() == rle.area(masks).sum() else [odd]


def mask_at(mask: np.ndarray, x: float, y: float, image: dict) -> rle.Rle:
    """A mask [h,w] whose top left pixel is at (x, y), rounded; what lies outside is cut off."""
    if max(abs(x), abs(y)) > rle.FARTHEST * (image["height"] + image["width"]):
        raise InputError("has a mask far outside the image")
    return rle.encode_at(mask, round(x), round(y), image["height"], image["width"])


def box_of_points(points: Any, image: dict) -> list[np.ndarray]:
    """The box around the points that are in the image, if there are at least two."""
    size = image["width"], image["height"]
    inside = [(x, y) for x, y in points_in(points) if 0 <= x <= size[0] and 0 <= y <= size[1]]
    return [polygon(rectangle(np.ravel(inside)), image)] if len(inside) > 1 else []


def points_in(value: Any) -> Iterator[Sequence[float]]:
    """The points in lists of any depth: [x, y, ...], or records of x and y."""
    if isinstance(value, dict):
        value = [value.get("x"), value.get("y")] if "x" in value else list(value.values())
    if isinstance(value, list):
        try:
            yield numbers(value[:2], 2)
        except InputError:
            for each in value:
                yield from points_in(each)


def nested(record: Any, *keys: str) -> Any:
    """A value inside records, None where it is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def load_json(path: Path) -> Any:
    """The content of a json file; raises InputError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as reason:
        raise FileError(f"{path} cannot be read ({reason.strerror}): export it again") from None
    except (ValueError, RecursionError) as reason:
        raise FileError(f"{path} is not a json file ({reason}): export it again") from None


def class_name(value: Any) -> str:
    """The name of a class; blanks around it do not count."""
    name = str(value).strip() if isinstance(value, str) or type(value) is int else ""
    if not 0 < len(name) <= records.LONGEST_NAME or any(ord(letter) < 32 for letter in name):
        raise InputError(
            f"has the class {shortened(value)} where a short text of one line is needed"
        )
    return name


def numbers(values: Any, count: int | None = None) -> list[float]:
    """Finite numbers, `count` of them if given."""
    try:
        found = array("d", values).tolist() if isinstance(values, list) else []
    except (TypeError, OverflowError):
        found = []
    wrong_count = count is not None and len(found) != count
    if not found or wrong_count or not all(map(math.isfinite, found)):
        raise InputError(f"has {shortened(values)} where {count or 'finite'} numbers are needed")
    return found


def flatten(points: Any) -> list[float]:
    """Points [[x, y], ...] -> x, y, x, y, ..."""
    if not isinstance(points, list) or not points:
        raise InputError(f"has {shortened(points)} where a list of points [x, y] is needed")
    return [number for point in points for number in numbers(point, 2)]


def base64_bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text)
    except (TypeError, ValueError):
        raise InputError(f"has {shortened(text)} where base64 text is needed") from None


def png_mask(png: bytes) -> np.ndarray:
    """The object in a PNG, bool [h,w]: its alpha if it has four channels, else what is not 0."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as file:
            if "A" in file.mode or "transparency" in file.info:
                file = file.convert("RGBA").getchannel("A")
            values = np.asarray(file) > 0
    except UnidentifiedImageError:
        raise InputError("has a mask that cannot be read as a PNG (it is none)") from None
    except Exception as reason:  # its reader raises nearly everything
        raise InputError(f"has a mask that cannot be read as a PNG ({reason})") from None
    return values if values.ndim == 2 else values.any(2)


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as displayed."""
    try:
        return upright_size(path)
    except InputError as error:
        raise FileError(error) from None


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file in memory, as displayed; all of it can be read."""
    try:
        with Image.open(io.BytesIO(data), formats=TYPES) as file:
            file.load()
            turned = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return (file.width, file.height) if turned else (file.height, file.width)
    except UnidentifiedImageError:
        raise InputError("has an image of no known type") from None
    except Exception as reason:
        raise InputError(f"has an image that cannot be read ({reason})") from None


def unzipped(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error as reason:
        raise InputError(f"has a mask that cannot be unpacked ({reason})") from None


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
