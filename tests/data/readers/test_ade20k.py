"""data/readers/ade20k.py: colours against plain numpy, and wrong files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.readers import ade20k

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/ade20k"
SIZE = (30, 40)
CAR, TREE = 401, 2855


def colour(class_, number):
    return class_ // 256 * 10, class_ % 256, number


def seg():
    values = np.zeros((*SIZE, 3), np.uint8)
    values[2:10, 3:13] = colour(CAR, 25)
    values[5:15, 20:33] = colour(CAR, 40)
    values[20:] = colour(TREE, 25)
    return values


def record(objects):
    return {
        "annotation": {
            "object": [
                {"name": name, "name_ndx": class_, "parts": {"part_level": level}}
                for name, class_, level in objects
            ]
        }
    }


OBJECTS = [("car, auto", CAR, 0), ("car, auto", CAR, 0), ("tree", TREE, 0), ("wheel", 2978, 1)]


def write(folder, stem="ADE_train_1", objects=OBJECTS, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(seg()).save(folder / f"{stem}_seg.png")
    Image.new("RGB", SIZE[::-1]).save(folder / f"{stem}.jpg")
    text = json.dumps(record(objects), ensure_ascii=False)
    (folder / f"{stem}.json").write_text(text, encoding=encoding)
    return folder


def check(content, values, names):
    """By hand: one object for each colour whose class has a name."""
    red, green, blue = (values[..., channel].astype(int) for channel in range(3))
    classes = red // 10 * 256 + green
    found = sorted({*zip(classes.ravel().tolist(), blue.ravel().tolist(), strict=True)})
    expected = {
        (names[class_], ((classes == class_) & (blue == number)).tobytes())
        for class_, number in found
        if class_ in names
    }
    categories = {one["id"]: one["name"] for one in content["categories"]}
    own = [one for one in content["annotations"] if "broken" not in one]
    masks = rle.decode([one["segmentation"] for one in own], values.shape[:2])
    pairs = zip(own, masks, strict=True)
    assert {(categories[one["category_id"]], mask.tobytes()) for one, mask in pairs} == expected
    assert len(own) == len(expected)


def test_colours_are_classes_and_objects(tmp_path, read):
    content = read(write(tmp_path))
    check(content, seg(), {CAR: "car, auto", TREE: "tree"})
    image = {"id": 1, "file_name": "ADE_train_1.jpg", "width": 40, "height": 30}
    assert content["images"] == [image]
    assert [one["name"] for one in content["categories"]] == ["car, auto", "tree"]
    assert content["counts"] == {"parts of objects": 1}


@pytest.mark.parametrize("root", ["", "images/ADE", "ADE20K_2021_17_01/images/ADE"])
def test_splits_and_scenes(tmp_path, root, read):
    write(tmp_path / root / "training/urban/street")
    write(tmp_path / root / "training/work_place/office/deep", "ADE_train_2")
    write(tmp_path / root / "validation/urban/street", "ADE_val_1")
    assert ade20k.find(tmp_path).keys() == {"train", "val"}
    names = [one["file_name"] for one in read(tmp_path, "train")["images"]]
    assert names == ["urban/street/ADE_train_1.jpg", "work_place/office/deep/ADE_train_2.jpg"]
    assert len(read(tmp_path / root / "validation")["images"]) == 1


def test_objects_without_a_name_are_ignored_and_counted(tmp_path, read):
    content = read(write(tmp_path, objects=OBJECTS[:2]))
    check(content, seg(), {CAR: "car, auto"})
    broken = [one for one in content["annotations"] if "broken" in one]
    assert len(broken) == 1 and content["counts"] == {"objects without a name": 1}


def test_other_encodings(tmp_path, read):
    objects = [("café", CAR, 0), ("tree", TREE, 0)]
    content = read(write(tmp_path, objects=objects, encoding="latin-1"))
    check(content, seg(), {CAR: "café", TREE: "tree"})


def test_other_folders(tmp_path):
    write(tmp_path)
    (tmp_path / "ADE_train_1.json").unlink()
    assert ade20k.find(tmp_path) is None
    assert ade20k.find(tmp_path / "ADE_train_1_seg.png") is None


WRONG = {
    "KeyError": lambda folder: (folder / "a.json").write_text("{}"),
    "TypeError": lambda folder: (folder / "a.json").write_text('{"annotation": {"object": 3}}'),
    "has the class": lambda folder: (folder / "a.json").write_text(
        json.dumps(record([("", CAR, 0)]))
    ),
    "JSONDecodeError": lambda folder: (folder / "a.json").write_text("{"),
    "RecursionError": lambda folder: (folder / "a.json").write_text("[" * 100_000),
    "41 x 30": lambda folder: Image.new("RGB", (41, 30)).save(folder / "a.jpg"),
    "save it again": lambda folder: (folder / "a_seg.png").write_bytes(b"\x89PNG"),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_image_is_named_and_the_others_stay(tmp_path, reason, refused):
    WRONG[reason](write(write(tmp_path, "a"), "b"))
    content = refused(tmp_path, rf"/a\w*\.\w+ .*{reason}")
    assert [one["file_name"] for one in content["images"]] == ["b.jpg"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(read):
    file = next(REAL.glob("*_seg.png"))
    objects = json.loads((REAL / f"{file.stem[:-4]}.json").read_text())["annotation"]["object"]
    whole = [one for one in objects if one["parts"]["part_level"] == 0]
    content = read(REAL)
    check(content, np.asarray(Image.open(file)), {one["name_ndx"]: one["name"] for one in whole})
    assert len(content["annotations"]) == len(whole) == 51
    assert content["counts"] == {"parts of objects": len(objects) - len(whole)}
    drawn = rle.decode([one["segmentation"] for one in content["annotations"]], (1536, 2048))
    masks = {one["instance_mask"] for one in whole}
    visible = [
        np.asarray(Image.open(path)) == 255
        for path in sorted(REAL.glob("*/instance_*.png"))
        if path.relative_to(REAL).as_posix() in masks
    ]
    assert visible and all((drawn == one).all((1, 2)).any() for one in visible)
