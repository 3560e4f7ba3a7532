"""What writers share: the objects of each image, and the list of what a format cannot hold."""

from __future__ import annotations

import csv
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import rle
from data.errors import InputError, printable

Content = dict[str, Any]
Splits = Mapping[str, Content]
Wrap = Callable[[Iterable], Iterable]

NAMED = 3  # cases of a loss that its sentence names


class Loss(NamedTuple):
    """What is lost, as "crowds, left out", and in which image and annotation."""

    what: str
    where: str


class Losses:
    """What a format could not hold: the first case ends everything with `strict`."""

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.found = strict, defaultdict(list)

    def note(self, what: str, where: str) -> None:
        """Notes a case of `what`, in the plural; raises InputError with `strict`."""
        if self.strict:
            raise InputError(
                f"{where}: the target cannot hold {what}: correct it, choose another --to, or "
                "convert without --strict"
            )
        self.found[what].append(where)

    def __iter__(self) -> Iterator[Loss]:
        return (Loss(what, where) for what, places in self.found.items() for where in places)

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def sentences(self) -> list[str]:
        """One line for each kind, with its number and the first cases."""
        lines = []
        for what, places in self.found.items():
            more = ", ..." if len(places) > NAMED else ""
            lines.append(printable(f"{what}: {len(places)} ({'; '.join(places[:NAMED])}{more})"))
        return lines


class Object:
    """An annotation of an image: a mask, polygons, or only a box.

    label, category: name and index of its class. parts: polygons [P,2] in pixels, none for a mask.
    """

    def __init__(self, annotation: dict, image: dict, label: str, category: int) -> None:
        self.annotation, self.image = annotation, image
        self.label, self.category = label, category
        outline = annotation["segmentation"]
        self.is_crowd, self.is_box = bool(annotation.get("iscrowd")), not outline
        self.parts = [] if isinstance(outline, dict) else [corners(part) for part in outline]
        self.where = f"{image['file_name']}, annotation {annotation['id']}"

    def mask(self) -> rle.Rle:
        """Its pixels; of a box there are none."""
        outline, image = self.annotation["segmentation"], self.image
        return rle.from_annotation(outline, image["height"], image["width"])

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        x, y, width, height = self.annotation["bbox"]
        return x, y, x + width, y + height


def corners(part: Any) -> np.ndarray:
    return np.asarray(part, np.float64).reshape(-1, 2)


def images_of(content: Content, wrap: Wrap) -> Iterator[tuple[dict, list[Object]]]:
    """Every image with its objects, in order."""
    classes = {each["id"]: (each["name"], i) for i, each in enumerate(content["categories"])}
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    for image in wrap(content["images"]):
        yield image, [Object(each, image, *classes[each["category_id"]])
                      for each in of_image.get(image["id"], ())]  # fmt: skip


def drop_unsupported(
    image: dict, objects: list[Object], lost: Losses, *, boxes: bool = True
) -> list[Object]:
    """The objects without crowds, and with `boxes` without those; notes them and void in `lost`."""
    kept = []
    for one in objects:
        if one.is_crowd:
            lost.note("crowds, left out", one.where)
        elif boxes and one.is_box:
            lost.note("boxes without a mask, left out", one.where)
        else:
            kept.append(one)
    if image.get("void"):
        lost.note("void regions, left out", image["file_name"])
    return kept


def note_equal_names(splits: Splits, lost: Losses) -> None:
    """Notes classes that a format which has their names alone cannot tell apart."""
    ids = defaultdict(list)
    for each in next(iter(splits.values()))["categories"]:
        ids[each["name"].strip()].append(each["id"])
    for name, found in ids.items():
        if len(found) > 1:
            where = f"{name}, ids {' and '.join(map(str, found))}"
            lost.note("classes of one name, which become one", where)


def stem_of(name: str) -> str:
    """The name of an image without suffix, with its folders."""
    return posixpath.splitext(name)[0]


def with_parent(path: Path) -> Path:
    """The path, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_tables(
    folder: Path, splits: Splits, rows: Mapping[str, Iterable[tuple[Object, str, int]]]
) -> None:
    """Writes classes.txt and objects.csv into the folder of each split, as
    data/readers/class_table.py reads them, with the ids of the annotations.

    Args:
        rows: of each split the objects, each with its file there and its number in it.
    """
    for split, content in splits.items():
        table = [("mask", "number", "class", "image", "category_id", "annotation_id")]
        for one, mask, number in rows[split]:
            ids = one.annotation["category_id"], one.annotation["id"]
            table.append((mask, number, one.label, one.image["file_name"], *ids))
        place = with_parent(folder / split / "objects.csv")
        with open(place, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)
        names = "".join(f"{each['name']}\n" for each in content["categories"])
        (folder / split / "classes.txt").write_text(names, encoding="utf-8")
