"""Drawings of annotations and predictions, with PIL alone.

`grid` is the sheet of `visualize`, `overlay` the image of `predict`, and `training_batch` shows a
batch as the model sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data import rle
from engine.report.paint import (
    INK,
    MISSED,
    UNMATCHED,
    VOID,
    Colour,
    Painting,
    palette,
    shorten,
    text_size,
    write,
)

PAPER: Colour = (255, 255, 255)
FAINT: Colour = (110, 116, 124)
PADDING: Colour = (70, 90, 130)
MATCH_IOU = 0.5  # the mask IoU from which a prediction counts as found, as in AP50
ROWS = ("image", "ground truth", "prediction")
SWATCH = (26, 16)
GAP = 6
MARGIN = 12
TEXT = 15

Masks = Sequence[dict] | np.ndarray


@dataclass
class Objects:
    """Objects of an image: labels [N] (class indices), masks (N RLEs or bool [N,H,W]), scores."""

    labels: Sequence[int]
    masks: Masks
    scores: Sequence[float] | None = None


@dataclass
class Example:
    """One image of a grid.

    Args:
        truth, predictions: masks at the size of the image; None leaves the row out.
        void: RLE of the pixels that are not scored (void, crowd).
    """

    image: Image.Image
    truth: Objects | None = None
    predictions: Objects | None = None
    void: dict | None = None
    caption: str = ""


@dataclass
class Shape:
    """An object with its label and colour."""

    mask: np.ndarray
    text: str
    colour: Colour
    dashed: bool = False


def grid(
    examples: Sequence[Example],
    class_names: Sequence[str],
    *,
    title: str | None = None,
    columns: int = 4,
    height: int = 240,
    threshold: float | None = None,
) -> Image.Image:
    """Rows image / ground truth / prediction, one column per example, `columns` side by side.

    A prediction and the object it finds (same class, mask IoU of at least 0.5, void left out, best
    pairs overall) have one colour in both rows; those without a partner are dashed, red for
    predictions and white for missed objects. Rows that no example has are left out, and labels
    without a free place. Every prediction is drawn: `threshold` is only named in the legend.
    `height` is that of an image in pixels.
    """
    shown = [draw_rows(example, class_names, height) for example in examples]
    rows = [name for name in ROWS if any(name in drawn for drawn in shown)]
    bands = [
        band_of(shown[i : i + columns], examples[i : i + columns], rows)
        for i in range(0, len(shown), columns)
    ]
    legend = grid_legend(examples, threshold)
    return sheet_of(bands, legend, title)


def overlay(
    image: Image.Image,
    labels: Sequence[int],
    scores: Sequence[float] | None,
    masks: Masks,
    class_names: Sequence[str],
) -> Image.Image:
    """The predictions over their image, at its size, each in a colour of its own."""
    shapes = shapes_of(Objects(labels, masks, scores), class_names)
    scale = min(max(min(image.size) / 480, 1.0), 4.0)
    return paint(image, image.size, shapes, scale=scale)


def training_batch(
    images: Tensor, targets: Sequence[dict], class_names: Sequence[str], *, width: int = 320
) -> Image.Image:
    """A batch as the model sees it: targets, with ignored regions and padding hatched.

    Args:
        images: float [B,3,H,W] in 0..1, with its targets (see data/batch.py).
        width: of one image on the sheet, in pixels.
    """
    canvas = images.shape[-2:]
    size = (width, max(round(width * canvas[0] / canvas[1]), 1))
    cells = [
        training_cell(image, target, class_names, size)
        for image, target in zip(images, targets, strict=True)
    ]
    columns = min(4, int(np.ceil(len(cells) ** 0.5)))
    bands = [side_by_side(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    legend = [
        (swatch([palette(0), palette(1), palette(2)]), "targets, a colour each"),
        (hatched_swatch(VOID), "ignored (void or crowd)"),
        (hatched_swatch(PADDING), "padding"),
    ]
    return sheet_of(bands, legend, f"{len(cells)} images of {canvas[1]} x {canvas[0]}")


def match(truth: Objects, predictions: Objects, void: dict | None = None) -> dict[int, int]:
    """Prediction index -> ground truth index: pairs of one class with the largest sum of IoU.

    Only pairs of IoU >= 0.5 count. Predicted pixels inside `void` (RLE) are removed first.
    """
    found = rles_of(predictions.masks)
    if void is not None:
        found = rle.subtract(found, void)
    iou = rle.iou(found, rles_of(truth.masks))  # [P,N]
    same = np.equal.outer(np.asarray(predictions.labels), np.asarray(truth.labels))
    iou = np.where(same & (iou >= MATCH_IOU), iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return {int(p): int(t) for p, t in zip(rows, columns, strict=True) if iou[p, t] > 0}


def rles_of(masks: Masks) -> list[dict]:
    return rle.encode(masks) if isinstance(masks, np.ndarray) else list(masks)


def shapes_of(
    objects: Objects,
    class_names: Sequence[str],
    partners: dict[int, int] | None = None,
    lonely: Colour = MISSED,
) -> list[Shape]:
    """The objects as shapes.

    Args:
        partners: index of an object -> index of its colour. Objects without one are dashed, in the
            colour `lonely`. None gives every object a colour of its own.
    """
    shapes = []
    for index, (label, mask) in enumerate(zip(objects.labels, objects.masks, strict=True)):
        if isinstance(mask, dict):
            mask = rle.decode([mask], mask["size"])[0]
        score = "" if objects.scores is None else f" {float(objects.scores[index]):.2f}"
        dashed = partners is not None and index not in partners
        colour = lonely if dashed else palette((partners or {}).get(index, index))
        shapes.append(Shape(mask, class_names[int(label)] + score, colour, dashed))
    return shapes


def paint(
    image: Image.Image,
    size: tuple[int, int],
    shapes: Sequence[Shape],
    *,
    void: np.ndarray | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Paints shapes over an image, and hatches `void`."""
    painting = Painting(image, size, scale)
    if void is not None:
        painting.hatch(void)
    add_shapes(painting, shapes)
    return painting.finish()


