"""Outlines of masks along the edges of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from data import rle

TOLERANCE = 1.0  # pixels between a mask and the polygon that people correct
Ring = np.ndarray  # corners [P,2] (x, y) of a closed outline, the last joined to the first


def trace_rings(mask: rle.Rle) -> tuple[list[Ring], list[Ring]]:
    """The outer rings of a mask, one for each part, and the rings of its holes.

    Pixels that touch at a corner belong to one part. Outer rings run clockwise as seen, holes
    against it, so that both common rules of filling give the mask.
    """
    inside, (left, top) = rle.decode_inside(mask)
    pixels = np.pad(inside, 1)
    # The four pixels around each corner point of the grid: [h+1,w+1].
    a, b, c, d = pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1], pixels[1:, 1:]
    saddle = (a == d) & (b == c) & (a != b)
    y, x = np.nonzero((a ^ b ^ c ^ d) | saddle)
    # At a saddle two rings meet, or one meets itself: the point counts twice.
    times = 1 + saddle[y, x]
    y, x = np.repeat(y, times), np.repeat(x, times)
    # In the order of rows, points 2k and 2k+1 are joined by a horizontal side; in the order of
    # columns by a vertical one. At a saddle the order decides which sides meet.
    order = np.arange(len(y))
    columns = np.lexsort((np.where(a[y, x], -order, order), y, x))
    across = (order ^ 1).tolist()
    along = np.empty_like(order)
    along[columns] = columns[order ^ 1]
    along = along.tolist()
    corners = np.stack((x + left, y + top), axis=1).astype(np.float64)
    outer, holes = [], []
    unseen = [True] * len(y)
    is_outer = d[y, x].tolist()
    for start in range(len(y)):
        if not unseen[start]:
            continue
        ring, point = [], start  # the top left corner of a ring, as rows come in order
        while unseen[point]:
            end = across[point]
            unseen[point] = unseen[end] = False
            ring += point, end
            point = along[end]
        if is_outer[start]:
            outer.append(corners[ring])
        else:
            holes.append(corners[ring[::-1]])
    return outer, holes


def join_rings(rings: Sequence[Ring]) -> Ring:
    """One outline of all rings: each is joined to those before by a seam of no width, a line that
    is drawn there and back between the nearest corners.

    An even-odd rule, as COCO's is within one polygon, fills it as the rings.
    """
    joined = rings[0]
    for ring in rings[1:]:
        distances, places = cKDTree(joined).query(ring)
        there = int(distances.argmin())
        here = int(places[there])
        detour = np.concatenate((ring[there:], ring[: there + 1]))
        joined = np.concatenate((joined[: here + 1], detour, joined[here:]))
    return joined


def simplify(ring: Ring, tolerance: float) -> Ring:
    """A ring with fewer corners, at most `tolerance` away from those left out."""
    kept = {0, int(np.hypot(*(ring - ring[0]).T).argmax())}
    closed = np.concatenate((ring, ring[:1]))
    spans = list(zip(sorted(kept), [*sorted(kept)[1:], len(ring)]))
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        (x, y), along = (closed[start + 1 : end] - closed[start]).T, closed[end] - closed[start]
        length = np.hypot(*along)
        far = np.abs(x * along[1] - y * along[0]) / length if length else np.hypot(x, y)
        middle = start + 1 + int(far.argmax())
        if far.max() > tolerance:
            kept.add(middle)
            spans += (start, middle), (middle, end)
    return ring[sorted(kept)] if len(kept) > 2 else ring


def with_polygons(annotation: dict) -> dict:
    """The annotation with polygons of few corners for its mask, unless this has holes."""
    outer, holes = trace_rings(annotation["segmentation"])
    if holes or not outer:
        return annotation
    polygons = [simplify(ring, TOLERANCE).ravel() for ring in outer]
    return annotation | {"segmentation": polygons}


def relative(points: Ring, size: tuple[int, int], whole: float = 1.0) -> Ring:
    """Points as parts of an image of this size (width, height), which is `whole`.

    part * size / whole is the point again, or a number just above it. COCO's rule for polygons
    rounds at tenths of a pixel: a number below one, however near, may be drawn as another mask.
    """
    parts = points * whole / size
    lower = np.nextafter(parts, -np.inf)
    parts = np.where(lower * size / whole >= points, lower, parts)
    return np.where(parts * size / whole < points, np.nextafter(parts, np.inf), parts)
