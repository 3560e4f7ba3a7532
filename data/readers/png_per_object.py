"""One mask file for each object: x/images/x.png with x/masks/*.png (DSB 2018), or images/x.png
with masks/x/*.png. Masks may overlap. All objects are of one class, unless a table names others
(data/readers/class_table.py).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from data import rle
from data.errors import BadRecords, InputError
from data.images import upright_size
from data.readers.class_table import ClassTable, files_in
from data.readers.content import Content
from data.readers.maps import images_by_stem, read_numbers
from data.readers.source import Source, require_size

NAME, TITLE = "png-per-object", "one PNG per object"
LAYOUT = "x/images/x.png and x/masks/*.png (DSB 2018); images/x.png and masks/x/*.png"
OWN_IDS = False

STAGES = {"stage1_train": "train", "stage1_test": "test"}  # as DSB 2018 unpacks
LOOKED_AT = 5  # folders


def find(path: Path) -> dict[str, Source] | None:
    """The folder, or the stages of DSB 2018 in it."""
    found = {}
    for place, split in {"": "all", **STAGES}.items():
        root = path / place
        folders = mask_folders(root)
        if folders:
            files = [root / name / file for name in folders for file in masks_in(root / name)]
            found[split] = Source(root, split, [root], folders, [*files_in(root), *files])
    return found or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; those without a folder of masks were not annotated."""
    root = source.path
    classes, images = ClassTable(root), images_of(root)
    content = Content(bad, classes.names)
    for name in source.names:
        try:
            add_image(content, classes, root, images.get(name), name)
        except InputError as error:
            bad.note(error, root / name, "the masks")
    content.counts["images without a folder of masks"] = len(images.keys() - {*source.names})
    return content.finished()


def mask_folders(root: Path) -> list[str]:
    """The folders of masks, relative to the root; none where it has another layout."""
    if (root / "images").is_dir():
        found = [f"masks/{one.name}" for one in subfolders(root / "masks") if masks_in(one)]
        return found if found and not images_of(root).keys().isdisjoint(found) else []
    folders = [one for one in subfolders(root) if (one / "masks").is_dir()]
    filled = (one for one in folders if masks_in(one / "masks"))
    if not any(is_object_folder(one) for one in itertools.islice(filled, LOOKED_AT)):
        return []
    return [f"{one.name}/masks" for one in folders]


def is_object_folder(folder: Path) -> bool:
    """Whether there is one image, and not one map of its name, as an id image has it."""
    images, masks = (images_by_stem(folder / part, 0) for part in ("images", "masks"))
    return len(images) == 1 and len(masks) > 0 and images.keys() != masks.keys()


def images_of(root: Path) -> dict[str, str | None]:
    """The folder of masks that an image has or would have -> the image; None if it is unclear."""
    if (root / "images").is_dir():
        images = images_by_stem(root / "images", 0)
        return {f"masks/{stem}": f"images/{name}" for stem, name in images.items()}
    found = {}
    for folder in subfolders(root):
        names = [*images_by_stem(folder / "images", 0).values()]
        image = f"{folder.name}/images/{names[0]}" if len(names) == 1 else None
        if names or (folder / "masks").is_dir():
            found[f"{folder.name}/masks"] = image
    return found


def masks_in(folder: Path) -> list[str]:
    return [*images_by_stem(folder, 0).values()]


def subfolders(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.glob("*")) if one.is_dir()]


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
    record = content.add_image(image, size[1], size[0], folder)
    for label, mask in masks:
        content.add(record, label, [mask])
