"""data/readers/via.py: json, csv and projects, shapes, and which attribute is the class."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import BadRecords, InputError
from data.opening import open_datasets
from data.readers import via

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "via"
SQUARE = {"name": "polygon", "all_points_x": [2, 12, 12, 2], "all_points_y": [3, 3, 9, 9]}


def region(shape=SQUARE, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def entries(**images):
    """Records by their keys, the file name with the size in bytes."""
    made = {}
    for name, regions in images.items():
        record = {"filename": f"{name}.jpg", "size": 77, "regions": regions, "file_attributes": {}}
        made[f"{name}.jpg77"] = record
    return made


def write_csv(path, content, mark="#"):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        head = "filename,file_size,file_attributes,region_count,region_id"
        head = [*head.split(","), "region_shape_attributes", "region_attributes"]
        rows.writerow([mark + head[0], *head[1:]])
        for record in content.values():
            regions = record["regions"]
            for number, one in enumerate(regions or [region({})]):
                cells = [json.dumps(one[key]) for key in ("shape_attributes", "region_attributes")]
                rows.writerow([record["filename"], 77, "{}", len(regions), number, *cells])


def write(root, content, name="via_region_data.json", images="ab"):
    root.mkdir(parents=True, exist_ok=True)
    for stem in images:
        Image.new("RGB", (40, 30)).save(root / f"{stem}.jpg")
    (root / name).write_text(json.dumps(content))
    return root


def read(path, skip=False, split="all"):
    bad = BadRecords(skip)
    content = via.read(via.find(path)[split], bad)
    return content | {"bad": [(one.record, one.reason) for one in bad]}


def objects(content):
    names = {one["id"]: one["name"] for one in content["categories"]}
    return [(names.get(one.get("category_id")), one) for one in content["annotations"]]


def labels(content):
    return [name for name, _ in objects(content)]


def pixels(annotation, size=(30, 40)):
    return rle.decode([rle.from_annotation(annotation["segmentation"], *size)], size)[0]


def test_json_csv_and_project_hold_the_same(tmp_path):
    content = entries(a=[region(kind="crab "), region(kind="fish")], b=[])
    project = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}}
    old = json.loads(json.dumps(content))
    for record in old.values():
        record["regions"] = {str(n): one for n, one in enumerate(record["regions"])}
        record |= {"fileref": "", "base64_img_data": ""}
    roots = [write(tmp_path / "json", content), write(tmp_path / "old", old)]
    roots += [write(tmp_path / "project", project, "project.json")]
    for mark in "#", "":
        roots.append(write(tmp_path / f"csv{mark}", {}, "other.json"))
        write_csv(roots[-1] / "via.csv", content, mark)
    roots.append(write(tmp_path / "both", content))
    write_csv(roots[-1] / "via_region_data.csv", content)
    roots.append(roots[0] / "via_region_data.json")
    first = read(roots[0])
    assert [one["file_name"] for one in first["images"]] == ["a.jpg", "b.jpg"]
    assert [one["width"] for one in first["images"]] == [40, 40]
    assert labels(first) == ["crab", "fish"]
    assert first["annotations"][0]["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert all(read(root) == first for root in roots[1:])
    content["b.jpg77"]["regions"] = [region(kind="crab")]
    write_csv(tmp_path / "both" / "via_region_data.csv", content)
    with pytest.raises(InputError, match=r"json has other regions for b.jpg than .*csv"):
        read(tmp_path / "both")


def test_shapes(tmp_path):
    angle = 0.4
    ellipse = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 5, "theta": angle}
    line = {"name": "polyline", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]}
    closed = {key: [*value, value[0]] for key, value in line.items() if key != "name"}
    shapes = [
        SQUARE | {"all_points_x": [-4, 12, 12, -4]},
        {"name": "rect", "x": 5, "y": 6, "width": 7, "height": 8},
        {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        ellipse,
        {"name": "point", "cx": 1, "cy": 2},
        line,
        {"name": "polyline", **closed},
    ]
    content = read(write(tmp_path / "set", entries(a=[region(one) for one in shapes])))
    outside, box, circle, turned, triangle = content["annotations"]
    assert labels(content) == ["object"] * 5
    assert pixels(outside)[3:9, :12].all() and pixels(outside).sum() == 72
    assert box["segmentation"] == [] and box["bbox"] == [5, 6, 7, 8]
    assert abs(pixels(circle).sum() - 25 * math.pi) < 3
    y, x = np.mgrid[:30, :40] + 0.5
    along = (x - 20) * math.cos(angle) + (y - 15) * math.sin(angle)
    across = (y - 15) * math.cos(angle) - (x - 20) * math.sin(angle)
    inside = (along / 12) ** 2 + (across / 5) ** 2 < 1
    assert (pixels(turned) ^ inside).sum() < 0.1 * inside.sum()
    assert 25 < pixels(triangle).sum() < 40
    assert content["counts"] == {"points": 1, via.OPEN: 1}


@pytest.mark.parametrize(
    "attributes, wanted",
    [
        ([{"kind": "a"}, {"kind": "b", "note": "x"}], ["a", "b"]),
        ([{"kind": "a"}, {"kind": ""}, {}], ["a", None, None]),
        ([{"kind": {"a": True, "b": False}}, {"kind": {"b": True}}], ["a", "b"]),
        ([{"name": "a", "id": "1"}, {"name": "a", "id": "2"}], ["a", "a"]),
        ([{"beet": "1"}, {"weed": "1"}], ["beet", "weed"]),
        ([{"class_id": "1"}, {"class_id": 2}], ["1", "2"]),
        ([{"kind": "Crab"}, {"kind": "crab"}], ["Crab", "crab"]),
    ],
)
def test_the_class_is_the_attribute_that_most_regions_have(tmp_path, attributes, wanted):
    content = read(write(tmp_path / "set", entries(a=[region(**one) for one in attributes])))
    assert labels(content) == wanted
    assert content["counts"].get("regions without a class", 0) == wanted.count(None)
    assert [one.get("broken", False) for one in content["annotations"]] == [
        name is None for name in wanted
    ]


def test_two_attributes_that_may_be_the_class_are_named(tmp_path):
    root = write(tmp_path / "set", entries(a=[region(kind="a", colour="red")]))
    with pytest.raises(InputError, match="as many regions have the attribute 'kind' as 'colour'"):
        read(root)


def test_splits_and_folders(tmp_path):
    root = write(tmp_path / "set", entries(a=[region()]), "via_train.json")
    write(root, entries(b=[region()]), "via_val.json", "")
    (root / "photos").mkdir()
    (root / "b.jpg").rename(root / "photos" / "B.JPG")
    assert via.find(root).keys() == {"train", "val"}
    assert read(root, split="val")["images"][0]["file_name"] == "photos/B.JPG"
    write(root, entries(b=[]), "via_all.json", "")
    assert via.find(root).keys() == {"all"}
    for other in ("[1]", '{"images": [], "annotations": []}', '{"shapes": [], "imagePath": ""}'):
        (tmp_path / "x.json").write_text(other)
        assert via.find(tmp_path) is None and via.find(tmp_path / "x.json") is None


POINTS = SQUARE["all_points_x"]


@pytest.mark.parametrize(
    "broken, words",
    [
        (region(SQUARE | {"all_points_x": POINTS[:2]}), "has .* where a list of points"),
        (region(SQUARE | {"all_points_y": None}), "has .* where a list of points"),
        (region(SQUARE | {"all_points_x": [2, 12, "12", 2]}), "has .* where 2 numbers"),
        (region(SQUARE | {"all_points_x": [2, 12, float("inf"), 2]}), "has .* where 2 numbers"),
        (region(SQUARE | {"all_points_x": [2, 12, 1e9, 2]}), "cannot be used, .* far outside"),
        (region({"name": "circle", "cx": 1, "cy": 2}), "has .* where finite numbers"),
        (
            region({"name": "rect", "x": 1, "y": 2, "width": 1e300, "height": 1}),
            "cannot be used, .* far outside",
        ),
        (region({"name": "blob"}), "has the unknown shape 'blob'"),
        (region({"name": 3}), "has name 3 where a text"),
        (region({}), "has name None"),
        (region(kind="a\nb"), "has the class"),
        ({"shape_attributes": SQUARE}, "has region_attributes None where a record"),
        (7, "is 7 where a record"),
    ],
)
def test_a_broken_region_is_named_and_ignored(tmp_path, broken, words):
    root = write(tmp_path / "set", entries(a=[broken, region(kind="crab")]))
    fix = "[^:]*: correct it [^:]*$"
    with pytest.raises(InputError, match=rf"data\.json: region 0 of a\.jpg {words}{fix}"):
        read(root)
    content = read(root, skip=True)
    assert [record for record, _ in content["bad"]] == ["region 0 of a.jpg"]
    assert [one.get("broken", False) for one in content["annotations"]] == [True, False]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"filename": None}, r"image b\.jpg77 has filename None where a text"),
        ({"regions": 3}, r"image b\.jpg77 has the regions 3 where a list"),
        ({"filename": "gone.jpg"}, r"1 of 2 images are not in .*, the first is gone\.jpg, and VIA"),
        (
            {"filename": "../../a.jpg"},
            r"json: \.\./\.\./a\.jpg is about the image a\.jpg, which a\.jpg is",
        ),
        ({"filename": "/etc/passwd"}, "1 of 2 images are not in .*, the first is /etc/passwd"),
    ],
)
def test_a_broken_image_is_named(tmp_path, change, words):
    content = entries(a=[region()], b=[region()])
    content["b.jpg77"] |= change
    root = write(tmp_path / "set", content)
    with pytest.raises(InputError, match=words):
        read(root)
    found = read(root, skip=True)
    assert [one["file_name"] for one in found["images"]] == ["a.jpg"] and len(found["bad"]) == 1


def test_images_may_be_in_another_folder(tmp_path):
    root = write(tmp_path / "set", entries(a=[region()], b=[]), images="")
    write(tmp_path / "photos" / "sea", {}, "x.json")
    places = {"images": tmp_path / "photos", "cache": tmp_path / "cache"}
    opened = open_datasets(root, splits=("all",), **places)["all"]
    assert opened.path(0) == tmp_path / "photos" / "sea" / "a.jpg" and len(opened) == 2


def test_no_image_at_all(tmp_path):
    root = write(tmp_path / "set", entries(a=[region()], b=[]), images="")
    with pytest.raises(InputError, match="2 of 2 images are not in .*, the first is a.jpg"):
        read(root, skip=True)


def test_broken_files_are_named(tmp_path):
    root = write(tmp_path / "set", entries(a=[region()]))
    file = root / "via_region_data.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match="data.json is not a json file"):
        read(root)
    file.unlink()
    write_csv(root / "via.csv", entries(a=[region()]))
    text = (root / "via.csv").read_text()
    (root / "via.csv").write_text(text.replace("polygon", 'pol""y'))
    with pytest.raises(InputError, match=r"region 0 of a\.jpg has shape_attributes '{.* a record"):
        read(root)
    (root / "via.csv").write_text(f"{text}c.jpg,1\n")
    with pytest.raises(InputError, match=r"via\.csv: image of row 3 is None where a record"):
        read(root)


def raw(name):
    """File name -> points of the regions, as the file has them."""
    found = {}
    for record in json.loads((REAL / name).read_text()).values():
        regions = record["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        found[record["filename"]] = regions
    return found


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not in {REAL}")
@pytest.mark.parametrize("folder", ["kudzu", "rice", "export", "from_labelme"])
def test_real_files(tmp_path, folder):
    """Those of the images that are not there get one that is large enough."""
    (file,) = set((REAL / folder).glob("via*.json")) - set(REAL.glob("*/via_export_coco.json"))
    regions = raw(file)
    for each in (REAL / folder).iterdir():
        if "coco" not in each.name:
            (tmp_path / each.name).symlink_to(each)
    for name in regions:
        if not (tmp_path / name).exists():
            Image.new("L", (4000, 4000)).save(tmp_path / name)
    content = read(tmp_path)
    assert {one["file_name"] for one in content["images"]} == regions.keys()
    flat = [one for each in regions.values() for one in each]
    lines = [one for one in flat if one["shape_attributes"]["name"] == "polyline"]
    assert len(content["annotations"]) == len(flat) - len(lines)
    assert content["counts"] == ({via.OPEN: len(lines)} if lines else {})
    names = [*dict.fromkeys(tuple(one["region_attributes"].values()) for one in flat)]
    assert {one["name"] for one in content["categories"]} == {(*one, "object")[0] for one in names}
    boxes = [one["segmentation"] == [] for one in content["annotations"]]
    assert sum(boxes) == sum(one["shape_attributes"]["name"] == "rect" for one in flat)
    for one, found in zip(flat, content["annotations"]):
        shape = one["shape_attributes"]
        if shape["name"] == "polygon":
            points = np.stack([shape["all_points_x"], shape["all_points_y"]], 1)
            assert found["segmentation"] == [points.ravel().tolist()]
