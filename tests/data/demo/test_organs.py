"""The set of nested masks: organs inside their shrimps, learnable, and the same every time."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.demo.organs import ORGAN_PIXELS
from data.demo.shrimp import ORGANS
from data.opening import open_datasets

TRAIN, VAL = 24, 3
NAMES = ("shrimp", *ORGANS)


def test_organs_lie_inside_their_shrimp_and_not_over_one_another(scenes):
    for scene in scenes:
        for index, item in enumerate(scene.items):
            organs = [other for other in scene.items if other.parent == index]
            if item.name == "shrimp":
                assert item.parent is None
                assert len(organs) >= 2
                assert sum(organ.mask.astype(int) for organ in organs).max() == 1
            else:
                assert scene.items[item.parent].name == "shrimp"
                assert not (item.mask & ~scene.items[item.parent].mask).any()
                assert item.mask.sum() >= ORGAN_PIXELS


def test_organs_have_their_places(scenes):
    """From the eye to the tail: eye, stomach, hepatopancreas, heart, and then the intestine."""
    ordered, seen = 0, 0
    for scene in scenes:
        for index in [i for i, item in enumerate(scene.items) if item.parent is None]:
            centres = {
                item.name: np.argwhere(item.shape).mean(0)
                for item in scene.items
                if item.parent == index
            }
            if len(centres) == len(ORGANS):
                away = [np.hypot(*(centres[name] - centres["eye"])) for name in ORGANS]
                ordered += away == sorted(away)
                seen += 1
    assert seen > 10
    assert ordered == seen


def test_classes_are_balanced_and_of_sizes_that_can_be_learnt(scenes):
    masks = {name: [] for name in NAMES}
    for scene in scenes:
        shrimps = [item for item in scene.items if item.name == "shrimp"]
        assert 1 <= len(shrimps) <= 3
        for item in scene.items:
            masks[item.name].append(item.mask.sum())
    for name in ORGANS:
        assert 0.75 <= len(masks[name]) / len(masks["shrimp"]) <= 1
    medians = {name: np.median(sizes) for name, sizes in masks.items()}
    assert 0.06 <= medians["shrimp"] / (240 * 320) <= 0.2
    assert medians["eye"] > 90
    assert all(medians[name] > 150 for name in ORGANS if name != "eye")


def test_some_shrimps_are_covered_in_part_or_cut_by_the_border(scenes):
    shrimps = [item for scene in scenes for item in scene.items if item.name == "shrimp"]
    share = [item.mask.sum() / item.shape.sum() for item in shrimps]
    assert 0.03 < np.mean(np.array(share) < 0.99) < 0.6
    cut = [
        any(side.any() for side in (item.mask[0], item.mask[-1], item.mask[:, 0], item.mask[:, -1]))
        for item in shrimps
    ]
    assert 0.1 < np.mean(cut) < 0.8


def test_colours_do_not_give_the_class_away_but_organs_are_seen(scenes):
    """The hues of any two classes overlap; yet an organ differs from the flesh around it."""
    hues = {name: np.zeros(12) for name in NAMES}
    contrasts = {name: [] for name in ORGANS}
    for scene in scenes:
        hue = np.asarray(Image.fromarray(scene.image).convert("HSV"))[..., 0]
        for item in scene.items:
            counts = np.histogram(hue[item.mask], bins=12, range=(0, 256))[0]
            hues[item.name] += counts / counts.sum()
            if item.parent is not None:
                flesh = scene.items[item.parent].mask & ~item.mask
                inside, around = (scene.image[mask].mean(0) for mask in (item.mask, flesh))
                contrasts[item.name].append(np.abs(inside - around).mean())
    shares = [counts / counts.sum() for counts in hues.values()]
    overlaps = [np.minimum(a, b).sum() for i, a in enumerate(shares) for b in shares[:i]]
    assert min(overlaps) > 0.35
    assert all(np.median(values) > 10 for values in contrasts.values())  # of 255


def test_the_folder_is_recognised(folder, scenes, tmp_path):
    sets = open_datasets(folder, cache=tmp_path, progress=False)
    assert (len(sets["train"]), len(sets["val"])) == (TRAIN, VAL)
    assert sets["train"].class_names == ["background", *NAMES]
    assert [category.id for category in sets["train"].categories] == list(range(len(NAMES) + 1))
    assert "background 0, shrimp" in sets["train"].summary()
    for index, scene in enumerate(scenes[:TRAIN]):
        image, truth = sets["train"].read(index)
        assert np.abs(np.asarray(image, float) - scene.image).mean() < 8
        assert [sets["train"].class_names[label] for label in truth.labels] == [
            item.name for item in scene.items
        ]
        for code, item in zip(truth.rles, scene.items, strict=True):
            assert np.array_equal(coco_mask.decode(code).astype(bool), item.mask)


def test_json_records_agree_with_their_masks(folder):
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    for record in content["annotations"]:
        code = record["segmentation"]
        assert record["area"] == coco_mask.area(code)
        assert record["bbox"] == coco_mask.toBbox(code).tolist()
        assert record["category_id"] > 0
