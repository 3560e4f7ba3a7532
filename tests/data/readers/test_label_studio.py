"""data/readers/label_studio.py: regions in percent, brushes, annotators, names of images."""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.readers import label_studio

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "label_studio"
WIDTH, HEIGHT = 40, 25
SQUARE = [[5, 12], [30, 12], [30, 36], [5, 36]]  # pixels 2..12 of 40, 3..9 of 25


def region(kind="polygon", label="crab", id_=None, **value):
    value = value or {"points": SQUARE, "closed": True}
    labels = {} if label is None else {f"{kind}labels": [label]}
    record = {"type": f"{kind}labels", "from_name": "label", "to_name": "image"}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return record | sizes | {"value": value | labels} | ({"id": id_} if id_ else {})


def task(*regions, image="/data/upload/7/0a1b2c3d-a.jpg", id_=1, **more):
    annotation = {"id": 5, "was_cancelled": False, "ground_truth": False, "result": [*regions]}
    return {"id": id_, "annotations": [annotation], "data": {"image": image}} | more


def write(root, tasks, name="project-1.json", images=("a.jpg",)):
    root.mkdir(exist_ok=True)
    for image in images:
        (root / image).parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / image)
    (root / name).write_text(json.dumps(tasks))
    return root


def brush_of(alpha, sizes=(3, 4, 8, 16), longest=9):
    """Alpha [H,W] as a text of bits: repeats where values repeat, else a block of single values."""
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = alpha
    values = rgba.ravel().tolist()
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        same = 1
        while place + same < len(values) and values[place + same] == values[place]:
            same += 1
        repeated = same > 2
        times = same if repeated else min(longest, len(values) - place)
        which = next((i for i, size in enumerate(sizes) if times <= 1 << size), len(sizes) - 1)
        times = min(times, 1 << sizes[which])
        text += f"{int(repeated)}{which:02b}{times - 1:0{sizes[which]}b}"
        text += "".join(
            f"{value:08b}" for value in values[place : place + 1 + (times - 1) * (1 - repeated)]
        )
        place += times
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_polygons_boxes_and_ellipses(tmp_path, read, labels, pixels, ellipse):
    turned = {"x": 50, "y": 40, "width": 25, "height": 20, "rotation": 90}
    oval = {"x": 50, "y": 40, "radiusX": 25, "radiusY": 16, "rotation": 30}
    regions = [
        region(),
        region("rectangle", "fish", x=10, y=20, width=50, height=40, rotation=0),
        region("rectangle", "fish", **turned),
        region("ellipse", "ball", **oval),
        region("keypoint", "eye", x=3, y=4, width=0.2),
        {"type": "choices", "value": {"choices": ["good"]}, "from_name": "q", "to_name": "image"},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    ]
    content = read(write(tmp_path / "set", [task(*regions)]))
    assert labels(content) == ["crab", "fish", "fish", "ball"]
    square, box, turned, ball = content["annotations"]
    assert square["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert box["segmentation"] == [] and box["bbox"] == [4, 5, 20, 10]
    # 10 x 5 pixels turned by a quarter about (20, 10) lies to the left of it and below.
    assert turned["segmentation"] == [] and np.allclose(turned["bbox"], [15, 10, 5, 10])
    inside = ellipse(20, 10, 10, 4, math.radians(30))
    assert (pixels(ball) ^ inside).sum() < 0.1 * inside.sum()
    assert content["counts"] == {"results without an area": 2}


@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 5, 9)])
def test_brushes(tmp_path, sizes, read, pixels):
    alpha = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    alpha[0, 4:20, 3:30] = 255
    alpha[0, 8:12, 8:12] = 0  # a hole
    alpha[1] = np.random.default_rng(0).choice([0, 40, 200, 255], (HEIGHT, WIDTH))
    alpha[2, -1, -1] = 255  # and nothing in the last one
    data = [brush_of(each, sizes) for each in alpha]
    regions = [region("brush", format="rle", rle=each) for each in data]
    content = read(write(tmp_path / "set", [task(*regions)]))
    found = [pixels(one) for one in content["annotations"]]
    assert (np.array(found) == (alpha > 127)).all()


def test_shape_and_class_may_be_two_results_of_one_region(tmp_path, read, labels):
    shape = region("polygon", None, "r1") | {"type": "polygon"}
    named = region("", "crab", "r1") | {"type": "labels"}
    bare = region("polygon", None, "r2") | {"type": "polygon"}
    content = read(write(tmp_path / "set", [task(shape, named, bare)]))
    assert labels(content) == ["crab", None]
    assert content["annotations"][1]["broken"] and content["counts"] == {
        "regions without a class": 1
    }


