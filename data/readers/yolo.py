"""YOLO-seg: a data.yaml, and for each image a text file with a polygon or a box on each line.

Coordinates are parts of the upright image's size. The labels of a/images/b/x.jpg are in
a/labels/b/x.txt, those of a/x.jpg beside it; an image without such a file has no objects.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import BadRecords, InputError, counted
from data.images import SUFFIXES, upright_size
from data.readers.checks import polygon, rectangle, shortened
from data.readers.content import Content
from data.readers.data_yaml import (
    DEPTH,
    NAME_FILES,
    class_names,
    entries_of,
    images_at,
    is_inside,
    locate_entry,
    resolutions,
)
from data.readers.image_files import walk
from data.readers.source import SPLITS, Source, folders_in, head_of, split_in

NAME, TITLE = "yolo", "YOLO-seg"
LAYOUT = "data.yaml, images and labels (a text file for each image)"

FIRST_KEY = re.compile(r"^[\"']?(names|nc|train|val|validation)[\"']?\s*:", re.MULTILINE)
FARTHEST = 1  # outside the image, in parts of its sides; more are pixels
NUMBERS = (5, 7)  # on the line of a box; at least for a polygon


def find(path: Path) -> dict[str, Source] | None:
    """The splits of a data.yaml, or of folders `images` and `labels` beside a classes.txt."""
    file = path if path.suffix.lower() in (".yaml", ".yml") and not path.is_dir() else yaml_in(path)
    if file is None:
        return without_yaml(path)
    names, root = class_names(file), file.parent
    if names is None:
        return None
    sources = {}
    for split, entries in entries_of(file).items():
        places = [place for entry in entries if (place := locate_entry(file, entry)) is not None]
        if places:
            sources[split] = source(file, root, split, images_at(root, places))
    if not sources:
        tried = "; ".join(resolutions(file, "train"))
        raise InputError(
            f"{file} names no folder of images that is there ({tried}): correct its paths, or put "
            "it into the folder of the data set"
        )
    return sources


def yaml_in(path: Path) -> Path | None:
    """The file of a folder that describes a data set."""
    files = [one for end in ("*.yaml", "*.yml") for one in sorted(path.glob(end))]
    files = [one for one in files if len(FIRST_KEY.findall(head_of(one))) > 1]
    own = [one for one in files if one.stem == "data"] or files
    if len(own) > 1:
        listed = ", ".join(one.name for one in own)
        raise InputError(f"{path} has several data sets ({listed}): give one of them")
    return own[0] if own else None


def without_yaml(path: Path) -> dict[str, Source] | None:
    """A folder without data.yaml: Label Studio's export, or label files beside their images."""
    splits = [one for one in folders_in(path) if one.name.lower() in SPLITS]
    pairs = [path] if is_pair(path) else [one for one in splits if is_pair(one)]
    file = next((path / name for name in NAME_FILES if (path / name).is_file()), None)
    if not pairs and file is None:
        return None
    roots, depth = ([one / "labels" for one in pairs], DEPTH) if pairs else ([path], 0)
    walked = [(root / place, names) for root in roots for place, names in walk(root, depth)]
    files = [folder / name for folder, names in walked for name in names]
    texts = [one for one in files if one.suffix == ".txt" and one.name not in NAME_FILES]
    if not any(re.match(r"\s*\d+(\s+[-+.\de]+){4}", head_of(one)) for one in texts[:10]):
        return None
    if not pairs:
        stems = {one.stem for one in texts}
        found = [one for one in files if one.suffix.lower() in SUFFIXES]
        if stems.isdisjoint(one.stem for one in found):
            return None
        return {"all": source(file, path, "all", [one.name for one in found])}
    if file is None:
        raise InputError(
            f"{path} is a YOLO folder with {counted(len(texts), 'label file')}, but has no "
            "data.yaml: write one with a line `names: [first class, second class]`"
        )
    if pairs == [path]:
        splits = [one for one in folders_in(path / "images") if split_in(one.name)]
        places = {split_in(one.name): f"images/{one.name}" for one in splits} or {"all": "images"}
    else:
        places = {SPLITS[one.name.lower()]: f"{one.name}/images" for one in pairs}
    return {split: source(file, path, split, images_at(path, [at])) for split, at in places.items()}


