"""The data.yaml of a YOLO set: its classes, and the folders that its paths refer to.

Paths are often those of another computer, or have a wrong leading "../", so several folders below
that of the file are tried; the one that was used is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data.errors import InputError
from data.images import SUFFIXES
from data.readers.checks import class_name, shortened
from data.readers.image_files import walk
from data.readers.source import SPLITS, folders_in, lines_of, split_in
from data.readers.yaml import load

NAME_FILES = ("classes.txt", "obj.names")  # class names, instead of a data.yaml
KEYS = {"names", "nc", *SPLITS}
DEPTH = 4  # folders in a folder of images


def class_names(file: Path) -> dict[int, str] | None:
    """Class id -> name, None without data set keys; raises InputError if names cannot be used."""
    if file.name in NAME_FILES:
        return dict(enumerate(lines_of(file, "write one class name per line")))
    content = load(file)
    if not isinstance(content, dict) or not content.keys() & KEYS:
        return None
    names = content.get("names")
    if isinstance(names, list):
        names = {str(id_): name for id_, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise InputError(
            f"{file} has names {shortened(names)}: write `names: [first class, second class]`"
        )
    try:
        if not all(re.fullmatch(r"\d{1,9}", id_) for id_ in names):
            raise InputError(f"has the class ids {shortened(list(names))}, which are no numbers")
        return {int(id_): class_name(name) for id_, name in names.items()}
    except InputError as reason:
        raise InputError(f"{file} {reason}: write `names: [first class, second class]`") from None


def entries_of(file: Path) -> dict[str, list[str]]:
    """Split -> the folders, or lists of images, that the file names for it."""
    content = load(file)
    found = {}
    for key, value in content.items():
        split = SPLITS.get(key)
        values = value if isinstance(value, list) else [value]
        entries = [one for one in values if isinstance(one, str) and one]
        if split and entries:
            found[split] = entries
    return found


def locate_entry(file: Path, entry: str) -> str | None:
    """The folder or list of an entry, relative to the file's folder; None if it is missing.

    Tried in this order: below `path`; relative to the file; without leading "../"; without more and
    more of its first folders; a folder named after the same split.
    """
    root, base = file.parent, load(file).get("path")
    bases = [base, ""] if isinstance(base, str) else [""]
    path = with_slashes(entry)
    tried = [joined(with_slashes(base), path) for base in bases]
    parts = path.split("/")
    tried.append(re.sub(r"^(\.{1,2}/)+", "", path))
    tried += ["/".join(parts[start:]) for start in range(1, len(parts) - 1)]
    words = [folder for folder in folders_in(root) if SPLITS.get(folder.name.lower())]
    for folder in words:
        if SPLITS[folder.name.lower()] == split_in(path):
            tried += [f"{folder.name}/images", folder.name]
    for each in tried:
        each = normalised(each)
        if is_inside(each) and os.path.exists(root / each):
            return each
    return None


def resolutions(file: Path, split: str) -> Iterator[str]:
    """Notes on the resolved paths of a split, and on missing paths of the others."""
    for key, entries in entries_of(file).items():
        for entry in entries:
            place = locate_entry(file, entry)
            if place is None or key == split:
                yield f"{key}: {entry} is {'missing' if place is None else file.parent / place}"


def normalised(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def with_slashes(path: str) -> str:
    return path.replace("\\", "/").rstrip("/") or "."


def joined(base: str, path: str) -> str:
    return path if re.match("/|[A-Za-z]:", path) else f"{base}/{path}"


def is_inside(path: str) -> bool:
    """Whether a normalised path stays in its folder, on any system."""
    return not re.match(r"/|[A-Za-z]:|\.\.(/|$)", path) and len(path) < 1000


def images_at(root: Path, places: Sequence[str]) -> list[str]:
    """The images in folders and in lists, relative to `root`."""
    found: list[str] = []
    for place in places:
        if (root / place).is_dir():
            below = walk(root / place, DEPTH)
            found += [
                (PurePosixPath(place) / folder / name).as_posix()
                for folder, names in below
                for name in names
                if name.lower().endswith(SUFFIXES)
            ]
        else:
            lines = lines_of(root / place, "list the path of an image on each line")
            found += [image_in_line(root, place, with_slashes(line)) for line in lines]
    return list(dict.fromkeys(found))


def image_in_line(root: Path, place: str, line: str) -> str:
    """The image in a line of a list: its path, or the longest end of it that exists."""
    parts = normalised(line).split("/")
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        for each in (tail, normalised(os.path.join(os.path.dirname(place), tail))):
            if is_inside(each) and os.path.isfile(root / each):
                return each
    return "/".join(parts)  # reported as missing later
