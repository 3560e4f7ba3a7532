"""Id images: one label map per image, 0 for background and a number for each object.

As of cellpose (x_masks, x_cp_masks beside the image), StarDist (images, masks) and others: grey,
palette, or RGB-coded, see data/readers/maps.py. There is one class, unless a table beside the
folder of maps lists others (data/readers/class_table.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from data import rle
from data.errors import BadRecords, InputError
from data.readers.class_table import ClassTable, files_in
from data.readers.content import Content
from data.readers.image_files import DEPTH, canonical
from data.readers.maps import folders_of, images_by_stem, read_numbers
from data.readers.source import SPLITS, Source

NAME, TITLE = "id-images", "id images"
LAYOUT = "images/x.png and masks/x.png (a number for each object); x.png beside x_masks.png"
OWN_IDS = False

KIND = r"(cp_masks|masks_cp|masks?|labels?|instances?|gt)"  # of a map, in its name
ENDS = re.compile(rf"[-_]{KIND}$", re.IGNORECASE)
WORDS = re.compile(rf"^({KIND}|img|image)[-_]|[-_]({KIND}|img|image)$", re.IGNORECASE)
OTHERS = re.compile(r"_(cp_)?(flows|outlines|output|dP|cellprob)$")  # that cellpose writes too
SPECK, MOST_SPECKS = 2, 50  # pixels of a number that is no object; numbers of a map
PARTED = 0.1  # of an object's pixels are in its second area: it is not one stray pixel
TOUCHING = np.ones((3, 3))  # also at a corner


def find(path: Path) -> dict[str, Source] | None:
    """The maps of a folder of images and one of masks, else those beside their images."""
    if not path.is_dir():
        return None
    lonely = ""
    for images, maps in (*folders_of(path), (path, path)):
        pairs, _ = pair_files(images, maps)
        if any(pairs.values()):
            splits = defaultdict(list)
            for name in pairs:
                splits[split_in(name)].append(name)
            if len(splits) > 1 and "all" in splits:
                splits["train"] += splits.pop("all")
            return {
                split: Source(
                    maps,
                    split,
                    [images],
                    names,
                    [*files_in(maps.parent), *(maps / name for name in names)],
                )
                for split, names in splits.items()
            }
        if pairs and not lonely:
            lonely = f"{len(pairs)} maps, {maps / next(iter(pairs))} for one,"
    pickles = sum(1 for _ in path.glob("*_seg.npy"))
    if pickles:
        raise InputError(
            f"{path} holds {pickles} _seg.npy files of cellpose, which are not opened as they may "
            "run programs: save the masks as PNG or TIFF in cellpose"
        )
    if lonely:
        raise InputError(f"{path} holds {lonely} but no image of that name: add the images")
    return None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The maps as COCO content; images without one were not annotated and are left out.

    Raises:
        InputError: if most numbers stand for several areas, as in masks of classes.
    """
    classes, parted = ClassTable(source.path.parent), 0
    content = Content(bad, classes.names)
    images = source.images[0]
    pairs, unused = pair_files(images, source.path)
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the map"):
            if pairs.get(name) is None:
                raise InputError(f"{file} has no image of its name: add the image or remove it")
            parted += add_image(content, classes, file, images, pairs[name])
    listed = files_in(source.path.parent)[1].is_file()  # a table says that they are objects
    if 2 * parted > len(content.objects) and not listed:
        raise InputError(
            f"{source.path}: {parted} of {len(content.objects)} numbers in its maps stand for "
            "areas that do not touch, as in masks of classes: give each object a number of its own"
        )
    splits = {split_in(name) for name in source.names}
    content.counts["images without a map"] = sum(split_in(name) in splits for name in unused)
    return content.finished()


def pair_files(images: Path, maps: Path) -> tuple[dict[str, str | None], list[str]]:
    """Map -> its image or None, and the images without a map, relative to their folders."""
    beside = images == maps
    found = images_by_stem(maps, 0 if beside else DEPTH)
    bases = {stem: ENDS.sub("", stem) for stem in found}
    if beside:
        bases = {stem: base for stem, base in bases.items() if base != stem}
    if not bases:
        return {}, []
    files = found if beside else images_by_stem(images, 0 if images == maps.parent else DEPTH)
    if beside:
        others = (stem for stem in files if stem not in bases and not OTHERS.search(stem))
        files = {stem: files[stem] for stem in others}
    similar = {without_mask_words(stem): name for stem, name in files.items()}
    pairs = {
        found[stem]: files.get(stem) or files.get(base) or similar.get(without_mask_words(base))
        for stem, base in bases.items()
    }
    used = {*pairs.values()}
    return pairs, [name for name in files.values() if name not in used]


def without_mask_words(stem: str) -> str:
    """A path without the words that distinguish images and maps."""
    folder, _, name = stem.rpartition("/")
    return f"{canonical(folder)}/{canonical(WORDS.sub('', name))}"


def split_in(name: str) -> str:
    """The split that the first folder of a path names, else "all"."""
    return SPLITS.get(name.split("/")[0].lower(), "all")


def add_image(content: Content, classes: ClassTable, file: Path, images: Path, name: str) -> int:
    """Adds the objects of a map; returns how many of them are areas that do not touch."""
    indices = read_numbers(file)
    numbers, places = rle.distinct(indices)
    specks = np.bincount(places.ravel()) <= SPECK
    if len(numbers) > MOST_SPECKS and specks.mean() > 0.5:
        raise InputError(
            f"{file} has {len(numbers)} numbers, most of them on {SPECK} pixels or fewer, as "
            "photos and smoothed or scaled masks have: save a map with one number for each object"
        )
    numbers = numbers[numbers > 0]
    image = content.add_map(name, indices.shape, file, images)
    masks = rle.from_index_map(indices, numbers)
    for number, mask in zip(numbers.tolist(), masks):
        content.add(image, classes.of(file, number), [mask])
    return sum(map(is_disconnected, masks))


def is_disconnected(mask: rle.Rle) -> bool:
    areas, _ = ndimage.label(rle.decode_inside(mask)[0], TOUCHING)
    sizes = np.sort(np.bincount(areas.ravel())[1:])
    return len(sizes) > 1 and bool(sizes[-2] > PARTED * sizes.sum())
