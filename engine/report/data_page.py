"""The page of a checked data set."""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.dataset import CocoDataset
from data.errors import InputError, first_of
from data.images import read_rgb
from data.loaders import spread
from engine import options
from engine.findings import ERROR, FactsOf, Finding, Place, Sets, class_counts
from engine.log import progress
from engine.options import TrainOptions
from engine.report.charts import histogram
from engine.report.page import (
    Html,
    cards,
    charts,
    element,
    joined,
    page,
    picture,
    pictures,
    section,
    table,
)  # fmt: skip
from engine.report.paint import Painting, Patch, palette, patch_of
from engine.values import is_unset, shown

HEIGHT = 170  # of a sample; its width is at most twice that
MARGIN = 0.7  # around the objects of a sample, of their longer side
LEAST_MARGIN = 12  # pixels
SAMPLES, MOST_CLASSES = 4, 60  # of each class, and classes that have some
SHOWN, LISTED = 8, 25  # of a problem: images and lines
LONGEST = 500  # characters of a line: problems.csv has all names of many equal images
DECISIONS = (
    "image_size", "canvas", "tiles", "epochs", "eval_every", "batch_size", "set.num_queries",
    "set.max_detections", "set.mask_stride", "set.mask_threshold",
)  # fmt: skip


class Content(NamedTuple):
    """All that the page holds.

    data: what the user gave. notes: what was recognised and decided. reasons: option -> why it
    follows from the data.
    """

    data: str
    verdict: str
    notes: Sequence[str]
    sets: Sets
    facts: FactsOf
    findings: Sequence[Finding]
    trained: TrainOptions
    reasons: dict[str, str]


def build(found: Content) -> str:
    """The page as HTML."""
    errors = any(one.level == ERROR for one in found.findings)
    looks = "warn" if found.findings else "good"
    counts = class_counts(found.sets)
    numbers = [
        (sum(map(len, found.sets.values())), "images"),
        (int(counts.sum()), "objects"),
        (counts.shape[1], "classes"),
        (len(found.sets), "splits"),
        (sum(one.count for one in found.findings if one.level == ERROR), "to correct"),
        (sum(one.count for one in found.findings if one.level != ERROR), "warnings"),
    ]
    return page(
        f"Check of {found.data}",
        element("h1", f"Check of {found.data}"),
        element("p", found.verdict, kind=f"verdict {'bad' if errors else looks}"),
        cards(numbers),
        section("Problems", overview(found.findings)),
        section("Splits", joined(element("p", text) for text in found.notes), splits(found)),
        section("Distributions", distributions(found)),
        section(
            "What a training would do", decisions(found),
            note=f"Recipe {found.trained.recipe}; each of these options can be given.",
        ),
        *(problem(found, number, one) for number, one in enumerate(found.findings)),
        section("Classes", classes(found, counts)),
        section(
            "Samples of the classes", class_samples(found),
            note=f"{SAMPLES} objects of a class, spread evenly over the images.",
        ),
    )  # fmt: skip


def overview(findings: Sequence[Finding]) -> Html:
    """A row for each finding, with a link to its section."""
    if not findings:
        return element("p", "None found.", kind="good")
    rows = [
        (
            mark(one), one.count,
            element("a", one.title, href=f"#problem-{number}"), Html(element("span", one.advice)),
        )
        for number, one in enumerate(findings)
    ]  # fmt: skip
    return table(("", "", "what", "what to do"), rows, long=[3])


def mark(one: Finding) -> Html:
    kind, text = ("bad", "correct") if one.level == ERROR else ("warn", "warning")
    return element("span", text, kind=f"mark {kind}")


def splits(found: Content) -> Html:
    rows = []
    for split, one in found.sets.items():
        objects = one.objects_per_image()
        sizes = Counter((each.width, each.height) for each in one.images).most_common()
        listed = ", ".join(f"{w} x {h} ({n:,})" for (w, h), n in sizes[:3])
        rows.append((
            split, len(one), int((objects == 0).sum()), int(objects.sum()),
            sum(len(one.crowd_labels(i)) for i in range(len(one))),
            one.dropped["boxes"], float(np.median(objects)), int(objects.max()),
            listed + (f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""),
        ))  # fmt: skip
    header = (
        "split", "images", "empty", "objects", "crowds", "boxes alone", "per image",
        "at most", "sizes",
    )  # fmt: skip
    return table(header, rows, long=[8])


def distributions(found: Content) -> Html:
    per_image = [one.objects_per_image() for one in found.sets.values()]
    areas, shares, shorts = [], [], []
    for split, one in found.sets.items():
        for record, facts in zip(one.images, found.facts[split], strict=True):
            areas.append(facts.areas)
            shorts.append(min(record.width, record.height))
            shares.append(np.sqrt(facts.areas) / shorts[-1])
    scale = found.trained.image_size
    sides, seen = np.sqrt(np.concatenate(areas)), np.concatenate(shares) * scale
    return charts([
        histogram(np.concatenate(per_image), "objects per image"),
        histogram(sides, "side of objects (root of their area), pixels", log=True),
        histogram(seen, f"the same with a short side of {scale}", log=True),
        histogram(shorts, "short side of images, pixels"),
    ])  # fmt: skip