def test_the_annotation_that_counts(tmp_path, read, labels):
    made = [
        {"result": [region(label="a")]},
        {"result": [region(label="b")]},
        {"result": [region(label="c")], "was_cancelled": True},
    ]
    tasks = [
        task(annotations=made),
        task(annotations=[made[0] | {"ground_truth": True}, made[1]], image="b.jpg"),
        task(annotations=made[2:], image="c.jpg"),
        task(annotations=[], predictions=[made[0]], image="d.jpg"),
        task(image="e.jpg"),
    ]
    tasks[1]["completions"] = tasks[1].pop("annotations")
    root = write(tmp_path / "set", tasks, images=[f"{name}.jpg" for name in "abcde"])
    content = read(root)
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.jpg", "e.jpg"]
    assert labels(content) == ["b", "a"]
    assert content["counts"] == {
        "cancelled annotations": 2,
        "annotations beside the one that counts": 2,
        "tasks without an annotation": 2,
        "predictions": 1,
    }
    write(root, [task(annotations=[], predictions=[made[0]]), task(annotations=made[2:])])
    with pytest.raises(InputError, match="no task of Label Studio has an annotation, and predict"):
        read(root)
    assert len(read(write(root, [task(region(), predictions=None)]))["annotations"]) == 1


def test_bitmasks_are_transparent_but_for_the_object(tmp_path, read, pixels):
    drawn = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3

    def url(mask):
        data = io.BytesIO()
        colours = np.dstack([np.zeros((*mask.shape, 3)), 255 * mask]).astype(np.uint8)
        Image.fromarray(colours, "RGBA").save(data, "PNG")
        return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()

    root = write(tmp_path / "set", [task(region("bitmask", imageDataURL=url(drawn)))])
    (one,) = read(root)["annotations"]
    assert (pixels(one) == drawn).all()
    write(root, [task(region("bitmask", imageDataURL=url(drawn[:-1])))])
    with pytest.raises(InputError, match="a mask of 40 x 24 pixels, which its image has not"):
        read(root)


@pytest.mark.parametrize(
    "data, image, name",
    [
        ("/data/upload/7/0a1b2c3d-my%20crab.jpg", "my crab.jpg", "my crab.jpg"),
        ("/data/upload/7/0a1b2c3d-a.jpg", "0a1b2c3d-a.jpg", "0a1b2c3d-a.jpg"),
        ("/data/local-files/?d=sea/b%C3%A9.jpg", "sea/bé.jpg", "sea/bé.jpg"),
        ("/data/local-files/?d=D%3A%5Csea%5Cb.jpg", "b.jpg", "b.jpg"),
        ("/data/local-files/?d=sea/a+b.jpg", "a+b.jpg", "a+b.jpg"),
        ("s3://bucket/sea/c.png", "images/c.png", "images/c.png"),
        ("https://host/c.jpg?token=x#y", "c.jpg", "c.jpg"),
        ("http://[broken", "http:/a.jpg", None),
        ("../../../etc/c.jpg", "c.jpg", "c.jpg"),
    ],
)
def test_names_of_images(tmp_path, data, image, name, read):
    root = write(tmp_path / "set", [task(region(), image=data)])
    (root / "a.jpg").rename(root / "one.jpg")
    if name is not None:
        (root / image).parent.mkdir(exist_ok=True)
        (root / "one.jpg").rename(root / image)
        assert read(root)["images"][0]["file_name"] == name
        content = [task(region(), file_upload=Path(image).name)]
        content[0]["data"] = {"picture": data, "text": "about it", "number": 3}
        assert read(write(root, content, images=()))["images"][0]["file_name"] == name


def test_minimal_json(tmp_path, read, labels, pixels):
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[3:7, 4:11] = 255
    shapes = [
        {"points": SQUARE, "polygonlabels": ["crab"], **sizes},
        {"format": "rle", "rle": brush_of(alpha), "brushlabels": ["fish"], **sizes},
        {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["fish"]},
    ]
    rows = [
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 3, "label": shapes[:1], "annotator": 1},
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 3, "label": shapes, "annotator": 2},
        {"image": "b.jpg", "id": 4, "annotator": 2},
    ]
    content = read(write(tmp_path / "set", rows, images=("a.jpg", "b.jpg")))
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.jpg"]
    assert labels(content) == ["crab", "fish", "fish"]
    assert (pixels(content["annotations"][1]) == (alpha > 0)).all()
    assert content["annotations"][2]["segmentation"] == []
    assert content["counts"] == {"annotations beside the last": 1}


def test_splits_and_classes_of_the_config(tmp_path, read):
    root = write(tmp_path / "set", [task(region())], "train.json")
    write(root, [task(region(), image="b.jpg")], "val.json", ["b.jpg"])
    (root / "label_config.xml").write_text(
        """<View><Image name="image" value="$image"/>
        <BrushLabels name="b" toName="image"><Label value="whale &amp; co" background="red"/>
        <Label background="blue" value='crab'/></BrushLabels>
        <Choices name="c" toName="image"><Choice value="good"/></Choices></View>"""
    )
    assert label_studio.find(root).keys() == {"train", "val"}
    content = read(root, split="val")
    assert [one["name"] for one in content["categories"]] == ["whale & co", "crab"]
    assert content["images"][0]["file_name"] == "b.jpg"
    for other in ("[1]", "{}", '[{"image_id": 1, "segmentation": {}}]', ""):
        (tmp_path / "x.json").write_text(other)
        assert label_studio.find(tmp_path) is None
        assert label_studio.find(tmp_path / "x.json") is None


