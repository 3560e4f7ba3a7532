"""Converts other formats to COCO json; results are kept until their inputs change."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data import rle
from data.errors import BadRecords, InputError
from data.images import SUFFIXES
from data.readers.image_files import DEPTH, walk
from data.readers.source import Source

ORDER = ("train", "all", "val")  # of the splits whose classes come first


def convert(
    sources: Mapping[str, Source],
    splits: Sequence[str],
    cache: Path,
    skip_bad: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Source]:
    """The splits of a data set as sources whose path is a COCO json, in `cache` where their reader
    has another format.

    Where a format has no class ids, the classes of train, val and `splits` are joined by name:
    those of train first, so that no other split changes their ids.

    Raises:
        InputError: if a split cannot be read or written.
    """
    done = {}
    for split in splits:
        reader = sources[split].reader
        if not hasattr(reader, "read"):
            done[split] = sources[split]
            continue
        joined = [split]
        if not getattr(reader, "OWN_IDS", True):
            joined = [*ORDER, *(each for each in splits if each not in ORDER)]
            joined = [each for each in joined if each in sources and sources[each].reader is reader]
        parts = {each: sources[each] for each in joined}
        path = next(iter(parts.values())).path.resolve()
        name = "-".join(path.parts[-2:]).strip("/").replace(" ", "_")
        folder = cache / f"{name}-{fingerprint(parts, skip_bad)}"
        targets = {each: folder / f"instances_{each}.json" for each in joined}
        if not all(target.is_file() for target in targets.values()):
            contents = {each: read(one, each, skip_bad, progress) for each, one in parts.items()}
            require_images(sources[split], contents[split])
            if len(contents) > 1:
                join_classes(contents)
            for each, content in contents.items():
                for file_name, file in content.pop("embedded", {}).items():
                    place = folder / f"images_{each}" / file_name
                    write(reader.embedded_image(Path(file)), place)
                write_json(content, targets[each])
                report(f"converted to COCO format once: {targets[each]}")
        done[split] = sources[split]._replace(path=targets[split])
        if (held := folder / f"images_{split}").is_dir():
            done[split] = done[split]._replace(images=[held])
    return done


def read(source: Source, split: str, skip_bad: bool, progress: bool) -> dict[str, Any]:
    """COCO content of one split, with what its reader left out."""
    bad = BadRecords(skip_bad)
    title = f"reading {source.path.name} {split}"
    with tqdm(source.names, title, disable=None if progress else True, leave=False) as names:
        shown, reader = source._replace(names=names), source.reader
        content = guarded(reader, source.path, reader.read, shown, bad)
    if len(bad):
        content["left_out"] = [one._asdict() for one in bad]
    # As a list, because the parser of COCO json drops unknown keys of records.
    content["counts"] = list(content.get("counts", {}).items())
    return content


def require_images(source: Source, content: dict[str, Any]) -> None:
    """Raises InputError if a split has no image, with what was left out of it."""
    if content["images"]:
        return
    left = [f"{number} {what}" for what, number in content["counts"]]
    left += [one["reason"] for one in content.get("left_out", ())][:1]
    raise InputError(
        f"{source.path}: {source.reader.TITLE} without an annotated image that can be used "
        f"({'; '.join(left) or 'none is listed'}): annotate one, or correct what is left out"
    )


def guarded(reader: Any, path: Path, function: Callable, *arguments: Any) -> Any:
    """Calls a function of a reader; any exception becomes an InputError."""
    try:
        return function(*arguments)
    except InputError:
        raise
    except Exception as error:  # files hold what no reader expects
        raise InputError(
            f"{path}: failed to read as {reader.TITLE} ({type(error).__name__}: {error}): export "
            "it again, or name another format with --format"
        ) from error


def join_classes(contents: Mapping[str, dict[str, Any]]) -> None:
    """Numbers the classes of all splits from 1, by name, in order of appearance."""
    ids: dict[str, int] = {}
    for content in contents.values():
        for category in content["categories"]:
            ids.setdefault(category["name"], len(ids) + 1)
    for content in contents.values():
        new = {each["id"]: ids[each["name"]] for each in content["categories"]}
        for annotation in content["annotations"]:
            if annotation.get("category_id") in new:
                annotation["category_id"] = new[annotation["category_id"]]
        content["categories"] = [{"id": id_, "name": name} for name, id_ in ids.items()]


def fingerprint(parts: Mapping[str, Source], skip_bad: bool) -> str:
    """Hash of the paths, the lists of names, the state of all files and images, and our code."""
    mark = 0

    def add(text: str) -> None:
        nonlocal mark
        mark = zlib.crc32(text.encode("utf-8", "surrogatepass"), mark)

    def add_state(file: Path) -> None:
        if os.path.exists(file):  # the reader reports missing files
            state = os.stat(file)  # ctime: copies may keep the time of writing
            times = state.st_mtime_ns, state.st_ctime_ns
            add(f"{os.path.basename(file)} {state.st_size} {times}")

    for code in (*sorted(Path(__file__).parent.glob("*.py")), Path(rle.__file__)):
        mark = zlib.crc32(code.read_bytes(), mark)
    for split, source in parts.items():
        folders = [os.path.abspath(folder) for folder in source.images]
        add(repr((split, str(source.path.resolve()), folders, list(source.names), skip_bad)))
        for file in source.files:
            add_state(file)
    # Some sizes come from the image files.
    for folder in dict.fromkeys(folder for source in parts.values() for folder in source.images):
        for place, names in walk(folder, DEPTH):
            for name in names:
                if name.lower().endswith(SUFFIXES):
                    add_state(folder / place / name)
    return f"{mark:08x}"


def write_json(content: dict[str, Any], path: Path) -> None:
    write(json.dumps(content).encode(), path)


def write(content: bytes, path: Path) -> None:
    """Writes a file atomically."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}): make room, or allow it in its folder"
        ) from error
