"""data/readers/coco.py and its dialects: each trap in a small file, and real files of other people
against counts from the raw json.
"""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError

SQUARE = [8, 4, 38, 4, 38, 34, 8, 34]


@pytest.fixture
def opened(tiny_coco):
    """Opens the tiny set after a change of its content."""

    def open_(change, **keywords):
        content = copy.deepcopy(tiny_coco.content)
        change(content)
        tiny_coco.json.write_text(json.dumps(content))
        return CocoDataset(tiny_coco.json, tiny_coco.images, **keywords)

    return open_


def same(dataset, other):
    first, second = dataset.ground_truth(), other.ground_truth()
    return first == second


def nothing(content):
    pass


# --- ids ------------------------------------------------------------------------------------------


def test_ids_may_be_text(opened):
    def some(content):
        for one in content["annotations"]:
            one["image_id"] = str(one["image_id"])

    def all_(content):
        some(content)
        for key in ("images", "categories"):
            for one in content[key]:
                one["id"] = f"{one['id']:012d}"
        for one in content["annotations"]:
            one["category_id"] = float(one["category_id"])

    expected = opened(nothing)
    assert same(opened(some), expected)
    assert same(opened(all_), expected)


def test_ids_that_are_names_become_places(opened):
    def named(content):
        names = {one["id"]: f"image {one['id']}" for one in content["images"]}
        for one in content["images"]:
            one["id"] = names[one["id"]]
        for one in content["annotations"]:
            one["image_id"] = names[one["image_id"]]

    dataset, expected = opened(named), opened(nothing)
    assert [one.id for one in dataset.images] == [1, 2, 3, 4, 5, 6]
    for index in range(6):
        assert dataset.annotation(index).rles == expected.annotation(index).rles


def test_a_category_listed_again_is_one(opened):
    dataset = opened(lambda content: content["categories"].extend(content["categories"] * 5))
    assert dataset.class_names == ["shrimp", "fish", "unused", "crab"]
    with pytest.raises(InputError, match="category 7 has an id that is used twice"):
        opened(lambda content: content["categories"].append({"id": 7, "name": "used"}))


# --- Roboflow -------------------------------------------------------------------------------------


def invented(content):
    """The class 0 that groups the others and has no objects; areas of boxes."""
    for one in content["categories"]:
        one["supercategory"], one["id"] = "fish", one["id"] + 1
    for one in content["annotations"]:
        one["category_id"] += 1
        x, y, w, h = one["bbox"] = [1, 2, 11.5, 7.25]
        one["area"] = round(w * h, 3)
    content["categories"].append({"id": 0, "name": "fish", "supercategory": "none"})


def test_an_invented_class_is_left_out(opened):
    dataset = opened(invented)
    assert [(one.id, one.name) for one in dataset.categories] == [
        (1, "shrimp"), (4, "fish"), (8, "unused"), (91, "crab"),
    ]  # fmt: skip
    assert "class 'fish' is left out: no object has it" in dataset.summary()

    def used(content):
        invented(content)
        content["annotations"][0]["category_id"] = 0

    assert opened(used).class_names[0] == "fish" and len(opened(used).categories) == 5

    def alone(content):  # an unused class that groups no other
        invented(content)
        for one in content["categories"]:
            one["supercategory"] = "none"

    assert len(opened(alone).categories) == 5


@pytest.mark.parametrize("factor", [1, 1.000004])
def test_areas_of_boxes_are_not_those_of_masks(opened, tiny_coco, factor):
    def boxes(content):
        invented(content)
        for one in content["annotations"]:
            one["area"] *= factor

    dataset = opened(boxes)
    areas = [one["area"] for one in dataset.ground_truth()["annotations"]]
    assert areas == [mask.sum() for mask in tiny_coco.masks.values()]
    assert "areas are those of boxes" in dataset.summary()


@pytest.mark.parametrize("factor", [0.5, 1.1, 40])
def test_other_areas_of_a_file_are_kept(opened, factor):
    """As the COCO tools count them, whatever they are."""

    def other(content):
        invented(content)
        content["annotations"][3]["area"] *= factor

    dataset = opened(other)
    assert [one["area"] for one in dataset.ground_truth()["annotations"]][0] == 83.375
    assert "its areas" not in dataset.summary()


