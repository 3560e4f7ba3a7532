"""Opening pictures: any common kind of file becomes 8-bit RGB, turned as its EXIF says, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.errors import InputError

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_rgb(path: Path) -> Image.Image:
    """The picture as RGB. Grey, palette, RGBA (alpha dropped), CMYK and 16-bit files are taken.

    Raises InputError when the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as file:
            file.load()
            upright = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: put the picture there or drop its record") from None
    except _UNREADABLE as reason:
        raise InputError(
            f"{path} cannot be read as a picture ({reason}): replace the file or drop its record"
        ) from None
    return _to_8_bit(upright).convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) as displayed, from the file's header alone. Raises InputError."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except FileNotFoundError:
        raise InputError(f"{path} is missing: put the picture there or drop its record") from None
    except _UNREADABLE as reason:
        raise InputError(
            f"{path} cannot be read as a picture ({reason}): replace the file or drop its record"
        ) from None
    return (width, height) if turned else (height, width)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Deep grey pictures are stretched from their own darkest to brightest value.

    Our choice, because cameras fill 10, 12 or 16 of the 16 bits and the file does not say which;
    Pillow's own conversion would cut everything above 255.
    """
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))
