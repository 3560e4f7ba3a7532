"""The images that a user names: files, folders, lists, and the pages of files."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.errors import InputError
from data.images import SUFFIXES, num_pages, read_pages, read_rgb
from data.readers.source import lines_of

PAGE = "#page="  # between the name of a file and the number of a page


def images_of(given: list[Path], recursive: bool = False) -> tuple[dict[str, Path], Counter]:
    """Images by name, and the numbers of skipped files by reason.

    From image files, folders (in natural order) and text lists, without duplicates. Names are
    relative to the folder given, or to that of the file or list; if that is ambiguous, to the
    common folder of all images.

    Raises:
        InputError: if there are none, a folder cannot be listed, or a list is not text.
    """
    found, skipped = [], Counter()
    for path in given:
        folder, paths = path if path.is_dir() else path.parent, []
        if path.is_dir():
            paths = images_in(path, recursive, skipped)
        elif path.suffix.lower() == ".txt" and path.is_file():
            for line in lines_of(path, "list an image in each line"):
                image, other = folder / line, folder / line.replace("\\", "/")  # of Windows
                paths.append(image if os.path.exists(image) or not os.path.isfile(other) else other)
        else:
            paths = [path]
        found += [(each, folder) for each in paths]
    if not found:
        raise InputError(
            f"{', '.join(map(str, given))}: no images ({', '.join(SUFFIXES)}) in there"
            f"{skipped_text(skipped)}; name others"
        )
    once = list({os.path.abspath(path): (path, folder) for path, folder in found}.values())
    skipped["repeated"] = len(found) - len(once)
    named = {relative_name(*each): each[0] for each in once}
    if len(named) < len(once):
        base = os.path.commonpath([os.path.abspath(path.parent) for path, _ in once])
        named = {relative_name(path, base): path for path, _ in once}
    return named, skipped


def relative_name(path: Path, folder: Path | str) -> str:
    """The path relative to a folder; the plain name if it lies elsewhere."""
    relative = os.path.relpath(path, folder)
    return path.name if relative.split(os.sep)[0] == ".." else Path(relative).as_posix()


def images_in(folder: Path, recursive: bool, skipped: Counter) -> list[Path]:
    """The images in a folder, before those in its folders; links to folders are not followed."""
    try:
        entries = sorted(
            os.scandir(folder), key=lambda entry: (natural_key(entry.name), entry.name)
        )
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}); name another folder"
        ) from None
    found, below = [], []
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):  # those of a Mac are called like the images they belong to
            skipped["hidden files"] += 1
        elif os.path.isdir(path):
            if not recursive:
                skipped["folders (without --recursive)"] += 1
            elif entry.is_symlink():
                skipped["links to folders"] += 1
            else:
                below += images_in(path, recursive, skipped)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            skipped["files of other kinds"] += 1
    return found + below


def natural_key(name: str) -> list:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def skipped_text(skipped: Counter) -> str:
    """The numbers in brackets; empty if nothing was skipped."""
    counts = [f"{what}: {count}" for what, count in skipped.items() if count]
    return f" (skipped: {', '.join(counts)})" if counts else ""


class File(NamedTuple):
    """A file of one or more images: the number of the first in the results, name, and pages."""

    number: int
    name: str
    path: Path
    pages: int = 1

    @property
    def last(self) -> int:
        """The number of its last page."""
        return self.number + self.pages - 1


def list_files(named: dict[str, Path], every_page: bool) -> list[File]:
    """The files of `images_of`, images numbered from 1, including unreadable ones."""
    found, number = [], 1
    for name, path in named.items():
        count = 1
        if every_page:
            with suppress(InputError):  # of a file that is no image, when it is read
                count = num_pages(path)
        found.append(File(number, name, path, count))
        number += count
    return found


def images_in_file(
    file: File, numbers: list[int], every_page: bool, skipped: Counter
) -> Iterator[tuple[str, Image.Image]]:
    """Name and image of the first page of a file, or of every one that has one of these numbers."""
    if every_page and file.pages > 1:
        pages = [number - file.number for number in numbers]
        for page, image in zip(pages, read_pages(file.path, pages)):
            yield f"{file.name}{PAGE}{page + 1}", image
    else:
        count = num_pages(file.path)
        yield file.name, read_rgb(file.path)
        skipped["pages (without --pages all)"] += count - 1
