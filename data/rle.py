"""Conversions between polygons, COCO run-length encodings and dense masks.

Masks are passed around as compressed RLE, {"size": [h, w], "counts": bytes or text}. Input from
files is checked here, because the C code of pycocotools trusts it.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor

from data.errors import InputError

Rle = dict[str, Any]

FARTHEST = 10  # the largest coordinate, in multiples of height + width
CONTINUES = 0x20  # this bit of a character of the counts: the number goes on in the next one
NEGATIVE = 0x10  # this bit of the last character of a number: it is below zero
MOST_CHARACTERS = 7  # per number: 35 bits, more than any count of pixels that fits in 32 bits
SEQUENCES = (list, tuple, array, np.ndarray)
NO_RLE = "the counts of its RLE are no compressed COCO RLE"


def encode(masks: Tensor | np.ndarray) -> list[Rle]:
    """Dense boolean masks [N,H,W] -> N RLEs (an empty list for N = 0)."""
    if isinstance(masks, Tensor):
        masks = masks.detach().cpu().numpy()
    if len(masks) == 0:
        return []
    return [encode_inside(mask) for mask in masks]


def encode_inside(mask: np.ndarray) -> Rle:
    """One mask [H,W] -> its RLE, from the rows that it is in."""
    found = np.flatnonzero(mask.any(1))
    top, bottom = (found[0], found[-1] + 1) if len(found) else (0, 0)
    return encode_at(mask[top:bottom], 0, top, *mask.shape)


def encode_at(mask: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """A mask [h,w] at (left, top) of an image, cropped to it -> its RLE."""
    runs = runs_at(mask, left, top, height, width).tolist()
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def runs_at(mask: np.ndarray, left: int, top: int, height: int, width: int) -> np.ndarray:
    """The same -> run lengths along the columns of the image, background first."""
    mask = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    left, top = max(left, 0), max(top, 0)
    rows = np.zeros((len(mask) + 2, mask.shape[1]), bool)
    rows[1:-1] = mask
    ends = np.flatnonzero(rows[1:] != rows[:-1])  # of runs; by rows, much faster than by columns
    y, x = np.divmod(ends, max(1, mask.shape[1]))
    places = np.sort((x + left) * height + y + top)
    if len(mask) == height:  # a run goes on at the top of the next column
        joined = np.flatnonzero(places[1:] == places[:-1])
        places = np.delete(places, np.concatenate([joined, joined + 1]))
    if not len(places) or places[-1] < height * width:
        places = np.append(places, height * width)
    return np.diff(places, prepend=0)


def decode(rles: Sequence[Rle], size: Sequence[int]) -> np.ndarray:
    """N RLEs of one size (h, w) -> boolean array [N,h,w], also for N = 0."""
    require_size(rles, size)
    masks = np.zeros((len(rles), *size), bool)
    for mask, one in zip(masks, rles):
        inside, (left, top) = decode_inside(one)
        mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return masks


def decode_inside(one: Rle) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a mask inside its box, bool [h,w], and left top (x, y) of the box."""
    left, top, right, bottom = boxes([one])[0].astype(int).tolist()
    height, counts = one["size"][0], one["counts"]
    runs = runs_of(counts.encode("ascii") if isinstance(counts, str) else counts)
    ends = (np.cumsum(runs) - left * height).clip(0, (right - left) * height)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=0))
    return inside.reshape(right - left, height).T[top:bottom], (left, top)


def from_annotation(segmentation: Any, height: int, width: int) -> Rle:
    """The `segmentation` of a COCO annotation -> RLE; raises InputError with the reason only."""
    if isinstance(segmentation, dict):
        return from_runs(segmentation, height, width)
    return from_polygons(polygons_of(segmentation, height, width)[0], height, width)


def from_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> Rle:
    """Checked polygons (each x, y, x, y, ... in pixels) -> the RLE of their union."""
    return coco_mask.merge(coco_mask.frPyObjects(list(polygons), height, width))


