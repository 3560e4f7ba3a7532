"""COCO panoptic: a json with the segments of each image, and a PNG with their numbers as colours.

Segments of things are objects, those of stuff are background; pixels without a segment are void.
PNGs are of two kinds: segment id = R + 256 G + 65536 B, or R is the class and G the number of the
object, 255 for a crowd.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data import records, rle
from data.errors import BadRecords, InputError
from data.readers.checks import shortened
from data.readers.coco import MOST_FILES, beside, by_split, is_panoptic, parse
from data.readers.coco_dialects import dicts
from data.readers.content import Content
from data.readers.maps import read_colours
from data.readers.source import Source, ends_of, folders_in, require_size

NAME, TITLE = "coco-panoptic", "COCO panoptic"
LAYOUT = "annotations/panoptic_train.json with a folder of PNG files, panoptic_train"
YIELDS_TO = ("coco",)  # COCO has both, for the same images

CROWD = 255  # second channel of the second kind of PNG


def find(path: Path) -> dict[str, Source] | None:
    """The json files in a folder or in `annotations` there, each with its folder of PNG files."""
    if path.is_dir():
        files: list[Path] = []
        for folder in (path / "annotations", path):
            listed = sorted(folder.glob("*.json"))[:MOST_FILES]
            files = files or [one for one in listed if is_panoptic(one)]
        found = by_split(files, path)
    else:
        found = {"all": beside(path, "all")} if is_panoptic(path) else {}
    for split, source in found.items():
        maps = sorted(maps_of(source.path).glob("*.png"))
        names = [one.stem for one in maps]
        found[split] = source._replace(names=names, files=[source.path, *maps])
    return found or None


def maps_of(file: Path) -> Path:
    """The folder of the PNG files of a json: named like it, or another one beside it."""
    stems = re.findall(r'"file_name"\s*:\s*"([^"\\/]+)\.\w+"', ends_of(file))
    near = [file.with_suffix(""), *folders_in(file.parent)]
    for folder in [*near, *folders_in(file.parent.parent), file.parent]:
        if any((folder / f"{stem}.png").is_file() for stem in stems):
            return folder
    raise InputError(
        f"{file} is a COCO panoptic json, but the PNG files that it lists are not in "
        f"{file.with_suffix('')} nor in another folder beside it: add them"
    )


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The things as COCO content, with the ids of the file."""
    content = parse(source.path)
    if isinstance(content, dict):
        content.setdefault("annotations", [])
    records.require_lists(content, source.path)
    classes = {one.id: one.name for one in records.categories(content, source.path, bad)}
    stuff = {str(one.get("id")) for one in dicts(content, "categories") if one.get("isthing") == 0}
    things = {id_ for id_ in classes if str(id_) not in stuff}
    images = {str(one.get("id")): one for one in dicts(content, "images")}
    segments = {}
    for one in dicts(content, "annotations"):
        image, name = images.get(str(one.get("image_id"))), one.get("file_name")
        if image is None or not isinstance(name, str):
            error = f"{source.path}: {shortened(one)} names no PNG or no image that is listed"
            bad.note(InputError(f"{error}: export it again"), source.path, shortened(one))
        else:
            segments[os.path.splitext(name)[0]] = image, one.get("segments_info")
    if not segments:
        names = ((str(one.get("file_name")), one) for one in images.values())
        segments = {os.path.splitext(name)[0]: (one, []) for name, one in names}
    found, folder, unlisted = Content(bad), maps_of(source.path), 0
    for name in source.names:
        if name not in segments:
            unlisted += 1
            continue
        path, (record, listed) = folder / f"{name}.png", segments.pop(name)
        with bad.noting(source.path, f"image {name}"):
            image, colours = opened(found, path, record)
            add_segments(found, path, image, colours, listed, classes.keys(), things)
    found.counts["maps that the json does not list"] = unlisted
    for name in segments:
        error = f"{source.path}: {folder / name}.png is missing: add it or remove its annotation"
        bad.note(InputError(error), source.path, f"image {name}")
    return found.finished({id_: name for id_, name in classes.items() if id_ in things})


def opened(content: Content, path: Path, record: dict) -> tuple[dict, np.ndarray]:
    """A new image of the content, and the colours of its PNG."""
    colours = read_colours(path)
    size = record.get("height"), record.get("width")
    if all(type(side) is int for side in size):
        require_size(path, colours.shape, str(record.get("file_name")), size)
    image = content.add_map(str(record.get("file_name")), colours.shape, path, void=colours == 0)
    if type(record.get("id")) is int:
        image["id"] = record["id"]
    return image, colours


def add_segments(
    content: Content,
    path: Path,
    image: dict,
    colours: np.ndarray,
    listed: Any,
    classes: Iterable[int],
    things: set,
) -> None:
    """Adds the things in one PNG; what is listed in the json is checked against it."""
    present = rle.distinct(colours)[0]
    present = present[present > 0]
    known = {
        one["id"]: one for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict) and type(one.get("id")) is int
    }  # fmt: skip
    if len(present) and not np.isin(present, list(known)).any():
        known = by_channels(present, classes)
    for number, mask in zip(present.tolist(), rle.from_index_map(colours, present), strict=True):
        segment = known.get(number)
        category = None if segment is None else segment.get("category_id")
        if type(category) is not int or category not in classes:
            what = "which the json does not list" if segment is None else f"of class {category!r}"
            error = f"{path} has the segment {number}, {what}: export both again"
            content.bad.note(InputError(error), path, f"segment {number}")
            content.add(image, None, [mask], broken=True)
        elif category in things:
            content.add(image, category, [mask], iscrowd=int(segment.get("iscrowd") == 1))
    without = known.keys() - set(present.tolist())
    content.counts["segments without pixels"] += len(without)


def by_channels(present: np.ndarray, classes: Iterable[int]) -> dict[int, dict]:
    """The segments of a PNG of the second kind; none if it is not of this kind."""
    if (present >> 16).any() or not set((present & 255).tolist()) <= set(classes):
        return {}
    return {
        number: {"category_id": number & 255, "iscrowd": number >> 8 == CROWD}
        for number in present.tolist()
    }
