"""Where the json files of COCO and their images are found."""

import copy
import json
import shutil
import unicodedata

import pytest

from data.dataset import CocoDataset
from data.errors import InputError
from data.readers import coco
from data.readers.image_files import locate


@pytest.fixture
def opened(tiny_coco):
    """Opens the tiny set after a change of its content."""

    def open_(change):
        content = copy.deepcopy(tiny_coco.content)
        change(content)
        tiny_coco.json.write_text(json.dumps(content))
        return CocoDataset(tiny_coco.json, tiny_coco.images)

    return open_


@pytest.fixture
def laid_out(tiny_coco, tmp_path):
    """Writes json files of the set, with its images in some folders, and finds the splits."""

    def find(files, folders, content=None):
        root = tmp_path / "set"
        for folder in folders:
            shutil.copytree(tiny_coco.images, root / folder, dirs_exist_ok=True)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(json.dumps(content or tiny_coco.content))
        found = coco.find(root)
        for source in (found or {}).values():
            assert len(CocoDataset(source.path, source.images)) == 6
        return {split: source.path.name for split, source in (found or {}).items()}

    return find


def test_an_annotation_tool_has_subsets(laid_out):
    files = [f"annotations/instances_{name}.json" for name in ("Train", "Validation", "a")]
    found = laid_out(files, ["images/Train", "images/Validation", "images/a"])
    assert found == {
        "train": "instances_Train.json", "val": "instances_Validation.json", "a": "instances_a.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_default.json", "images"),
        ("_annotations.coco.json", "."),
        ("result.json", "images"),
        ("via_export_coco.json", "."),
        ("export/coco.json", "export"),
        ("labels.json", "images/set one"),
        ("labels.json", "data"),  # FiftyOne
        ("annotations/instances_trainval.json", "photos"),
    ],
)
def test_one_file_is_all(laid_out, file, folder, tmp_path):
    found = laid_out([file], [folder])
    if file.startswith("export"):  # one level below is the matter of the package
        assert found == {} and coco.find(tmp_path / "set" / "export").keys() == {"all"}
    else:
        assert list(found) == ["all"]
    (source,) = coco.find(tmp_path / "set" / file).values()
    assert len(CocoDataset(source.path, source.images)) == 6


def test_images_of_another_data_set_beside_are_not_used(tiny_coco, tmp_path):
    """They may have the same names."""
    (tmp_path / "ours").mkdir()
    file = shutil.copy(tiny_coco.json, tmp_path / "ours" / "all.json")
    shutil.copytree(tiny_coco.images, tmp_path / "theirs" / "photos")
    shutil.copytree(tiny_coco.images, tmp_path / "photos")
    for place in (tmp_path / "ours", tmp_path / "ours" / "all.json"):
        source = coco.find(place)["all"]
        with pytest.raises(InputError, match="6 of 6 images are not in"):
            CocoDataset(file, source.images)
    (tmp_path / "photos").rename(tmp_path / "ours" / "photos")
    assert len(CocoDataset(file, coco.find(tmp_path / "ours")["all"].images)) == 6


def test_names_of_files_tell_splits(laid_out, tmp_path):
    found = laid_out(["lvis_v1_train.json", "lvis_v1_val.json"], ["images"])
    assert found == {"train": "lvis_v1_train.json", "val": "lvis_v1_val.json"}
    (tmp_path / "set" / "train2.json").write_text((tmp_path / "set/lvis_v1_val.json").read_text())
    with pytest.raises(InputError, match="lvis_v1_train.json and train2.json.*--train-json"):
        coco.find(tmp_path / "set")


