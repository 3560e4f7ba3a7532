"""SBD: one .mat file for each image, no void; beside VOC the training set without VOC's val."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from data import rle
from data.errors import BadRecords, FileError, InputError
from data.images import upright_size
from data.readers.content import Content
from data.readers.source import Source, names_of, require_size
from data.readers.voc import CLASS_NAMES, find_root, list_of

NAME, TITLE = "sbd", "SBD"
LAYOUT = "img, inst (one .mat file for each image)"
AGAIN = "unpack the SBD archive again"


def find(path: Path) -> dict[str, Source] | None:
    """The splits of SBD's own lists; beside VOC all of it for training, without VOC's val."""
    places = (path, path / "dataset", path / "benchmark_RELEASE" / "dataset")
    folder = next((p for p in places if (p / "inst").is_dir() and (p / "img").is_dir()), None)
    if folder is None:
        return None
    voc = find_root(path)
    if voc is not None:
        known = {file.stem for file in (folder / "inst").glob("*.mat")}
        names = {"train": sorted(known - set(list_of(voc, "val")))}
    else:
        advice = f"{AGAIN}, its lists included"
        lists = [split for split in ("train", "val") if (folder / f"{split}.txt").is_file()]
        names = {
            split: names_of(folder / f"{split}.txt", advice, folder / "img" / "*.jpg")
            for split in lists or ["train"]
        }
    if not all(names.values()):
        raise InputError(f"{folder / 'inst'} holds no image to use: {AGAIN}")
    return {
        split: Source(
            folder, split, [folder / "img"], listed, [folder / "inst" / f"{n}.mat" for n in listed]
        )
        for split, listed in names.items()
    }


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The split as COCO content; file names are relative to img."""
    content = Content(bad, CLASS_NAMES)
    for name in source.names:
        with bad.noting(source.path, f"image {name}"):
            add_image(content, source.path, name)
    return content.finished()


def add_image(content: Content, folder: Path, name: str) -> None:
    path, image = folder / "inst" / f"{name}.mat", f"{name}.jpg"
    try:
        found = scipy.io.loadmat(str(path))["GTinst"][0, 0]
        indices = np.asarray(found["Segmentation"])  # [H,W]
        classes = np.asarray(found["Categories"]).ravel().astype(np.int64)
        if indices.dtype.kind not in "ui":
            raise ValueError("its Segmentation holds no whole numbers")
    except Exception as reason:  # the reader of this old format raises nearly everything
        raise InputError(
            f"{path} cannot be read as SBD ({type(reason).__name__}: {reason}): {AGAIN}"
        ) from None
    size = upright_size(folder / "img" / image)
    require_size(path, indices.shape, image, size)
    numbers = np.unique(indices[indices > 0]).astype(np.int64)
    masks = rle.from_index_map(indices, numbers)
    ids = np.append(classes, 0)[np.minimum(numbers - 1, len(classes))]
    record = content.add_map(image, size, folder / "img" / image)
    for id_, mask in zip(ids.tolist(), masks, strict=True):
        if 1 <= id_ <= len(CLASS_NAMES):
            content.add(record, CLASS_NAMES[id_ - 1], [mask])
        else:
            error = FileError(f"{path} has an object without a class: {AGAIN}")
            content.add_broken(record, None, error, folder, f"image {name}", "", [mask])
