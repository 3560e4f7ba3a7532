"""data/writers/content.py: what is read of a COCO json, and the classes of several splits."""

import json

import numpy as np
import pytest

from data.errors import BadRecords, InputError
from data.writers import content

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]
BRUSH = {"size": [20, 30], "counts": [0, 60, 540]}


def load(tmp_path, annotations, skip=False, **options):
    images = [{"id": 4, "file_name": "a.png", "width": 30, "height": 20}]
    categories = [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}]
    for one in annotations:
        one |= {"image_id": 4}
    path = tmp_path / "x.json"
    whole = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(whole))
    notes, bad = [], BadRecords(skip)
    return content.load(path, bad, notes, **options), notes, len(bad)


def test_ids_are_kept_or_replaced(tmp_path):
    ids = [7, None, 3, 7, "x"]
    rows = [{"id": id_, "category_id": 2, "segmentation": SQUARE} for id_ in ids]
    found, _, _ = load(tmp_path, rows)
    assert [one["id"] for one in found["annotations"]] == [7, 8, 3, 9, 10]
    assert found["categories"] == [{"id": 2, "name": "a"}, {"id": 9, "name": "b"}]


def brush(id_, category):
    return {"id": id_, "category_id": category, "segmentation": BRUSH, "iscrowd": 1,
            "attributes": {"occluded": False}}  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_brush_masks_of_a_class_that_has_no_other_masks(tmp_path, keep):
    rows = [
        brush(1, 2),
        {"id": 2, "category_id": 2, "segmentation": [], "bbox": [1, 2, 3, 4]},
        brush(3, 9),
        {"id": 4, "category_id": 9, "segmentation": SQUARE},
    ]
    found, notes, _ = load(tmp_path, rows, keep_crowds=keep)
    assert [one["iscrowd"] for one in found["annotations"]] == [int(keep), 0, 1, 0]
    assert ["1 brush mask" in note for note in notes] == [True, True] * (not keep)
    assert found["annotations"][1]["bbox"] == [1, 2, 3, 4]


def test_all_crowds_are_objects_where_asked(tmp_path):
    crowd = {"id": 2, "category_id": 9, "segmentation": BRUSH, "iscrowd": 1}
    rows = [brush(1, 2), crowd, {"id": 3, "category_id": 2, "segmentation": SQUARE}]
    found, notes, _ = load(tmp_path, rows, crowd_as_instances=True)
    assert not any(one["iscrowd"] for one in found["annotations"]) and not notes


def test_what_cannot_be_used_is_left_out(tmp_path):
    rows = [
        {"id": 1, "category_id": 2, "segmentation": [[1, 1, float("nan"), 1, 9, 9]]},
        {"id": 2, "category_id": 2, "segmentation": [[40, 40, 50, 40, 50, 50]]},
        {"id": 3, "category_id": 2, "segmentation": SQUARE, "area": "large"},
    ]
    with pytest.raises(InputError, match="annotation 1 .*not finite"):
        load(tmp_path, [dict(one) for one in rows])
    found, notes, bad = load(tmp_path, rows, skip=True)
    (one,) = found["annotations"]
    assert one["id"] == 3 and "area" not in one and bad == 1
    assert np.array_equal(one["segmentation"][0], SQUARE[0])
    assert notes == ["1 object without pixels left out"]


def of_classes(**names):
    categories = [{"id": int(id_[1:]), "name": name} for id_, name in names.items()]
    annotations = [{"category_id": one["id"]} for one in categories]
    return {"categories": categories, "annotations": annotations}


def test_splits_get_the_classes_of_each():
    splits = {"train": of_classes(_1="a", _4="c"), "val": of_classes(_2="b", _4="c")}
    content.join_classes(splits)
    for split in splits.values():
        assert [one["id"] for one in split["categories"]] == [1, 2, 4]
    splits = {"train": of_classes(_1="a", _2="b"), "val": of_classes(_0="a", _1="b")}
    content.join_classes(splits)
    assert [one["category_id"] for one in splits["val"]["annotations"]] == [1, 2]
    splits = {"train": of_classes(_1="a"), "val": of_classes(_1="b")}
    with pytest.raises(InputError, match="class 1 is a in one split and b in val"):
        content.join_classes(splits)


def test_names_without_suffix_stay_apart():
    seen = set()
    names = ["a/b.png", "a_b.jpg", "A/B.png", "a_b_2.png", "c.png"]
    found = [content.unique_stem(name, seen) for name in names]
    assert found == ["a/b.png", "a_b_2.jpg", "A/B_3.png", "a_b_2_2.png", "c.png"]
