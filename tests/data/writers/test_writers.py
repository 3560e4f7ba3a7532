"""data/writers: what each format holds, by decoders that are written here and share no code."""

import base64
import csv
import io
import json
import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data.errors import InputError
from data.writers import WRITERS
from data.writers.target import Losses

NAMES = ['a "sea" & <land>', "unused", "Größe, x"]
BOX = [2.5, 3.5, 10.25, 7.75]


@pytest.fixture
def write(content, tmp_path):
    def run(name, strict=False):
        lost = Losses(strict)
        WRITERS[name].write(tmp_path, {"train": content}, lost, iter)
        return tmp_path, {what: len(places) for what, places in lost.found.items()}

    return run


def union(polygons, height, width):
    parts = coco_mask.frPyObjects([list(map(float, one)) for one in polygons], height, width)
    return coco_mask.decode(parts).any(2)


def polygons_of(content):
    return {
        one["id"]: [part.tolist() for part in one["segmentation"]]
        for one in content["annotations"]
        if isinstance(one["segmentation"], list) and one["segmentation"]
    }


def test_coco(write, content, truth):
    folder, lost = write("coco")
    path = folder / "annotations" / "instances_train.json"
    written = json.loads(path.read_text())
    tool = COCO(str(path))
    assert not lost and written["categories"] == content["categories"]
    assert [one["id"] for one in written["images"]] == [3, 5, 9, 10]
    assert [one["id"] for one in written["annotations"]] == [
        one["id"] for one in content["annotations"]
    ]
    for id_, mask in truth.items():
        assert (tool.annToMask(tool.anns[id_]) == mask).all()
        assert tool.anns[id_]["area"] == mask.sum()
    for id_, parts in polygons_of(content).items():
        assert tool.anns[id_]["segmentation"] == parts
    assert tool.anns[40]["iscrowd"] == 1 and tool.anns[50]["bbox"] == BOX
    assert written["images"][0]["void"]["size"] == [60, 80]


def test_yolo(write, content, truth):
    folder, lost = write("yolo")
    assert [lost[what] for what in lost if "holes" in what] == [2]  # ring, noise
    assert [lost[what] for what in lost if "parts" in what] == [5]
    assert lost["crowds, left out"] == lost["boxes without a mask, left out"] == 1
    yaml = (folder / "data.yaml").read_text(encoding="utf-8").splitlines()
    assert yaml[:2] == ["train: images/train", "names:"]
    assert [json.loads(line.split(":", 1)[1]) for line in yaml[2:]] == NAMES
    assert (folder / "labels" / "train" / "10.txt").read_text() == ""
    vertices = polygons_of(content)
    for image in content["images"]:
        path = (folder / "labels" / "train" / image["file_name"]).with_suffix(".txt")
        ids = [id_ for id_ in truth if image["id"] == owner(content, id_)["image_id"]]
        lines = path.read_text().splitlines()
        assert len(lines) == len(ids)
        for line, id_ in zip(lines, ids):
            category, *numbers = line.split()
            assert int(category) == {0: 0, 7: 2}[owner(content, id_)["category_id"]]
            points = np.array(numbers, float).reshape(-1, 2)
            assert points.min() >= 0 and points.max() <= 1
            points *= image["width"], image["height"]
            mask = union([points.ravel()], image["height"], image["width"])
            assert (mask == truth[id_]).all(), id_
            if id_ == 30:
                assert np.allclose(points.ravel(), vertices[id_][0], rtol=1e-15)
            if id_ == 31:  # its parts share no pixel: both are there
                corners = np.concatenate(vertices[id_]).reshape(-1, 1, 2)
                assert np.abs(points - corners).sum(2).min(1).max() < 1e-12


def owner(content, id_):
    return next(one for one in content["annotations"] if one["id"] == id_)


