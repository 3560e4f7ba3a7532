"""ADE20K (2021): x_seg.png holds the visible pixels of all whole objects, x.json their classes.

A class is R // 10 * 256 + G, which is name_ndx in the json; B numbers the objects of a class,
with gaps. Parts of objects (windows of a house) are left out. There is no list of things: sky and
road are objects too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data import rle
from data.errors import BadRecords, InputError
from data.readers.checks import class_name
from data.readers.content import Content
from data.readers.image_files import DEPTH, walk
from data.readers.maps import images_by_stem, read_colours
from data.readers.source import SPLITS, Source

NAME, TITLE = "ade20k", "ADE20K"
LAYOUT = "images/ADE/training/.../x.jpg, x_seg.png, x.json"
OWN_IDS = False

ROOTS = ("", "images/ADE", "ADE", "ADE20K_2021_17_01/images/ADE")
END = "_seg.png"
AGAIN = "unpack ADE20K again"


def find(path: Path) -> dict[str, Source] | None:
    """The folders training and validation, or the maps in one folder."""
    if not path.is_dir():
        return None
    for root in (path / name for name in ROOTS):
        found = {}
        for folder in sorted(root.glob("*/")) if root.is_dir() else ():
            split = SPLITS.get(folder.name.lower())
            source = source_of(folder, DEPTH) if split else None
            if source:
                found[split] = source
        if found:
            return found
    source = source_of(path, DEPTH if path.name.lower() in SPLITS else 0)
    return {"all": source} if source else None


def source_of(folder: Path, depth: int) -> Source | None:
    """The maps in a folder that have a json."""
    names = []
    for place, files in walk(folder, depth):
        stems = {name.removesuffix(END) for name in files if name.endswith(END)}
        names += [
            (place / f"{name}{END}").as_posix() for name in sorted(stems) if f"{name}.json" in files
        ]
    files = [folder / name for name in names]
    jsons = [json_of(file) for file in files]
    return Source(folder, "all", [folder], names, [*files, *jsons]) if names else None


def json_of(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(END) + ".json")


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The images as COCO content; the classes that occur, sorted by name."""
    content = Content(bad)
    images = images_by_stem(source.path)
    for name in source.names:
        stem = name.removesuffix(END)
        with bad.noting(source.path / name, "the map"):
            add_image(content, source.path, name, images.get(stem, f"{stem}.jpg"))
    return content.finished()


def classes_of(file: Path) -> tuple[dict[int, str], int]:
    """name_ndx -> class, of whole objects; and the number of parts."""
    try:
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # as some of its files are written
        objects = json.loads(text)["annotation"]["object"]
        whole = [one for one in objects if one["parts"]["part_level"] == 0]
        names = {int(one["name_ndx"]): class_name(one["name"]) for one in whole}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as reason:
        what = f"{type(reason).__name__}: {reason}"
        raise InputError(f"{file} cannot be read as ADE20K json ({what}): {AGAIN}") from None
    return names, len(objects) - len(whole)


def add_image(content: Content, root: Path, name: str, image_name: str) -> None:
    file = root / name
    names, parts = classes_of(json_of(file))
    colours = read_colours(file)
    found = rle.distinct(colours)[0]
    classes = ((found & 255) // 10 * 256 + (found >> 8 & 255)).tolist()
    image = content.add_map(image_name, colours.shape, file, root)
    content.counts["parts of objects"] += parts
    for class_, mask in zip(classes, rle.from_index_map(colours, found), strict=True):
        if class_ in names:
            content.add(image, names[class_], [mask])
        elif class_:  # 0 is unlabelled
            content.counts["objects without a name"] += 1
            content.add(image, None, [mask], broken=True)
