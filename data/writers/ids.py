"""Id images: <split>/images/x.jpg and <split>/masks/x.png, as StarDist and cellpose read them.

0 is background, k the object k (16 bits). objects.csv names the class and the annotation of each.
Where masks overlap, the smaller one is on top, so that no object is hidden by one around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data import rle
from data.errors import InputError
from data.writers import target
from data.writers.target import Losses, Splits, Wrap

NAME, TITLE, BY_STEM = "ids", "id images", True
MOST = np.iinfo(np.uint16).max


def image_path(split: str, name: str) -> str:
    return f"{split}/images/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    target.note_equal_names(splits, lost)
    rows = {split: [] for split in splits}
    for split, content in splits.items():
        for image, objects in target.images_of(content, wrap):
            name, kept = image["file_name"], target.drop_unsupported(image, objects, lost)
            if len(kept) > MOST:
                raise InputError(f"{name} has {len(kept)} objects: an id image holds {MOST}")
            rles = [one.mask() for one in kept]
            indices = index_map(rles, (image["height"], image["width"]))
            pixels = np.bincount(indices.ravel(), minlength=len(kept) + 1)[1:].tolist()
            for one, area, left in zip(kept, rle.area(rles).tolist(), pixels):
                if left < area:
                    what = "objects that lose pixels where a smaller one lies on top"
                    lost.note(what, f"{one.where}: {area - left} of {area} pixels")
            mask = f"masks/{target.stem_of(name)}.png"
            Image.fromarray(indices).save(target.with_parent(folder / split / mask))
            rows[split] += ((one, mask, number) for number, one in enumerate(kept, start=1))
    target.write_tables(folder, splits, rows)


def index_map(rles: Sequence[rle.Rle], size: tuple[int, int]) -> np.ndarray:
    """Masks -> numbers 1, 2, ..., uint16 [H,W]; of overlapping ones the smaller, else the first."""
    indices = np.zeros(size, np.uint16)
    for place in np.argsort(rle.area(rles), kind="stable")[::-1]:
        inside, (left, top) = rle.decode_inside(rles[place])
        height, width = inside.shape
        indices[top : top + height, left : left + width][inside] = place + 1
    return indices
