"""data/transforms.py and data/presets.py: picture and masks stay together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from data import rle, seeds, transforms
from data.batch import Annotation
from data.presets import EvalPreset, TrainPreset
from data.transforms import Colour, View

PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grey": 0}


def annotated(masks, ignore=None):
    """Masks [N,H,W] with labels 0, 1, ..."""
    rles = rle.encode(masks)
    region = None if ignore is None else rle.encode(ignore[None])[0]
    return Annotation(np.arange(len(masks)), rles, region, 3, masks.shape[1:])


def blobs(height, width, seed, count=3):
    """Random rectangles, some of them split in two or holed; disjoint by construction."""
    rng = np.random.default_rng(seed)
    owner = np.zeros((height, width), dtype=np.uint8)
    for id_ in range(1, count + 1):
        for value in (id_, id_, 0):
            y, x = rng.integers(0, height), rng.integers(0, width)
            h, w = rng.integers(1, height), rng.integers(1, width)
            owner[y : y + h, x : x + w] = value
    return np.stack([owner == id_ for id_ in range(1, count + 1)])


def picture_of(masks):
    """The first three masks as the three colours: 255 where the object is."""
    return Image.fromarray(np.moveaxis(masks[:3], 0, 2).astype(np.uint8) * 255)


SIZES = st.integers(4, 70)


@settings(deadline=None, max_examples=80)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 10**6), st.booleans())
def test_masks_go_where_the_picture_goes(height, width, h, w, seed, flip):
    masks = blobs(height, width, seed)
    rng = np.random.default_rng(seed + 1)
    left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
    view = View(left, top, right, bottom, (h, w), flip)
    seen = np.asarray(transforms.view_picture(picture_of(masks), view))
    moved = transforms.view_masks(rle.encode(masks), (height, width), view)
    grey = np.moveaxis(seen, 2, 0).astype(int)
    sure = np.abs(grey - 127.5) > 3  # next to one half the rounding of two passes may differ
    assert ((grey > 127) == moved)[sure].all()


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.integers(0, 10**6))
def test_a_view_of_the_same_size_is_a_crop(height, width, seed):
    masks = blobs(height, width, seed)
    rng = np.random.default_rng(seed)
    left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
    size = (bottom - top, right - left)
    part = masks[:, top:bottom, left:right]
    for flip in (False, True):
        view = View(left, top, right, bottom, size, flip)
        moved = transforms.view_masks(rle.encode(masks), (height, width), view)
        assert (moved == (part[:, :, ::-1] if flip else part)).all()


def test_area_is_kept_when_a_mask_shrinks():
    ys, xs = np.mgrid[:400, :600]
    disc = ((ys - 180) ** 2 + (xs - 300) ** 2 < 120**2)[None]
    small = transforms.view_masks(rle.encode(disc), (400, 600), View(0, 0, 600, 400, (80, 120)))
    assert abs(small.sum() * 25 / disc.sum() - 1) < 0.02


def test_objects_emptied_by_the_crop_are_dropped():
    masks = np.zeros((5, 40, 60), dtype=bool)
    masks[0, 5:30, 5:25] = True
    masks[4, :4, 5:25] = True  # wholly ignored
    masks[1, 5:30, 40:58] = True  # outside
    masks[2, 10, 10:13] = True  # too small
    masks[3, 10:20, 25:40] = True  # cut
    ignore = np.zeros((40, 60), dtype=bool)
    ignore[:4] = ignore[:, 50:] = True
    view = View(0, 0, 30, 40, (40, 30))
    picture = Image.new("RGB", (60, 40))
    sample = transforms.apply(picture, annotated(masks, ignore), view, (64, 64))
    assert sample.labels.tolist() == [0, 3]
    assert (sample.masks == masks[[0, 3], :, :30]).all()
    assert (sample.ignore == ignore[:, :30]).all()
    assert sample.image.shape == (3, 40, 30) and sample.image.dtype == torch.uint8
    assert (sample.size, sample.orig_size, sample.canvas) == ((40, 30), (40, 60), (64, 64))


def test_pictures_without_objects_are_ordinary():
    nothing = annotated(np.zeros((0, 40, 60), dtype=bool))
    picture = Image.new("RGB", (60, 40))
    for preset in (TrainPreset(), EvalPreset(64)):
        sample = preset(picture, nothing, (128, 128), seeds.generator(0))
        assert sample.masks.shape == (0, *sample.size) and sample.labels.shape == (0,)
        assert not sample.ignore.any() and sample.ignore.shape == sample.size


# --- colour ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("colour", "reference"),
    [
        (Colour(), lambda p: p),
        (Colour(brightness=0.7), lambda p: functional.adjust_brightness(p, 0.7)),
        (Colour(brightness=1.3), lambda p: functional.adjust_brightness(p, 1.3)),
        (Colour(contrast=0.6), lambda p: functional.adjust_contrast(p, 0.6)),
        (Colour(contrast=1.4), lambda p: functional.adjust_contrast(p, 1.4)),
        (Colour(saturation=0.5), lambda p: functional.adjust_saturation(p, 0.5)),
        (Colour(saturation=1.5), lambda p: functional.adjust_saturation(p, 1.5)),
        (Colour(grey=True), lambda p: functional.rgb_to_grayscale(p, 3)),
    ],
)
def test_each_colour_change_is_that_of_torchvision(noise, colour, reference):
    ours, theirs = (np.asarray(p).astype(int) for p in (
        transforms.recolour(noise, colour), reference(noise)
    ))  # fmt: skip
    assert np.abs(ours - theirs).max() <= 2


def test_hue_turns_the_colour_circle_and_keeps_the_luma():
    red = Image.new("RGB", (2, 2), (160, 100, 100))
    for hue, strongest in ((1 / 3, 1), (-1 / 3, 2)):
        turned = transforms.recolour(red, Colour(hue=hue)).getpixel((0, 0))
        assert np.argmax(turned) == strongest
        luma = np.dot((0.299, 0.587, 0.114), turned)
        assert abs(luma - np.dot((0.299, 0.587, 0.114), (160, 100, 100))) < 1.5
    whole_circle = transforms.recolour(red, Colour(hue=1.0)).getpixel((0, 0))
    assert whole_circle == (160, 100, 100)


# --- presets --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.integers(0, 10**6))
def test_training_pictures_stay_together_in_any_canvas(height, width, seed):
    masks = blobs(height, width, seed)
    preset = TrainPreset(scale=(0.3, 3.0), **PLAIN)
    sample = preset(picture_of(masks), annotated(masks), (64, 128), seeds.generator(seed))
    assert sample.size[0] <= 64 and sample.size[1] <= 128
    grey = sample.image.numpy().astype(int)
    for label, mask in zip(sample.labels, sample.masks, strict=True):
        sure = np.abs(grey[label] - 127.5) > 3
        assert ((grey[label] > 127) == mask)[sure].all()


def test_the_scale_is_relative_to_the_fit():
    masks = np.ones((1, 60, 90), dtype=bool)
    picture = picture_of(np.repeat(masks, 3, axis=0))
    for scale, size in ((1.0, (128, 192)), (0.5, (64, 96)), (2.0, (192, 192))):
        preset = TrainPreset(scale=(scale, scale), **PLAIN)
        sample = preset(picture, annotated(masks), (192, 192), seeds.generator(0))
        assert sample.size == size


def test_the_same_generator_gives_the_same_sample(noise):
    masks = blobs(50, 70, 0)
    first, again, other = (
        TrainPreset()(noise, annotated(masks), (64, 64), seeds.generator(1, 2, n))
        for n in (3, 3, 4)
    )
    assert torch.equal(first.image, again.image) and (first.masks == again.masks).all()
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_every_draw_is_used():
    """Flip, place and colour vary over the generators, in the whole of their range."""
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 1, 3))
    picture, nothing = Image.fromarray(ramp), annotated(np.zeros((0, 200, 200), dtype=bool))
    preset = TrainPreset(scale=(2, 2), **PLAIN)
    flips, starts = [], []
    for seed in range(200):
        row = preset(picture, nothing, (64, 64), seeds.generator(seed)).image[0, 0].int()
        flips.append(bool(row[0] > row[-1]))
        starts.append(int(row.min()))
    assert 70 < sum(flips) < 130
    assert min(starts) < 10 and max(starts) > 117  # half of the picture is seen


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((480, 640), (320, 427), (320, 448)),
        ((640, 480), (427, 320), (448, 320)),
        ((300, 600), (216, 432), (256, 448)),
        ((100, 100), (320, 320), (320, 320)),
        ((1, 1000), (1, 432), (64, 448)),
    ],
)
def test_evaluation_sizes(size, resized, padded):
    preset = EvalPreset(320)
    assert preset.size(*size) == resized and preset.padded_size(*size) == padded
    masks = np.ones((1, *size), dtype=bool)
    sample = preset(Image.new("RGB", size[::-1]), annotated(masks))
    assert (sample.size, sample.canvas) == (resized, padded)
    assert sample.masks.all() and sample.masks.shape == (1, *resized)


def test_the_paper_size_is_reached():
    assert EvalPreset(640).size(480, 853) == (486, 864)


def test_a_picture_has_to_fit_into_the_canvas():
    masks = np.ones((1, 40, 60), dtype=bool)
    with pytest.raises(ValueError, match="does not fit"):
        EvalPreset(320)(Image.new("RGB", (60, 40)), annotated(masks), (64, 64))
