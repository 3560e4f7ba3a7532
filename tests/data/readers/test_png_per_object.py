"""data/readers/png_per_object.py: masks against plain numpy, and wrong folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.readers import id_images, png_per_object

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/dsb2018"
SIZE = (30, 40)


def masks_of(count=3):
    """Boxes that overlap."""
    masks = np.zeros((count, *SIZE), bool)
    for number in range(count):
        masks[number, 2 + number : 12 + number, 5 * number : 5 * number + 8] = True
    return masks


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write(images, masks, count=3):
    """images: path of the image. masks: folder."""
    save(images, np.zeros((*SIZE, 4), np.uint8))
    for number, mask in enumerate(masks_of(count)):
        save(masks / f"{number}f3a.png", mask.astype(np.uint8) * 255)


def write_dsb(root, names):
    for name in names:
        write(root / name / "images" / f"{name}.png", root / name / "masks")
    return root


def check(content, expected):
    masks = rle.decode([one["segmentation"] for one in content["annotations"]], SIZE)
    assert (masks == expected).all()
    assert content["categories"] == [{"id": 1, "name": "object"}]


def test_a_folder_for_each_image(tmp_path, read):
    write_dsb(tmp_path, ["aa", "bb"])
    save(tmp_path / "cc" / "images" / "cc.png", np.zeros(SIZE, np.uint8))
    content = read(tmp_path)
    check(content, np.concatenate([masks_of()] * 2))
    assert [one["file_name"] for one in content["images"]] == [
        "aa/images/aa.png",
        "bb/images/bb.png",
    ]
    assert [one["image_id"] for one in content["annotations"]] == [1, 1, 1, 2, 2, 2]
    assert content["counts"] == {"images without a folder of masks": 1}


def test_many_images_without_objects_first(tmp_path, read):
    write_dsb(tmp_path, ["z"])
    for name in "abcdefgh":
        save(tmp_path / name / "images" / f"{name}.png", np.zeros(SIZE, np.uint8))
        (tmp_path / name / "masks").mkdir()
    content = read(tmp_path)
    check(content, masks_of())
    assert len(content["images"]) == 9


def test_a_folder_of_masks_for_each_image(tmp_path, read):
    write(tmp_path / "images/a.jpg.tif", tmp_path / "masks/a.jpg")
    write(tmp_path / "images/b.tif", tmp_path / "masks/b", count=1)
    save(tmp_path / "images/c.tif", np.zeros(SIZE, np.uint8))
    content = read(tmp_path)
    check(content, np.concatenate([masks_of(), masks_of(1)]))
    assert [one["file_name"] for one in content["images"]] == ["images/a.jpg.tif", "images/b.tif"]
    assert content["counts"] == {"images without a folder of masks": 1}


@pytest.mark.parametrize(
    "image, masks",
    [
        ("Images/a.tif", "Masks/a"),
        ("images/a b.bmp", "labels/a b.bmp"),
        ("images/é/a.png", "instances/é/a"),
        ("001/image/photo.png", "001/mask"),
        ("a/a.png", "a/masks"),
    ],
)
def test_other_names_of_folders(tmp_path, image, masks, read):
    write(tmp_path / image, tmp_path / masks)
    content = read(tmp_path)
    check(content, masks_of())
    assert content["images"][0]["file_name"] == image


def test_splits_in_the_folders_of_images_and_masks(tmp_path, read):
    for place in ("train/a", "train/b", "valid/a"):
        write(tmp_path / "images" / f"{place}.png", tmp_path / "masks" / place)
    save(tmp_path / "images/valid/c.png", np.zeros(SIZE, np.uint8))
    found = png_per_object.find(tmp_path)
    assert {split: len(one.names) for split, one in found.items()} == {"train": 2, "val": 1}
    assert read(tmp_path, "val")["counts"] == {"images without a folder of masks": 1}
    assert not read(tmp_path, "train")["counts"]


def test_stages_are_splits(tmp_path, read):
    write_dsb(tmp_path / "stage1_train", ["a", "b"])
    write_dsb(tmp_path / "stage1_test", ["c"])
    assert len(read(tmp_path, "train")["images"]) == 2
    assert len(read(tmp_path, "test")["images"]) == 1
    for mask in (tmp_path / "stage1_test/c/masks").glob("*"):
        mask.unlink()
    assert png_per_object.find(tmp_path).keys() == {"train"}


def test_masks_of_other_kinds(tmp_path, read):
    write_dsb(tmp_path, ["a"])
    masks = masks_of()
    save(tmp_path / "a/masks/0f3a.png", masks[0])  # 1 bit
    save(tmp_path / "a/masks/1f3a.png", masks[1].astype(np.uint8))  # 0 and 1
    save(tmp_path / "a/masks/2f3a.png", np.stack([masks[2] * np.uint8(255)] * 3, 2))
    check(read(tmp_path), masks)


def test_id_images_are_another_layout(tmp_path):
    save(tmp_path / "set/images/a.png", np.zeros(SIZE, np.uint8))
    save(tmp_path / "set/masks/a.png", masks_of()[0].astype(np.uint8))
    assert png_per_object.find(tmp_path) is None
    assert png_per_object.find(tmp_path / "set") is None
    (tmp_path / "set/masks/a.png").rename(tmp_path / "set/masks/a_mask.png")
    assert png_per_object.find(tmp_path) is None
    assert png_per_object.find(tmp_path / "set/images/a.png") is None
    assert id_images.find(tmp_path / "set")
    save(tmp_path / "set/masks/train/a_1.png", masks_of()[0].astype(np.uint8))
    assert png_per_object.find(tmp_path / "set") is None


def two_images(root):
    save(root / "a/images/other.png", np.zeros(SIZE, np.uint8))


WRONG = {
    "one image of its own": two_images,
    "several numbers": lambda root: save(
        root / "a/masks/0f3a.png", np.arange(1200, dtype=np.uint16).reshape(SIZE)
    ),
    "41 x 30": lambda root: save(root / "a/masks/0f3a.png", np.zeros((30, 41), np.uint8)),
    "cannot be read": lambda root: (root / "a/masks/0f3a.png").write_bytes(b"\x89PNG"),
    "changes numbers": lambda root: Image.new("L", (40, 30)).save(root / "a/masks/0.jpg"),
    "image": lambda root: (root / "a/images/a.png").write_bytes(b"no image"),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_image_is_named_and_the_others_stay(tmp_path, reason, refused):
    WRONG[reason](write_dsb(tmp_path, ["a", "b"]))
    content = refused(tmp_path, rf"/a/\w+.*{reason}")
    assert [one["file_name"] for one in content["images"]] == ["b/images/b.png"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(read):
    content = read(REAL)
    files = sorted(REAL.glob("*/masks/*.png"))
    expected = np.stack([np.asarray(Image.open(file)) > 0 for file in files])
    masks = rle.decode([one["segmentation"] for one in content["annotations"]], (256, 256))
    assert len(files) == 27 and (masks == expected).all()
    images = [path.relative_to(REAL).as_posix() for path in REAL.glob("*/images/*")]
    assert [one["file_name"] for one in content["images"]] == images
