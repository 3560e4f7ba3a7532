"""data/dataset.py, open_datasets: every layout is found, and what is missing is named."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.opening import open_datasets
from data.readers import voc
from data.readers.cache import write_json
from tests.stress.sets import sbd_set, voc_set


@pytest.fixture
def voc_data(tmp_path):
    """Images a, b and c, each with one object of class 1; c is the validation set."""
    made = voc_set()
    for split, names in (("train", b"ma\nmb\n"), ("val", b"mc\n")):
        made.files[f"VOC2012/ImageSets/Segmentation/{split}.txt"] = names
    made.write(tmp_path / "data" / "VOCdevkit")
    return tmp_path / "data"


def converted(cache):
    return sorted(cache.glob("*/instances_*.json"))


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_converted_once(voc_data, tmp_path, below, capsys):
    cache = tmp_path / "cache"
    sets = open_datasets(voc_data / below, cache=cache)
    assert {split: len(one) for split, one in sets.items()} == {"train": 2, "val": 1}
    assert sets["train"].read(0)[1].labels.tolist() == [0]
    files = converted(cache)
    printed = capsys.readouterr().out
    assert len(files) == 2 and all(str(file) in printed for file in files)
    before = [file.stat().st_mtime_ns for file in files]
    open_datasets(voc_data, cache=cache)
    assert [file.stat().st_mtime_ns for file in converted(cache)] == before


def test_voc_is_converted_again_when_something_changes(voc_data, tmp_path):
    cache, root = tmp_path / "cache", voc_data / "VOCdevkit" / "VOC2012"
    open_datasets(voc_data, splits=("train",), cache=cache)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("ma\nmb\nmc\n")
    assert len(open_datasets(voc_data, splits=("train",), cache=cache)["train"]) == 3
    Image.fromarray(np.zeros((20, 28), dtype=np.uint8)).save(root / "SegmentationObject" / "ma.png")
    changed = open_datasets(voc_data, splits=("train",), cache=cache)["train"]
    assert len(changed.annotation(0).rles) == 0
    (root / "classes.txt").write_text("crab\n")
    assert open_datasets(voc_data, splits=("train",), cache=cache)["train"].class_names == ["crab"]
    assert len(converted(cache)) == 4


def test_an_image_of_another_size_is_converted_again(tmp_path):
    """YOLO's coordinates are shares of the size of the file."""
    for name in ("a", "b"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n")
    (tmp_path / "classes.txt").write_text("crab\n")
    one = open_datasets(tmp_path, cache=tmp_path / "cache")["train"]
    assert one.read(0)[0].size == (40, 20) and len(converted(tmp_path / "cache")) == 1
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    one = open_datasets(tmp_path, cache=tmp_path / "cache")["train"]
    image, annotation = one.read(0)
    assert image.size == (80, 40) and rle.area(annotation.rles).tolist() == [40 * 10]


def test_a_changed_file_with_its_old_time_is_read_again(voc_data, tmp_path):
    cache, root = tmp_path / "cache", voc_data / "VOCdevkit" / "VOC2012"
    file = root / "SegmentationObject" / "ma.png"
    open_datasets(voc_data, splits=("train",), cache=cache)
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat()[6:9] == before[6:9]  # size and times in seconds
    open_datasets(voc_data, splits=("train",), cache=cache)
    assert len(converted(cache)) == 2


def test_a_damaged_conversion_is_named(voc_data, tmp_path):
    open_datasets(voc_data, cache=tmp_path / "cache")
    file = converted(tmp_path / "cache")[0]
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(InputError, match=rf"{file} is not a json file .*: remove it, it will be"):
        open_datasets(voc_data, cache=tmp_path / "cache")
    file.unlink()
    assert len(open_datasets(voc_data, cache=tmp_path / "cache")["train"]) == 2


def test_a_failed_conversion_leaves_nothing(voc_data, tmp_path):
    cache = tmp_path / "cache"
    (voc_data / "VOCdevkit" / "VOC2012" / "JPEGImages" / "mb.jpg").unlink()
    with pytest.raises(InputError, match="lists mb but"):
        open_datasets(voc_data, cache=cache)
    assert not list(cache.rglob("*"))


def test_a_cache_that_cannot_be_written(voc_data, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="instances_train.json: cannot be written .*: make room"):
        open_datasets(voc_data, cache=tmp_path / "cache")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    write_json({"a": 1}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_sbd_trains_beside_voc(voc_data, tmp_path):
    root = voc_data / "benchmark_RELEASE" / "dataset"
    sbd_set().write(root)
    sets = open_datasets(voc_data, cache=tmp_path / "cache")
    assert [record.file_name for record in sets["train"].images] == ["ma.jpg", "mb.jpg"]
    assert [record.file_name for record in sets["val"].images] == ["mc.jpg"]
    shutil.rmtree(voc_data / "VOCdevkit")
    (root / "train.txt").write_text("ma\n")
    (root / "val.txt").write_text("mb\nmc\n")
    sets = open_datasets(voc_data, cache=tmp_path / "cache")
    assert {split: len(one) for split, one in sets.items()} == {"train": 1, "val": 2}


def test_coco_folders(tiny_coco, tmp_path):
    sets = open_datasets(tiny_coco.root, cache=tmp_path / "cache")
    assert {split: len(one) for split, one in sets.items()} == {"train": 6, "val": 6}
    assert [sets[split].name for split in sets] == ["train", "val"]
    assert not (tmp_path / "cache").exists()
    assert list(open_datasets(tiny_coco.root, splits=("val",), cache=tmp_path)) == ["val"]


@pytest.mark.parametrize("folder", ["train2017", "images", "images/train", "images/train2017", "."])
def test_coco_images_are_found(tiny_coco, folder):
    place = tiny_coco.root / folder
    images = list(tiny_coco.images.iterdir())
    place.mkdir(parents=True, exist_ok=True)
    for image in images:
        image.rename(place / image.name)
    (tiny_coco.root / "val").unlink()
    tiny_coco.images.rmdir()
    tiny_coco.json.rename(tiny_coco.json.with_name("instances_train2017.json"))
    dataset = open_datasets(tiny_coco.root, splits=("train",))["train"]
    assert dataset.read(1)[0].size == (48, 64)


def test_images_of_a_voc_folder_beside(tiny_coco):
    (tiny_coco.root / "val").unlink()
    place = tiny_coco.root.parent / "VOCdevkit" / "VOC2012" / "JPEGImages"
    place.parent.mkdir(parents=True)
    tiny_coco.images.rename(place)
    assert open_datasets(tiny_coco.root, splits=("train",))["train"].folder == place.resolve()


def test_roboflow_exports(tiny_coco):
    root = tiny_coco.root.parent / "export"
    for split in ("train", "valid"):
        shutil.copytree(tiny_coco.images, root / split)
        (root / split / "_annotations.coco.json").write_text(json.dumps(tiny_coco.content))
    sets = open_datasets(root)
    assert [one.folder.name for one in sets.values()] == ["train", "valid"]
    shutil.rmtree(root / "valid")
    assert list(open_datasets(root, splits=("train",))) == ["train"]


def test_files_named_one_by_one(tiny_coco, tmp_path):
    val = tmp_path / "elsewhere.json"
    val.write_text(json.dumps(tiny_coco.content))
    sets = open_datasets(train_json=tiny_coco.json, val_json=val, images=tiny_coco.images)
    assert {split: len(one) for split, one in sets.items()} == {"train": 6, "val": 6}
    assert open_datasets(train_json=tiny_coco.json, splits=("train",))["train"].read(0)
    with pytest.raises(InputError, match=r"none\.json cannot be read \(No such file"):
        open_datasets(train_json=tmp_path / "none.json", splits=("train",))
    with pytest.raises(InputError, match="6 of 6 images are not in .*--images"):
        open_datasets(val_json=val, images=tiny_coco.json.parent, splits=("val",))


def test_what_is_missing_is_named(tiny_coco, tmp_path):
    with pytest.raises(InputError, match=r"none is not a folder or a file: .*--data"):
        open_datasets(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.md").touch()
    with pytest.raises(InputError, match="instances_train.json.*VOCdevkit/VOC2012.*--train-json"):
        open_datasets(tmp_path / "empty")
    with pytest.raises(InputError, match="no train annotations were named: .*--train-json"):
        open_datasets()
    tiny_coco.json.unlink()
    with pytest.raises(InputError, match="no train annotations, .* has val: .*--train-json"):
        open_datasets(tiny_coco.root)
    with pytest.raises(InputError, match="no test annotations, .* has val"):
        open_datasets(tiny_coco.root, splits=("test",))


def test_both_splits_have_one_class_list(tiny_coco):
    tiny_coco.content["categories"][0]["name"] = "lobster"
    tiny_coco.json.write_text(json.dumps(tiny_coco.content))
    with pytest.raises(InputError, match="different categories"):
        open_datasets(tiny_coco.root)


def test_crowds_as_instances_reach_the_sets(tiny_coco):
    plain = open_datasets(tiny_coco.root, splits=("train",))["train"]
    switched = open_datasets(tiny_coco.root, splits=("train",), crowd_as_instances=True)["train"]
    assert len(plain.annotation(1).rles) == 1 and len(switched.annotation(1).rles) == 2


@pytest.mark.parametrize("name", ["coco-mini", "penn-fudan", "dsb2018"])
def test_real_folders(shared, name):
    sets = open_datasets(shared / "datasets" / name)
    assert all(len(one) and one.read(0)[1].orig_size for one in sets.values())
    assert voc.find_root(shared / "datasets" / "VOC").name == "VOC2012"
