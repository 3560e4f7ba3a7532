"""The sections of a report on what a checkpoint finds, from evidence.json and its images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data.dataset import CocoDataset
from data.errors import InputError, counted
from engine.coco_ap import NOTHING, Scores
from engine.report import diagnose, draw
from engine.report.charts import Line, histogram, lines
from engine.report.page import (
    Html,
    cards,
    charts,
    details,
    element,
    joined,
    picture,
    section,
    table,
)
from engine.report.tables import coco_rows, number

HEIGHT, QUALITY = 200, 58  # of the images of an example, as JPEG
MOST_IN_MATRIX = 30  # classes; of more, the most confused pairs are listed
PAIRS = 15
SHOWN_CLASSES = 40  # of more, the best and the worst are shown, and the rest is folded
KEY = (
    "An object and the prediction that finds it have one colour, dashed if the class is wrong. "
    "Missed objects are dashed in white, predictions without an object in red."
)

Evidence = Mapping[str, Any]


def warnings(found: Sequence[Mapping[str, str]]) -> Html:
    """What explains a low AP: title, reason, what to do; errors in red."""
    return joined(
        element(
            "div", element("b", one["what"]), element("p", one["why"]),
            element("p", element("b", "What to do: ", style="font-size:inherit"), one["do"]),
            kind="warning error" if one.get("level") == "error" else "warning", role="alert",
        )
        for one in found
    )  # fmt: skip


def headline(scores: Scores, train_ap: float | None) -> Html:
    """AP in cards, and the 12 numbers behind a click."""
    mask, box = scores.headline, scores.boxes
    shown = [(mask["AP"], "mask AP"), (mask["AP50"], "mask AP50"), (box["AP"], "box AP")]
    shown += [] if train_ap is None else [(train_ap, "mask AP on train")]
    if scores.best_threshold is not None:
        shown += [(scores.f1, f"F1 at score {scores.best_threshold:.2f}")]
        shown += [(scores.precision, "precision there"), (scores.recall, "recall there")]
    shown = [(number(value), what) for value, what in shown]
    header, *rows = coco_rows(scores)
    return joined([cards(shown), details("All 12 COCO numbers", table(header, rows))])


def threshold(evidence: Evidence) -> Html:
    """Precision, recall and F1, and how good images are."""
    curves, by_score, at = evidence["curves"], evidence["thresholds"], evidence["threshold"]
    kinds = (("precision50", "IoU 0.50"), ("precision75", "IoU 0.75"), ("precision", "0.50:0.95"))
    precision = [
        Line(name, curves["recall"], gaps(curves[key]), hue)
        for hue, (key, name) in enumerate(kinds)
    ]
    names = (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
    share = [
        Line(name, by_score["score"], gaps(by_score[key]), hue)
        for hue, (key, name) in enumerate(names)
    ]
    mark = at, f"{at:.2f} chosen"
    quality = [one["score"] for one in evidence["per_image"]]
    return section(
        "Score threshold",
        charts([
            lines("Precision at each recall", precision, "recall", unit=True),
            lines("By score threshold, at IoU 0.5", share, "score", unit=True, mark=mark),
            histogram(quality, "Images by panoptic quality", about="1: all is found"),
        ]),
        id="threshold",
    )  # fmt: skip


def gaps(values: Sequence[float]) -> list[float]:
    """NaN where there is nothing."""
    return [math.nan if value == NOTHING else value for value in values]


def confusion(evidence: Evidence) -> Html:
    """Ground truth against predictions: a matrix, or the most confused pairs of many classes."""
    names = evidence["confusion"]["names"]
    counts = np.asarray(evidence["confusion"]["counts"], int).reshape(len(names) + 1, -1)
    right = int(np.trace(counts[:-1, :-1]))
    missed, extra = int(counts[:-1, -1].sum()), int(counts[-1, :-1].sum())
    wrong = int(counts[:-1, :-1].sum()) - right
    if not counts.sum():
        return Html()
    at = evidence["threshold"]
    note = (
        f"Found with their class: {right:,} of {right + wrong + missed:,} objects; with another "
        f"class: {wrong:,}; missed: {missed:,}. Predictions without an object: {extra:,}. "
        f"Rows are the objects, columns the predictions, at mask IoU 0.5 and scores from {at:.2f}."
    )
    shown = matrix(names, counts) if len(names) <= MOST_IN_MATRIX else pairs(names, counts)
    return section("Confusion between classes", shown, note=note, id="confusion")


def matrix(names: Sequence[str], counts: np.ndarray) -> Html:
    """A row for each class and for predictions without object, shaded by its share of the row."""
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    top = [element("th", element("span", name), title=name) for name in (*names, "missed")]
    rows = [element("tr", element("th"), *top)]
    body = []
    for i, name in enumerate((*names, "extra")):
        cells = [element("th", name, title=name)]
        for j, count in enumerate(counts[i].tolist()):
            share = count / int(totals[i, 0])
            kind = "none" if len(names) in (i, j) else "right" if i == j else "wrong"
            kind += " strong" if share > 0.55 else ""
            style = {"style": f"--share:{max(share, 0.06):.0%}", "class": kind} if count else {}
            cells.append(element("td", count or "", **style))
        body.append(element("tr", *cells))
    whole = element("table", element("thead", *rows), element("tbody", *body), kind="heat")
    return element("div", whole, kind="scroll")


def pairs(names: Sequence[str], counts: np.ndarray) -> Html:
    """The most frequent confusions, and the classes that are missed or invented most."""

    def largest(counts: np.ndarray) -> list[tuple[int, int]]:
        """Places of the largest counts above 0, and the counts."""
        order = np.argsort(-counts, kind="stable")[:PAIRS].tolist()
        return [(place, int(counts[place])) for place in order if counts[place]]

    objects, size = counts[:-1].sum(1), len(names)
    wrong = counts[:-1, :-1] * ~np.eye(size, dtype=bool)
    found = [
        (names[place // size], names[place % size], n, share(n, objects[place // size]))
        for place, n in largest(wrong.ravel())
    ]
    missed = [(names[i], n, share(n, objects[i])) for i, n in largest(counts[:-1, -1])]
    extra = [(names[i], n) for i, n in largest(counts[-1, :-1])]
    parts = (
        ("Most confused", table(("object", "predicted as", "times", "of its objects"), found)),
        ("Most missed", table(("class", "missed", "of its objects"), missed)),
        ("Most predictions without object", table(("class", "times"), extra)),
    )  # fmt: skip
    cells = [element("div", element("h3", title), shown) for title, shown in parts if shown]
    return element("div", *cells, kind="columns")


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def bar(value: float) -> Html:
    """A bar of this share of its column."""
    inside = element("i", style=f"width:{max(value, 0):.1%}")
    return element("span", inside, kind="share")


def classes(rows: Sequence[Mapping[str, Any]], split: str) -> Html:
    """A row for each class, best first."""
    rows = sorted(rows, key=lambda row: -row["AP"])
    scored = [row for row in rows if row["AP"] != NOTHING]
    header = ["class", "AP", "", "AP50", "AR", f"objects of {split}"]
    header += ["of train"] if rows and "train_objects" in rows[0] else []
    lines = [
        (
            row["name"], number(row["AP"]), bar(row["AP"]), number(row["AP50"]), number(row["AR"]),
            row["objects"], *([row["train_objects"]] if len(header) > 6 else []),
        )
        for row in rows
    ]  # fmt: skip
    note = ""
    if len(scored) > 1:
        first, last = scored[0], scored[-1]
        note = (
            f"Best: {first['name']} with AP {number(first['AP'])}; worst: {last['name']} with "
            f"{number(last['AP'])}."
        )
    if len(lines) <= SHOWN_CLASSES:
        parts = [table(header, lines)]
    else:
        half = SHOWN_CLASSES // 4
        ends = [*lines[:half], *lines[len(scored) - half : len(scored)]]
        title = f"The {half} best and the {half} worst of {len(scored)} classes with objects"
        parts = [element("h3", title), table(header, ends)]
        parts.append(details(f"All {len(lines)} classes", table(header, lines)))
    return section("Classes", *parts, note=note, id="classes")


def diagnosis(found: Evidence | None) -> Html:
    """Why objects are missed, and AP with a part of the detections made perfect."""
    if not found or not found["recall"]["all"]["all"]["objects"]:
        return Html()
    missed, now = found["missed"], found["oracles"]["as evaluated"]["AP"]
    everything = found["recall"]["all"]["all"]
    note = (
        f"In {counted(found['images'], 'image')}, {everything['recall50']:.0%} of the objects have "
        "a mask of IoU 0.5, whatever its class and score. Of "
        f"{counted(missed['objects'], 'object')} without one, "
        f"{missed['not alone']:,} have another object of their class in the image, and "
        f"{missed['in a merged mask']:,} are in a mask that covers several objects."
    )
    oracles = [
        (
            name, diagnose.MEANING[name], number(values["AP"]), bar(values["AP"]),
            "-" if name == "as evaluated" else f"{values['AP'] - now:+.3f}", number(values["AP50"]),
        )
        for name, values in found["oracles"].items()
    ]  # fmt: skip
    header, *recall = diagnose.recall_rows(found)
    title = "Recall of objects alone and with others of their class, by size"
    return section(
        "Diagnosis",
        element("h3", "AP if a part of every detection were perfect"),
        table(("if", "meaning", "AP", "", "gain", "AP50"), oracles, long=[1]),
        details(title, table(header, recall)),
        note=note, id="diagnosis",
    )  # fmt: skip


def images(evidence: Evidence, dataset: CocoDataset | None) -> Html:
    """The worst, the median and the best images: image, ground truth, prediction."""
    parts = []
    for kind in ("worst", "median", "best"):
        examples = [example(evidence, index, dataset) for index in evidence["shown"][kind]]
        examples = [one for one in examples if one]
        parts += [element("h3", f"The {kind}"), *examples] if examples else []
    if not dataset:
        parts = [element("p", "The images cannot be read: the data set is not there.", kind="warn")]
    return section(f"Images of {evidence['split']}", *parts, note=KEY, id="images")


def example(evidence: Evidence, index: int, dataset: CocoDataset | None) -> Html:
    """One image with its numbers; empty if it cannot be read."""
    rows = dataset and draw_rows(dataset, index, {"prediction": evidence["detections"][str(index)]})
    if not rows:
        return Html()
    row = next(one for one in evidence["per_image"] if one["index"] == index)
    found = f"{row['found']:,} of {counted(row['objects'], 'object')} found"
    kinds = (("wrong_class", "of another class"), ("missed", "missed"), ("extra", "extra"))
    found += "".join(f", {row[key]:,} {text}" for key, text in kinds if row[key])
    about = [element("b", row["file"]), f"panoptic quality {row['score']:.2f}", found]
    cells = [element("p", part) for part in about]
    return shown_rows(element("div", *cells), rows)


def shown_rows(about: Html, rows: Mapping[str, Image.Image]) -> Html:
    """Images side by side below their names, after a text."""
    cells = [picture(one, name, QUALITY) for name, one in rows.items()]
    return element("div", about, *cells, kind="example", style=f"--columns:{len(cells)}")


def draw_rows(
    dataset: CocoDataset, index: int, predicted: Mapping[str, list[Mapping[str, Any]]]
) -> dict[str, Image.Image]:
    """Image, ground truth and predictions by name; empty if the image cannot be read. Beside those
    of several runs the ground truth does not show which objects are missed.
    """
    try:
        image, truth = dataset.read(index)
    except InputError:
        return {}
    objects, rows = draw.Objects(truth.labels, truth.rles), {}
    alone = draw.Example(image, objects, None, truth.ignore)
    if len(predicted) > 1:
        rows = draw.draw_rows(alone, dataset.class_names, HEIGHT)
    for name, detections in predicted.items():
        columns = [[one[key] for one in detections] for key in ("class", "rle", "score")]
        drawn = alone._replace(predictions=draw.Objects(*columns))
        drawn = draw.draw_rows(drawn, dataset.class_names, HEIGHT)
        prediction = drawn.pop("prediction")
        rows = (rows or drawn) | {name: prediction}
    return rows
