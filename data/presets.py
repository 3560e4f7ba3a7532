"""Augmentation of training images, and preprocessing of images for evaluation.

A preset is called with (image, annotation, canvas, generator) and returns a `Sample`. Sizes follow
from the image record, so that loaders can plan batches without opening a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from data import transforms
from data.batch import Annotation, Sample

Size = tuple[int, int]


@dataclass(frozen=True)
class TrainPreset:
    """Scale jitter, crop, flip, colour, and the filter that resizes the image.

    scale: range of the drawn scale, evenly in the logarithm; at 1 the whole image just fits into
        the canvas, below it is smaller, above a part at a drawn place is seen (large-scale jitter,
        Ghiasi et al. 2021). The default is our choice: evaluation shows an image at about 0.75
        to 1.3 of the fit (data/loaders.py, engine/fit.py), near the middle of the range.
    flip, grey: probability of a mirrored image, of one without colour.
    brightness, contrast, saturation: the factor is drawn from 1 - x .. 1 + x. hue: from -x .. x of
        the colour circle. The strengths are our choice: mild, as classes differ in colour.
    resizes: each is drawn as often. A network learns the filter that it sees, and phones resize
        without antialiasing.
    copy_paste: probability that objects of a second image, seen through a view of its own, are
        pasted onto an image by `paste_objects`. The loader draws it, as it has to read that image.
    """

    scale: tuple[float, float] = (0.7, 2.0)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.02
    grey: float = 0.02
    resizes: tuple[str, ...] = transforms.RESIZES
    copy_paste: float = 0.0

    def __call__(
        self, image: Image.Image, annotation: Annotation, canvas: Size, generator: torch.Generator
    ) -> Sample:
        # All numbers are drawn at once, so that a setting does not change the others.
        draws = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
        (height, width), (low, high) = annotation.orig_size, map(math.log, self.scale)
        fit = min(canvas[0] / height, canvas[1] / width)
        factor = fit * math.exp(low + draws[0] * (high - low))
        top, bottom, h = draw_window(height, canvas[0], factor, draws[1])
        left, right, w = draw_window(width, canvas[1], factor, draws[2])
        resize = self.resizes[int(draws[9] * len(self.resizes))]
        view = transforms.View(left, top, right, bottom, (h, w), draws[3] < self.flip, resize)
        around = [2 * draw - 1 for draw in draws[4:8]]  # -1..1
        colour = transforms.Colour(
            brightness=1 + self.brightness * around[0],
            contrast=1 + self.contrast * around[1],
            saturation=1 + self.saturation * around[2],
            hue=self.hue * around[3],
            grey=draws[8] < self.grey,
        )
        return transforms.apply(image, annotation, view, canvas, colour)


@dataclass(frozen=True, kw_only=True)
class WholeImage:
    """The whole image, resized by `size`, padded to `padded_size` or to the canvas if given.

    tiles: windows along the long side that engine/tiles.py shows to the network as well; 1: none.
    resize: one of `transforms.RESIZES`.
    targets: False leaves out objects, which only losses need.
    """

    tiles: int = 1
    resize: str = "antialiased"
    targets: bool = True

    def __call__(
        self,
        image: Image.Image,
        annotation: Annotation,
        canvas: Size | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        height, width = annotation.orig_size
        if not self.targets:
            annotation = replace(annotation, labels=annotation.labels[:0], rles=[], ignore=None)
        view = transforms.View(0, 0, width, height, self.size(height, width), resize=self.resize)
        return transforms.apply(image, annotation, view, canvas or self.padded_size(height, width))

    def size(self, height: int, width: int) -> Size:
        """(h, w) of an image of this original size after resizing."""
        raise NotImplementedError

    def padded_size(self, height: int, width: int) -> Size:
        """(H, W) after padding."""
        raise NotImplementedError


@dataclass(frozen=True)
class EvalPreset(WholeImage):
    """Short side `image_size`, long side at most `max_ratio` times that.

    Padded to the next `multiple` of each side, or to the canvas if given, as by `--overfit`.
    """

    image_size: int = 320
    max_ratio: float = 1.35
    multiple: int = 64

    def size(self, height: int, width: int) -> Size:
        short, long = min(height, width), max(height, width)
        return scale_size(
            height, width, min(self.image_size / short, self.image_size * self.max_ratio / long)
        )

    def padded_size(self, height: int, width: int) -> Size:
        h, w = self.size(height, width)
        return (-(-h // self.multiple) * self.multiple, -(-w // self.multiple) * self.multiple)


@dataclass(frozen=True)
class CanvasPreset(WholeImage):
    """As large as it fits into the one canvas of an exported model."""

    canvas: Size

    def size(self, height: int, width: int) -> Size:
        return scale_size(height, width, min(self.canvas[0] / height, self.canvas[1] / width))

    def padded_size(self, height: int, width: int) -> Size:
        return self.canvas


def scale_size(height: int, width: int, factor: float) -> Size:
    return max(1, round(height * factor)), max(1, round(width * factor))


def paste_objects(target: Sample, source: Sample, generator: torch.Generator) -> Sample:
    """Pastes each object of `source` with probability one half, but at least one, onto `target`.

    Objects inside another one are pasted with it. All are moved by one drawn offset. A `source`
    without objects leaves `target` unchanged.
    """
    if not len(source.masks):
        return target
    draws = torch.rand(2 + len(source.masks), generator=generator, dtype=torch.float64).numpy()
    votes = draws[2:][outermost(source.masks)]
    chosen = votes <= max(0.5, votes.min())  # [N]
    together = source.masks[chosen].any(0)  # [h,w]
    down = draw_offset(together.any(1), target.size[0], draws[0])
    right = draw_offset(together.any(0), target.size[1], draws[1])
    return transforms.paste(target, source, chosen, (down, right))


def outermost(masks: np.ndarray) -> np.ndarray:
    """The largest object that contains 0.9 of each object (our choice), or itself: -> int64 [N]."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared = flat @ flat.T  # [N,N] pixels
    area = shared.diagonal()
    inside = (shared >= 0.9 * area[:, None]) & (area[:, None] < area[None])
    return np.where(inside, area[None], np.where(np.eye(len(area)), 1, 0)).argmax(1)


def draw_offset(covered: np.ndarray, pixels: int, draw: float) -> int:
    """One side: how far objects that cover these pixels move on a target of so many `pixels`.

    Evenly drawn among the places where they lie wholly inside, or fill the side if they are longer.
    Our choice: what touches the border of its view keeps touching it, since it may be cut there.
    """
    low, high = (int(end) for end in np.flatnonzero(covered)[[0, -1]] + [0, 1])
    first, last = sorted((-low, pixels - high))
    if low == 0:
        return 0
    if high == len(covered):
        return pixels - high
    return first + int(draw * (last - first + 1))


def draw_window(pixels: int, canvas: int, factor: float, draw: float) -> tuple[int, int, int]:
    """One side: where the window starts and ends in the source, and its pixels in the result."""
    whole = max(1, round(pixels * factor))
    if whole <= canvas:
        return 0, pixels, whole
    seen = min(pixels, max(1, round(canvas / factor)))
    start = min(pixels - seen, int(draw * (pixels - seen + 1)))
    return start, start + seen, canvas
