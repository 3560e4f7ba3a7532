"""data/readers/voc.py: maps against plain numpy, and the messages of wrong ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.dataset import CocoDataset
from data.errors import InputError
from data.readers import voc

FORMATS = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats"
REAL = FORMATS / "labelme/labelme2voc_output"
PALETTE = [(37 * i) % 256 for i in range(768)]  # colours that are not the indices


def save_map(path, indices):
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(path)


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


def test_objects_take_the_class_of_the_majority_and_leave_void_out(voc_root, read):
    content = read(voc_root)
    classes, objects = two_boxes()
    void = (classes == 255) | (objects == 255)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 30)
    assert (rle.decode([content["images"][0]["void"]], (30, 40))[0] == void).all()
    assert "void" not in content["images"][1]
    assert [a["category_id"] for a in content["annotations"]] == [12, 15]
    masks = rle.decode([a["segmentation"] for a in content["annotations"]], (30, 40))
    assert (masks[0] == ((objects == 1) & ~void)).all()
    assert (masks[1] == ((objects == 2) & ~void)).all()
    assert [category["name"] for category in content["categories"]] == voc.CLASS_NAMES
    assert [category["id"] for category in content["categories"]] == list(range(1, 21))


def test_real_voc_images_against_plain_numpy(shared, tmp_path, read):
    real = shared / "datasets" / "VOC" / "VOCdevkit" / "VOC2012"
    names = voc.list_of(real, "trainval")[::55]
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / part).symlink_to(real / part)
    (root / "ImageSets" / "Segmentation" / "some.txt").write_text("\n".join(names))
    content = read(root, "some")
    assert len(content["images"]) == len(names) > 15
    rows = iter(content["annotations"])
    for name, image in zip(names, content["images"], strict=True):
        classes = np.array(Image.open(real / "SegmentationClass" / f"{name}.png"))
        objects = np.array(Image.open(real / "SegmentationObject" / f"{name}.png"))
        void = (classes == 255) | (objects == 255)
        if void.any():
            region = rle.decode([image["void"]], void.shape)[0]
            assert (region == void).all()
        for id_ in range(1, 255):
            mask = (objects == id_) & ~void
            if mask.any():
                row = next(rows)
                assert (rle.decode([row["segmentation"]], mask.shape) == mask).all()
                named = classes[mask][classes[mask] > 0]
                assert (named == row["category_id"]).sum() * 2 > len(named)
                assert row["image_id"] == image["id"]
    assert next(rows, None) is None


def test_the_folder_is_found_from_above(voc_root, tmp_path):
    for place in (voc_root, *voc_root.parents[:2]):
        assert voc.find_root(place) == voc_root
    assert voc.find_root(tmp_path) is None
    (tmp_path / "JPEGImages").mkdir()
    assert voc.find_root(tmp_path) is None


def test_every_list_is_a_split(voc_root):
    assert {split: one.names for split, one in voc.find(voc_root).items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    for split in ("train", "val"):
        list_of(voc_root, split).unlink()
    assert {split: one.names for split, one in voc.find(voc_root).items()} == {
        "all": ["a", "b", "c"]
    }
    list_of(voc_root, "trainval").unlink()
    assert voc.find(voc_root)["all"].names == ["a", "b", "c"]
    shutil.rmtree(voc_root / "ImageSets")
    assert voc.find(voc_root)["all"].names == ["a", "b", "c"]


def test_half_a_voc_folder_is_named(voc_root):
    for part in ("SegmentationClass", "SegmentationObject"):
        shutil.rmtree(voc_root / part)
        with pytest.raises(InputError, match=f"VOC2012 is not a whole VOC folder, .*{part}"):
            voc.find_root(voc_root.parents[1])
    shutil.rmtree(voc_root)
    voc_root.mkdir()
    with pytest.raises(InputError, match="lacks JPEGImages, .*: unpack"):
        voc.find_root(voc_root.parents[1])


def list_of(root, split):
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


WRONG = {
    "empty list": (lambda root: list_of(root, "train").write_text("\n"), r"train\.txt is empty"),
    "no image": (
        lambda root: (root / "JPEGImages" / "b.jpg").unlink(),
        r"train\.txt lists b but .*b\.jpg is missing",
    ),
    "no map": (
        lambda root: (root / "SegmentationObject" / "a.png").unlink(),
        r"train\.txt lists a but .*SegmentationObject/a\.png is missing",
    ),
    "other size": (
        lambda root: save_map(root / "SegmentationObject" / "a.png", np.zeros((30, 41))),
        r"SegmentationObject/a\.png is 41 x 30 where its image a\.jpg is 40 x 30",
    ),
    "colours": (
        lambda root: Image.new("RGB", (40, 30)).save(root / "SegmentationClass" / "a.png"),
        r"SegmentationClass/a\.png is an image of mode RGB",
    ),
    "broken map": (
        lambda root: (root / "SegmentationClass" / "a.png").write_bytes(b"no image"),
        r"SegmentationClass/a\.png cannot be read",
    ),
    "broken image": (
        lambda root: (root / "JPEGImages" / "a.jpg").write_bytes(b"no image"),
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
def test_what_is_wrong_is_named_in_one_sentence(voc_root, name, read):
    change, words = WRONG[name]
    change(voc_root)
    with pytest.raises(InputError, match=words) as caught:
        read(voc_root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [0, 21])
def test_the_region_of_a_broken_object_is_ignored(voc_root, wrong, read):
    """The other object of the image stays; void and the broken object are ignored."""
    classes, objects = two_boxes()
    classes[(objects == 2) & (classes != 255)] = wrong
    save_map(voc_root / "SegmentationClass" / "a.png", classes)
    content = read(voc_root, skip=True)
    assert [one for one, _ in content["bad"]] == ["image a"] and len(content["images"]) == 2
    dataset = CocoDataset(content, voc_root / "JPEGImages", skip_bad=True)
    annotation = dataset.annotation(0)
    void = (classes == 255) | (objects == 255)
    assert annotation.labels.tolist() == [11]
    assert (rle.decode(annotation.rles, (30, 40))[0] == ((objects == 1) & ~void)).all()
    assert (rle.decode([annotation.ignore], (30, 40))[0] == (void | (objects == 2))).all()
    assert len(dataset.bad) == 0  # noted by the reader, once


def test_own_classes_have_own_names(voc_root, read):
    save_map(voc_root / "SegmentationClass" / "a.png", np.full((30, 40), 2))
    (voc_root / "classes.txt").write_text("shrimp\n  crab \n\n")
    content = read(voc_root)
    expected = [{"id": 1, "name": "shrimp"}, {"id": 2, "name": "crab"}]
    assert content["categories"] == expected
    assert {a["category_id"] for a in content["annotations"]} == {2}


def test_sets_of_labelme2voc(voc_root, read):
    """No lists, images of any type, class names that start with those of 255 and 0."""
    shutil.rmtree(voc_root / "ImageSets")
    Image.open(voc_root / "JPEGImages" / "a.jpg").save(voc_root / "JPEGImages" / "a.png")
    (voc_root / "JPEGImages" / "a.jpg").unlink()
    names = [f"class {number}" for number in range(1, 16)]
    lines = ["__ignore__", "_background_", *names]
    (voc_root / "class_names.txt").write_text("\n".join(lines))
    content = read(voc_root, "all")
    assert [one["file_name"] for one in content["images"]] == ["a.png", "b.jpg", "c.jpg"]
    assert [one["name"] for one in content["categories"]] == names
    assert [one["category_id"] for one in content["annotations"]] == [12, 15, 12, 15]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files_of_labelme2voc(tmp_path, read):
    """Its images are not there; those of the test are black."""
    shutil.copytree(REAL, tmp_path / "set")
    (tmp_path / "set" / "JPEGImages").mkdir()
    for file in REAL.glob("SegmentationObject/*.png"):
        image = Image.new("RGB", Image.open(file).size)
        image.save(tmp_path / "set" / "JPEGImages" / f"{file.stem}.jpg")
    names = (REAL.parent / "labels.txt").read_text()
    (tmp_path / "set" / "class_names.txt").write_text(names)
    content = read(tmp_path / "set", "all")
    found = [
        content["categories"][one["category_id"] - 1]["name"] for one in content["annotations"]
    ]
    assert sorted(found[:3]) == ["bottle", "person", "person"]  # as in its json files
    assert sorted(found[3:]) == ["bus", "bus", "car"]
    for number, file in enumerate(sorted(REAL.glob("SegmentationObject/*.png")), start=1):
        objects = np.asarray(Image.open(file))
        void = np.asarray(Image.open(REAL / "SegmentationClass" / file.name)) == 255
        expected = [(objects == k) & ~void for k in (1, 2, 3)]
        masks = [one["segmentation"] for one in content["annotations"] if one["image_id"] == number]
        assert (rle.decode(masks, objects.shape) == expected).all()


def test_names_with_spaces_and_what_follows_them(tmp_path, read):
    names = ["my photo", "my photo 1", "b", "c"]
    lines = ["my photo", "my photo 1", "my photo  -1", "b 1", "c", "no such 1"]
    maps = {name: two_boxes() for name in names}
    root = write_voc(tmp_path / "VOC2012", maps, {"train": lines})
    assert voc.find(root)["train"].names == [
        "my photo",
        "my photo 1",
        "b",
        "c",
        lines[-1],
    ]
    with pytest.raises(InputError, match=r"lists no such 1 but .*no such 1\.jpg is missing"):
        read(root)
