"""Geometry and colour transforms as functions; presets draw the random numbers.

Image and masks are cropped and resized through one `View`, so they stay aligned. Pillow does it, as
its results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from data import rle
from data.batch import Annotation, Sample

# Our choices. Objects left with fewer pixels by crop and scale are dropped: at stride 8 such a mask
# has no cell of its own. Where pasted objects leave less than this part of an object visible, the
# sliver hardly shows its class and becomes `ignore`.
SMALLEST_OBJECT = 4
LEAST_VISIBLE = 0.1

# RGB -> luma and two chroma axes (NTSC), the space in which hue is an angle.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
LUMA = YIQ[0]

# How an image shrinks: with a triangle filter as wide as the step between pixels; from the four
# nearest pixels, as phones and browsers do; by the mean of an area. Enlarged it is always bilinear.
RESIZES = ("antialiased", "plain", "area")


@dataclass(frozen=True)
class View:
    """A window on an image, in whole source pixels."""

    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]  # (h, w) of the result
    flip: bool = False  # left to right
    resize: str = "antialiased"  # one of RESIZES, of the image; masks are always antialiased


@dataclass(frozen=True)
class Colour:
    """Factors around 1 for brightness, contrast, saturation; hue as a part of the circle."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False


def apply(
    image: Image.Image,
    annotation: Annotation,
    view: View,
    canvas: tuple[int, int],
    colour: Colour | None = None,
) -> Sample:
    """Image and annotation through the view -> a sample to be padded to `canvas`."""
    image = view_image(image, view)
    image = adjust_colour(image, colour) if colour else image
    masks = view_masks(annotation.rles, annotation.orig_size, view)  # [N,h,w]
    ignored = [] if annotation.ignore is None else [annotation.ignore]
    ignore = view_masks(ignored, annotation.orig_size, view).any(0)  # [h,w]
    # Pixels inside `ignore` have no mask loss.
    kept = np.count_nonzero(masks & ~ignore, axis=(1, 2)) >= SMALLEST_OBJECT
    return Sample(
        image=functional.pil_to_tensor(image),
        masks=masks[kept],
        ignore=ignore,
        labels=annotation.labels[kept],
        image_id=annotation.image_id,
        orig_size=annotation.orig_size,
        canvas=canvas,
    )


def view_image(image: Image.Image, view: View) -> Image.Image:
    """The window on the image, resized; pixels have their centres at halves in every filter."""
    box, size = (view.left, view.top, view.right, view.bottom), view.size[::-1]
    shrinks = size[0] < view.right - view.left and size[1] < view.bottom - view.top
    if view.resize == "plain":
        seen = image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    elif view.resize == "area" and shrinks:
        seen = image.resize(size, Image.Resampling.BOX, box)
    else:
        seen = image.resize(size, Image.Resampling.BILINEAR, box)
    return functional.horizontal_flip(seen) if view.flip else seen


def view_masks(rles: Sequence[rle.Rle], size: tuple[int, int], view: View) -> np.ndarray:
    """Masks of source size (h, w) through the window, by majority of the filter -> bool [N,h,w]."""
    seen = np.zeros((len(rles), *view.size), dtype=bool)
    for one, box, result in zip(rles, rle.boxes(rles), seen, strict=True):
        rows = reachable_slice(box[1], box[3], view.top, view.bottom, view.size[0])
        columns = reachable_slice(box[0], box[2], view.left, view.right, view.size[1])
        if rows.start < rows.stop and columns.start < columns.stop:
            mask = rle.decode([one], size)[0]  # [H,W], one at a time to save memory
            result[rows, columns] = resize_patch(mask, rows, columns, view)
    return seen[:, :, ::-1] if view.flip else seen


