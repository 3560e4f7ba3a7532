"""data/readers/labelme.py: shapes, groups, masks and where the image is."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.opening import open_datasets
from data.readers import labelme

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "labelme"
WIDTH, HEIGHT = 40, 30
SQUARE = [[2, 3], [12, 3], [12, 9], [2, 9]]


def shape(label="crab", points=SQUARE, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def write(path, shapes, size=(40, 30), image=True, **more):
    """x.json with x.jpg beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
    record |= {"imagePath": f"{path.stem}.jpg", "imageWidth": size[0], "imageHeight": size[1]}
    path.write_text(json.dumps(record | more))
    if image:
        Image.new("RGB", size).save(path.with_suffix(".jpg"))


def objects(content):
    names = {one["id"]: one["name"] for one in content["categories"]}
    return [(names.get(one.get("category_id")), one) for one in content["annotations"]]


def png(mask, mode="L", high=1):
    data = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * (255 if mode == "1" else high)).convert(mode).save(
        data, "PNG"
    )
    return base64.b64encode(data.getvalue()).decode()


def test_shapes_of_one_label_and_group_are_one_object(tmp_path, read, pixels):
    third = 1 / 3
    moved = [[x + 20 + third, y + 10] for x, y in SQUARE]
    write(
        tmp_path / "a.json",
        [
            shape(group_id=0),
            shape(),
            shape(" fish "),
            shape(points=moved, group_id=0),
            shape("fish", group_id=0),
            {"label": "crab", "points": SQUARE},  # as old files have them
        ],
    )
    write(tmp_path / "b.json", [])
    content = read(tmp_path)
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.jpg"]
    assert [one["name"] for one in content["categories"]] == ["crab", "fish"]
    found = objects(content)
    assert [name for name, _ in found] == ["crab", "crab", "fish", "fish", "crab"]
    first = found[0][1]["segmentation"]
    assert first == [[float(n) for point in points for n in point] for points in (SQUARE, moved)]
    assert pixels(found[1][1]).sum() == 60 and pixels(found[1][1])[3:9, 2:12].all()


def test_other_shapes(tmp_path, read, pixels):
    write(
        tmp_path / "a.json",
        [
            shape(points=[[30, 20], [10, 5]], kind="rectangle"),
            shape(points=[[10, 5], [30, 5], [30, 20], [10, 20]], kind="rectangle"),
            shape(points=[[15, 5], [20, 10], [15, 15], [10, 10]], kind="oriented_rectangle"),
            shape("ball", points=[[20, 15], [23, 19]], kind="circle"),
            shape("ball", points=[[20, 15], [23, 19]], kind="line"),
            shape("ball", points=[[20, 15]], kind="point"),
            shape("ball", points=[[1, 1], [2, 2], [3, 1]], kind="linestrip"),
            shape("_background_"),
            shape("__ignore__"),
            shape("__ignore__", points=[[30, 20], [35, 25]], kind="rectangle"),
            shape("ship", group_id=4),
            shape("ship", points=[[1, 1], [20, 20]], kind="rectangle", group_id=4),
        ],
    )
    content = read(tmp_path)
    found = objects(content)
    assert [name for name, _ in found] == ["crab", "crab", "crab", "ball", "ship"]
    for (_, one), box in zip(found[:3], ([10, 5, 20, 15], [10, 5, 20, 15], [10, 5, 10, 10])):
        assert one["corners"] and one["bbox"] == box and one["segmentation"] == []
    assert abs(pixels(found[3][1]).sum() - math.pi * 25) < 3
    assert found[4][1]["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    void = np.zeros((30, 40), bool)
    void[3:9, 2:12] = void[20:25, 30:35] = True
    assert (rle.decode([content["images"][0]["void"]], (30, 40))[0] == void).all()
    left = {"lines and points": 3, "shapes of _background_": 1}
    assert content["counts"] == left | {"boxes of objects that have a mask": 1}


@pytest.mark.parametrize("mode, high", [("L", 1), ("L", 255), ("1", 1), ("P", 1)])
def test_a_mask_has_the_size_of_its_png(tmp_path, mode, high, read, pixels):
    drawn = np.random.default_rng(0).random((7, 11)) > 0.4
    drawn[0, 0] = True
    text = png(drawn, mode, high)
    write(
        tmp_path / "a.json",
        [
            shape(points=[[4.4, 6.6], [15.4, 13.6]], kind="mask", mask=text),
            shape(points=[[35, -2], [45, 4]], kind="mask", mask=text),
            shape("fish", points=[[4.4, 6.6], [15.4, 13.6]], kind="mask", mask=text, group_id=1),
            shape("fish", group_id=1),
        ],
    )
    wanted = np.zeros((3, 30, 40), bool)
    wanted[0, 7:14, 4:15] = wanted[2, 7:14, 4:15] = drawn
    wanted[1, :5, 35:] = drawn[2:, :5]
    wanted[2, 3:9, 2:12] = True
    found = [pixels(one) for _, one in objects(read(tmp_path))]
    assert len(found) == 3 and (np.array(found) == wanted).all()


@pytest.mark.parametrize(
    "listed, image, name",
    [
        ("a.json", "set/a.PNG", "a.PNG"),
        ("imgs\\a.jpg", "set/imgs/a.jpg", "imgs/a.jpg"),
        ("C:\\photos\\b.jpg", "set/b.jpg", "b.jpg"),
        ("/home/me/a.jpg", "set/other/a.tif", "other/a.tif"),
        (None, "set/a.jpg", "a.jpg"),
        ("../a.jpg", "a.jpg", "a.jpg"),  # it is outside, so it is the one beside that is missing
        ("gone.bmp", "b.jpg", "gone.bmp"),
        ("gone.jpg", "set/a.jpg", "a.jpg"),
    ],
)
def test_the_image_is_found(tmp_path, listed, image, name, read):
    write(tmp_path / "set" / "a.json", [shape()], image=False, imagePath=listed)
    (tmp_path / image).parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / image)
    content = read(tmp_path / "set")
    assert content["images"][0]["file_name"] == name
    assert ("(a.json: gone.jpg): the image" in str(content.get("notes"))) == (listed == "gone.jpg")


