"""data/readers/darwin.py: rings, the raster layer, and both versions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.readers import darwin

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "darwin"
WIDTH, HEIGHT = 40, 25
SQUARE = [(2, 3), (12, 3), (12, 9), (2, 9)]


def ring(points=SQUARE, x=0, y=0):
    return [{"x": a + x, "y": b + y} for a, b in points]


def polygon(*rings, name="crab", **more):
    return {"name": name, "id": "p", "polygon": {"paths": [*rings] or [ring()]}, **more}


def layer(indices, **ids):
    """The raster layer of a map [H,W]."""
    runs, flat = [], indices.ravel().tolist()
    for value in flat:
        if runs and runs[-2] == value:
            runs[-1] += 1
        else:
            runs += [value, 1]
    found = {"dense_rle": runs, "mask_annotation_ids_mapping": ids, "total_pixels": len(flat)}
    return {"name": "__raster_layer__", "id": "l", "raster_layer": found}


def write(path, *annotations, image="a.jpg", item=None, slot=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    slot = {"type": "image", "slot_name": "0", "width": WIDTH, "height": HEIGHT} | (slot or {})
    item = {"name": image, "path": "/", "slots": [slot]} | (item or {})
    content = {"version": "2.0", "item": item, "annotations": [*annotations]}
    path.write_text(json.dumps(content))
    return path.parent


def test_the_rings_of_a_polygon_are_even_odd(tmp_path, read, pixels):
    hole = ring([(4, 5), (10, 5), (10, 8), (4, 8)])
    island = ring([(6, 6), (8, 6), (8, 7), (6, 7)])
    apart = ring(x=20, y=10)
    stray = ring(SQUARE[:2])
    content = read(
        write(
            tmp_path / "a.json",
            polygon(),
            polygon(ring(), hole, island),
            polygon(ring(), apart, stray),
        )
    )
    one, holed, parts = content["annotations"]
    assert one["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert parts["segmentation"] == [*one["segmentation"], [22, 13, 32, 13, 32, 19, 22, 19]]
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[3:9, 2:12] = True
    wanted[5:8, 4:10] = False
    wanted[6:7, 6:8] = True
    assert (pixels(holed) == wanted).all()


def test_other_annotations(tmp_path, read, labels, pixels, ellipse):
    box = {"x": 3, "y": 4, "w": 5, "h": 6}
    radius = {"x": 10, "y": 4}
    oval = {"center": {"x": 20, "y": 12}, "radius": radius, "angle": 0.5}
    root = write(
        tmp_path / "a.json",
        polygon(bounding_box=box),
        {"name": "fish", "bounding_box": box},
        {"name": "ball", "ellipse": oval},
        {"name": "fish", "line": {"path": ring()}},
        {"name": "fish", "tag": {}},
        {"name": "fish", "keypoint": {"x": 1, "y": 2}},
        polygon(name="other", slot_names=["1"]),
        polygon(name="crab", slot_names=["0"]),
    )
    content = read(root)
    assert labels(content) == ["crab", "fish", "ball", "crab"]
    assert content["annotations"][1]["segmentation"] == []
    assert content["annotations"][1]["bbox"] == [3, 4, 5, 6]
    inside = ellipse(20, 12, 10, 4, 0.5)
    assert (pixels(content["annotations"][2]) ^ inside).sum() < 0.1 * inside.sum()
    counts = {"annotations without an area": 3, "annotations of further slots": 1}
    assert content["counts"] == counts


def test_masks_are_in_the_raster_layer(tmp_path, read, labels, pixels):
    indices = np.zeros((HEIGHT, WIDTH), int)
    indices[2:9, 3:30] = 7
    indices[4:6, 5:8] = 2
    indices[20:, 38:] = 7
    masks = [{"name": name, "id": name, "mask": {}} for name in ("crab", "fish", "gone")]
    root = write(tmp_path / "a.json", layer(indices, crab=7, fish=2, gone=5), *masks)
    content = read(root)
    assert labels(content) == ["crab", "fish"]
    assert [one["name"] for one in content["categories"]] == ["crab", "fish"]
    for one, number in zip(content["annotations"], (7, 2)):
        assert (pixels(one) == (indices == number)).all()
    assert content["counts"] == {"masks without pixels in a raster layer": 1}
    content = read(write(tmp_path / "a.json", *masks))
    assert content["counts"] == {"masks without pixels in a raster layer": 3}


def test_several_files_may_be_about_one_image(tmp_path, read, labels):
    write(tmp_path / "a.json", polygon(id="1"))
    write(tmp_path / "b.json", polygon(id="1"), polygon(name="fish", id="2"), polygon(name="fish"))
    write(tmp_path / "copy.json", polygon(id="1"))
    content = read(tmp_path)
    assert len(content["images"]) == 1 and labels(content) == ["crab", "fish", "fish"]
    assert content["counts"] == {"annotations that another file has": 2}
    write(tmp_path / "copy.json", polygon(id="1"), slot={"width": 7})
    with pytest.raises(InputError, match=r"copy\.json is about the image a\.jpg, which a\.json is"):
        read(tmp_path)


def test_version_1(tmp_path, read, pixels):
    image = {"filename": "a.jpg", "width": WIDTH, "height": HEIGHT, "path": "/sea"}
    plain = {"path": ring()}
    parts = plain | {"additional_paths": [ring(x=20, y=10)]}
    rings = {"path": [ring(), ring([(4, 5), (10, 5), (10, 8), (4, 8)])]}
    annotations = [
        {"name": "crab", "polygon": plain},
        {"name": "crab", "polygon": parts},
        {"name": "crab", "complex_polygon": rings},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    content = read(tmp_path)
    assert [len(one["segmentation"]) for one in content["annotations"][:2]] == [1, 2]
    assert [pixels(one).sum() for one in content["annotations"]] == [60, 120, 42]
    assert content["images"][0]["file_name"] == "sea/a.jpg"


def test_folders_and_splits(tmp_path, read):
    for split in "train", "val":
        write(tmp_path / "annotations" / split / f"{split}.json", polygon(), image=f"{split}.png")
    (tmp_path / "annotations" / "train" / "classes.json").write_text('{"annotations": []}')
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "sub" / "train.png")
    assert darwin.find(tmp_path).keys() == {"train", "val"}
    content = read(tmp_path, split="train")
    assert [one["file_name"] for one in content["images"]] == ["images/sub/train.png"]
    assert content["counts"] == {"other json files": 1}
    assert read(tmp_path, split="val")["images"][0]["file_name"] == "val.png"
    for other in ("[1]", '{"images": [], "annotations": []}', '{"item": {}}', ""):
        (tmp_path / "x.json").write_text(other)
        assert darwin.find(tmp_path / "x.json") is None


def test_a_release_of_the_tool(tmp_path, read):
    """Its files are deep; images of two folders have one name."""
    for place in ("deep", "shore"):
        path = tmp_path / "releases/latest/annotations" / f"{place}.json"
        write(path, polygon(), item={"path": f"/{place}"})
        (tmp_path / "images" / place).mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / place / "a.png")
    names = [one["file_name"] for one in read(tmp_path)["images"]]
    assert names == ["images/deep/a.png", "images/shore/a.png"]


@pytest.mark.parametrize(
    "broken, words",
    [
        (polygon(ring(SQUARE[:2])), "cannot be used, a polygon needs"),
        (polygon([*ring(), {"x": 3, "y": "4"}]), r"has \[3, '4'\] where 2 numbers"),
        (polygon([*ring(), {"x": 3}]), r"has \[3, None\] where 2 numbers"),
        (polygon([*ring(), 7]), r"has \[7\] where 2 numbers"),
        (polygon([*ring(), {"x": 3, "y": 1e9}]), "cannot be used, .* far outside"),
        (polygon([]), "where lists of points are needed"),
        ({"name": "crab", "polygon": {}}, "has no 'path'"),
        (
            {"name": "crab", "polygon": {"path": ring(), "additional_paths": 3}},
            "has another form",
        ),
        ({"name": "crab", "polygon": [1]}, "has another form"),
        ({"name": "crab", "bounding_box": {"x": 1}}, r"has \[1, None, None, None\] where finite"),
        ({"name": "crab", "ellipse": {"center": {}}}, "has no 'x'"),
    ],
)
def test_a_broken_annotation_is_named_and_ignored(tmp_path, broken, words, refused, pixels):
    root = write(tmp_path / "a.json", polygon(name="fish"), broken)
    fix = "[^:]*: correct it [^:]*$"
    content = refused(root, rf"a\.json: annotation 2 \(crab\) .*{words}{fix}")
    assert [record for record, _ in content["bad"]] == ["annotation 2 (crab)"]
    assert [one.get("broken", False) for one in content["annotations"]] == [False, True]
    if len(str(broken)) > 200:
        assert pixels(content["annotations"][1]).sum() == 60


def broken_layer(**more):
    one = layer(np.zeros((HEIGHT, WIDTH), int), crab=1)
    return one | {"raster_layer": one["raster_layer"] | more}


@pytest.mark.parametrize(
    "annotations, more, words",
    [
        ([broken_layer(dense_rle=[0, 5])], {}, "has a dense_rle of 5 pixels where its image has"),
        ([broken_layer(dense_rle=[0, 2000, 1, -1000])], {}, "has a dense_rle of 1000 pixels"),
        ([broken_layer(dense_rle=[0])], {}, r"has the dense_rle \[0\], which is not usable"),
        ([broken_layer(dense_rle=["0", 1])], {}, "which is not usable"),
        ([broken_layer(dense_rle=None)], {}, "has the dense_rle None, which is not usable"),
        ([broken_layer(dense_rle=[0, 2**62, 1, 2**62])], {}, "pixels where its image has"),
        ([broken_layer(mask_annotation_ids_mapping=3)], {}, "has another form"),
        ([], {"slot": {"width": 0}}, "has an image of 0 x 25 pixels"),
        ([], {"slot": {"type": "video"}}, "is about a 'video', only images"),
        ([], {"item": {"slots": [3]}}, "has another form"),
        ([], {"image": "../x.jpg"}, r"has the file_name '\.\./x\.jpg', which leads out"),
    ],
)
def test_a_broken_file_is_named(tmp_path, annotations, more, words, refused):
    write(tmp_path / "b.json", polygon(), image="b.jpg")
    root = write(tmp_path / "a.json", *annotations, **more)
    content = refused(root, rf"a\.json .*{words}.*: correct it [^:]*$")
    assert len(content["images"]) == len(content["annotations"]) == 1


def even_odd(paths, size):
    """Whether a ray from the middle of each pixel crosses an odd number of edges, bool [h,w]."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for path in paths:
        for a, b in zip(path, [*path[1:], path[0]]):
            crossed = (a["y"] > y) != (b["y"] > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                where = a["x"] + (y - a["y"]) * np.float64(b["x"] - a["x"]) / (b["y"] - a["y"])
            inside ^= crossed & (x < where)
    return inside


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not in {REAL}")
def test_real_files(read, pixels):
    content = read(REAL)
    raw = {file: json.loads(file.read_text()) for file in sorted(REAL.glob("*.json"))}
    listed = [one for each in raw.values() for one in each["annotations"]]
    layers = [one["raster_layer"] for one in listed if "raster_layer" in one]
    known = {id_ for layer in layers for id_ in layer["mask_annotation_ids_mapping"]}
    masks = [one for one in listed if one.get("mask") == {}]
    polygons = [one for one in listed if "polygon" in one]
    ellipses = [one for one in listed if "ellipse" in one]
    boxes = [one for one in listed if "bounding_box" in one and "polygon" not in one]
    wanted = len(polygons) + len(ellipses) + len(boxes) + sum(one["id"] in known for one in masks)
    assert len(content["annotations"]) == wanted
    assert sum(one["segmentation"] == [] for one in content["annotations"]) == len(boxes)
    rest = len(listed) - len(layers) - wanted - sum(one["id"] not in known for one in masks)
    assert content["counts"].get("annotations without an area", 0) == rest
    assert {one["file_name"] for one in content["images"]} == {
        each["item"]["name"] for each in raw.values()
    }
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    found = iter(one for one in content["annotations"] if one["segmentation"])
    for each in raw.values():
        for one in each["annotations"]:
            if "polygon" in one:
                annotation = next(found)
                size = sizes[annotation["image_id"]]
                ring = even_odd(one["polygon"]["paths"], size)
                mask = pixels(annotation, size)
                assert (mask & ring).sum() / (mask | ring).sum() > 0.97
            elif "ellipse" in one or one.get("id") in known:
                annotation = next(found)
                if one.get("mask") == {}:
                    (layer,) = (
                        a["raster_layer"] for a in each["annotations"] if "raster_layer" in a
                    )
                    runs = np.reshape(layer["dense_rle"], (-1, 2))
                    flat = np.repeat(*runs.T).reshape(sizes[annotation["image_id"]])
                    number = layer["mask_annotation_ids_mapping"][one["id"]]
                    assert (pixels(annotation, flat.shape) == (flat == number)).all()
    for number in range(3):
        png = np.asarray(Image.open(REAL / f"expected_masks/000000021295_{number:05d}.png"))
        mask = pixels(content["annotations"][number], png.shape[:2])
        drawn = (png if png.ndim == 2 else png[..., 0]) > 0
        # The tool rounds corners and fills the border too.
        assert (mask & drawn).sum() / (mask | drawn).sum() > 0.96
