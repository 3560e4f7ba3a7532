"""Instance maps as examples of Hugging Face read them: an RGB PNG for each image.

Red is the class, green counts the objects of an image, blue is 0; red and green are 0 on
background. A class without a count is an area without objects. Names of classes are in
id2label.json, if it is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import rle
from data.errors import BadRecords, InputError
from data.readers.checks import class_name, load_json
from data.readers.content import Content
from data.readers.id_images import split_in
from data.readers.maps import images_by_stem, read_colours
from data.readers.source import Source

NAME, TITLE = "huggingface", "Hugging Face instance maps"
LAYOUT = "images/x.jpg and annotations/x.png (red: class, green: object)"
OWN_IDS = False

IMAGES, NAMES = "images", "id2label.json"
MAPS = ("annotations", "annotations_instance")  # the second in the ADE20K challenge of 2017
LOOKED_AT = 5  # maps


def find(path: Path) -> dict[str, Source] | None:
    """The maps whose images are in `images`; their subfolders may be splits."""
    folder = next((path / name for name in MAPS if (path / name).is_dir()), None)
    if folder is None or not (path / IMAGES).is_dir():
        return None
    maps, images = images_by_stem(folder), images_by_stem(path / IMAGES)
    paired = [folder / name for stem, name in maps.items() if stem in images]
    if not fits(paired[:LOOKED_AT]):
        return None
    splits = defaultdict(list)
    for name in sorted(name for name in maps.values() if name.lower().endswith(".png")):
        splits[split_in(name)].append(name)
    found = {}
    for split, names in splits.items():
        files = [path / NAMES, path / IMAGES, *(folder / name for name in names)]
        found[split] = Source(folder, split, [path / IMAGES], names, files)
    return found


def fits(files: Sequence[Path]) -> bool:
    """Whether all files are RGB without blue, and one of them has both red and green."""
    found = []
    for file in files:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                if image.mode != "RGB":
                    return False
                found.append([high for _, high in image.getextrema()])
        except Exception:  # the reader of images raises nearly everything
            return False
    return all(blue == 0 for *_, blue in found) and any(red and green for red, green, _ in found)


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The maps as COCO content, classes in the order of their numbers."""
    labels = names_in(source.path.parent / NAMES)
    content, images = Content(bad, labels.values()), images_by_stem(source.images[0])
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the map"):
            image = images.get(name.rpartition(".")[0])
            if image is None:
                raise InputError(f"{file} has no image of its name: add the image or remove it")
            add_image(content, file, source.images[0], image, labels)
    return content.finished()


def names_in(file: Path) -> dict[int, str]:
    """Class number -> name, without 0, which is background; empty without a file."""
    listed = load_json(file) if file.is_file() else {}
    try:
        pairs = [(int(number), class_name(name)) for number, name in listed.items()]
    except (AttributeError, ValueError):
        raise InputError(f'{file} is no table of classes: write it as {{"1": "crab"}}') from None
    return dict(sorted(pair for pair in pairs if pair[0]))


def add_image(
    content: Content, file: Path, images: Path, name: str, labels: dict[int, str]
) -> None:
    colours = read_colours(file)
    numbers = rle.distinct(colours)[0]
    objects = numbers[numbers >> 8 > 0]
    if numbers[-1] >> 16 or (objects & 255 == 0).any():
        raise InputError(
            f"{file} has colours with blue, or green without red: red has to be the class and "
            "green the number of the object"
        )
    image = content.add_map(name, colours.shape, file, images)
    for number, mask in zip(objects.tolist(), rle.from_index_map(colours, objects), strict=True):
        label = number & 255
        content.add(image, labels.get(label, f"class {label:03}"), [mask])
    content.counts["areas without objects"] += int(np.count_nonzero(numbers)) - len(objects)
