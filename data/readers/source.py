"""Shared by the readers: the source of a split, file heads, names of splits, lists of names."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from data.errors import FileError, InputError

HEAD = 1 << 16  # bytes read to recognise a format
LONGEST_CELL = 1 << 26  # characters of a csv
TOKEN = re.compile(r'([{}\[\]])|"((?:[^"\\]|\\.)*)"(?:\s*:\s*(?=(.)))?')  # of json: brackets, texts
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # names of folders, words in names of files


class Source(NamedTuple):
    """The annotations of one split, as a reader found them.

    path: the annotation file, or the folder that holds the files.
    images: folders that file names may be relative to, the most likely first.
    names: the records or files to read.
    files: the inputs of the conversion; it is repeated when one of them changes.
    reader: the module that found it; data/readers/__init__.py fills it in.
    """

    path: Path
    split: str
    images: Sequence[Path]
    names: Iterable[str] = ()
    files: Sequence[Path] = ()
    reader: ModuleType | None = None


def head_of(path: Path) -> str:
    """The first kilobytes of a file as text, "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEAD)
        return raw.decode(json.detect_encoding(raw), "ignore").lstrip("\ufeff \t\r\n")
    except OSError:
        return ""


def ends_of(path: Path) -> str:
    """The first and the last kilobytes of a file as text, for keys that come late."""
    start = head_of(path)
    if not start or path.stat().st_size <= HEAD:
        return start
    with open(path, "rb") as file:
        file.seek(-HEAD, os.SEEK_END)
        return start + file.read().decode("utf-8", "ignore")


def top_keys(start: str) -> dict[str, str]:
    """The top-level keys in the first part of a json object -> first characters of their values."""
    keys, depth = {}, 0
    for token in TOKEN.finditer(start) if start.startswith("{") else ():
        text, key, first = token.groups()
        if first and depth == 1:
            keys[key] = first
        depth += (text in "[{") - (text in "]}") if text else 0
    return keys


def split_in(name: str) -> str | None:
    """The split in a file or folder name; None if it names none or several."""
    words = {SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS}
    return words.pop() if len(words) == 1 else None


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder by name, or none where it is missing."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(path / each.name for each in entries if each.is_dir())


def require_size(path: Path, shape: Sequence[int], image: str, size: Sequence[int]) -> None:
    """Checks that the map of a file has the size (h, w) of its image, raises InputError."""
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


def rows_of(path: Path, reader: Callable = csv.DictReader, **options: str) -> Iterator:
    """The rows of a csv file; raises FileError if it cannot be read."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from reader(file, skipinitialspace=True, **options)
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise FileError(f"{path} cannot be read as csv ({reason}): export it again") from None


def names_of(path: Path, advice: str, image: Path) -> list[str]:
    """The name of an image, without folder and suffix, from each line.

    Names may contain spaces and be followed by other words: the longest start of a line for which
    the file `image`, a path with * for the name, exists.
    """
    folder, suffix = image.parent, image.suffix

    def name_in(line: str) -> str:
        name = line
        while len(name.split()) > 1 and not os.path.isfile(folder / f"{name}{suffix}"):
            name = name.rsplit(maxsplit=1)[0]
        return name if os.path.isfile(folder / f"{name}{suffix}") else line

    lines = lines_of(path, advice)
    names = [line if len(line.split()) == 1 else name_in(line) for line in lines]
    for name in names:
        if set(name) & set("/\\\0"):
            raise InputError(
                f"{path} lists {name!r}, which is not the name of an image: write names without "
                "folder and suffix"
            )
    return list(dict.fromkeys(names))


def split_of(name: str) -> str:
    """The split of a list or subset by its name: "Validation" -> "val"."""
    name = name.lower()
    return "all" if name in ("default", "trainval") else SPLITS.get(name, name)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> list[float]:
    """A polygon x, y, x, y, ... of an ellipse, rotated clockwise, at most 0.05 pixels off."""
    radius = max(abs(rx), abs(ry), 1.0)
    steps = math.ceil(math.pi / math.acos(1 - 0.05 / radius)) if radius < 1e5 else 1000
    angles = 2 * math.pi * np.arange(steps) / steps
    return rotated(np.stack((rx * np.cos(angles), ry * np.sin(angles)), 1), (x, y), degrees)


def rotated(offsets: np.ndarray, centre: tuple[float, float], degrees: float) -> list[float]:
    """The points x, y, x, y, ... at offsets [N,2] from a centre, rotated clockwise about it."""
    turn = math.radians(degrees)
    right, down = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    return (offsets @ np.array((right, down)) + centre).ravel().tolist()
