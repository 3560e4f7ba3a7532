"""The page of several runs beside each other: curves on one axis, options, classes, images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import CocoDataset
from engine import log
from engine.coco_ap import NOTHING
from engine.report import results_page, run_page
from engine.report.charts import Line, lines
from engine.report.page import Html, charts, details, element, joined, page, section, table
from engine.report.tables import number

NAME = "comparison.html"
KEY = (
    "A prediction has the colour of the object that it finds, dashed if the class is wrong, or is "
    "red if it finds none."
)


def build(
    folders: Sequence[Path],
    compared: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]] = (),
    dataset: CocoDataset | None = None,
) -> str:
    """The page as HTML.

    Args:
        compared: the numbers of compare.py.
        detections: of each run, the detections on the images of `compared`, by index as text.
        dataset: the images that the first run was scored on.
    """
    names = compared["names"]
    title = f"{', '.join(names[:-1])} and {names[-1]}"
    notes = [element("div", element("p", text), kind="warning") for text in compared["notes"]]
    return page(
        title, element("h1", title), *notes, headline(compared), over_time(folders, names),
        options(compared), classes(compared), images(compared, detections, dataset),
    )  # fmt: skip


def keys(compared: Mapping[str, Any]) -> list[Html]:
    """The name of each run after its colour."""
    return [
        element("span", element("i", kind=f"h{place % run_page.HUES}"), name, kind="key")
        for place, name in enumerate(compared["names"])
    ]


def headline(compared: Mapping[str, Any]) -> Html:
    """The numbers of each run, the highest of a row in bold."""
    rows = []
    for row in compared["headline"]:
        known = [value for value in row["values"] if value not in (None, NOTHING)]
        rows.append((row["metric"], *(
            element("b", scored(value)) if len(known) > 1 and value == max(known) else scored(value)
            for value in row["values"]
        )))  # fmt: skip
    few, rest = rows[:3], rows[3:]
    header = ("", *keys(compared))
    return joined([table(header, few), details("All COCO numbers", table(header, rest))])


def scored(value: float | None) -> str:
    return number(NOTHING if value is None else value)


def over_time(folders: Sequence[Path], names: Sequence[str]) -> Html:
    """AP and loss of all runs on one axis, by epochs and by minutes."""
    kinds = ("AP", "train AP", "AP50", "AP by minutes", "loss", "lr")
    found: dict[str, list[Line]] = {kind: [] for kind in kinds}
    for place, (folder, name) in enumerate(zip(folders, names, strict=True)):
        rows = [row for row in log.read_jsonl(folder / "log.jsonl") if "loss" in row]
        evaluations, hue = log.read_csv(folder / "metrics.csv"), place % run_page.HUES
        of_run = [
            line._replace(name=name, hue=hue, dashed=False)
            for line in run_page.ap_lines(evaluations)
        ]
        for kind, line in zip(kinds, of_run):
            found[kind].append(line)
        if rows and of_run:
            steps, minutes = ([row[key] for row in rows] for key in ("iteration", "minutes"))
            at = np.interp([float(row["iteration"]) for row in evaluations], steps, minutes)
            found["AP by minutes"].append(of_run[0]._replace(x=at))
        for kind, noisy in (("loss", True), ("lr", False)):
            x, y = ([row[key] for row in rows] for key in ("epoch", kind))
            found[kind].append(Line(name, x, y, hue, noisy=noisy))
    return section(
        "Over time",
        charts([
            lines("AP", found["AP"], "epoch"),
            lines("AP by minutes", found["AP by minutes"], "min"),
            lines("AP on training images", found["train AP"], "epoch"),
            lines("AP50", found["AP50"], "epoch"),
            lines("Training loss", found["loss"], "epoch", log=True),
            lines("Learning rate", found["lr"], "epoch"),
        ]),
    )  # fmt: skip


def options(compared: Mapping[str, Any]) -> Html:
    rows = [(row["name"], *row["values"]) for row in compared["options"]]
    if not rows:
        return section("Options", element("p", "All options are equal."))
    return section("Options that differ", table(("", *keys(compared)), rows, range(1, 9)))


def classes(compared: Mapping[str, Any]) -> Html:
    """AP of each class as numbers and on a scale, those that differ most first."""

    def difference(row: Mapping[str, Any]) -> float:
        known = [value for value in row["AP"] if value not in (None, NOTHING)]
        return max(known) - min(known) if known else NOTHING

    rows = [
        (row["name"], *map(scored, row["AP"]), dots(row["AP"]), number(difference(row)))
        for row in sorted(compared["classes"], key=difference, reverse=True)
    ]
    header = ("class", *keys(compared), "from 0 to 1", "difference")
    most = results_page.SHOWN_CLASSES
    more = details(f"{len(rows) - most} more classes", table(header, rows[most:]))
    return section("AP of each class", table(header, rows[:most]), more if rows[most:] else "")


def dots(values: Sequence[float | None]) -> Html:
    """A dot for each run on a scale from 0 to 1."""
    found = [
        element("i", kind=f"h{place % run_page.HUES}", style=f"left:{value:.1%}")
        for place, value in enumerate(values)
        if value not in (None, NOTHING)
    ]
    return element("span", *found, kind="dots")


def images(
    compared: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    dataset: CocoDataset | None,
) -> Html:
    """The images on which the runs differ most, with the predictions of each."""
    names, parts = compared["names"], []
    for row in compared["images"] if dataset else ():
        predicted = [each[str(index)] for each, index in zip(detections, row["index"], strict=True)]
        rows = results_page.draw_rows(dataset, row["index"][0], dict(zip(names, predicted)))
        if rows:
            texts = [f"{name}: {score:.2f}" for name, score in zip(names, row["scores"])]
            about = (element("b", row["file"]), "panoptic quality", *texts)
            cells = (element("p", text) for text in about)
            parts.append(results_page.shown_rows(element("div", *cells), rows))
    title = "Images on which they differ most"
    return section(title, joined(parts), note=KEY) if parts else Html()