def add_shapes(painting: Painting, shapes: Sequence[Shape]) -> None:
    """Fills each pixel for the smallest shape there and draws every outline, small ones last.

    So an object and one inside it are both visible, whatever their order.
    """
    shapes = sorted(shapes, key=lambda shape: -int(shape.mask.sum()))
    filled = np.zeros((), bool)
    for shape in reversed(shapes):
        painting.fill(shape.mask & ~filled, shape.colour, 0.18 if shape.dashed else 0.42)
        filled = filled | shape.mask
    for shape in shapes:
        painting.outline(shape.mask, shape.colour, dashed=shape.dashed)
        painting.label(shape.mask, shape.text, shape.colour)


def draw_rows(example: Example, class_names: Sequence[str], height: int) -> dict[str, Image.Image]:
    """The rows of one example by name: image, and ground truth and prediction if given."""
    image, truth, predictions = example.image, example.truth, example.predictions
    ratio = min(height / image.height, 2 * height / image.width)
    size = (max(round(image.width * ratio), 1), max(round(image.height * ratio), 1))
    void = None if example.void is None else rle.decode([example.void], example.void["size"])[0]
    pairs = found = None
    if truth is not None and predictions is not None:
        pairs = match(truth, predictions, example.void)
        found = {index: index for index in pairs.values()}
    drawn = {"image": Painting(image, size).finish()}
    scale = height / 200
    if truth is not None:
        shapes = shapes_of(truth, class_names, found, MISSED)
        drawn["ground truth"] = paint(image, size, shapes, void=void, scale=scale)
    if predictions is not None:
        shapes = shapes_of(predictions, class_names, pairs, UNMATCHED)
        drawn["prediction"] = paint(image, size, shapes, scale=scale)
    return drawn