def decisions(found: Content) -> Html:
    """Options that depend on the data, with their reason, and the fullest image."""
    opts, rows = found.trained, []
    config = options.model_config(opts, num_classes=1)
    for name in DECISIONS:
        key, holder = name.removeprefix("set."), config if name.startswith("set.") else opts
        value = getattr(holder, key, None)  # not every model has a mask stride
        if not is_unset(value):
            why = found.reasons.get(name, opts.origins.get(name, "default"))
            rows.append((key, shown(value), why))
    most = max(int(one.objects_per_image().max(initial=0)) for one in found.sets.values())
    rows.append(("objects in the fullest image", f"{most:,}", "each needs a query and a detection"))
    return table(("option", "value", "why"), rows, long=[2])


def classes(found: Content, counts: np.ndarray) -> Html:
    sets = found.sets
    first = next(iter(sets.values()))
    crowds, holders, sides = Counter(), Counter(), defaultdict(list)
    for split, one in sets.items():
        for index, facts in enumerate(found.facts[split]):
            labels = one.labels(index).tolist()
            holders.update(set(labels))
            crowds.update(one.crowd_labels(index).tolist())
            for label, area in zip(labels, facts.areas.tolist(), strict=True):
                sides[label].append(area**0.5)
    total = counts.sum(0)
    rows = [
        (
            first.categories[i].name, Html(first.categories[i].id), *counts[:, i].tolist(),
            round(100 * float(total[i]) / max(total.sum(), 1), 1), holders[i], crowds[i],
            round(float(np.median(sides[i] or [0]))),
        )
        for i in np.argsort(-total, kind="stable").tolist()
    ]  # fmt: skip
    header = ("class", "id", *sets, "%", "images", "crowds", "median side")
    return table(header, rows, long=[0])


def problem(found: Content, number: int, one: Finding) -> Html:
    """The samples and the first places of a finding."""
    places = [each for each in one.places if each.index is not None]
    figures = [
        figure
        for number in spread(len(places), SHOWN)
        for figure in shown_place(found.sets, places[number])
    ]
    rows = [
        (each.split, each.image, textwrap.shorten(each.text, LONGEST, placeholder=" ..."))
        for each in one.places[:LISTED]
    ]
    if len(one.places) > LISTED:
        rows.append(("", "", f"and {len(one.places) - LISTED:,} more, all in problems.csv"))
    title = element("h2", f"{one.title}: {one.count:,} ", mark(one), id=f"problem-{number}")
    return joined([
        title, element("p", one.advice, kind="faint"), pictures(figures),
        table(("split", "image", "where"), rows, long=[2]),
    ])  # fmt: skip


def shown_place(sets: Sets, place: Place) -> Iterator[Html]:
    """The sample of a place, and that of the other image."""
    pairs = [(place.split, place.index)] + ([place.other] if place.other else [])
    for split, index in pairs:
        drawn = sample(sets[split], index, place.objects)
        if drawn:
            yield picture(drawn, f"{split}: {sets[split].images[index].file_name}")


def class_samples(found: Content) -> Html:
    """Objects of each class, of train where it has some there."""
    places: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for split, one in found.sets.items():
        for index, each in enumerate(found.facts[split]):
            for number, label in enumerate([] if each.broken else one.labels(index).tolist()):
                places[label].append((split, index, number))
    names = next(iter(found.sets.values())).class_names
    order = sorted(places, key=lambda label: -len(places[label]))
    parts = []
    for label in progress(order[:MOST_CLASSES], desc="drawing samples", leave=False):
        first = places[label][0][0]
        of_split = [place for place in places[label] if place[0] == first]
        figures = []
        for split, index, number in (of_split[i] for i in spread(len(of_split), SAMPLES)):
            if drawn := sample(found.sets[split], index, (number,)):
                figures.append(picture(drawn, f"{split}: {found.sets[split].images[index][1]}"))
        parts += [element("h3", names[label]), pictures(figures)]
    left = [names[label] for label in order[MOST_CLASSES:]]
    return joined([*parts, element("p", f"without samples here: {first_of(left)}") if left else ""])


def sample(dataset: CocoDataset, index: int, objects: Sequence[int]) -> Image.Image | None:
    """These objects of an image and what is around them, or all objects in the whole image; the
    image alone where annotations do not fit, None if it cannot be read.
    """
    try:
        image, annotation = dataset.read(index)
        patches = [patch_of(mask) for mask in annotation.rles]
    except InputError:
        try:
            image, patches, objects = read_rgb(dataset.path(index)), [], ()
        except InputError:
            return None
    box = around([patches[i].box for i in objects], image.size)
    part = image.crop(box)
    ratio = min(HEIGHT / part.height, 2 * HEIGHT / part.width)
    size = max(round(part.width * ratio), 1), max(round(part.height * ratio), 1)
    painting = Painting(part, size)
    for number in objects or range(len(patches)):
        patch = cut(patches[number], box)
        painting.fill(patch, palette(number), 0.35)
        painting.outline(patch, palette(number))
    return painting.finish()


def around(boxes: Sequence[tuple], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box around boxes and a margin, in an image of this size; all of it without boxes."""
    if not boxes:
        return 0, 0, *size
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    right, bottom = (max(box[axis] for box in boxes) for axis in (2, 3))
    margin = max(LEAST_MARGIN, round(MARGIN * max(right - left, bottom - top)))
    return (
        max(left - margin, 0), max(top - margin, 0),
        min(right + margin, size[0]), min(bottom + margin, size[1]),
    )  # fmt: skip


def cut(patch: Patch, box: tuple[int, int, int, int]) -> Patch:
    """A patch, which lies in the box, in the coordinates of the box."""
    left, top, right, bottom = box
    x, y = patch.corner
    return Patch(patch.inside, (x - left, y - top), (bottom - top, right - left))
