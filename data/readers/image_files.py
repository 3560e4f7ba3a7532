"""Finds annotation files, and the image file that an annotation names."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from data.images import SUFFIXES
from data.readers.source import Source, split_in

DEPTH = 3  # folders below the one that is given
LOOKED_AT = 20  # files of a folder


def canonical(name: str) -> str:
    """The name as file systems compare it: lower case, é as one character (Unicode NFC)."""
    return unicodedata.normalize("NFC", name).lower()


class ImageFiles:
    """The image files in and below a folder, by their paths relative to it."""

    def __init__(self, root: Path, depth: int = DEPTH) -> None:
        self._paths: dict[str, str] = {}  # canonical -> as written
        self._of_stem: dict[str, list[str]] = defaultdict(list)
        for folder, names in walk(root, depth):
            for name in names:
                if name.lower().endswith(SUFFIXES):
                    path = (folder / name).as_posix()
                    self._paths.setdefault(canonical(path), path)
                    self._of_stem[canonical(PurePosixPath(name).stem)].append(path)

    def find(self, listed: str, place: str = "", stem: str = "") -> str | None:
        """The image that an annotation file in the folder `place` names; None if there is none, or
        several fit.

        Paths are often those of another computer, so the base name is tried as well. Images in
        `place` are preferred, those in folders of another split are excluded.

        Args:
            stem: that of the annotation file, if it describes one image.
        """
        listed, place = listed.replace("\\", "/"), "" if place == "." else place
        base = posixpath.basename(listed)
        for path in (listed, base):
            if found := self._at(place, path):
                return found
        for each in filter(None, (stem, PurePosixPath(base).stem)):
            found = self._of_stem.get(canonical(each), [])
            found = [one for one in found if posixpath.dirname(one) == place] or found
            if own := split_of_path(f"{place}/x"):
                found = [one for one in found if split_of_path(one) in (None, own)]
            if len(found) > 1:
                shared = [shared_folders(one, listed) for one in found]
                found = [one for one, n in zip(found, shared) if n == max(shared)]
            if len(found) > 1:  # the place may be labels/train where the image is in images/train
                inner = PurePosixPath(place).parts[1:]
                found = [one for one in found if PurePosixPath(one).parts[1:-1] == inner]
            if len(found) == 1:
                return found[0]
        return None

    def find_in_split(self, listed: str, split: str) -> str | None:
        """The image that an annotation file of a split names, preferably in its own folder. A path
        that begins with this folder counts before its base name.
        """
        listed = listed.replace("\\", "/")
        if found := self._at(split, listed):
            return found
        whole = self._at("", listed)
        if whole and split_of_path(whole) == split:
            return whole
        return self.find(listed, split) or self.find(listed)

    def _at(self, place: str, path: str) -> str | None:
        return self._paths.get(canonical(posixpath.normpath(posixpath.join(place, path))))

    def only(self, place: str = "") -> str | None:
        """The only image in the folder `place`, else the only one in all folders."""
        paths, place = list(self._paths.values()), "" if place == "." else place
        found = [path for path in paths if posixpath.dirname(path) == place] or paths
        return found[0] if len(found) == 1 else None


def split_of_path(path: str | PurePosixPath) -> str | None:
    """The split in the first folder name of a path that has one."""
    return next(filter(None, map(split_in, PurePosixPath(path).parts[:-1])), None)


def shared_folders(path: str, other: str) -> int:
    """The number of equal parent folders of two paths, counted from the file name."""
    pairs = zip(*(PurePosixPath(canonical(one)).parent.parts[::-1] for one in (path, other)))
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def annotation_files(
    path: Path, suffixes: tuple[str, ...], fits: Callable[[Path], bool]
) -> dict[str, Source]:
    """The annotation files of many images each: the one given, or those in a folder or its folder
    `annotations`. By split if all file names contain one.
    """
    files, root = [path], path.parent
    if path.is_dir():
        for folder in (path, path / "annotations"):
            listed = folder.iterdir() if folder.is_dir() else ()
            files = sorted(each for each in listed if each.suffix.lower() in suffixes)
            if any(map(fits, files[:LOOKED_AT])):
                break
        else:
            return {}
        root = path
    elif root.name == "annotations":
        root = root.parent
    splits = defaultdict(list)
    for file in filter(fits, files):
        splits[split_in(file.stem) or "all" if path.is_dir() else "all"].append(file)
    if "all" in splits:
        splits = {"all": [file for files in splits.values() for file in files]}
    return {
        split: Source(
            root,
            split,
            [root],
            [file.relative_to(root).as_posix() for file in files],
            [root, *files],
        )
        for split, files in splits.items()
    }


def files_of_images(
    path: Path,
    fits: Callable[[Path], bool],
    *others: str,
    suffixes: tuple[str, ...] = (".json",),
    depth: int = DEPTH,
) -> dict[str, Source] | None:
    """The annotation files of one image each: the one given, or those in a folder, else below it,
    at most `depth` folders down.

    Folder names give the split. All files of a folder are listed if one of them fits. `others`:
    names of further files that are inputs of the conversion.
    """
    names: dict[str, list[str]] = defaultdict(list)
    root = path
    if path.is_file():
        root, names = path.parent, {"all": [path.name]} if fits(path) else {}
    for folder, files in walk(path, depth):
        files = [name for name in files if name.lower().endswith(suffixes)]
        if any(fits(path / folder / name) for name in files[:LOOKED_AT]):
            split = split_of_path(folder / files[0]) or "all"
            names[split] += [str(folder / name) for name in files]
            if not folder.parts:
                break  # subfolders hold other data sets or results
    if len(names) > 1 and "all" in names:
        names["train"] = names.pop("all") + names.get("train", [])
    # A folder changes when an image is added to it.
    folders = [root / folder for folder, _ in walk(root, depth)] if names else []
    found = {}
    for split, each in names.items():
        files = [root / name for name in (*others, *each)]
        found[split] = Source(root, split, [root], each, folders + files)
    return found or None


def walk(root: Path, depth: int) -> list[tuple[PurePosixPath, list[str]]]:
    """The folders in and below `root`, relative to it, with the sorted names of their files."""
    found = []
    for folder, below, names in os.walk(root, followlinks=True):  # many data sets are links
        place = PurePosixPath(Path(folder).relative_to(root).as_posix())
        below[:] = sorted(name for name in below if name[0] != ".") * (len(place.parts) < depth)
        found.append((place, sorted(name for name in names if name[0] != ".")))
    return found


def as_written(name: str) -> tuple[str, ...]:
    """The name, and the name with backslashes as separators."""
    return name, name.replace("\\", "/")


def by_last_part(name: str) -> tuple[str, ...]:
    """Base names: as it is, without LVIS's old prefix, without Label Studio's upload prefix."""
    last = last_part(name)
    return last, re.sub(r"^COCO_[a-z]+\d+_", "", last), re.sub(r"^[0-9a-f]{8}-", "", last)


def last_part(name: str) -> str:
    return os.path.basename(re.sub(r".*\?d=", "", name.replace("\\", "/")))


def locate(folders: Sequence[Path], names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The folder with most of the files (others only if not of another split), and name -> path."""
    wanted = len({*names})
    for spellings in (as_written, by_last_part):
        listed = []
        for folder in folders:
            listed.append((folder, files_of(folder, names, spellings)))
            if len(listed[-1][1]) == wanted:
                break
        best, files = max(listed, key=lambda pair: len(pair[1]))
        if files:
            break
    used = {best: files}
    for folder, others in listed if len(files) < wanted else ():
        if folder != best and split_in(folder.name) in (None, split_in(best.name)):
            known = set().union(*used.values())
            used[folder] = {name: others[name] for name in others.keys() - known}
    used = {folder: own for folder, own in used.items() if own}
    if len(used) < 2:
        return best, files
    root = Path(os.path.commonpath(used))
    return root, {
        name: os.path.relpath(os.path.join(folder, path), root)
        for folder, own in used.items()
        for name, path in own.items()
    }


def files_of(
    folder: Path, names: Sequence[str], spellings: Callable[[str], tuple[str, ...]] = as_written
) -> dict[str, str]:
    """Name -> path of the files that exist; lists each folder once, for slow file systems."""
    listed: dict[str, dict[str, str]] = {}

    def at(path: str, spelled: Callable[[str], str]) -> str | None:
        parent, name = os.path.split(path)
        if parent not in listed:
            place = folder / parent  # os.path.isdir, unlike pathlib's, accepts names of any length
            there = os.listdir(place) if os.path.isdir(place) else []
            listed[parent] = {canonical(each): each for each in there} | {
                each: each for each in there
            }
        found = listed[parent].get(spelled(name))
        return None if found is None else os.path.join(parent, found)

    files: dict[str, str] = {}
    for spelled in (str, canonical):
        used = {*files.values()}
        for name in names:
            if name not in files:
                paths = (at(each, spelled) for each in spellings(name))
                path = next(filter(None, paths), None)
                if path is not None and path not in used:
                    files[name] = path
    return files if len({*files.values()}) == len(files) or spellings is as_written else {}
