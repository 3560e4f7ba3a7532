"""What the readers share: the place of a split's annotations, and COCO content from index maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.errors import BadRecords, InputError


@dataclass(frozen=True)
class Source:
    """The annotations of one split, as a reader found them.

    path: the annotation file, or the folder that holds the files.
    images: folders that file names may be relative to, the likeliest first.
    names: the records to read.
    files: what the annotations follow from; when one changes, they are converted again.
    """

    path: Path
    split: str
    images: Sequence[Path]
    names: Sequence[str] = ()
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class Objects:
    """The objects of one image as an index map.

    classes  int64 [N]     category ids
    numbers  int64 [N]     the value of each object in the map
    indices  uint8 [H,W]   0 where there is no object
    void     bool [H,W]    neither object nor background
    """

    classes: np.ndarray
    numbers: np.ndarray
    indices: np.ndarray
    void: np.ndarray


def content_of_maps(
    names: Iterable[str],
    read: Callable[[str], Objects],
    folder: Path,
    class_names: Sequence[str],
    bad: BadRecords,
) -> dict[str, Any]:
    """Index maps -> COCO content with RLE; names `read` fails for go to `bad`.

    Images are JPEG files of `folder`. Class ids count from 1.
    """
    images, annotations = [], []
    for name in names:
        try:
            found = read(name)
        except InputError as error:
            bad.note(error, folder / f"{name}.jpg", f"image {name}")
            continue
        height, width = found.void.shape
        image = {"id": len(images) + 1, "file_name": f"{name}.jpg"}
        image |= {"width": width, "height": height}
        if found.void.any():
            image["void"] = rle.to_json(rle.encode(found.void[None])[0])
        masks = [rle.encode((found.indices == number)[None])[0] for number in found.numbers]
        first = len(annotations) + 1
        annotations += rle.records(masks, found.classes, image["id"], first)
        images.append(image)
    categories = [{"id": id_, "name": name} for id_, name in enumerate(class_names, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def require_size(path: Path, shape: Sequence[int], image: str, size: Sequence[int]) -> None:
    """Raises InputError unless the map of a file has the size (h, w) of its image."""
    if tuple(shape) != tuple(size):
        drawn, wanted = (" x ".join(str(side) for side in reversed(one)) for one in (shape, size))
        raise InputError(
            f"{path} is {drawn} where its image {image} is {wanted} (width x height): save it at "
            "the size of the image"
        )


def lines_of(path: Path, advice: str) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InputError: if it is missing, empty or no UTF-8 text; `advice` is the fix.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {advice}") from None
    except (OSError, UnicodeDecodeError) as reason:
        raise InputError(f"{path} cannot be read ({reason}): save it as UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty: {advice}")
    return lines


def names_of(path: Path, advice: str) -> list[str]:
    """The first word of each line, the name of an image without folder and ending."""
    names = [line.split()[0] for line in lines_of(path, advice)]
    for name in names:
        if name in (".", "..") or set(name) & set("/\\\0") or len(name) > 200:
            raise InputError(
                f"{path} lists {name!r}, which is no name of an image: write names without folder "
                "and ending"
            )
    return names
