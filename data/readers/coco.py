"""COCO json, packed while the file is parsed.

COCO's file has half a gigabyte, and four times that as Python objects. So unknown keys are dropped
and lists of numbers become arrays as soon as a record is parsed. data/records.py checks the rest.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import records
from data.errors import BadRecord, InputError, counted
from data.images import upright_size
from data.readers.coco_dialects import dicts, normalise
from data.readers.image_files import locate
from data.readers.source import (
    HEAD,
    Source,
    ends_of,
    folders_in,
    head_of,
    split_in,
    split_of,
    top_keys,
)
from data.records import LISTS, OUTSIDE

NAME, TITLE = "coco", "COCO json"
LAYOUT = "annotations/instances_train.json, train/_annotations.coco.json, or one json file"

KEPT = {
    *LISTS, "left_out", "id", "name", "file_name", "width", "height", "void",
    "image_id", "category_id", "iscrowd", "segmentation", "size", "counts",
    "area", "bbox", "attributes", "extra", "supercategory", "isthing", "segments_info", "broken",
    "corners", "notes", "neg_category_ids", *BadRecord._fields,
}  # fmt: skip
CROWD_WORDS = {"": 0, "0": 0, "false": 0, "no": 0, "1": 1, "true": 1, "yes": 1}
PATTERNS = ("instances_*.json", "_annotations.coco.json", "*.json")
MOST_FOLDERS = 20  # of other names that are searched for images
MOST_FILES = 20  # of other names that are opened; more are one for each image
RESULTS = (
    "is a list of results, which names no images and no classes: give the json with the "
    "annotations of these images"
)


def find(path: Path) -> dict[str, Source] | None:
    """A json file, or the files in a folder or in `annotations` there, by the split in their names.

    Files with other names than a tool's are opened, to see their first keys.
    """
    if not path.is_dir():
        require_no_results([path])
        return {"all": beside(path, "all")} if is_coco(path) else None
    results: list[Path] = []
    for folder in (path / "annotations", path):
        for pattern in PATTERNS:
            files = sorted(folder.glob(pattern))
            if pattern == PATTERNS[-1]:
                files = [] if len(files) > MOST_FILES else files
                results += [one for one in files if is_results(one)]
                files = [one for one in files if is_coco(one)]
            files = [one for one in files if not is_results(one)]
            if files:
                return by_split(files, path)
    require_no_results(results)
    return None


def is_coco(path: Path) -> bool:
    """Whether the first keys of a file are those of COCO content."""
    start = head_of(path) if path.suffix.lower() == ".json" else ""
    keys = top_keys(start)
    if not keys or is_panoptic(path):
        return False
    records_first = keys.get("annotations", "0") in "[{" and '"image_id"' in start
    # Classes without annotations are the notes.json of Label Studio's YOLO export.
    classes_first = keys.get("categories") == "[" and (
        "annotations" in keys or path.stat().st_size > HEAD
    )
    return keys.get("images") == "[" or classes_first or records_first


def is_results(path: Path) -> bool:
    """Whether a file is a list of predictions."""
    start = head_of(path) if path.suffix.lower() == ".json" else ""
    return start.startswith("[") and '"image_id"' in start and '"score"' in start


def require_no_results(paths: Sequence[Path]) -> None:
    for path in filter(is_results, paths):
        raise InputError(f"{path} {RESULTS}")


def is_panoptic(path: Path) -> bool:
    """Whether the masks are in PNG files, of which the json names the segments."""
    text = ends_of(path) if path.suffix.lower() == ".json" else ""
    if not text.startswith("{"):
        return False
    return '"segments_info"' in text or ('"isthing"' in text and '"segmentation"' not in text)


def by_split(files: Sequence[Path], root: Path) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for file in files:
        split = split_in(file.stem) or ("all" if len(files) == 1 else split_of(subset(file)))
        if split in found and split in ("train", "val"):
            raise InputError(
                f"{root} has several COCO files for {split} ({found[split].path.name} and "
                f"{file.name}): name one with --{split}-json"
            )
        found.setdefault(split, beside(file, split, root))
    return found


def subset(file: Path) -> str:
    """The name of a subset in a file name."""
    return file.stem.removeprefix("instances_")


def load(path: Path, fix: str = "export it again", folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The content of a COCO json file of any dialect; "notes" lists the changes.

    Records are not checked yet. `folders` may hold the images, which give missing sizes. `fix` ends
    the message for a file that is not json.

    Raises:
        InputError: if it cannot be read, or has not the three lists.
    """
    content = parse(path, fix)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if content[0].keys() & {"image_id", "category_id"}:
            raise InputError(f"{path} {RESULTS}")
    records.require_lists(content, path)
    content["notes"] = [*records.notes(content), *normalise(content), *add_sizes(content, folders)]
    content.pop("counts", None)
    return content