def test_boxes_are_counted_and_ignored(opened):
    def boxed(content):
        content["annotations"][2].update(segmentation=[], bbox=[8, 4, 30, 30])
        content["annotations"][5].update(bbox=[4, 8, 32, 48])
        del content["annotations"][5]["segmentation"]

    dataset = opened(boxed)
    assert "2 boxes without masks" in dataset.summary() and " 5 objects" in dataset.summary()
    ignored = rle.decode([dataset.annotation(1).ignore], (64, 48))[0]
    assert ignored[4:34, 8:38].all()
    for empty in ([[]], [[], []], None, {}, ""):  # as other tools write it
        dataset = opened(lambda c, e=empty: (boxed(c), c["annotations"][2].update(segmentation=e)))
        assert dataset.dropped["boxes"] == 2
    with pytest.raises(InputError, match="annotation 8 of image 2 .* segmentation is empty"):
        opened(lambda content: content["annotations"][2].update(segmentation=[]))
    with pytest.raises(InputError, match="annotation 8 has category_id 5"):
        opened(lambda content: (boxed(content), content["annotations"][2].update(category_id=5)))


# --- other tools ----------------------------------------------------------------------------------


def test_outlines_may_be_one_flat_list(opened):
    flat = opened(lambda content: content["annotations"][2].update(segmentation=SQUARE))
    assert same(flat, opened(nothing))


def test_sizes_may_be_text_or_floats(opened):
    def written(content):
        for one in content["images"]:
            one.update(width=float(one["width"]), height=f"{one['height']}")

    assert same(opened(written), opened(nothing))
    with pytest.raises(InputError, match="image 5 has width 40.5"):
        opened(lambda content: content["images"][2].update(width=40.5))


