"""Checked COCO content for the writers, with the ids of the file."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data import records, rle
from data.errors import BadRecords, InputError, counted
from data.readers import coco
from data.records import BROKEN, BRUSH, CROWD, UNKNOWN
from data.writers.target import Content

DROPPED = {
    "objects": "without pixels left out",
    "parts": "of fewer than three points left out",
}


def load(
    path: Path,
    bad: BadRecords,
    notes: list[str],
    keep_crowds: bool = False,
    boxes_as_masks: bool = False,
    folders: Sequence[Path] = (),
    crowd_as_instances: bool = False,
) -> Content:
    """The images, classes and objects of a COCO json in its order, classes by their ids.

    Polygons are float64 arrays, masks compressed RLE. Boxes without a mask have "bbox" and an empty
    segmentation. Brush masks and crowds are read as data/dataset.py does. Annotation ids that are
    missing or used twice are replaced. Sentences about what is read otherwise, or left out without
    being an error, go to `notes`.

    Raises:
        InputError: if a record cannot be used.
    """
    content = coco.load(path, folders=folders)
    records.require_lists(content, path)
    bad.add(records.left_out(content))
    classes = records.categories(content, path, bad)
    found = records.images(content, path, bad)
    listed = [record for record, _ in found]
    images = [
        record._asdict() | ({"void": rle_of(void, record)} if void else {})
        for record, void in found
    ]
    annotations, labels, kinds = [], [], []
    dropped = records.Dropped()
    rows = records.annotations(content, listed, classes, path, bad, dropped, boxes_as_masks)
    for origin, row in rows:
        image = listed[row.position]
        is_box = row.kind == BROKEN and not (origin.get("segmentation") or origin.get("broken"))
        if row.label == UNKNOWN or (row.kind == BROKEN and not is_box):
            continue  # it is listed in `bad`
        one = {
            "id": origin.get("id"),
            "image_id": image.id,
            "category_id": classes[row.label].id,
            "segmentation": row.outline,
            "iscrowd": int(row.kind in (CROWD, BRUSH) and not crowd_as_instances),
        }
        if row.area:
            one["area"] = row.area
        if is_box:
            one |= {"segmentation": [], "bbox": list(origin["bbox"])}
        elif isinstance(row.outline, bytes):
            one["segmentation"] = rle_of(row.outline, image)
        annotations.append(one)
        labels.append(row.label)
        kinds.append(row.kind)
    if not (keep_crowds or crowd_as_instances):
        places = np.flatnonzero(records.brush_objects(np.array(labels), np.array(kinds)))
        for place in places:
            annotations[place]["iscrowd"] = 0
        if len(places):
            notes.append(
                f"{counted(len(places), 'brush mask')} of an annotation tool, marked iscrowd, read "
                "as objects; --keep-crowds leaves them crowds"
            )
        if left := kinds.count(BRUSH) - len(places):
            notes.append(records.brushes_left(left))
    notes += records.notes(content)
    for key, text in DROPPED.items():
        if dropped[key]:
            notes.append(f"{counted(dropped[key], key[:-1])} {text}")
    if dropped["filled"]:
        notes.append(f"{counted(dropped['filled'], 'box')} without masks read as masks")
    renumber(annotations)
    categories = [{"id": one.id, "name": one.name} for one in classes]
    return {"images": images, "categories": categories, "annotations": annotations}


def rle_of(counts: bytes, image: records.ImageRecord) -> rle.Rle:
    return {"size": [image.height, image.width], "counts": counts}


def renumber(annotations: list[dict]) -> None:
    """New ids, above all others, for annotations without one of their own."""
    seen, without = set(), []
    for one in annotations:
        if type(one["id"]) is not int or one["id"] in seen:
            without.append(one)
        else:
            seen.add(one["id"])
    for one, id_ in zip(without, itertools.count(max(seen, default=0) + 1)):
        one["id"] = id_


def join_classes(contents: Mapping[str, Content]) -> None:
    """Gives all splits the classes of each, by their ids.

    Splits that list the same names get the ids of the first.

    Raises:
        InputError: if an id stands for two names.
    """
    first = next(iter(contents.values()))["categories"]
    joined: dict[int, str] = {}
    for split, content in contents.items():
        own = content["categories"]
        if own != first and [one["name"] for one in own] == [one["name"] for one in first]:
            new = {one["id"]: other["id"] for one, other in zip(own, first)}
            for annotation in content["annotations"]:
                annotation["category_id"] = new[annotation["category_id"]]
            own = first
        for one in own:
            name = joined.setdefault(one["id"], one["name"])
            if name != one["name"]:
                raise InputError(
                    f"class {one['id']} is {name} in one split and {one['name']} in {split}: "
                    "give the splits one list of classes"
                )
    categories = [{"id": id_, "name": name} for id_, name in sorted(joined.items())]
    for content in contents.values():
        content["categories"] = categories


def unique_stem(name: str, seen: set[str]) -> str:
    """The name of an image, changed where another one has it but for the suffix and the kind of
    letters; _ counts as /, as some formats write it. `seen` collects the names.
    """
    stem, suffix = posixpath.splitext(name)
    for number in itertools.count(1):
        new = stem if number == 1 else f"{stem}_{number}"
        key = new.lower().replace("/", "_")
        if key not in seen:
            seen.add(key)
            return new + suffix
