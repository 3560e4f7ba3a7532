"""Opening images: any common file type becomes 8-bit RGB, turned as its EXIF demands, once.

Only the types below are opened, whatever the suffix: Pillow would run PostScript, for example.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.errors import FileError, InputError

Image.init()  # fills Pillow's tables
# The one list of the library. MPO, the JPEG of some phones, is opened as JPEG.
KINDS = {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
TYPES = sorted(KINDS & Image.OPEN.keys())
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.EXTENSION.items() if kind in KINDS))
MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # Pillow's bound, above which a small file may fill the memory

GREY_ALPHA = "LA;16B"
BITS = ExifTags.Base.BitsPerSample
SIDES = ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength
# Pillow keeps the high bytes of 16-bit colours; read in the other byte order, the low ones.
OTHER_ORDER = {"B": "L", "L": "B", "N": "L" if sys.byteorder == "big" else "B"}


def read_rgb(path: Path) -> Image.Image:
    """The image as RGB: grey, palette, RGBA (alpha dropped), CMYK and 16-bit files are accepted.

    Of a file with several pages or frames it is the first one.

    Raises:
        InputError: if the file is missing, truncated, no image, or larger than MOST_PIXELS.
    """
    with opened(path) as file:
        return as_rgb(file)


def read_pages(path: Path, chosen: Iterable[int] | None = None) -> Iterator[Image.Image]:
    """The pages or frames of a file, all or those chosen, from 0; raises as `read_rgb`."""
    with opened(path) as file:
        for page in range(pages_of(file)) if chosen is None else chosen:
            file.seek(page)
            yield as_rgb(file)


def num_pages(path: Path) -> int:
    """The number of pages or frames of a file; raises as `read_rgb`."""
    with opened(path) as file:
        return pages_of(file)


def pages_of(file: Image.Image) -> int:
    # The second image of an MPO is another view of the first, or a preview.
    return 1 if file.format == "MPO" else getattr(file, "n_frames", 1)


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) as displayed, from the file's header alone; raises as `read_rgb`."""
    with opened(path) as file:
        width, height = file.size
        if file.format == "TIFF":  # whose size is turned already, but not before Pillow 11
            width, height = (file.tag_v2[side] for side in SIDES)
        turned = file.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
    return (width, height) if turned else (height, width)


@contextmanager
def opened(path: Path, fix: str = "replace the file or leave it out") -> Iterator[Image.Image]:
    """An open image file; what goes wrong while it is used becomes an InputError with `fix`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of wrong EXIF and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # over MOST_PIXELS
            with Image.open(path, formats=TYPES) as file:
                yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise FileError(f"{path} is missing: add the file or leave it out") from None
    except Exception as reason:  # on bytes that are no image, its readers raise nearly everything
        raise FileError(f"{path} cannot be read as an image ({reason}): {fix}") from None


def as_rgb(file: Image.Image) -> Image.Image:
    """The open page of a file as 8-bit RGB, upright.

    Values of 16 bits and more are stretched from their minimum and maximum to 0..255. Our choice,
    as cameras use 10, 12 or 16 bits; Pillow clips grey at 255 and keeps the high byte of colours.
    """
    # An image that was made, or is loaded, has no tiles.
    values = read_16bit(file) if getattr(file, "tile", None) else None
    file.load()
    image = ImageOps.exif_transpose(file)
    if values is None and (image.mode in ("F", "I") or image.mode.startswith("I;16")):
        values = np.asarray(image)
    if values is not None:
        image = Image.fromarray(rescale_to_uint8(values))
    return image.convert("RGB")


def rescale_to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers -> uint8, the lowest as 0, the highest as 255."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ValueError("it holds values that are no numbers")
    result = np.empty(values.shape, np.uint8)
    for row, line in zip(result, values):  # by rows: float64 of the whole takes eight times more
        row[:] = ((line.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).round()
    return result


def read_16bit(file: Image.Image) -> np.ndarray | None:
    """Upright 16-bit colours of the open page: uint16 [H,W,3], or [H,W] of grey with alpha."""
    if file.mode.startswith("RGB") and file.tile[0][0] == "libtiff":
        tags = file.tag_v2
        if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and 16 in tags[BITS]:
            return None  # compressed planes, of which Pillow decodes the high bytes only
    tiles = [split_16bit_tile(file, tile) for tile in file.tile]
    if None in tiles:
        return None
    halves = []
    for chosen in zip(*tiles):
        with Image.open(file.filename, formats=TYPES) as again:
            again.seek(file.tell())
            again.tile = list(chosen)
            again.load()
            halves.append(np.asarray(ImageOps.exif_transpose(again), np.uint16))
    values = 256 * halves[0] + halves[1]
    return values[..., 0] if tiles[0][0][3] == GREY_ALPHA else values[..., :3]


def split_16bit_tile(file: Image.Image, tile: tuple) -> tuple[tuple, tuple] | None:
    """Tiles that decode to the high and to the low bytes of 16-bit colours, None for others."""
    codec, extents, offset, args = tile
    rawmode, *rest = [args] if isinstance(args, str) else args
    if codec == "ppm" and rawmode == "RGB" and rest[0] > 255:
        codec, rawmode, rest = "raw", "RGB;16B", [0, 1]
    elif file.format == "TIFF" and rawmode in tuple("RGBA") and 16 in file.tag_v2[BITS]:
        rawmode += ";16B" if file.tag_v2.prefix == b"MM" else ";16L"  # a plane for each colour
    elif not isinstance(rawmode, str):
        return None
    if rawmode == GREY_ALPHA:
        low = "ARGB"  # its R is the second byte
    elif re.fullmatch("(RGB[AXa]?|[RGBA]);16[BLN]", rawmode):
        rawmode = rawmode.replace("a", "A")  # alpha is dropped, not divided by
        low = rawmode[:-1] + OTHER_ORDER[rawmode[-1]]
    else:
        return None
    make = getattr(tile, "_make", tuple)  # before Pillow 11, tiles have no type of their own
    return tuple(
        make((codec, extents, offset, (each, *rest) if rest else each)) for each in (rawmode, low)
    )
