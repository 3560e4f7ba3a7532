"""data/readers/yolo.py: files of labels and all kinds of data.yaml, made here and real."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data import rle
from data.errors import BadRecords, InputError
from data.opening import open_datasets
from data.readers import yolo
from data.readers.source import Source

POLYGON = [0.25, 0.25, 0.75, 0.25, 0.75, 0.5, 0.25, 0.5]  # of 40 x 20 pixels: 20 x 5


@pytest.fixture
def make(tmp_path):
    """Writes files; images are 40 x 20 pixels."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / "set" / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                Image.new("RGB", (40, 20)).save(path)
            else:
                path.write_text(content)
        return tmp_path / "set"

    return write


def line(id_, numbers):
    return " ".join(map(str, [id_, *numbers]))


def pair(place="train", name="a", text=None):
    """An image and its labels."""
    text = line(0, POLYGON) if text is None else text
    return {f"images__{place}__{name}DOTjpg": None, f"labels__{place}__{name}DOTtxt": text}


def read(root, split="train", skip=True):
    bad = BadRecords(skip)
    return yolo.read(yolo.find(root)[split], bad), list(bad)


YAML = "path: .\ntrain: images/train\nnames: [crab, fish]\n"


# --- labels ---------------------------------------------------------------------------------------


def test_polygons_and_boxes_in_one_file(make):
    text = f"{line(1, POLYGON)}\n\n0 0.5 0.5 0.5 1\n{line('1.0', [0, 0, 1, 0, 0.5, 1])}\n"
    content, bad = read(make(dataDOTyaml=YAML, **pair(text=text)))
    assert content["images"] == [
        {"id": 1, "file_name": "images/train/a.jpg", "width": 40, "height": 20}
    ]
    assert content["categories"] == [{"id": 0, "name": "crab"}, {"id": 1, "name": "fish"}]
    first, box, last = content["annotations"]
    assert first["segmentation"] == [[10, 5, 30, 5, 30, 10, 10, 10]] and first["category_id"] == 1
    assert box["segmentation"] == [] and box["bbox"] == [10, 0, 20, 20] and box["corners"]
    assert last["segmentation"] == [[0, 0, 40, 0, 20, 20]] and last["category_id"] == 1
    assert not bad


def test_an_image_without_labels_has_no_objects(make):
    empty = {"images__train__bDOTpng": None} | pair(name="c", text="\n")
    content, bad = read(make(dataDOTyaml=YAML, **pair(), **empty))
    assert len(content["images"]) == 3 and len(content["annotations"]) == 1 and not bad
    assert not any(one["image_id"] > 1 for one in content["annotations"])


def test_coordinates_are_those_of_the_upright_image(make):
    root = make(dataDOTyaml=YAML, **pair())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.new("RGB", (20, 40)).save(root / "images/train/a.jpg", exif=exif)
    content, _ = read(root)
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 20)
    assert content["annotations"][0]["segmentation"] == [[10, 5, 30, 5, 30, 10, 10, 10]]


