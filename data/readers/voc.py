"""VOC 2012 and SBD instance maps -> the COCO format of data/dataset.py, masks as RLE.

VOC keeps two palette pictures for each photograph: SegmentationClass and SegmentationObject. They
are read as indices. 255 in either is void: carried along in the image record, so that it is
neither object nor background. An object's class is the majority of SegmentationClass under its id.
SBD keeps one .mat file for each photograph and knows no void.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from tqdm import tqdm

from data import rle
from data.errors import BadRecords, InputError
from data.images import opened, upright_size

CLASS_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
VOID = 255

# Folder and ending of the three files of each picture.
SOURCES = (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("SegmentationObject", ".png"))

_LONGEST_NAME = 200
_PARTS = (*(part for part, _ in SOURCES), "ImageSets/Segmentation")
_NAME_FILES = ("classes.txt", "labels.txt")

_LARGEST_MAT = 1 << 20  # bytes; SBD's own are below a tenth, and what is packed may grow a lot

# labels [N] and numbers [N] of the objects, the map of these numbers [H,W], void [H,W]
_Objects = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def find_root(path: str | Path) -> Path | None:
    """The VOC2012 folder at or below `path` (itself, VOCdevkit, or what holds VOCdevkit).

    None when there is no sign of one. Raises InputError when only a part of one is there.
    """
    path = Path(path)
    places = [path, path / "VOC2012", path / "VOCdevkit" / "VOC2012"]
    root = max(
        places,
        key=lambda place: (
            sum((place / part).is_dir() for part in _PARTS),
            place.name == "VOC2012" and place.is_dir(),
        ),
    )
    missing = [part for part in _PARTS if not (root / part).is_dir()]
    if len(missing) >= len(_PARTS) - 1 and root.name != "VOC2012":
        return None  # one folder called JPEGImages is no VOC yet
    if missing:
        raise InputError(
            f"{root} is no whole VOC folder, {', '.join(missing)} {_is_are(missing)} missing: "
            "unpack the VOC 2012 trainval archive there again"
        )
    return root


def class_names(root: Path) -> list[str]:
    """Names of the classes 1, 2, ...: from classes.txt or labels.txt if there, else VOC's 20."""
    for name in _NAME_FILES:
        if (root / name).is_file():
            lines = _lines(root / name)
            if not lines:
                raise InputError(f"{root / name} is empty: write one class name per line")
            return lines
    return list(CLASS_NAMES)


def names_of(root: Path, split: str) -> list[str]:
    """The names in ImageSets/Segmentation/<split>.txt; InputError where there are none."""
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise InputError(f"{path} is missing: list one picture name per line there")
    names = _names(path)
    if not names:
        raise InputError(f"{path} is empty: list one picture name per line there")
    return names


def convert(
    voc_root: str | Path, split: str, progress: bool = True, skip_bad: bool = False
) -> dict[str, Any]:
    """One split of a VOC2012 folder as a COCO dict; file names are relative to JPEGImages.

    With `skip_bad` pictures that cannot be used are listed under "left_out" instead of raising.
    """
    root = Path(voc_root)
    names, classes = names_of(root, split), class_names(root)
    bad = BadRecords(skip_bad)
    names = _with_files(root, split, names, bad)
    shown = tqdm(names, f"reading VOC {split}", disable=not progress, leave=False)
    records = _good(
        shown, lambda name: _voc_objects(root, name, len(classes)), root / "JPEGImages", bad
    )
    return _coco(records, classes, bad)


