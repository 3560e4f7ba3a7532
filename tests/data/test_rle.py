"""data/rle.py against pycocotools and plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data import rle
from data.errors import InputError


def plain_counts(mask: np.ndarray) -> list[int]:
    """Runs column by column, beginning with zeros, written out by hand."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@st.composite
def mask_stacks(draw):
    shape = draw(st.tuples(*[st.integers(0, 4), st.integers(1, 40), st.integers(1, 40)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))


@settings(deadline=None, max_examples=60)
@given(mask_stacks())
def test_dense_masks_come_back_in_every_form(masks):
    size = masks.shape[1:]
    rles = rle.encode(masks)
    assert (rle.decode(rles, size) == masks).all()
    assert rles == [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    assert rle.encode(torch.from_numpy(masks)) == rles
    for mask, one in zip(masks, rles, strict=True):
        text = rle.to_json(one)
        assert rle.from_annotation(text, *size) == one
        assert rle.from_annotation(one, *size) == one
        plain = {"size": list(size), "counts": plain_counts(mask)}
        assert rle.from_annotation(plain, *size)["counts"] == one["counts"]
    assert (rle.area(rles) == masks.sum((1, 2))).all()


@settings(deadline=None, max_examples=60)
@given(mask_stacks(), st.integers(-30, 30), st.integers(-30, 30))
def test_masks_at_a_place_of_an_image_are_cut_at_its_borders(masks, left, top):
    for mask in masks:
        image = np.zeros((120, 110), bool)  # the image is its middle, 40 pixels inside
        image[40 + top : 40 + top + mask.shape[0], 40 + left : 40 + left + mask.shape[1]] = mask
        assert rle.encode_at(mask, left, top, 40, 30) == rle.encode(image[None, 40:80, 40:70])[0]


@pytest.mark.parametrize("factor", [1, 60_000, 3_000_000])
def test_index_maps_give_the_mask_of_each_number(factor):
    indices = np.random.default_rng(0).integers(0, 6, (20, 30)) * factor
    numbers = [number * factor for number in (5, 0, 3)]
    assert (rle.distinct(indices)[0] == np.arange(6) * factor).all()
    assert (rle.distinct(indices)[1] * factor == indices).all()
    expected = rle.encode(np.stack([indices == number for number in numbers]))
    assert rle.from_index_map(indices, numbers) == expected


@settings(deadline=None, max_examples=40)
@given(mask_stacks())
def test_boxes_are_the_extent_of_the_pixels(masks):
    for mask, box in zip(masks, rle.boxes(rle.encode(masks)), strict=True):
        if mask.any():
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-20, 60), min_size=6, max_size=24))
def test_polygons_are_drawn_as_pycocotools_draws_them(points):
    points = points[: len(points) // 2 * 2]
    expected = coco_mask.merge(coco_mask.frPyObjects([points], 40, 50))
    assert rle.from_annotation([points], 40, 50) == expected


def test_a_polygon_of_several_parts_is_one_mask():
    parts = [[2, 2, 10, 2, 10, 10, 2, 10], [20, 2, 28, 2, 28, 10, 20, 10]]
    one = rle.from_annotation(parts, 16, 32)
    expected = np.zeros((16, 32), dtype=bool)
    expected[2:10, 2:10] = expected[2:10, 20:28] = True
    assert (rle.decode([one], (16, 32))[0] == expected).all()


def test_large_masks_need_numbers_of_several_characters():
    mask = np.zeros((1, 3000, 4000), dtype=bool)
    mask[0, 100:2900, 5:3990] = True
    mask[0, :, 2000:2100] ^= True
    one = rle.encode(mask)[0]
    assert rle.from_annotation(rle.to_json(one), 3000, 4000) == one


def test_nothing_keeps_its_shape():
    assert rle.encode(np.zeros((0, 5, 6), dtype=bool)) == []
    assert rle.decode([], (5, 6)).shape == (0, 5, 6)
    assert rle.area([]).shape == (0,)
    assert rle.boxes([]).shape == (0, 4)
    assert rle.iou([], []).shape == (0, 0)
    one = rle.encode(np.ones((1, 5, 6), dtype=bool))
    assert rle.iou(one, []).shape == (1, 0)
    assert rle.subtract([], one[0]) == []


def test_union_subtract_and_iou_are_those_of_sets():
    masks = np.random.default_rng(0).random((4, 17, 23)) < 0.4
    rles, size = rle.encode(masks), (17, 23)
    assert (rle.decode([rle.union(rles)], size)[0] == masks.any(0)).all()
    assert (rle.decode(rle.subtract(rles, rles[2]), size) == masks & ~masks[2]).all()
    shared_pixels = (masks[:, None] & masks[None]).sum((2, 3))
    either = (masks[:, None] | masks[None]).sum((2, 3))
    assert np.allclose(rle.iou(rles, rles), shared_pixels / either)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "null"),
        ("M", "not str"),
        ([], "empty"),
        ([1, 2, 3, 4, 5, 6], "flat list"),
        ([[1, 2, 3, 4]], "at least 6"),
        ([[1, 2, 3, 4, 5, 6, 7]], "even number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e12]], "far outside"),
        ([[1, 2, 3, 4, 5, "a"]], "flat list of numbers"),
        ([[[1, 2], [3, 4], [5, 6], [1, 1], [1, 1], [1, 1]]], "flat list of numbers"),
        ([{"x": 1}], "list of numbers"),
        ({"size": [5, 4], "counts": [0, 20]}, r"size \[5, 4\]"),
        ({"counts": [0, 20]}, "size None"),
        ({"size": [4, 5]}, "counts"),
        ({"size": [4, 5], "counts": [0, 21]}, "21 pixels"),
        ({"size": [4, 5], "counts": [-1, 21]}, "at least 0"),
        ({"size": [4, 5], "counts": [0.5, 19.5]}, "whole numbers"),
        ({"size": [4, 5], "counts": [0, 10**30]}, "pixels"),
        ({"size": [4, 5], "counts": ""}, "no compressed"),
        ({"size": [4, 5], "counts": "~~"}, "no compressed"),
        ({"size": [4, 5], "counts": "é"}, "no compressed"),
        ({"size": [4, 5], "counts": "P"}, "no compressed"),
        ({"size": [4, 5], "counts": "oooooooooooooo0"}, "no compressed"),
        ({"size": [4, 5], "counts": "oooooo0"}, "pixels"),
        ({"size": [4, 5], "counts": "O"}, "no compressed"),
    ],
)
def test_what_is_no_mask_is_refused_before_it_is_decoded(segmentation, reason):
    with pytest.raises(InputError, match=reason):
        rle.from_annotation(segmentation, 4, 5)