def polygons_of(segmentation: Any, height: int, width: int) -> tuple[list[np.ndarray], int]:
    """The checked polygons of an annotation, and the number of parts of under three points."""
    if not isinstance(segmentation, (list, tuple)):
        raise InputError(
            f"its segmentation must be a list of polygons or an RLE, not {kind(segmentation)}"
        )
    if len(segmentation) == 0:
        raise InputError("its segmentation is empty")
    if isinstance(segmentation[0], (int, float)):
        raise InputError("its segmentation is one flat list where a list of polygons is needed")
    limit = FARTHEST * (height + width)
    stray = [isinstance(points, SEQUENCES) and len(points) < 6 for points in segmentation]
    kept = [points for points, out in zip(segmentation, stray) if not out] or segmentation
    return [polygon(points, limit) for points in kept], len(segmentation) - len(kept)


def region_of(segmentation: Any, box: Any, height: int, width: int) -> bytes | list[np.ndarray]:
    """The region of a broken object: its segmentation, box (x, y, w, h) or good parts."""
    limit, parts = FARTHEST * (height + width), []
    for points in segmentation if isinstance(segmentation, list) else ():
        with contextlib.suppress(InputError):
            parts.append(polygon(points, limit))
    corners: list = []
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        x, y, w, h = array("d", box)
        corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for outline in (segmentation, corners, parts):
        with contextlib.suppress(InputError):
            if isinstance(outline, dict):
                return from_runs(outline, height, width)["counts"]
            return polygons_of(outline, height, width)[0]
    return []


def is_empty(outline: bytes | Sequence[np.ndarray], height: int, width: int) -> bool:
    """Whether checked polygons, or the counts of an RLE, cover no pixel."""
    if isinstance(outline, bytes):
        return not coco_mask.area({"size": [height, width], "counts": outline})
    if not outline:
        return True
    if any(covers(one, height, width) for one in outline):
        return False
    return not coco_mask.area(from_polygons(outline, height, width))


def covers(polygon: np.ndarray, height: int, width: int) -> bool:
    """Whether a polygon inside the image certainly covers a pixel, by its area and perimeter."""
    x, y = polygon[::2], polygon[1::2]
    if min(x.min(), y.min()) < 0 or x.max() > width or y.max() > height:
        return False
    steps = np.concatenate((polygon[2:], polygon[:2])) - polygon
    area = abs(x @ steps[1::2] - y @ steps[::2]) / 2
    return bool(area > 2 * np.abs(steps).sum())


def polygon(points: Any, limit: float) -> np.ndarray:
    if not isinstance(points, SEQUENCES):
        raise InputError(f"a polygon must be a list of numbers, not {kind(points)}")
    if len(points) < 6 or len(points) % 2:
        raise InputError(
            f"a polygon needs an even number of at least 6 coordinates and has {len(points)}"
        )
    try:  # an array accepts numbers only, where numpy would read them out of texts
        values = np.asarray(array("d", points) if isinstance(points, (list, tuple)) else points)
    except (TypeError, OverflowError):
        raise InputError("a polygon must be a flat list of numbers x, y, x, y, ...") from None
    if not np.abs(values).max() <= limit:  # also for NaN; the C code overflows
        raise InputError("a polygon has a coordinate that is not finite or far outside the image")
    return values


def from_index_map(indices: np.ndarray, numbers: Sequence[int]) -> list[Rle]:
    """The mask of each of these numbers, all present, in a map of integers [H,W]."""
    present, places = distinct(indices)
    found = ndimage.find_objects(places + 1)
    masks = []
    for place in np.searchsorted(present, numbers):
        rows, columns = found[place]
        mask = places[rows, columns] == place
        masks.append(encode_at(mask, columns.start, rows.start, *indices.shape))
    return masks


