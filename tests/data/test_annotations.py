"""What annotation files really hold: many decimals, areas, crowds, broken and empty objects."""

import contextlib
import copy
import io
import json
import warnings

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError
from data.opening import open_datasets
from engine.coco_ap import METRICS, score

STRAY = [5, 5, 9, 9]
SQUARE = [8, 4, 38, 4, 38, 34, 8, 34]


def opened(tiny, change=lambda content: None, **keywords):
    content = copy.deepcopy(tiny.content)
    change(content)
    tiny.json.write_text(json.dumps(content))
    return CocoDataset(tiny.json, tiny.images, **keywords)


def ignored(dataset, index):
    annotation = dataset.annotation(index)
    return rle.decode([annotation.ignore], annotation.orig_size)[0]


def test_what_surely_covers_a_pixel_covers_one():
    rng = np.random.default_rng(1)
    sure = 0
    for _ in range(3000):
        corners = rng.random((int(rng.integers(3, 9)), 2)) * rng.uniform(0.5, 60, 2)
        one = np.clip(corners + rng.uniform(0, 30, 2), 0, 64).ravel()
        if rle.covers(one, 64, 64):
            sure += 1
            assert coco_mask.area(rle.from_polygons([one], 64, 64))
    assert sure > 200


def test_areas_of_the_file_decide_sizes_as_in_the_coco_tools(shared):
    root = shared / "datasets" / "coco-mini"
    path = root / "annotations" / "instances_val.json"
    dataset, rng = CocoDataset(path, root / "val"), np.random.default_rng(0)
    truth = dataset.ground_truth()
    found = []
    for one in truth["annotations"]:
        mask = rle.decode([one["segmentation"]], one["segmentation"]["size"])[0]
        moved = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
        found.append(
            {"image_id": one["image_id"], "category_id": one["category_id"]}
            | {"segmentation": rle.encode(moved[None])[0], "score": float(rng.random())}
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
        judge = COCOeval(coco, coco.loadRes([dict(one) for one in found]), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics = score(truth, found).metrics
    assert np.allclose([metrics[key] for key in METRICS], judge.stats, atol=1e-12)


@pytest.mark.parametrize("wrong", [0, -1, None, "9", [4], float("nan"), 1e300])
def test_areas_are_those_of_the_masks_where_the_file_lacks_one(tiny_coco, wrong):
    def areas(content):
        for one in content["annotations"]:
            one["area"] = 7.5

    assert {one["area"] for one in opened(tiny_coco, areas).ground_truth()["annotations"]} == {7.5}
    lacking = opened(tiny_coco, lambda c: (areas(c), c["annotations"][0].update(area=wrong)))
    truths = lacking.ground_truth()["annotations"]
    assert [one["area"] for one in truths] == [mask.sum() for mask in tiny_coco.masks.values()]


def test_a_stray_part_is_dropped_and_counted(tiny_coco):
    add = lambda content: content["annotations"][2].update(segmentation=[STRAY, SQUARE, [1.0]])  # noqa: E731
    dataset = opened(tiny_coco, add)
    assert (rle.decode(dataset.annotation(1).rles, (64, 48))[0] == tiny_coco.masks[8]).all()
    assert "2 parts of fewer than three points" in dataset.summary() and not len(dataset.bad)
    with pytest.raises(InputError, match="annotation 8 .*at least 6 coordinates and has 4"):
        opened(tiny_coco, lambda c: c["annotations"][2].update(segmentation=[STRAY]))


WHOLE = {"size": [64, 48], "counts": [516, *[30, 34] * 29, 30, 670]}  # SQUARE as runs
BROKEN = {
    "its good parts": ({"segmentation": [SQUARE, [1, 2, 3, 4, 5, 6, 7]], "bbox": None}, {3}),
    "its box, which holds the bad part as well": (
        {"segmentation": [[8, 4, 9, 4, 9, 5, 8, 5], [1, 2, 3, 4, 5, 6, 7]], "bbox": [8, 4, 30, 30]},
        {3},
    ),
    "its RLE": ({"segmentation": WHOLE, "bbox": None, "iscrowd": 2}, {3}),
    "its RLE, not its box": (
        {"segmentation": WHOLE, "bbox": [0, 0, 48, 64], "category_id": None},
        {0, 3, 7, 90},
    ),
    "its box": ({"segmentation": [STRAY], "bbox": [8, 4, 30, 30]}, {3}),
    "its box, for a broken RLE": ({"segmentation": {"size": 3}, "bbox": [8, 4, 30, 30]}, {3}),
    "all of it, without a class": ({"category_id": 55}, {0, 3, 7, 90}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_object_is_ignored_and_never_background(tiny_coco, name):
    change, classes = BROKEN[name]

    def spoil(content):
        del content["annotations"][3]  # the crowd of this image
        content["annotations"][2].update(change)

    dataset = opened(tiny_coco, spoil, skip_bad=True)
    assert len(dataset.bad) == 1 and len(dataset.annotation(1).rles) == 0
    assert (ignored(dataset, 1) == tiny_coco.masks[8]).all()
    truth = dataset.ground_truth()
    left = [one for one in truth["annotations"] if one["image_id"] == 2]
    assert {one["category_id"] for one in left} == classes and all(one["iscrowd"] for one in left)
    on_it = [{**one, "score": 0.9} for one in left]
    perfect = [{**one, "score": 0.5} for one in truth["annotations"] if not one["iscrowd"]]
    assert score(truth, perfect + on_it).metrics["AP"] == 1.0  # no false positives
    assert "6 objects, 0 crowds" in dataset.summary()


def test_the_box_of_a_broken_object_leaves_other_objects_alone(tiny_coco):
    def spoil(content):
        wide = {"segmentation": None, "bbox": [0, 0, 48, 64], "id": 99}
        content["annotations"].append({**content["annotations"][2], **wide})

    dataset = opened(tiny_coco, spoil, skip_bad=True)
    assert not (ignored(dataset, 1) & tiny_coco.masks[8] & ~tiny_coco.masks[9]).any()
    assert (ignored(dataset, 1) | tiny_coco.masks[8]).all()


@pytest.mark.parametrize(
    "ids", [[0] * 8, [1, 2, 1, 2, 1, 1, 2, 1], ["a", None, 1.5, [], 7, 7, 7, 7]]
)
def test_annotation_ids_may_be_anything(tiny_coco, ids):
    expected = opened(tiny_coco).ground_truth()

    def renumber(content):
        for one, id_ in zip(content["annotations"], ids, strict=True):
            one["id"] = id_

    assert opened(tiny_coco, renumber).ground_truth() == expected
    with pytest.raises(InputError, match="annotation number 8 of the list .*|annotation 7 .*"):
        opened(tiny_coco, lambda c: (renumber(c), c["annotations"][7].update(category_id=4)))


def test_objects_without_pixels_are_one_number(tiny_coco):
    def thin(content):
        content["annotations"][2].update(segmentation=[[5, 5, 5, 5, 5, 5]])
        content["annotations"][4].update(segmentation=[[500, 500, 560, 500, 560, 560]])

    dataset = opened(tiny_coco, thin)
    truth = dataset.ground_truth()
    perfect = [{**one, "score": 1.0} for one in truth["annotations"] if not one["iscrowd"]]
    scores = score(truth, perfect)
    assert scores.objects == 5 == dataset.objects_per_image().sum() and scores.metrics["AP"] == 1
    assert "(3 without objects), 5 objects" not in dataset.summary()
    assert " 5 objects, 1 crowd" in dataset.summary()
    assert dataset.summary().count("2 objects without pixels") == 1
    assert 3 not in dataset.with_objects()


# --- boxes as masks -------------------------------------------------------------------------------


def boxed(content):
    """A box, a turned one, two of one object, and one around a crowd."""
    own, crowd, turned = [], [], [20, 5, 30, 15, 20, 25, 10, 15]
    two = [1, 1, 5, 1, 5, 4, 1, 4, 20, 20, 30, 20, 30, 31, 20, 31]
    rows = [([8, 4, 30, 20], own), ([10, 5, 20, 20], turned), ([1, 1, 29, 30], two)]
    content["annotations"] = [
        {"id": number, "image_id": 2, "category_id": 3, "bbox": box, "segmentation": []}
        | {"corners": corners, "iscrowd": 0, "area": 999}
        for number, (box, corners) in enumerate([*rows, ([0, 50, 10, 10], crowd)], start=1)
    ]
    content["annotations"][-1]["iscrowd"] = 1


def test_boxes_are_masks_only_if_asked_for(tiny_coco):
    ignored = opened(tiny_coco, boxed)
    assert "0 objects" in ignored.summary() and "4 boxes without masks" in ignored.summary()
    filled = opened(tiny_coco, boxed, boxes_as_masks=True)
    summary = filled.summary()
    assert " 3 objects, 0 crowds" in summary and f"of {filled.source}: 3 boxes without" in summary
    assert f"ignored in {filled.source}: 1 box without masks" in summary
    y, x = np.mgrid[:64, :48] + 0.5
    wanted = np.zeros((3, 64, 48), bool)
    wanted[0, 4:24, 8:38] = True
    wanted[2, 1:4, 1:5] = wanted[2, 20:31, 20:30] = True
    found = rle.decode(filled.annotation(1).rles, (64, 48))
    assert (found[[0, 2]] == wanted[[0, 2]]).all()
    near, inside = abs(abs(x - 20) + abs(y - 15) - 10) < 1, abs(x - 20) + abs(y - 15) < 10
    assert (found[1] == inside)[~near].all() and filled.annotation(1).labels.tolist() == [1] * 3
    crowd = rle.decode([filled.annotation(1).ignore], (64, 48))[0]
    assert crowd.sum() == 100 and crowd[50:60, :10].all()
    for corners in ([1, 2], "a", [[]], {}, None):  # of other files, where it means something else

        def other(content, corners=corners):
            boxed(content)
            content["annotations"][0]["corners"] = corners

        assert (
            opened(tiny_coco, other, boxes_as_masks=True).annotation(1).rles[0]
            == (filled.annotation(1).rles[0])
        )


# --- crowds per class -----------------------------------------------------------------------------


def brush(content, attributes=True):
    """Class 0 as an annotation tool exports its brush; the others are polygons and RLE."""
    for one in content["annotations"]:
        if one["category_id"] == 0:
            size = next(i for i in content["images"] if i["id"] == one["image_id"])
            pixels = size["height"] * size["width"]
            one["segmentation"] = {
                "size": [size["height"], size["width"]], "counts": [100, 50, pixels - 150],
            }  # fmt: skip
            one["iscrowd"] = 1
        if attributes:
            one["attributes"] = {"occluded": False}


def test_brush_masks_are_objects(tiny_coco):
    with pytest.warns(UserWarning, match="3 brush masks of shrimp, .*--keep-crowds"):
        dataset = opened(tiny_coco, brush)
    assert " 7 objects, 1 crowd" in dataset.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = opened(tiny_coco, brush, keep_crowds=True)
    assert " 4 objects, 4 crowds" in kept.summary()


def test_other_classes_of_crowds_are_warned_about(tiny_coco):
    with pytest.warns(UserWarning, match=r"all objects of shrimp \(3\) .*--crowd-as-instances"):
        dataset = opened(tiny_coco, lambda content: brush(content, attributes=False))
    assert " 4 objects, 4 crowds" in dataset.summary()


def test_a_class_with_one_polygon_keeps_its_crowds(tiny_coco):
    def mixed(content):
        for one in content["annotations"]:
            one["attributes"] = {}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = opened(tiny_coco, mixed).summary()
    assert " 7 objects, 1 crowd" in summary and "1 brush mask marked iscrowd" in summary


# --- classes and names of files -------------------------------------------------------------------


def test_val_may_list_fewer_categories_in_any_order(tiny_coco):
    content = copy.deepcopy(tiny_coco.content)
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 3]
    content["categories"] = [{"id": 3, "name": "fish"}]
    tiny_coco.json.with_name("instances_val.json").write_text(json.dumps(content))
    sets = open_datasets(tiny_coco.root)
    assert sets["val"].categories == sets["train"].categories
    assert sets["val"].annotation(1).labels.tolist() == [1]
    assert {one["category_id"] for one in sets["val"].ground_truth()["annotations"]} == {3}


def test_val_may_list_more_categories(tiny_coco):
    content = copy.deepcopy(tiny_coco.content)
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 3]
    content["categories"] = [{"id": 3, "name": "fish"}]
    tiny_coco.json.write_text(json.dumps(content))
    words = "val.json also has the classes shrimp, unused, crab, which .*train.json has not: .* 5 "
    with pytest.warns(UserWarning, match=words):
        sets = open_datasets(tiny_coco.root)
    assert sets["val"].class_names == sets["train"].class_names == ["fish"]
    assert [len(sets["val"].annotation(index).rles) for index in range(6)] == [0, 1, 0, 0, 1, 0]


def test_parts_of_one_set_have_classes_of_their_own(tiny_coco):
    whole = open_datasets(tiny_coco.root)["train"]
    given = [{"id": 9, "name": "eel"}] + [{"id": c.id, "name": c.name} for c in whole.categories]
    parts = [whole.subset([0, 2]), whole.subset([1, 3])]
    before = [[part.annotation(i).labels.tolist() for i in range(2)] for part in parts]
    for number, part in enumerate(parts):
        part.use_classes(given, "a run")
        now = [[one.annotation(i).labels.tolist() for i in range(2)] for one in parts]
        for place in range(2):
            moved = int(place <= number)
            assert now[place] == [[label + moved for label in each] for each in before[place]]


def test_polygons_of_many_decimals_are_those_of_pycocotools(tiny_coco):
    rng = np.random.default_rng(0)
    outlines = [(rng.random((int(rng.integers(3, 40)), 2)) * (48, 64)).ravel() for _ in range(300)]
    record = tiny_coco.content["annotations"][2]
    rows = [{**record, "id": n, "segmentation": [one.tolist()]} for n, one in enumerate(outlines)]
    dataset = opened(tiny_coco, lambda content: content.update(annotations=rows))
    expected = [coco_mask.merge(coco_mask.frPyObjects([one.tolist()], 64, 48)) for one in outlines]
    assert dataset.annotation(1).rles == [one for one in expected if coco_mask.area(one)]
