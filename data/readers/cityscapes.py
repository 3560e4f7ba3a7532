"""Cityscapes: *_instanceIds.png with 16 bits, a class times 1000 plus an instance from 0.

An instance class below 1000 is a group, read as a crowd. Ids 0 to 6 (ego vehicle, out of the region
of interest, unlabelled, ...) are void.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.errors import BadRecords, InputError
from data.readers.content import Content
from data.readers.maps import images_by_stem, read_numbers
from data.readers.source import Source, split_of

NAME, TITLE = "cityscapes", "Cityscapes"
LAYOUT = "gtFine/train/CITY/x_gtFine_instanceIds.png, leftImg8bit/train/CITY/x_leftImg8bit.png"

FIRST_ID = 24
NAMES = dict(
    enumerate(
        "person rider car truck bus caravan trailer train motorcycle bicycle".split(), FIRST_ID
    )
)
LAST_VOID = 6
GROUPS = 1000  # from here on, values have an instance
TRUTHS, END = ("gtFine", "gtCoarse"), "_instanceIds.png"
ENDS = tuple(f"_{truth}{END}" for truth in TRUTHS)
IMAGES = "leftImg8bit"


def find(path: Path) -> dict[str, Source] | None:
    """The splits of gtFine, else of gtCoarse; or the maps in a folder and its cities."""
    truth = next((path / name for name in TRUTHS if (path / name).is_dir()), None)
    if truth is None:
        source = source_of(path, path)
        return {"all": source} if source else None
    splits = {one.name: source_of(one, path / IMAGES / one.name) for one in truth.iterdir()}
    found = {split_of(name): source for name, source in splits.items() if source}
    if not found:
        raise InputError(
            f"{truth} holds no SPLIT/CITY/x_{truth.name}{END}: unpack the archive of {truth.name} "
            "again"
        )
    return found


def source_of(maps: Path, images: Path) -> Source | None:
    files = sorted(file for pattern in ("*", "*/*") for file in maps.glob(pattern + END))
    files = [file for file in files if file.name.endswith(ENDS) and file.name[0] != "."]
    names = [file.relative_to(maps).as_posix() for file in files]
    return Source(maps, "all", [images], names, files) if names else None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The maps as COCO content, with Cityscapes' ids of its ten classes of instances."""
    content = Content(bad)
    images = images_by_stem(source.images[0])
    for name in source.names:
        stem = next(name.removesuffix(end) for end in ENDS if name.endswith(end))
        image = images.get(f"{stem}_{IMAGES}", f"{stem}_{IMAGES}.png")
        with bad.noting(source.path / name, "the map"):
            add_image(content, source.path / name, source.images[0], image)
    return content.finished(NAMES)


def add_image(content: Content, file: Path, images: Path, name: str) -> None:
    values = read_numbers(file)
    numbers, places = rle.distinct(values)
    numbers = numbers.astype(np.int64)  # of 8 bits in an image without instances
    classes = np.where(numbers < GROUPS, numbers, numbers // GROUPS)
    countable = np.isin(classes, list(NAMES))
    unknown = numbers[~countable & (numbers >= FIRST_ID)]
    if len(unknown):
        raise InputError(
            f"{file} holds the number {unknown[0]}, which is none of Cityscapes' ids: make it "
            "again with cityscapesscripts, or save the set as COCO json"
        )
    image = content.add_map(name, values.shape, file, images, (numbers <= LAST_VOID)[places])
    masks = rle.from_index_map(values, numbers[countable])
    for number, id_, mask in zip(numbers[countable], classes[countable], masks, strict=True):
        content.add(image, int(id_), [mask], iscrowd=int(number < GROUPS))
