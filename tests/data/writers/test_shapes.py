"""data/writers/shapes.py: outlines that are drawn as the masks they come from, runs along rows."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from data import rle
from data.writers.shapes import join_rings, relative, simplify, trace_rings, with_polygons


def random_masks():
    """Noise, blobs and rings of many sizes."""
    rng = np.random.default_rng(0)
    for number in range(400):
        height, width = rng.integers(1, 40, 2)
        noise, share = rng.random((height, width)), rng.choice([0.1, 0.3, 0.5, 0.7, 0.95])
        if number % 2:
            noise, share = ndimage.gaussian_filter(noise, rng.choice([1, 2, 4])), 0.5
        if (noise < share).any():
            yield noise < share


def drawn(polygons, mask):
    """By the COCO tools, parity over the polygons."""
    parts = coco_mask.frPyObjects([one.ravel().tolist() for one in polygons], *mask.shape)
    return coco_mask.decode(parts).sum(2) % 2 == 1


def inside(ring, mask):
    """Pixels whose centre is inside by the even-odd rule: sides crossed on the way to the left."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    crossed = np.zeros(mask.shape, int)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0)):
        if y0 != y1:
            spans = (min(y0, y1) < rows) & (rows < max(y0, y1))
            crossed += spans & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0) < columns)
    return crossed % 2 == 1


def test_outlines_are_drawn_as_the_same_mask():
    count = 0
    for mask in random_masks():
        outer, holes = trace_rings(rle.encode_inside(mask))
        assert (drawn(outer + holes, mask) == mask).all()
        assert (drawn([join_rings(outer + holes)], mask) == mask).all()
        count += len(holes)
    assert count > 500


def test_one_outer_ring_for_each_part_and_one_ring_for_each_hole():
    for mask in random_masks():
        outer, holes = trace_rings(rle.encode_inside(mask))
        parts = ndimage.label(mask, np.ones((3, 3)))[1]  # corners connect
        outside = ndimage.label(np.pad(~mask, 1, constant_values=True))[1]
        assert (len(outer), len(holes)) == (parts, outside - 1)

        def area(ring):
            x, y = ring.T
            return x @ np.roll(y, -1) - y @ np.roll(x, -1)

        assert all(area(ring) > 0 for ring in outer) and all(area(ring) < 0 for ring in holes)


def test_seams_also_hold_in_another_way_of_drawing():
    for mask in list(random_masks())[:60]:
        outer, holes = trace_rings(rle.encode_inside(mask))
        assert (inside(join_rings(outer + holes), mask) == mask).all()


def test_a_ring_has_only_its_corners():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 1:8] = True
    (outer,), holes = trace_rings(rle.encode_inside(mask))
    assert outer.tolist() == [[1, 2], [8, 2], [8, 7], [1, 7]] and not holes


@pytest.mark.parametrize("place", [(0, 0, 40, 40), (3, 5, 60, 50)])
def test_runs_along_the_rows(place):
    left, top, height, width = place
    for mask in random_masks():
        if (left, top) == (0, 0):
            height, width = mask.shape
        size = (height, width)
        whole = np.zeros(size, bool)
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        runs = rle.runs_at(mask.T, top, left, width, height)
        assert (np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size) == whole).all()
        assert (runs[1:] > 0).all()


def test_polygons_to_edit_have_few_corners_and_stay_near():
    rows, columns = np.mgrid[:200, :200]
    disc = np.hypot(rows - 100, columns - 90) < 60
    (outer,), _ = trace_rings(rle.encode_inside(disc))
    ring = simplify(outer, 1.0)
    assert len(ring) < len(outer) / 8
    steps = np.roll(ring, -1, 0) - ring
    for corner in outer:  # to the nearest of the new sides
        share = (((corner - ring) * steps).sum(1) / (steps**2).sum(1)).clip(0, 1)
        assert np.hypot(*(ring + share[:, None] * steps - corner).T).min() <= 1.0
    near = drawn([ring], disc)
    assert (near & disc).sum() / (near | disc).sum() > 0.97


def test_only_masks_without_holes_become_polygons():
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = mask[12:18, 2:18] = mask[0, 0] = True
    one = with_polygons({"id": 1, "segmentation": rle.encode_inside(mask)})
    assert (drawn(one["segmentation"], mask) == mask).all() and len(one["segmentation"]) == 3
    mask[4, 4] = False
    holed = {"id": 1, "segmentation": rle.encode_inside(mask)}
    assert with_polygons(holed) is holed


@pytest.mark.parametrize("whole", [1.0, 100.0])
def test_parts_of_a_size_are_the_same_points_again_or_just_above(whole):
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (50, 2)):
        points = (rng.random((200, 2)) * (width, height)).round(rng.integers(0, 3))
        back = relative(points, (width, height), whole) * (width, height) / whole
        assert (back >= points).all() and (back - points <= 2 * np.spacing(points)).all()
        assert (back == points).mean() > 0.5