def distinct(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique of a map [H,W] with return_inverse, faster where neighbours are equal."""
    flat = indices.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    present, places = np.unique(flat[starts], return_inverse=True)
    lengths = np.diff(starts, append=flat.size)
    places = places.astype(np.int32)  # half the memory
    return present, np.repeat(places, lengths).reshape(indices.shape)


def area(rles: Sequence[Rle]) -> np.ndarray:
    """Pixels of each mask, int64 [N]."""
    # In parts, because pycocotools keeps the length of the list in a uint8.
    parts = [coco_mask.area(list(rles[n : n + 255])) for n in range(0, len(rles), 255)]
    return np.concatenate([[], *parts]).astype(np.int64)


def boxes(rles: Sequence[Rle]) -> np.ndarray:
    """The tightest box of each mask: x0, y0, x1, y1 in pixels, float64 [N,4]; zeros when empty."""
    if len(rles) == 0:
        return np.zeros((0, 4))
    corners = np.array(coco_mask.toBbox(list(rles)), dtype=np.float64)
    corners[:, 2:] += corners[:, :2]
    return corners


def union(rles: Sequence[Rle]) -> Rle:
    """All of one or more masks together."""
    require_size(rles, rles[0]["size"])
    return coco_mask.merge(list(rles))


def even_odd(rles: Sequence[Rle]) -> Rle:
    """The pixels that an odd number of one or more masks cover."""
    require_size(rles, rles[0]["size"])
    height, width = rles[0]["size"]
    changes = np.concatenate([np.cumsum(runs_of(one["counts"]))[:-1] for one in rles])
    places, times = np.unique(changes, return_counts=True)
    runs = np.diff(places[times % 2 == 1], prepend=0, append=height * width).tolist()
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def subtract(rles: Sequence[Rle], region: Rle) -> list[Rle]:
    """Each mask without the pixels of `region`."""
    require_size(rles, region["size"])
    runs = runs_of(region["counts"]).tolist()
    runs = runs[1:] if runs[0] == 0 else [0, *runs]
    outside = coco_mask.frPyObjects({"size": region["size"], "counts": runs}, *region["size"])
    return [coco_mask.merge([one, outside], intersect=True) for one in rles]


def iou(a: Sequence[Rle], b: Sequence[Rle]) -> np.ndarray:
    """Intersection over union [len(a), len(b)]."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros((len(a), len(b)))
    require_size([*a, *b], a[0]["size"])
    return np.asarray(coco_mask.iou(list(a), list(b), [0] * len(b)))


def to_json(rle: Rle) -> Rle:
    """An RLE whose counts are text, as json files hold it."""
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": list(rle["size"]), "counts": text}


def records(
    rles: Sequence[Rle],
    category_ids: Sequence[int],
    image_id: int,
    first_id: int,
    crowd: Sequence[bool] | None = None,
    areas: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """COCO annotations of one image, with ids from `first_id` on; areas: by default the masks'."""
    corners = boxes(rles)
    corners[:, 2:] -= corners[:, :2]
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": int(category_ids[i]),
            "segmentation": to_json(rles[i]),
            "area": pixels,
            "bbox": corners[i].tolist(),
            "iscrowd": 0 if crowd is None else int(crowd[i]),
        }
        for i, pixels in enumerate((area(rles) if areas is None else np.asarray(areas)).tolist())
    ]


def from_runs(segmentation: dict, height: int, width: int) -> Rle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise InputError(
            f"its RLE has the size {size} where the image has [{height}, {width}] (height, width)"
        )
    if isinstance(counts, (list, array)):
        runs = list(counts)
        if not all(type(count) is int and count >= 0 for count in runs):
            raise InputError("the counts of its RLE must be whole numbers of at least 0")
    elif isinstance(counts, (str, bytes)):
        try:
            counts = counts.encode("ascii") if isinstance(counts, str) else counts
        except UnicodeEncodeError:
            raise InputError(NO_RLE) from None
        runs = runs_of(counts).tolist()
    else:
        raise InputError(f"the counts of its RLE must be a list or a string, not {kind(counts)}")
    total = sum(runs)
    if total != height * width:
        raise InputError(
            f"its RLE covers {total} pixels where the image has {height * width} "
            f"({width} x {height})"
        )
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def runs_of(counts: bytes | str) -> np.ndarray:
    """The run lengths of compressed counts (pycocotools does not expose them).

    Each character carries 5 bits, lowest first; from the fourth number on, the difference to the
    number two before is stored.
    """
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    values = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = (values & CONTINUES) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    known = len(values) and last[-1] and values.min() >= 0 and values.max() <= 63
    if not known or lengths.max() > MOST_CHARACTERS:
        raise InputError(NO_RLE)
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((values & 0x1F) << (5 * place), starts)
    numbers -= np.where(values[ends] & NEGATIVE, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0:
        raise InputError(NO_RLE)
    return numbers


def require_size(rles: Sequence[Rle], size: Sequence[int]) -> None:
    """Checks that sizes agree, raises ValueError; the C code would read past its memory."""
    for one in rles:
        if list(one["size"]) != list(size):
            raise ValueError(f"RLE of size {list(one['size'])} where {list(size)} is needed")


def kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
