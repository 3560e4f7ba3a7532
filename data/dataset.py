"""A data set in COCO format: one json file and a folder of pictures.

The map category id <-> index <-> name lives here: indices follow the sorted ids, whatever their
gaps, and everything that leaves for a file carries the original ids. Annotations stay as small as
the file has them (polygons as float32, RLE as bytes; data/packed.py) and become masks only when an
item is asked for. Two extensions to the format, written by
data/readers/voc.py: an image record may hold
"void", the RLE of the pixels that are neither object nor background, and the file "left_out", what
could not be converted.
"""

from __future__ import annotations

import copy
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import rle
from data.batch import Annotation
from data.errors import BadRecords, InputError
from data.images import read_rgb
from data.packed import Bytes, ImageRecord, Images, Outlines
from data.readers import coco, find

_NEARLY_ALL = 0.8  # share of crowds from which a set is taken for one of mislabelled brush masks


class CocoDataset:
    """Pictures with their annotations.

    annotations: the json file, or its content as a dict (then `source` names it in messages).
    images: the folder that file names are relative to; of several, the first that holds the first
    picture. crowd_as_instances: take every crowd as one object. skip_bad: leave out records that
    cannot be used, pictures without a file among them, and note them in `bad`; a bad annotation
    leaves its picture and the other objects of it. Raises InputError for anything in the file that
    cannot be used, before any picture is opened.
    """

    def __init__(
        self,
        annotations: str | Path | dict,
        images: str | Path | Sequence[str | Path],
        *,
        name: str = "train",
        crowd_as_instances: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self.name = name
        self._source = f"the {name} annotations" if isinstance(annotations, dict) else annotations
        self.bad = BadRecords(skip_bad)
        content = coco.load(annotations, self._source)
        self.bad.add(coco.left_out(content))
        self.categories = coco.categories(content["categories"], self._source, self.bad)
        records, void = coco.images(content["images"], self._source, self.bad)
        self.folder = _folder(images, [record.file_name for record in records])
        there = _there(self.folder, images, records, self._source, self.bad)
        records, void = [records[i] for i in there], [void[i] for i in there]
        self.images, self._void = Images(records), Bytes(void)
        self._store = _Store(
            coco.annotations(
                content["annotations"], records, self.categories, self._source, self.bad
            ),
            len(records),
        )
        self._order = np.arange(len(self.images))
        if crowd_as_instances:
            self._store.crowd[:] = False
        else:
            _warn_about_crowds(self._store.crowd, self._source)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @property
    def has_void(self) -> bool:
        return any(self._void[int(i)] for i in self._order)

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.folder / self.images[index].file_name

    def with_objects(self) -> list[int]:
        """The pictures that have objects; crowds are none."""
        crowds = (self._store.crowd[self._store.rows(int(i))] for i in self._order)
        return [index for index, crowd in enumerate(crowds) if not crowd.all()]

    def read(self, index: int) -> tuple[Image.Image, Annotation]:
        """One picture (RGB, EXIF applied) with its annotation.

        Raises InputError when the file cannot be read or its size is not that of the annotations;
        `leave_out` is for whoever can go on without the picture.
        """
        record = self.images[index]
        picture = read_rgb(self.path(index))
        if picture.size != (record.width, record.height):
            raise InputError(
                f"{self.path(index)} is {picture.width} x {picture.height} (width x height, EXIF "
                f"rotation applied) but {self._source} says {record.width} x {record.height} for "
                f"image {record.id}: annotate the picture as displayed, or correct its size there"
            )
        return picture, self.annotation(index)

    def leave_out(self, index: int, error: InputError) -> None:
        """Notes a picture that `read` could not read, or raises its error if none may be so.

        From then on it is no part of the `ground_truth` either.
        """
        id_ = self.images[index].id
        self.bad.take(error, self.path(index), f"image {id_}", id_)

    def annotation(self, index: int) -> Annotation:
        """The annotation of one picture, without opening its file."""
        record, position = self.images[index], int(self._order[index])
        size = (record.height, record.width)
        masks, labels, crowd = self._store.of_image(position, size)
        ignored = [one for one, is_crowd in zip(masks, crowd, strict=True) if is_crowd]
        ignored += self._void_region(position, size)
        return Annotation(
            labels=labels[~crowd].astype(np.int64),
            rles=[one for one, is_crowd in zip(masks, crowd, strict=True) if not is_crowd],
            ignore=rle.union(ignored, size) if ignored else None,
            image_id=record.id,
            orig_size=size,
        )

    def _void_region(self, position: int, size: tuple[int, int]) -> list[rle.Rle]:
        counts = self._void[position]
        return [{"size": list(size), "counts": counts}] if counts else []

    def ground_truth(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """The set (or some of its pictures) as a COCO dict of RLEs, as pycocotools wants it.

        Areas and boxes come from the masks. Annotation ids are numbered anew from 1, because
        pycocotools takes an object with id 0 for a miss. Pictures with void carry "void". Those
        that turned out to be unreadable are not in it.
        """
        images, annotations, unreadable = [], [], self.bad.image_ids
        for index in range(len(self)) if indices is None else indices:
            record, position = self.images[index], int(self._order[index])
            if record.id in unreadable:
                continue
            images.append(record._asdict())
            for region in self._void_region(position, (record.height, record.width)):
                images[-1]["void"] = rle.to_json(region)
            annotations += self._ground_truth_of(record, position, first_id=len(annotations) + 1)
        if unreadable and not images:
            raise InputError(f"none of the pictures in {self.folder} can be read: give others")
        categories = [{"id": one.id, "name": one.name} for one in self.categories]
        return {"images": images, "categories": categories, "annotations": annotations}

    def _ground_truth_of(self, record: ImageRecord, position: int, first_id: int) -> list[dict]:
        masks, labels, crowd = self._store.of_image(position, (record.height, record.width))
        areas, boxes = rle.area(masks), rle.boxes(masks)
        boxes[:, 2:] -= boxes[:, :2]
        return [
            {
                "id": first_id + i,
                "image_id": record.id,
                "category_id": self.categories[labels[i]].id,
                "segmentation": rle.to_json(masks[i]),
                "area": int(areas[i]),
                "bbox": boxes[i].tolist(),
                "iscrowd": int(crowd[i]),
            }
            for i in range(len(masks))
        ]

    def subset(self, indices: Sequence[int]) -> CocoDataset:
        """The set of these pictures in this order; annotations are shared, not copied."""
        part = copy.copy(self)
        part._order = self._order[np.asarray(indices, dtype=np.int64)]
        part.images = self.images.take(np.asarray(indices, dtype=np.int64))
        return part

    def require_classes(self, names: Sequence[str]) -> None:
        """Raises InputError unless these class names (a checkpoint's, say) are the set's."""
        own, given = self.class_names, list(names)
        if own == given:
            return
        only_own = [name for name in own if name not in given]
        only_given = [name for name in given if name not in own]
        raise InputError(
            f"the class list does not fit {self._source}: {len(given)} classes were given and it "
            f"has {len(own)} (only given: {_some(only_given)}; only there: {_some(only_own)}; the "
            "order counts too): use the annotations the checkpoint was trained with, or train anew"
        )

    def summary(self) -> str:
        """Pictures, objects, crowds, empty pictures, and objects per class, as a short text."""
        rows = [self._store.rows(int(position)) for position in self._order]
        labels = np.concatenate([self._store.labels[r][~self._store.crowd[r]] for r in rows])
        crowds = sum(int(self._store.crowd[r].sum()) for r in rows)
        empty = sum(r.start == r.stop for r in rows)
        per_class = np.bincount(labels, minlength=len(self.categories))
        counts = ", ".join(f"{c.name} {per_class[c.index]}" for c in self.categories)
        return (
            f"{self.name}: {len(self)} pictures ({empty} without objects), {len(labels)} objects, "
            f"{crowds} crowds, {len(self.categories)} classes\n  {counts}"
        )


def open_datasets(
    data: str | Path | None = None,
    train_json: str | Path | None = None,
    val_json: str | Path | None = None,
    images: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "val"),
    cache: str | Path = Path("datasets") / "converted",
    crowd_as_instances: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
) -> dict[str, CocoDataset]:
    """Split -> set, from a folder or from json files (which win over the folder's own).

    `images` names the image folder when it is not found by itself. `cache` is where converted
    annotations go. `skip_bad` leaves out what cannot be used, see CocoDataset.

    Raises:
        InputError: if nothing is recognised, a split is missing, or the categories differ.
    """
    jsons = {"train": train_json, "val": val_json}
    root = None if data is None else _existing_folder(Path(data))
    places = {}
    for split in splits:
        if jsons.get(split) is not None:
            places[split] = find.beside(Path(jsons[split]), split, root)
        elif root is not None:
            places[split] = find.find(root, split, Path(cache), progress, skip_bad)
        else:
            raise InputError(
                f"no {split} annotations were named: give --{split}-json, or a folder with --data"
            )
    sets = {}
    for split, place in places.items():
        folders = place.images if images is None else [Path(images)]
        sets[split] = CocoDataset(
            place.json,
            folders,
            name=split,
            crowd_as_instances=crowd_as_instances,
            skip_bad=skip_bad,
        )
    _require_one_class_list(sets, places)
    return sets


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give the folder of the data set with --data")
    return path


def _require_one_class_list(sets: dict[str, CocoDataset], places: dict[str, find.Place]) -> None:
    if not sets:
        return
    first, *others = sets
    for other in others:
        if sets[first].categories != sets[other].categories:
            raise InputError(
                f"{places[first].json} and {places[other].json} have different categories: "
                "list the same ids and names in both, also those without objects"
            )


class _Store:
    """All annotations in flat arrays, sorted by picture: row a has labels[a] and crowd[a]."""

    def __init__(self, rows: Iterable[coco.Row], pictures: int) -> None:
        places, labels, crowd = array("q"), array("i"), array("b")

        def outlines() -> Iterator[bytes | list[np.ndarray]]:
            for row in rows:
                places.append(row.place)
                labels.append(row.label)
                crowd.append(row.crowd)
                yield row.outline

        self._outlines = Outlines(outlines())  # in the order of the file
        place_of = np.asarray(places)
        self._order = np.argsort(place_of, kind="stable")
        self._first = np.searchsorted(place_of[self._order], np.arange(pictures + 1))
        self.labels = np.asarray(labels)[self._order]
        self.crowd = np.asarray(crowd).astype(bool)[self._order]

    def rows(self, position: int) -> slice:
        """The rows of the picture at this position of the file."""
        return slice(int(self._first[position]), int(self._first[position + 1]))

    def of_image(
        self, position: int, size: tuple[int, int]
    ) -> tuple[list[rle.Rle], np.ndarray, np.ndarray]:
        """Masks, labels and crowd flags of one picture.

        Outlines too thin to cover a pixel are left out: nothing could ever be matched to them.
        """
        rows = self.rows(position)
        masks = [self._mask(row, size) for row in range(rows.start, rows.stop)]
        seen = np.flatnonzero(rle.area(masks))
        kept = seen + rows.start
        return [masks[i] for i in seen], self.labels[kept], self.crowd[kept]

    def _mask(self, row: int, size: tuple[int, int]) -> rle.Rle:
        outline = self._outlines[self._order[row]]
        if isinstance(outline, bytes):
            return {"size": list(size), "counts": outline}
        # Rounding brings back the decimals of the file, which float32 has moved by up to 0.0005
        # below 8192 pixels; otherwise ties on the pixel grid would fall to the other side.
        parts = [np.round(part.astype(np.float64), 3) for part in outline]
        return rle.from_polygons(parts, *size)


def _folder(images: str | Path | Sequence[str | Path], names: list[str]) -> Path:
    """Of several folders the first that holds the first picture, or else most of them."""
    folders = _folders(images)
    holding = (one for one in folders if not coco.missing(one, names[:1]))
    return next(holding, None) or min(folders, key=lambda folder: len(coco.missing(folder, names)))


def _folders(images: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(one) for one in ([images] if isinstance(images, (str, Path)) else images)]


def _there(
    folder: Path,
    images: str | Path | Sequence[str | Path],
    records: list[ImageRecord],
    source: str | Path,
    bad: BadRecords,
) -> list[int]:
    """The positions of the pictures that have a file."""
    missing = coco.missing(folder, [record.file_name for record in records])
    without = [record for record in records if record.file_name in missing]
    tried = _folders(images)
    looked = "" if len(tried) == 1 else f" (looked in {', '.join(map(str, tried))})"
    for record in without:
        told = InputError(
            f"{source}: {len(without)} of {len(records)} pictures are not in {folder}{looked}, "
            f"the first is {record.file_name}: name the right folder with --images, or add the "
            "pictures"
        )
        if len(without) == len(records):
            raise told
        bad.take(told, source, f"image {record.id}")
    return [i for i, record in enumerate(records) if record.file_name not in missing]


def _warn_about_crowds(crowd: np.ndarray, source: str | Path) -> None:
    if len(crowd) and crowd.mean() >= _NEARLY_ALL:
        warnings.warn(
            f"{source}: {int(crowd.sum())} of {len(crowd)} objects are marked iscrowd and will "
            "not be learned. Some tools mark every brush mask so; if these are single objects, "
            "open the set with --crowd-as-instances.",
            stacklevel=3,
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown}, ..." if len(names) > 5 else shown
