"""CVAT Segmentation mask 1.1: the folders of VOC, with colours in place of indices.

labelmap.txt has the colour of each class. Those of objects start again in each image; an object's
class is the majority of SegmentationClass under it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.errors import BadRecords, InputError
from data.readers.content import Content
from data.readers.image_files import DEPTH
from data.readers.maps import images_by_stem, read_colours
from data.readers.source import Source, lines_of, require_size, split_of

NAME, TITLE = "cvat-masks", "CVAT segmentation mask 1.1"
LAYOUT = "labelmap.txt, SegmentationClass, SegmentationObject, ImageSets/Segmentation"
OWN_IDS = False

LABELS, CLASSES, OBJECTS = "labelmap.txt", "SegmentationClass", "SegmentationObject"
LISTS = "ImageSets/Segmentation"
BOTH = "trainval"  # a list, used where it is the only one
BACKGROUND, VOID = NO_OBJECT = ("background", "ignored")  # names that VOC reserves
LINE = re.compile(  # name:red,green,blue:parts:actions
    r"(.+):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*:[^:]*:[^:]*"
)


def find(path: Path) -> dict[str, Source] | None:
    """The lists of ImageSets/Segmentation, or all of SegmentationObject where there is none."""
    if not (path / LABELS).is_file() or not (path / CLASSES).is_dir():
        return None
    if not (path / OBJECTS).is_dir():
        raise InputError(
            f"{path} has {CLASSES} but not {OBJECTS}, so its objects cannot be told apart: "
            'export it again as "Segmentation mask 1.1"'
        )
    lists = {file.stem: file for file in sorted((path / LISTS).glob("*.txt"))}
    if len(lists) > 1:
        lists.pop(BOTH, None)
    listed = {split_of(name): lines_of(file, "export it again") for name, file in lists.items()}
    if not listed:
        masks = [
            file.relative_to(path / OBJECTS)
            for file in sorted(path.glob(f"{OBJECTS}/**/[!.]*.png"))
        ]
        listed = {"all": [file.with_suffix("").as_posix() for file in masks]}
    images = [path / name for name in ("JPEGImages", "images") if (path / name).is_dir()]
    found = {}
    for split, lines in listed.items():
        names = list(dict.fromkeys(line.strip('"') for line in lines))  # with blanks: quoted
        files = [path / part / f"{name}.png" for name in names for part in (CLASSES, OBJECTS)]
        found[split] = Source(path, split, images or [path], names, [path / LABELS, *files])
    return found


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; classes in the order of labelmap.txt.

    Listed images without masks were not annotated: they are counted and left out.
    """
    labels = labels_of(source.path / LABELS)
    content = Content(bad, [name for name in labels.values() if name not in NO_OBJECT])
    folder = source.images[0]
    files = images_by_stem(folder, 0 if folder == source.path else DEPTH)
    for name in source.names:
        with bad.noting(source.path, f"image {name}"):
            if os.path.isfile(source.path / OBJECTS / f"{name}.png"):  # of any length
                add_image(content, source, name, files.get(name, f"{name}.jpg"), labels)
            else:
                content.counts["listed images without masks"] += 1
    return content.finished()


def labels_of(path: Path) -> dict[int, str]:
    """Colour (R + 256 G + 65536 B) -> class, in the order of the file."""
    labels: dict[int, str] = {}
    for line in lines_of(path, "export it again"):
        if line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        channels = [int(each) for each in found.groups()[1:]] if found else [256]
        if max(channels) > 255:
            raise InputError(f"{path}: {line!r} must be name:red,green,blue:: with 0 to 255")
        colour = channels[0] | channels[1] << 8 | channels[2] << 16
        if colour in labels:
            raise InputError(
                f"{path}: {labels[colour]} and {found[1]} have the same colour: give each class "
                "a colour of its own and export again"
            )
        labels[colour] = found[1]
    return {0: BACKGROUND} | labels


def add_image(
    content: Content, source: Source, name: str, image_name: str, labels: dict[int, str]
) -> None:
    class_file, object_file = (source.path / part / f"{name}.png" for part in (CLASSES, OBJECTS))
    classes, objects = read_colours(class_file), read_colours(object_file)
    require_size(class_file, classes.shape, f"{OBJECTS}/{name}.png", objects.shape)
    colours, class_places = rle.distinct(classes)
    for colour in colours.tolist():
        if colour not in labels:
            rgb = ",".join(str(colour >> shift & 255) for shift in (0, 8, 16))
            raise InputError(
                f"{class_file} has the colour {rgb}, which is not in {LABELS}: export it again, or "
                "add its class there"
            )
    names = [labels[colour] for colour in colours.tolist()]
    numbers, places = rle.distinct(objects)
    pairs = places * len(names) + class_places
    votes = np.bincount(pairs.ravel(), minlength=len(numbers) * len(names))
    votes = votes.reshape(len(numbers), len(names))[numbers > 0]
    votes[:, [name in NO_OBJECT for name in names]] = 0
    numbers = numbers[numbers > 0]
    if not votes.any(1).all():
        raise InputError(
            f"{object_file}: {(~votes.any(1)).sum()} of {len(numbers)} objects lie on background "
            f"only in {CLASSES}: paint their classes there, or remove them here"
        )
    void = np.isin(class_places, [i for i, name in enumerate(names) if name == VOID])
    image = content.add_map(image_name, objects.shape, object_file, source.images[0], void)
    for mask, place in zip(rle.from_index_map(objects, numbers), votes.argmax(1), strict=True):
        content.add(image, names[place], [mask])