def test_sizes_that_are_missing_are_those_of_the_files(opened, tiny_coco):
    def without(content):
        content["images"][1].update(width=0)
        for key in ("width", "height"):
            del content["images"][2][key]

    dataset = opened(without)
    assert (
        same(dataset, opened(nothing)) and "no size of 2 images, that of the" in dataset.summary()
    )
    Image.open(tiny_coco.images / "2.png").save(tiny_coco.images / "2.png", exif=turned())
    alone = opened(lambda content: (without(content), content.update(annotations=[])))
    assert alone.images[1][2:] == (64, 48)  # as displayed
    (tiny_coco.images / "5.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="image 5 has width None: it must be a whole number"):
        opened(without)
    (tiny_coco.images.parent / "outside.png").symlink_to(tiny_coco.images / "0.png")
    with pytest.raises(InputError, match="image 5 has width None"):
        opened(lambda c: (without(c), c["images"][2].update(file_name="../outside.png")))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_classes_that_were_not_looked_for_are_said(opened):
    def federated(content):
        for one in content["images"]:
            one.update(neg_category_ids=[3], not_exhaustive_category_ids=[])

    dataset = opened(federated)
    assert same(dataset, opened(nothing))
    assert "counts as absent there, also in scores" in dataset.summary()
    assert "absent" not in opened(nothing).summary()


def test_annotations_may_be_an_object_by_id(opened, tiny_coco):
    def by_id(content):
        content["annotations"] = {str(one.pop("id")): one for one in content["annotations"]}

    assert same(opened(by_id), opened(nothing))


@pytest.mark.parametrize("word", ["false", "False", "0", ""])
def test_iscrowd_may_be_text(opened, word):
    def text(content):
        for one in content["annotations"]:
            one["iscrowd"] = "true" if one["iscrowd"] else word

    assert same(opened(text), opened(nothing))
    with pytest.raises(InputError, match="annotation 8 has iscrowd 'maybe': it must be 0 or 1"):
        opened(lambda content: content["annotations"][2].update(iscrowd="maybe"))


@pytest.mark.parametrize("turned", [False, True])
def test_complex_polygons_are_objects(opened, turned):
    def complex_(content):
        for one in content["annotations"]:
            one["extra"] = {"instance_id": 5}
        one = content["annotations"][3]  # an uncompressed crowd
        one["area"] = 0
        if turned:
            one["segmentation"]["size"].reverse()

    dataset = opened(complex_)
    assert len(dataset.annotation(1).rles) == 2 and " 8 objects, 0 crowds" in dataset.summary()
    assert "1 complex polygon marked iscrowd, read as objects" in dataset.summary()


def test_names_of_files_are_read_from_addresses(opened, tiny_coco):
    (tiny_coco.images / "val2017").mkdir()
    (tiny_coco.images / "5.png").rename(tiny_coco.images / "val2017" / "5.png")

    def addresses(content):
        for one in content["images"]:
            name = one.pop("file_name")
            one["coco_url"] = f"http://images.cocodataset.org/val2017/{name}"
        content["images"] = content["images"][2:3]
        content["annotations"] = []

    assert opened(addresses).read(0)[0].size == (40, 40)


def test_results_are_refused_with_advice(tiny_coco):
    tiny_coco.json.write_text(json.dumps([{"image_id": 0, "category_id": 3, "score": 0.5}]))
    with pytest.raises(InputError, match="is a list of results, .*: give the json with the annota"):
        CocoDataset(tiny_coco.json, tiny_coco.images)
    tiny_coco.json.write_text("[]")
    with pytest.raises(InputError, match="is not a COCO file, its 'images' is not a list"):
        CocoDataset(tiny_coco.json, tiny_coco.images)


# --- real files -----------------------------------------------------------------------------------


FORMATS = "datasets/formats"
FILES = {  # file: (images, objects, crowds, boxes, classes)
    "coco/labelbox_instances.json": (10, 62, 0, 0, 80),
    "coco/terrain2_coco.json": (1, 5, 0, 0, 1),
    "cvat_coco/brush_rle_first30.json": (30, 35, 0, 0, 1),
    "cvat_coco/car_interior/instances_default.json": (6, 29, 0, 0, 23),
    "labelme/labelme2coco_output/annotations.json": (3, 12, 0, 0, 21),
    "lvis/lvis_val_first30.json": (30, 318, 0, 0, 1230),
    "roboflow_coco/dogs_first80.json": (80, 89, 0, 0, 1),
    "roboflow_coco/leaf_boxes/_annotations.coco.json": (17, 0, 0, 52, 1),
    "roboflow_coco/leaf_veins/train/_annotations.coco.json": (2, 20, 0, 0, 2),
    "roboflow_coco/leaf_veins/valid/_annotations.coco.json": (2, 19, 0, 0, 2),
    "via/export/via_export_coco.json": (6, 18, 0, 0, 3),
}


def counted(content):
    """Numbers from the raw file alone: images, objects, crowds, boxes, classes."""
    shaped = [one for one in content["annotations"] if one.get("segmentation")]
    crowds = [one for one in shaped if one.get("iscrowd") and "attributes" not in one]
    used = {one["category_id"] for one in content["annotations"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    parents = {one.get("supercategory") for one in content["categories"]}
    if 0 in names and 0 not in used and names[0] in parents:
        del names[0]
    boxes = len(content["annotations"]) - len(shaped)
    return len(content["images"]), len(shaped) - len(crowds), len(crowds), boxes, len(names)


def drawn(segmentation, height, width):
    """A mask by the COCO tools alone."""
    flat = isinstance(segmentation, list) and isinstance(segmentation[0], (int, float))
    found = coco_mask.frPyObjects([segmentation] if flat else segmentation, height, width)
    return coco_mask.decode(found if isinstance(found, dict) else coco_mask.merge(found)) > 0


@pytest.mark.filterwarnings("ignore:.*brush masks")
@pytest.mark.parametrize("name", FILES)
def test_real_files(shared, tmp_path, name):
    path = shared / FORMATS / name
    content = json.loads(path.read_text())
    assert counted(content) == FILES[name]
    for one in content["images"]:  # most images are not there, their names suffice
        (tmp_path / one["file_name"]).parent.mkdir(exist_ok=True)
        (tmp_path / one["file_name"]).touch()
    dataset = CocoDataset(path, tmp_path)
    truth = dataset.ground_truth()["annotations"]
    objects = dataset.objects_per_image().sum()
    boxes = dataset.dropped["boxes"]
    assert not len(dataset.bad) and dataset.dropped["parts"] == 0
    empty = dataset.dropped["objects"]
    assert (len(dataset), objects + empty, len(truth) - objects - boxes, boxes) == FILES[name][:4]
    assert len(dataset.categories) == FILES[name][4]
    wanted = {}
    for one in content["annotations"]:
        if one["segmentation"]:
            wanted.setdefault(str(one["image_id"]), []).append(one["segmentation"])
    left = 0
    for index, record in enumerate(dataset.images):
        size = record.height, record.width
        found = rle.decode(dataset.annotation(index).rles, size)
        masks = [drawn(one, *size) for one in wanted.get(str(record.id), [])]
        left += sum(not mask.any() for mask in masks)
        assert np.array_equal(found, [mask for mask in masks if mask.any()] or found[:0])
    assert left == empty


def test_what_other_readers_left_out_is_ignored_and_counted(opened):
    """`broken` and `counts`, as a conversion to this format writes them."""

    def converted(content):
        content["annotations"][2]["broken"] = True
        del content["annotations"][2]["category_id"]
        content["counts"] = [["lines and points", 3]]

    dataset = opened(converted)
    assert len(dataset.annotation(1).rles) == 0 and not len(dataset.bad)
    assert rle.decode([dataset.annotation(1).ignore], (64, 48))[0][4:34, 8:38].all()
    assert "lines and points left out: 3" in dataset.summary()
