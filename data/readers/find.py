"""Where the annotations and images of a split lie, from the folder or the json file a user names.

Four layouts are recognised: VOC 2012, SBD, COCO (annotations/instances_*.json), and the one of
Roboflow exports (_annotations.coco.json beside the pictures). VOC and SBD are converted once into
the cache folder; the conversion is made again when a list or a picture changes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from data.readers import voc

_SPLIT_FOLDERS = {"train": ("train", "train2017"), "val": ("val", "val2017", "valid")}
_LAYOUTS = (
    "VOCdevkit/VOC2012 (JPEGImages, SegmentationClass, SegmentationObject, ImageSets), SBD (img, "
    "inst), annotations/instances_train.json, train/_annotations.coco.json"
)


class Place(NamedTuple):
    """Where the annotations of a split lie, and folders its pictures may lie in."""

    json: Path
    images: list[Path]


def find(root: Path, split: str, cache: Path, progress: bool, skip_bad: bool) -> Place:
    for layout in (_sbd_layout, _voc_layout):
        place = layout(root, split, cache, progress, skip_bad)
        if place is not None:
            return place
    return _json_layout(root, split)


def _voc_layout(
    root: Path, split: str, cache: Path, progress: bool, skip_bad: bool
) -> Place | None:
    folder = voc.find_root(root)
    if folder is None:
        return None
    names = voc.names_of(folder, split)
    parts = [(folder / part, suffix) for part, suffix in voc.SOURCES]
    files = [part / f"{name}{suffix}" for part, suffix in parts for name in names]
    mark = _fingerprint(folder, files, (names, voc.class_names(folder), skip_bad))
    target = cache / f"{_name_of(folder)}-{mark}" / f"instances_{split}.json"
    _convert_once(target, progress, lambda: voc.convert(folder, split, progress, skip_bad))
    return Place(target, [folder / "JPEGImages"])


def _sbd_layout(
    root: Path, split: str, cache: Path, progress: bool, skip_bad: bool
) -> Place | None:
    """SBD alone, or SBD for training beside VOC for validation."""
    places = (root, root / "dataset", root / "benchmark_RELEASE" / "dataset")
    folder = next((p for p in places if (p / "inst").is_dir() and (p / "img").is_dir()), None)
    voc_root = voc.find_root(root)
    if folder is None or (split == "val" and voc_root is not None):
        return None
    without = [] if voc_root is None else voc.names_of(voc_root, "val")
    names = None if voc_root is not None else voc.sbd_names(folder, split)
    files = sorted((folder / "inst").glob("*.mat"))
    mark = _fingerprint(folder, files, (names, without, skip_bad))
    target = cache / f"{_name_of(folder)}-{mark}" / f"instances_{split}.json"
    _convert_once(
        target, progress, lambda: voc.read_sbd(folder, names, without, progress, skip_bad)
    )
    return Place(target, [folder / "img"])


def _json_layout(root: Path, split: str) -> Place:
    folders = _SPLIT_FOLDERS.get(split, (split,))
    names = [f"annotations/instances_{folder}.json" for folder in folders]
    names += [f"{folder}/_annotations.coco.json" for folder in folders]
    for name in names:
        if (root / name).is_file():
            return beside(root / name, split, root)
    if _any_json(root):
        raise InputError(
            f"{root} has no {split} annotations, none of {', '.join(names)} is there: "
            f"add one of them or name the file with --{split}-json"
        )
    raise InputError(
        f"{root} holds no data set that is known here, looked for {_LAYOUTS}: give a folder of one "
        "of these layouts, or name the files with --train-json, --val-json and --images"
    )


def _any_json(root: Path) -> bool:
    return any(root.glob("annotations/instances_*.json")) or any(
        root.glob("*/_annotations.coco.json")
    )


def beside(json: Path, split: str, root: Path | None) -> Place:
    """An annotation file with the folders in which its pictures are looked for, in this order."""
    bases = [base for base in (root, json.parent.parent, json.parent) if base is not None]
    above = [base.resolve().parent for base in bases]  # the demo set keeps its pictures there
    folders = [*_SPLIT_FOLDERS.get(split, (split,)), "images"]
    inside = [base / "images" / folder for base in bases for folder in folders[:-1]]
    voc_folders = [base / "VOCdevkit" / "VOC2012" / "JPEGImages" for base in (*bases, *above)]
    likely = [base / folder for base in bases for folder in folders] + inside + bases + voc_folders
    if json.name == "_annotations.coco.json":
        likely.insert(0, json.parent)
    return Place(json, [folder for folder in dict.fromkeys(likely) if folder.is_dir()] or bases)


def _convert_once(target: Path, progress: bool, convert: Callable[[], dict]) -> None:
    if target.is_file():
        return
    content = convert()
    try:
        voc.write_json(content, target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}): make room, or allow it in its folder"
        ) from error
    if progress:
        print(f"converted to COCO format once: {target}")


def _fingerprint(folder: Path, files: Iterable[Path], extra: object) -> str:
    """Eight hex digits that change with the folder, its lists, and any of these files."""
    mark = zlib.crc32(repr((str(folder.resolve()), extra)).encode())
    for file in files:
        try:
            state = os.stat(file)
        except OSError:
            continue  # the conversion names the missing file, with the mend
        mark = zlib.crc32(f"{file.name} {state.st_size} {state.st_mtime_ns}".encode(), mark)
    return f"{mark:08x}"


def _name_of(folder: Path) -> str:
    return "-".join(folder.resolve().parts[-2:]).strip("/").replace(" ", "_")
