"""data/transforms.py and data/presets.py: image and masks stay together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from data import rle, seeds, transforms
from data.batch import Annotation, Sample
from data.presets import EvalPreset, TrainPreset, outermost, paste_objects
from data.transforms import Colour, View

PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grey": 0}
PLAIN |= {"resizes": ("antialiased",)}


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


def image_of(masks):
    """The first three masks as the three colours: 255 where the object is."""
    return Image.fromarray(np.moveaxis(masks[:3], 0, 2).astype(np.uint8) * 255)


SIZES = st.integers(4, 70)


@settings(deadline=None, max_examples=80)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 10**6), st.booleans())
def test_masks_go_where_the_image_goes(height, width, h, w, seed, flip):
    masks = blobs(height, width, seed)
    rng = np.random.default_rng(seed + 1)
    left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
    view = View(left, top, right, bottom, (h, w), flip)
    seen = np.asarray(transforms.view_image(image_of(masks), view))
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
    image = Image.new("RGB", (60, 40))
    sample = transforms.apply(image, annotated(masks, ignore), view, (64, 64))
    assert sample.labels.tolist() == [0, 3]
    assert (sample.masks == masks[[0, 3], :, :30]).all()
    assert (sample.ignore == ignore[:, :30]).all()
    assert sample.image.shape == (3, 40, 30) and sample.image.dtype == torch.uint8
    assert (sample.size, sample.orig_size, sample.canvas) == ((40, 30), (40, 60), (64, 64))


def test_images_without_objects_are_ordinary():
    nothing = annotated(np.zeros((0, 40, 60), dtype=bool))
    image = Image.new("RGB", (60, 40))
    for preset in (TrainPreset(), EvalPreset(64)):
        sample = preset(image, nothing, (128, 128), seeds.generator(0))
        assert sample.masks.shape == (0, *sample.size) and sample.labels.shape == (0,)
        assert not sample.ignore.any() and sample.ignore.shape == sample.size


# --- copy-paste -----------------------------------------------------------------------------------


def sample_of(masks, labels, ignore=None, image=None):
    """Masks [N,h,w]; the red of a pixel is the label of the object on it, 0 where there is none."""
    height, width = masks.shape[1:]
    if image is None:
        image = np.zeros((3, height, width), dtype=np.uint8)
        for mask, label in zip(masks, labels, strict=True):
            image[0][mask] = label
    ignore = np.zeros((height, width), dtype=bool) if ignore is None else ignore
    return Sample(torch.from_numpy(image), masks, ignore, np.array(labels, dtype=np.int64),
                  image_id=5, orig_size=(400, 600), canvas=(64, 64))  # fmt: skip


def squares(size, *boxes):
    """A sample of this size with one object for each box (top, left, bottom, right)."""
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return sample_of(masks, range(20, 20 + len(boxes)))


def random_sample(seed, first_label, disjoint):
    """Up to three objects, empty ones too, some ignored pixels, and noise for an image."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 15, 2)
    masks = blobs(height, width, seed, count=int(rng.integers(0, 4)) or 1)
    masks = masks[: rng.integers(0, len(masks) + 1)]
    if not disjoint:
        masks = masks | (rng.random(masks.shape) < 0.3)
    ignore = rng.random((height, width)) < rng.choice([0, 0.3])
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    labels = [first_label + i for i in range(len(masks))]
    return sample_of(masks, labels, ignore & ~masks.any(0) if disjoint else ignore, image)


def pasted_by_hand(target, source, chosen, offset):
    """Pixel by pixel: image [3][h][w], masks and labels, ignore, as plain lists."""
    (height, width), (from_height, from_width) = target.size, source.size
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def behind(y, x):
        y, x = y - offset[0], x - offset[1]
        return (y, x) if 0 <= y < from_height and 0 <= x < from_width else None

    pieces = []
    for i in range(len(source.labels)):
        piece = set()
        for pixel in pixels:
            at = behind(*pixel)
            if chosen[i] and at and source.masks[i][at] and not source.ignore[at]:
                piece.add(pixel)
        if len(piece) >= 4:
            pieces.append((int(source.labels[i]), piece))
    covered = set().union(*(piece for _, piece in pieces))
    objects, slivers = [], set()
    for label, mask in zip(target.labels.tolist(), target.masks, strict=True):
        before = {pixel for pixel in pixels if mask[pixel]}
        scored = {pixel for pixel in before if not target.ignore[pixel]}
        if len(scored - covered) < 4 or 10 * len(scored - covered) < len(scored):
            slivers |= before - covered
        else:
            objects.append((label, before - covered))
    ignore = {pixel for pixel in pixels if target.ignore[pixel]} - covered
    ignore |= slivers - set().union(*(mask for _, mask in objects))
    image = target.image.clone()
    for y, x in covered:
        image[:, y, x] = source.image[(slice(None), *behind(y, x))]
    return image, objects + pieces, ignore