def test_what_is_not_coco_is_left_alone(tmp_path):
    others = {
        "a.json": {"shapes": [], "imagePath": "a.jpg"},
        "b.json": {"categories": {"label": {"labels": []}}, "items": []},
        "c.json": {"version": "2.0", "item": {}, "annotations": [{"id": 1}]},
        "d.json": [{"data": {"image": "a.jpg"}, "annotations": []}],
        "e.json": {"images": [], "annotations": [{"segments_info": []}], "categories": []},
        "f.json": {"a.jpg123": {"filename": "a.jpg", "regions": {}}},
    }
    for name, content in others.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert coco.find(tmp_path / name) is None
    (tmp_path / "g.json").write_bytes(b"\xff\xfe\0\0{")
    assert coco.find(tmp_path) is None and coco.find(tmp_path / "g.json") is None
    (tmp_path / "g.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 1}]))
    with pytest.raises(InputError, match="g.json is a list of results"):
        coco.find(tmp_path / "g.json")


def test_results_beside_annotations_are_passed_over(laid_out, tmp_path):
    found = laid_out(["labels.json"], ["images"])
    results = json.dumps([{"image_id": 1, "category_id": 1, "score": 1}])
    (tmp_path / "set/instances_val_results.json").write_text(results)
    assert [source.path.name for source in coco.find(tmp_path / "set").values()] == ["labels.json"]
    (tmp_path / "set/labels.json").unlink()
    with pytest.raises(InputError, match="instances_val_results.json is a list of results"):
        coco.find(tmp_path / "set")
    assert found == {"all": "labels.json"}


@pytest.mark.parametrize(
    "prefix",
    ["..\\..\\label-studio\\media\\upload\\4\\", "/data/local-files/?d=", "C:\\x\\", "../a/"],
)
@pytest.mark.parametrize("uploaded", ["", "cb0618f6-"])
def test_names_that_all_lead_elsewhere_become_their_last_parts(opened, prefix, uploaded):
    def elsewhere(content):
        for one in content["images"]:
            one["file_name"] = f"{prefix}{uploaded}{one['file_name']}"

    dataset = opened(elsewhere)
    assert dataset.images[2].file_name == "5.png" and "last parts of their" in dataset.summary()

    def one_of_them(content):
        content["images"][2]["file_name"] = f"{prefix}{content['images'][2]['file_name']}"

    with pytest.raises(InputError, match="image 5 .* leads out of the image folder"):
        opened(one_of_them)


def test_folders_of_elsewhere_are_passed_over(opened, tiny_coco):
    def moved(content):
        for one in content["images"]:
            one["file_name"] = f"somebody/else\\{one['file_name']}"

    assert opened(moved).read(2)[0].size == (40, 40)

    def twice(content):
        moved(content)
        content["images"][0]["file_name"] = "other/5.png"

    with pytest.raises(InputError, match="6 of 6 images are not in"):
        opened(twice)


def test_names_of_other_folders_keep_what_they_do_not_share(opened, tiny_coco):
    def moved(content):
        for one, folder in zip(content["images"], ("train", "val") * 3):
            (tiny_coco.images / folder).mkdir(exist_ok=True)
            name = f"{(one['id'] + 1) // 2}.png"  # 0.png is in both
            (tiny_coco.images / one["file_name"]).rename(tiny_coco.images / folder / name)
            one["file_name"] = f"/home/me/set/{folder}/{name}"
        content["images"][1]["file_name"] = "/home/me/set/val/0.png"
        (tiny_coco.images / "val/1.png").rename(tiny_coco.images / "val/0.png")

    dataset = opened(moved)
    assert [one.file_name for one in dataset.images][:2] == ["train/0.png", "val/0.png"]
    assert [dataset.read(index)[0].size[0] for index in range(6)] == [64, 48, 40, 57, 80, 90]


def test_spellings_that_some_systems_take_for_the_same(opened, tiny_coco):
    (tiny_coco.images / "5.png").rename(tiny_coco.images / unicodedata.normalize("NFD", "é.png"))

    def spelled(content):
        content["images"][1]["file_name"] = "2.PNG"
        content["images"][2]["file_name"] = unicodedata.normalize("NFC", "é.png")

    dataset = opened(spelled)
    assert [dataset.read(index)[0].size for index in (1, 2)] == [(48, 64), (40, 40)]
    (tiny_coco.images / "2.PNG").write_bytes(b"another")
    assert opened(spelled).path(1).name == "2.PNG"  # letter by letter, if it is there


def test_trainval_is_divided_later(laid_out):
    files = ["annotations/instances_trainval.json", "annotations/instances_test.json"]
    assert laid_out(files, ["images"]) == {
        "all": "instances_trainval.json", "test": "instances_test.json"
    }  # fmt: skip


def test_images_in_several_folders(tmp_path):
    names = [f"{number}.jpg" for number in range(5)]
    for folder, own in (("cam1", "012"), ("cam2", "34"), ("val", "234")):
        (tmp_path / folder).mkdir()
        for number in own:
            (tmp_path / folder / f"{number}.jpg").touch()
    cameras = [tmp_path / "cam1", tmp_path / "cam2"]
    root, files = locate(cameras, names)
    assert root == tmp_path and files["0.jpg"] == "cam1/0.jpg" and files["4.jpg"] == "cam2/4.jpg"
    assert len(files) == 5
    # Those of another split may have the same names.
    assert locate([tmp_path / "cam1", tmp_path / "val"], names) == (
        tmp_path / "cam1", {name: name for name in names[:3]}
    )  # fmt: skip
    assert locate([*cameras, tmp_path], names)[0] == tmp_path
    assert locate([tmp_path / "nowhere"], names) == (tmp_path / "nowhere", {})
