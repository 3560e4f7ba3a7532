"""Pictures of what was annotated and what was found, drawn with PIL alone.

`grid` is the sheet of `visualize`, `overlay` the picture of `predict`, and `training_batch` what
the model sees while it trains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

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
_ROWS = ("image", "ground truth", "prediction")
_SWATCH = (26, 16)
_GAP = 6
_MARGIN = 12
_TEXT = 15

Masks = Sequence | np.ndarray | torch.Tensor


@dataclass
class Objects:
    """Objects of a picture: labels [N] (class indices), masks (N RLEs or bool [N,H,W]), scores."""

    labels: Sequence[int]
    masks: Masks
    scores: Sequence[float] | None = None


@dataclass
class Picture:
    """One column of a grid.

    image: PIL image or uint8 [H,W,3]; truth and predictions: None where there is nothing to show,
    masks at the size of the image; void: RLE or bool [H,W] of what is not scored (void, crowd).
    """

    image: Image.Image | np.ndarray
    truth: Objects | None = None
    predictions: Objects | None = None
    void: dict | np.ndarray | None = None
    caption: str = ""


@dataclass
class _Shape:
    """An object ready to be painted."""

    mask: np.ndarray
    text: str
    colour: Colour
    dashed: bool = False


def grid(
    pictures: Sequence[Picture],
    class_names: Sequence[str],
    *,
    title: str | None = None,
    columns: int = 4,
    height: int = 240,
    threshold: float | None = None,
) -> Image.Image:
    """Rows image / ground truth / prediction, a column per picture, `columns` side by side.

    A prediction and the object it finds (same class, mask IoU of at least 0.5, void left out, best
    pairs overall) have one colour in both rows; what has no partner is dashed, red for predictions
    and white for missed objects. A row that no picture has anything for is left out. Labels that
    find no free place are left out. Every prediction given is drawn: `threshold` is only named in
    the legend. `height` is that of a picture in pixels.
    """
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    shown = [column(picture, class_names, height) for picture in pictures]
    rows = [name for name in _ROWS if any(name in drawn for drawn in shown)]
    bands = [
        _band(shown[i : i + columns], pictures[i : i + columns], rows)
        for i in range(0, len(shown), columns)
    ]
    legend = _grid_legend(pictures, threshold)
    return _sheet(bands, legend, title)


def overlay(
    image: Image.Image | np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None,
    masks: Masks,
    class_names: Sequence[str],
) -> Image.Image:
    """The predictions over their picture, at its size, each in a colour of its own."""
    image = _image(image)
    shapes = _shapes(Objects(labels, masks, scores), class_names, palette)
    scale = min(max(min(image.size) / 480, 1.0), 4.0)
    return _paint(image, image.size, shapes, scale=scale)


def training_batch(
    images: torch.Tensor, targets: Sequence[dict], class_names: Sequence[str], *, width: int = 320
) -> Image.Image:
    """A batch as the model sees it: targets, ignored regions hatched, padding shaded.

    images float [B,3,H,W] in 0..1 with its targets (see data/batch.py); `width` is that of one
    picture on the sheet, in pixels.
    """
    canvas = images.shape[-2:]
    size = (width, max(round(width * canvas[0] / canvas[1]), 1))
    cells = [
        _training_cell(image, target, class_names, size)
        for image, target in zip(images, targets, strict=True)
    ]
    columns = min(4, int(np.ceil(len(cells) ** 0.5)))
    bands = [_row(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    legend = [
        (_swatch([palette(0), palette(1), palette(2)]), "targets, a colour each"),
        (_hatched_swatch(VOID), "ignored (void or crowd)"),
        (_hatched_swatch(PADDING), "padding"),
    ]
    return _sheet(bands, legend, f"{len(cells)} pictures of {canvas[1]} x {canvas[0]}")


def match(truth: Objects, predictions: Objects, void: dict | None = None) -> dict[int, int]:
    """Prediction index -> ground truth index: the pairs of one class with the largest sum of IoU.

    Only pairs of IoU >= 0.5 count. Predicted pixels inside `void` (RLE) are left out before.
    """
    found = _rles(predictions.masks)
    if void is not None:
        found = rle.subtract(found, void)
    iou = rle.iou(found, _rles(truth.masks))  # [P,N]
    same = np.equal.outer(_numbers(predictions.labels), _numbers(truth.labels))
    iou = np.where(same & (iou >= MATCH_IOU), iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return {int(p): int(t) for p, t in zip(rows, columns, strict=True) if iou[p, t] > 0}


def _numbers(values: Sequence) -> np.ndarray:
    """A list, array or tensor of numbers as an array [N]."""
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values).reshape(-1)


def _rles(masks: Masks) -> list[dict]:
    if isinstance(masks, (np.ndarray, torch.Tensor)):
        return rle.encode(masks) if len(masks) else []
    if len(masks) and not isinstance(masks[0], dict):
        return rle.encode(np.stack([np.asarray(mask) for mask in masks]))
    return list(masks)


def _dense(masks: Masks) -> list[np.ndarray]:
    """One bool array [H,W] per mask, from RLEs, arrays or tensors."""
    return [
        rle.decode([mask], mask["size"])[0] if isinstance(mask, dict) else np.asarray(mask, bool)
        for mask in masks
    ]


def _image(image: Image.Image | np.ndarray) -> Image.Image:
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _shapes(
    objects: Objects,
    class_names: Sequence[str],
    colour: Callable[[int], Colour],
    dashed: Callable[[int], bool] = lambda index: False,
) -> list[_Shape]:
    """The objects as shapes; colour and dashes follow from the index of the object."""
    scores = [None] * len(objects.labels) if objects.scores is None else _numbers(objects.scores)
    return [
        _Shape(
            mask,
            class_names[int(label)] + ("" if score is None else f" {score:.2f}"),
            colour(index),
            dashed(index),
        )
        for index, (label, mask, score) in enumerate(
            zip(_numbers(objects.labels), _dense(objects.masks), scores, strict=True)
        )
    ]


def _paint(
    image: Image.Image,
    size: tuple[int, int],
    shapes: Sequence[_Shape],
    *,
    void: np.ndarray | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Shapes, and what is not scored, over an image."""
    painting = Painting(image, size, scale)
    if void is not None:
        painting.hatch(void)
    _add(painting, shapes)
    return painting.finish()


