"""SpaceNet: a csv with a row for each building, whose outline is text (WKT) in pixels.

The class is building. Images are those whose names end with the ImageId.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import MALFORMED, BadRecords, InputError
from data.images import upright_size
from data.readers.checks import numbers, shortened, with_holes
from data.readers.content import Content
from data.readers.image_files import DEPTH, files_of_images
from data.readers.maps import images_by_stem
from data.readers.source import Source, head_of, rows_of

NAME, TITLE = "spacenet", "SpaceNet csv"
LAYOUT = "summaryData/x.csv with PolygonWKT_Pix, and images"
OWN_IDS = False

FIX = "correct or remove the row"
CLASS = "building"
IMAGE, OUTLINE = "ImageId", "PolygonWKT_Pix"
POLYGONS = re.compile(r"\s*(MULTI)?POLYGON\s*Z?\s*\((.*)\)\s*", re.DOTALL | re.IGNORECASE)
RING = re.compile(r"(\(\s*)?\(([^()]*)\)")  # one that opens two brackets is the first of its part
PAIR = re.compile(r"(-?\d+\.?\d*) (-?\d+\.?\d*)")  # x and y, for what is left of a broken outline


def find(path: Path) -> dict[str, Source] | None:
    """The csv files in a folder, else those in the folders below it, by the splits these name."""
    return files_of_images(path, is_spacenet, suffixes=(".csv",))


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images that have rows as COCO content."""
    content, folder = Content(bad, [CLASS]), source.images[0]
    files = by_id(folder)
    images: dict[str, dict | None] = {}  # by ImageId; None where it cannot be used
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file"):
            for number, row in enumerate(rows_of(file), start=2):
                id_ = row.get(IMAGE) or ""
                if id_ not in images:
                    images[id_] = add_image(content, id_, files, folder, file)
                image = images[id_]
                if image is not None:
                    add_building(content, image, row.get(OUTLINE) or "", file, f"row {number}")
    return content.finished()


def is_spacenet(path: Path) -> bool:
    header = head_of(path).split("\n")[0]
    return path.suffix.lower() == ".csv" and IMAGE in header and OUTLINE in header


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
    fix = "add it, as colours (RGB) alone, or remove its rows"
    with content.bad.noting(file, f"image {id_}", fix, where=str(file)):
        if len(found) != 1:
            raise InputError(
                f"has the image {shortened(id_)}, of which {folder} has {len(found)} files"
            )
        height, width = upright_size(folder / found[0])
        return content.add_image(found[0], width, height, id_)
    return None


def add_building(content: Content, image: dict, text: str, file: Path, what: str) -> None:
    """The outline in a row; an image without buildings has a row with an empty one."""
    if text.strip().upper().endswith("EMPTY"):
        return
    try:
        outlines = [with_holes(outer, holes, image) for outer, *holes in parts_of(text)]
        content.add(image, CLASS, outlines)
    except MALFORMED as error:
        left = [list(map(float, pair)) for pair in PAIR.findall(text)]
        content.add_broken(image, CLASS, error, file, what, FIX, points=left)


def parts_of(text: str) -> list[list[list[float]]]:
    """The parts of WKT polygons as rings (x, y, x, y, ...): the outer one, then its holes."""
    body = POLYGONS.fullmatch(text)
    parts: list[list[list[float]]] = []
    for first, inside in RING.findall(text[text.find("(") :]) if body else ():
        pairs = (point.split()[:2] for point in inside.split(","))
        ring = [number for pair in pairs for number in numbers(list(map(float, pair)), 2)]
        if first or not parts:
            parts.append([])
        parts[-1].append(ring)
    if not parts:
        raise InputError(f"has {shortened(text)} where a POLYGON is needed")
    return parts