def paste(target: Sample, source: Sample, chosen: np.ndarray, offset: tuple[int, int]) -> Sample:
    """Objects of one image in front of another (Ghiasi et al. 2021, "Simple Copy-Paste").

    chosen: bool [N], which objects of `source`; offset: (down, right) in pixels of its upper left
    corner in `target`. What lands outside is cut off. Edges are not blended, as in the paper.

    Void and crowds of `source` stay behind. Covered pixels are removed from the objects and
    `ignore` of `target`; of objects that end up (nearly) hidden, what is left becomes `ignore`.
    """
    pieces = source.masks[chosen] & ~source.ignore  # [M,h,w] of source
    pieces = translate(pieces, offset, target.size)  # [M,h,w] of target from here on
    landed = np.count_nonzero(pieces, axis=(1, 2)) >= SMALLEST_OBJECT
    pieces = pieces[landed]
    covered = pieces.any(0)  # [h,w]
    masks = target.masks & ~covered  # [N,h,w]
    before = np.count_nonzero(target.masks & ~target.ignore, axis=(1, 2))
    left = np.count_nonzero(masks & ~target.ignore, axis=(1, 2))
    kept = (left >= SMALLEST_OBJECT) & (left >= LEAST_VISIBLE * before)
    hidden = masks[~kept].any(0) & ~masks[kept].any(0)
    moved = torch.from_numpy(translate(source.image.numpy(), offset, target.size))  # [3,h,w]
    return replace(
        target,
        image=torch.where(torch.from_numpy(covered), moved, target.image),
        masks=np.concatenate([masks[kept], pieces]),
        ignore=(target.ignore & ~covered) | hidden,
        labels=np.concatenate([target.labels[kept], source.labels[chosen][landed]]),
    )


def adjust_colour(image: Image.Image, colour: Colour) -> Image.Image:
    """Hue, saturation, brightness, contrast as one linear map of the colours.

    Our choice: a fifth of the time of four passes, without clipping between them. Hue rotates
    around the grey axis and keeps the luma.
    """
    saturation = 0.0 if colour.grey else colour.saturation
    mixed = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    cos, sin = math.cos(2 * math.pi * colour.hue), math.sin(2 * math.pi * colour.hue)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    turn = np.linalg.inv(YIQ) @ turn @ YIQ
    matrix = colour.brightness * colour.contrast * turn @ mixed
    mean = LUMA @ np.array(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    offset = np.full((3, 1), (1 - colour.contrast) * colour.brightness * mean)
    return image.convert("RGB", tuple(np.hstack([matrix, offset]).ravel().tolist()))


def translate(planes: np.ndarray, offset: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """[...,h,w] moved down and right onto planes of `size`; zero where nothing comes to lie."""
    moved = np.zeros((*planes.shape[:-2], *size), dtype=planes.dtype)
    to_rows, rows = overlapping_slices(offset[0], planes.shape[-2], size[0])
    to_columns, columns = overlapping_slices(offset[1], planes.shape[-1], size[1])
    moved[..., to_rows, to_columns] = planes[..., rows, columns]
    return moved


def overlapping_slices(offset: int, source: int, target: int) -> tuple[slice, slice]:
    """One side: the pixels of the target that the moved source covers, and which they are in it."""
    start = max(0, offset)
    stop = max(start, min(target, source + offset))
    return slice(start, stop), slice(start - offset, stop - offset)


def reachable_slice(low: float, high: float, start: int, stop: int, pixels: int) -> slice:
    """One side: the pixels of the result that a mask from `low` to `high` can reach."""
    scale = pixels / (stop - start)
    margin = max(1.0, scale)  # half the width of the filter, in pixels of the result
    first = math.floor((low - start) * scale - margin)
    last = math.ceil((high - start) * scale + margin)
    return slice(max(0, first), min(pixels, last))


def resize_patch(mask: np.ndarray, rows: slice, columns: slice, view: View) -> np.ndarray:
    """One mask [H,W] -> the given rows and columns of its resized view."""
    # Decoded masks lie in memory column by column: turned, Pillow reads them without a copy.
    turned = Image.fromarray(mask.T.view(np.uint8) * np.uint8(255))
    top, bottom = source_range(rows, view.top, view.bottom, view.size[0])
    left, right = source_range(columns, view.left, view.right, view.size[1])
    size = (rows.stop - rows.start, columns.stop - columns.start)
    resized = turned.resize(size, Image.Resampling.BILINEAR, (top, left, bottom, right))
    return np.asarray(resized).T > 127


def source_range(pixels: slice, start: int, stop: int, count: int) -> tuple[float, float]:
    """The stretch of source pixels behind a stretch of result pixels."""
    step = (stop - start) / count
    return start + pixels.start * step, min(start + pixels.stop * step, float(stop))