def training_cell(
    image: Tensor, target: dict, class_names: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    height, width = (int(side) for side in target["size"])
    padding = np.ones(pixels.shape[:2], bool)
    padding[:height, :width] = False
    painting = Painting(Image.fromarray(pixels), size)
    painting.hatch(padding, PADDING, opacity=1.0)
    painting.hatch(target["ignore"].cpu().numpy())
    objects = Objects(target["labels"].tolist(), target["masks"].cpu().numpy())
    add_shapes(painting, shapes_of(objects, class_names))
    return painting.finish()


def side_by_side(cells: Sequence[Image.Image]) -> Image.Image:
    """Images side by side."""
    width = sum(cell.width for cell in cells) + GAP * (len(cells) - 1)
    row = Image.new("RGB", (width, max(cell.height for cell in cells)), PAPER)
    left = 0
    for cell in cells:
        row.paste(cell, (left, (row.height - cell.height) // 2))
        left += cell.width + GAP
    return row


def band_of(
    columns: Sequence[dict[str, Image.Image]], examples: Sequence[Example], rows: Sequence[str]
) -> Image.Image:
    """The rows of some examples, with names at the left and captions below."""
    blank = [Image.new("RGB", column["image"].size, (240, 241, 243)) for column in columns]
    drawn = [
        side_by_side(
            [column.get(name, empty) for column, empty in zip(columns, blank, strict=True)]
        )
        for name in rows
    ]
    caption = caption_row(columns, examples)
    left = text_size("I", TEXT)[1] + GAP
    height = sum(row.height + GAP for row in drawn) + caption.height
    band = Image.new("RGB", (left + drawn[0].width, height), PAPER)
    top = 0
    for name, row in zip(rows, drawn, strict=True):
        side = upright(name)
        band.paste(side, (0, top + (row.height - side.height) // 2))
        band.paste(row, (left, top))
        top += row.height + GAP
    band.paste(caption, (left, top))
    return band


def caption_row(
    columns: Sequence[dict[str, Image.Image]], examples: Sequence[Example]
) -> Image.Image:
    size = TEXT - 2
    height = text_size("I", size)[1] if any(example.caption for example in examples) else 0
    cells = []
    for column, example in zip(columns, examples, strict=True):
        cell = Image.new("RGB", (column["image"].width, max(height, 1)), PAPER)
        text = shorten(example.caption, size, cell.width)
        write(cell, ((cell.width - text_size(text, size)[0]) // 2, 0), text, size, FAINT)
        cells.append(cell)
    return side_by_side(cells)


def upright(text: str) -> Image.Image:
    """Text that reads from the bottom up."""
    strip = Image.new("RGB", text_size(text, TEXT), PAPER)
    write(strip, (0, 0), text, TEXT, INK)
    return strip.transpose(Image.Transpose.ROTATE_90)


def swatch(colours: Sequence[Colour], *, dashed: bool = False) -> Image.Image:
    """Small rectangles painted like objects."""
    width, height = SWATCH
    painting = Painting(
        Image.new("RGB", (width * len(colours), height), (120, 126, 134)),
        (width * len(colours), height),
    )
    for number, colour in enumerate(colours):
        mask = np.zeros((height, width * len(colours)), bool)
        mask[3:-3, number * width + 3 : (number + 1) * width - 3] = True
        painting.fill(mask, colour, 0.18 if dashed else 0.42)
        painting.outline(mask, colour, dashed=dashed)
    return painting.finish()


def hatched_swatch(colour: Colour) -> Image.Image:
    painting = Painting(Image.new("RGB", SWATCH, (90, 96, 104)), SWATCH)
    painting.hatch(np.ones(SWATCH[::-1], bool), colour)
    return painting.finish()


def grid_legend(
    examples: Sequence[Example], threshold: float | None
) -> list[tuple[Image.Image | None, str]]:
    """Swatches with their meaning, for what the examples contain."""
    several = [palette(0), palette(1), palette(2)]
    legend: list[tuple[Image.Image | None, str]] = []
    if any(example.truth is not None and example.predictions is not None for example in examples):
        legend += [
            (swatch(several), "found: one colour in both rows (same class, mask IoU >= 0.5)"),
            (swatch([MISSED], dashed=True), "missed object"),
            (swatch([UNMATCHED], dashed=True), "prediction without object"),
        ]
    else:
        legend.append((swatch(several), "objects, a colour each"))
    if any(example.void is not None for example in examples):
        legend.append((hatched_swatch(VOID), "void or crowd: not scored"))
    if any(example.predictions is not None for example in examples):
        shown = "" if threshold is None else f", shown from {threshold:.2f}"
        legend.append((None, f"number: score{shown}"))
    return legend


def legend_strip(legend: Sequence[tuple[Image.Image | None, str]], width: int) -> Image.Image:
    """The legend, wrapped to a width."""
    size = TEXT - 1
    line_height = max(SWATCH[1], text_size("I", size)[1]) + 6
    places, left, top = [], 0, 0
    for sign, text in legend:
        indent = 0 if sign is None else sign.width + 6
        needed = indent + text_size(text, size)[0]
        if left and left + needed > width:
            left, top = 0, top + line_height
        places.append((left, top, indent))
        left += needed + 22
    strip = Image.new("RGB", (width, top + line_height), PAPER)
    for (sign, text), (left, top, indent) in zip(legend, places, strict=True):
        if sign is not None:
            strip.paste(sign, (left, top + (line_height - sign.height) // 2))
        text = shorten(text, size, width - left - indent)
        write(
            strip,
            (left + indent, top + (line_height - text_size(text, size)[1]) // 2),
            text,
            size,
            INK,
        )
    return strip


def sheet_of(
    bands: Sequence[Image.Image],
    legend: Sequence[tuple[Image.Image | None, str]],
    title: str | None,
) -> Image.Image:
    """Title, bands and legend, one below the other."""
    inner = max(max(band.width for band in bands), 300)
    parts = list(bands)
    if title:
        head = Image.new("RGB", (inner, text_size("I", TEXT + 3)[1] + 4), PAPER)
        write(head, (0, 0), shorten(title, TEXT + 3, inner), TEXT + 3, INK)
        parts.insert(0, head)
    parts.append(legend_strip(legend, inner))
    height = sum(part.height for part in parts) + 2 * GAP * (len(parts) - 1)
    sheet = Image.new("RGB", (inner + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height + 2 * GAP
    return sheet
