"""Id images: one map for each image, 0 for background and a number for each object.

They are those of cellpose (x_masks, x_cp_masks beside the image), StarDist (images, masks) and
others: grey, with a palette, or RGB-coded, see data/readers/maps.py. What has one number is one
object, in several parts also. All objects are of one class, unless a table beside the folder of
maps names others (data/readers/class_table.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from data import rle
from data.errors import BadRecords, InputError
from data.images import upright_size
from data.readers.class_table import ClassTable, files_in
from data.readers.content import Content
from data.readers.image_files import DEPTH
from data.readers.maps import images_by_stem, read_numbers
from data.readers.source import SPLITS, Source, require_size

NAME, TITLE = "id-images", "id images"
LAYOUT = "images/x.png and masks/x.png (a number for each object); x.png beside x_masks.png"
OWN_IDS = False

IMAGES = ("images", "image", "imgs", "img", "pngimages", "jpegimages")
MAPS = ("masks", "mask", "labels", "label", "instances", "pedmasks")
ENDS = re.compile(r"_(cp_masks|masks?|labels?|instances?)$")  # of the names of maps


def find(path: Path) -> dict[str, Source] | None:
    """The maps of a folder of images and one of masks, else those beside their images."""
    if not path.is_dir():
        return None
    lonely = ""
    for images, maps in folders(path):
        pairs, _ = pairs_in(images, maps)
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
        InputError: if most maps are masks of a class: one number for several areas.
    """
    classes, parted = ClassTable(source.path.parent), 0
    content = Content(bad, classes.names)
    images = source.images[0]
    pairs, unused = pairs_in(images, source.path)
    for name in source.names:
        file = source.path / name
        try:
            if pairs.get(name) is None:
                raise InputError(f"{file} has no image of its name: add the image or remove it")
            parted += add_image(content, classes, file, images, pairs[name])
        except InputError as error:
            bad.note(error, file, "the map")
    if 2 * parted > len(content.images):
        raise InputError(
            f"{source.path}: {parted} of {len(content.images)} maps have one number for areas that "
            "do not touch, as masks of a class have: give each object a number of its own"
        )
    splits = {split_in(name) for name in source.names}
    content.counts["images without a map"] = sum(split_in(name) in splits for name in unused)
    return content.finished()


def folders(path: Path) -> Iterator[tuple[Path, Path]]:
    """The folders that may hold the images and the maps."""
    below = {each.name.lower(): each for each in sorted(path.iterdir()) if each.is_dir()}
    images = [below[name] for name in IMAGES if name in below]
    for maps in (below[name] for name in MAPS if name in below):
        yield from ((each, maps) for each in images)
    yield path, path


def pairs_in(images: Path, maps: Path) -> tuple[dict[str, str | None], list[str]]:
    """Map -> its image, None where there is none; and the images without a map.

    All are relative to their folders.
    """
    beside = images == maps
    depth = 0 if beside else DEPTH
    found = images_by_stem(maps, depth)
    bases = {stem: ENDS.sub("", stem) for stem in found}
    if beside:
        bases = {stem: base for stem, base in bases.items() if base != stem}
    if not bases:
        return {}, []
    files = found if beside else images_by_stem(images, depth)
    pairs: dict[str, str | None] = {}
    for stem, base in bases.items():
        stems = [base, f"{base}_img"] if beside else [stem, base, f"{base}_img"]
        pairs[found[stem]] = next((files[each] for each in stems if each in files), None)
    used = {*pairs.values(), *(pairs if beside else ())}
    return pairs, [name for name in files.values() if name not in used]


def split_in(name: str) -> str:
    """The split that the first folder of a path names, else "all"."""
    return SPLITS.get(name.split("/")[0].lower(), "all")


def add_image(content: Content, classes: ClassTable, file: Path, images: Path, name: str) -> bool:
    """Adds the objects of a map; whether it has one number for areas that do not touch."""
    indices = read_numbers(file)
    require_size(file, indices.shape, name, upright_size(images / name))
    numbers, _ = rle.distinct(indices)
    numbers = numbers[numbers > 0]
    image = content.add_image(name, *indices.shape[::-1], str(file))
    for number, mask in zip(numbers.tolist(), rle.from_index_map(indices, numbers)):
        content.add(image, classes.of(file, number), [mask])
    if len(numbers) != 1:
        return False
    sizes = np.sort(np.bincount(ndimage.label(indices)[0].ravel())[1:])
    return len(sizes) > 1 and bool(sizes[-2] > sizes.sum() / 10)  # not a stray pixel
