"""Annotation formats, one file each. A new format is a file and its entry in READERS.

A reader has LAYOUT, the words for its layout in messages, and two functions:

find(root, split)  the Source of the split; None where the folder has another layout
read(source, bad)  the records `source.names` as COCO content, masks as polygons or RLE; those that
                   cannot be used go to `bad`. Only coco has none: data/dataset.py opens its files
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from data.errors import BadRecords, InputError
from data.readers import coco, sbd, voc
from data.readers.source import Source

READERS = (sbd, voc, coco)  # the first that finds its layout reads the folder


def find(root: Path, split: str, cache: Path, progress: bool, skip_bad: bool) -> Source:
    """The COCO json of a split; other formats are converted into `cache`, once.

    Raises:
        InputError: if no reader finds its layout, or the split cannot be converted.
    """
    for reader in READERS:
        source = reader.find(root, split)
        if source is not None:
            return source if reader is coco else convert(reader, source, cache, progress, skip_bad)
    raise InputError(
        f"{root} holds no data set of a known layout, looked for "
        f"{', '.join(reader.LAYOUT for reader in READERS)}: give a folder of one of these layouts, "
        "or name the files with --train-json, --val-json and --images"
    )


def convert(
    reader: ModuleType, source: Source, cache: Path, progress: bool, skip_bad: bool
) -> Source:
    name = "-".join(source.path.resolve().parts[-2:]).strip("/").replace(" ", "_")
    target = cache / f"{name}-{fingerprint(source, skip_bad)}" / f"instances_{source.split}.json"
    if not target.is_file():
        bad = BadRecords(skip_bad)
        title = f"reading {source.path.name} {source.split}"
        with tqdm(source.names, title, disable=not progress, leave=False) as names:
            content = reader.read(source._replace(names=names), bad)
        if len(bad):
            content["left_out"] = [one._asdict() for one in bad]
        write_json(content, target)
        if progress:
            print(f"converted to COCO format once: {target}")
    return source._replace(path=target)


def fingerprint(source: Source, skip_bad: bool) -> str:
    """Eight hex digits that change with the folder, the list of names, and any of the files."""
    mark = zlib.crc32(repr((str(source.path.resolve()), source.names, skip_bad)).encode())
    for file in source.files:
        if os.path.exists(file):  # the reader names a missing file
            state = file.stat()
            mark = zlib.crc32(f"{file.name} {state.st_size} {state.st_mtime_ns}".encode(), mark)
    return f"{mark:08x}"


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes beside the file and renames, so that half a file is never read."""
    text = json.dumps(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            with open(unfinished, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}): make room, or allow it in its folder"
        ) from error