def _add(painting: Painting, shapes: Sequence[_Shape]) -> None:
    """Each pixel has the fill of the smallest shape there; every outline is drawn, small ones last.

    So an object and what lies inside it are both seen, each in its own colour, in whatever order
    they come.
    """
    shapes = sorted(shapes, key=lambda shape: -int(shape.mask.sum()))
    filled = np.zeros((), bool)
    for shape in reversed(shapes):
        painting.fill(shape.mask & ~filled, shape.colour, 0.18 if shape.dashed else 0.42)
        filled = filled | shape.mask
    for shape in shapes:
        painting.outline(shape.mask, shape.colour, dashed=shape.dashed)
        painting.label(shape.mask, shape.text, shape.colour)


def column(picture: Picture, class_names: Sequence[str], height: int) -> dict[str, Image.Image]:
    """The drawn rows of one picture by name: image, and ground truth and prediction if given."""
    image = _image(picture.image)
    ratio = min(height / image.height, 2 * height / image.width)
    size = (max(round(image.width * ratio), 1), max(round(image.height * ratio), 1))
    void = _dense([picture.void])[0] if picture.void is not None else None
    drawn = {"image": Painting(image, size).finish()}
    scale = height / 200
    pairs = {}
    if picture.truth is not None and picture.predictions is not None:
        pairs = match(
            picture.truth, picture.predictions, void if void is None else _rles([void])[0]
        )
    found = set(pairs.values())
    if picture.truth is not None:
        alone = picture.predictions is None
        shapes = _shapes(
            picture.truth,
            class_names,
            lambda index: palette(index) if alone or index in found else MISSED,
            lambda index: not alone and index not in found,
        )
        drawn["ground truth"] = _paint(image, size, shapes, void=void, scale=scale)
    if picture.predictions is not None:
        alone = picture.truth is None
        shapes = _shapes(
            picture.predictions,
            class_names,
            lambda index: (
                palette(pairs.get(index, index)) if alone or index in pairs else UNMATCHED
            ),
            lambda index: not alone and index not in pairs,
        )
        drawn["prediction"] = _paint(image, size, shapes, scale=scale)
    return drawn