def test_an_image_without_file_is_in_its_json(tmp_path, read):
    root, data = tmp_path / "set", io.BytesIO()
    image = Image.new("RGB", (30, 40), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(data, "PNG", exif=exif)
    text = base64.b64encode(data.getvalue()).decode()
    write(root / "a.json", [shape()])
    write(root / "b.json", [shape()], imageData=text)
    assert read(root)["embedded"] == {}
    write(root / "c.json", [shape()], image=False, imageData=text, imageWidth=None)
    opened = open_datasets(root, splits=("all",), cache=tmp_path / "cache")["all"]
    assert [one.file_name for one in map(opened.images.__getitem__, range(3))] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]
    colours = [opened.read(index)[0].getpixel((0, 0)) for index in range(3)]
    assert colours == [(0, 0, 0), (0, 0, 0), (255, 0, 0)]
    assert len(opened.annotation(2).rles) == 1
    write(root / "c.json", [], image=False, imageData="eHh4")
    with pytest.raises(InputError, match=r"c\.json has an image of no known type"):
        read(root)


def test_images_that_only_some_files_hold(tmp_path):
    root, data = tmp_path / "set", io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(data, "JPEG")
    text = base64.b64encode(data.getvalue()).decode()
    write(root / "train" / "a.json", [shape()], image=False, imageData=text)
    write(root / "val" / "a.json", [shape()])  # another image of this name
    sets = open_datasets(root, cache=tmp_path / "cache")
    colours = [one.read(0)[0].getpixel((0, 0)) for one in sets.values()]
    assert np.allclose(colours, [(255, 0, 0), (0, 0, 0)], atol=3)
    write(root / "train" / "b.json", [shape("fish")], image=False)
    words = r"train/b\.json: its image train/b\.jpg is not there, and its imageData is empty: add"
    with pytest.raises(InputError, match=words):
        open_datasets(root, cache=tmp_path / "cache")
    train = open_datasets(root, cache=tmp_path / "cache", skip_bad=True)["train"]
    assert len(train) == len(train.bad) == 1 and train.class_names == ["crab"]
    write(root / "train" / "b.json", [], image=False, imageData=text[:400])
    with pytest.raises(
        InputError, match=r"b\.json has an image that cannot be read .*: correct it"
    ):
        open_datasets(root, cache=tmp_path / "cache")


