"""Images: one colour per matched object, and nothing that breaks a sheet."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from data import rle
from engine.report import draw, paint
from engine.report.draw import Example, Objects
from engine.report.paint import MISSED, UNMATCHED, Painting, palette, patch_of

NAMES = ["cat", "dog", "a class | with a rather long name"]


def square(top, left, side, size=(120, 160)):
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def black(size=(120, 160)):
    return Image.new("RGB", size[::-1])


def looks_like(image, at, colour):
    """Whether the pixel at (x, y) of an image painted on black has the hue of this colour."""
    pixel = np.asarray(image.getpixel(at), float)
    assert pixel.max() > 0
    ratio = pixel.max() / max(colour)
    return np.abs(pixel - ratio * np.asarray(colour)).max() < 6


def test_matched_objects_share_a_colour_and_others_do_not():
    masks = [square(10, 10, 40), square(10, 100, 40), square(70, 10, 40)]
    masks.append(square(70, 60, 30))  # not predicted
    truth = Objects([0, 0, 1, 0], np.stack(masks))
    # In another order; the second object is predicted as another class, one hits nothing.
    found = [masks[2], square(12, 11, 40), masks[1], square(70, 100, 40)]
    predictions = Objects([1, 0, 1, 0], np.stack(found), [0.9, 0.8, 0.7, 0.6])
    rows = draw.draw_rows(Example(black(), truth, predictions), NAMES, height=120)
    low, high = 40, 40  # right and below of the labels, inside the squares
    first, second, third = (low, high), (130, high), (low, 100)
    assert looks_like(rows["ground truth"], first, palette(0))
    assert looks_like(rows["prediction"], first, palette(0))
    assert looks_like(rows["ground truth"], third, palette(2))
    assert looks_like(rows["prediction"], third, palette(2))
    assert looks_like(rows["ground truth"], second, palette(1))
    assert looks_like(rows["prediction"], second, palette(1))
    assert looks_like(rows["ground truth"], (75, 85), MISSED)
    assert looks_like(rows["prediction"], (130, 100), UNMATCHED)
    inside = np.asarray([rows["prediction"].getpixel(at) for at in (first, second)])
    assert inside[1].max() < 0.6 * inside[0].max()  # dashed shapes are fainter


def test_detections_choose_in_the_order_of_their_scores():
    row = np.zeros((4, 1, 100), bool)
    row[0, 0, 0:60], row[1, 0, 20:80] = True, True  # objects
    row[2, 0, 13:73], row[3, 0, 36:96] = True, True  # predictions
    truth = Objects([0, 0], row[:2])
    assert draw.match(truth, Objects([0, 0], row[2:], [0.5, 0.6])) == {1: 1, 0: 0}
    assert draw.match(truth, Objects([0, 0], row[2:], [0.6, 0.5])) == {0: 1}


def test_match_leaves_void_out():
    truth, wide = square(10, 10, 20), square(10, 10, 40)
    objects, predictions = Objects([0], truth[None]), Objects([0], wide[None], [0.5])
    assert draw.match(objects, predictions) == {}
    void = rle.encode((wide & ~truth)[None])[0]
    assert draw.match(objects, predictions, void) == {0: 0}


def test_an_object_inside_another_has_a_colour_of_its_own():
    inner, outer = square(50, 70, 30), square(5, 20, 110)
    for masks in ([inner, outer], [outer, inner]):  # whichever has the higher score
        objects = Objects([0, 1], np.stack(masks), [0.9, 0.4])
        own = [palette(i) for i in (0, 1)] if masks[0] is inner else [palette(i) for i in (1, 0)]
        examples = [
            draw.overlay(black(), objects, NAMES),
            draw.draw_rows(Example(black(), predictions=objects), NAMES, height=120)["prediction"],
            draw.draw_rows(Example(black(), truth=objects), NAMES, height=120)["ground truth"],
        ]
        for example in examples:
            assert looks_like(example, (85, 60), own[0])
            assert looks_like(example, (45, 105), own[1])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (37, 23), (501, 11), (333, 500)])
def test_odd_sizes(size):
    masks = np.ones((1, *size), bool)
    example = Example(black(size), Objects([2], masks), Objects([2], masks, [0.25]))
    sheet = draw.grid([example, Example(black())], NAMES, title="t")
    assert sheet.mode == "RGB"
    assert draw.overlay(black(size), Objects([2], masks, [0.1]), NAMES).size == size[::-1]


def test_examples_without_anything():
    nothing = Objects([], np.zeros((0, 120, 160), bool), [])
    empty_mask = Objects([0], np.zeros((1, 120, 160), bool), [0.5])
    examples = [
        Example(black()),
        Example(black(), truth=nothing),
        Example(black(), truth=nothing, predictions=Objects([], [], [])),
        Example(black(), truth=nothing, predictions=empty_mask),
        Example(
            Image.new("L", (160, 120)),
            predictions=nothing,
            void=rle.encode(np.ones((1, 120, 160), bool))[0],
        ),
    ]
    for example in examples:
        draw.grid([example], NAMES)
    draw.grid(examples, NAMES)
    draw.overlay(black(), Objects([], [], []), NAMES)


def test_more_columns_wrap_and_missing_rows_are_left_out():
    objects = Objects([0], square(10, 10, 40)[None])
    full = [Example(black(), objects, objects, caption=str(i)) for i in range(5)]
    sheet, narrow = draw.grid(full, NAMES), draw.grid(full, NAMES, columns=2)
    assert narrow.width < sheet.width
    assert narrow.height > sheet.height
    only_found = [Example(black(), predictions=objects)] * 5
    assert draw.grid(only_found, NAMES).height < sheet.height


def test_labels_do_not_cover_one_another(monkeypatch):
    places = []
    monkeypatch.setattr(
        "engine.report.paint.draw_plate", lambda image, place, *rest: places.append(place)
    )
    masks = np.stack([square(20 + i, 30 + i, 50, (240, 320)) for i in range(12)])
    draw.overlay(black((240, 320)), Objects([0] * 12, masks, [0.5] * 12), NAMES)
    assert len(places) > 3
    covered = np.zeros((240, 320), int)
    for left, top, right, bottom in places:
        assert 0 <= left < right <= 320
        assert 0 <= top < bottom <= 240
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1


@pytest.mark.parametrize("side", [16, 64, 96, 128, 200, 320])
def test_labels_cover_little_of_a_small_image(monkeypatch, side):
    places = []
    monkeypatch.setattr(
        "engine.report.paint.draw_plate", lambda image, place, *rest: places.append(place)
    )
    size, step = (side, side), side // 4
    corners = [(row * step, column * step) for row in range(4) for column in range(4)]
    masks = np.stack([square(*corner, step - 2, size) for corner in corners])
    draw.overlay(black(size), Objects([0] * 16, masks, [0.5] * 16), ["a class with a long name"])
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in places]
    assert all(area <= side**2 / 25 for area in areas) and sum(areas) <= side**2 / 6
    draw.overlay(black(size), Objects([0], masks[:1], [0.5]), ["cat"])
    assert (len(places) > len(areas)) == (side >= 200)


def test_colours_by_class_are_those_of_its_index():
    masks = np.stack([square(10, 10, 40), square(10, 100, 40), square(70, 10, 40)])
    one = draw.overlay(black(), Objects([2, 0, 2], masks), NAMES, "class")
    two = draw.overlay(black(), Objects([2], masks[2:]), NAMES, "class")
    for x, y, label in ((40, 40, 2), (130, 40, 0), (40, 100, 2)):
        assert looks_like(one, (x, y), palette(label))
    assert looks_like(two, (40, 100), palette(2))


def test_classes_in_a_grid(monkeypatch):
    """The legend names those that occur; what is missed or too much keeps its own colour."""
    named = []
    strip = draw.legend_strip
    monkeypatch.setattr(draw, "legend_strip", lambda legend, width: named.extend(legend) or strip(
        legend, width))  # fmt: skip
    masks = np.stack([square(10, 10, 40), square(10, 100, 40)])
    other = np.stack([masks[0], square(70, 100, 40)])
    truth, found = Objects([2, 0], masks), Objects([2, 2], other, [0.9, 0.8])
    example = Example(black(), truth, found)
    draw.grid([example], NAMES, colour_by="class")
    assert [text for _, text in named[:5]] == [
        NAMES[0], NAMES[2],
        "found with another class", "missed object", "prediction without object",
    ]  # fmt: skip
    rows = draw.draw_rows(example, NAMES, height=120, colour_by="class")
    for row, at, other in (
        ("ground truth", (130, 40), MISSED),
        ("prediction", (130, 100), UNMATCHED),
    ):
        assert looks_like(rows[row], (40, 40), palette(2))
        assert looks_like(rows[row], at, other)


def test_a_thin_object_that_is_missed_has_a_whole_outline():
    def broken(mask):
        """How often the colour of an outline begins along the middle row of its border."""
        painting = Painting(black(), (160, 120))
        painting.outline(patch_of(mask), MISSED, dashed=True)
        row = np.asarray(painting.finish())[40:43].max((0, 2)) > 150
        return np.count_nonzero(np.diff(row.astype(int)) == 1)

    thin, thick = np.zeros((2, 120, 160), bool)
    thin[40:44, 10:150] = thick[40:110, 10:150] = True
    assert broken(thin) == 1 and broken(thick) > 5


def test_masks_at_every_place_are_painted():
    painting = Painting(black(), (200, 160))  # where rounded edges lie beside a part of the mask
    for place in range(1, 303):
        mask = np.zeros((305, 304), bool)
        mask[place, place - 1 : place + 2] = True
        painting.fill(patch_of(mask), (200, 100, 50), opacity=1.0)
    example = np.asarray(painting.finish()).any(2)
    assert all(example[place * 160 // 305, place * 200 // 304] for place in range(1, 303))


def test_fill_covers_the_mask_and_nothing_else():
    mask = square(37, 51, 21)
    painting = Painting(Image.new("RGB", (160, 120)), (160, 120))
    painting.fill(patch_of(mask), (200, 100, 50), opacity=1.0)
    example = np.asarray(painting.finish())
    inside, outside = ndimage.binary_erosion(mask), ~ndimage.binary_dilation(mask)
    assert (np.abs(example[inside].astype(int) - (200, 100, 50)) <= 1).all()
    assert (example[outside] == 0).all()


def test_training_batch_shows_padding_and_ignore():
    images = torch.full((3, 3, 64, 128), 0.5)
    targets = []
    for width in (128, 80, 64):
        target = {
            "labels": torch.tensor([1]),
            "masks": torch.zeros(1, 64, 128, dtype=torch.bool),
            "ignore": torch.zeros(64, 128, dtype=torch.bool),
            "size": (64, width),
        }
        target["masks"][0, 20:60, 10:50] = True
        targets.append(target)
    targets[2] = targets[2] | {
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 64, 128, dtype=torch.bool),
    }
    sheet = np.asarray(draw.training_batch(images, targets, NAMES), int)
    bluish = (sheet[..., 2] - sheet[..., 0] > 20).mean()
    full = draw.training_batch(images, [target | {"size": (64, 128)} for target in targets], NAMES)
    whole = np.asarray(full, int)
    assert bluish > (whole[..., 2] - whole[..., 0] > 20).mean() + 0.05
    targets[0]["ignore"][:, 60:] = True
    assert not np.array_equal(sheet, draw.training_batch(images, targets, NAMES))


LETTERS = ["é", "ü", "ñ", "ł", "ж", "Ω", "ก", "ع", "猫", "犬"]


@pytest.mark.parametrize("letter", LETTERS)
def test_no_letter_is_drawn_as_a_box(letter):
    """With whatever fonts are here: in one that has the letter, or as another text."""
    names, text = ["cat", letter * 2], f"{letter * 2} 0.50"
    file = paint.font_file(text)
    [_, shown] = draw.drawable(names)
    if file is None:
        assert shown == "1" and paint.fitted(letter, 20)[0] == "?"
        assert draw.class_numbers(names).endswith(f": 1 = {letter * 2}")
    else:
        font = paint.font(file, 30)
        assert bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffd"))
        assert shown == letter * 2 and draw.class_numbers(names) == ""


def test_without_fonts_of_the_system_numbers_and_the_legend_are_drawn(monkeypatch):
    monkeypatch.setattr(paint, "font_files", lambda: [""])
    paint.font_file.cache_clear()
    try:
        names = ["cat", "猫", "แมว"]
        assert draw.drawable(names) == ["cat", "1", "2"]
        assert draw.class_numbers(names).endswith(": 1 = 猫, 2 = แมว")
        masks = np.stack([square(*at, 60, (240, 320)) for at in ((10, 10), (40, 90), (150, 20))])
        given = black((240, 320)), Objects([0, 1, 2], masks)
        images = [draw.overlay(*given, each) for each in (names, "c12")]
        named = draw.overlay(*given, ["cat", "1", "2"])
        assert np.array_equal(images[0], named) and not np.array_equal(images[0], images[1])
    finally:
        paint.font_file.cache_clear()
