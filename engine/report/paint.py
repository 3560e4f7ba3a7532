"""Painting masks over images: colours, fills, outlines, hatches and labels, with PIL alone."""

import colorsys
import math
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from data import rle

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom

UNMATCHED: Colour = (255, 45, 45)  # red; `palette` keeps away from it
MISSED: Colour = (255, 255, 255)
VOID: Colour = (222, 222, 222)
INK: Colour = (32, 36, 42)
PLATE = (18, 20, 24, 205)

MANY = 15  # labels on one image, from which those larger than their object are left out
HIDDEN = 0.25  # a label covers at most this share of the box of another object
THICK = 2.0  # area of a mask over that of its outline, from which this may be dashed
LARGEST = 1 / 25  # of an image that one label may cover, and the next one of all labels together
LARGEST_SUM = 1 / 6
GOLDEN = 0.6180339887498949
# Where systems keep fonts; those below the home folder first.
FONT_FOLDERS = (
    *("~/.fonts", "~/.local/share/fonts", "~/Library/Fonts", "/usr/share/fonts"),
    *("/usr/local/share/fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
UNLIKE = re.compile(
    "bold|italic|oblique|mono|serif|condensed|light|thin|black|medium|hairline", re.I
)
NO_LETTER = "\U0010fffd"  # no font has it


def palette(index: int) -> Colour:
    """The colour of object `index`: never two alike, neighbours far apart, none red or grey.

    Our choice: hues a golden ratio apart, so that any first n of them are spread evenly, and three
    levels of lightness, so that neighbours differ for the colour-blind as well.
    """
    hue = 0.08 + 0.84 * ((0.47 + index * GOLDEN) % 1)  # 0.92..1.08 is left to UNMATCHED
    lightness = (0.58, 0.44, 0.72)[index % 3] + (0.14 if 0.6 < hue < 0.8 else 0)  # blue looks dark
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=1)
def font_files() -> list[str]:
    """The fonts of the system, upright ones without serifs first; "" is PIL's own, before all."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    files = [path for folder in folders for path in folder.rglob("*.[tTo][tT][fFcC]")]
    # A last resort font draws a box for every letter.
    files = [path for path in files if "lastresort" not in path.name.lower()]
    files.sort(key=lambda path: (len(UNLIKE.findall(path.stem)), "sans" not in path.stem.lower()))
    return ["", *map(str, files)]


@lru_cache(maxsize=64)
def font(file: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@lru_cache(maxsize=100_000)
def has_letter(file: str, letter: str) -> bool:
    """Whether a font has a letter: others are drawn as the one that no font has."""
    if unicodedata.category(letter)[0] in "CZ":  # of no shape
        return True
    try:
        masks = [font(file, 24).getmask(each) for each in (letter, NO_LETTER)]
    except (OSError, ValueError):  # bitmap fonts of other sizes, damaged files
        return False
    return masks[0].size != masks[1].size or bytes(masks[0]) != bytes(masks[1])


@lru_cache(maxsize=4096)
def font_file(text: str) -> str | None:
    """The first font that has all letters of a text, None if there is none."""
    fits = (file for file in font_files() if all(has_letter(file, letter) for letter in text))
    return next(fits, None)


def fitted(text: str, size: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    """The text, with ? for what no font has, and a font for it."""
    file = font_file(text)
    if file is None:
        text = "".join(letter if has_letter("", letter) else "?" for letter in text)
    return text, font(file or "", size)


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width of this text and height of any text, in pixels."""
    text, chosen = fitted(text, size)
    left, _, right, _ = chosen.getbbox(text)
    return int(np.ceil(right - left)), round(1.25 * size)


def write(image: Image.Image, at: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    """Text whose line of height `text_size` begins at this left top corner."""
    middle = (at[0], at[1] + text_size(text, size)[1] / 2)
    text, chosen = fitted(text, size)
    ImageDraw.Draw(image).text(middle, text, fill=colour, font=chosen, anchor="lm")


def shorten(text: str, size: int, width: int) -> str:
    """The text, without its middle if it is wider than `width` pixels."""
    if text_size(text, size)[0] <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: (kept + 1) // 2] + "..." + text[len(text) - kept // 2 :]
        if text_size(short, size)[0] <= width:
            return short
    return ""


class Patch(NamedTuple):
    """The part of a mask inside its box.

    inside: bool [h,w]. corner: left top (x, y) in the mask. size: (height, width) of the mask.
    """

    inside: np.ndarray
    corner: tuple[int, int]
    size: tuple[int, int]

    @property
    def box(self) -> Box:
        (left, top), (height, width) = self.corner, self.inside.shape
        return left, top, left + width, top + height

    @property
    def slices(self) -> tuple[slice, slice]:
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)


def patch_of(mask: np.ndarray | dict) -> Patch:
    """The patch of a bool mask [H,W] or an RLE."""
    if not isinstance(mask, dict):
        [mask] = rle.encode(mask[None])
    return Patch(*rle.decode_inside(mask), tuple(mask["size"]))


class Painting:
    """An image of `size` (width, height) to paint masks of any resolution over.

    Masks are patches of masks that cover the whole image. Shapes are painted in the order of the
    calls; labels wait for `finish`, so that nothing covers them. `scale` multiplies the width of
    lines and the height of letters.
    """

    def __init__(self, image: Image.Image, size: tuple[int, int], scale: float = 1.0) -> None:
        self.size, self.scale = size, scale
        # Shapes are painted twice as large and reduced, for smooth edges. Large images need none.
        self.fine = 2 if max(size) <= 1600 else 1
        self.fine_size = (size[0] * self.fine, size[1] * self.fine)
        self.image = image.convert("RGB").resize(self.fine_size, Image.Resampling.BICUBIC)
        self.labels: list[tuple[str, Colour, Box]] = []

    def _scaled(self, mask: Patch) -> tuple[np.ndarray, tuple[int, int]]:
        """The used part of a mask on the fine grid, and its left top corner there.

        A mask too thin for the grid keeps every cell that it touches.
        """
        if not mask.inside.any():
            return np.zeros((0, 0), bool), (0, 0)
        x, y = self.fine_size[0] / mask.size[1], self.fine_size[1] / mask.size[0]
        # Empty pixels around the box, for the filter and the outline.
        around = 4 + int(4 * self.scale / min(x, y))
        pixels = Image.fromarray(np.pad(mask.inside.astype(np.uint8) * 255, around))
        start = mask.corner[0] - around, mask.corner[1] - around
        left, top = (max(math.ceil(s * f), 0) for s, f in zip(start, (x, y)))
        right = min(math.floor((start[0] + pixels.width) * x), self.fine_size[0])
        bottom = min(math.floor((start[1] + pixels.height) * y), self.fine_size[1])
        edges = np.array([left / x, top / y, right / x, bottom / y]) - (*start, *start)
        # Rounding may have put one beside the pixels.
        box = edges.clip(0, (*pixels.size, *pixels.size))
        size = right - left, bottom - top
        covered = np.asarray(pixels.resize(size, Image.Resampling.BILINEAR, box=tuple(box)))
        inside = covered >= 128
        return (inside if inside.any() else covered > 0), (left, top)

    def fill(self, mask: Patch, colour: Colour, opacity: float) -> None:
        inside, corner = self._scaled(mask)
        self._paste(inside * np.float32(opacity), corner, colour)

    def hatch(self, mask: Patch, colour: Colour = VOID, opacity: float = 0.8) -> None:
        """Fills a mask with slanted stripes, for pixels that are neither object nor background."""
        inside, corner = self._scaled(mask)
        # Fainter colour between the stripes: a thin void border is no dashed line.
        stripes = np.where(self._stripes(inside.shape, 5), opacity, 0.5 * opacity)
        self._paste(inside * stripes, corner, colour)

    def _stripes(self, shape: tuple[int, int], width: float) -> np.ndarray:
        """Slanted stripes on the fine grid: bool [h,w]."""
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        return (2 * rows + columns) // max(round(width * self.fine * self.scale), 1) % 2 == 1

    def _paste(self, opacity: np.ndarray, corner: tuple[int, int], colour: Colour) -> None:
        if opacity.size:
            sheet = Image.fromarray((255 * opacity).astype(np.uint8))
            box = (*corner, corner[0] + sheet.width, corner[1] + sheet.height)
            self.image.paste(colour, box, sheet)

    def outline(self, mask: Patch, colour: Colour, *, dashed: bool = False) -> None:
        """Draws the border of a mask in colour, on a thin dark line; that of a thin mask stays
        whole, where the dashes of its two sides would run together.
        """
        inside, corner = self._scaled(mask)
        for width, shade in ((2.7, INK), (1.5, colour)):
            size = max(round(self.fine * self.scale * width), 1) + 1
            outer = ndimage.maximum_filter(inside, size)
            line = outer & ~ndimage.minimum_filter(inside, size, mode="constant")
            if dashed and shade == colour and inside.sum() > THICK * line.sum():
                line &= self._stripes(line.shape, 8)
            self._paste(line, corner, shade)

    def label(self, mask: Patch, text: str, colour: Colour) -> None:
        """Adds a label for this mask; the first labels get their places first."""
        if mask.inside.any() and text:
            x, y = self.size[0] / mask.size[1], self.size[1] / mask.size[0]
            scaled = tuple(round(edge * side) for edge, side in zip(mask.box, (x, y, x, y)))
            self.labels.append((text, colour, scaled))

    def finish(self) -> Image.Image:
        """The image with its labels, none of which hides another object.

        A label without a place on or beside its object gets one farther away, with a line to it, or
        is left out, as those that would cover a small image, or among many their own object.
        """
        image = self.image.resize(self.size, Image.Resampling.BOX)
        plates = Image.new("RGBA", self.size)
        text_height = round(11 * self.scale)
        placed: list[tuple[Box, str, Colour]] = []
        whole, covered = self.size[0] * self.size[1], 0  # pixels
        for text, colour, box in self.labels:
            others = [other for _, _, other in self.labels if other is not box]
            text = shorten(text, text_height, self.size[0] - text_height - 4)
            width, height = text_size(text, text_height)
            plate = (width + text_height, height + 2)
            area = plate[0] * plate[1]
            limit = shared_area(box, box) if len(self.labels) > MANY else whole
            if area > min(limit, LARGEST * whole, LARGEST_SUM * whole - covered):
                continue
            place = free_place(box, plate, self.size, [other for other, *_ in placed], others)
            if text and place is not None:
                placed.append((place, text, colour))
                covered += area
                draw_line(plates, box, place, colour, max(round(self.scale), 1))
        for place, text, colour in placed:
            draw_plate(plates, place, text, text_height, colour)
        image.paste(plates, mask=plates.getchannel("A"))
        return image


def draw_plate(image: Image.Image, place: Box, text: str, text_height: int, colour: Colour) -> None:
    """Draws a dark plate with a bar in the object's colour, and its text."""
    left, top, right, bottom = place
    unit = text_height / 11
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((left, top, right - 1, bottom - 1), 3 * unit, PLATE)
    bar = (left + 3 * unit, top + 3 * unit, left + 5 * unit, bottom - 1 - 3 * unit)
    pen.rectangle(bar, colour)
    write(image, (round(left + 8 * unit), top + 1), text, text_height, (255, 255, 255))


def draw_line(image: Image.Image, box: Box, place: Box, colour: Colour, width: int) -> None:
    """Draws a line from the middle of an object to its plate, unless they touch."""
    left, top, right, bottom = place
    if shared_area((left - 2, top - 2, right + 2, bottom + 2), box):
        return
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    line = (x, y, min(max(x, left), right - 1), min(max(y, top), bottom - 1))
    pen = ImageDraw.Draw(image)
    pen.line(line, INK, 3 * width)
    pen.line(line, colour, width)


def free_place(
    box: Box, plate: tuple[int, int], size: tuple[int, int], taken: list[Box], others: list[Box]
) -> Box | None:
    """A place inside the image for a plate (width, height) of an object with this box.

    It overlaps no plate in `taken` and hides little of any object in `others`.
    """
    width, height = plate
    if width > size[0] or height > size[1]:
        return None
    for x, y in places_for(box, plate):
        left, top = min(max(round(x), 1), size[0] - width), min(max(round(y), 1), size[1] - height)
        if abs(left - x) > width / 2 or abs(top - y) > height / 2:  # it would lie on its own object
            continue
        place = (left, top, left + width, top + height)
        hidden = (
            shared_area(place, other) > HIDDEN * shared_area(other, other) for other in others
        )
        if not any(hidden) and not any(shared_area(place, other) for other in taken):
            return place
    return None


def places_for(box: Box, plate: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Left top corners for a plate: above the object, on it if it is large, then around it."""
    (left, top, right, bottom), (width, height) = box, plate
    x, y = (left + right - width) / 2, (top + bottom - height) / 2
    yield x, top - height - 1
    if bottom - top >= 2.5 * height and right - left >= width / 2:
        yield from ((x, top + 2), (x, y), (x, bottom - height - 2))
    for reach in (0.1, 1, 2.5, 4):  # heights of the plate
        for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
            across, down = right - left + width, bottom - top + height
            yield (
                x + np.cos(angle) * (across / 2 + reach * height),
                y + np.sin(angle) * (down / 2 + reach * height),
            )


def shared_area(a: Box, b: Box) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