def is_pair(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "labels").is_dir()


def source(file: Path, root: Path, split: str, images: Sequence[str]) -> Source:
    files = [file, *(root / label_of(image) for image in images)]
    return Source(file, split, [root], images, files)


def label_of(image: str) -> str:
    """The last folder called images becomes labels; without one, the text is beside the image."""
    parts = f"{os.path.splitext(image)[0]}.txt".split("/")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return "/".join(parts)


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """A split as COCO content, with the class ids of the data.yaml."""
    names, (root,) = class_names(source.path) or {}, source.images
    content, labelled = Content(bad), False
    for name in source.names:
        try:
            if not is_inside(name):
                raise InputError(f"{name} leads out of {root}: name images in this folder")
            height, width = upright_size(root / name)
            image = content.add_image(name, width, height, "a line of a list")
        except InputError as reason:
            bad.note(InputError(f"{source.path}: {reason}"), source.path, f"image {name}")
            continue
        labelled |= read_labels(root / label_of(name), image, names, content)
    if content.images and not labelled:
        raise InputError(
            f"{source.path} leads to {len(content.images)} images of {source.split}, but none has "
            f"a label file (the first would be {root / label_of(content.images[0]['file_name'])}): "
            "add them, in folders called labels beside those called images"
        )
    found = content.finished(names)
    if source.path.name not in NAME_FILES:
        found["notes"] = list(resolutions(source.path, source.split))
    return found


def read_labels(file: Path, image: dict, names: dict[int, str], content: Content) -> bool:
    """Adds the objects of a label file; returns whether the file exists."""
    try:
        if not os.path.exists(file):
            return False
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as reason:
        error = InputError(f"{file} cannot be read ({reason}): save it as UTF-8 text")
        content.bad.note(error, file, "its text")
        return True
    scale = np.array([image["width"], image["height"]], float)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        id_, points, outline = None, np.zeros((0, 2)), []
        try:
            id_, points = parsed(line)
            points *= scale
            corners = rectangle(points.ravel()) if len(points) == 2 else points.ravel()
            outline = [polygon(corners, image)]
            if id_ not in names:
                known = ", ".join(f"{one} {name}" for one, name in list(names.items())[:5])
                raise InputError(
                    f"has class {id_}, which has no name (the first of {len(names)} are {known}): "
                    "add it to `names`, or remove the line"
                )
        except InputError as reason:
            content.bad.note(InputError(f"{file}: line {number} {reason}"), file, f"line {number}")
            content.add(image, None, outline, broken=True)
            continue
        if len(points) == 2:
            content.add_box(image, id_, points.ravel())
        else:
            content.add(image, id_, outline)
    return True


def parsed(line: str) -> tuple[int, np.ndarray]:
    """The class id of a line, and its points [N,2] from 0 to 1; of a box two corners."""
    words = line.split()
    if len(words) < min(NUMBERS) or len(words) % 2 == 0:
        raise InputError(
            f"has {len(words)} numbers: write class x1 y1 x2 y2 x3 y3 ..., or class and a box of 4"
        )
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise InputError(f"has {shortened(line)}: write numbers with blanks between them") from None
    id_, points = values[0], values[1:].reshape(-1, 2)
    if not np.isfinite(values).all() or id_ != math.floor(id_) or not 0 <= id_ < 1 << 31:
        raise InputError(f"has {shortened(line)}: write a whole number and finite ones behind it")
    if np.abs(points - 0.5).max() > FARTHEST + 0.5:
        raise InputError(
            f"has coordinates up to {np.abs(points).max():g}: write parts of the image's width and "
            "height, from 0 to 1"
        )
    if len(words) == NUMBERS[0]:
        (x, y), (w, h) = points
        points = np.array([[x - w / 2, y - h / 2], [x + w / 2, y + h / 2]])
    return int(id_), points
