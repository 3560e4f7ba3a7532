"""The demo set: its difficulty is fixed here, and both layouts hold the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.demo import pond
from data.demo.files import SPLITS, Item, Scene

TRAIN, VAL = 24, 6


def animals_of(scene: Scene) -> list[Item]:
    return [item for item in scene.items if item.parent is None]


def written(folder: Path) -> list[tuple[str, dict[str, list[dict]]]]:
    """For every image its name and its COCO records by kind (animals, organs)."""
    found = []
    for split in SPLITS:
        coco = json.loads((folder / f"coco/annotations/instances_{split}.json").read_text())
        for image in coco["images"]:
            records = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            kinds = {
                "animals": [a for a in records if a["category_id"] <= len(pond.ANIMALS)],
                "organs": [a for a in records if a["category_id"] > len(pond.ANIMALS)],
            }
            found.append((Path(image["file_name"]).stem, kinds))
    return found


def test_difficulty_stays_within_its_bounds(scenes):
    shares = [item.mask.mean() for scene in scenes for item in animals_of(scene)]
    assert all(2 <= len(animals_of(scene)) <= 7 for scene in scenes)
    assert min(shares) >= 0.01
    assert max(shares) <= 0.35
    assert 0.04 <= np.median(shares) <= 0.075


def test_many_animals_are_partly_covered_by_another(scenes):
    hidden = [
        1 - item.mask.sum() / item.shape.sum() for scene in scenes for item in animals_of(scene)
    ]
    assert np.mean(np.array(hidden) > 0.02) >= 0.30
    assert max(hidden) < 0.5


def test_every_class_and_organ_occurs_and_organs_only_in_shrimps(scenes):
    names = [item.name for scene in scenes for item in scene.items]
    assert set(names) == set(pond.CATEGORIES)
    for scene in scenes:
        for item in scene.items:
            if item.parent is None:
                assert item.name in pond.ANIMALS
            else:
                assert scene.items[item.parent].name == "shrimp"


def test_organs_lie_inside_their_shrimp_and_vanish_where_it_is_covered(scenes):
    lost = 0
    for scene in scenes:
        for item in scene.items:
            if item.parent is not None:
                shrimp = scene.items[item.parent]
                assert not (item.shape & ~shrimp.shape).any()
                assert np.array_equal(item.mask, item.shape & shrimp.mask)
                assert item.mask.any()
                lost += item.mask.sum() < item.shape.sum()
    assert lost > 0


def test_animals_never_share_a_pixel(scenes):
    for scene in scenes:
        assert sum(item.mask.astype(int) for item in animals_of(scene)).max() == 1


def test_colours_do_not_give_the_class_away(scenes):
    """The hues of any two classes overlap, so a histogram of colours cannot separate them."""
    hues = {name: np.zeros(12) for name in pond.ANIMALS}
    for scene in scenes:
        hue = np.asarray(Image.fromarray(scene.image).convert("HSV"))[..., 0]
        for item in animals_of(scene):
            counts = np.histogram(hue[item.mask], bins=12, range=(0, 256))[0]
            hues[item.name] += counts / counts.sum()
    shares = [counts / counts.sum() for counts in hues.values()]
    overlaps = [np.minimum(a, b).sum() for i, a in enumerate(shares) for b in shares[:i]]
    assert min(overlaps) > 0.35


def test_both_layouts_hold_the_same_masks(folder):
    voc = folder / "VOCdevkit" / "VOC2012"
    for name, kinds in written(folder):
        instances = np.asarray(Image.open(voc / "SegmentationObject" / f"{name}.png"))
        classes = np.asarray(Image.open(voc / "SegmentationClass" / f"{name}.png"))
        void = instances == pond.VOID
        assert np.array_equal(void, classes == pond.VOID)
        union = np.zeros_like(void)
        for number, record in enumerate(kinds["animals"], start=1):
            mask = coco_mask.decode(record["segmentation"]).astype(bool)
            union |= mask
            assert np.array_equal(mask & ~void, instances == number)
            assert set(np.unique(classes[mask & ~void])) == {record["category_id"]}
        assert np.array_equal(union & ~void, (instances > 0) & ~void)


def test_void_is_a_narrow_border_around_every_animal(folder):
    voc = folder / "VOCdevkit" / "VOC2012"
    for name, kinds in written(folder):
        void = np.asarray(Image.open(voc / "SegmentationObject" / f"{name}.png")) == pond.VOID
        for record in kinds["animals"]:
            mask = coco_mask.decode(record["segmentation"]).astype(bool)
            edge = (mask[:, :-1] != mask[:, 1:]).nonzero()
            assert void[edge[0], edge[1]].all()
            assert void[edge[0], edge[1] + 1].all()
        assert void.mean() < 0.2


def test_json_records_agree_with_their_masks(folder):
    for _, kinds in written(folder):
        for record in kinds["animals"] + kinds["organs"]:
            code = record["segmentation"]
            assert record["area"] == coco_mask.area(code)
            assert record["bbox"] == coco_mask.toBbox(code).tolist()
        for organ in kinds["organs"]:
            inside = [
                coco_mask.iou([organ["segmentation"]], [animal["segmentation"]], [1])[0, 0]
                for animal in kinds["animals"]
                if animal["category_id"] == 1
            ]
            assert max(inside) == 1  # with iscrowd, the share of the organ that the shrimp holds


def test_lists_images_and_scenes_belong_together(folder, scenes):
    voc = folder / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    train, val, both = (
        (lists / f"{split}.txt").read_text().split() for split in ("train", "val", "trainval")
    )
    assert (len(train), len(val), both) == (TRAIN, VAL, train + val)
    assert [name for name, _ in written(folder)] == both
    assert (voc / "classes.txt").read_text().split() == list(pond.ANIMALS)
    for name, scene in zip(both, scenes, strict=True):
        image = np.asarray(Image.open(voc / "JPEGImages" / f"{name}.jpg"), float)
        assert np.abs(image - scene.image).mean() < 8


def test_the_palette_is_the_one_of_voc(folder):
    png = next((folder / "VOCdevkit" / "VOC2012" / "SegmentationObject").glob("*.png"))
    palette = np.array(Image.open(png).getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 255: (224, 224, 192)}
    assert all(tuple(palette[index]) == colour for index, colour in known.items())
