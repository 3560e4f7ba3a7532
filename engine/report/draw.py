"""Drawings of annotations and predictions, with PIL alone.

`grid` is the sheet of `visualize`, `overlay` the image of `predict`, and `training_batch` shows the
input of the network and its targets.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from data import rle
from engine.report.confusion import assign
from engine.report.paint import (
    INK,
    MISSED,
    UNMATCHED,
    VOID,
    Colour,
    Painting,
    font_file,
    palette,
    patch_of,
    shorten,
    text_size,
    write,
)

PAPER: Colour = (255, 255, 255)
BLANK: Colour = (240, 241, 243)  # where an example lacks a row
FAINT: Colour = (110, 116, 124)
PADDING: Colour = (70, 90, 130)
HEIGHT = 240  # of an image of a grid
WIDTH = 320  # of an image of a training batch
SWATCH = (26, 16)
GAP = 6
MARGIN = 12
TEXT = 15

Masks = Sequence[dict] | np.ndarray
Legend = list[tuple[Image.Image | None, str]]  # swatches with their meaning


class Objects(NamedTuple):
    """Objects of an image: labels [N] (class indices), masks (N RLEs or bool [N,H,W]), scores."""

    labels: Sequence[int]
    masks: Masks
    scores: Sequence[float] | None = None


class Example(NamedTuple):
    """One image of a grid.

    truth, predictions: masks at the size of the image; None leaves the row out.
    void: RLE of the pixels that are not scored (void, crowd).
    """

    image: Image.Image
    truth: Objects | None = None
    predictions: Objects | None = None
    void: dict | None = None
    caption: str = ""


def grid(
    examples: Sequence[Example],
    class_names: Sequence[str],
    *,
    title: str | None = None,
    columns: int = 4,
    threshold: float | None = None,
    colour_by: str = "object",
) -> Image.Image:
    """Rows image / ground truth / prediction, one column per example, `columns` side by side.

    A prediction and the object it finds (mask IoU of at least 0.5, as in confusion.py) have one
    colour in both rows, dashed if their classes differ; those without a partner are dashed, red for
    predictions and white for missed objects. Rows that no example has are left out, and labels
    without a free place. Every prediction is drawn: `threshold` is only named in the legend. With
    `colour_by` "class" all found objects of a class have its colour instead.
    """
    drawn = [draw_rows(example, class_names, colour_by=colour_by) for example in examples]
    names = [n for n in ("image", "ground truth", "prediction") if any(n in rows for rows in drawn)]
    bands = []
    for first in range(0, len(drawn), columns):
        some, band = drawn[first : first + columns], []
        sizes = [rows["image"].size for rows in some]
        for name in names:
            heading = text_line(name, TEXT).transpose(Image.Transpose.ROTATE_90)
            blank = [Image.new("RGB", size, BLANK) for size in sizes]
            cells = [rows.get(name, empty) for rows, empty in zip(some, blank, strict=True)]
            band.append(side_by_side([heading, *cells]))
        row = Image.new("RGB", (band[0].width, text_size("I", TEXT)[1]), PAPER)
        left = heading.width + GAP
        for example, (width, _) in zip(examples[first:], sizes):
            line = text_line(example.caption, TEXT - 2, width, FAINT)
            row.paste(line, (left + (width - line.width) // 2, 0))
            left += width + GAP
        bands.append(below([*band, row] if any(each.caption for each in examples) else band, GAP))
    return sheet_of(bands, grid_legend(examples, class_names, threshold, colour_by), title)


def overlay(
    image: Image.Image, objects: Objects, class_names: Sequence[str], colour_by: str = "object"
) -> Image.Image:
    """Objects over their image, at its size; each "object" or each "class" has its own colour."""
    painting = Painting(image, image.size, scale=min(max(min(image.size) / 480, 1.0), 4.0))
    paint_objects(painting, objects, class_names, colour_by=colour_by)
    return painting.finish()


def training_batch(
    images: Tensor, targets: Sequence[dict], class_names: Sequence[str]
) -> Image.Image:
    """The input of the network, [B,3,H,W] in 0..1, and its targets, as in data/batch.py.

    Ignored regions and padding are hatched.
    """
    canvas = images.shape[-2:]
    size = (WIDTH, max(round(WIDTH * canvas[0] / canvas[1]), 1))
    cells = []
    for image, target in zip(images, targets, strict=True):
        pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        padding = np.ones(canvas, bool)
        padding[: target["size"][0], : target["size"][1]] = False
        painting = Painting(Image.fromarray(pixels), size)
        painting.hatch(patch_of(padding), PADDING, opacity=1.0)
        painting.hatch(patch_of(target["ignore"].cpu().numpy()))
        objects = Objects(target["labels"].tolist(), target["masks"].cpu().numpy())
        paint_objects(painting, objects, class_names)
        cells.append(painting.finish())
    columns = min(4, int(np.ceil(len(cells) ** 0.5)))
    bands = [side_by_side(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    legend = [
        (swatch(map(palette, range(3))), "targets, a colour each"),
        (hatched_swatch(VOID), "ignored (void or crowd)"),
        (hatched_swatch(PADDING), "padding"),
    ]
    return sheet_of(bands, legend, f"{len(cells)} images of {canvas[1]} x {canvas[0]}")


def match(truth: Objects, predictions: Objects, void: dict | None = None) -> dict[int, int]:
    """Prediction index -> ground truth index, as in confusion.py. Predicted pixels inside `void`
    (RLE) are removed first.
    """
    found, objects = (
        rle.encode(each.masks) if isinstance(each.masks, np.ndarray) else each.masks
        for each in (predictions, truth)
    )
    if void is not None:
        found = rle.subtract(found, void)
    same = np.equal.outer(np.asarray(predictions.labels), np.asarray(truth.labels))
    scores = [0.0] * len(same) if predictions.scores is None else predictions.scores
    order = np.argsort(-np.asarray(scores), kind="stable")
    pairs = assign(rle.iou(found, objects)[order], same[order])
    return {int(order[row]): column for row, column in pairs.items()}


def drawable(class_names: Sequence[str]) -> list[str]:
    """The names as they are drawn: the number of a class where no font has all letters."""
    fits = [font_file(name + " 0.") is not None for name in class_names]
    return [
        name if fit else str(number) for number, (name, fit) in enumerate(zip(class_names, fits))
    ]


def class_numbers(class_names: Sequence[str]) -> str:
    """What the numbers of `drawable` mean, in a sentence; empty if there are none."""
    pairs = [f"{shown} = {n}" for n, shown in zip(class_names, drawable(class_names)) if n != shown]
    text = f"no font here has the letters of these classes; images show numbers: {', '.join(pairs)}"
    return text if pairs else ""


def paint_objects(
    painting: Painting,
    objects: Objects,
    class_names: Sequence[str],
    partners: dict[int, int] | None = None,
    wrong: Collection[int] = (),
    alone: Colour = MISSED,
    colour_by: str = "object",
) -> None:
    """Fills each pixel for the smallest object there and draws every outline, small ones last.

    So an object and one inside it are both visible, whatever their order.

    Args:
        partners: index of an object -> index of its colour. Objects without one are dashed, in the
            colour `alone`. None gives every object a colour of its own.
        wrong: indices of objects with a partner of another class, which are dashed as well.
        colour_by: "class" gives all of a class the colour of its index. Our choice, rather than one
            that follows from the name: no two classes look alike, and the order of the classes is
            that of the checkpoint, so it is the same in every image and in every run on that data.
    """
    shapes, shown = [], drawable(class_names)
    for index, (label, mask) in enumerate(zip(objects.labels, objects.masks, strict=True)):
        mask = patch_of(mask)
        score = "" if objects.scores is None else f"  {float(objects.scores[index]):.2f}"
        single = partners is not None and index not in partners
        own = int(label) if colour_by == "class" else (partners or {}).get(index, index)
        colour = alone if single else palette(own)
        shapes.append((mask, shown[int(label)] + score, colour, single or index in wrong))
    shapes.sort(key=lambda shape: -int(shape[0].inside.sum()))
    filled = np.zeros(shapes[0][0].size if shapes else (), bool)
    for mask, _, colour, dashed in reversed(shapes):
        there = filled[mask.slices]
        free = mask._replace(inside=mask.inside & ~there)
        painting.fill(free, colour, 0.18 if dashed else 0.42)
        there |= mask.inside
    for mask, text, colour, dashed in shapes:
        painting.outline(mask, colour, dashed=dashed)
        painting.label(mask, text, colour)


def draw_rows(
    example: Example,
    class_names: Sequence[str],
    height: int = HEIGHT,
    colour_by: str = "object",
) -> dict[str, Image.Image]:
    """The rows of one example by name: image, and ground truth and prediction if given."""
    image, truth, predictions, void, _ = example
    ratio = min(height / image.height, 2 * height / image.width)
    size = (max(round(image.width * ratio), 1), max(round(image.height * ratio), 1))
    pairs, found, wrong = None, None, {}
    if truth is not None and predictions is not None:
        pairs = match(truth, predictions, void)
        found = {index: index for index in pairs.values()}
        wrong = {p: t for p, t in pairs.items() if predictions.labels[p] != truth.labels[t]}
    rows = {"image": Painting(image, size).finish()}
    for name, each, *how in (
        ("ground truth", truth, found, wrong.values(), MISSED),
        ("prediction", predictions, pairs, wrong, UNMATCHED),
    ):
        if each is None:
            continue
        painting = Painting(image, size, height / 200)
        if void is not None and each is truth:
            painting.hatch(patch_of(void))
        paint_objects(painting, each, class_names, *how, colour_by)
        rows[name] = painting.finish()
    return rows


def below(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    sheet = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + gap
    return sheet


def side_by_side(cells: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    width = sum(cell.width for cell in cells) + gap * (len(cells) - 1)
    row = Image.new("RGB", (width, max(cell.height for cell in cells)), PAPER)
    left = 0
    for cell in cells:
        row.paste(cell, (left, (row.height - cell.height) // 2))
        left += cell.width + gap
    return row


def text_line(text: str, size: int, width: int | None = None, colour: Colour = INK) -> Image.Image:
    """A line of text, shortened to a width."""
    text = text if width is None else shorten(text, size, width)
    line = Image.new("RGB", text_size(text or " ", size), PAPER)
    write(line, (0, 0), text, size, colour)
    return line


def swatch(colours: Iterable[Colour], *, dashed: bool = False) -> Image.Image:
    """Small rectangles painted like objects."""
    cells = []
    for colour in colours:
        painting = Painting(Image.new("RGB", SWATCH, (120, 126, 134)), SWATCH)
        mask = np.zeros(SWATCH[::-1], bool)
        mask[3:-3, 3:-3] = True
        painting.fill(patch_of(mask), colour, 0.18 if dashed else 0.42)
        painting.outline(patch_of(mask), colour, dashed=dashed)
        cells.append(painting.finish())
    return side_by_side(cells, gap=0)


def hatched_swatch(colour: Colour) -> Image.Image:
    painting = Painting(Image.new("RGB", SWATCH, (90, 96, 104)), SWATCH)
    painting.hatch(patch_of(np.ones(SWATCH[::-1], bool)), colour)
    return painting.finish()


def grid_legend(
    examples: Sequence[Example],
    class_names: Sequence[str],
    threshold: float | None,
    colour_by: str,
) -> Legend:
    """What the examples contain."""
    several = swatch(map(palette, range(3)))
    legend: Legend = [(several, "objects, a colour each")]
    both = any(example.truth and example.predictions for example in examples)
    if colour_by == "class":
        objects = [each for example in examples for each in example[1:3] if each]
        present = sorted({int(label) for each in objects for label in each.labels})
        names = drawable(class_names)
        legend = [(swatch([palette(label)]), names[label]) for label in present]
    elif both:
        legend = [(several, "found: one colour in both rows (mask IoU >= 0.5)")]
    if both:
        legend += [
            (swatch([palette(0)], dashed=True), "found with another class"),
            (swatch([MISSED], dashed=True), "missed object"),
            (swatch([UNMATCHED], dashed=True), "prediction without object"),
        ]
    if any(example.void for example in examples):
        legend.append((hatched_swatch(VOID), "void or crowd: not scored"))
    if any(example.predictions for example in examples):
        shown = "" if threshold is None else f", shown from {threshold:.2f}"
        legend.append((None, f"number: score{shown}"))
    return legend


def legend_strip(legend: Legend, width: int) -> Image.Image:
    """The legend, wrapped to a width."""
    rows, left = [[]], 0
    for sign, text in legend:
        line = text_line(text, TEXT - 1, width - SWATCH[0] * 4)
        item = line if sign is None else side_by_side([sign, line])
        if left and left + item.width > width:
            rows, left = [*rows, []], 0
        rows[-1].append(item)
        left += item.width + 22
    return below([side_by_side(row, 22) for row in rows], 6)


def sheet_of(bands: Sequence[Image.Image], legend: Legend, title: str | None) -> Image.Image:
    """Title, bands and legend, one below the other."""
    width = max(max(band.width for band in bands), 300)
    parts = [*bands, legend_strip(legend, width)]
    if title:
        parts.insert(0, text_line(title, TEXT + 3, width))
    return ImageOps.expand(below(parts, 2 * GAP), MARGIN, PAPER)
