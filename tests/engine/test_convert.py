"""engine/convert.py: there and back through every format, and what can go wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from data import rle
from data.errors import InputError
from data.writers import WRITERS, cvat
from engine import convert
from engine.interrupt import Interrupted


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Conversions are kept in the folder of the test."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*argv):
    convert.main([str(each) for each in argv])


def objects_of(root, split="train"):
    """File name -> (class name, mask, segmentation) of its objects, by the COCO tools alone."""
    tool = COCO(str(root / "annotations" / f"instances_{split}.json"))
    found = {}
    for image in tool.dataset["images"]:
        names = {each["id"]: each["name"] for each in tool.dataset["categories"]}
        found[image["file_name"]] = [
            (names[one["category_id"]], tool.annToMask(one), one["segmentation"])
            for one in tool.imgToAnns[image["id"]]
            if not one["iscrowd"]
        ]
    return found, [each["name"] for each in tool.dataset["categories"]]


def same_masks(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert [each[0] for each in one[name]] == [each[0] for each in other[name]]
        assert all((a[1] == b[1]).all() for a, b in zip(one[name], other[name], strict=True))


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", WRITERS)
def test_there_and_back(tiny_coco, tmp_path, name):
    """Masks, classes, unused classes, images without objects and their files stay."""
    before = listing(tiny_coco.root)
    run(tiny_coco.root, tmp_path / "there", "--to", name)
    run(tmp_path / "there", tmp_path / "back", "--to", "coco")
    assert listing(tiny_coco.root) == before
    for split in ("train", "val"):
        old, classes = objects_of(tiny_coco.root, split)
        new, names = objects_of(tmp_path / "back", split)
        same_masks(old, new)
        assert sorted(names) == sorted(classes)
        for file_name in old:
            path = tmp_path / "back" / split / file_name
            assert path.read_bytes() == (tiny_coco.images / file_name).read_bytes()


def test_coco_keeps_all_ids_and_crowds(tiny_coco, tmp_path, capsys):
    run(tiny_coco.root, tmp_path / "there", "--to", "coco")
    new = json.loads((tmp_path / "there" / "annotations" / "instances_train.json").read_text())
    old = tiny_coco.content
    assert [one["id"] for one in new["images"]] == [one["id"] for one in old["images"]]
    for one, other in zip(new["annotations"], old["annotations"], strict=True):
        for key in ("id", "image_id", "category_id", "iscrowd", "area"):
            assert one[key] == other[key]
    assert new["categories"] == sorted(old["categories"], key=lambda one: one["id"])
    assert new["images"][0]["void"]["size"] == [48, 64]
    line = capsys.readouterr().out.partition("\n\nnext:\n")[0].splitlines()[-1]
    assert "12 images (train 6, val 6), 16 objects, 4 classes" in line


def test_masks_through_all_formats(tmp_path):
    """Noise, blobs and rings that overlap, of two classes, from format to format."""
    rng = np.random.default_rng(0)
    images = [{"id": 7 * n, "file_name": f"{n}.png", "width": 70, "height": 50} for n in range(3)]
    annotations = []
    for image in images:
        for number in range(6 * (image["id"] != 7)):
            smooth = ndimage.gaussian_filter(rng.random((50, 70)), rng.choice([0, 1, 3]))
            mask = (smooth > np.quantile(smooth, 0.7)) & (np.arange(70) > rng.integers(0, 60))
            segmentation = rle.to_json(rle.encode(mask[None])[0])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "iscrowd": 0}
                | {"category_id": 1 + number % 2, "segmentation": segmentation}
            )
    categories = [{"id": id_, "name": name} for id_, name in ((1, "ä b"), (2, "c/d"), (3, "e"))]
    root = tmp_path / "start"
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    for image in images:
        Image.new("RGB", (70, 50)).save(root / "train" / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    last = root
    for name in ("cvat", "labelme", "label-studio", "masks", "coco"):
        run(last, tmp_path / name, "--to", name, "--strict")
        last = tmp_path / name
    (old, names), (new, classes) = objects_of(root), objects_of(last)
    same_masks(old, new)
    assert len(annotations) == 12 and names == classes
    assert [one[2] for each in old.values() for one in each] == [
        one[2] for each in new.values() for one in each
    ]


@pytest.mark.parametrize("name", ["yolo", "label-studio"])
def test_polygons_relative_to_the_image_keep_their_masks(shared, tmp_path, name):
    source = shared / "datasets" / "coco-mini"
    run(source, tmp_path / "there", "--to", name)
    run(tmp_path / "there", tmp_path / "back", "--to", "coco")
    for split in ("train", "val"):
        same_masks(*(objects_of(root, split)[0] for root in (source, tmp_path / "back")))


@pytest.mark.parametrize("name", ["labelme", "cvat"])
def test_polygons_keep_their_vertices(shared, tmp_path, name):
    source = shared / "datasets" / "coco-mini"
    run(source, tmp_path / "there", "--to", name)
    run(tmp_path / "there", tmp_path / "back", "--to", "coco")
    for split in ("train", "val"):
        (old, _), (new, _) = (objects_of(root, split) for root in (source, tmp_path / "back"))
        same_masks(old, new)
        for name in old:
            assert [each[2] for each in old[name]] == [each[2] for each in new[name]]


@pytest.mark.parametrize("name", WRITERS)
def test_annotations_alone(tiny_coco, tmp_path, name):
    shutil.rmtree(tiny_coco.images)
    (tiny_coco.root / "val").unlink()
    with pytest.raises(InputError, match="none of its 6 images is in .*--no-images"):
        run(tiny_coco.root, tmp_path / "there", "--to", name)
    assert not (tmp_path / "there").exists()
    run(tiny_coco.root, tmp_path / "there", "--to", name, "--no-images")
    names = {path.name for path in (tmp_path / "there").rglob("*.png")}
    assert names <= {"object_0001.png", "object_0002.png"} or name == "ids"


def test_what_is_lost_is_counted_and_listed(tiny_coco, tmp_path, capsys):
    run(tiny_coco.root, tmp_path / "there", "--to", "yolo")
    out = capsys.readouterr().out
    assert "YOLO-seg cannot hold crowds, left out: 2 (2.png, annotation 9; 2.png" in out
    assert (
        "void regions, left out: 2" in out and "objects with holes" in out and "losses.csv" in out
    )
    lines = (tmp_path / "there" / "losses.csv").read_text().splitlines()
    assert '"crowds, left out","2.png, annotation 9"' in lines
    with pytest.raises(InputError, match="0.png.*: the target cannot hold .*--strict"):
        run(tiny_coco.root, tmp_path / "strict", "--to", "yolo", "--strict")
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("name", ["labelme", "cvat", "masks", "ids", "label-studio"])
def test_classes_of_one_name_are_named(tiny_coco, tmp_path, capsys, name):
    first, second, *_ = tiny_coco.content["categories"]
    second["name"] = first["name"] + " "
    tiny_coco.json.write_text(json.dumps(tiny_coco.content))
    run(tiny_coco.json, tmp_path / "there", "--to", name, "--no-images")
    words = f"classes of one name, which become one: 1 ({first['name']}, ids "
    assert words in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot hold classes of one name"):
        run(tiny_coco.json, tmp_path / "strict", "--to", name, "--no-images", "--strict")


def test_an_output_in_use_or_in_the_data_set(tiny_coco, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    before = listing(tmp_path)
    with pytest.raises(InputError, match="there: the output exists"):
        run(tiny_coco.root, tmp_path / "there", "--to", "yolo")
    for out in (tiny_coco.root, tiny_coco.root / "yolo"):
        with pytest.raises(InputError, match="is in the data set"):
            run(tiny_coco.root, out, "--to", "yolo")
    assert listing(tmp_path) == before


def test_a_stop_leaves_nothing(tiny_coco, tmp_path, monkeypatch):
    def write(folder, *_):
        (folder / "half.xml").touch()
        raise Interrupted(2)

    monkeypatch.setattr(cvat, "write", write)
    with pytest.raises(Interrupted):
        run(tiny_coco.root, tmp_path / "there", "--to", "cvat")
    assert not (tmp_path / "there").exists()


def test_images_of_another_size(tiny_coco, tmp_path):
    Image.new("RGB", (5, 6)).save(tiny_coco.images / "0.png")
    with pytest.raises(InputError, match=r"0.png is 5 x 6 .* have 64 x 48: correct"):
        run(tiny_coco.root, tmp_path / "there", "--to", "coco")


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_bad_is_left_out_and_listed(tiny_coco, tmp_path, capsys, name):
    """The lists lie beside the set, which is read again."""
    (tiny_coco.images / "2.png").unlink()
    run(tiny_coco.root, tmp_path / "there", "--to", name, "--skip-bad-records")
    assert "2.png is missing" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "there" / "skipped.json").read_text())) == 2
    run(tmp_path / "there", tmp_path / "back", "--to", "coco")
    old, new = objects_of(tiny_coco.root)[0], objects_of(tmp_path / "back")[0]
    del old["2.png"]
    same_masks(old, new)


def test_images_that_differ_in_the_suffix_alone(tmp_path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    names = ["a.png", "a.jpg", "A.png", "a_2.png"]
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    for number, name in enumerate(names):
        Image.new("RGB", (20, 10), (9 * number, 0, 0)).save(root / "train" / name)
        content["images"].append({"id": number, "file_name": name, "width": 20, "height": 10})
        square = [[number, 0, number + 5, 0, number + 5, 5, number, 5]]
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": square}
        )
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    run(root, tmp_path / "there", "--to", "labelme")
    found = sorted((tmp_path / "there" / "train").glob("*.json"))
    assert [path.name for path in found] == ["A_3.json", "a.json", "a_2.json", "a_2_2.json"]
    for path in found:
        record = json.loads(path.read_text())
        number = int(record["shapes"][0]["points"][0][0])
        copied = (path.parent / record["imagePath"]).read_bytes()
        assert copied == (root / "train" / names[number]).read_bytes()
    run(root, tmp_path / "coco", "--to", "coco")
    assert {path.name for path in (tmp_path / "coco" / "train").iterdir()} == set(names)


def test_crowds_and_void_of_labelme_are_void(tiny_coco, tmp_path):
    run(tiny_coco.root, tmp_path / "there", "--to", "labelme")
    run(tmp_path / "there", tmp_path / "back", "--to", "coco")
    path = tmp_path / "back" / "annotations" / "instances_train.json"
    void = {one["file_name"]: one.get("void") for one in json.loads(path.read_text())["images"]}
    rows = np.zeros((48, 64), bool)
    rows[:3] = True
    assert (rle.decode([void.pop("0.png")], rows.shape)[0] == rows).all()
    assert (rle.decode([void.pop("2.png")], (64, 48))[0] == tiny_coco.masks[9]).all()
    assert not any(void.values())


def test_boxes_stay_boxes(tiny_coco, tmp_path):
    content = tiny_coco.content
    for one in content["annotations"]:
        one |= {"segmentation": [], "bbox": [1.5, 2.5, 10, 20], "iscrowd": 0}
    tiny_coco.json.write_text(json.dumps(content))
    for name in ("labelme", "cvat", "coco"):
        run(tiny_coco.json, tmp_path / name, "--to", name, "--no-images")
        if name != "coco":
            back = tmp_path / f"{name} back"
            run(tmp_path / name, back, "--to", "coco", "--no-images")
        else:
            back = tmp_path / "coco"
        path = Path(back) / "annotations" / "instances_train.json"
        found = json.loads(path.read_text())["annotations"]
        assert len(found) == len(content["annotations"])
        assert all(one["segmentation"] == [] for one in found)
        assert np.allclose([one["bbox"] for one in found], [1.5, 2.5, 10, 20])
    run(tiny_coco.json, tmp_path / "filled", "--to", "coco", "--no-images", "--boxes-as-masks")
    path = tmp_path / "filled" / "annotations" / "instances_train.json"
    for one in json.loads(path.read_text())["annotations"]:
        assert one["segmentation"] == [[1.5, 2.5, 11.5, 2.5, 11.5, 22.5, 1.5, 22.5]]
