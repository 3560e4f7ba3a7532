"""Image files whose pixel values or colours are object ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import InputError
from data.images import SUFFIXES, opened, pages_of, read_16bit
from data.readers.image_files import DEPTH, walk
from data.readers.source import folders_in

IMAGES = ("images", "image", "imgs", "img", "pngimages", "jpegimages")
MAPS = (
    *("masks", "mask", "labels", "label", "instances", "pedmasks", "gt", "ground_truth"),
    *("groundtruth", "instance_masks", "label_masks", "segmentations"),
)  # names of folders in lower case, the most likely first
EXACT = {"BMP", "DIB", "GIF", "PNG", "PPM", "TIFF"}
LOSSY = {"jpeg", "tiff_jpeg", "webp"}  # compressions of TIFF
MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L"}
MOST_CHANGES = 0.05  # of the pixels of a map differ from the one before
LARGEST = 1 << 53  # that every format keeps


def folders_of(path: Path) -> Iterator[tuple[Path, Path]]:
    """The folders in a folder that may hold images and their maps; the images may be in `path`."""
    below = {each.name.lower(): each for each in folders_in(path)}
    for maps in (below[name] for name in MAPS if name in below):
        yield from ((below[name], maps) for name in IMAGES if name in below)
        yield path, maps


def images_by_stem(root: Path, depth: int = DEPTH) -> dict[str, str]:
    """The image files in and below a folder: path without suffix -> path, relative to it."""
    found: dict[str, str] = {}
    for folder, names in walk(root, depth):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault((folder / stem).as_posix(), (folder / name).as_posix())
    return found


def read_numbers(path: Path) -> np.ndarray:
    """A map of numbers of at least 0, integers [H,W].

    They are grey values of 1 to 32 bits, the indices of a palette, or colours as R + 256 G +
    65536 B (a grey one is its value). Alpha is dropped.

    Raises:
        InputError: if the file is missing, no image, of a lossy type, or holds other numbers.
    """
    with opened(path, "save it again as PNG or TIFF of 8, 16 or 32 bits") as file:
        require_exact(path, file)
        deep = read_16bit(file)
        values = np.asarray(file) if deep is None else deep
    if values.dtype == bool:
        values = values.view(np.uint8)
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[2] > 2 else 1]
        if (colours == colours[..., :1]).all():
            values = colours[..., 0]
        elif deep is None:
            values = coded(colours)
        else:
            raise InputError(f"{path} has colours of 16 bits: save its numbers as grey values")
    if values.dtype.kind != "u" and not (np.abs(values) < LARGEST).all():  # also for NaN
        raise InputError(f"{path} holds values that are no numbers of objects: save it again")
    whole = values.astype(np.int64) if values.dtype.kind == "f" else values
    if whole.dtype.kind != "u" and (whole.min() < 0 or (whole != values).any()):
        raise InputError(
            f"{path} holds fractions or numbers below 0: number the objects from 1, 0 is background"
        )
    return whole


def is_like_a_map(path: Path) -> bool:
    """Whether an image has areas of constant value, unlike photos."""
    try:
        values = read_numbers(path)
    except InputError:
        return False
    changes = np.count_nonzero(values[:, 1:] != values[:, :-1])
    return 0 < changes < MOST_CHANGES * values.size


def read_colours(path: Path) -> np.ndarray:
    """The colours of a file as R + 256 G + 65536 B, int32 [H,W]; raises as `read_numbers`."""
    with opened(path, "save it again as PNG") as file:
        require_exact(path, file)
        return coded(np.asarray(file.convert("RGB")))


def require_exact(path: Path, file: Image.Image) -> None:
    compression = file.info.get("compression")
    if file.format not in EXACT or (file.format == "TIFF" and compression in LOSSY):
        raise InputError(
            f"{path} is {file.format} with a compression that changes numbers: make the map again "
            "as PNG or TIFF, as what it has lost cannot be restored"
        )
    if pages_of(file) > 1:
        raise InputError(f"{path} has {pages_of(file)} pages: save each page as a file of its own")
    if file.mode not in MODES:
        raise InputError(f"{path} is an image of mode {file.mode}: save it as a grey or RGB PNG")


def coded(colours: np.ndarray) -> np.ndarray:
    """Colours of 8 bits [H,W,3] -> R + 256 G + 65536 B, int32 [H,W]."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16