BAD = {
    "an even count": (line(0, POLYGON[:-1]), "line 1 has 8 numbers: write class x1"),
    "too few": ("0 0.5", "line 1 has 2 numbers"),
    "two points": ("0 0.1 0.1", "line 1 has 3 numbers"),
    "text": ("0 a b c d e f", "line 1 has '0 a b c d e f'"),
    "half a class": (line(0.5, POLYGON), "write a whole number"),
    "below zero": (line(-1, POLYGON), "write a whole number"),
    "not a number": (line(0, ["nan", *POLYGON[1:]]), "write a whole number"),
    "huge": (line(0, [1e30, *POLYGON[1:]]), r"coordinates up to 1e\+30: write parts of the image"),
    "pixels": (line(0, [number * 400 for number in POLYGON]), "coordinates up to 300: write parts"),
    "a few pixels": (line(0, [number * 12 for number in POLYGON]), "coordinates up to 9: write"),
    "a box in pixels": ("0 20 10 20 10", "coordinates up to 20: write parts"),
    "another class": (
        f"{line(0, POLYGON)}\n{line(7, POLYGON)}",
        r"line 2 has class 7, which has no name \(.*0 crab",
    ),
    "a box of another class": ("7 0.5 0.5 0.5 1", "line 1 has class 7, which has no name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_lines_that_cannot_be_used_are_named(make, name):
    text, words = BAD[name]
    root = make(dataDOTyaml=YAML, **pair(text=text))
    with pytest.raises(InputError, match=rf"a\.txt: .*{words}"):
        read(root, skip=False)
    content, bad = read(root)
    assert len(bad) == 1 and bad[0].file.endswith("a.txt") and bad[0].record.startswith("line")
    left = content["annotations"][-1]
    assert left["broken"] and "category_id" not in left
    if name == "another class":
        assert left["segmentation"] == [[10, 5, 30, 5, 30, 10, 10, 10]]


def test_labels_that_are_no_text(make):
    root = make(dataDOTyaml=YAML, **pair())
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a.txt cannot be read .*UTF-8"):
        read(root, skip=False)


# --- data.yaml ------------------------------------------------------------------------------------

NAMES = "names:\n  0: crab\n  1: fish\n"
YAMLS = {
    "a path of Windows": "path: C:\\Users\\me\\data\ntrain: images/train\n",
    "a path of another computer": "path: /home/me/data\ntrain: images/train\n",
    "the folder": "path: .\\\ntrain: images\\train\n",
    "without path": "train: ./images/train/\n",
    "leading dots": "train: ../images/train\n",
    "more leading dots": "train: ../../images/train\n",
    "absolute": 'train: "C:/Users/me/data/images/train"\n',
    "absolute below": "path: ../datasets/x\ntrain: /home/me/x/images/train\n",
    "a list": "train: [images/train]\n",
    "a block list": "train:\n- images/train\n",
    "a list of images": "train: train.txt\n",
    "more folders": "train: /content/drive/x/set/images/train\n",
    "another word": "training: images/train\nnc: 2\n",
}


@pytest.mark.parametrize("name", YAMLS)
@pytest.mark.parametrize("file", ["data.yaml", "my set.yml"])
def test_kinds_of_yaml(make, name, file):
    root = make(trainDOTtxt="./images/train/a.jpg\n", **pair())
    (root / file).write_text(YAMLS[name] + NAMES)
    for place in (root, root / file):
        assert [*yolo.find(place)] == ["train"]
        content, bad = read(place)
        assert [one["file_name"] for one in content["images"]] == ["images/train/a.jpg"] and not bad
        assert content["notes"][0].startswith("train: ") and str(root) in content["notes"][0]


@pytest.mark.parametrize(
    "text",
    ["images/train/a.jpg", "data/images/train/a.jpg", "/home/me/images/train/a.jpg",
     "C:\\data\\images\\train\\a.jpg", "../images/train/a.jpg"],
)  # fmt: skip
def test_lists_of_images(make, text):
    root = make(dataDOTyaml=f"train: lists/train.txt\n{NAMES}", lists__trainDOTtxt=text, **pair())
    content, bad = read(root)
    assert len(content["annotations"]) == 1 and not bad


def test_a_listed_image_that_is_missing_is_named(make):
    root = make(dataDOTyaml=f"train: train.txt\n{NAMES}", **pair())
    (root.parent / "b.jpg").write_bytes((root / "images/train/a.jpg").read_bytes())
    for name in ("images/train/b.jpg", "../b.jpg", str(root.parent / "b.jpg"), "\0", "x" * 5000):
        (root / "train.txt").write_text(f"images/train/a.jpg\n{name}\n")
        with pytest.raises(InputError, match="data.yaml: .*(is missing|leads out|cannot be read)"):
            read(root, skip=False)
        assert len(read(root)[1]) == 1


def test_missing_folders_are_said(make):
    text = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{NAMES}"
    files = {"train__images__aDOTjpg": None, "train__labels__aDOTtxt": line(0, POLYGON)}
    root = make(dataDOTyaml=text, **files)
    assert [*yolo.find(root)] == ["train"]
    notes = read(root)[0]["notes"]
    assert notes == [
        f"train: ../train/images is {root / 'train/images'}",
        "val: ../valid/images is missing",
        "test: ../test/images is missing",
    ]
    make(validate__images__bDOTjpg=None, validate__labels__bDOTtxt=line(1, POLYGON))
    assert [*yolo.find(root)] == ["train", "val"]
    assert f"val: ../valid/images is {root / 'validate/images'}" in read(root, "val")[0]["notes"]
    (root / "data.yaml").write_text(f"train: /elsewhere/pictures\n{NAMES}")
    with pytest.raises(InputError, match="no folder of images that is there .train: /elsewhere"):
        yolo.find(root / "data.yaml")


def test_nothing_outside_the_folder_is_read(make):
    root = make(inner__dataDOTyaml=f"path: ..\ntrain: images/train\n{NAMES}", **pair())
    with pytest.raises(InputError, match="put it into the folder of the data set"):
        yolo.find(root / "inner")


@pytest.mark.parametrize(
    ("names", "words"),
    [("nc: 2", "has names None"), ("names: crab", "has names 'crab'"), ("names: []", "has names"),
     ("names: {a: b}", "class ids"),
     ("names: {0: [a]}", "has the class"), ("names: ['']", "the class")],
)  # fmt: skip
def test_names_that_cannot_be_used(make, names, words):
    root = make(dataDOTyaml=f"train: images/train\n{names}\n", **pair())
    with pytest.raises(InputError, match=f"data.yaml .*{words}.*: write `names: "):
        yolo.find(root)


def test_class_ids_with_gaps_are_kept(make):
    text = line(7, POLYGON)
    root = make(dataDOTyaml="train: images/train\nnames: {2: crab, 7: 007}\n", **pair(text=text))
    content, _ = read(root)
    assert content["categories"] == [{"id": 2, "name": "crab"}, {"id": 7, "name": "007"}]
    assert content["annotations"][0]["category_id"] == 7


def test_two_yamls_are_two_data_sets(make):
    root = make(aDOTyaml=YAML, bDOTyaml=YAML, **pair())
    with pytest.raises(InputError, match="several data sets .a.yaml, b.yaml.: give one"):
        yolo.find(root)
    (root / "b.yaml").write_text("seed: 1\nepochs: 5\n")
    assert [*yolo.find(root)] == ["train"] and yolo.find(root / "b.yaml") is None


def test_without_a_yaml(make):
    root = make(**pair("."))
    with pytest.raises(InputError, match="a YOLO folder with 1 label file, but has no data.yaml"):
        yolo.find(root)
    make(classesDOTtxt="crab\nfish\n")
    assert [*yolo.find(root)] == ["all"] and len(read(root, "all")[0]["annotations"]) == 1
    make(**pair("train"), **pair("val"))
    assert [*yolo.find(root)] == ["train", "val"]
    make(labels__DOT__aDOTtxt="words")
    (root / "labels/a.txt").write_text("some words\n")
    (root / "labels/train/a.txt").unlink()
    (root / "labels/val/a.txt").unlink()
    assert yolo.find(root) is None and yolo.find(root / "classes.txt") is None


def test_splits_without_a_yaml(make):
    text = line(0, POLYGON)
    files = {"train__images__aDOTjpg": None, "train__labels__aDOTtxt": text}
    root = make(valid__images__bDOTjpg=None, valid__labels__bDOTtxt=text, **files)
    with pytest.raises(InputError, match="a YOLO folder with 2 label files, but has no data.yaml"):
        yolo.find(root)
    make(classesDOTtxt="crab\nfish\n")
    assert [*yolo.find(root)] == ["train", "val"]
    content, bad = read(root, "val")
    assert content["images"][0]["file_name"] == "valid/images/b.jpg" and not bad
    assert len(content["annotations"]) == 1


def test_images_without_any_labels_are_refused(make):
    root = make(dataDOTyaml=YAML, images__train__aDOTjpg=None)
    with pytest.raises(InputError, match="none has a label file .*labels/train/a.txt"):
        read(root)


def test_a_set_is_opened(make, tmp_path):
    text = f"{line(1, POLYGON)}\n0 0.5 0.5 0.1 0.1"
    root = make(dataDOTyaml=YAML + "val: images/val\n", **pair(text=text), **pair("val"))
    sets = open_datasets(root, cache=tmp_path / "cache", progress=False)
    assert sets["train"].class_names == sets["val"].class_names == ["crab", "fish"]
    _, annotation = sets["train"].read(0)
    assert rle.decode(annotation.rles, (20, 40))[0].sum() == 100 and annotation.labels == [1]
    summary = sets["train"].summary()
    assert ": 1 box" in summary
    assert f"train: images/train is {root / 'images/train'}" in summary and "val: " not in summary


# --- real files -----------------------------------------------------------------------------------


def raw_count(folder):
    """Polygons, boxes and class ids in the raw texts."""
    rows = [row.split() for file in sorted(folder.glob("*.txt")) for row in file.open()]
    rows = [row for row in rows if row]
    return sum(len(row) > 5 for row in rows), sum(len(row) == 5 for row in rows), rows


@pytest.mark.parametrize(
    ("split", "folder", "expected"),
    [("train", "train", (0, 3)), ("val", "validate", (5, 0)), ("test", "test", (3, 0))],
)
def test_ships(shared, split, folder, expected):
    root = shared / "datasets/formats/yolo_seg/ships"
    polygons, boxes, rows = raw_count(root / folder / "labels")
    assert (polygons, boxes) == expected
    content, bad = read(root, split)
    unknown = [row for row in rows if row[0] != "0"]
    assert len(bad) == len(unknown) and len(content["annotations"]) == polygons + boxes
    assert sum("corners" in one for one in content["annotations"]) == boxes
    assert sum("broken" in one for one in content["annotations"]) == len(unknown)
    assert f"{split}: ../{'valid' if split == 'val' else split}/images is" in str(content["notes"])
    sizes = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    drawn = [one for one in content["annotations"] if "corners" not in one]
    raw = [row for row in rows if len(row) > 5]
    for one, row in zip(drawn, raw, strict=True):
        expected = np.array(row[1:], float).reshape(-1, 2) * sizes[one["image_id"]]
        assert np.allclose(np.reshape(one["segmentation"], (-1, 2)), expected, atol=1e-9)
    if bad:
        with pytest.raises(InputError, match=r"\.txt: line 1 has class \d, which has no name"):
            read(root, split, skip=False)


def test_another_real_set(shared, tmp_path):
    root = shared / "datasets/formats/yolo_seg"
    for kind in ("images", "labels"):
        (tmp_path / kind).symlink_to(root / "datumaro" / kind)
    for name in ("yolov8_segmentation", "yolov8_detection_with_list_of_names"):
        (tmp_path / "data.yaml").write_text((root / f"yaml_variants/{name}.yaml").read_text())
        content, bad = read(tmp_path)
        assert [one["name"] for one in content["categories"]] == [f"label_{n}" for n in range(10)]
        polygons, boxes, rows = raw_count(tmp_path / "labels/train")
        assert not bad and len(content["annotations"]) == polygons + boxes == 2
        (size,) = [(one["height"], one["width"]) for one in content["images"]]
        for one, row in zip(content["annotations"], rows, strict=True):
            assert one["category_id"] == int(row[0])
            mask = rle.decode([rle.from_annotation(one["segmentation"], *size)], size)[0]
            image = Image.new("1", size[::-1])
            points = np.array(row[1:], float).reshape(-1, 2) * size[::-1] - 0.5
            ImageDraw.Draw(image).polygon([*map(tuple, points.tolist())], fill=1, outline=1)
            assert not (mask & ~np.asarray(image)).any() and mask.any()


@pytest.mark.parametrize(
    ("name", "classes"),
    [("fruit", ["fresh_apple", "rotten_apple", "rotten_part"]), ("biscuit", ["biscuit", "glass"])],
)
def test_real_paths_of_other_computers(shared, make, name, classes):
    file = shared / f"datasets/formats/yolo_seg/yaml_variants/{name}.yaml"
    files = {}
    for place in ("train", "valid", "test"):
        files[f"{place}__images__aDOTjpg"] = None
        files[f"{place}__labels__aDOTtxt"] = line(0, POLYGON)
    root = make(dataDOTyaml=file.read_text(), **files)
    assert [*yolo.find(root)] == ["train", "val", "test"]
    assert [one["name"] for one in read(root, "val")[0]["categories"]] == classes
    assert json.dumps(read(root)[0])
    assert isinstance(yolo.find(root)["val"], Source)


# --- without a data.yaml --------------------------------------------------------------------------


def test_texts_beside_their_images(make):
    files = {"aDOTJPG": None, "bDOTjpg": None, "classesDOTtxt": "crab\nfish\n"}
    root = make(**files, aDOTtxt=line(1, POLYGON))
    content, bad = read(root, "all")
    assert [one["file_name"] for one in content["images"]] == ["a.JPG", "b.jpg"] and not bad
    (annotation,) = content["annotations"]
    assert annotation["category_id"] == 1 and annotation["image_id"] == content["images"][0]["id"]
    (root / "classes.txt").unlink()
    assert yolo.find(root) is None


def test_label_studio_s_notes_are_no_second_format(make):
    notes = {"categories": [{"id": 0, "name": "crab"}], "info": {"contributor": "Label Studio"}}
    files = {"images__aDOTjpg": None, "labels__aDOTtxt": line(0, POLYGON)}
    root = make(**files, classesDOTtxt="crab\n", notesDOTjson=json.dumps(notes))
    sets = open_datasets(root, cache=root.parent / "cache")
    assert len(sets["train"]) == 1 and sets["train"].class_names == ["crab"]
