"""data/readers/class_table.py: classes beside masks, for one PNG per object and for id images."""

import numpy as np
import pytest
from PIL import Image

from data.errors import BadRecords, InputError
from data.readers import id_images, png_per_object


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(values)).save(path)


def dsb(root):
    masks = np.zeros((2, 8, 9))
    masks[0, :3], masks[1, 5:] = 255, 255
    save(root / "a" / "images" / "a.png", masks[0])
    for number, mask in enumerate(masks, start=1):
        save(root / "a" / "masks" / f"object_{number}.png", mask)
    return png_per_object


def numbered(root):
    values = np.zeros((8, 9))
    values[:3], values[5:] = 4, 7
    save(root / "images" / "a.png", values)
    save(root / "masks" / "a.png", values)
    return id_images


ROWS = {
    dsb: ["a/masks/object_2.png,1,fish", "a/masks/object_1.png,1,crab"],
    numbered: ["masks/a.png,7,fish", "masks/a.png,4,crab"],
}


def classes(reader, root):
    content = reader.read(reader.find(root)["all"], BadRecords())
    names = {one["id"]: one["name"] for one in content["categories"]}
    return [names[one["category_id"]] for one in content["annotations"]], [*names.values()]


@pytest.mark.parametrize("make", ROWS)
def test_classes_of_the_tables(tmp_path, make):
    reader = make(tmp_path)
    assert classes(reader, tmp_path) == (["object", "object"], ["object"])
    (tmp_path / "objects.csv").write_text("\n".join(["mask,number,class", *ROWS[make]]))
    (tmp_path / "classes.txt").write_text("unused\nfish\ncrab\n")
    assert classes(reader, tmp_path) == (["crab", "fish"], ["unused", "fish", "crab"])
    files = reader.find(tmp_path)["all"].files
    assert {tmp_path / "objects.csv", tmp_path / "classes.txt"} <= {*files}


@pytest.mark.parametrize(
    "table, wrong",
    [
        ("mask,class\na,b\n", "has no columns mask, number, class"),
        ("mask,number,class\na,x,b\n", "invalid literal"),
        ("mask,number,class\na\n", "correct it"),
        ("", "has no columns"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, wrong):
    reader = dsb(tmp_path)
    (tmp_path / "objects.csv").write_text(table)
    with pytest.raises(InputError, match=rf"objects.csv .*{wrong}"):
        classes(reader, tmp_path)