def read_sbd(
    root: str | Path,
    names: Sequence[str] | None = None,
    without: Sequence[str] = (),
    progress: bool = True,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """SBD (img/*.jpg, inst/*.mat) as a COCO dict: the pictures `names` (all), minus `without`.

    VOC's val pictures belong in `without`, as SBD holds many of them. `skip_bad` as in `convert`.
    """
    root = Path(root)
    for part in ("img", "inst"):
        if not (root / part).is_dir():
            raise InputError(f"{root / part} is missing: give the SBD folder with img and inst")
    known = sorted(path.stem for path in (root / "inst").glob("*.mat")) if names is None else names
    chosen = [name for name in known if name not in set(without)]
    if not chosen:
        raise InputError(f"{root / 'inst'} holds no picture to use: unpack the SBD archive again")
    bad = BadRecords(skip_bad)
    shown = tqdm(chosen, "reading SBD", disable=not progress, leave=False)
    records = _good(shown, lambda name: _sbd_objects(root, name), root / "img", bad)
    return _coco(records, list(CLASS_NAMES), bad)


def sbd_names(root: Path, split: str) -> list[str]:
    """The picture names of SBD's own <split>.txt."""
    path = root / f"{split}.txt"
    if not path.is_file():
        raise InputError(f"{path} is missing: unpack the SBD archive again, its lists included")
    return _names(path)


def write_json(content: dict[str, Any], out_file: str | Path) -> Path:
    """Writes beside the target and renames, so that nobody ever sees half a file."""
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out_file.with_name(f".{out_file.name}.{os.getpid()}")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, out_file)
    finally:
        unfinished.unlink(missing_ok=True)
    return out_file


def objects_of(classes: np.ndarray, objects: np.ndarray) -> _Objects:
    """Class map and object map, uint8 [H,W] -> class ids and object numbers [N], the map of these
    numbers [H,W], void bool [H,W].

    Void pixels belong to no object: the map is 0 there, as on background. Raises InputError for an
    object without a class.
    """
    pairs = objects.astype(np.int32) * 256 + classes
    counts = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)
    counts = counts[1:VOID, :VOID]  # [object 1..254, class 0..254]: no void in either
    ids = np.flatnonzero(counts.sum(1)) + 1
    votes = counts[ids - 1, 1:]
    unnamed = ids[votes.sum(1) == 0]
    if len(unnamed):
        raise InputError(f"object {unnamed[0]} lies on background only")
    void = (classes == VOID) | (objects == VOID)
    return votes.argmax(1) + 1, ids, np.where(void, 0, objects), void


def _voc_objects(root: Path, name: str, class_count: int) -> _Objects:
    paths = [root / part / f"{name}.png" for part in _PARTS[1:3]]
    classes, objects = (_indices(path) for path in paths)
    size = upright_size(root / "JPEGImages" / f"{name}.jpg")
    for path, indices in zip(paths, (classes, objects), strict=True):
        if indices.shape != size:
            raise InputError(
                f"{path} is {_wide(indices.shape)} where its picture {name}.jpg is {_wide(size)} "
                "(width x height): draw it at the picture's size"
            )
    try:
        labels, ids, numbers, void = objects_of(classes, objects)
    except InputError as reason:
        raise InputError(
            f"{paths[1]}: {reason} in SegmentationClass/{name}.png: "
            "paint its class there, or remove it here"
        ) from None
    if len(labels) and labels.max() > class_count:
        raise InputError(
            f"{paths[0]} uses class {labels.max()} but only {class_count} classes have names: "
            f"write all names, one per line, into {root / _NAME_FILES[0]}"
        )
    return labels, ids, numbers, void


def _sbd_objects(root: Path, name: str) -> _Objects:
    path = root / "inst" / f"{name}.mat"
    if not path.is_file():
        raise InputError(f"{path} is missing: unpack the SBD archive again")
    try:
        if path.stat().st_size > _LARGEST_MAT:
            raise ValueError(f"more than {_LARGEST_MAT} bytes")
        content = scipy.io.loadmat(str(path))["GTinst"][0, 0]
        objects = np.asarray(content["Segmentation"])
        categories = np.asarray(content["Categories"]).ravel().astype(np.int64)
        if objects.dtype.kind not in "ui":
            raise ValueError("its Segmentation holds no whole numbers")
    except Exception as reason:  # the reader of this old format raises nearly everything
        raise InputError(
            f"{path} cannot be read as SBD ({type(reason).__name__}: {reason}): "
            "unpack the SBD archive again"
        ) from None
    size = upright_size(root / "img" / f"{name}.jpg")
    if objects.shape != size:
        raise InputError(
            f"{path} is {_wide(objects.shape)} where its picture {name}.jpg is {_wide(size)} "
            "(width x height): unpack the SBD archive again"
        )
    ids = np.unique(objects[objects > 0]).astype(np.int64)
    if len(ids) and (ids[-1] > len(categories) or not _are_classes(categories[ids - 1])):
        raise InputError(f"{path} has an object without a class: unpack the SBD archive again")
    return categories[ids - 1], ids, objects, np.zeros(size, dtype=bool)