def pixels_of(mask):
    return set(map(tuple, np.argwhere(mask).tolist()))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.booleans(), st.integers(-9, 9), st.integers(-9, 9))
def test_pasting_against_a_loop_over_pixels(seed, disjoint, down, right):
    target = random_sample(seed, 10, disjoint)
    source = random_sample(seed + 1, 20, disjoint)
    chosen = np.random.default_rng(seed).random(len(source.masks)) < 0.7
    before = (target.image.clone(), target.masks.copy(), target.ignore.copy())
    pasted = transforms.paste(target, source, chosen, (down, right))
    image, objects, ignore = pasted_by_hand(target, source, chosen, (down, right))
    assert torch.equal(pasted.image, image) and pixels_of(pasted.ignore) == ignore
    found = zip(pasted.labels.tolist(), map(pixels_of, pasted.masks), strict=True)
    assert list(found) == objects
    assert pasted.masks.shape == (len(objects), *target.size) and pasted.masks.dtype == bool
    assert pasted.image.dtype == torch.uint8 and pasted.labels.dtype == np.int64
    for name in ("size", "image_id", "orig_size", "canvas"):
        assert getattr(pasted, name) == getattr(target, name)
    assert torch.equal(target.image, before[0]) and (target.masks == before[1]).all()
    assert (target.ignore == before[2]).all()
    if disjoint:
        assert (pasted.masks.sum(0) + pasted.ignore <= 1).all()


def test_the_rest_of_a_hidden_object_stays_part_of_a_visible_one():
    """One pixel of it is left to see: beside the large object first, then on it."""
    front = squares((30, 30), (3, 15, 12, 25))
    front.masks[0, 12, 16:25] = True
    for bottom, ignored in ((12, [[12, 15]]), (14, [])):
        target = squares((30, 30), (0, 0, bottom, 20), (3, 15, 13, 25))
        pasted = transforms.paste(target, front, np.array([True]), (0, 0))
        assert pasted.labels.tolist() == [20, 20]
        assert np.argwhere(pasted.ignore).tolist() == ignored


def test_what_pasting_does_to_covered_objects():
    """Six squares of 100 pixels each, of which these are left to see: 100, 50, 10, 9, 3, 0."""
    masks = np.zeros((6, 20, 60), dtype=bool)
    for i, mask in enumerate(masks):
        mask[5:15, 10 * i : 10 * i + 10] = True
    ignore = np.zeros((20, 60), dtype=bool)
    ignore[:3] = ignore[17:] = True
    front = np.zeros((2, 20, 60), dtype=bool)
    for i, left in enumerate((100, 50, 10, 9, 3, 0)):
        front[0, 5:15, 10 * i : 10 * i + 10] = np.arange(100).reshape(10, 10) >= left
    front[0, 17:, 30:] = True
    front[1, 0, :3] = True  # three pixels: too small to be pasted
    hidden = masks[3:].any(0) & ~front[0]
    target = sample_of(masks, range(10, 16), ignore)
    pasted = transforms.paste(target, sample_of(front, [20, 21]), np.array([True, True]), (0, 0))
    assert pasted.labels.tolist() == [10, 11, 12, 20]
    assert pasted.masks.sum((1, 2)).tolist() == [100, 50, 10, front[0].sum()]
    assert hidden.sum() == 12
    assert (pasted.ignore == ((ignore & ~front[0]) | hidden)).all()


def test_nothing_to_paste():
    some, nothing = squares((20, 30), (4, 5, 9, 9)), squares((25, 25))
    assert paste_objects(some, nothing, seeds.generator(0)) is some
    assert paste_objects(nothing, some, seeds.generator(0)).masks.sum((1, 2)).tolist() == [20]


def places(target_size, source, count=400):
    """Where the first row and column of what is pasted come to lie, over the generators."""
    target = sample_of(np.zeros((0, *target_size), dtype=bool), [])
    pasted = [paste_objects(target, source, seeds.generator(seed)) for seed in range(count)]
    corners = [np.argwhere(one.masks.any(0)).min(0).tolist() for one in pasted]
    return pasted, *zip(*corners, strict=True)


