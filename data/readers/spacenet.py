"""SpaceNet: a csv with a row for each building, whose outline is text (WKT) in pixels.

The class is building. Images are those whose names end with the ImageId.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import BadRecords, InputError
from data.readers.content import Content, numbers, remains, sentence, short, size_of, with_holes
from data.readers.image_files import DEPTH, files_of_images
from data.readers.maps import images_by_stem
from data.readers.source import Source, head_of, require_file

NAME, TITLE = "spacenet", "SpaceNet csv"
LAYOUT = "summaryData/x.csv with PolygonWKT_Pix, and images"
OWN_IDS = False

FIX = "correct or remove the row"
CLASS = "building"
IMAGE, OUTLINE = "ImageId", "PolygonWKT_Pix"
LONGEST_CELL = 1 << 26  # characters
POLYGONS = re.compile(r"\s*(MULTI)?POLYGON\s*Z?\s*\((.*)\)\s*", re.DOTALL | re.IGNORECASE)
RING = re.compile(r"(\(\s*)?\(([^()]*)\)")  # one that opens two brackets is the first of its part
PAIR = re.compile(r"(-?\d+\.?\d*) (-?\d+\.?\d*)")  # x and y, for what is left of a broken outline


def find(path: Path) -> dict[str, Source] | None:
    """The csv files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_spacenet, suffixes=(".csv",)) or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images that have rows as COCO content."""
    content, folder = Content(bad, [CLASS]), source.images[0]
    files = by_id(folder)
    images: dict[str, dict | None] = {}  # by ImageId; None where it cannot be used
    for name in source.names:
        file = source.path / name
        try:
            for number, row in rows_of(file):
                id_ = row.get(IMAGE) or ""
                if id_ not in images:
                    images[id_] = add_image(content, id_, files, folder, file)
                image = images[id_]
                if image is not None:
                    add_building(content, image, row.get(OUTLINE) or "", file, f"row {number}")
        except InputError as error:
            bad.note(error, file, "the file")
    return content.finished()


def is_spacenet(path: Path) -> bool:
    header = head_of(path).split("\n")[0]
    return path.suffix.lower() == ".csv" and IMAGE in header and OUTLINE in header


def rows_of(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    require_file(file)
    csv.field_size_limit(LONGEST_CELL)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            yield from enumerate(csv.DictReader(lines, skipinitialspace=True), start=2)
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise InputError(f"{file} cannot be read as csv ({reason}): save it again") from None


def by_id(folder: Path) -> dict[str, list[str]]:
    """Images by what may be their ImageId: their name, without words for what they show."""
    found: dict[str, list[str]] = defaultdict(list)
    for stem, name in images_by_stem(folder, DEPTH).items():
        words = PurePosixPath(stem).name.split("_")
        for place in range(len(words)):
            found["_".join(words[place:])].append(name)
    return found


def add_image(
    content: Content, id_: str, images: dict[str, list[str]], folder: Path, file: Path
) -> dict[str, Any] | None:
    """The image of an ImageId; None if there is none of it that can be used."""
    found = images.get(id_, [])
    found = [name for name in found if "RGB" in PurePosixPath(name).name] or found
    try:
        if len(found) != 1:
            raise InputError(
                f"has the image {short(id_)}, of which {folder} has {len(found)} files"
            )
        height, width = size_of(folder / found[0])
        return content.add_image(found[0], width, height, id_)
    except InputError as reason:
        error = sentence(str(file), reason, "add it, as colours (RGB) alone, or remove its rows")
        content.bad.note(error, file, f"image {id_}")
        return None


def add_building(content: Content, image: dict, text: str, file: Path, what: str) -> None:
    """The outline in a row; an image without buildings has a row with an empty one."""
    if text.strip().upper().endswith("EMPTY"):
        return
    try:
        outlines = [with_holes(outer, holes, image) for outer, *holes in parts_of(text)]
        content.add(image, CLASS, outlines)
    except InputError as reason:
        content.bad.note(InputError(f"{file}: {what} {reason}: {FIX}"), file, what)
        points = [list(map(float, pair)) for pair in PAIR.findall(text)]
        content.add(image, CLASS, remains(points, image), broken=True)


def parts_of(text: str) -> list[list[list[float]]]:
    """The parts of WKT polygons as rings (x, y, x, y, ...): the outer one, then its holes."""
    body = POLYGONS.fullmatch(text)
    parts: list[list[list[float]]] = []
    for first, inside in RING.findall(text[text.find("(") :]) if body else ():
        ring = [number for point in inside.split(",") for number in pair(point)]
        if first or not parts:
            parts.append([])
        parts[-1].append(ring)
    if not parts:
        raise InputError(f"has {short(text)} where a POLYGON is needed")
    return parts


def pair(text: str) -> list[float]:
    """The x and y of "x y" or "x y z"."""
    try:
        return numbers([float(number) for number in text.split()[:2]], 2)
    except ValueError:
        raise InputError(f"has {short(text)} where a point is needed") from None
