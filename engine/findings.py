"""Problems of a data set, with lists of the images and records concerned."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.dataset import CocoDataset
from data.errors import BadRecords, counted
from data.inspection import Facts, duplicate_groups, similar_names
from engine import options
from engine.fit import too_many_objects
from engine.options import TrainOptions

ERROR, WARNING = "error", "warning"
TINY = 16  # pixels of a mask
OFF = 0.5  # of the mask's area, by which that of the file may differ

Sets = dict[str, CocoDataset]
FactsOf = dict[str, list[Facts]]


class Place(NamedTuple):
    """An image or record, the indices of its objects, and a related image (split, index)."""

    split: str
    image: str = ""
    text: str = ""
    index: int | None = None
    objects: tuple[int, ...] = ()
    other: tuple[str, int] | None = None


class Finding(NamedTuple):
    """A type of problem. `level`: an ERROR stops a training or falsifies its scores."""

    level: str
    title: str
    advice: str
    places: list[Place]
    total: int | None = None  # where not every one has a place

    @property
    def count(self) -> int:
        return len(self.places) if self.total is None else self.total


def find_all(
    sets: Sets, facts: FactsOf, trained: TrainOptions, warned: Sequence[str]
) -> list[Finding]:
    """All findings, errors first; `warned`: warnings while reading."""
    warnings = [Place("", text=text) for text in warned]
    found = [
        Finding(WARNING, "warnings of reading", "They come in a training, too.", warnings),
        *of_records(sets),
        *of_files(sets, facts),
        *of_duplicates(sets, facts),
        *of_masks(sets, facts),
        *of_classes(sets),
        *of_counts(sets, trained),
    ]
    return sorted((one for one in found if one.count), key=lambda one: one.level != ERROR)


def of_records(sets: Sets) -> Iterator[Finding]:
    lists: dict[int, tuple[str, BadRecords]] = {}
    for split, one in sets.items():  # the parts of a divided set share theirs
        lists.setdefault(id(one.bad), (split, one.bad))
    places = [
        Place(split, text=f"{each.record}: {each.reason.removeprefix(f'{each.file}: ')}")
        for split, bad in lists.values()
        for each in bad
    ]
    yield Finding(
        ERROR, "records that cannot be used", "A training ends at the first of them; correct them, "
        "or leave them out with --skip-bad-records, which ignores the regions of broken objects.",
        places,
    )  # fmt: skip
    for key, title, advice in (
        ("objects", "masks without a pixel", "They are left out. Draw them again, or remove them."),
        ("boxes", "boxes without a mask", "They are no objects to learn: their region is ignored. "
         "Outline them, or fill them with --boxes-as-masks."),
        ("parts", "parts of fewer than three points", "They are left out, the rest of their "
         "objects stays."),
    ):  # fmt: skip
        places = [
            Place(split, image, record)
            for split, one in sets.items()
            for kind, image, record in one.dropped.places
            if kind == key
        ]
        total = sum(one.dropped[key] for one in sets.values())
        yield Finding(WARNING, title, advice, places, total)


def of_files(sets: Sets, facts: FactsOf) -> Iterator[Finding]:
    broken, unlike, turned = [], [], []
    for split, index, each, one in images_of(sets, facts):
        record = one.images[index]
        place = Place(split, record.file_name, index=index)
        if each.broken:
            broken.append(place._replace(text=each.broken))
            continue
        if each.size != record[2:]:
            sides = [f"{w} x {h}" for w, h in (each.size, record[2:])]
            swapped = ", its sides swapped: annotate it as displayed" * (
                each.size[::-1] == record[2:]
            )
            text = f"{sides[0]} as displayed, {sides[1]} in the annotations{swapped}"
            unlike.append(place._replace(text=text))
        if each.turned:
            turned.append(place._replace(text="turned or mirrored as its EXIF demands"))
    yield Finding(
        ERROR, "broken image files", "They cannot be decoded to the end. Replace them, or leave "
        "them out with --skip-bad-records.", broken,
    )  # fmt: skip
    yield Finding(
        ERROR, "images of another size than annotated", "Masks do not lie on their objects. "
        "Annotate the images as displayed, or correct the sizes.", unlike,
    )  # fmt: skip
    yield Finding(
        WARNING, "images turned by EXIF", "They are shown and trained on upright; look whether the "
        "masks lie on their objects.", turned,
    )  # fmt: skip


def of_duplicates(sets: Sets, facts: FactsOf) -> Iterator[Finding]:
    every = [(split, index) for split in sets for index in range(len(sets[split]))]
    leaks, doubles = [], []
    for group in duplicate_groups(facts[split][index].pixels for split, index in every):
        splits = {every[each][0] for each in group}
        first, *others = (every[each] for each in group)
        # Across splits, the second image shown is one of another split.
        other = next((each for each in others if each[0] != first[0]), others[0])
        one, second = (facts[split][index] for split, index in (first, other))
        what = "the same file" if one.content == second.content else "the same pixels"
        names = [f"{split}: {sets[split].images[index].file_name}" for split, index in others]
        place = Place(
            first[0], sets[first[0]].images[first[1]].file_name, f"{what}: {', '.join(names)}",
            first[1], other=other,
        )  # fmt: skip
        (leaks if len(splits) > 1 else doubles).append(place)
    yield Finding(
        ERROR, "images in several splits", "Scores on images that were trained on tell nothing. "
        "Leave each of them in one split.", leaks,
    )  # fmt: skip
    yield Finding(
        WARNING, "images several times in a split", "They count more than others; if their "
        "annotations differ, one of them is wrong.", doubles,
    )  # fmt: skip


def of_masks(sets: Sets, facts: FactsOf) -> Iterator[Finding]:
    tiny, outside, off, twice, inside = [], [], [], [], []
    for split, index, each, one in images_of(sets, facts):
        names = [one.class_names[label] for label in one.labels(index)]
        named = [f"{name} {where(box)}" for name, box in zip(names, each.boxes, strict=True)]
        place = Place(split, one.images[index].file_name, index=index)
        for i in np.flatnonzero(each.areas < TINY).tolist():
            text = f"{named[i]}: {each.areas[i]} pixels"
            tiny.append(place._replace(text=text, objects=(i,)))
        outside += [
            place._replace(text=named[i], objects=(i,))
            for i in np.flatnonzero(each.outside).tolist()
        ]
        far = (each.listed > 0) & (np.abs(each.listed - each.areas) > OFF * each.areas)
        for i in np.flatnonzero(far).tolist():
            text = f"{named[i]}: area {each.listed[i]:g}, its mask has {each.areas[i]} pixels"
            off.append(place._replace(text=text, objects=(i,)))
        for places, pairs in ((twice, each.twice), (inside, each.inside)):
            for i, j in pairs:
                places.append(place._replace(text=f"{named[i]}; {named[j]}", objects=(i, j)))
    for title, advice, places in (
        (f"masks under {TINY} pixels", "Often a slip of the mouse. Remove those that are none.",
         tiny),
        ("outlines that leave their image", "What lies outside is cut off. Many of them: the "
         "images were resized or turned after they were annotated.", outside),
        ("areas off by more than half", "The areas in the file decide which objects count as "
         "small in the scores. Remove them: the areas of the masks are used then.", off),
        ("objects drawn twice", "Pairs of masks with an IoU of 0.8 or more: remove one, or one "
         "of its two classes.", twice),
        ("objects inside another of their class", "More than half of the smaller one: parts of one "
         "object, or outlines that went wrong.", inside),
    ):  # fmt: skip
        yield Finding(WARNING, title, advice, places)


def of_classes(sets: Sets) -> Iterator[Finding]:
    counts = class_counts(sets)  # [splits, classes]
    names = next(iter(sets.values())).class_names
    splits, total = list(sets), counts.sum(0)
    unused = [Place("", text=names[i]) for i in np.flatnonzero(total == 0)]
    partly = [
        Place(splits[row], text=f"{names[i]}: none of its {counted(total[i], 'object')}")
        for row, i in np.argwhere((counts == 0) & (total > 0)).tolist()
    ]
    similar = [Place("", text=" and ".join(pair)) for pair in similar_names(names)]
    yield Finding(
        WARNING, "classes without objects", "They cost little and find nothing. Remove them, or "
        "draw some.", unused,
    )  # fmt: skip
    yield Finding(
        WARNING, "classes missing in a split", "Without objects in train a class is not learned, "
        "without objects in val it has no score.", partly,
    )  # fmt: skip
    yield Finding(
        WARNING, "class names that are nearly the same", "Join them if they mean one class.",
        similar,
    )  # fmt: skip


def of_counts(sets: Sets, trained: TrainOptions) -> Iterator[Finding]:
    config = options.model_config(trained, num_classes=1)
    if "train" not in sets:
        yield Finding(
            ERROR, "no training split", "A training needs one: add it, or name its COCO file with "
            "--train-json.", [], 1,
        )  # fmt: skip
    elif not sets["train"].with_objects():
        yield Finding(
            ERROR, "training set without objects", "Give annotations with outlines or masks; "
            "crowds and boxes do not count.", [], 1,
        )  # fmt: skip
    places = []
    for split, key, what, effect in (
        ("train", "num_queries", "queries", "have no query and are not learned"),
        ("val", "num_queries", "queries", "have no query and cannot be found"),
        ("val", "max_detections", "detections per image", "cannot be found"),
    ):
        most, effect = getattr(config, key), f"{effect}; --set {key}"
        if split in sets and (text := too_many_objects(sets[split], most, what, effect)):
            places.append(Place(split, text=text))
    yield Finding(
        WARNING, "splits with more objects than queries or detections", "Raise the numbers, as the "
        "sentences name them.", places,
    )  # fmt: skip


def class_counts(sets: Sets) -> np.ndarray:
    """Objects of each split and class: int64 [splits, classes]."""
    num_classes = len(next(iter(sets.values())).categories)
    return np.stack([
        np.bincount(
            np.concatenate([np.zeros(0, int), *(one.labels(i) for i in range(len(one)))]),
            minlength=num_classes,
        )
        for one in sets.values()
    ])  # fmt: skip


def images_of(sets: Sets, facts: FactsOf) -> Iterator[tuple[str, int, Facts, CocoDataset]]:
    for split, one in sets.items():
        for index, each in enumerate(facts[split]):
            yield split, index, each, one


def where(box: np.ndarray) -> str:
    left, top, right, bottom = box.astype(int).tolist()
    return f"at x {left}-{right}, y {top}-{bottom}"
