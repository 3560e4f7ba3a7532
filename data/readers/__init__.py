"""Annotation formats, one file each. A new format is a file and its entry in READERS.

A reader has two functions, and LAYOUT, the words for its layout in messages:

find(root, split)            the Source of the split; None where the folder has another layout
read(source, bad, progress)  the annotations as COCO content, masks as RLE or polygons; what cannot
                             be used goes to `bad`
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import BadRecords, InputError
from data.readers import coco, sbd, voc
from data.readers.source import Source

READERS = (sbd, voc, coco)  # the first that knows a folder reads it


def find(root: Path, split: str, cache: Path, progress: bool, skip_bad: bool) -> Source:
    """The COCO json of a split; other formats are converted into `cache`, once.

    Raises:
        InputError: if no reader knows the folder, or the split cannot be converted.
    """
    for reader in READERS:
        source = reader.find(root, split)
        if source is not None and reader is not coco:
            return converted(reader, source, cache, progress, skip_bad)
        if source is not None:
            return source
    raise InputError(
        f"{root} holds no data set that is known here, looked for "
        f"{', '.join(reader.LAYOUT for reader in READERS)}: give a folder of one of these layouts, "
        "or name the files with --train-json, --val-json and --images"
    )


def converted(reader: Any, source: Source, cache: Path, progress: bool, skip_bad: bool) -> Source:
    name = "-".join(source.path.resolve().parts[-2:]).strip("/").replace(" ", "_")
    target = cache / f"{name}-{fingerprint(source, skip_bad)}" / f"instances_{source.split}.json"
    if not target.is_file():
        bad = BadRecords(skip_bad)
        content = reader.read(source, bad, progress)
        if len(bad):
            content["left_out"] = [one._asdict() for one in bad]
        write_json(content, target)
        if progress:
            print(f"converted to COCO format once: {target}")
    return replace(source, path=target)


def fingerprint(source: Source, skip_bad: bool) -> str:
    """Eight hex digits that change with the folder, the list of names, and any of the files."""
    mark = zlib.crc32(repr((str(source.path.resolve()), source.names, skip_bad)).encode())
    for file in source.files:
        try:
            state = os.stat(file)
        except OSError:
            continue  # the reader names the missing file
        mark = zlib.crc32(f"{file.name} {state.st_size} {state.st_mtime_ns}".encode(), mark)
    return f"{mark:08x}"


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes beside the file and renames, so that half a file is never read."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}): make room, or allow it in its folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