def changed(**more):
    return region() | more


@pytest.mark.parametrize(
    "broken, words",
    [
        (region(points=SQUARE[:2]), "cannot be used, a polygon needs"),
        (region(points=[*SQUARE, [3, "4"]]), r"has \[3, '4'\] where 2 numbers"),
        (region(points=[*SQUARE, [3, float("nan")]]), r"has \[3, nan\] where 2 numbers"),
        (region(points=[*SQUARE, [3, 1e9]]), "cannot be used, .* far outside the image"),
        (region(points=None), "has None where a list of points"),
        (region("ellipse", x=1, y=2, radiusX=3), r"has \[1, 2, 3, None\] where finite numbers"),
        (region("rectangle", x=1, y=2, width="3", height=3), "has .* where finite numbers"),
        (region("brush", rle="abc"), "has another form"),
        (region("brush", rle=[300]), "has another form"),
        (region("brush", rle=[]), "has an rle of 0 values"),
        (region("brush", rle=brush_of(np.zeros((3, 4)))), "has an rle of 48 values of 8 bits"),
        (region("brush", rle=brush_of(np.eye(HEIGHT, WIDTH))[:-9]), "has an rle that ends after"),
        (changed(image_rotation=90), "was drawn on an image that was turned"),
        (changed(original_width=41), "is of an image of another size"),
        (region(label=3.5), "has the class 3.5"),
    ],
)
def test_a_broken_region_is_named_and_ignored(tmp_path, broken, words, refused, pixels):
    root = write(tmp_path / "set", [task(region(label="fish"), broken | {"id": "r7"})])
    content = refused(root, rf"1\.json: region r7 of task 1 {words}.*: correct it [^:]*$")
    assert [record for record, _ in content["bad"]] == ["region r7 of task 1"]
    assert [one.get("broken", False) for one in content["annotations"]] == [False, True]
    if len(broken["value"].get("points") or ()) > 3:
        assert pixels(content["annotations"][1]).sum() >= 60


@pytest.mark.parametrize(
    "broken, words",
    [
        (task(7), "task 1 has another form"),
        (task(annotations=5), "task 1 has another form"),
        (task(annotations=[3]), "task 1 has another form"),
        (task(data=3), "task 1 has another form"),
        (task(data={}), "task 1 names no image"),
        (task(changed(original_width="40")), "task 1 has an image of '40' x 25 pixels"),
        (task(image="gone.jpg"), "task 1 has no size for its image gone.jpg"),
        (task(image="b.jpg"), "task 1 is about the image b.jpg, which task 9 is about too"),
        ({"model_version": "x", "result": []}, "task 2 is an annotation without its task"),
        (4, "task 2 has another form"),
    ],
)
def test_a_broken_task_is_named(tmp_path, broken, words, refused):
    good = task(region(), image="b.jpg", id_=9)
    root = write(tmp_path / "set", [good, broken], images=["a.jpg", "b.jpg"])
    content = refused(root, rf"1\.json: {words}")
    assert len(content["images"]) == len(content["annotations"]) == 1


def decoded(data):
    """The values of a brush, bit by bit."""
    bits = iter("".join(f"{byte:08b}" for byte in data))

    def number(length):
        return int("".join(next(bits) for _ in range(length)), 2)

    count, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        repeated, which = number(1), number(2)
        times = number(sizes[which]) + 1
        values += [number(word)] * times if repeated else [number(word) for _ in range(times)]
    return np.array(values)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not in {REAL}")
def test_real_files(tmp_path, read, labels, pixels):
    content = read(REAL / "data_polygons.json")
    raw = json.loads((REAL / "data_polygons.json").read_text())[0]["annotations"][0]["result"]
    assert len(raw) == len(content["annotations"]) == 1
    points = np.array(raw[0]["value"]["points"]) * (6.4, 4.26)
    assert np.allclose(content["annotations"][0]["segmentation"], [points.ravel()], atol=1e-9)
    assert content["images"][0]["file_name"] == "e97d4735-000000000025.jpg"
    assert [one["name"] for one in content["categories"]] == ["Airplane", "Car"]
    content = read(REAL / "sdk_export_coco_data.json")
    assert [one["segmentation"] == [] for one in content["annotations"]] == [True, False]
    assert content["counts"] == {"results without an area": 2}
    results = json.loads((REAL / "test_brush_labels.json").read_text())[0]["result"]
    made = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": results}]}]
    content = read(write(tmp_path / "set", made))
    assert labels(content) == ["Person"] * 3
    for one, result in zip(content["annotations"], results):
        alpha = decoded(result["value"]["rle"]).reshape(576, 768, 4)[..., 3]
        assert (pixels(one, (576, 768)) == (alpha > 0)).all() and (alpha > 0).any()
    with pytest.raises(InputError, match="is an annotation without its task"):
        read(REAL / "test_brush_labels.json")