def _training_cell(
    image: torch.Tensor, target: dict, class_names: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    height, width = (int(side) for side in target["size"])
    padding = np.ones(pixels.shape[:2], bool)
    padding[:height, :width] = False
    painting = Painting(Image.fromarray(pixels), size)
    painting.hatch(padding, PADDING, opacity=1.0)
    painting.hatch(target["ignore"].cpu().numpy())
    shapes = _shapes(Objects(target["labels"], target["masks"].cpu().numpy()), class_names, palette)
    _add(painting, shapes)
    return painting.finish()


def _row(cells: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side."""
    width = sum(cell.width for cell in cells) + _GAP * (len(cells) - 1)
    row = Image.new("RGB", (width, max(cell.height for cell in cells)), PAPER)
    left = 0
    for cell in cells:
        row.paste(cell, (left, (row.height - cell.height) // 2))
        left += cell.width + _GAP
    return row


def _band(
    columns: Sequence[dict[str, Image.Image]], pictures: Sequence[Picture], rows: Sequence[str]
) -> Image.Image:
    """The rows of some pictures, their names at the left and the captions below."""
    blank = [Image.new("RGB", column["image"].size, (240, 241, 243)) for column in columns]
    drawn = [
        _row([column.get(name, empty) for column, empty in zip(columns, blank, strict=True)])
        for name in rows
    ]
    caption = _caption_row(columns, pictures)
    left = text_size("I", _TEXT)[1] + _GAP
    height = sum(row.height + _GAP for row in drawn) + caption.height
    band = Image.new("RGB", (left + drawn[0].width, height), PAPER)
    top = 0
    for name, row in zip(rows, drawn, strict=True):
        side = _upright(name)
        band.paste(side, (0, top + (row.height - side.height) // 2))
        band.paste(row, (left, top))
        top += row.height + _GAP
    band.paste(caption, (left, top))
    return band


def _caption_row(
    columns: Sequence[dict[str, Image.Image]], pictures: Sequence[Picture]
) -> Image.Image:
    size = _TEXT - 2
    height = text_size("I", size)[1] if any(picture.caption for picture in pictures) else 0
    cells = []
    for column, picture in zip(columns, pictures, strict=True):
        cell = Image.new("RGB", (column["image"].width, max(height, 1)), PAPER)
        text = shorten(picture.caption, size, cell.width)
        write(cell, ((cell.width - text_size(text, size)[0]) // 2, 0), text, size, FAINT)
        cells.append(cell)
    return _row(cells)


def _upright(text: str) -> Image.Image:
    """Text that reads from the bottom up."""
    strip = Image.new("RGB", text_size(text, _TEXT), PAPER)
    write(strip, (0, 0), text, _TEXT, INK)
    return strip.transpose(Image.Transpose.ROTATE_90)


def _swatch(colours: Sequence[Colour], *, dashed: bool = False) -> Image.Image:
    """Little rectangles painted like objects."""
    width, height = _SWATCH
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


def _hatched_swatch(colour: Colour) -> Image.Image:
    painting = Painting(Image.new("RGB", _SWATCH, (90, 96, 104)), _SWATCH)
    painting.hatch(np.ones(_SWATCH[::-1], bool), colour)
    return painting.finish()


def _grid_legend(
    pictures: Sequence[Picture], threshold: float | None
) -> list[tuple[Image.Image | None, str]]:
    """Swatches and what they mean; only what the pictures can show."""
    several = [palette(0), palette(1), palette(2)]
    legend: list[tuple[Image.Image | None, str]] = []
    if any(picture.truth is not None and picture.predictions is not None for picture in pictures):
        legend += [
            (_swatch(several), "found: one colour in both rows (same class, mask IoU >= 0.5)"),
            (_swatch([MISSED], dashed=True), "missed object"),
            (_swatch([UNMATCHED], dashed=True), "prediction without object"),
        ]
    else:
        legend.append((_swatch(several), "objects, a colour each"))
    if any(picture.void is not None for picture in pictures):
        legend.append((_hatched_swatch(VOID), "void or crowd: not scored"))
    if any(picture.predictions is not None for picture in pictures):
        shown = "" if threshold is None else f", shown from {threshold:.2f}"
        legend.append((None, f"number: score{shown}"))
    return legend


def _legend_strip(legend: Sequence[tuple[Image.Image | None, str]], width: int) -> Image.Image:
    """The legend, wrapped to a width."""
    size = _TEXT - 1
    line_height = max(_SWATCH[1], text_size("I", size)[1]) + 6
    places, left, top = [], 0, 0
    for swatch, text in legend:
        sign = 0 if swatch is None else swatch.width + 6
        needed = sign + text_size(text, size)[0]
        if left and left + needed > width:
            left, top = 0, top + line_height
        places.append((left, top, sign))
        left += needed + 22
    strip = Image.new("RGB", (width, top + line_height), PAPER)
    for (swatch, text), (left, top, sign) in zip(legend, places, strict=True):
        if swatch is not None:
            strip.paste(swatch, (left, top + (line_height - swatch.height) // 2))
        text = shorten(text, size, width - left - sign)
        write(
            strip,
            (left + sign, top + (line_height - text_size(text, size)[1]) // 2),
            text,
            size,
            INK,
        )
    return strip


def _sheet(
    bands: Sequence[Image.Image],
    legend: Sequence[tuple[Image.Image | None, str]],
    title: str | None,
) -> Image.Image:
    """Title, bands one below the other, legend."""
    inner = max(max(band.width for band in bands), 300)
    parts = list(bands)
    if title:
        head = Image.new("RGB", (inner, text_size("I", _TEXT + 3)[1] + 4), PAPER)
        write(head, (0, 0), shorten(title, _TEXT + 3, inner), _TEXT + 3, INK)
        parts.insert(0, head)
    parts.append(_legend_strip(legend, inner))
    height = sum(part.height for part in parts) + 2 * _GAP * (len(parts) - 1)
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, height + 2 * _MARGIN), PAPER)
    top = _MARGIN
    for part in parts:
        sheet.paste(part, (_MARGIN, top))
        top += part.height + 2 * _GAP
    return sheet
