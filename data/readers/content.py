"""COCO content while a reader collects it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data import records, rle
from data.errors import BadRecords, FileError, InputError
from data.images import MOST_PIXELS, upright_size
from data.readers import checks
from data.readers.source import require_size


@dataclass
class Shapes:
    """The shapes that are one object; `corners` x, y, x, y, ... of its boxes, four of each."""

    outlines: list[checks.Outline] = field(default_factory=list)
    corners: list[float] = field(default_factory=list)
    broken: bool = False
    is_crowd: bool = False


class Content:
    """Images, objects and classes as a reader finds them.

    classes: listed names, followed by others in use. counts: what is left out without being an
    error.
    """

    def __init__(self, bad: BadRecords, classes: Iterable[str] = ()) -> None:
        self.bad, self.classes = bad, list(dict.fromkeys(classes))
        self.counts: Counter[str] = Counter()
        self.images: list[dict[str, Any]] = []
        self.objects: list[tuple[str | int | None, dict[str, Any]]] = []
        self._origins: dict[str, str] = {}

    def add_image(self, name: str, width: Any, height: Any, origin: str) -> dict[str, Any]:
        """A new image; raises InputError if its name or size cannot be used, or it exists."""
        records.file_name({"file_name": name})
        if width is None or height is None:
            raise InputError(f"has no size for its image {name}, which is not there")
        if not (checks.is_side(width) and checks.is_side(height) and width * height <= MOST_PIXELS):
            raise InputError(f"has an image of {width!r} x {height!r} pixels, which is no size")
        if name in self._origins:
            raise InputError(f"is about the image {name}, which {self._origins[name]} is about too")
        self._origins[name] = origin
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(image)
        return image

    def remove_image(self, name: str) -> None:
        """Removes an image and its objects."""
        (gone,) = (one for one in self.images if one["file_name"] == name)
        self.images.remove(gone)
        self.objects = [one for one in self.objects if one[1]["image_id"] != gone["id"]]

    def add_map(
        self,
        name: str,
        shape: Sequence[int],
        file: Path,
        folder: Path | None = None,
        void: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """A new image whose objects are in the map (h, w) of a file, or in a folder of masks.

        folder: that of the images; if the image is there, it must have the size of the map.
        void: bool [h,w], what is neither object nor background.
        """
        if folder is not None and os.path.isfile(folder / name):  # also of names that are too long
            require_size(file, shape, name, upright_size(folder / name))
        try:
            image = self.add_image(name, shape[1], shape[0], str(file))
        except InputError as reason:
            raise FileError(f"{file} {reason}: rename or remove it") from None
        if void is not None and void.any():
            image["void"] = rle.to_json(rle.encode(void[None])[0])
        return image

    def add(
        self, image: dict, label: str | int | None, outlines: Sequence[checks.Outline], **more: Any
    ) -> None:
        """An object, the union of its outlines.

        `broken=True`: the region of a broken object, which is ignored; its label may be None.
        """
        record = {"id": len(self.objects) + 1, "image_id": image["id"], "iscrowd": 0}
        self.objects.append(
            (label, record | {"segmentation": segmentation_of(outlines, image)} | more)
        )

    def add_shapes(self, image: dict, objects: Mapping[tuple, Shapes]) -> None:
        """Objects by (label, ...). A box adds nothing to one that has outlines; one with a shape
        that cannot be used is ignored.
        """
        for (label, *_), shapes in objects.items():
            if shapes.broken:
                boxes = np.reshape(shapes.corners, (-1, 8))
                self.add(image, label, [*shapes.outlines, *boxes], broken=True)
            elif shapes.outlines:
                self.add(image, label, shapes.outlines, iscrowd=int(shapes.is_crowd))
                self.counts["boxes of objects that have a mask"] += bool(shapes.corners)
            else:
                self.add_box(image, label, shapes.corners, int(shapes.is_crowd))

    def add_broken(
        self,
        image: dict,
        label: str | int | None,
        error: Exception,
        file: Path,
        record: str,
        fix: str,
        outlines: Sequence[checks.Outline] = (),
        points: Any = None,
    ) -> None:
        """Notes an object that cannot be used; what is left of it will be ignored.

        That is its outlines, else the box around those of its `points`, in lists or records of any
        depth, that are in the image.
        """
        self.bad.note_error(error, file, record, fix)
        self.add(image, label, outlines or checks.box_of_points(points, image), broken=True)

    def add_box(
        self, image: dict, label: str | int | None, corners: Sequence[float], iscrowd: int = 0
    ) -> None:
        """A box without a mask, from two corners x, y, x, y or four; several boxes have four each.

        It is recorded as the upright box around all corners; `corners` is what it covers.
        """
        (left, top), (right, bottom) = checks.bounds(corners)
        box = [left, top, right - left, bottom - top]
        four = list(corners) if len(corners) % 8 == 0 else checks.rectangle(corners)
        self.add(image, label, [], bbox=box, corners=four, iscrowd=iscrowd)

    def finished(self, own: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The content; category ids count from 1, or are those of `own` (id -> name)."""
        if own is None:
            found = {label for label, _ in self.objects if label is not None}
            own = dict(enumerate([*self.classes, *sorted(found - set(self.classes))], start=1))
            ids = {name: number for number, name in own.items()}
        else:
            ids = {id_: id_ for id_ in own}
        return {
            "images": self.images,
            "annotations": [
                record if label is None else record | {"category_id": ids[label]}
                for label, record in self.objects
            ],
            "categories": [{"id": number, "name": name} for number, name in own.items()],
            "counts": {what: number for what, number in self.counts.items() if number},
        }


def segmentation_of(outlines: Sequence[checks.Outline], image: dict) -> list | rle.Rle:
    """The union of outlines as `segmentation`: polygons, or an RLE if one of them is a mask."""
    polygons = [one for one in outlines if isinstance(one, np.ndarray)]
    if len(polygons) == len(outlines):
        return [one.tolist() for one in polygons]
    masks = [one for one in outlines if not isinstance(one, np.ndarray)]
    if polygons:
        masks.append(rle.from_polygons(polygons, image["height"], image["width"]))
    return rle.to_json(rle.union(masks))