def test_labelme(write, content, truth):
    folder, lost = write("labelme")
    assert list(lost.values()) == [1] and "__ignore__" in next(iter(lost))
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == ["__ignore__", "_background_", *NAMES]
    assert json.loads((folder / "train" / "10.json").read_text())["shapes"] == []
    vertices, left = polygons_of(content), dict(truth)
    names = {0: NAMES[0], 7: NAMES[2]}
    for image in content["images"]:
        path = (folder / "train" / image["file_name"]).with_suffix(".json")
        record = json.loads(path.read_text(encoding="utf-8"))
        size = record["imageHeight"], record["imageWidth"]
        assert record["imagePath"] == Path(image["file_name"]).name
        assert size == (image["height"], image["width"]) and record["imageData"] is None
        groups = defaultdict(list)
        for number, shape in enumerate(record["shapes"]):
            key = number if shape["group_id"] is None else f"group {shape['group_id']}"
            groups[shape["label"], key].append(shape)
        ids = [one["id"] for one in content["annotations"] if one["image_id"] == image["id"]]
        for ((label, _), shapes), id_ in zip(groups.items(), ids):
            if id_ == 40:
                assert label == "__ignore__"
                continue
            assert label == names[owner(content, id_)["category_id"]]
            if id_ == 50:
                assert shapes[0]["shape_type"] == "rectangle"
                assert shapes[0]["points"] == [[2.5, 3.5], [12.75, 11.25]]
            elif shapes[0]["shape_type"] == "mask":
                (x0, y0), (x1, y1) = shapes[0]["points"]
                png = Image.open(io.BytesIO(base64.b64decode(shapes[0]["mask"])))
                mask = np.zeros(size, bool)
                mask[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(png) == 1
                assert (mask == left.pop(id_)).all()
            else:
                assert [sum(shape["points"], []) for shape in shapes] == vertices[id_]
                left.pop(id_)
        if image["id"] == 3:
            assert [shape["label"] for shape in record["shapes"][-2:]] == ["__ignore__"] * 2
    assert not left


def test_cvat(write, content, truth):
    folder, lost = write("cvat")
    assert lost == {"crowds, left out": 1, "void regions, left out": 1}
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert [name.text for name in root.iter("name")] == NAMES
    assert root.findtext("version") == "1.1"
    vertices, left = polygons_of(content), dict(truth)
    for image, element in zip(content["images"], root.iter("image"), strict=True):
        width, height = int(element.get("width")), int(element.get("height"))
        assert (width, height) == (image["width"], image["height"])
        assert element.get("name") == image["file_name"] and element.get("subset") == "train"
        assert int(element.get("id")) == image["id"]
        groups = defaultdict(list)
        for number, shape in enumerate(element):
            groups[shape.get("group_id", f"alone {number}")].append(shape)
        ids = [one["id"] for one in content["annotations"] if one["image_id"] == image["id"]]
        for shapes, id_ in zip(groups.values(), [id_ for id_ in ids if id_ != 40], strict=True):
            category = owner(content, id_)["category_id"]
            assert {one.get("label") for one in shapes} == {NAMES[2] if category else NAMES[0]}
            if shapes[0].tag == "box":
                corners = [float(shapes[0].get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
                assert id_ == 50 and corners == [2.5, 3.5, 12.75, 11.25]
            elif shapes[0].tag == "mask":
                assert (cvat_mask(shapes[0], height, width) == left.pop(id_)).all()
            else:
                numbers = [re.split("[,;]", one.get("points")) for one in shapes]
                assert [[float(each) for each in one] for one in numbers] == vertices[id_]
                left.pop(id_)
    assert not left


def cvat_mask(element, height, width):
    """Row by row, pixel by pixel."""
    left, top, w, h = (int(element.get(key)) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in element.get("rle").split(",")]
    assert sum(runs) == w * h
    mask, place = np.zeros((height, width), bool), 0
    for number, run in enumerate(runs):
        for pixel in range(place, place + run):
            mask[top + pixel // w, left + pixel % w] = number % 2
        place += run
    return mask


def test_label_studio(write, content, truth):
    folder, lost = write("label-studio")
    assert lost == {
        "crowds, left out": 1,
        "void regions, left out": 1,
        "objects of several polygons, which become brush masks": 2,
    }
    config = ElementTree.parse(folder / "label_config.xml").getroot()
    kinds = {each.get("name"): each.tag.lower() for each in config if each.tag != "Image"}
    assert [each.get("value") for each in config.find("BrushLabels")] == NAMES
    tasks = json.loads((folder / "train.json").read_text())
    left = dict(truth)
    for image, task in zip(content["images"], tasks, strict=True):
        assert task["id"] == image["id"]
        prefix, name = unquote(task["data"]["image"]).split("?d=train/")
        assert (prefix, name) == ("/data/local-files/", image["file_name"])
        width, height = image["width"], image["height"]
        for region in task["annotations"][0]["result"]:
            id_, value = int(region["id"]), region["value"]
            assert (region["original_width"], region["original_height"]) == (width, height)
            assert region["type"] == kinds[region["from_name"]]
            category = owner(content, id_)["category_id"]
            assert value[region["type"]] == [NAMES[2] if category else NAMES[0]]
            if region["type"] == "rectanglelabels":
                scale = (width, height, width, height)
                numbers = [value[key] for key in ("x", "y", "width", "height")]
                assert id_ == 50 and np.allclose(np.multiply(numbers, scale) / 100, BOX)
            elif region["type"] == "polygonlabels":
                points = np.array(value["points"]) * (width, height) / 100
                assert np.allclose(points.ravel(), polygons_of(content)[id_][0], rtol=1e-15)
                assert (union([points.ravel()], height, width) == left.pop(id_)).all()
            else:
                assert (brush_mask(value["rle"], height, width) == left.pop(id_)).all()
    assert not left


def brush_mask(numbers, height, width):
    """The alpha of the pixels, from the stream taken bit by bit."""
    bits = "".join(f"{number:08b}" for number in numbers)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    assert len(bits) - place < 8 and total == 4 * height * width == len(values)
    return np.array(values).reshape(height, width, 4)[..., 3] > 0


def test_a_long_run_of_a_brush():
    """Over 2 ** 16 values."""
    from data.writers.label_studio import brush_bytes

    mask = np.zeros((300, 400), bool)
    mask[100:250] = True
    numbers = brush_bytes(np.array([40000, 60000, 20000]))
    assert (brush_mask(numbers, 300, 400) == mask).all()


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_masks(write, content, truth):
    folder, lost = write("masks")
    assert lost["crowds, left out"] == lost["boxes without a mask, left out"] == 1
    assert (folder / "train" / "classes.txt").read_text(encoding="utf-8").splitlines() == NAMES
    left = dict(truth)
    for row in rows_of(folder / "train" / "objects.csv"):
        place = folder / "train" / row["mask"]
        stem = row["image"].removesuffix(".png").replace("/", "_")
        assert row["mask"].startswith(f"{stem}/masks/") and row["number"] == "1"
        id_ = int(row["annotation_id"])
        assert (np.asarray(Image.open(place)).astype(bool) == left.pop(id_)).all()
        one = owner(content, id_)
        assert int(row["category_id"]) == one["category_id"]
        assert row["class"] == (NAMES[2] if one["category_id"] else NAMES[0])
    assert not left and (folder / "train" / "10" / "masks").is_dir()
    assert len(list(folder.rglob("*.png"))) == len(truth)
    path = WRITERS["masks"].image_path("train", "deep/er/9 %.png")
    assert path == "train/deep_er_9 %/images/9 %.png"


def test_ids(write, content, truth):
    folder, lost = write("ids")
    covered = np.zeros((41, 33), int)
    for id_ in sorted((30, 31, 32, 33), key=lambda id_: -truth[id_].sum()):
        covered[truth[id_]] = id_
    hidden = [id_ for id_ in (30, 31, 32, 33) if (covered == id_).sum() < truth[id_].sum()]
    (what,) = [what for what in lost if "lose pixels" in what]
    assert lost[what] == len(hidden) + 1  # the image that one object fills has another on it
    rows = {int(row["annotation_id"]): row for row in rows_of(folder / "train" / "objects.csv")}
    indices = np.asarray(Image.open(folder / "train" / "masks" / "5.png"))
    assert indices.dtype == np.uint16 and indices.shape == (41, 33)
    for id_ in (30, 31, 32, 33):
        assert ((indices == int(rows[id_]["number"])) == (covered == id_)).all()
    ring = np.asarray(Image.open(folder / "train" / "masks" / "3.png")) == int(rows[1]["number"])
    assert (ring == truth[1]).all()
    assert np.asarray(Image.open(folder / "train" / "masks" / "10.png")).max() == 0


def test_who_loses_how_many_pixels(content, tmp_path):
    lost = Losses()
    WRITERS["ids"].write(tmp_path, {"train": content}, lost, iter)
    where = [loss.where for loss in lost if "lose pixels" in loss.what]
    noise = int((np.random.default_rng(0).random((24, 50)) < 0.5).sum())
    assert f"deep/er/9 %.png, annotation 20: {noise} of 1200 pixels" in where


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"coco"}))
def test_strict_ends_at_the_first_loss(write, name):
    with pytest.raises(InputError, match=r"\.png.*cannot hold .*--strict"):
        write(name, strict=True)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_content_is_not_changed(write, content, name):
    before = repr(content)
    write(name)
    assert repr(content) == before