def test_a_size_is_that_of_the_image_as_displayed(tmp_path, read):
    write(tmp_path / "a.json", [], imageWidth=0, imageHeight=None)
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert [read(tmp_path)["images"][0][side] for side in ("width", "height")] == [30, 40]


def test_an_image_that_cannot_be_read_is_named(tmp_path, read):
    write(tmp_path / "a.json", [], imageWidth=None)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^[^ ]*a\.jpg cannot be read as an image [^:]*: replace"):
        read(tmp_path)


def test_folders_and_splits(tmp_path, read):
    for place in ("labels/train/a", "labels/train/b", "labels/valid/a", "labels/c"):
        write(tmp_path / f"{place}.json", [shape()], image=False)
        image = tmp_path / f"{place.replace('labels', 'images')}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(image)
    (tmp_path / "labels" / "train" / "classes.json").write_text('{"names": ["crab"]}')
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nwhale\ncrab\n")
    assert labelme.find(tmp_path).keys() == {"train", "val"}
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    names = ["images/c.jpg", "images/train/a.jpg", "images/train/b.jpg"]
    assert [one["file_name"] for one in train["images"]] == names
    assert [one["file_name"] for one in val["images"]] == ["images/valid/a.jpg"]
    assert train["counts"] == {"other json files": 1}
    assert [one["name"] for one in val["categories"]] == ["whale", "crab"]
    assert read(tmp_path / "labels" / "c.json")["images"][0]["file_name"] == "c.jpg"
    for other in ("[1]", '{"images": [], "annotations": []}', ""):
        (tmp_path / "coco" / "x.json").parent.mkdir(exist_ok=True)
        (tmp_path / "coco" / "x.json").write_text(other)
        assert labelme.find(tmp_path / "coco") is None
        assert labelme.find(tmp_path / "coco" / "x.json") is None


BROKEN = [
    (shape(points=SQUARE[:2]), r"shape 1 \(crab\) is a polygon of 2 points"),
    (shape(points=[[1, 2], [3, float("nan")], [4, 4]]), r"shape 1 \(crab\) has \[3, nan\]"),
    (shape(points=[[1, 2], [3, 1e8], [4, 4]]), "not finite or far outside the image"),
    (shape(points=[["1", 2], [3, 3], [4, 4]]), r"has \['1', 2\] where 2 numbers"),
    (shape(points=None), "has None where a list of points"),
    (shape(points=[[1, 2]], kind="circle"), "is a circle of 1 point"),
    (shape(points=[[0, 0], [1e300, 0]], kind="circle"), "far outside"),
    (shape(kind="blob"), "has the unknown shape_type 'blob'"),
    (shape(kind=["x"]), r"has the unknown shape_type \['x'\]"),
    (shape(label=None), r"shape 1 has the class None"),
    (shape(label="a\nb"), "has the class 'a.*b' where a short text"),
    ("crab", "shape 1 has another form"),
    (shape(points=SQUARE[:2], kind="mask", mask=None), "has None where base64 text"),
    (shape(points=SQUARE[:2], kind="mask", mask="eHh4"), "cannot be read as a PNG"),
    (shape(points=SQUARE[:2], kind="mask", mask="#é"), "where base64 text is needed"),
]


@pytest.mark.parametrize("broken, words", BROKEN)
def test_a_broken_shape_is_named_and_ignored(tmp_path, broken, words, refused, pixels):
    write(tmp_path / "a.json", [broken, shape("fish")])
    content = refused(tmp_path, rf"a\.json: .*{words}[^:]*: correct it [^:]*$")
    (record, reason), *others = content["bad"]
    assert record.startswith("shape 1") and not others
    (_, first), (name, second) = objects(content)
    assert first["broken"] and name == "fish" and "broken" not in second
    if isinstance(broken, dict) and broken["points"] == SQUARE:
        assert pixels(first).sum() == 60


