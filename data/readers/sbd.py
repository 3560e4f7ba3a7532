"""SBD: one .mat file for each image, no void; beside VOC the training set without VOC's val."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from data import rle
from data.errors import BadRecords, InputError
from data.images import upright_size
from data.readers.source import Objects, Source, coco_content, names_of, require_size
from data.readers.voc import CLASS_NAMES, find_root, list_of

NAME, TITLE = "sbd", "SBD"
LAYOUT = "img, inst (one .mat file for each image)"
AGAIN = "unpack the SBD archive again"
LARGEST = 1 << 20  # bytes; SBD's own are below a tenth, and what is packed may grow a lot


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
    return coco_content(source, lambda name: objects(source.path, name), CLASS_NAMES, bad)


def objects(folder: Path, name: str) -> Objects:
    path, image = folder / "inst" / f"{name}.mat", f"{name}.jpg"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        content = scipy.io.loadmat(str(path))["GTinst"][0, 0]
        indices = np.asarray(content["Segmentation"])  # [H,W]
        classes = np.asarray(content["Categories"]).ravel().astype(np.int64)
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
    named = np.isin(ids, np.arange(len(CLASS_NAMES)) + 1)
    reason = f"{path} has an object without a class: {AGAIN}"
    broken = [(reason, masks[i]) for i in np.flatnonzero(~named)]
    used = [masks[i] for i in np.flatnonzero(named)]
    return Objects(image, size, ids[named], used, None, broken)
