"""Opening images: any common file type becomes 8-bit RGB, turned as its EXIF demands, once.

Only types that are decoded in this process are opened, whatever a file calls itself: Pillow hands
PostScript, for one, to a program that runs it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.errors import InputError

# The image files of a folder: the one list of the library.
SUFFIXES = tuple(".jpg .jpeg .png .webp .tif .tiff .bmp .gif .ppm .pgm .jp2".split())
Image.init()  # fills Pillow's tables
TYPES = sorted({Image.EXTENSION.get(suffix) for suffix in SUFFIXES} & Image.OPEN.keys())
MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # Pillow's bound, above which a small file may fill the memory


def read_rgb(path: Path) -> Image.Image:
    """The image as RGB: grey, palette, RGBA (alpha dropped), CMYK and 16-bit files are accepted.

    Raises:
        InputError: if the file is missing, truncated, no image, or larger than MOST_PIXELS.
    """
    with opened(path) as file:
        file.load()
        return to_8_bit(ImageOps.exif_transpose(file)).convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) as displayed, from the file's header alone; raises as `read_rgb`."""
    with opened(path) as file:
        width, height = file.size
        turned = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


@contextmanager
def opened(path: Path, fix: str = "replace the file or leave it out") -> Iterator[Image.Image]:
    """An open image file; what goes wrong while it is used becomes an InputError with `fix`."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be read forever
        raise InputError(f"{path} cannot be read as an image (it is not a file): {fix}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of wrong EXIF and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # over MOST_PIXELS
            with Image.open(path, formats=TYPES) as file:
                yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing: add the file or leave it out") from None
    except Exception as reason:  # on bytes that are no image, its readers raise nearly everything
        raise InputError(f"{path} cannot be read as an image ({reason}): {fix}") from None


def to_8_bit(image: Image.Image) -> Image.Image:
    """Deep grey images are stretched from their own darkest to brightest value.

    Our choice: cameras fill 10, 12 or 16 of the 16 bits; Pillow would cut everything above 255.
    """
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("it holds values that are no numbers")
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))
