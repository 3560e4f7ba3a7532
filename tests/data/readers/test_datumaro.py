"""data/readers/datumaro.py: shapes, groups and crowds, made here and real."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data import rle
from data.errors import BadRecords, InputError
from data.opening import open_datasets
from data.readers import coco, datumaro

H, W = 20, 30
SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
RIGHT = [20, 0, 24, 0, 24, 10, 20, 10]


def mask():
    dense = np.zeros((H, W), np.uint8, order="F")
    dense[5:15, 5:25] = 1
    dense[8:12, 10:20] = 0  # a hole
    return dense


def compressed():
    one = coco_mask.encode(mask())
    return {"counts": one["counts"].decode(), "size": one["size"]}


def shape(kind, label=0, group=0, **more):
    return {"id": 1, "type": kind, "attributes": {}, "group": group, "label_id": label, **more}


@pytest.fixture
def make(tmp_path):
    """Writes a set of one image with these shapes, after a change of its json."""

    def write(*shapes, change=lambda content: None, subset="default"):
        content = {
            "info": {},
            "categories": {"label": {"labels": [{"name": "crab", "parent": ""}, {"name": "fish"}]}},
            "items": [
                {"id": "a", "annotations": list(shapes), "image": {"path": "a.jpg", "size": [H, W]}}
            ],
        }
        change(content)
        root = tmp_path / "set"
        for folder in ("annotations", f"images/{subset}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / f"annotations/{subset}.json").write_text(json.dumps(content))
        Image.new("RGB", (W, H)).save(root / f"images/{subset}/a.jpg")
        return root

    return write


def read(root, split="all", skip=True):
    bad = BadRecords(skip)
    return datumaro.read(datumaro.find(root)[split], bad), list(bad)


def dense(one):
    return rle.decode([rle.from_annotation(one["segmentation"], H, W)], (H, W))[0]


@pytest.mark.filterwarnings("ignore:.*all objects of crab")
def test_shapes(make):
    root = make(
        shape("polygon", 1, points=SQUARE),
        shape("mask", rle=compressed(), attributes={"is_crowd": True}),
        shape("bbox", 1, bbox=[1.0, 2.0, 3.0, 4.5]),
        shape("points", points=[1, 2]),
        shape("caption", caption="a crab"),
    )
    content, bad = read(root)
    assert content["categories"] == [{"id": 1, "name": "crab"}, {"id": 2, "name": "fish"}]
    polygon, crowd, box = content["annotations"]
    assert polygon["segmentation"] == [SQUARE] and polygon["category_id"] == 2
    assert (dense(crowd) == mask()).all() and (polygon["iscrowd"], crowd["iscrowd"]) == (0, 1)
    assert box["segmentation"] == [] and box["bbox"] == [1, 2, 3, 4.5] and box["corners"]
    assert [*content["counts"].values()] == [2] and not bad
    dataset = open_datasets(root, splits=("all",), cache=root / "cache", progress=False)["all"]
    assert " 1 object, 1 crowd" in dataset.summary()


def test_a_group_is_one_object(make):
    content, bad = read(
        make(
            shape("polygon", 0, 5, points=SQUARE),
            shape("bbox", 0, 5, bbox=[2, 3, 22, 10]),
            shape("polygon", 0, 5, points=RIGHT),
            shape("polygon", 1, 5, points=RIGHT),
            shape("mask", 0, 6, rle=compressed()),
            shape("polygon", 0, 6, points=SQUARE),
            shape("polygon", 0, 0, points=SQUARE),
            shape("polygon", 0, 0, points=SQUARE),
        )
    )
    two, other, union, *alone = content["annotations"]
    assert two["segmentation"] == [SQUARE, RIGHT] and other["segmentation"] == [RIGHT]
    expected = mask().astype(bool)
    expected[3:13, 2:12] = True
    assert (dense(union) == expected).all() and len(alone) == 2 and not bad


BAD = {
    "no label": (shape("polygon", None, points=SQUARE), "label_id None where there are 2 labels"),
    "a label beyond": (shape("polygon", 2, points=SQUARE), "label_id 2 where"),
    "two points": (shape("polygon", points=[1, 2, 3, 4]), "at least 6 coordinates"),
    "no points": (shape("polygon"), "has None where finite numbers are needed"),
    "far away": (shape("polygon", points=[1e9, *SQUARE[1:]]), "far outside the image"),
    "text": (shape("polygon", points=["1", *SQUARE[1:]]), "numbers are needed"),
    "another size": (shape("mask", rle={"counts": "06", "size": [2, 3]}), r"size \[2, 3\] where"),
    "no mask": (shape("mask"), "has no 'rle'"),
    "a truncated mask": (
        shape("mask", rle={"counts": compressed()["counts"][:-2], "size": [H, W]}), "its RLE"
    ),
    "three sides": (shape("bbox", bbox=[1, 2, 3]), "where 4 numbers are needed"),
    "no type": ({"label_id": 0}, "has no 'type'"),
    "no record": (5, "has another form"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_shapes_that_cannot_be_used_are_named(make, name):
    one, words = BAD[name]
    root = make(shape("polygon", points=SQUARE), one)
    with pytest.raises(InputError, match=f"default.json: item 'a', annotation 2 .*{words}"):
        read(root, skip=False)
    content, bad = read(root)
    assert len(bad) == 1 and [one.get("broken") for one in content["annotations"]] == [None, True]


def test_a_group_with_a_broken_part_is_ignored(make):
    root = make(shape("polygon", 1, 7, points=SQUARE), shape("polygon", 1, 7, points=[1, 2]))
    (one,) = read(root)[0]["annotations"]
    assert one["broken"] and one["category_id"] == 2 and one["segmentation"] == [SQUARE]


def test_labels_of_one_name_are_one_class(make):
    def change(content):
        content["categories"]["label"]["labels"].insert(1, {"name": "crab", "parent": "fish"})

    shapes = [shape("polygon", number, points=SQUARE) for number in range(3)]
    content, bad = read(make(*shapes, change=change))
    assert [one["category_id"] for one in content["annotations"]] == [1, 1, 2] and not bad


def test_boxes_of_a_group_are_one_object(make):
    boxes = shape("bbox", 0, 3, bbox=[1, 2, 3, 4]), shape("bbox", 0, 3, bbox=[11, 2, 3, 5])
    (one,) = read(make(*boxes))[0]["annotations"]
    assert one["bbox"] == [1, 2, 13, 5] and len(one["corners"]) == 16


ITEMS = {
    "no id": (lambda one: one.pop("id"), "item 1 has no 'id'"),
    "no annotations": (lambda one: one.pop("annotations"), "item 'a' has no 'annotations'"),
    "a path outside": (lambda one: one["image"].update(path="../../b.jpg") or one.update(id="b"),
                       "leads out"),
    "no size": (lambda one: one["image"].update(path="b.jpg", size=None) or one.update(id="b"),
                "without a size, which is not in"),
    "half a size": (lambda one: one["image"].update(size=[1.5, 2]), "which is no size"),
    "no image": (lambda one: one.pop("image") and one.update(id="b"), "its image is not in"),
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
def test_items_that_cannot_be_used_are_named(make, name):
    change, words = ITEMS[name]
    root = make(shape("polygon", points=SQUARE), change=lambda content: change(content["items"][0]))
    with pytest.raises(InputError, match=f"default.json: {words}|default.json: item .*{words}"):
        read(root, skip=False)
    assert len(read(root)[1]) == 1


def test_images_are_found_by_the_id_of_their_item(make):
    for change in (
        lambda content: content["items"][0].pop("image"),
        lambda content: content["items"][0]["image"].pop("size"),
        lambda content: content["items"][0]["image"].update(path="/home/me/a.jpg"),
    ):
        content, bad = read(make(shape("polygon", points=SQUARE), change=change))
        (image,) = content["images"]
        assert (image["file_name"], image["width"], image["height"]) == ("a.jpg", W, H) and not bad


def test_subsets(make, tmp_path):
    for subset in ("train", "Validation"):
        root = make(shape("polygon", points=SQUARE), subset=subset)
    found = datumaro.find(root)
    assert [*found] == ["val", "train"] and coco.find(root) is None
    assert found["val"].images[0].name == "Validation"
    assert [*datumaro.find(root / "annotations/train.json")] == ["all"]
    assert datumaro.find(root / "images") is None and datumaro.find(tmp_path / "none.json") is None


@pytest.mark.parametrize("name", ["diverse", "with_pcd", "with_skeleton"])
def test_real_files(shared, name):
    root = shared / "datasets/formats/datumaro" / name
    sources = datumaro.find(root)
    for split, source in sources.items():
        raw = json.loads(source.path.read_text())
        labels = [one["name"] for one in raw["categories"]["label"]["labels"]]
        content, bad = read(root, split)
        assert [one["name"] for one in content["categories"]] == labels
        pictured = [one for one in raw["items"] if "image" in one]
        assert len(content["images"]) == len(pictured)
        shapes = [
            one for item in pictured for one in item["annotations"]
            if one["type"] in ("polygon", "mask", "bbox")
        ]  # fmt: skip
        assert len(content["annotations"]) == len(shapes)
        boxes = [one for one in shapes if one["type"] == "bbox" and one["label_id"] is not None]
        assert sum("corners" in one for one in content["annotations"]) == len(boxes)
        expected = {
            ("diverse", "train"): ([1, 3, 1, 2], 3),  # a box without a label, a mask of another
            ("diverse", "val"): ([0, 0, 0, 0], 1),  # size, items without an image
            ("diverse", "test"): ([0, 0, 0, 0], 0),
            ("diverse", "all"): ([1, 0, 0, 0], 0),
        }.get((name, split), ([len(pictured), 0, 0, 0], 0))
        broken = sum("broken" in one for one in content["annotations"])
        assert ([len(pictured), len(shapes), len(boxes), broken], len(bad)) == expected
    assert len(sources) == (4 if name == "diverse" else 1)
