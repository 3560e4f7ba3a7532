"""Images that are nearly the same: encoded again, resized, or mirrored copies under other names.

Two images are compared as grey images of 64 x 64 pixels. Our choice: copies that were resized or
encoded again differ by a few levels there, different photos of one scene by more, wherever an
object moved. Images without contrast are like many others and are never called copies.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import InputError
from data.images import as_rgb, opened

SIDE, COARSE = 64, 16  # of the grey images, and of those that candidates are found with
LEAST_CONTRAST = 4.0  # standard deviation, in levels of 256
LEAST_CORRELATION = 0.98  # of the coarse images
MOST_MEAN, MOST_ANYWHERE = 2.5, 20.0  # difference of copies, in levels: on average, of any pixel
CANDIDATES = 3  # the most similar ones of each image that are looked at closely
CHUNK = 512


def grey_images(paths: Sequence[Path]) -> np.ndarray:
    """Images as grey, uint8 [N,64,64], without contrast where a file cannot be read."""
    found = np.zeros((len(paths), SIDE, SIDE), np.uint8)
    for row, path in zip(found, paths):
        with contextlib.suppress(InputError, OSError), opened(path) as file:
            if file.format == "JPEG":  # decodes at an eighth of the size, where that is enough
                file.draft("L", (3 * SIDE, 3 * SIDE))
            image = as_rgb(file).convert("L")
            row[:] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return found


def near_duplicates(images: np.ndarray, others: np.ndarray) -> dict[int, int]:
    """Place of an image -> that of its nearest copy among `others`; both as `grey_images`."""
    found: dict[int, tuple[float, int]] = {}
    theirs = normalised(others)
    for flipped in (False, True):
        views = images[:, :, ::-1] if flipped else images
        ours = normalised(views)
        for start in range(0, len(ours), CHUNK):
            alike = ours[start : start + CHUNK] @ theirs.T  # [n,M]
            rows = np.flatnonzero(alike.max(1, initial=0) >= LEAST_CORRELATION)
            for row in rows.tolist():
                for other in np.argsort(-alike[row])[:CANDIDATES].tolist():
                    if alike[row, other] < LEAST_CORRELATION:
                        break
                    gap = np.abs(views[start + row].astype(np.int16) - others[other])
                    if gap.max() <= MOST_ANYWHERE and gap.mean() <= MOST_MEAN:
                        pair = float(gap.mean()), other
                        found[start + row] = min(found.get(start + row, pair), pair)
    return {place: found[place][1] for place in sorted(found)}


def normalised(images: np.ndarray) -> np.ndarray:
    """Coarse images of mean 0 and length 1, or 0 without contrast: [N,64,64] -> float32 [N,256]."""
    block = SIDE // COARSE
    coarse = images.reshape(len(images), COARSE, block, COARSE, block).mean((2, 4), np.float32)
    coarse = coarse.reshape(len(images), COARSE * COARSE)
    coarse -= coarse.mean(1, keepdims=True)
    deviation = coarse.std(1, keepdims=True)
    return np.where(deviation < LEAST_CONTRAST, 0, coarse / (COARSE * np.maximum(deviation, 1e-6)))
