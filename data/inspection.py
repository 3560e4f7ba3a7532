"""Facts about the files, masks and class names of a data set, for `engine.check_data`."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags
from torch.utils.data import DataLoader, Dataset

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError
from data.images import as_rgb, opened
from data.loaders import ignore_signals, worker_context

TWICE = 0.8  # mask IoU from which two masks are the same object
MOSTLY = 0.5  # share of an object inside another one
OUTSIDE = 1.0  # pixels that an outline may leave its image by, as tools round
SHORTEST = 6  # letters of a name that may differ from another name in one letter


class Facts(NamedTuple):
    """One image with N objects, in the order of its annotation.

    content, pixels: digests of its file and of its upright RGB pixels; empty if unreadable.
    broken: why the file cannot be read. size: its (width, height) as displayed; (0, 0) if
    unreadable. turned: whether EXIF turns or mirrors it.
    areas: pixels of each mask. listed: areas in the annotation file, 0 where it has none.
    boxes: x0, y0, x1, y1 of each mask. outside: whether its outline leaves the image.
    twice: pairs of objects with nearly the same mask. inside: pairs of one class, of which the
    smaller one lies mostly in the other.
    """

    content: str
    pixels: str
    broken: str
    size: tuple[int, int]
    turned: bool
    areas: np.ndarray
    listed: np.ndarray
    boxes: np.ndarray
    outside: np.ndarray
    twice: list[tuple[int, int]]
    inside: list[tuple[int, int]]


class FactsDataset(Dataset):
    """The facts of each image of a set."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Facts:
        annotation = self.dataset.annotation(index)
        polygons, listed = self.dataset.as_in_file(index)
        height, width = annotation.orig_size
        limits = np.array([width, height]) + OUTSIDE
        outside = [
            any(
                (points.reshape(-1, 2) < -OUTSIDE).any() or (points.reshape(-1, 2) > limits).any()
                for points in parts
            )
            for parts in polygons
        ]
        areas = rle.area(annotation.rles)
        return Facts(
            *file_facts(self.dataset.path(index)),
            areas,
            listed,
            rle.boxes(annotation.rles),
            np.array(outside, bool),
            *overlapping_pairs(annotation.rles, areas, annotation.labels),
        )


def facts_of(dataset: CocoDataset, workers: int = 0) -> Iterator[Facts]:
    """The facts of all images in their order, found by `workers` processes."""
    batches = DataLoader(
        FactsDataset(dataset),
        batch_size=16,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        multiprocessing_context=worker_context(workers),
    )
    for batch in batches:
        yield from batch


def file_facts(path: Path) -> tuple[str, str, str, tuple[int, int], bool]:
    """The first five facts, from the file."""
    try:
        with opened(path) as file:
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            image = as_rgb(file)
        with open(path, "rb") as raw:
            content = digest(raw.read())
        pixels = digest(repr(image.size).encode(), np.asarray(image).data)
        return content, pixels, "", image.size, turned
    except InputError as reason:
        return "", "", str(reason), (0, 0), False
    except OSError as reason:
        return "", "", f"{path} cannot be read ({reason.strerror})", (0, 0), False


def digest(*parts: bytes | memoryview) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def overlapping_pairs(
    rles: Sequence[rle.Rle], areas: np.ndarray, labels: np.ndarray
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of nearly equal objects, and pairs of one class with the first mostly in the second."""
    twice, inside = [], []
    iou = rle.iou(rles, rles)
    for i, j in np.argwhere(np.triu(iou, 1) > 0).tolist():
        if iou[i, j] >= TWICE:
            twice.append((i, j))
            continue
        shared = iou[i, j] * (areas[i] + areas[j]) / (1 + iou[i, j])
        if labels[i] == labels[j] and shared > MOSTLY * min(areas[i], areas[j]):
            inside.append((i, j) if areas[i] <= areas[j] else (j, i))
    return twice, inside


def duplicate_groups(digests: Iterable[str]) -> list[list[int]]:
    """Groups of places with the same digest; empty ones are none."""
    places = defaultdict(list)
    for place, one in enumerate(digests):
        if one:
            places[one].append(place)
    return [group for group in places.values() if len(group) > 1]


def similar_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that may mean one class: equal but for case, marks between words or a plural
    s, or for one letter of at least six. Numbers must be the same.
    """
    plain = [re.sub(r"[\W_]+", "", name.casefold()) or name for name in names]
    plain = [name.removesuffix("s") if len(name) > 3 else name for name in plain]
    spelled = defaultdict(set)
    for place, name in enumerate(plain):
        spelled[name].add(place)
        if len(name) >= SHORTEST:
            for letter in range(len(name)):
                spelled[name[:letter] + name[letter + 1 :]].add(place)
    pairs = {
        (one, other)
        for places in spelled.values()
        for one in places
        for other in places
        if one < other and re.findall(r"\d+", names[one]) == re.findall(r"\d+", names[other])
    }
    return [(names[one], names[other]) for one, other in sorted(pairs)]
