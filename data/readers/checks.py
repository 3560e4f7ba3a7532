"""Checked values, points and masks from annotation files.

Their errors are the middle of a sentence, "FILE: shape 3 has no points: FIX".
"""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data import records, rle
from data.errors import FileError, InputError
from data.images import TYPES

Outline = np.ndarray | rle.Rle  # a checked polygon (x, y, x, y, ... in pixels), or a mask


def is_side(value: Any) -> bool:
    return type(value) is int and value > 0


def bounds(points: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Points x, y, x, y, ... -> the corners (left, top), (right, bottom) of the box around them."""
    x, y = points[::2], points[1::2]
    return (min(x), min(y)), (max(x), max(y))


def rectangle(points: Sequence[float]) -> list[float]:
    """The outline of the box around points x, y, x, y, ..."""
    (left, top), (right, bottom) = bounds(points)
    return [left, top, right, top, right, bottom, left, bottom]


def box(x: float, y: float, width: float, height: float, image: dict) -> np.ndarray:
    """The checked outline of an upright box from its left top corner and its size."""
    return polygon(rectangle([x, y, x + width, y + height]), image)


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
