"""data/readers/voc.py: VOC and SBD maps against plain numpy, and the messages of wrong ones."""

import json
import shutil

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError
from data.readers import voc

PALETTE = [(37 * i) % 256 for i in range(768)]  # colours that are not the indices


def save_map(path, indices):
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette(PALETTE)
    picture.save(path)


def write_voc(root, maps, lists):
    """maps: name -> (class map, object map); lists: split -> names."""
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, (classes, objects) in maps.items():
        Image.new("RGB", classes.shape[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
        save_map(root / "SegmentationClass" / f"{name}.png", classes)
        save_map(root / "SegmentationObject" / f"{name}.png", objects)
    for split, names in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def two_boxes():
    """Two touching objects with a void border; object 2's class is disputed."""
    classes, objects = np.zeros((2, 30, 40), dtype=np.uint8)
    classes[5:20, 5:18], objects[5:20, 5:18] = 12, 1
    classes[5:20, 20:35], objects[5:20, 20:35] = 15, 2
    classes[5:8, 20:35] = 7  # a minority
    classes[5:20, 18:20] = objects[5:20, 18:20] = 255
    classes[5:20, 17] = 255  # void in one map only
    objects[19, 20:35] = 255
    return classes, objects


@pytest.fixture
def voc_root(tmp_path):
    empty = np.zeros((20, 25), dtype=np.uint8)
    maps = {"a": two_boxes(), "b": (empty, empty), "c": two_boxes()}
    root = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    return write_voc(root, maps, {"train": ["a", "b"], "val": ["c"], "trainval": "abc"})


def test_objects_take_the_class_of_the_majority_and_leave_void_out(voc_root):
    content = voc.convert(voc_root, "train", progress=False)
    classes, objects = two_boxes()
    void = (classes == 255) | (objects == 255)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 30)
    assert (rle.decode([rle.from_json(content["images"][0]["void"])], (30, 40))[0] == void).all()
    assert "void" not in content["images"][1]
    assert [a["category_id"] for a in content["annotations"]] == [12, 15]
    masks = rle.decode([rle.from_json(a["segmentation"]) for a in content["annotations"]], (30, 40))
    assert (masks[0] == ((objects == 1) & ~void)).all()
    assert (masks[1] == ((objects == 2) & ~void)).all()
    assert [category["name"] for category in content["categories"]] == voc.CLASS_NAMES
    assert [category["id"] for category in content["categories"]] == list(range(1, 21))


def test_the_written_file_is_a_set_with_void(voc_root, tmp_path):
    content = voc.convert(voc_root, "train", progress=False)
    path = voc.write_json(content, tmp_path / "out" / "train.json")
    assert [file.name for file in path.parent.iterdir()] == ["train.json"]
    dataset = CocoDataset(path, voc_root / "JPEGImages")
    assert dataset.has_void and len(dataset) == 2
    assert dataset.read(0)[1].labels.tolist() == [11, 14]
    assert dataset.read(1)[1].labels.tolist() == []


def test_real_voc_pictures_against_plain_numpy(shared, tmp_path):
    real = shared / "datasets" / "VOC" / "VOCdevkit" / "VOC2012"
    names = voc.names_of(real, "trainval")[::55]
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / part).symlink_to(real / part)
    (root / "ImageSets" / "Segmentation" / "some.txt").write_text("\n".join(names))
    content = voc.convert(root, "some", progress=False)
    assert len(content["images"]) == len(names) > 15
    rows = iter(content["annotations"])
    for name, image in zip(names, content["images"], strict=True):
        classes = np.array(Image.open(real / "SegmentationClass" / f"{name}.png"))
        objects = np.array(Image.open(real / "SegmentationObject" / f"{name}.png"))
        void = (classes == 255) | (objects == 255)
        if void.any():
            region = rle.decode([rle.from_json(image["void"])], void.shape)[0]
            assert (region == void).all()
        for id_ in range(1, 255):
            mask = (objects == id_) & ~void
            if mask.any():
                row = next(rows)
                assert (rle.decode([rle.from_json(row["segmentation"])], mask.shape) == mask).all()
                named = classes[mask][classes[mask] > 0]
                assert (named == row["category_id"]).sum() * 2 > len(named)
                assert row["area"] == mask.sum() and row["image_id"] == image["id"]
    assert next(rows, None) is None


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_folder_is_found_from_above(voc_root, up):
    place = [voc_root, *voc_root.parents][up]
    assert voc.find_root(place) == voc_root


def test_a_folder_without_voc_is_none(tmp_path):
    assert voc.find_root(tmp_path) is None
    (tmp_path / "JPEGImages").mkdir()
    assert voc.find_root(tmp_path) is None


@pytest.mark.parametrize(
    "part", ["JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"]
)
def test_half_a_voc_folder_is_named(voc_root, part):
    shutil.rmtree(voc_root / part)
    with pytest.raises(InputError, match=f"VOC2012 is no whole VOC folder, {part} is missing"):
        voc.find_root(voc_root.parents[1])


def test_an_empty_voc_folder_is_named(tmp_path):
    (tmp_path / "VOCdevkit" / "VOC2012").mkdir(parents=True)
    with pytest.raises(InputError, match="JPEGImages, .*are missing"):
        voc.find_root(tmp_path)


def list_of(root, split):
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