def add_sizes(content: dict[str, Any], folders: Sequence[Path]) -> list[str]:
    """Adds missing sizes of images from their files; returns a note if there are any."""
    without = [
        one
        for one in dicts(content, "images")
        if not (one.get("width") and one.get("height")) and isinstance(one.get("file_name"), str)
    ]
    names = [one["file_name"] for one in without if not OUTSIDE.search(one["file_name"])]
    folder, files = locate(folders, names) if names and folders else (Path(), {})
    number = 0
    for one in without:
        if one["file_name"] in files:
            with contextlib.suppress(InputError):  # it is named as one without a size
                one["height"], one["width"] = upright_size(folder / files[one["file_name"]])
                number += 1
    return [f"it has no size of {counted(number, 'image')}, that of the file is used"] * (
        number > 0
    )


def parse(path: Path, fix: str = "export it again") -> Any:
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
        raise InputError(f"{path} is not a json file ({reason}): {fix}") from None


def beside(file: Path, split: str, root: Path | None = None) -> Source:
    """An annotation file with the folders that may hold its images, in order of preference."""
    bases = list(dict.fromkeys(base for base in (root, file.parent.parent, file.parent) if base))
    above = [base.resolve().parent for base in bases]  # the demo set keeps its images there
    places = [place for base in bases for place in (base, base / "images")]
    inside = [folder for place in places for folder in folders_in(place)]
    own = split_in(split) or split_in(file.stem)
    likely = [file.parent] if file.name == "_annotations.coco.json" else []
    likely += [folder for folder in inside if folder.name == subset(file)]
    likely += [folder for folder in inside if own and split_in(folder.name) == own]
    likely += [base / "images" for base in bases] + bases
    likely += [folder for folder in inside if folder.parent.name == "images"]
    likely += [base / "VOCdevkit" / "VOC2012" / "JPEGImages" for base in (*bases, *above)]
    given = root or file.parent  # beside it are the images of other data sets
    given = given.parent if given.name == "annotations" else given
    likely += [folder for folder in inside if given in folder.parents][:MOST_FOLDERS]
    likely = [folder for folder in dict.fromkeys(likely) if folder.is_dir()]
    return Source(file, split, likely or bases)


def slim(pairs: list[tuple[str, Any]]) -> Any:
    """A json object without unused keys, its numbers as arrays.

    Also normalises annotations by id (LIVECell), flat polygons (VIA), empty outlines, URLs for file
    names (LVIS), and "false" for iscrowd (Label Studio).
    """
    if pairs and isinstance(pairs[0][1], dict) and "image_id" in pairs[0][1]:
        return [value for _, value in pairs]
    record = {key: value for key, value in pairs if key in KEPT}
    outlines = record.get("segmentation")
    if isinstance(outlines, list):
        parts = [outlines] if outlines and isinstance(outlines[0], (int, float)) else outlines
        record["segmentation"] = [packed(part, "d") for part in parts] if any(parts) else []
    for key, kind in (("counts", "i"), ("bbox", "d")):
        if key in record:
            record[key] = packed(record[key], kind)
    if isinstance(crowd := record.get("iscrowd"), str):
        record["iscrowd"] = CROWD_WORDS.get(crowd.lower(), crowd)
    if record.get("file_name") is None and "width" in record:
        url = dict(pairs).get("coco_url")
        if isinstance(url, str):
            record["file_name"] = "/".join(url.split("/")[-2:])
    return record


def packed(numbers: Any, kind: str) -> Any:
    """A list of numbers as an array, anything else unchanged."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers
