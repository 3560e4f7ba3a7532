"""data/readers/via.py: json, csv and projects, shapes, and which attribute is the class."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.opening import open_datasets
from data.readers import via

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "via"
HEIGHT, WIDTH = 30, 40
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


def test_json_csv_and_project_hold_the_same(tmp_path, read, labels):
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


def test_shapes(tmp_path, read, labels, pixels, ellipse):
    oval = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 5, "theta": 0.4}
    line = {"name": "polyline", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]}
    closed = {key: [*value, value[0]] for key, value in line.items() if key != "name"}
    shapes = [
        SQUARE | {"all_points_x": [-4, 12, 12, -4]},
        {"name": "rect", "x": 5, "y": 6, "width": 7, "height": 8},
        {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        oval,
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
    inside = ellipse(20, 15, 12, 5, 0.4)
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
def test_the_class_is_the_attribute_that_most_regions_have(
    tmp_path, attributes, wanted, read, labels
):
    content = read(write(tmp_path / "set", entries(a=[region(**one) for one in attributes])))
    assert labels(content) == wanted
    assert content["counts"].get("regions without a class", 0) == wanted.count(None)
    assert [one.get("broken", False) for one in content["annotations"]] == [
        name is None for name in wanted
    ]


def test_two_attributes_that_may_be_the_class_are_named(tmp_path, read):
    root = write(tmp_path / "set", entries(a=[region(kind="a", colour="red")]))
    with pytest.raises(InputError, match="as many regions have the attribute 'kind' as 'colour'"):
        read(root)
    rows = [{"kind": "a", "colour": "red"}, {"kind": "b", "colour": "red", "type": "x"}]
    write(root, entries(a=[region(**one) for one in rows]))  # the usual name is that of fewer
    with pytest.raises(InputError, match="as many regions have the attribute 'kind' as 'colour'"):
        read(root)


def test_classes_that_a_project_lists_are_kept(tmp_path, read, labels):
    options = {"crab": "", "fish": "a fish", "ray": ""}
    attributes = {"kind": {"type": "radio", "options": options}, "note": {"type": "text"}}
    project = {"_via_settings": {}, "_via_img_metadata": entries(a=[region(kind="fish")], b=[])}
    project["_via_attributes"] = {"region": attributes, "file": {}}
    content = read(write(tmp_path / "set", project))
    assert [one["name"] for one in content["categories"]] == ["crab", "fish", "ray"]
    assert labels(content) == ["fish"]


def version_3(**regions):
    """A project of three files: two images and a video."""
    names = [("a.jpg", 2), ("b.jpg", 2), ("c.mp4", 4)]
    files = {str(i): {"fid": str(i), "fname": name, "type": type_, "loc": 1, "src": ""}
             for i, (name, type_) in enumerate(names, start=1)}  # fmt: skip
    options = {"0": "crab", "1": "fish", "5": "ray"}
    attributes = {
        "1": {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": options},
        "2": {"aname": "note", "anchor_id": "FILE1_Z0_XY1", "type": 1, "options": {}},
    }
    project = {"pid": "__VIA_PROJECT_ID__", "vid_list": ["1", "2", "3"], "pname": "pond"}
    return {
        "project": project, "config": {}, "attribute": attributes, "file": files,
        "metadata": {id_: {"flg": 0, "z": []} | one for id_, one in regions.items()},
        "view": {id_: {"fid_list": [id_]} for id_ in files},
    }  # fmt: skip


def test_projects_of_version_3(tmp_path, read, labels, pixels):
    def one(*xy, vid="1", kind="0", **more):
        return {"vid": vid, "xy": list(xy), "av": {"1": kind, "2": "x, y"}} | more

    outline = [v for point in zip(SQUARE["all_points_x"], SQUARE["all_points_y"]) for v in point]
    project = version_3(
        polygon=one(7, *outline),
        box=one(2, 10, 5, 20, 15, kind="1"),
        circle=one(3, 20, 15, 5),
        ellipse=one(4, 20, 15, 8, 3, av={"1": "0,1"}),
        line=one(5, 1, 1, 2, 2),
        closed=one(6, *outline, *outline[:2], vid="2"),
        point=one(1, 3, 3),
        of_the_file={"vid": "1", "xy": [], "av": {"3": "x"}},
        frame=one(2, 1, 1, 5, 5, vid="3", z=[1.5]),
        bare=one(7, *outline, av={}),
    )
    content = read(write(tmp_path / "set", project, "via_project_7.json"))
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.jpg"]
    wanted = ["crab", "fish", "crab", "crab, fish", None, "crab"]
    assert labels(content) == wanted and content["annotations"][4]["broken"]
    assert content["counts"] == {
        "files that are no images": 1, "regions without a shape, or of videos": 2,
        "points": 2, "regions without a class": 1,
    }  # fmt: skip
    assert [one["name"] for one in content["categories"]] == ["crab", "crab, fish", "fish", "ray"]
    polygon, box, circle, ellipse, _, closed = content["annotations"]
    second = write(tmp_path / "two", entries(a=[region(kind="crab")]))
    assert polygon["segmentation"] == read(second)["annotations"][0]["segmentation"]
    assert (pixels(closed) == pixels(polygon)).all() and closed["image_id"] == 2
    assert box["bbox"] == [10, 5, 20, 15] and box["segmentation"] == []
    assert abs(pixels(circle).sum() - math.pi * 25) < 3
    assert abs(pixels(ellipse).sum() - math.pi * 24) < 5


@pytest.mark.parametrize(
    "broken, words",
    [
        ({"vid": "9"}, "region r is in view '9', which shows no one file"),
        ({"xy": [7, "1", 2]}, r"has \[7, '1', 2\] where finite numbers"),
        ({"xy": [8, 1, 2, 3, 4]}, "has the unknown shape 'number 8'"),
        ({"xy": [2, 1, 2]}, r"has \[1.0, 2.0, None, None\] where"),
        ({"av": [1]}, "has another form"),
    ],
)
def test_broken_projects_of_version_3(tmp_path, broken, words, read, labels, refused):
    good = {"vid": "2", "xy": [3, 20, 15, 5], "av": {"1": "1"}}
    project = version_3(r=good | {"vid": "1"} | broken, good=good)
    root = write(tmp_path / "set", project)
    content = refused(root, rf"data\.json: .*{words}.*: correct it")
    assert labels(content)[-1] == "fish"
    (root / "via_region_data.json").unlink()
    text = "# Exported using VGG Image Annotator\n# CSV_HEADER = metadata_id,file_list,flags\n"
    (root / "via.csv").write_text(text)
    with pytest.raises(InputError, match="is a csv of VIA 3: save the project as json"):
        read(root)


def test_the_files_may_be_in_annotations(tmp_path, read):
    root = write(tmp_path / "set" / "images", {}, "x.txt").parent
    write(root / "annotations", entries(a=[region()], b=[]), images="")
    for place in (root, root / "annotations" / "via_region_data.json"):
        names = [one["file_name"] for one in read(place)["images"]]
        assert names == ["images/a.jpg", "images/b.jpg"]


def test_splits_and_folders(tmp_path, read):
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
        (region({"name": 3}), "has the unknown shape 3"),
        (region({}), "has no 'name'"),
        (region(kind="a\nb"), "has the class"),
        ({"shape_attributes": SQUARE}, "has no 'region_attributes'"),
        (7, "has another form"),
    ],
)
def test_a_broken_region_is_named_and_ignored(tmp_path, broken, words, refused):
    root = write(tmp_path / "set", entries(a=[broken, region(kind="crab")]))
    fix = "[^:]*: correct it [^:]*$"
    content = refused(root, rf"data\.json: region 0 of a\.jpg {words}{fix}")
    assert [record for record, _ in content["bad"]] == ["region 0 of a.jpg"]
    assert [one.get("broken", False) for one in content["annotations"]] == [True, False]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"regions": 3}, r"image b\.jpg77 has another form"),
        ({"filename": "gone.jpg"}, r"1 of 2 images are not in .*, the first is gone\.jpg, and VIA"),
        (
            {"filename": "../../a.jpg"},
            r"json: \.\./\.\./a\.jpg is about the image a\.jpg, which a\.jpg is",
        ),
        ({"filename": "/etc/passwd"}, "1 of 2 images are not in .*, the first is /etc/passwd"),
    ],
)
def test_a_broken_image_is_named(tmp_path, change, words, read):
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


def test_no_image_at_all(tmp_path, read):
    root = write(tmp_path / "set", entries(a=[region()], b=[]), images="")
    with pytest.raises(InputError, match="2 of 2 images are not in .*, the first is a.jpg"):
        read(root, skip=True)


def test_broken_files_are_named(tmp_path, read):
    root = write(tmp_path / "set", entries(a=[region()]))
    file = root / "via_region_data.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match="data.json is not a json file"):
        read(root)
    file.unlink()
    write_csv(root / "via.csv", entries(a=[region()]))
    text = (root / "via.csv").read_text()
    (root / "via.csv").write_text(text.replace("polygon", 'pol""y'))
    with pytest.raises(InputError, match=r"region 0 of a\.jpg has another form"):
        read(root)
    (root / "via.csv").write_text(f"{text}c.jpg,1\n")
    with pytest.raises(InputError, match=r"via\.csv: image of row 3 has another form"):
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
def test_real_files(tmp_path, folder, read):
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
