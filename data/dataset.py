"""A data set as its annotations by index; masks are made when an item is asked for.

Class indices follow the sorted category ids, whatever their gaps; everything that leaves for a file
carries the original ids. Annotations stay as small as in the file (polygons as float32, RLE as
bytes; data/packed.py). Two extensions to COCO: an image record may hold "void", the RLE of the
pixels that are neither object nor background, and the file "left_out", what was not converted.
"""

from __future__ import annotations

import copy
import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import readers, rle
from data.batch import Annotation
from data.errors import BadRecords, InputError
from data.images import read_rgb
from data.packed import Bytes, Images, pack_polygons, unpack_polygons
from data.readers import coco

NEARLY_ALL = 0.8  # share of crowds from which they look like mislabelled brush masks


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
    """Split -> data set, from a folder or from json files (which win over the folder's own).

    `images` is the image folder, found automatically if not given; converted annotations go into
    `cache`; for the others see CocoDataset.

    Raises:
        InputError: if no layout is found, a split is missing, or the categories differ.
    """
    files = {"train": train_json, "val": val_json}
    root = None if data is None else Path(data)
    if root is not None and not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder of the data set with --data")
    sources = {}
    for split in splits:
        if files.get(split) is not None:
            sources[split] = coco.beside(Path(files[split]), split, root)
        elif root is not None:
            sources[split] = readers.find(root, split, Path(cache), progress, skip_bad)
        else:
            raise InputError(
                f"no {split} annotations were named: give --{split}-json, or a folder with --data"
            )
    options = {"crowd_as_instances": crowd_as_instances, "skip_bad": skip_bad}
    datasets = {
        split: CocoDataset(source.path, images or source.images, name=split, **options)
        for split, source in sources.items()
    }
    first, *others = datasets.values()
    for other in others:
        if other.categories != first.categories:
            raise InputError(
                f"{first.source} and {other.source} have different categories: "
                "list the same ids and names in both, also those without objects"
            )
    return datasets


