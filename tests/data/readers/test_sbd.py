"""data/readers/sbd.py: maps, the images that are left to VOC, and the messages of wrong files."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError


def write_sbd(root, objects, categories, names):
    (root / "img").mkdir(parents=True)
    (root / "inst").mkdir()
    for name in names:
        Image.new("RGB", objects.shape[::-1]).save(root / "img" / f"{name}.jpg")
        column = np.array(categories, dtype=np.uint8).reshape(-1, 1)
        instances = {"Segmentation": objects, "Boundaries": [[0]], "Categories": column}
        scipy.io.savemat(root / "inst" / f"{name}.mat", {"GTinst": instances})
    (root / "train.txt").write_text("\n".join(names))
    return root


@pytest.fixture
def sbd_root(tmp_path):
    objects = np.zeros((30, 40), dtype=np.uint8)
    objects[2:10, 2:20], objects[12:28, 5:30] = 1, 2
    return write_sbd(tmp_path / "sbd", objects, [9, 15], ["a", "c", "d"])


def test_maps_become_masks_without_void(sbd_root, read):
    content = read(sbd_root)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "c.jpg", "d.jpg"]
    assert [a["category_id"] for a in content["annotations"]] == [9, 15] * 3
    masks = [a["segmentation"] for a in content["annotations"][:2]]
    assert rle.area(masks).tolist() == [8 * 18, 16 * 25]
    annotation = CocoDataset(content, sbd_root / "img").read(1)[1]
    mask = rle.decode(annotation.rles, (30, 40))
    assert mask[0, 2:10, 2:20].all() and mask[1, 12:28, 5:30].all() and annotation.ignore is None


@pytest.mark.parametrize("categories", [[9], [9, 21], [0, 9]])
def test_an_object_without_a_class_is_named(tmp_path, categories, refused):
    objects = np.zeros((10, 12), dtype=np.uint8)
    objects[:4], objects[5:] = 1, 2
    root = write_sbd(tmp_path / "sbd", objects, categories, ["x"])
    content = refused(root, r"x\.mat has an object without a class")
    annotation = CocoDataset(content, root / "img", skip_bad=True).annotation(0)
    kept = [one["category_id"] for one in content["annotations"] if "broken" not in one]
    assert kept == [9] and len(annotation.labels) == 1
    region = objects == (2 if categories[0] else 1)
    assert (rle.decode([annotation.ignore], (10, 12))[0] == region).all()


def test_broken_files_are_named(sbd_root, read):
    (sbd_root / "inst" / "c.mat").write_bytes(b"no file of Matlab")
    with pytest.raises(InputError, match=r"c\.mat cannot be read as SBD"):
        read(sbd_root)
    Image.new("RGB", (41, 30)).save(sbd_root / "img" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.mat is 40 x 30 .* a\.jpg is 41 x 30"):
        read(sbd_root)
    for text, words in (
        ("z", r"z\.mat cannot be read as SBD \(FileNotFound"),
        ("", r"train\.txt is empty"),
    ):
        (sbd_root / "train.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            read(sbd_root)