def test_objects_are_chosen_by_halves_and_never_none():
    boxes = [(10, 5, 15, 10), (10, 12, 15, 17), (10, 20, 15, 25)]
    pasted, _, _ = places((30, 40), squares((30, 40), *boxes))
    found = [frozenset(one.labels.tolist()) for one in pasted]
    # Seven subsets of three: singles get a share of the eighth that would be none.
    for subset in map(frozenset, ([20], [21], [22], [20, 21], [20, 22], [21, 22], [20, 21, 22])):
        expected = 400 * (1 / 6 if len(subset) == 1 else 1 / 8)
        assert abs(found.count(subset) - expected) < 4 * expected**0.5
    for one in pasted:  # chosen together, they keep their distance
        columns = [int(np.flatnonzero(mask.any(0))[0]) for mask in one.masks]
        starts = {20: 5, 21: 12, 22: 20}
        assert len({c - starts[x] for c, x in zip(columns, one.labels, strict=True)}) == 1


def test_objects_land_wholly_inside_at_any_place():
    pasted, top, left = places((16, 24), squares((40, 40), (20, 10, 30, 22)))
    assert all(one.masks.sum() == 10 * 12 for one in pasted)
    assert set(top) == set(range(7)) and set(left) == set(range(13))
    assert min(top.count(row) for row in range(7)) > 30


def test_longer_objects_fill_the_side():
    pasted, _, _ = places((8, 50), squares((40, 40), (5, 10, 35, 20)), count=50)
    assert all(one.masks.sum() == 8 * 10 and one.masks.any(2).all() for one in pasted)


@pytest.mark.parametrize(
    ("box", "row", "column"),
    [
        ((0, 10, 8, 20), {0}, None),
        ((32, 10, 40, 20), {22}, None),
        ((10, 0, 18, 10), None, {0}),
        ((10, 30, 18, 40), None, {10}),
        ((0, 30, 8, 40), {0}, {10}),
        ((0, 10, 40, 20), {0}, None),  # from border to border: the lower end is cut off
    ],
)
def test_what_is_cut_off_by_a_border_stays_at_it(box, row, column):
    _, top, left = places((30, 20), squares((40, 40), box), count=100)
    assert set(top) == row if row else len(set(top)) > 15
    assert set(left) == column if column else len(set(left)) > 5


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
        transforms.adjust_colour(noise, colour), reference(noise)
    ))  # fmt: skip
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("box, size", [((0, 0, 96, 64), (16, 24)), ((7, 3, 71, 57), (40, 30))])
def test_resizing_as_torch_does_it(noise, box, size):
    image = noise.resize((96, 64))
    planes = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)[None].float()
    for resize, mode in (("plain", "bilinear"), ("area", "area")):
        view = View(*box, size, resize=resize)
        seen = functional.pil_to_tensor(transforms.view_image(image, view))
        wanted = torch.nn.functional.interpolate(planes, size, mode=mode)[0]
        if resize == "plain" or box[0] == 0:  # torch's areas are whole pixels
            inner = (slice(None), slice(1, -1), slice(1, -1))  # torch sees the crop alone
            assert (seen.float() - wanted)[inner].abs().max() < 1.01  # Pillow rounds down


@pytest.mark.parametrize("resize", transforms.RESIZES)
def test_an_enlarged_image_is_bilinear(noise, resize):
    view = View(0, 0, 50, 40, (99, 130), resize=resize)
    smooth = transforms.view_image(noise, View(0, 0, 50, 40, (99, 130)))
    difference = np.asarray(transforms.view_image(noise, view)).astype(int) - np.asarray(smooth)
    assert np.abs(difference).max() <= 1


def test_hue_turns_the_colour_circle_and_keeps_the_luma():
    red = Image.new("RGB", (2, 2), (160, 100, 100))
    for hue, strongest in ((1 / 3, 1), (-1 / 3, 2)):
        turned = transforms.adjust_colour(red, Colour(hue=hue)).getpixel((0, 0))
        assert np.argmax(turned) == strongest
        luma = np.dot((0.299, 0.587, 0.114), turned)
        assert abs(luma - np.dot((0.299, 0.587, 0.114), (160, 100, 100))) < 1.5
    whole_circle = transforms.adjust_colour(red, Colour(hue=1.0)).getpixel((0, 0))
    assert whole_circle == (160, 100, 100)


