"""One mask file for each object: x/images/x.png with x/masks/*.png (DSB 2018), or images/x.png
with masks/x/*.png. Masks may overlap. All objects are of one class, unless a table names others
(data/readers/class_table.py). For other names of the folders see data/readers/maps.py.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from pathlib import Path
from typing import Any

from data import rle
from data.errors import BadRecords, InputError
from data.images import SUFFIXES, upright_size
from data.readers.class_table import ClassTable, files_in
from data.readers.content import Content
from data.readers.id_images import without_mask_words
from data.readers.image_files import DEPTH, walk
from data.readers.maps import folders_of, images_by_stem, read_numbers
from data.readers.source import SPLITS, Source, folders_in, require_size

NAME, TITLE = "png-per-object", "one PNG per object"
LAYOUT = "x/images/x.png and x/masks/*.png (DSB 2018); images/x.png and masks/x/*.png"
OWN_IDS = False

STAGES = {"stage1_train": "train", "stage1_test": "test"}  # as DSB 2018 unpacks
LOOKED_AT = 5  # folders


def find(path: Path) -> dict[str, Source] | None:
    """The folder, or the stages of DSB 2018 in it."""
    found = {}
    for place, stage in {"": "all", **STAGES}.items():
        root, splits = path / place, defaultdict(list)
        for folder in folders_with_images(root):
            splits[split_in(folder, stage)].append(folder)
        for split, names in splits.items():
            files = [root / name / file for name in names for file in masks_in(root / name)]
            found[split] = Source(root, split, [root], names, [*files_in(root), *files])
    return found or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; those without a folder of masks were not annotated."""
    root = source.path
    classes, folders = ClassTable(root), folders_with_images(root)
    content = Content(bad, classes.names)
    for name in source.names:
        with bad.noting(root / name, "the masks"):
            add_image(content, classes, root, folders.get(name), name)
    splits, used = {split_in(name) for name in source.names}, {*folders.values()}
    content.counts["images without a folder of masks"] = sum(
        name not in used and split_in(name) in splits and posixpath.dirname(name) not in folders
        for name in images_by_stem(root).values()
    )
    return content.finished()


def split_in(name: str, stage: str = "all") -> str:
    """The split that a path names, as masks/train/x and images/train/x.png do."""
    _, *inner = name.lower().split("/")
    return SPLITS.get(inner[0], stage) if inner else stage


def folders_with_images(root: Path) -> dict[str, str | None]:
    """Folders of masks -> their images (None if unclear), relative to the root."""
    for images, masks in folders_of(root):
        found = folders_by_name(images, masks) if images != root else {}
        if any(found.values()):
            return found
    found, fits = {}, []
    for folder in folders_in(root):
        pairs = [*folders_of(folder)]
        if not pairs:
            continue
        images, masks = next((pair for pair in pairs if images_by_stem(pair[0], 0)), pairs[0])
        stems, files = images_by_stem(images, 0), images_by_stem(masks, 0)
        place = masks.relative_to(root).as_posix()
        names = [(images.relative_to(root) / name).as_posix() for name in stems.values()]
        found[place] = names[0] if len(names) == 1 else None
        if files:  # one map of the name of the image is an id image
            fits.append(
                len(stems) == 1
                and {*map(without_mask_words, files)} != {*map(without_mask_words, stems)}
            )
    return found if any(fits[:LOOKED_AT]) else {}


def folders_by_name(images: Path, masks: Path) -> dict[str, str | None]:
    """The folders below `masks` that hold masks, each with the image of its name."""
    folders = {folder: any(name.lower().endswith(SUFFIXES) for name in names)
               for folder, names in walk(masks, DEPTH - 1) if folder.parts}  # fmt: skip
    if not any(folders.values()):
        return {}
    files = images_by_stem(images)
    files |= {name: name for name in files.values()}
    found: dict[str, str | None] = {}
    for folder, is_filled in folders.items():
        image, place = files.get(str(folder)), f"{masks.name}/{folder}"
        if image is not None or is_filled:
            found[place] = None if image is None else f"{images.name}/{image}"
    return found


def masks_in(folder: Path) -> list[str]:
    return [*images_by_stem(folder, 0).values()]


def add_image(
    content: Content, classes: ClassTable, root: Path, image: str | None, folder: str
) -> None:
    if image is None:
        raise InputError(f"{root / folder} needs one image of its own: add it, or remove the masks")
    size = upright_size(root / image)
    masks = []
    for name in masks_in(root / folder):
        file = root / folder / name
        values = read_numbers(file)
        require_size(file, values.shape, image, size)
        mask = values > 0
        if (values[mask] != values.max()).any():
            raise InputError(
                f"{file} holds several numbers where a mask holds 0 and one other: save a file "
                "for each object"
            )
        masks.append((classes.of(file, 1), rle.encode(mask[None])[0]))
    record = content.add_map(image, size, root / folder)
    for label, mask in masks:
        content.add(record, label, [mask])