WRONG = {
    "no list": (lambda root: list_of(root, "train").unlink(), r"train\.txt is missing"),
    "empty list": (lambda root: list_of(root, "train").write_text("\n"), r"train\.txt is empty"),
    "no picture": (
        lambda root: (root / "JPEGImages" / "b.jpg").unlink(),
        r"train\.txt lists b but .*b\.jpg is missing",
    ),
    "no map": (
        lambda root: (root / "SegmentationObject" / "a.png").unlink(),
        r"train\.txt lists a but .*SegmentationObject/a\.png is missing",
    ),
    "other size": (
        lambda root: save_map(root / "SegmentationObject" / "a.png", np.zeros((30, 41))),
        r"SegmentationObject/a\.png is 41 x 30 where its picture a\.jpg is 40 x 30",
    ),
    "colours": (
        lambda root: Image.new("RGB", (40, 30)).save(root / "SegmentationClass" / "a.png"),
        r"SegmentationClass/a\.png is a picture of mode RGB",
    ),
    "broken map": (
        lambda root: (root / "SegmentationClass" / "a.png").write_bytes(b"no picture"),
        r"SegmentationClass/a\.png cannot be read",
    ),
    "broken picture": (
        lambda root: (root / "JPEGImages" / "a.jpg").write_bytes(b"no picture"),
        r"JPEGImages/a\.jpg cannot be read",
    ),
    "object on background": (
        lambda root: save_map(root / "SegmentationClass" / "a.png", np.zeros((30, 40))),
        r"SegmentationObject/a\.png: object 1 lies on background only",
    ),
    "class without a name": (
        lambda root: save_map(root / "SegmentationClass" / "a.png", np.full((30, 40), 21)),
        r"a\.png uses class 21 but only 20 classes have names: .*classes\.txt",
    ),
    "empty names": (lambda root: (root / "classes.txt").write_text(""), r"classes\.txt is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(voc_root, tmp_path, name):
    change, words = WRONG[name]
    change(voc_root)
    out = tmp_path / "out" / "train.json"
    with pytest.raises(InputError, match=words) as caught:
        voc.write_json(voc.convert(voc_root, "train", progress=False), out)
    assert "\n" not in str(caught.value)
    assert not out.parent.exists() or not any(out.parent.iterdir())


def test_own_classes_have_own_names(voc_root):
    save_map(voc_root / "SegmentationClass" / "a.png", np.full((30, 40), 2))
    (voc_root / "classes.txt").write_text("shrimp\n  crab \n\n")
    content = voc.convert(voc_root, "train", progress=False)
    expected = [{"id": 1, "name": "shrimp"}, {"id": 2, "name": "crab"}]
    assert content["categories"] == expected
    assert {a["category_id"] for a in content["annotations"]} == {2}


# --- SBD ------------------------------------------------------------------------------------------


def write_sbd(root, objects, categories, names):
    (root / "img").mkdir(parents=True)
    (root / "inst").mkdir()
    for name in names:
        Image.new("RGB", objects.shape[::-1]).save(root / "img" / f"{name}.jpg")
        kinds = np.array(categories, dtype=np.uint8).reshape(-1, 1)
        instances = {"Segmentation": objects, "Boundaries": [[0]], "Categories": kinds}
        scipy.io.savemat(root / "inst" / f"{name}.mat", {"GTinst": instances})
    return root


@pytest.fixture
def sbd_root(tmp_path):
    objects = np.zeros((30, 40), dtype=np.uint8)
    objects[2:10, 2:20], objects[12:28, 5:30] = 1, 2
    return write_sbd(tmp_path / "sbd", objects, [9, 15], ["a", "c", "d"])


def test_sbd_is_read_minus_the_val_pictures_of_voc(voc_root, sbd_root):
    without = voc.names_of(voc_root, "val")
    content = voc.read_sbd(sbd_root, without=without, progress=False)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "d.jpg"]
    assert [a["category_id"] for a in content["annotations"]] == [9, 15, 9, 15]
    assert [a["area"] for a in content["annotations"][:2]] == [8 * 18, 16 * 25]
    dataset = CocoDataset(content, sbd_root / "img")
    assert not dataset.has_void
    mask = rle.decode(dataset.read(1)[1].rles, (30, 40))
    assert mask[0, 2:10, 2:20].all() and mask[1, 12:28, 5:30].all()


@pytest.mark.parametrize("categories", [[9], [9, 21], [0, 9]])
def test_an_sbd_object_without_a_class_is_named(tmp_path, categories):
    objects = np.zeros((10, 12), dtype=np.uint8)
    objects[:4], objects[5:] = 1, 2
    root = write_sbd(tmp_path / "sbd", objects, categories, ["x"])
    with pytest.raises(InputError, match=r"x\.mat has an object without a class"):
        voc.read_sbd(root, progress=False)


def test_broken_sbd_files_are_named(sbd_root):
    (sbd_root / "inst" / "c.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"c\.mat cannot be read as SBD"):
        voc.read_sbd(sbd_root, progress=False)
    with pytest.raises(InputError, match=r"z\.mat is missing"):
        voc.read_sbd(sbd_root, names=["z"], progress=False)
    with pytest.raises(InputError, match="holds no picture to use"):
        voc.read_sbd(sbd_root, without=["a", "c", "d"], progress=False)
    Image.new("RGB", (41, 30)).save(sbd_root / "img" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.mat is 40 x 30 .* a\.jpg is 41 x 30"):
        voc.read_sbd(sbd_root, progress=False)
    shutil.rmtree(sbd_root / "img")
    with pytest.raises(InputError, match="img is missing"):
        voc.read_sbd(sbd_root, progress=False)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        voc.write_json({"a": object()}, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    voc.write_json({"a": 1}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