def _good(
    names: Iterable[str], read: Callable[[str], _Objects], folder: Path, bad: BadRecords
) -> Iterator[tuple[str, _Objects]]:
    """File names of the pictures that can be used, with what is on them; the others go to `bad`."""
    for name in names:
        try:
            yield f"{name}.jpg", read(name)
        except InputError as error:
            bad.take(error, folder / f"{name}.jpg", f"picture {name}")


def _coco(
    records: Iterable[tuple[str, _Objects]], classes: list[str], bad: BadRecords
) -> dict[str, Any]:
    images, annotations = [], []
    for file_name, (labels, ids, numbers, void) in records:
        height, width = void.shape
        image = {"id": len(images) + 1, "file_name": file_name, "width": width, "height": height}
        if void.any():
            image["void"] = rle.to_json(rle.encode(void[None])[0])
        rles = [rle.encode((numbers == number)[None])[0] for number in ids]
        annotations += _annotations(labels, rles, image["id"], len(annotations) + 1)
        images.append(image)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    return content | ({"left_out": [one._asdict() for one in bad]} if len(bad) else {})


def _annotations(
    labels: np.ndarray, rles: list[rle.Rle], image_id: int, first_id: int
) -> list[dict[str, Any]]:
    boxes = rle.boxes(rles)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": int(labels[i]),
            "segmentation": rle.to_json(rles[i]),
            "area": int(area),
            "bbox": boxes[i].tolist(),
            "iscrowd": 0,
        }
        for i, area in enumerate(rle.area(rles))
    ]


def _indices(path: Path) -> np.ndarray:
    """A palette (or grey) PNG as indices, uint8 [H,W]."""
    with opened(path, "write it again") as file:
        mode = file.mode
        indices = np.array(file)
    if mode not in ("P", "L") or indices.ndim != 2:
        raise InputError(
            f"{path} is a picture of mode {mode}: save it as a palette PNG whose values are the "
            "class or object numbers"
        )
    return indices


def _with_files(root: Path, split: str, names: Sequence[str], bad: BadRecords) -> list[str]:
    """The names whose three files are there."""
    missing: dict[str, str] = {}  # name -> its first file that is
    for part, suffix in SOURCES:
        there = set(os.listdir(root / part))
        for name in names:
            if name + suffix not in there:
                missing.setdefault(name, f"{part}/{name}{suffix}")
    source = root / _PARTS[3] / f"{split}.txt"
    for name, file in missing.items():
        error = InputError(
            f"{source} lists {name} but {root / file} is missing ({len(missing)} such): add the "
            "file or drop the name from the list"
        )
        bad.take(error, source, name)
    return [name for name in names if name not in missing]


def _names(path: Path) -> list[str]:
    """The first word of each line, a picture's name; InputError for what is no name but a path."""
    names = [line.split()[0] for line in _lines(path)]
    for name in names:
        if name in (".", "..") or re.search(r"[/\\\0]", name) or len(name) > _LONGEST_NAME:
            raise InputError(
                f"{path} lists {name!r}, which is no name of a picture: write names without "
                "folder and ending"
            )
    return names


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as reason:
        raise InputError(f"{path} cannot be read ({reason}): save it as UTF-8 text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _are_classes(categories: np.ndarray) -> bool:
    return bool(((categories >= 1) & (categories <= len(CLASS_NAMES))).all())


def _wide(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in reversed(size))


def _is_are(items: Sequence[str]) -> str:
    return "is" if len(items) == 1 else "are"
