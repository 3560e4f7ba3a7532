"""data/readers/huggingface.py: red is the class, green the object."""

import json

import numpy as np
import pytest
from PIL import Image

from data import readers, rle
from data.errors import BadRecords, InputError
from data.readers import huggingface

SIZE = 12, 16  # (h, w)


def colours(*areas):
    """A map with areas (rows, columns, colour)."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for rows, columns, colour in areas:
        pixels[rows, columns] = colour
    return pixels


def write(folder, names=None, **maps):
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, pixels in maps.items():
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(pixels).save(folder / "annotations" / f"{name}.png")
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(names))
    return folder


LEFT, RIGHT, LOW = (slice(1, 5), slice(1, 6)), (slice(1, 5), slice(8, 12)), (slice(7, 9),) * 2


def test_objects_and_areas_without(tmp_path, read):
    pixels = colours((*LEFT, (3, 1, 0)), (*RIGHT, (3, 2, 0)), (*LOW, (9, 0, 0)))
    folder = write(tmp_path, {"3": "crab", "9": "sea"}, a=pixels, b=colours((*LOW, (9, 1, 0))))
    content = read(folder)
    names = {one["id"]: one["name"] for one in content["categories"]}
    assert names == {1: "crab", 2: "sea"}
    assert [one["category_id"] for one in content["annotations"]] == [1, 1, 2]
    for place, area in zip(content["annotations"], (LEFT, RIGHT, LOW), strict=True):
        mask = np.zeros(SIZE, bool)
        mask[area] = True
        assert (rle.decode([place["segmentation"]], SIZE)[0] == mask).all()
    assert content["counts"] == {"areas without objects": 1}
    assert readers.recognise(tmp_path)["all"].reader is huggingface


@pytest.mark.parametrize("maps", huggingface.MAPS)
def test_folders_of_splits(tmp_path, maps):
    write(tmp_path, {"0": "background", "3": "crab"}, a=colours((*LEFT, (3, 1, 0))))
    for split in ("training", "validation"):
        for part, suffix, new in (("images", "jpg", "images"), ("annotations", "png", maps)):
            target = tmp_path / "set" / new / split / f"a.{suffix}"
            target.parent.mkdir(parents=True)
            target.write_bytes((tmp_path / part / f"a.{suffix}").read_bytes())
    (tmp_path / "id2label.json").rename(tmp_path / "set" / "id2label.json")
    found = huggingface.find(tmp_path / "set")
    assert {split: list(one.names) for split, one in found.items()} == {
        "train": ["training/a.png"],
        "val": ["validation/a.png"],
    }
    content = huggingface.read(found["val"], BadRecords())
    assert content["images"][0]["file_name"] == "validation/a.jpg"
    assert content["categories"] == [{"id": 1, "name": "crab"}]


def test_classes_without_names(tmp_path, read):
    content = read(write(tmp_path, a=colours((*LEFT, (12, 1, 0)), (*RIGHT, (3, 1, 0)))))
    assert [one["name"] for one in content["categories"]] == ["class 003", "class 012"]


@pytest.mark.parametrize("colour", [(3, 1, 7), (3, 0, 0), (0, 3, 0)])
def test_other_colours_are_not_recognised(tmp_path, colour):
    assert huggingface.find(write(tmp_path, a=colours((*LEFT, colour)))) is None


def test_what_does_not_fit_is_one_sentence(tmp_path, read):
    maps = {name: colours((*LEFT, (3, 1, 0))) for name in ("a", "b", "c", "d", "d2", "e")}
    folder = write(tmp_path, **maps, f=colours((*LEFT, (3, 1, 7))), g=np.zeros((5, 5, 3), np.uint8))
    (folder / "images/e.jpg").unlink()
    with pytest.raises(InputError, match=r"e\.png has no image"):
        read(folder)
    reasons = [reason for _, reason in read(folder, skip=True)["bad"]]
    assert [reason.split("/")[-1].split()[0] for reason in reasons] == ["e.png", "f.png", "g.png"]
    assert "with blue" in reasons[1] and "5 x 5" in reasons[2]
    (folder / "id2label.json").write_text('["crab"]')
    with pytest.raises(InputError, match=r"id2label\.json is no table of classes"):
        read(folder)
