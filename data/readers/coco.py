"""COCO json, packed while the file is parsed.

A file of COCO's size is half a gigabyte, and as Python objects four times that. So each record is
slimmed down as soon as its closing brace is read: unknown keys go, lists of numbers become arrays.
data/records.py checks what is left.
"""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import Any

from data.errors import BadRecord, InputError
from data.readers.source import Source, head_of
from data.records import LISTS

NAME, TITLE = "coco", "COCO json"
LAYOUT = "annotations/instances_train.json, train/_annotations.coco.json"

KEPT = {
    *LISTS, "left_out", "id", "name", "file_name", "width", "height", "void",
    "image_id", "category_id", "iscrowd", "segmentation", "size", "counts",
    "area", "bbox", "attributes", *BadRecord._fields,
}  # fmt: skip
SPLIT_FOLDERS = {
    "train": ("train", "train2017"),
    "val": ("val", "val2017", "valid"),
    "test": ("test",),
}


def find(path: Path) -> dict[str, Source] | None:
    """annotations/instances_*.json, or _annotations.coco.json beside the images (Roboflow)."""
    if not path.is_dir():
        start = head_of(path) if path.suffix.lower() == ".json" else ""
        is_coco = start.startswith("{") and any(f'"{key}"' in start for key in LISTS)
        return {"all": beside(path, "all")} if is_coco else None
    found = {}
    for split, folders in SPLIT_FOLDERS.items():
        names = [f"annotations/instances_{folder}.json" for folder in folders]
        names += [f"{folder}/_annotations.coco.json" for folder in folders]
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file:
            found[split] = beside(file, split, path)
    return found or None


def load(path: Path) -> Any:
    """The content of a json file; the functions below check it."""
    if os.path.exists(path) and not path.is_file():  # a pipe or a device would be read forever
        raise InputError(f"{path} is not a file: give the path of a COCO json file")
    try:
        raw = path.read_bytes()
        text = raw.decode(json.detect_encoding(raw))
        del raw  # before the records need its memory
        return json.loads(text, object_pairs_hook=slim)
    except OSError as reason:
        raise InputError(
            f"{path} cannot be read ({reason.strerror}): give the path of a COCO json file"
        ) from None
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path} is not a json file ({reason}): export it again") from None


def beside(file: Path, split: str, root: Path | None = None) -> Source:
    """An annotation file with the folders in which its images are looked for, in this order."""
    bases = list(dict.fromkeys(base for base in (root, file.parent.parent, file.parent) if base))
    above = [base.resolve().parent for base in bases]  # the demo set keeps its images there
    folders = SPLIT_FOLDERS.get(split, (split,))
    likely = [file.parent] if file.name == "_annotations.coco.json" else []
    likely += [base / folder for base in bases for folder in (*folders, "images")]
    likely += [base / "images" / folder for base in bases for folder in folders] + bases
    likely += [base / "VOCdevkit" / "VOC2012" / "JPEGImages" for base in (*bases, *above)]
    return Source(file, split, [folder for folder in likely if folder.is_dir()] or bases)


def slim(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object without what is never read, numbers packed."""
    record = {key: value for key, value in pairs if key in KEPT}
    if isinstance(record.get("segmentation"), list):
        record["segmentation"] = [packed(part, "d") for part in record["segmentation"]]
    for key, kind in (("counts", "i"), ("bbox", "d")):
        if key in record:
            record[key] = packed(record[key], kind)
    return record


def packed(numbers: Any, kind: str) -> Any:
    """A list of numbers as an array; anything else unchanged, to be refused by name later."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers
