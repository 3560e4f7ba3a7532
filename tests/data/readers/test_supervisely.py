"""data/readers/supervisely.py: polygons with holes, bitmaps, datasets, made as the SDK does."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.readers import supervisely

WIDTH, HEIGHT = 40, 25
SQUARE = [[2, 3], [12, 3], [12, 9], [2, 9]]


def polygon(exterior=SQUARE, interior=(), label="crab", kind="polygon"):
    points = {"exterior": exterior, "interior": list(interior)}
    return {"classTitle": label, "geometryType": kind, "points": points, "tags": []}


def bitmap(data, origin=(4, 6), label="crab"):
    value = {"data": data, "origin": list(origin)}
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": value}


def packed(mask, mode="palette", squeeze=True):
    """A mask [h,w] as base64 of a PNG."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    data, more = io.BytesIO(), {}
    if mode == "palette":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 255, 255])
        more = {"transparency": 0, "bits": 1}
    elif mode == "RGBA":  # white everywhere, the object is in its alpha
        image = Image.new("RGBA", grey.size, "white")
        image.putalpha(grey)
    else:
        image = grey.convert(mode)
    image.save(data, "PNG", **more)
    raw = zlib.compress(data.getvalue()) if squeeze else data.getvalue()
    return base64.b64encode(raw).decode()


def write(root, *objects, name="a.jpg", dataset="ds", size=None, json_name=None):
    ann, img = root / dataset / "ann", root / dataset / "img"
    for folder in (ann, img):
        folder.mkdir(parents=True, exist_ok=True)
    if not (root / "meta.json").exists():
        classes = [("whale", "polygon"), ("crab", "bitmap"), ("eye", "point")]
        classes = [{"title": title, "shape": shape, "color": "#fff"} for title, shape in classes]
        (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    Image.new("RGB", (WIDTH, HEIGHT)).save(img / name)
    record = {"description": "", "tags": [], "objects": [*objects]}
    record["size"] = {"height": HEIGHT, "width": WIDTH} if size is None else size
    (ann / (json_name or f"{name}.json")).write_text(json.dumps(record))
    return root


def test_polygons_and_boxes(tmp_path, read, labels, pixels):
    holes = [[[4, 4], [6, 4], [6, 8], [4, 8]], [[5, 4], [9, 4], [9, 8], [5, 8]]]
    line = polygon(kind="line")
    root = write(
        tmp_path / "set",
        polygon(),
        polygon(interior=holes),
        polygon([[20, 20], [5, 2]], label="fish", kind="rectangle"),
        line,
        {"classTitle": "crab", "bitmap": None, "points": polygon()["points"]},  # as old files
    )
    content = read(root)
    assert labels(content) == ["crab", "crab", "fish", "crab"]
    assert [one["name"] for one in content["categories"]] == ["whale", "crab", "fish"]
    plain, holed, box, old = content["annotations"]
    assert plain["segmentation"] == old["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[3:9, 2:12] = True
    wanted[4:8, 4:9] = False  # holes that overlap are one hole
    assert (pixels(holed) == wanted).all()
    assert box["segmentation"] == [] and box["bbox"] == [5, 2, 15, 18]
    assert content["counts"] == {"objects without an area": 1}


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("mode", ["palette", "RGBA", "L", "1", "LA"])
def test_bitmaps(tmp_path, mode, squeeze, read, pixels):
    drawn = np.random.default_rng(1).random((7, 11)) > 0.4
    if mode == "LA":
        drawn[:] = True  # its alpha is full
    data = packed(drawn, mode, squeeze)
    root = write(tmp_path / "set", bitmap(data), bitmap(data, (-3, 20)))
    wanted = np.zeros((2, HEIGHT, WIDTH), bool)
    wanted[0, 6:13, 4:15] = drawn
    wanted[1, 20:, :8] = drawn[:5, 3:]
    found = [pixels(one) for one in read(root)["annotations"]]
    assert (np.array(found) == wanted).all()
    assert (supervisely.bitmap_mask(data) == drawn).all()


def test_datasets_and_images(tmp_path, read):
    write(tmp_path, polygon(), dataset="train")
    write(tmp_path, polygon(), dataset="val/datasets/more", name="b.png", json_name="b.json")
    write(tmp_path, polygon(), dataset="extra")
    assert supervisely.find(tmp_path).keys() == {"train", "val"}
    names = [one["file_name"] for one in read(tmp_path, split="train")["images"]]
    assert names == ["extra/img/a.jpg", "train/img/a.jpg"]
    names = [one["file_name"] for one in read(tmp_path, split="val")["images"]]
    assert names == ["val/datasets/more/img/b.png"]
    assert read(tmp_path / "extra")["images"][0]["file_name"] == "img/a.jpg"
    (tmp_path / "extra" / "img" / "a.jpg").unlink()
    names = [one["file_name"] for one in read(tmp_path, split="train")["images"]]
    assert names == ["extra/img/a.jpg", "train/img/a.jpg"]
    for other in (tmp_path / "train" / "ann", tmp_path / "meta.json", tmp_path / "train" / "img"):
        assert supervisely.find(other) is None


def test_a_size_that_is_missing_is_that_of_the_image(tmp_path, read):
    image = read(write(tmp_path, size={}))["images"][0]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "broken, words",
    [
        (polygon(SQUARE[:2]), "cannot be used, a polygon needs"),
        (polygon([*SQUARE, [3, "4"]]), r"has \[3, '4'\] where 2 numbers"),
        (polygon([*SQUARE, [3, 1e9]]), "cannot be used, .* far outside"),
        (polygon(interior=[SQUARE[:1]]), "cannot be used, a polygon needs"),
        (polygon(interior=[3]), "has 3 where a list of points"),
        (polygon() | {"points": None}, "has another form"),
        (polygon(kind="blob"), "has the unknown geometryType 'blob'"),
        (polygon(kind=["x"]), r"has the unknown geometryType \['x'\]"),
        (bitmap(None), "has None where base64 text"),
        (bitmap("eHh4eHh4"), "has a mask that cannot be unpacked"),
        (
            bitmap(base64.b64encode(zlib.compress(b"x")).decode()),
            "has a mask that cannot be",
        ),
        (bitmap(packed(np.ones((2, 2))), (1, None)), r"has \[1, None\] where 2 numbers"),
        (bitmap(packed(np.ones((2, 2))), (1, 1e300)), "has a mask far outside the image"),
        (bitmap(packed(np.ones((2, 2)))) | {"bitmap": []}, "has another form"),
    ],
)
def test_a_broken_object_is_named_and_ignored(tmp_path, broken, words, refused):
    root = write(tmp_path / "set", polygon(label="whale"), broken)
    fix = ".*: correct it [^:]*$"
    content = refused(root, rf"json: object 2 \(crab\) {words}{fix}")
    assert [record for record, _ in content["bad"]] == ["object 2 (crab)"]
    assert [one.get("broken", False) for one in content["annotations"]] == [False, True]


def test_broken_files_are_named(tmp_path, read, refused):
    root = write(write(tmp_path), name="b.jpg", size={"height": 0, "width": "x"})
    (root / "ds" / "img" / "b.jpg").unlink()
    assert len(refused(root, r"b\.jpg\.json has an image of 'x' x 0 pixels")["images"]) == 1
    (root / "ds" / "ann" / "b.jpg.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.jpg\.json is not a json file"):
        read(root)
    (root / "meta.json").write_text('{"classes": [{"title": null}]}')
    with pytest.raises(InputError, match=r"meta\.json .*has the class None"):
        read(root)
