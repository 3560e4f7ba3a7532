"""engine/tiles.py: windows of images, and the merge of what is found in them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from data import rle
from engine import evaluate, predict, tiles, train
from engine.tiles import OVERLAP, merge, overlapping, views_of
from tests.conftest import scene

SIZE = (300, 400)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def disc(y, x, radius):
    return np.hypot(ROWS - y, COLUMNS - x) < radius


def bar(top, bottom, left, right):
    return (ROWS >= top) & (ROWS < bottom) & (COLUMNS >= left) & (COLUMNS < right)


def seen(objects, boxes, best=True):
    """Perfect results of views: what each sees of (mask, label, score) with any pixel in it."""
    results = []
    for left, top, right, bottom in boxes:
        parts = [(m[top:bottom, left:right], label, score) for m, label, score in objects]
        parts = [part for part in parts if part[0].any()]
        results.append(
            {
                "scores": torch.tensor([score for *_, score in parts]),
                "labels": torch.tensor([label for _, label, _ in parts], dtype=torch.long),
                "best": torch.full((len(parts),), best),
                "masks": rle.encode(np.array([part[0] for part in parts])),
            }
        )
    return results


def dense(result):
    return rle.decode(result["masks"], SIZE)


@pytest.mark.parametrize("size", [(300, 400), (3000, 4000), (400, 300), (200, 1600), (500, 500)])
@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_windows_cover_the_image_and_overlap(size, tiles):
    height, width = size
    whole, *windows = views_of(height, width, tiles)
    assert whole == (0, 0, width, height)
    covered = np.zeros(size, int)
    for left, top, right, bottom in windows:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    for axis, side in ((0, width), (1, height)):
        spans = sorted({(box[axis], box[axis + 2]) for box in windows})
        if side == max(size) and side >= 64 * tiles:
            assert len(spans) == tiles
        for (_, end), (start, stop) in zip(spans, spans[1:]):
            assert end - start >= OVERLAP * (stop - start) - 1
    largest = max(max(right - left, bottom - top) for left, top, right, bottom in windows)
    assert largest < max(size)


def test_windows_are_never_tiny():
    assert views_of(90, 120, 1) == views_of(90, 120, 50) == [(0, 0, 120, 90)]
    assert len(views_of(90, 130, 50)) == 3  # two beside one another
    for box in views_of(640, 640, 50)[1:]:
        assert box[2] - box[0] >= 64


def test_whole_and_cut_detections_become_each_object_once():
    """Discs smaller than the overlap, and a bar longer than any window, from windows alone."""
    centres = [(30, 40), (95, 130), (150, 200), (150, 232), (270, 380), (61, 301)]
    objects = [(disc(*centre, 15), 0, 0.5 + n / 100) for n, centre in enumerate(centres)]
    objects.append((bar(200, 212, 5, 395), 0, 0.9))
    objects.append((bar(196, 216, 100, 300), 1, 0.4))  # of another class, over it
    windows = views_of(*SIZE, 3)[1:]
    found = merge(seen(objects, windows), windows, SIZE, 100)
    wanted = sorted(objects, key=lambda one: -one[2])
    assert found["scores"].tolist() == pytest.approx([score for *_, score in wanted])
    assert found["labels"].tolist() == [label for _, label, _ in wanted]
    assert (dense(found) == np.array([mask for mask, *_ in wanted])).all()
    rows, columns = np.nonzero(wanted[-1][0])
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found["boxes"][-1].tolist() == tight and found["best"].all()


def test_a_cut_answer_goes_where_a_whole_one_covers_it():
    """Also with a better score, unless the whole one is hardly a detection."""
    boxes = views_of(*SIZE, 2)
    large = disc(150, 200, 110)  # larger than the overlap: whole in the whole image alone
    for score, count in ((0.5, 1), (0.2, 2)):
        results = seen([(large, 0, score)], boxes[:1]) + seen([(large, 0, 0.9)], boxes[1:])
        found = merge(results, boxes, SIZE, 100)
        assert len(found["masks"]) == count and all((each == large).all() for each in dense(found))


def test_a_large_part_that_nothing_completes_goes():
    boxes = views_of(*SIZE, 2)
    nothing = seen([], boxes[:1])
    for radius, count in ((110, 0), (12, 1)):
        edge = disc(60, boxes[1][2], radius)  # on an edge of the first window
        results = nothing + seen([(edge, 0, 0.9)], boxes[1:2]) + seen([], boxes[2:])
        assert len(merge(results, boxes, SIZE, 100)["masks"]) == count


def test_a_coarse_mask_around_a_fine_one_is_the_same_object():
    boxes = views_of(*SIZE, 2)
    coarse, fine = disc(60, 60, 20), disc(60, 60, 12)  # IoU .36
    results = seen([(coarse, 0, 0.5)], boxes[:1]) + seen([(fine, 0, 0.6)], boxes[1:])
    assert (dense(merge(results, boxes, SIZE, 100)) == fine).all()
    part = disc(60, 60, 8)  # of another object, or of a group
    results = seen([(coarse, 0, 0.5)], boxes[:1]) + seen([(part, 0, 0.6)], boxes[1:])
    found = merge(results, boxes, SIZE, 100)
    assert len(found["masks"]) == 2
    best = merge(results, boxes, SIZE, 1)
    assert best["masks"] == found["masks"][:1] and best["scores"].tolist() == [pytest.approx(0.6)]


def test_detections_of_one_view_or_of_two_classes_stay_apart():
    boxes = views_of(*SIZE, 2)
    mask, near = disc(60, 60, 20), disc(60, 62, 20)
    twice = seen([(mask, 0, 0.9), (near, 0, 0.8), (mask, 1, 0.7)], boxes)
    found = merge(twice, boxes, SIZE, 100)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found["labels"].tolist() == [0, 0, 1]


def test_what_is_shown_does_not_depend_on_the_rest():
    boxes = views_of(*SIZE, 2)
    shown = seen([(disc(60, 60, 20), 0, 0.5)], boxes[:1])
    hidden = seen([(disc(60, 60, 20), 0, 0.9), (disc(200, 300, 30), 0, 0.8)], boxes[1:], best=False)
    found = merge(shown + hidden, boxes, SIZE, 100)
    scores, best = found["scores"].tolist(), found["best"].tolist()
    assert scores == pytest.approx([0.8, 0.5]) and best == [False, True]


def test_pairs_that_overlap_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    masks = np.array([disc(*rng.uniform((0, 0), SIZE), rng.uniform(2, 40)) for _ in range(60)])
    labels, views = rng.integers(0, 2, 60), rng.integers(0, 5, 60)
    rles, flat = rle.encode(masks), masks.reshape(60, -1).astype(float)
    shared = flat @ flat.T * ((labels[:, None] == labels) & (views[:, None] != views))
    one, other, pixels = overlapping(rles, rle.area(rles), rle.boxes(rles), labels, views)
    assert (np.argwhere(shared) == np.stack([one, other], 1)).all()
    assert pixels == pytest.approx(shared[one, other])


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    """Six toy scenes of 64 x 64 in one image of 192 x 128, whose objects are small for the run."""
    scenes = [Image.fromarray(scene(number)[0]) for number in (0, 3, 8, 11, 16, 19)]
    image = Image.new("RGB", (192, 128))
    for place, one in enumerate(scenes):
        image.paste(one.crop((0, 0, 64, 64)), (place % 3 * 64, place // 3 * 64))
    path = tmp_path_factory.mktemp("mosaic") / "six.png"
    image.save(path)
    return path


def test_predict_and_python_find_the_same(toy_run, mosaic, tmp_path):
    given = ["--checkpoint", str(toy_run / "best.pt"), "--device", "cpu", "--threads", "1"]
    argv = [str(mosaic), *given, "--threshold", "0.2", "--tiles", "3", "--save", "coco"]
    predict.main([*argv, "--out", str(tmp_path / "out")])
    content = json.loads((tmp_path / "out" / "objects.json").read_text())
    model = engine.load(toy_run / "best.pt", device="cpu")
    found = model(mosaic, tiles=3, threshold=0.2)
    masks = [one["segmentation"] for one in content["annotations"]]
    assert masks == [rle.to_json(one) for one in found.rles]
    assert len(found) > len(model(mosaic, threshold=0.2))
    assert all(one["size"] == [128, 192] for one in masks)


def test_a_training_keeps_its_tiles(tiny, toy_coco, tmp_path, monkeypatch, capsys):
    """The checkpoint is scored with them in training, and used with them from there on."""
    monkeypatch.setattr(tiles, "SMALLEST", 32)
    folder = tmp_path / "run"
    length = "--iterations 60 --eval-every 0 --lr 1.1e-2 --average 0.5 --tiles 2"
    train.main([*tiny, *length.split(), "--out", str(folder)])
    path = folder / "best.pt"
    [trained] = csv.DictReader((folder / "metrics.csv").open())
    given = ["--checkpoint", str(path), "--device", "cpu", "--threads", "1", "--workers", "0"]

    def scored(name, *more):
        evaluate.main([*given, *more, "--out", str(tmp_path / name)])
        return json.loads((tmp_path / name).read_text())

    found = scored("a.json", "--diagnose")
    ap = found["scores"]["metrics"]["AP"]
    diagnosis = json.loads((tmp_path / "diagnose.json").read_text())
    evidence = json.loads((folder / "evidence.json").read_text())
    assert found["tiles"] == 2 and 0 < ap == pytest.approx(float(trained["val/AP"]), abs=1e-5)
    assert ap == diagnosis["oracles"]["as evaluated"]["AP"] == evidence["headline"]["mask"]["AP"]
    block = scored("b.json", "--metrics-block")["metrics"]
    capsys.readouterr()
    whole = scored("c.json", "--metrics-block", "--tiles", "1")
    shown = "".join(capsys.readouterr()).splitlines()
    assert all("--tiles 1" in line for line in shown if "test.sh" in line or "visualize.sh" in line)
    assert any("visualize.sh" in line for line in shown)
    assert whole["tiles"] == 1 and len(whole["detections"]) < len(found["detections"])
    assert block["test_loss"] == whole["metrics"]["test_loss"]  # of whole images in both
    image = next((toy_coco / "val").iterdir())
    model = engine.load(path, device="cpu")
    assert model.preset.tiles == 2
    shown = [model(image, threshold=0.0, **more).rles for more in ({}, {"tiles": 2}, {"tiles": 1})]
    assert shown[0] == shown[1] != shown[2]
