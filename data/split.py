"""A validation split for data without one: grouped by source, stratified by class.

Groups are found by name: augmented copies of an image, its tiles, the frames of a video.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

SEED = 0  # not that of a run: all runs on the same data have the same split
PASSES = 3  # over the groups
COPY = re.compile(r"\.rf\.\w+$")  # Roboflow's mark of an augmented copy
OLD_SUFFIX = re.compile(r"[_.](jpe?g|png|bmp|tiff?|webp)$", re.IGNORECASE)
# A number at the end of a name: of a frame, a tile, or its place in x or y.
NUMBER = re.compile(
    r"(^|[_\-. ]+((x|y|z|t|f|r|c|row|col|frame|tile|patch|crop|slice)[_-]?)?)\(?\d+\)?$",
    re.IGNORECASE,
)
# Words that name no video or place: their numbers count all images of a camera or of a folder.
GENERAL = re.compile(
    r"(img|image|im|dsc[nf]?|p|pxl|photo|pic|picture|scan|frame|tile|sample|train|val|test|"
    r"coco_(train|val|test)\d+)?[_\-. ]?\(?\d*\)?",
    re.IGNORECASE,
)


def hold_out(
    names: Sequence[str], labels: Sequence[np.ndarray], fraction: float
) -> tuple[list[int], str]:
    """Indices of the images of a validation split, and how they were grouped.

    Groups are those of the names, from coarse to fine; where they are too large for the fraction,
    or one holds all images of a class, runs of neighbouring names; else single images.

    Args:
        labels: class indices of the objects of each image.
    """
    single = [source_of(name, 0) for name in names]
    run = max(1, round(len(names) * fraction / 4))
    ways: tuple[tuple[str, Callable[[], list[str]]], ...] = (
        ("groups of names", lambda: [source_of(name, 2) for name in names]),
        ("groups of names", lambda: [source_of(name, 1) for name in names]),
        ("runs of neighbouring names", lambda: group_neighbours(single, run)),
        ("single images", lambda: single),
    )
    target = fraction * len(names)
    for kind, way in ways:
        keys = way()
        chosen = draw_groups(keys, labels, fraction, keep_classes=keys is not single)
        if keys is single or target / 2 <= len(chosen) <= max(2 * target, len(names) / 2):
            groups = len(set(keys))
            return chosen, f"{groups} {kind}" if groups < len(names) else "single images"


def source_of(name: str, numbers: int) -> str:
    """What an image comes from: its name without suffix, mark of a copy, and up to `numbers`
    numbers at the end. Where only a number or a general word is left, it is the folder.
    """
    folder, slash, base = name.replace("\\", "/").rpartition("/")
    stem = os.path.splitext(base)[0]
    if ".rf." in stem:
        stem = OLD_SUFFIX.sub("", COPY.sub("", stem))
    rest, removed = stem, 0
    for _ in range(numbers):
        rest, found = NUMBER.subn("", rest)
        removed += found
    if not GENERAL.fullmatch(rest):
        return rest
    if removed == 2 and rest[-1:].isdigit():  # img7_512_0 is a tile of img7, img_7 is of anything
        return folder + slash + rest
    return folder + slash if folder and numbers else folder + slash + stem


def group_neighbours(keys: Sequence[str], length: int) -> list[str]:
    """Joins neighbours in the natural order of the names into runs of about `length` images."""
    counts = Counter(keys)
    run_of, number, size = {}, 0, 0
    for key in sorted(counts, key=natural_key):
        run_of[key] = str(number)
        size += counts[key]
        if size >= length:
            number, size = number + 1, 0
    return [run_of[key] for key in keys]


def natural_key(name: str) -> str:
    return re.sub(r"\d+", lambda match: match[0].zfill(20), name)


def draw_groups(
    keys: Sequence[str], labels: Sequence[np.ndarray], fraction: float, keep_classes: bool
) -> list[int]:
    """Images of whole groups, so that each class has about this fraction of its images in them.

    A greedy search: in a seeded order, a group changes sides where that brings the numbers of
    images closer to what is wanted, each relative to its own. With `keep_classes` none takes the
    last group of a class away from training.
    """
    _, group_of = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(group_of)
    num_classes = max((int(one.max(initial=-1)) for one in labels), default=-1) + 2
    # The last class is that of images without objects.
    of_image = [one if len(one) else [num_classes - 1] for one in labels]
    images = np.repeat(np.arange(len(keys)), [len(one) for one in of_image])
    pairs = np.unique(images * num_classes + np.concatenate(of_image).astype(np.int64))
    pairs, counts = np.unique(
        group_of[pairs // num_classes] * num_classes + pairs % num_classes, return_counts=True
    )
    groups, classes = pairs // num_classes, pairs % num_classes
    total = np.bincount(classes, counts, num_classes)
    holders = np.bincount(classes, minlength=num_classes)  # groups in training with the class
    holders[-1] = len(keys) + 1  # images without objects may all be held out
    starts = np.searchsorted(groups, np.arange(len(sizes) + 1)).tolist()
    # As plain numbers: a group has few classes, for which arrays are slow.
    missing = (fraction * total).tolist()
    weights = (1 / np.maximum(missing, 1e-9) ** 2).tolist()
    missing_images = fraction * len(keys)
    image_weight = np.count_nonzero(total) / missing_images**2  # counts as much as all classes
    classes, counts, holders, sizes = (a.tolist() for a in (classes, counts, holders, sizes))
    taken = [False] * len(sizes)
    best = (np.inf, -1)
    for _ in range(PASSES):
        for group in np.random.default_rng(SEED).permutation(len(sizes)).tolist():
            sign = -1 if taken[group] else 1
            inside = range(starts[group], starts[group + 1])
            if keep_classes and sign > 0 and any(holders[classes[i]] < 2 for i in inside):
                continue
            step = sign * sizes[group]
            cost = image_weight * step * (step - 2 * missing_images)
            for i in inside:
                step = sign * counts[i]
                cost += weights[classes[i]] * step * (step - 2 * missing[classes[i]])
            if cost >= 0:
                best = min(best, (cost, group))
                continue
            taken[group] = sign > 0
            missing_images -= sign * sizes[group]
            for i in inside:
                missing[classes[i]] -= sign * counts[i]
                holders[classes[i]] -= sign
    if not any(taken) and len(sizes) > 1 and best[1] >= 0:
        taken[best[1]] = True
    return np.flatnonzero(np.array(taken)[group_of]).tolist()