# --- presets --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.integers(0, 10**6))
def test_training_images_stay_together_in_any_canvas(height, width, seed):
    masks = blobs(height, width, seed)
    preset = TrainPreset(scale=(0.3, 3.0), **PLAIN)
    sample = preset(image_of(masks), annotated(masks), (64, 128), seeds.generator(seed))
    assert sample.size[0] <= 64 and sample.size[1] <= 128
    grey = sample.image.numpy().astype(int)
    for label, mask in zip(sample.labels, sample.masks, strict=True):
        sure = np.abs(grey[label] - 127.5) > 3
        assert ((grey[label] > 127) == mask)[sure].all()


def test_the_scale_is_relative_to_the_fit():
    masks = np.ones((1, 60, 90), dtype=bool)
    image = image_of(np.repeat(masks, 3, axis=0))
    for scale, size in ((1.0, (128, 192)), (0.5, (64, 96)), (2.0, (192, 192))):
        preset = TrainPreset(scale=(scale, scale), **PLAIN)
        sample = preset(image, annotated(masks), (192, 192), seeds.generator(0))
        assert sample.size == size


def test_the_same_generator_gives_the_same_sample(noise):
    masks = blobs(50, 70, 0)
    first, again, other = (
        TrainPreset()(noise, annotated(masks), (64, 64), seeds.generator(1, 2, n))
        for n in (3, 3, 4)
    )
    assert torch.equal(first.image, again.image) and (first.masks == again.masks).all()
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_the_filter_is_drawn_and_changes_nothing_else(noise):
    masks, found = blobs(50, 70, 0), []
    for n in range(60):
        samples = [
            TrainPreset(resizes=(one,) if one else transforms.RESIZES)(
                noise.resize((70, 50)), annotated(masks), (32, 32), seeds.generator(1, 2, n)
            )
            for one in ("", *transforms.RESIZES)
        ]
        assert all((one.masks == samples[0].masks).all() for one in samples)
        equal = [torch.equal(one.image, samples[0].image) for one in samples[1:]]
        if sum(equal) == 1:  # not enlarged
            found.append(equal.index(True))
    assert len(found) > 25 and min(map(found.count, range(3))) > 4


def test_evaluation_without_targets_sees_the_same_image(noise):
    annotation = annotated(blobs(*noise.size[::-1], 0), blobs(*noise.size[::-1], 1)[0])
    first, second = (EvalPreset(32, targets=each)(noise, annotation) for each in (True, False))
    assert torch.equal(first.image, second.image) and len(first.labels)
    assert not len(second.labels) and not len(second.masks) and not second.ignore.any()
    plain = EvalPreset(16, resize="plain")(noise, annotation)
    assert not torch.equal(plain.image, EvalPreset(16)(noise, annotation).image)


def test_every_draw_is_used():
    """Flip, place and colour vary over the generators, in the whole of their range."""
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 1, 3))
    image, nothing = Image.fromarray(ramp), annotated(np.zeros((0, 200, 200), dtype=bool))
    preset = TrainPreset(scale=(2, 2), **PLAIN)
    flips, starts = [], []
    for seed in range(200):
        row = preset(image, nothing, (64, 64), seeds.generator(seed)).image[0, 0].int()
        flips.append(bool(row[0] > row[-1]))
        starts.append(int(row.min()))
    assert 70 < sum(flips) < 130
    assert min(starts) < 10 and max(starts) > 117  # half of the image is seen


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


def test_what_lies_inside_an_object_is_pasted_with_it():
    masks = np.zeros((4, 12, 16), dtype=bool)
    masks[0, 4:6, 4:6] = True  # inside 2, which is inside 1
    masks[1, 2:10, 2:10] = True
    masks[2, 3:7, 3:9] = True
    masks[3, 2:10, 9:14] = True  # beside 1, sharing a column with it
    assert outermost(masks).tolist() == [1, 1, 1, 3]
    target = sample_of(np.zeros((0, 12, 16), dtype=bool), [])
    source = sample_of(masks, [0, 1, 2, 3])
    seen = {
        tuple(sorted(paste_objects(target, source, seeds.generator(seed)).labels.tolist()))
        for seed in range(30)
    }
    assert seen == {(0, 1, 2), (3,), (0, 1, 2, 3)}