class CocoDataset:
    """Images with their annotations.

    Args:
        annotations: the json file, or its content as a dict (`name` stands for it in messages).
        images: the folder that file names are relative to; of several, the one with most of them.
        crowd_as_instances: use every crowd as one object.
        skip_bad: leave out records that cannot be used, images without a file among them, and note
            them in `bad`; a bad annotation leaves its image and the other objects of it.

    Raises:
        InputError: if a record cannot be used. No image is opened for that.
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
        self.name, self.bad = name, BadRecords(skip_bad)
        if isinstance(annotations, dict):
            self.source, content = f"the {name} annotations", annotations
        else:
            self.source = Path(annotations)
            content = coco.load(self.source)
        coco.require_lists(content, self.source)
        self.bad.add(coco.left_out(content))
        self.categories = coco.categories(content, self.source, self.bad)
        found = coco.images(content, self.source, self.bad)
        folders = [Path(one) for one in ([images] if isinstance(images, (str, Path)) else images)]
        names = [record.file_name for record, _ in found]
        missing, self.folder = min(
            ((missing_files(folder, names), folder) for folder in folders),
            key=lambda pair: len(pair[0]),
        )
        kept = [(record, void) for record, void in found if record.file_name not in missing]
        if missing:
            error = InputError(
                f"{self.source}: {len(found) - len(kept)} of {len(found)} images are not in "
                f"{', '.join(map(str, folders))}, the first is {min(missing)}: name the right "
                "folder with --images, or add the images"
            )
            if not kept:
                raise error
            for record, _ in found:
                if record.file_name in missing:
                    self.bad.note(error, self.source, f"image {record.id}")
        records = [record for record, _ in kept]
        self.images, void = Images(records), Bytes(void for _, void in kept)
        rows = coco.annotations(content, records, self.categories, self.source, self.bad)
        self._store = Store(rows, void)
        crowd = self._store.crowd
        if crowd_as_instances:
            crowd[:] = False
        elif len(crowd) and crowd.mean() >= NEARLY_ALL:
            warnings.warn(
                f"{self.source}: {crowd.sum()} of {len(crowd)} objects are marked iscrowd and will "
                "not be learned. Some tools mark every brush mask so; if these are single objects, "
                "open the set with --crowd-as-instances.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    def path(self, index: int) -> Path:
        return self.folder / self.images[index].file_name

    def with_objects(self) -> list[int]:
        """The images that have objects; crowds are none."""
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
        masks, labels, crowd, void = self._store.of_image(position, size)
        ignored = [masks[i] for i in np.flatnonzero(crowd)] + void
        return Annotation(
            labels=labels[~crowd].astype(np.int64),
            rles=[masks[i] for i in np.flatnonzero(~crowd)],
            ignore=rle.union(ignored) if ignored else None,
            image_id=record.id,
            orig_size=size,
        )

    def ground_truth(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """The readable images (of `indices`) as a COCO dict of RLEs for pycocotools.

        Areas and boxes come from the masks. Annotation ids count from 1, because pycocotools
        counts an object with id 0 as a miss. Images with void carry "void".
        """
        images, annotations, unreadable = [], [], self.bad.image_ids
        for index in range(len(self)) if indices is None else indices:
            record, position = self.images[index], self.images.positions[index]
            if record.id in unreadable:
                continue
            size = (record.height, record.width)
            masks, labels, crowd, void = self._store.of_image(position, size)
            images.append(record._asdict())
            if void:
                images[-1]["void"] = rle.to_json(void[0])
            ids = [self.categories[label].id for label in labels]
            annotations += rle.records(masks, ids, record.id, len(annotations) + 1, crowd)
        if unreadable and not images:
            raise InputError(f"none of the images in {self.folder} can be read: give others")
        categories = [{"id": one.id, "name": one.name} for one in self.categories]
        return {"images": images, "categories": categories, "annotations": annotations}

    def subset(self, indices: Sequence[int]) -> CocoDataset:
        """The set of these images in this order; annotations are shared, not copied."""
        part = copy.copy(self)
        part.images = self.images.take(np.asarray(indices, dtype=np.int64))
        return part

    def require_classes(self, names: Sequence[str]) -> None:
        """Checks that the set has these class names, those of a checkpoint; raises InputError."""
        own, given = self.class_names, list(names)
        if own == given:
            return
        only_own = ", ".join([name for name in own if name not in given][:5]) or "none"
        only_given = ", ".join([name for name in given if name not in own][:5]) or "none"
        raise InputError(
            f"the class list does not fit {self.source}: {len(given)} classes were given and it "
            f"has {len(own)} (only given: {only_given}; only there: {only_own}; the order counts "
            "too): use the annotations the checkpoint was trained with, or train again"
        )

    def objects_per_image(self) -> np.ndarray:
        """Numbers of objects that are not crowds: int64 [len(self)]."""
        crowds = (self._store.crowd[self._store.rows(i)] for i in self.images.positions)
        return np.array([np.count_nonzero(~crowd) for crowd in crowds], dtype=np.int64)

    def summary(self) -> str:
        """Images, objects, crowds, empty images, and objects per class, as a short text."""
        rows = [self._store.rows(position) for position in self.images.positions]
        labels = np.concatenate([self._store.labels[r] for r in rows])
        crowd = np.concatenate([self._store.crowd[r] for r in rows])
        empty = sum(r.start == r.stop for r in rows)
        per_class = np.bincount(labels[~crowd], minlength=len(self.categories))
        counts = ", ".join(f"{c.name} {per_class[c.index]}" for c in self.categories)
        return (
            f"{self.name}: {len(self)} images ({empty} without objects), {per_class.sum()} "
            f"objects, {crowd.sum()} crowds, {len(self.categories)} classes\n  {counts}"
        )


class Store:
    """All annotations in flat arrays, sorted by image: row a has labels[a] and crowd[a].

    void: of each image the counts of its RLE, empty where there is none.
    """

    def __init__(self, rows: Iterable[coco.Row], void: Bytes) -> None:
        positions, labels, crowd, drawn = array("q"), array("i"), array("b"), array("b")

        def outlines() -> Iterator[bytes]:
            for row in rows:
                positions.append(row.position)
                labels.append(row.label)
                crowd.append(row.crowd)
                drawn.append(isinstance(row.outline, list))
                yield pack_polygons(row.outline) if drawn[-1] else row.outline

        self._outlines = Bytes(outlines())  # in the order of the file, as _drawn
        self._drawn = np.asarray(drawn).astype(bool)
        of_row = np.asarray(positions)
        self._order = np.argsort(of_row, kind="stable")
        self._first = np.searchsorted(of_row[self._order], np.arange(len(void) + 1))
        self._void = void
        self.labels = np.asarray(labels)[self._order]
        self.crowd = np.asarray(crowd).astype(bool)[self._order]

    def rows(self, position: int) -> slice:
        """The rows of the image at this position of the file."""
        return slice(int(self._first[position]), int(self._first[position + 1]))

    def of_image(
        self, position: int, size: tuple[int, int]
    ) -> tuple[list[rle.Rle], np.ndarray, np.ndarray, list[rle.Rle]]:
        """Masks, labels and crowd flags of one image, and its void region if it has one.

        Outlines too thin to cover a pixel are left out: nothing could ever be matched to them.
        """
        rows = self.rows(position)
        masks = [self._mask(place, size) for place in self._order[rows]]
        seen = np.flatnonzero(rle.area(masks))
        counts = self._void[position]
        void = [{"size": list(size), "counts": counts}] if counts else []
        return [masks[i] for i in seen], self.labels[rows][seen], self.crowd[rows][seen], void

    def _mask(self, place: int, size: tuple[int, int]) -> rle.Rle:
        outline = self._outlines[place]
        if not self._drawn[place]:
            return {"size": list(size), "counts": outline}
        # Rounding brings back the decimals of the file, which float32 has moved by up to 0.0005
        # below 8192 pixels; otherwise ties on the pixel grid would fall to the other side.
        parts = [np.round(part.astype(np.float64), 3) for part in unpack_polygons(outline)]
        return rle.from_polygons(parts, *size)


def missing_files(folder: Path, names: Sequence[str]) -> set[str]:
    """Names without a file. Folders are listed, as asking for each file is slow on a network."""
    listed: dict[str, set[str]] = {}
    for parent in {os.path.dirname(name) for name in names}:
        place = folder / parent  # os.path.isdir, unlike pathlib's, accepts names of any length
        listed[parent] = set(os.listdir(place)) if os.path.isdir(place) else set()
    return {name for name in names if os.path.basename(name) not in listed[os.path.dirname(name)]}
