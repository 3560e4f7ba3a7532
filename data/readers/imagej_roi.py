"""ImageJ: .roi files of one region each, or a zip of them for each image (RoiSet.zip).

The class is the group of a region; names are those of the regions themselves. Rectangles are boxes.
A zip is read where it is, nothing is unpacked to disk.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from data.errors import BadRecords, InputError
from data.images import upright_size
from data.readers.checks import even_odd, polygon, rectangle
from data.readers.content import Content
from data.readers.image_files import ImageFiles, files_of_images
from data.readers.source import Source, ellipse

NAME, TITLE = "imagej-roi", "ImageJ ROI"
LAYOUT = "x.zip of .roi files, or x.roi, beside x.tif"
OWN_IDS = False

FIX = "save it again in ImageJ or remove it"
MAGIC = b"Iout"
HEADER = struct.Struct(">4shBx4hH18xi8xhh4xii")  # 64 bytes
POLYGON, RECT, OVAL, FREEHAND, TRACED = 0, 1, 2, 7, 8
NO_AREA = (3, 4, 5, 6, 9, 10)  # lines, nothing, angles, points
TEXT, IMAGE, ROTATED_RECT = 1, 4, 5  # subtypes; an ellipse has points, as every freehand region
SUBPIXEL = 128  # this option: the points follow once more, as floats
FIRST_SUBPIXEL = 222  # version
Z, GROUP = 8, 30  # places in the second header: z and t, the group
SEGMENTS = {0: 2, 1: 2, 2: 4, 3: 6, 4: 0}  # of a composite: numbers of move, line, curves, close
WORDS = re.compile(r"^(roi[_ ]?set|rois?)[-_ ]+|[-_ ]*(roi[_ ]?set|rois?)$", re.IGNORECASE)
NUMBERED = re.compile(r"\d+(-\d+)+")  # names that ImageJ gives
ONLY_CLASS = "object"  # of regions without a group


class Roi(NamedTuple):
    """A region: even-odd paths (x, y, x, y, ...), none without area; position, z, t in a stack, or
    1.
    """

    paths: list[np.ndarray]
    is_box: bool
    group: int
    stack: tuple[int, ...]


def find(path: Path) -> dict[str, Source] | None:
    """The files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_roi, suffixes=(".roi", ".zip"))


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes sorted by name."""
    reading = Reading(source, bad)
    for name in source.names:
        file = source.path / name
        if not is_roi(file):
            reading.content.counts["other zip and roi files"] += 1
            continue
        with bad.noting(file, "the file", FIX, where=str(file)):
            image = reading.image_of(PurePosixPath(name))
            for what, data in regions_in(file):
                reading.add(image, data, file, what)
    return reading.content.finished()


def is_roi(path: Path) -> bool:
    """Whether a file is a region, or a zip of nothing else."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [one.filename.lower() for one in entries_of(archive)]
            return bool(names) and all(name.endswith(".roi") for name in names)
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except Exception:  # a broken archive raises nearly everything
        return False


