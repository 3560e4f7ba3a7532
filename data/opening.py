"""Opens the splits of the data set that a user names."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data import readers
from data.dataset import CocoDataset
from data.errors import InputError, counted
from data.images import SUFFIXES
from data.readers import coco
from data.readers.cache import convert
from data.readers.source import Source
from data.records import Dropped
from data.split import hold_out

PARTS = ("train", "val")  # of data without a validation split


def open_datasets(
    data: str | Path | None = None,
    train_json: str | Path | None = None,
    val_json: str | Path | None = None,
    images: str | Path | None = None,
    *,
    splits: Sequence[str] | None = ("train", "val"),
    format: str | None = None,
    val_fraction: float = 0.0,
    lists: Mapping[str, Sequence[str]] | None = None,
    cache: str | Path = Path("datasets") / "converted",
    crowd_as_instances: bool = False,
    keep_crowds: bool = False,
    boxes_as_masks: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, CocoDataset]:
    """Split -> data set, from a folder or file, or from json files, which override those of the
    folder. All splits have the classes of the first.

    Without a validation split, train and val are parts of the one that exists; with a fraction of
    0, both are all images.

    Args:
        images: the image folder, found automatically if not given.
        splits: those to open; None: all that the data set has, undivided.
        format: the NAME of a reader, if several fit.
        val_fraction: fraction of images for a missing validation split.
        lists: file names of the parts, as an earlier run divided them.
        cache: folder of converted annotations.
        report: prints what was recognised and decided, if `progress`.

    Raises:
        InputError: if no layout is found, a split is missing, or the categories differ.
    """
    report = report if progress else lambda text: None
    root = None if data is None else Path(data)
    named = {
        split: coco.beside(Path(file), split, root)._replace(reader=coco)
        for split, file in (("train", train_json), ("val", val_json))
        if file is not None
    }
    sources = found_in(root, named, splits, format) | named
    if images is not None:
        sources = {split: one._replace(images=[Path(images)]) for split, one in sources.items()}
    wanted = list(sources if splits is None else splits)
    if splits is not None and "all" in sources and "all" not in splits:
        sources.setdefault("train", sources.pop("all"))
    divided = splits is not None and "val" not in sources and "train" in sources
    needed = dict.fromkeys("train" if divided and split == "val" else split for split in wanted)
    for split in needed:
        if split not in sources:
            raise InputError(
                f"there are no {split} annotations, {data or 'what was named'} has "
                f"{', '.join(sources)}: add them, or name a COCO file with "
                f"--{split if split in PARTS else 'val'}-json"
            )
    files = convert(sources, list(needed), Path(cache), skip_bad, progress, report)
    opened = {
        split: CocoDataset(
            file.path,
            file.images,
            name=split,
            source=sources[split].path,
            crowd_as_instances=crowd_as_instances,
            keep_crowds=keep_crowds,
            boxes_as_masks=boxes_as_masks,
            skip_bad=skip_bad,
        )
        for split, file in files.items()
    }
    return_freed_memory()
    for split, one in opened.items():
        one.own_ids = getattr(sources[split].reader, "OWN_IDS", True)
    first, *others = opened.values()
    for other in others:
        other.use_classes([one._asdict() for one in first.categories], str(first.source))
    if recognised := {split: one for split, one in opened.items() if split not in named}:
        report(describe({split: sources[split] for split in recognised}, recognised))
    if divided:
        opened |= divide(opened["train"], wanted, val_fraction, lists, report)
    return {split: opened[split] for split in wanted}


def return_freed_memory() -> None:
    """Returns the memory of parsed files to the system, with glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def found_in(
    root: Path | None,
    named: Mapping[str, Source],
    splits: Sequence[str] | None,
    format: str | None,
) -> dict[str, Source]:
    """The splits recognised in the folder or file, except those that were named as files."""
    if root is None:
        if not named:
            raise InputError(
                f"no {(splits or PARTS)[0]} annotations were named: give the data set with --data, "
                "or COCO files with --train-json and --val-json"
            )
        return {}
    if splits is not None and set(splits) <= named.keys():
        return {}
    try:
        found = readers.recognise(root, format)
    except InputError:
        if not named:
            raise
        return {}  # it is the folder of the images alone
    return {split: one for split, one in found.items() if split != "all" or "train" not in named}


def describe(sources: Mapping[str, Source], opened: Mapping[str, CocoDataset]) -> str:
    """What was recognised, as "LabelMe: 120 json files, 118 images, 5 classes"."""
    titles = " and ".join(dict.fromkeys(one.reader.TITLE for one in sources.values()))
    files = {file for one in sources.values() for file in one.files or [one.path]}
    kinds = Counter(one.suffix.lower() for one in files if one.suffix and os.path.isfile(one))

    def rank(suffix: str) -> tuple:
        likely = suffix not in (*SUFFIXES, ".txt"), suffix == ".json"
        return suffix not in (".jpg", ".jpeg"), kinds[suffix], *likely

    suffix = max(kinds, key=rank, default="")
    found = counted(kinds[suffix] or len(files), f"{suffix[1:]} file".strip())
    shown = counted(sum(map(len, opened.values())), "image")
    classes = counted(len(next(iter(opened.values())).categories), "class")
    place = os.path.commonpath([one.path for one in sources.values()])
    return f"{titles}: {found}, {shown}, {classes} ({place})"


def divide(
    whole: CocoDataset,
    wanted: Sequence[str],
    fraction: float,
    lists: Mapping[str, Sequence[str]] | None,
    report: Callable[[str], None],
) -> dict[str, CocoDataset]:
    """Train and val of a set without a validation split: parts of it, or all of it for both."""
    names = [record.file_name for record in whole.images]
    start = f"{whole.source} has no validation split"
    if lists:
        place = {name: index for index, name in enumerate(names)}
        chosen = {part: [place[n] for n in lists[part] if n in place] for part in PARTS}
        for part in set(PARTS) & set(wanted):
            if not chosen[part]:
                raise InputError(
                    f"{whole.source} has none of the {len(lists[part])} {part} images of the "
                    "earlier run: give the same data, or other data with --data"
                )
        gone = sum(map(len, lists.values())) - sum(map(len, chosen.values()))
        new = len(names) - sum(map(len, chosen.values()))
        differs = f"; {counted(gone, 'image')} gone, {counted(new, 'new image')} left out"
        report(f"{start}: that of the run is used{differs if gone or new else ''}")
    else:
        labels = [whole.labels(index) for index in range(len(whole))] if fraction else []
        held_out, groups = hold_out(names, labels, fraction) if fraction else ([], "")
        if not held_out:
            if "val" in wanted:
                all_of = f"all {len(names)} images are" if len(names) > 1 else "its only image is"
                both = "trained on and evaluated: the scores tell nothing about new images"
                report(f"{start}, {all_of} {both if 'train' in wanted else 'evaluated'}")
            return dict.fromkeys(PARTS, whole)
        kept = np.setdiff1d(np.arange(len(names)), held_out).tolist()
        chosen = {"train": kept, "val": held_out}
        report(
            f"{start}: {len(held_out)} of {len(names)} images are held out for one "
            f"(--val-fraction {fraction:g}; by {groups}, the same in every run)"
        )
    parts = {part: whole.subset(chosen[part]) for part in PARTS}
    for part, one in parts.items():
        one.name = part
    parts["val"].dropped, parts["val"].notes = Dropped(), []  # of the file, train has them
    return parts