def test_a_group_with_a_broken_part_is_ignored_as_a_whole(tmp_path):
    drawn = np.ones((4, 5))
    shapes = [shape(group_id=1), shape(points=[[30, 30]], group_id=1), shape("fish")]
    mask = shape(points=[[20, 10], [24, 13]], kind="mask", mask=png(drawn), group_id=1)
    write(tmp_path / "set" / "a.json", shapes)
    write(tmp_path / "set" / "b.json", [*shapes, mask])
    opened = open_datasets(
        tmp_path / "set", splits=("all",), cache=tmp_path / "cache", skip_bad=True
    )["all"]
    assert [(one.file[-6:], one.record) for one in opened.bad] == [
        ("a.json", "shape 2 (crab)"),
        ("b.json", "shape 2 (crab)"),
    ]
    wanted = np.zeros((30, 40), bool)
    for index in range(2):
        one = opened.annotation(index)
        assert len(one.rles) == 1 and one.labels.tolist() == [1]
        # Where an object is known, nothing is ignored.
        assert (rle.decode([one.ignore], (30, 40))[0] == wanted).all()
        wanted[10:14, 20:25] = True


def test_a_box_in_a_group_with_a_broken_part_is_ignored(tmp_path, refused, pixels):
    box = shape(points=[[2, 3], [12, 9]], kind="rectangle", group_id=1)
    write(tmp_path / "a.json", [box, shape(points=[[30, 30]], group_id=1)])
    ((_, one),) = objects(refused(tmp_path, "shape 2"))
    assert one["broken"] and pixels(one)[3:9, 2:12].all() and pixels(one).sum() == 60


@pytest.mark.parametrize(
    "change, words",
    [
        ({"shapes": None}, "has another form"),
        ({"imageWidth": 0}, "0 x 30 pixels, which is no size"),
        ({"imageWidth": "40"}, "'40' x 30 pixels"),
        ({"imageWidth": 10**9, "imageHeight": 10**9}, "which is no size"),
        ({"imagePath": "b.jpg"}, r"is about the image b\.jpg, which a\.json is about too"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, words, refused):
    image = "imagePath" in change
    write(tmp_path / "a.json", [shape()], image=image, imagePath="b.jpg" if image else "a.jpg")
    write(tmp_path / "b.json", **{"shapes": [shape()], "image": image} | change)
    content = refused(tmp_path, rf"b\.json .*{words}.*: correct it [^:]*$")
    assert len(content["images"]) == 1


def test_a_truncated_file_is_named(tmp_path, read):
    write(tmp_path / "a.json", [shape()])
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text()[:-20])
    with pytest.raises(InputError, match=r"a\.json is not a json file"):
        read(tmp_path)


def counted(file):
    """(areas, boxes, others) of a file as LabelMe defines its objects."""
    areas, boxes, others = set(), 0, 0
    for number, one in enumerate(json.loads(file.read_text())["shapes"]):
        if one["shape_type"] in ("line", "linestrip", "point") or one["label"] == "__ignore__":
            others += 1
        elif one["shape_type"] == "rectangle":
            boxes += 1
        else:
            alone = one["group_id"] is None
            areas.add((one["label"], "alone", number) if alone else (one["label"], one["group_id"]))
    return len(areas), boxes, others


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not in {REAL}")
def test_real_files(read, pixels):
    for folder in (REAL, REAL / "video", REAL / "other_repo", REAL / "sahi"):
        content, files = read(folder), sorted(folder.glob("*.json"))
        boxes = sum(("corners" in one) for one in content["annotations"])
        others = sum(content["counts"].values()) + sum("void" in one for one in content["images"])
        wanted = np.sum([counted(file) for file in files], axis=0).tolist()
        assert [len(content["annotations"]) - boxes, boxes, others] == wanted
        assert len(content["images"]) == len(files)
    content = read(REAL)
    octagon = json.loads((REAL / "primitives.json").read_text())["shapes"][-1]
    raw = np.asarray(Image.open(io.BytesIO(base64.b64decode(octagon["mask"]))))
    wanted = np.zeros((450, 560), bool)
    wanted[305 : 305 + raw.shape[0], 417 : 417 + raw.shape[1]] = raw > 0
    assert (pixels(content["annotations"][-1], (450, 560)) == wanted).all()
    # LabelMe's own VOC masks have a border of half a pixel more.
    drawn = np.asarray(Image.open(REAL / "labelme2voc_output/SegmentationObject/2011_000025.png"))
    found = [pixels(one, (375, 500)) for one in content["annotations"] if one["image_id"] == 2]
    for number, mask in enumerate(found, start=1):
        assert (mask & (drawn == number)).sum() / (mask | (drawn == number)).sum() > 0.97
