"""Annotation formats, one file each. A new format is a file and its entry in READERS.

A reader has NAME, the word for --format; TITLE and LAYOUT, the words for it in messages; and

find(path)         the splits of the data set in this folder or file, cheaply; None where it has
                   another format. It looks at `path` itself: folders called train or val, and those
                   one level below, are passed to it here
read(source, bad)  the records `source.names` as COCO content, masks as polygons or RLE; those that
                   cannot be used go to `bad`. Only coco has none: data/dataset.py opens its files

Two are optional. OWN_IDS = False: the format has class names but no ids, so the classes of all
splits are numbered together. YIELDS_TO: names of formats that are meant where both fit.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from data.errors import InputError, counted
from data.images import SUFFIXES
from data.readers import (
    ade20k,
    cityscapes,
    coco,
    cvat_masks,
    cvat_xml,
    darwin,
    datumaro,
    davis,
    huggingface,
    id_images,
    imagej_roi,
    label_studio,
    labelme,
    openimages,
    panoptic,
    png_per_object,
    qupath,
    sbd,
    spacenet,
    supervisely,
    via,
    voc,
    yolo,
)
from data.readers.cache import guarded
from data.readers.image_files import DEPTH, walk
from data.readers.maps import images_by_stem, is_like_a_map
from data.readers.source import SPLITS, Source, folders_in, head_of

READERS = (
    coco, voc, sbd, yolo, labelme, cvat_xml, cvat_masks, label_studio, via, id_images,
    png_per_object, panoptic, cityscapes, darwin, datumaro, davis, openimages, ade20k, supervisely,
    qupath, imagej_roi, spacenet, huggingface,
)  # fmt: skip
TOGETHER = {"voc", "sbd"}  # one data set: SBD adds training images to VOC
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
DETAILS = re.compile(r"( \(|; |, or ).*")  # of a layout, left out of long messages
MOST_FOLDERS = 200  # subfolders that are searched
MOST_FILES = 100_000  # counted for a message
MOST_LOOKED_AT = 3  # files of a folder that are opened for a message
LABELBOX = re.compile(r'"(Labeled Data|instanceURI|dataRow|data_row)"\s*:')

Reading = dict[str, Source]


def recognise(path: Path, format: str | None = None) -> Reading:
    """Split -> its source, of the data set in a folder or a file; `format` is the NAME of a reader.

    Raises:
        InputError: if it is of no known format, or of more than one.
    """
    if not path.exists():
        raise InputError(
            f"{path} is not a folder or a file: give the folder of the data set, or its json, xml, "
            "csv or yaml, with --data"
        )
    if path.is_file() and path.suffix.lower() in ARCHIVES and not imagej_roi.is_roi(path):
        raise InputError(f"{path} is an archive: unpack it and give the folder")
    readers = [one for one in READERS if format in (None, one.NAME)]
    if not readers:
        known = ", ".join(one.NAME for one in READERS)
        raise InputError(f"--format {format}: there is no such format; known are {known}")
    problems: list[InputError] = []
    for places in search_levels(path):
        found = []
        for place in places:
            found += detect(place, readers, problems)
        if found:
            return choose([*found, *other_formats(found, path, readers)], path)
    if problems:
        raise problems[0]
    if format is not None:
        raise InputError(
            f"{path} is no data set of --format {format} ({readers[0].TITLE}: "
            f"{readers[0].LAYOUT}): leave the option out to see what it is"
        )
    raise InputError(unknown_format(path, readers))


def search_levels(path: Path) -> list[list[Path]]:
    """The folder or file, then its subfolders other than splits."""
    if not path.is_dir():
        return [[path]]
    below = sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] not in "._")
    below = [each for each in below if each.name.lower() not in SPLITS]
    return [[path], below[:MOST_FOLDERS]]


def detect(place: Path, readers: Iterable[ModuleType], problems: list[InputError]) -> list[Reading]:
    """What each reader finds in a folder, else in its split folders; errors go to `problems`."""

    def find(reader: ModuleType, folder: Path) -> Reading:
        try:
            found = guarded(reader, folder, reader.find, folder) or {}
        except InputError as error:
            problems.append(error)
            found = {}
        return {split: one._replace(reader=reader) for split, one in found.items()}

    found = [splits for reader in readers if (splits := find(reader, place))]
    if found or not place.is_dir():
        return found
    folders: dict[str, Path] = {}
    for folder in sorted(place.iterdir()):
        if folder.is_dir() and folder.name.lower() in SPLITS:
            folders.setdefault(SPLITS[folder.name.lower()], folder)
    for reader in readers:
        splits = {}
        for split, folder in folders.items():
            inside = find(reader, folder)
            if len(inside) == 1:  # else it is a data set with splits
                splits[split] = next(iter(inside.values()))._replace(split=split)
        found += [splits] if splits else []
    return found


def other_formats(
    found: Sequence[Reading], path: Path, readers: Iterable[ModuleType]
) -> list[Reading]:
    """Data sets of other formats in the subfolders that those in `found` do not use."""
    sources = [source for one in found for source in one.values()]
    names = [name for one in sources if one.path == path for name in one.names]
    if not names or any("/" not in name for name in names):
        return []
    used = {name.split("/")[0] for name in names}
    others = [reader for reader in readers if all(reader is not one.reader for one in sources)]
    unused = [place for place in folders_in(path) if place.name not in used][:MOST_FOLDERS]
    return [each for place in unused for each in detect(place, others, [])]


def choose(found: Sequence[Reading], path: Path) -> Reading:
    """One of several readings; raises InputError if the choice is ambiguous."""
    readers = {reader_of(one).NAME: reader_of(one) for one in found}
    meant = {
        name: reader
        for name, reader in readers.items()
        if not any(other in readers for other in getattr(reader, "YIELDS_TO", ()))
    }
    found = [one for one in found if reader_of(one).NAME in meant]
    if len(found) > 1 and meant.keys() == TOGETHER and len(found) == 2:
        own = {reader_of(one).NAME: one for one in found}
        return own["voc"] | own["sbd"]
    if len(meant) > 1:
        readable = " and ".join(f"{reader.TITLE} ({name})" for name, reader in meant.items())
        raise InputError(
            f"{path} can be read as {readable}: choose one with --format "
            f"{' or --format '.join(meant)}"
        )
    if len(found) > 1:
        places = " and ".join(str(next(iter(one.values())).path) for one in found[:3])
        raise InputError(
            f"{path} holds {len(found)} data sets ({next(iter(meant.values())).TITLE}: {places}): "
            "give one of them"
        )
    return found[0]


def reader_of(reading: Reading) -> ModuleType:
    return next(iter(reading.values())).reader


def unknown_format(path: Path, readers: Sequence[ModuleType]) -> str:
    """The message for a folder or file of no known format: its content and the known formats."""
    tried = "; ".join(f"{one.NAME}: {DETAILS.sub('', one.LAYOUT)}" for one in readers)
    fix = "or name COCO files with --train-json, --val-json and --images"
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return f"{path} is an image: give the folder of the data set, or its file of annotations"
    for file in [path, *sorted(path.glob("*json"))[:MOST_LOOKED_AT]]:
        if LABELBOX.search(head_of(file)):
            return (
                f"{file} is an export of Labelbox, whose masks are web links that expire: download "
                f"them while they are valid and save them as {png_per_object.LAYOUT}, or convert "
                "the export to COCO json with the tools of Labelbox"
            )
    if path.is_file():
        return f"{path} is no annotation file of a known format, tried {tried}: give another, {fix}"
    counts = suffixes(path)
    if not counts:
        return f"{path} holds no files: give the folder with the images and their annotations"
    listed = ", ".join(f"{number} {suffix}" for suffix, number in counts.most_common(6))
    listed += " file" if counts.total() == 1 else " files"
    archives = [suffix for suffix in counts if suffix in ARCHIVES]
    if archives:
        return f"{path} holds {listed}: unpack the {archives[0]} file and give its folder"
    images = sum(counts[suffix] for suffix in SUFFIXES)
    if images and images == counts.total():
        if folders := folders_of_maps(path):
            return (
                f"{path} holds {counted(images, 'image')}; those in {' and '.join(folders)} look "
                f"like masks: arrange them as {id_images.LAYOUT}; or, one file for each object, as "
                f"{png_per_object.LAYOUT}"
            )
        return (
            f"{path} holds {counted(images, 'image')} and no annotations: draw the objects with an "
            "annotation tool and save them there, as LabelMe or COCO json for example; "
            "sbin/predict.sh needs no annotations"
        )
    return f"{path} holds no data set of a known layout, but {listed}; tried {tried}: {fix}"


def folders_of_maps(path: Path) -> list[str]:
    """The folders whose first images look like masks."""
    found = []
    for folder, _ in walk(path, DEPTH)[:MOST_FOLDERS]:
        names = sorted(images_by_stem(path / folder, 0).values())[:MOST_LOOKED_AT]
        if names and all(is_like_a_map(path / folder / name) for name in names):
            found.append(str(path / folder))
    return found


def suffixes(path: Path) -> Counter[str]:
    """Numbers of the files in and below a folder, by suffix."""
    counts: Counter[str] = Counter()
    for _, _, names in os.walk(path):
        counts.update(os.path.splitext(name)[1].lower() or name for name in names)
        if counts.total() > MOST_FILES:
            break
    return counts
