"""A data set in COCO format: one json file and a folder of pictures.

The map category id <-> index <-> name lives here: indices follow the sorted ids, whatever their
gaps, and everything that leaves for a file carries the original ids. Annotations stay as small as
the file has them (polygons as float32, RLE as bytes) and become masks only when an item is asked
for. One extension to the format, written by data/voc.py: an image record may hold "void", the RLE
of the pixels that are neither object nor background.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data import rle
from data.batch import Annotation
from data.errors import InputError
from data.pictures import read_rgb

_NEARLY_ALL = 0.8  # share of crowds from which a set is taken for one of mislabelled brush masks


class Category(NamedTuple):
    """A class: its index in the network, its id in the file, its name."""

    index: int
    id: int
    name: str


class ImageRecord(NamedTuple):
    """A picture: its id and name in the file, its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class CocoSet:
    """Pictures with their annotations.

    annotations: the json file, or its content as a dict (then `source` names it in messages).
    images: the folder that file names are relative to; of several, the first that holds the first
    picture. crowd_as_instances: take every crowd as one object. Raises InputError for anything in
    the file that cannot be used, before any picture is opened.
    """

    def __init__(
        self,
        annotations: str | Path | dict,
        images: str | Path | Sequence[str | Path],
        *,
        name: str = "train",
        crowd_as_instances: bool = False,
    ) -> None:
        self.name = name
        self._source = f"the {name} annotations" if isinstance(annotations, dict) else annotations
        content = _checked_content(annotations, self._source)
        self.categories = _categories(content["categories"], self._source)
        self.images = _image_records(content["images"], self._source)
        self._void = _void_regions(content["images"], self.images, self._source)
        self.folder = _folder(images, self.images, self._source)
        self._store = _Store(content["annotations"], self.images, self.categories, self._source)
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
        return any(int(i) in self._void for i in self._order)

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.folder / self.images[index].file_name

    def with_objects(self) -> list[int]:
        """The pictures that have objects; crowds are none."""
        crowds = (self._store.crowd[self._store.rows(int(i))] for i in self._order)
        return [index for index, crowd in enumerate(crowds) if not crowd.all()]

    def read(self, index: int) -> tuple[Image.Image, Annotation]:
        """One picture (RGB, EXIF applied) with its annotation.

        Raises InputError when the file cannot be read or its size is not that of the annotations.
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

    def annotation(self, index: int) -> Annotation:
        """The annotation of one picture, without opening its file."""
        record, position = self.images[index], int(self._order[index])
        size = (record.height, record.width)
        masks, labels, crowd = self._store.of_image(position, size)
        ignored = [one for one, is_crowd in zip(masks, crowd, strict=True) if is_crowd]
        if position in self._void:
            ignored.append(self._void[position])
        return Annotation(
            labels=labels[~crowd].astype(np.int64),
            rles=[one for one, is_crowd in zip(masks, crowd, strict=True) if not is_crowd],
            ignore=rle.union(ignored, size) if ignored else None,
            image_id=record.id,
            orig_size=size,
        )

    def ground_truth(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """The set (or some of its pictures) as a COCO dict of RLEs, as pycocotools wants it.

        Areas and boxes come from the masks. Annotation ids are numbered anew from 1, because
        pycocotools takes an object with id 0 for a miss. Pictures with void carry "void".
        """
        images, annotations = [], []
        for index in range(len(self)) if indices is None else indices:
            record, position = self.images[index], int(self._order[index])
            images.append(record._asdict())
            if position in self._void:
                images[-1]["void"] = rle.to_json(self._void[position])
            annotations += self._ground_truth_of(record, position, first_id=len(annotations) + 1)
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

    def subset(self, indices: Sequence[int]) -> CocoSet:
        """The set of these pictures in this order; annotations are shared, not copied."""
        part = copy.copy(self)
        part._order = self._order[np.asarray(indices, dtype=np.int64)]
        part.images = [self.images[i] for i in indices]
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


class _Store:
    """All annotations in flat arrays, sorted by picture.

    Row a has labels[a] (class index) and crowd[a]. Its outline is either the bytes
    runs[run_start[a]:run_start[a+1]] of a compressed RLE, or, where those are none, the polygons
    part_start[a]..part_start[a+1], each points[point_start[p]:point_start[p+1]].
    """

    def __init__(
        self,
        annotations: list[dict],
        images: list[ImageRecord],
        categories: list[Category],
        source: str | Path,
    ) -> None:
        position_of = {record.id: i for i, record in enumerate(images)}
        index_of = {category.id: category.index for category in categories}
        places = _places(annotations, position_of, index_of, source)
        order = np.argsort(places, kind="stable")
        self._first = np.searchsorted(places[order], np.arange(len(images) + 1))
        rows = [annotations[i] for i in order]
        self.labels = np.array([index_of[row["category_id"]] for row in rows], dtype=np.int32)
        self.crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool)
        self._pack_outlines(rows, [images[places[i]] for i in order], source)

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
        runs = self._runs[self._run_start[row] : self._run_start[row + 1]]
        if runs:
            return {"size": list(size), "counts": runs}
        starts = self._point_start[self._part_start[row] : self._part_start[row + 1] + 1]
        # Rounding brings back the decimals of the file, which float32 has moved by up to 0.0005
        # below 8192 pixels; otherwise ties on the pixel grid would fall to the other side.
        parts = [
            np.round(self._points[start:stop].astype(np.float64), 3)
            for start, stop in zip(starts[:-1], starts[1:], strict=True)
        ]
        return rle.from_polygons(parts, *size)

    def _pack_outlines(
        self, rows: list[dict], records: list[ImageRecord], source: str | Path
    ) -> None:
        points, runs = [], []
        parts_per_row = np.zeros(len(rows), dtype=np.int64)
        for row, (annotation, record) in enumerate(zip(rows, records, strict=True)):
            outline = _outline(annotation, record, source)
            runs.append(outline if isinstance(outline, bytes) else b"")
            if not isinstance(outline, bytes):
                points += [part.astype(np.float32) for part in outline]
                parts_per_row[row] = len(outline)
        self._runs = b"".join(runs)
        self._run_start = _starts([len(run) for run in runs])
        self._points = np.concatenate(points) if points else np.zeros(0, dtype=np.float32)
        self._point_start = _starts([len(part) for part in points])
        self._part_start = _starts(parts_per_row)


def _starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64))))


def _outline(annotation: dict, record: ImageRecord, source: str | Path) -> bytes | list[np.ndarray]:
    """The counts of an RLE, or the polygons; InputError with file and annotation id."""
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return rle.from_annotation(segmentation, record.height, record.width)["counts"]
        return rle.polygons_of(segmentation, record.height, record.width)
    except InputError as reason:
        raise InputError(
            f"{source}: annotation {annotation['id']} of image {record.id} ({record.file_name}) "
            f"cannot be used, {reason}: give it polygons or an RLE, or remove it"
        ) from None


def _checked_content(annotations: str | Path | dict, source: str | Path) -> dict:
    content = annotations if isinstance(annotations, dict) else _load_json(Path(annotations))
    for key in ("images", "categories", "annotations"):
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise InputError(
                f"{source} is no COCO file, its {key!r} is not a list of records: "
                "give a json with the lists images, categories and annotations"
            )
    return content


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give the path of a COCO json file") from None
    except OSError as reason:
        raise InputError(f"{path} cannot be read ({reason.strerror}): check the path") from None
    except ValueError as reason:
        raise InputError(f"{path} is no json file ({reason}): export it again") from None


def _categories(records: list[dict], source: str | Path) -> list[Category]:
    ids = [_whole(record, "id", source, "a category") for record in records]
    _refuse_duplicates(ids, "category", source)
    if not ids:
        raise InputError(f"{source} has no categories: list at least one with id and name")
    named = sorted((record["id"], str(record.get("name", record["id"]))) for record in records)
    return [Category(index, id_, name) for index, (id_, name) in enumerate(named)]


def _image_records(records: list[dict], source: str | Path) -> list[ImageRecord]:
    images = []
    for record in records:
        id_ = _whole(record, "id", source, "an image")
        width, height = (_whole(record, key, source, f"image {id_}") for key in ("width", "height"))
        if width < 1 or height < 1:
            raise InputError(
                f"{source}: image {id_} is {width} x {height} pixels: correct its size"
            )
        if not isinstance(record.get("file_name"), str):
            raise InputError(f"{source}: image {id_} has no file_name: name its file")
        images.append(ImageRecord(id_, record["file_name"], width, height))
    if not images:
        raise InputError(f"{source} lists no images: give a file with at least one")
    _refuse_duplicates([record.id for record in images], "image", source)
    return images


def _void_regions(
    records: list[dict], images: list[ImageRecord], source: str | Path
) -> dict[int, rle.Rle]:
    """Position of the picture -> RLE, for those that have void pixels."""
    regions = {}
    for position, (record, image) in enumerate(zip(records, images, strict=True)):
        if record.get("void") is None:
            continue
        try:
            regions[position] = rle.from_annotation(record["void"], image.height, image.width)
        except InputError as reason:
            raise InputError(
                f"{source}: the void region of image {image.id} cannot be used, {reason}: "
                "give it an RLE or remove it"
            ) from None
    return regions


def _places(
    annotations: list[dict],
    position_of: dict[int, int],
    index_of: dict[int, int],
    source: str | Path,
) -> np.ndarray:
    """The position of each annotation's picture, after checking its ids."""
    places = np.zeros(len(annotations), dtype=np.int64)
    for i, annotation in enumerate(annotations):
        id_ = _whole(annotation, "id", source, f"annotation number {i + 1} of the list")
        places[i] = _lookup(annotation, "image_id", position_of, id_, source)
        _lookup(annotation, "category_id", index_of, id_, source)
    _refuse_duplicates([annotation["id"] for annotation in annotations], "annotation", source)
    return places


