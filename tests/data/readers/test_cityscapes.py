"""data/readers/cityscapes.py: ids against plain numpy, and wrong folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.readers import cityscapes

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/cityscapes"
SIZE = (32, 64)


def ids():
    values = np.full(SIZE, 7, np.uint16)  # road
    values[:4], values[28:] = 0, 1  # void
    values[10:20, 5:15] = 26_000
    values[12:25, 20:30] = 26_002
    values[12:14, 40:50] = 24_001
    values[15:20, 40:60] = 26  # a group of cars
    values[5:9] = 23  # sky
    return values


def write(root, split="train", city="aachen", number=0, truth="gtFine", values=None):
    stem = f"{city}_{number:06}_000019"
    path = root / truth / split / city / f"{stem}_{truth}_instanceIds.png"
    image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    for folder in (path.parent, image.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids() if values is None else values).save(path)
    Image.new("RGB", SIZE[::-1]).save(image)
    return path


def check(content, values):
    """The annotations of one image, by hand."""
    numbers = [n for n in np.unique(values).tolist() if 24 <= n <= 33 or n >= 1000]
    masks = rle.decode([one["segmentation"] for one in content["annotations"]], values.shape)
    assert (masks == np.stack([values == number for number in numbers])).all()
    assert [one["category_id"] for one in content["annotations"]] == [
        number if number < 1000 else number // 1000 for number in numbers
    ]
    assert [one["iscrowd"] for one in content["annotations"]] == [int(n < 1000) for n in numbers]
    image = content["images"][0]
    assert (image["height"], image["width"]) == values.shape
    void = rle.decode([image["void"]], values.shape)[0] if "void" in image else 0 * values > 0
    assert (void == (values <= 6)).all()


def test_instances_groups_and_void(tmp_path, read):
    write(tmp_path)
    content = read(tmp_path)
    check(content, ids())
    assert content["images"][0]["file_name"] == "aachen/aachen_000000_000019_leftImg8bit.png"
    names = {one["id"]: one["name"] for one in content["categories"]}
    assert (names[24], names[26], names[33], len(names)) == ("person", "car", "bicycle", 10)


def test_splits_and_cities(tmp_path):
    for city in ("aachen", "bochum"):
        write(tmp_path, city=city)
    write(tmp_path, "val", "frankfurt")
    found = cityscapes.find(tmp_path)
    assert {split: len(source.names) for split, source in found.items()} == {"train": 2, "val": 1}
    assert found["val"].images == [tmp_path / "leftImg8bit/val"]
    assert cityscapes.find(tmp_path / "gtFine/train").keys() == {"all"}


def test_coarse_annotations_alone(tmp_path, read):
    write(tmp_path, "train_extra", truth="gtCoarse")
    check(read(tmp_path, "train_extra"), ids())


def test_other_folders(tmp_path):
    assert cityscapes.find(tmp_path) is None
    assert cityscapes.find(tmp_path / "file") is None
    (tmp_path / "gtFine/train/aachen").mkdir(parents=True)
    with pytest.raises(InputError, match="x_gtFine_instanceIds.png: unpack"):
        cityscapes.find(tmp_path)


WRONG = {
    "the number 8000": lambda path: Image.fromarray(ids() % 1000 + np.uint16(8000)).save(path),
    "the number 34": lambda path: Image.fromarray(np.full(SIZE, 34, np.uint8)).save(path),
    "63 x 32": lambda path: Image.fromarray(ids()[:, 1:]).save(path),
    "cannot be read": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_map_is_named_and_the_others_stay(tmp_path, reason, refused):
    WRONG[reason](write(tmp_path))
    write(tmp_path, number=1)
    content = refused(tmp_path, f"aachen_000000_000019_gtFine_instanceIds.png .*{reason}")
    assert len(content["images"]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(read):
    values = np.asarray(Image.open(next(REAL.glob("*_instanceIds.png"))))
    content = read(REAL, "all")
    check(content, values)
    assert len(content["images"]) == 1
