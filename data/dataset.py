"""A data set by index; masks are decoded when an item is read.

Class indices follow the sorted category ids; results carry the original ids. Annotations stay as in
the file (polygons as float64, RLE as bytes; data/packed.py). Two extensions to COCO: image records
may have "void", the RLE of pixels that are neither object nor background, and the file "left_out",
records that could not be converted.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import records, rle
from data.batch import Annotation
from data.errors import BadRecords, InputError, counted, first_of
from data.images import read_rgb
from data.packed import Bytes, Images
from data.readers import coco
from data.readers.image_files import locate
from data.records import BROKEN, BRUSH, OBJECT, UNKNOWN
from data.store import Store


class CocoDataset:
    """Images with their annotations.

    Args:
        annotations: the json file, or its content as a dict (`name` stands for it in messages).
        images: the folder that file names are relative to; of several, the one with most files.
        source: the original of a converted file, for messages.
        crowd_as_instances: use every crowd as one object.
        keep_crowds: leave the brush masks of annotation tools the crowds that they are exported as.
        boxes_as_masks: read boxes without a mask as objects that fill them.
        skip_bad: leave out records that cannot be used, as images without a file, and note them in
            `bad`; the region of a broken object is ignored if it is known.

    Raises:
        InputError: if a record cannot be used. No image is opened for that.
    """

    unknown: dict[str, int] = {}  # classes that `use_classes` left out -> number of objects
    own_ids = True  # False: the format has no class ids, so classes are matched by name

    def __init__(
        self,
        annotations: str | Path | dict,
        images: str | Path | Sequence[str | Path],
        *,
        name: str = "train",
        source: str | Path | None = None,
        crowd_as_instances: bool = False,
        keep_crowds: bool = False,
        boxes_as_masks: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self.name, self.bad, self.dropped = name, BadRecords(skip_bad), records.Dropped()
        folders = [Path(one) for one in ([images] if isinstance(images, (str, Path)) else images)]
        if isinstance(annotations, dict):
            self.source, content = f"the {name} annotations", annotations
        else:
            self.source, path = Path(source or annotations), Path(annotations)
            fix = "export it again" if self.source == path else "remove it, it will be made again"
            content = coco.load(path, fix, folders)
        records.require_lists(content, self.source)
        self.bad.add(records.left_out(content))
        self.notes = list(records.notes(content))
        self.categories = records.categories(content, self.source, self.bad)
        found = records.images(content, self.source, self.bad)
        names = [record.file_name for record, _ in found]
        self.folder, files = locate(folders, names)
        kept = [
            (record._replace(file_name=files[record.file_name]), void)
            for record, void in found
            if record.file_name in files
        ]
        if len(kept) < len(found):
            error = InputError(
                f"{self.source}: {len(found) - len(kept)} of {len(found)} images are not in "
                f"{first_of([*map(str, folders)])}, the first is {min({*names} - files.keys())}: "
                "name the right folder with --images, or add the images"
            )
            if not kept:
                raise error
            for record, _ in found:
                if record.file_name not in files:
                    self.bad.note(error, self.source, f"image {record.id}, {record.file_name}")
        listed = [record for record, _ in kept]
        self.images, void = Images(listed), Bytes(void for _, void in kept)
        self._store = Store(
            records.annotations(
                content,
                listed,
                self.categories,
                self.source,
                self.bad,
                self.dropped,
                boxes_as_masks,
            ),
            void,
        )
        if crowd_as_instances:
            self._store.kinds[self._store.kinds != BROKEN] = OBJECT
        elif not keep_crowds:
            self._read_crowds()

    def _read_crowds(self) -> None:
        """Makes objects of classes of brush masks only, warns of other classes of crowds only."""
        kinds, labels = self._store.kinds, self._store.labels
        read = records.brush_objects(labels, kinds)
        kinds[read] = OBJECT
        wholly = []
        for category in self.categories:
            found = kinds[(labels == category.index) & (kinds != BROKEN)]
            if len(found) and (found != OBJECT).all():
                wholly.append(f"{category.name} ({len(found)})")
        if number := np.count_nonzero(kinds == BRUSH):
            self.notes.append(records.brushes_left(number))
        if read.any():
            names = [self.categories[index].name for index in np.unique(labels[read])]
            warnings.warn(
                f"{self.source}: {counted(read.sum(), 'brush mask')} of {first_of(names)}, marked "
                "iscrowd by an annotation tool, read as objects; --keep-crowds leaves them crowds",
                stacklevel=3,
            )
        if wholly:
            warnings.warn(
                f"{self.source}: all objects of {first_of(wholly)} are marked iscrowd and will not "
                "be learned; if they are single objects, open the set with --crowd-as-instances",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    def path(self, index: int) -> Path:
        return self.folder / self.images[index].file_name

    def labels(self, index: int) -> np.ndarray:
        """Class indices of the objects of one image, without crowds: int [N]."""
        rows = self._store.rows(self.images.positions[index])
        return self._store.labels[rows][self._store.kinds[rows] == OBJECT]

    def crowd_labels(self, index: int) -> np.ndarray:
        """Class indices of the crowds of one image."""
        rows = self._store.rows(self.images.positions[index])
        kinds = self._store.kinds[rows]
        return self._store.labels[rows][(kinds != OBJECT) & (kinds != BROKEN)]

    def with_objects(self) -> list[int]:
        """The images that have objects other than crowds."""
        return np.flatnonzero(self.objects_per_image()).tolist()

    def read(self, index: int) -> tuple[Image.Image, Annotation]:
        """One image (RGB, EXIF applied) with its annotation.

        Raises:
            InputError: if the file cannot be read or has another size than in the annotations; a
                caller that can continue passes it to `leave_out`.
        """
        record, path = self.images[index], self.path(index)
        image = read_rgb(path)
        if image.size != (record.width, record.height):
            raise InputError(
                f"{path} is {image.width} x {image.height} (width x height, EXIF rotation applied) "
                f"but {self.source} has {record.width} x {record.height} for image {record.id}: "
                "annotate the image as displayed, or correct its size there"
            )
        return image, self.annotation(index)

    def leave_out(self, index: int, error: InputError) -> None:
        """Notes an unreadable image (not part of `ground_truth` then), or raises its error."""
        id_ = self.images[index].id
        self.bad.note(error, self.path(index), f"image {id_}", id_)

    def annotation(self, index: int) -> Annotation:
        """The annotation of one image, without opening its file."""
        record, position = self.images[index], self.images.positions[index]
        size = (record.height, record.width)
        masks, void = self._store.of_image(position, size)
        rows = self._store.rows(position)
        kinds = self._store.kinds[rows]
        objects = [masks[i] for i in np.flatnonzero(kinds == OBJECT)]
        broken = [masks[i] for i in np.flatnonzero(kinds == BROKEN)]
        if broken and objects:  # a box may overlap good objects
            broken = rle.subtract(broken, rle.union(objects))
        ignored = [masks[i] for i in np.flatnonzero((kinds != OBJECT) & (kinds != BROKEN))]
        ignored += broken + void
        return Annotation(
            labels=self._store.labels[rows][kinds == OBJECT].astype(np.int64),
            rles=objects,
            ignore=rle.union(ignored) if ignored else None,
            image_id=record.id,
            orig_size=size,
        )

    def as_in_file(self, index: int) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """The polygons of each object of an image (none for an RLE), and the areas in the file or
        0.
        """
        rows = self._store.rows(self.images.positions[index])
        objects = rows.start + np.flatnonzero(self._store.kinds[rows] == OBJECT)
        return [self._store.polygons(row) for row in objects], self._store.areas[objects]

    def ground_truth(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """The readable images (of `indices`) as a COCO dict of RLEs for pycocotools.

        Areas are those of the file if every object has one above 0, else those of the masks; boxes
        are those of the masks. Annotation ids count from 1, because pycocotools reads id 0 as no
        match. A broken object is a crowd of its class, or of every class if that is unknown.
        """
        images, annotations, unreadable = [], [], self.bad.image_ids
        store, every = self._store, np.arange(len(self.categories))
        own_areas = bool((store.areas[store.kinds == OBJECT] > 0).all())
        for index in range(len(self)) if indices is None else indices:
            record, position = self.images[index], self.images.positions[index]
            if record.id in unreadable:
                continue
            size = (record.height, record.width)
            masks, void = store.of_image(position, size)
            images.append(record._asdict())
            if void:
                images[-1]["void"] = rle.to_json(void[0])
            rows = store.rows(position)
            labels, crowd = store.labels[rows], store.kinds[rows] != OBJECT
            areas = store.areas[rows]
            if UNKNOWN in labels:
                times = np.where(labels == UNKNOWN, len(every), 1)
                masks = [masks[i] for i in np.repeat(np.arange(len(masks)), times)]
                labels = np.concatenate([every if one == UNKNOWN else [one] for one in labels])
                crowd, areas = np.repeat(crowd, times), np.repeat(areas, times)
            ids = [self.categories[label].id for label in labels]
            annotations += rle.records(
                masks, ids, record.id, len(annotations) + 1, crowd, areas if own_areas else None
            )
        if unreadable and not images:
            raise InputError(f"none of the images in {self.folder} can be read: give others")
        categories = [{"id": one.id, "name": one.name} for one in self.categories]
        return {"images": images, "categories": categories, "annotations": annotations}

    def subset(self, indices: Sequence[int]) -> CocoDataset:
        """The set of these images in this order; annotations are shared, not copied."""
        part = copy.copy(self)
        part.images = self.images.take(np.asarray(indices, dtype=np.int64))
        return part

    def use_classes(
        self, classes: Sequence[dict[str, Any]], origin: str, may_have_more: bool = True
    ) -> None:
        """Adopts the class list of `origin`, records with id and name.

        Objects of classes that it lacks are left out, with a warning, as they cannot be predicted.
        If the names are equal and in the same order, the set keeps its ids. If all its names are in
        the list, or the set has no ids of its own, classes are matched by name, else by both.

        Raises:
            InputError: if ids and names contradict each other, no class is common, or the set has
                more classes and `may_have_more` is False.
        """
        names = [one["name"] for one in classes]
        if self.class_names == names:
            return
        by_name = {one["name"]: one["id"] for one in classes}
        distinct = len(by_name) == len(names) and len({*self.class_names}) == len(self.categories)
        if distinct and (not self.own_ids or by_name.keys() >= {*self.class_names}):
            ids = {one.id for one in self.categories} | {*by_name.values()}
            free = max(ids, default=0) + 1  # ids of further classes
            self.categories = [
                one._replace(id=by_name.get(one.name, free + one.index)) for one in self.categories
            ]
        index_of = {(one["id"], one["name"]): index for index, one in enumerate(classes)}
        known = {value for pair in index_of for value in pair}
        extra = [(one.id, one.name) for one in self.categories if one[1:] not in index_of]
        if len(extra) == len(self.categories) or not known.isdisjoint(chain(*extra)):
            missing = index_of.keys() - {one[1:] for one in self.categories}
            given, there = (
                first_of([f"{id_} ({name})" for id_, name in sorted(listed)]) or "none"
                for listed in (missing, extra)
            )
            raise InputError(
                f"the class list does not fit: {self.source} and {origin} have different "
                f"categories (only given: {given}; only there: {there}): list the same ids and "
                "names in both, also those without objects, or train again"
            )
        if extra and not may_have_more:
            raise InputError(
                f"{origin}: the class list does not fit, {self.source} also has "
                f"{first_of([name for _, name in extra])}: resume with the data it began with, or "
                "train again with --pretrained"
            )
        moved = [index_of.get(one[1:], len(classes)) for one in self.categories]
        self.unknown = self.unknown | {
            one.name: int((self._store.labels == one.index).sum())
            for one in self.categories
            if one[1:] not in index_of
        }
        labels = np.array([*moved, UNKNOWN])[self._store.labels]
        self._store = copy.copy(self._store)  # other parts of the set keep theirs
        self._store.labels = labels
        self.categories = [
            records.Category(index, one["id"], one["name"]) for index, one in enumerate(classes)
        ]
        if extra:
            objects = counted((labels == len(classes)).sum(), "object")
            warnings.warn(
                f"{self.source} also has the classes {first_of([name for _, name in extra])}, "
                f"which {origin} has not: they are never predicted, so their {objects} do not "
                "count",
                stacklevel=2,
            )
            self._store.drop(labels == len(classes))

    def objects_per_image(self) -> np.ndarray:
        """Numbers of objects that are not crowds: int64 [len(self)]."""
        return np.array([len(self.labels(i)) for i in range(len(self))], dtype=np.int64)

    def summary(self) -> str:
        """A short text: images, objects, crowds, objects per class, and what was left out."""
        rows = [self._store.rows(position) for position in self.images.positions]
        labels = np.concatenate([self._store.labels[r] for r in rows])
        kinds = np.concatenate([self._store.kinds[r] for r in rows])
        empty = sum(r.start == r.stop for r in rows)
        crowds = np.count_nonzero((kinds != OBJECT) & (kinds != BROKEN))
        per_class = np.bincount(labels[kinds == OBJECT], minlength=len(self.categories))
        counts = ", ".join(f"{c.name} {per_class[c.index]}" for c in self.categories)
        lines = [
            f"{self.name}: {counted(len(self), 'image')} ({empty} without objects), "
            f"{counted(per_class.sum(), 'object')}, {counted(crowds, 'crowd')}, "
            f"{counted(len(self.categories), 'class')}",
            counts,
        ]
        if number := self.dropped["objects"]:
            lines.append(f"left out of {self.source}: {counted(number, 'object')} without pixels")
        if number := self.dropped["parts"]:
            parts = counted(number, "part")
            lines.append(f"left out of {self.source}: {parts} of fewer than three points")
        if number := self.dropped["boxes"]:
            lines.append(f"ignored in {self.source}: {counted(number, 'box')} without masks")
        if number := self.dropped["filled"]:
            lines.append(f"read as masks of {self.source}: {counted(number, 'box')} without masks")
        lines += [f"{self.source}: {note}" for note in self.notes]
        return "\n  ".join(lines)