def _lookup(annotation: dict, key: str, known: dict[int, int], id_: int, source: str | Path) -> int:
    value = annotation.get(key)
    if not isinstance(value, int) or value not in known:
        listed = "images" if key == "image_id" else "categories"
        raise InputError(
            f"{source}: annotation {id_} has {key} {value!r}, which is not among the {listed}: "
            f"add it to {listed!r} or remove the annotation"
        )
    return known[value]


def _whole(record: dict, key: str, source: str | Path, what: str) -> int:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{source}: {what} has {key} {value!r}: it must be a whole number")
    return value


def _refuse_duplicates(ids: list[int], what: str, source: str | Path) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[int] = set()
    twice = next(id_ for id_ in ids if id_ in seen or seen.add(id_))
    raise InputError(f"{source}: the {what} id {twice} is used twice: number them apart")


def _folder(
    images: str | Path | Sequence[str | Path], records: list[ImageRecord], source: str | Path
) -> Path:
    """The picture folder, once every picture of the set is seen to be there."""
    candidates = [images] if isinstance(images, (str, Path)) else list(images)
    folders = [Path(candidate) for candidate in candidates]
    first = records[0].file_name
    folder = next((one for one in folders if (one / first).is_file()), folders[0])
    missing = _missing(folder, records)
    if missing:
        tried = "" if len(folders) == 1 else f" (looked in {', '.join(map(str, folders))})"
        raise InputError(
            f"{source}: {len(missing)} of {len(records)} pictures are not in {folder}{tried}, the "
            f"first is {missing[0]}: name the right folder with --images, or add the pictures"
        )
    return folder


def _missing(folder: Path, records: list[ImageRecord]) -> list[str]:
    """Names without a file. Each folder is listed once instead of asking for every file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for record in records:
        parent, base = os.path.split(record.file_name)
        if parent not in listings:
            place = folder / parent
            listings[parent] = set(os.listdir(place)) if place.is_dir() else set()
        if base not in listings[parent]:
            missing.append(record.file_name)
    return missing


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
