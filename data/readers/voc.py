"""Pascal VOC: two palette PNGs for each image, read as indices.

255 in either is void, neither object nor background. The class of an object is the majority of
SegmentationClass over its pixels. Sets of other tools, as labelme2voc, have their own class names
and need no lists.
"""

from __future__ import annotations

import os
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.errors import BadRecords, FileError, InputError
from data.images import opened, upright_size
from data.readers.content import Content
from data.readers.maps import images_by_stem
from data.readers.source import Source, folders_in, lines_of, names_of, require_size

NAME, TITLE = "voc", "Pascal VOC"
LAYOUT = "VOCdevkit/VOC2012 (JPEGImages, SegmentationClass, SegmentationObject, ImageSets)"
CLASS_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
VOID = 255

IMAGES, CLASSES, OBJECTS = "JPEGImages", "SegmentationClass", "SegmentationObject"
LISTS = "ImageSets/Segmentation"
FOLDERS = (IMAGES, CLASSES, OBJECTS, LISTS)
BOTH = "trainval"  # a list, used where it is the only one
NAME_FILES = ("classes.txt", "labels.txt", "class_names.txt")
NO_CLASS = ("__ignore__", "_background_", "background")  # of 255 and 0, which some lists start with
COLOURS = "labelmap.txt"  # an annotation tool's: its maps have colours for indices


def find(path: Path) -> dict[str, Source] | None:
    """The splits of the VOC folder at or below `path`, one for each list of names."""
    folder = find_root(path) if path.is_dir() else None
    if folder is None:
        return None
    lists = sorted(file.stem for file in (folder / LISTS).glob("[!.]*.txt"))
    if len(lists) > 1 and BOTH in lists:
        lists.remove(BOTH)
    found = {}
    for split in lists or [BOTH]:
        names = list_of(folder, split) if lists else [*images_by_stem(folder / OBJECTS, 0)]
        images = images_by_stem(folder / IMAGES, 0)
        files = [folder / IMAGES / images[name] for name in names if name in images]
        files += [folder / part / f"{name}.png" for part in (CLASSES, OBJECTS) for name in names]
        files += [folder / name for name in NAME_FILES]
        key = "all" if split == BOTH else split
        found[key] = Source(folder, split, [folder / IMAGES], names, files)
    return found


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The split as COCO content, classes from classes.txt or labels.txt if there, else VOC's 20.

    File names are relative to JPEGImages.
    """
    own = [source.path / name for name in NAME_FILES if (source.path / name).is_file()]
    names = lines_of(own[0], "write one class name per line") if own else CLASS_NAMES
    names = [*dropwhile(NO_CLASS.__contains__, names)]
    content, images = Content(bad, names), images_by_stem(source.images[0], 0)
    for name in source.names:
        with bad.noting(source.path, f"image {name}"):
            add_image(content, source, name, names, images.get(name, f"{name}.jpg"))
    return content.finished()


def find_root(root: Path) -> Path | None:
    """The VOC folder at or below `root`, preferably of 2012; None if there is none.

    Raises:
        InputError: if only a part of one is there.
    """
    years = [place for inner in ("", "VOCdevkit") for place in folders_in(root / inner)
             if place.name.startswith("VOC20")]  # fmt: skip
    missing = {
        place: [folder for folder in FOLDERS if not (place / folder).is_dir()]
        for place in (root, *years)
        if not (place / COLOURS).is_file()
    }
    if not missing:
        return None
    folder = min(missing, key=lambda place: (len(missing[place]), place.name != "VOC2012"))
    if len(missing[folder]) >= len(FOLDERS) - 1 and folder.name != "VOC2012":
        return None  # one folder called JPEGImages is no VOC yet
    if missing[folder] not in ([], [LISTS]):
        raise InputError(
            f"{folder} is not a whole VOC folder, it lacks {', '.join(missing[folder])}: "
            "unpack its archive there again, or add them"
        )
    return folder


def list_of(folder: Path, split: str) -> list[str]:
    """The names in ImageSets/Segmentation/<split>.txt."""
    advice = "list one image name per line there"
    return names_of(folder / LISTS / f"{split}.txt", advice, folder / CLASSES / "*.png")


def add_image(
    content: Content, source: Source, name: str, class_names: list[str], image_name: str
) -> None:
    folder = source.path
    paths = [folder / part / f"{name}.png" for part in (CLASSES, OBJECTS)]
    image_path = folder / IMAGES / image_name
    for path in (image_path, *paths):
        if not os.path.isfile(path):  # a name of any length
            raise InputError(
                f"{folder / LISTS / source.split}.txt lists {name} but {path} is missing: add the "
                "file or drop the name from the list"
            )
    classes, indices = (read_indices(path) for path in paths)  # [H,W]
    size = upright_size(image_path)
    for path, drawn in zip(paths, (classes, indices), strict=True):
        require_size(path, drawn.shape, image_name, size)
    pairs = indices.astype(np.int32) * 256 + classes
    counts = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)
    counts = counts[1:VOID, :VOID]  # [object 1..254, class 0..254]: no void in either
    numbers = np.flatnonzero(counts.sum(1)) + 1
    votes = counts[numbers - 1, 1:]
    void = (classes == VOID) | (indices == VOID)
    image = content.add_map(image_name, size, image_path, void=void)
    masks = rle.from_index_map(np.where(void, 0, indices), numbers)
    for number, vote, mask in zip(numbers, votes, masks, strict=True):
        label = int(vote.argmax())
        if not vote.any():
            reason = (
                f"{paths[1]}: object {number} lies on background only in "
                f"SegmentationClass/{name}.png: paint its class there, or remove it here"
            )
        elif label >= len(class_names):
            reason = (
                f"{paths[0]} uses class {label + 1} but only {len(class_names)} classes have "
                f"names: write all names, one per line, into {folder / NAME_FILES[0]}"
            )
        else:
            content.add(image, class_names[label], [mask])
            continue
        content.add_broken(image, None, FileError(reason), folder, f"image {name}", "", [mask])


def read_indices(path: Path) -> np.ndarray:
    """A palette (or grey) PNG as indices, uint8 [H,W]."""
    with opened(path, "save it again") as file:
        mode, indices = file.mode, np.array(file)
    if mode not in ("P", "L"):
        raise InputError(
            f"{path} is an image of mode {mode}: save it as a palette PNG whose values are the "
            "class or object numbers"
        )
    return indices
