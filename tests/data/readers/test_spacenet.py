"""data/readers/spacenet.py: outlines as text, images by the end of their names."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import readers
from data.readers import spacenet

REAL = Path(__file__).parents[4] / "shared/datasets/formats/spacenet_geojson/SN2_sample_truth.csv"
WIDTH, HEIGHT = 40, 25
OUTER, HOLE = "(2 3 0,12 3 0,12 9 0,2 9 0,2 3 0)", "(4 5, 10 5, 10 8, 4 8, 4 5)"
AWAY = "(20 3,24 3,24 9,20 9,20 3)"


def write(folder, *rows, names=("RGB-PanSharpen_AOI_1.tif",), size=(WIDTH, HEIGHT)):
    for name in names:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "images" / name)
    (folder / "summaryData").mkdir(parents=True, exist_ok=True)
    with open(folder / "summaryData/truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ImageId", "BuildingId", "PolygonWKT_Pix", "X"], *rows])
    return folder


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_parts_and_holes(tmp_path, read, pixels):
    rows = [
        ["AOI_1", 1, f"POLYGON ({OUTER})", 1],
        ["AOI_1", 2, f"POLYGON ({OUTER},{HOLE})", 1],
        ["AOI_1", 3, f"MULTIPOLYGON (({OUTER},{HOLE}),({AWAY}))", 1],
        ["AOI_2", -1, "POLYGON EMPTY", "POLYGON EMPTY"],
    ]
    content = read(write(tmp_path, *rows, names=["RGB_AOI_1.tif", "PAN_AOI_1.tif", "AOI_2.tif"]))
    whole, holed, both = content["annotations"]
    assert whole["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9, 2, 3]]
    wanted = box(2, 3, 12, 9) & ~box(4, 5, 10, 8)
    assert (pixels(holed) == wanted).all()
    assert (pixels(both) == wanted | box(20, 3, 24, 9)).all()
    assert content["categories"] == [{"id": 1, "name": "building"}]
    found = [image["file_name"] for image in content["images"]]
    assert found == ["images/RGB_AOI_1.tif", "images/AOI_2.tif"]
    assert readers.recognise(tmp_path)["all"].reader is spacenet


@pytest.mark.parametrize("names", [(), ("PAN_AOI_1.tif", "MUL_AOI_1.tif")])
def test_images_that_are_missing_or_open(tmp_path, names, refused):
    rows = [["AOI_1", 1, f"POLYGON ({OUTER})", 1], ["AOI_2", 1, f"POLYGON ({OUTER})", 1]]
    folder = write(tmp_path, *rows, names=[*names, "AOI_2.png"])
    content = refused(folder, rf"truth\.csv has the image 'AOI_1'.* {len(names)} files")
    assert len(content["bad"]) == len(content["images"]) == len(content["annotations"]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has '' where a POLYGON"),
        ("LINESTRING (1 2,3 4)", "where a POLYGON"),
        ("POLYGON ((1 2,3 x,4 4))", "has another form"),
        ("POLYGON ((1 2,3,4 4))", "2 numbers"),
        ("POLYGON ((1 2,nan 3,4 4))", "2 numbers"),
        ("POLYGON ((1 2,1e30 3,4 4))", "far outside"),
        ("POLYGON ((1 2,3 3))", "at least 6"),
        ("POLYGON ((1 2,3 3,4", "where a POLYGON"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, words, refused):
    folder = write(tmp_path, ["AOI_1", 1, f"POLYGON ({OUTER})", 1], ["AOI_1", 2, text, 1])
    content = refused(folder, rf"truth\.csv: row 3 .*{words}.*remove the row")
    assert [one.get("broken") for one in content["annotations"]] == [
        None,
        True,
    ]


def test_a_real_file(tmp_path, read, pixels):
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not here")
    lines = REAL.read_text().splitlines()[1:]
    wanted = Counter(line.split(",")[0] for line in lines if ",-1," not in line)
    empty = {line.split(",")[0] for line in lines if ",-1," in line}
    folder = write(tmp_path, names=[f"RGB_{name}.png" for name in wanted.keys() | empty],
                   size=(650, 650))  # fmt: skip
    (folder / "summaryData/truth.csv").write_text(REAL.read_text())
    content = read(folder)
    names = {one["id"]: Path(one["file_name"]).stem[4:] for one in content["images"]}
    assert Counter(names[one["image_id"]] for one in content["annotations"]) == wanted
    assert set(names.values()) == wanted.keys() | empty
    outlines = [line.split('"')[1] for line in lines if '"' in line]
    for text, annotation in zip(outlines, content["annotations"], strict=True):
        total = edge = 0.0
        for sign, ring in zip([1, *[-1] * 99], re.findall(r"\(([^()]+)\)", text)):
            xy = np.array([point.split()[:2] for point in ring.split(",")], float)
            (x, y), step = xy.T, np.diff(xy, axis=0)
            total += sign * abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2
            edge += np.hypot(*step.T).sum()
        assert abs(pixels(annotation, (650, 650)).sum() - total) <= edge / 2 + 1
    print(f"{wanted.total()} buildings, {len(empty)} images without")