def test_masks_of_different_sizes_do_not_meet():
    rles = [rle.encode(np.ones((1, 4, side), dtype=bool))[0] for side in (5, 6)]
    for call in (
        lambda: rle.union(rles),
        lambda: rle.decode(rles, (4, 5)),
        lambda: rle.iou(rles[:1], rles[1:]),
        lambda: rle.subtract(rles[:1], rles[1]),
    ):
        with pytest.raises(ValueError, match="size"):
            call()


def test_more_masks_than_a_byte_can_count():
    masks = np.zeros((300, 9, 11), dtype=bool)
    for number, mask in enumerate(masks):
        mask.T.flat[: number % 99] = True
    rles = rle.encode(masks)
    assert rle.area(rles).tolist() == masks.sum((1, 2)).tolist()
    assert (rle.decode(rles, (9, 11)) == masks).all()
    assert (rle.decode([rle.union(rles)], (9, 11))[0] == masks.any(0)).all()
    assert len(rle.boxes(rles)) == len(rle.subtract(rles, rles[5])) == 300
    assert rle.iou(rles, rles).shape == (300, 300)


def test_even_odd():
    masks = np.random.default_rng(0).random((5, 7, 9)) > 0.5
    masks[1, :, 0] = masks[2] = True  # a run from the first pixel, and one of all of them
    for number in range(1, 6):
        found = rle.even_odd(rle.encode(masks[:number]))
        assert (rle.decode([found], (7, 9))[0] == (masks[:number].sum(0) % 2 == 1)).all()