def entries_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in a zip, without those that macOS adds."""
    files = [one for one in archive.infolist() if not one.is_dir()]
    return [one for one in files if not PurePosixPath(one.filename).name.startswith("._")]


def regions_in(file: Path) -> Iterator[tuple[str, bytes]]:
    """The regions of a file with words for them."""
    if file.suffix.lower() != ".zip":
        yield "the region", file.read_bytes()
        return
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in entries_of(archive):
                yield f"region {entry.filename}", archive.read(entry)
    except (RuntimeError, zipfile.BadZipFile, zlib.error) as reason:  # encrypted, or broken
        raise InputError(f"cannot be unpacked ({reason})") from None


class Reading:
    """COCO content while files are read. Several files may be about one image."""

    def __init__(self, source: Source, bad: BadRecords) -> None:
        self.content, self.folder = Content(bad), source.images[0]
        self.files = ImageFiles(self.folder)
        places = (PurePosixPath(file.relative_to(source.path)) for file in source.files)
        self.zips = Counter(one.parent for one in places if one.suffix.lower() == ".zip")
        self.images: dict[str, dict] = {}
        self.stacks: dict[str, tuple[int, ...]] = {}  # where the regions of an image are

    def image_of(self, name: PurePosixPath) -> dict[str, Any]:
        """The image named like the file without words like RoiSet, or like its folder, or the only
        one.
        """
        is_zip, found = name.suffix.lower() == ".zip", None
        for stem, folder in ((name.stem, name.parent), (WORDS.sub("", name.stem), name.parent),
                             (name.parent.name, name.parent.parent)):  # fmt: skip
            found = found or (self.files.find(stem, str(folder), stem) if stem else None)
        is_only = self.zips[name.parent] == 1 if is_zip else NUMBERED.fullmatch(name.stem)
        if found is None and is_only:
            found = self.files.only(str(name.parent))
        if found is None:
            raise InputError(f"has no image of its name (as {name.stem}.png) in {self.folder}")
        if found not in self.images:
            height, width = upright_size(self.folder / found)
            self.images[found] = self.content.add_image(found, width, height, str(name))
        return self.images[found]

    def add(self, image: dict, data: bytes, file: Path, what: str) -> None:
        label = None
        try:
            roi = parse(data)
            label = f"group {roi.group}" if roi.group else ONLY_CLASS
            if not roi.paths:
                self.content.counts["lines, points and texts"] += 1
                return
            paths = [polygon(path, image) for path in roi.paths]
            known = self.stacks.setdefault(image["file_name"], roi.stack)
            if known != roi.stack:
                raise InputError(
                    f"is at position, z and t {roi.stack} of a stack, where others of its image "
                    f"are at {known}; an image has to be of one slice"
                )
            if roi.is_box:
                self.content.add_box(image, label, paths[0].tolist())
            else:
                self.content.add(image, label, even_odd(paths, image))
        except InputError as error:
            left = corners_of(data)
            self.content.add_broken(image, label, error, file, what, FIX, points=left)


def corners_of(data: bytes) -> list[list[int]]:
    if len(data) < HEADER.size:
        return []
    top, left, bottom, right = HEADER.unpack_from(data)[3:7]
    return [[left, top], [right, bottom]]


def parse(data: bytes) -> Roi:
    """A region from the bytes of its file; raises InputError if it is damaged."""
    try:
        magic, version, kind, *sides, count, size, subtype, options, position, second = (
            HEADER.unpack_from(data)
        )
        if magic != MAGIC:
            raise InputError("is no region of ImageJ")
        stack, group = (position, 0, 0), 0
        if second > 0:
            stack = (position, *struct.unpack_from(">2i", data, second + Z))
            group = data[second + GROUP]
        top, left, bottom, right = map(coordinate, sides)
        is_subpixel = bool(options & SUBPIXEL) and version >= FIRST_SUBPIXEL
        box = [left, top, right - left, bottom - top]
        if is_subpixel and kind in (RECT, OVAL) and version > FIRST_SUBPIXEL:
            box = [float(side) for side in struct.unpack_from(">4f", data, 18)]
        x, y, width, height = box
        is_box = subtype == ROTATED_RECT
        if kind in NO_AREA or subtype in (TEXT, IMAGE):
            paths = []
        elif kind == RECT and size > 0:
            paths = composite(np.frombuffer(data, ">f4", size, HEADER.size).tolist())
        elif kind == RECT:
            paths, is_box = [rectangle([x, y, x + width, y + height])], True
        elif kind == OVAL:
            paths = [ellipse(x + width / 2, y + height / 2, width / 2, height / 2)]
        elif kind in (POLYGON, FREEHAND, TRACED):
            count = count or struct.unpack_from(">i", data, 18)[0]  # where it has over 16 bits
            paths = [points(data, max(count, 0), left, top, is_subpixel)]
        else:
            raise InputError(f"is of the unknown kind {kind}")
    except (struct.error, ValueError, IndexError) as reason:
        raise reason if isinstance(reason, InputError) else InputError("is damaged") from None
    stack = tuple(max(1, place) for place in stack)
    return Roi([np.array(path, float) for path in paths], is_box, group, stack)


def coordinate(side: int) -> int:
    """A coordinate of 16 bits; ImageJ reads values from -5000 as negative."""
    return side + (1 << 16) if side < -5000 else side


def points(data: bytes, count: int, left: int, top: int, is_subpixel: bool) -> np.ndarray:
    """The points x, y, x, y, ... of a region, which lie in the file all x first."""
    if is_subpixel:
        xy = np.frombuffer(data, ">f4", 2 * count, HEADER.size + 4 * count)
        return xy.reshape(2, count).T.ravel()
    xy = np.frombuffer(data, ">i2", 2 * count, HEADER.size).astype(float)
    return (xy.reshape(2, count).T + (left, top)).ravel()


def composite(numbers: list[float]) -> list[list[float]]:
    """The paths of a composite: segments of a kind and its points, which are absolute."""
    paths: list[list[float]] = []
    place = 0
    while place < len(numbers):
        kind, place = numbers[place], place + 1
        length = SEGMENTS.get(kind)
        if length is None or (kind != 0 and not paths):
            raise InputError(f"has a segment of the unknown kind {kind}")
        ends, place = numbers[place : place + length], place + length
        if len(ends) < length or not all(map(math.isfinite, ends)):
            raise InputError("has a segment that is not finite or ends early")
        if kind == 0:
            paths.append(ends)
        elif ends:
            paths[-1] += curve([*paths[-1][-2:], *ends])
    return [path for path in paths if len(path) > 4]  # others enclose nothing


def curve(ends: list[float]) -> list[float]:
    """A line, or a curve with control points: the points after the first, x, y, x, y, ..."""
    if len(ends) == 4:
        return ends[2:]
    xy = np.array(ends).reshape(-1, 2)
    length = float(np.hypot(*np.diff(xy, axis=0).T).sum())
    t = np.linspace(0, 1, 2 + int(min(2 * math.sqrt(length), 1000)))[1:, None]
    n = len(xy) - 1
    weights = [math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)]
    return (np.hstack(weights) @ xy).ravel().tolist()
