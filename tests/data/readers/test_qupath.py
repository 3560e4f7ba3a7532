"""data/readers/qupath.py: GeoJSON in pixels; map coordinates are refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.readers import qupath

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats"
WIDTH, HEIGHT = 40, 25
RING = [[2, 3], [12, 3], [12, 9], [2, 9], [2, 3]]
HOLE = [[4, 5], [10, 5], [10, 8], [4, 8], [4, 5]]
AWAY = [[20, 13], [30, 13], [30, 19], [20, 13]]


def feature(*rings, kind="Polygon", name="Tumor", coordinates=None, **properties):
    geometry = {"type": kind, "coordinates": coordinates or [*rings] or [RING]}
    if name:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    about = {"objectType": "annotation"} | properties
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": about}


def write(path, content, image=".png", size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    if image:
        Image.new("RGB", size).save(path.with_name(path.stem + image))
    return path.parent


def collection(*features, **more):
    return {"type": "FeatureCollection", "features": [*features], **more}


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_parts_are_polygons_and_holes_are_cut_out(tmp_path, read, labels, pixels):
    parts = feature(kind="MultiPolygon", coordinates=[[RING], [AWAY]], name="Stroma")
    holed = feature(
        kind="MultiPolygon", coordinates=[[RING, HOLE], [[[20, 3], [24, 3], [24, 9], [20, 9]]]]
    )
    content = read(
        write(tmp_path / "a.geojson", collection(feature(), parts, feature(RING, HOLE), holed))
    )
    one, two, ring, both = content["annotations"]
    assert one["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert two["segmentation"] == [*one["segmentation"], [20, 13, 30, 13, 30, 19]]
    wanted = box(2, 3, 12, 9) & ~box(4, 5, 10, 8)
    assert (pixels(ring) == wanted).all()
    assert (pixels(both) == wanted | box(20, 3, 24, 9)).all()
    assert labels(content) == ["Tumor", "Stroma", "Tumor", "Tumor"]
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]


@pytest.mark.parametrize(
    "content",
    [collection(feature()), [feature()], feature(), feature()["geometry"]],
    ids=["collection", "list", "feature", "geometry"],
)
def test_what_a_file_may_hold(tmp_path, content, read, labels):
    read_ = read(write(tmp_path / "a.geojson", content))
    assert read_["annotations"][0]["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert labels(read_) == ["Tumor" if "geometry" in str(content) else "object"]
    assert labels(read(tmp_path / "a.geojson")) == labels(read_)


def test_classes_and_their_absence(tmp_path, read, labels):
    names = {"names": ["Immune", "CD8"], "color": [1, 1, 1]}
    subclass = feature(name=None, classification=names)
    other = feature(name=None, category="leaf")
    content = read(write(tmp_path / "a.json", [subclass, other, feature(name=None)]))
    assert labels(content) == ["Immune: CD8", "leaf", None]
    assert content["annotations"][2]["broken"] and content["counts"] == {
        "objects without a class": 1
    }
    content = read(write(tmp_path / "a.json", [feature(name=None), feature(name=None)]))
    assert labels(content) == ["object", "object"] and content["counts"] == {}


def test_what_has_no_area_is_counted(tmp_path, read):
    cell = feature() | {"nucleusGeometry": {"type": "Polygon", "coordinates": [HOLE]}}
    left = [
        feature(kind="Point", coordinates=[1, 2]),
        feature(kind="LineString", coordinates=[[1, 2], [3, 4]]),
        feature(objectType="tile"),
        cell,
    ]
    content = read(write(tmp_path / "a.geojson", collection(*left)))
    assert len(content["annotations"]) == 1
    assert content["counts"] == {
        "lines, points and empty areas": 2,
        "tiles": 1,
        "nuclei of cells": 1,
    }


def test_images_by_name(tmp_path, read):
    write(tmp_path / "train/a.ome.geojson", [feature()], ".tif")
    write(tmp_path / "train/b.png.geojson", [], "")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train/b.png")
    write(tmp_path / "val/c.geojson", [feature()])
    found = [image["file_name"] for image in read(tmp_path, split="train")["images"]]
    assert found == ["train/a.ome.tif", "train/b.png"]
    assert read(tmp_path, split="val")["images"][0]["file_name"] == "val/c.png"
    alone = write(tmp_path / "alone/annotations.geojson", [feature()], "")
    Image.new("RGB", (WIDTH, HEIGHT)).save(alone / "slide 1.png")
    assert read(alone)["images"][0]["file_name"] == "slide 1.png"
    write(alone / "more.geojson", [feature()])
    with pytest.raises(InputError, match=r"annotations\.geojson has no image of its name"):
        read(alone)


@pytest.mark.parametrize(
    "content",
    [
        collection(feature([[733601.5, 3725139], [733643, 3725139], [733643, 3725100]])),
        collection(feature([[-115.3, 36.2], [-115.2, 36.2], [-115.2, 36.1]])),
        collection(feature([[8.1, 47.1], [8.2, 47.2], [8.1, 47.2]]), crs={"name": "CRS84"}),
        collection(*[feature([[8.11, 4.1], [8.12, 4.2], [8.13, 4.2]])] * 2),
        collection(feature(), *[feature([[80, 80], [90, 80], [90, 90]])] * 2),
    ],
    ids=["metres", "west", "named degrees", "dots", "full resolution"],
)  # fmt: skip
def test_map_coordinates_are_refused_with_advice(tmp_path, content, read):
    with pytest.raises(InputError, match=r"a\.geojson has objects from x = .*40 x 25 pixels.*tran"):
        read(write(tmp_path / "a.geojson", content))


def test_features_that_are_no_object(tmp_path, read):
    """GeoJSON without a place or coordinates; the areas of a collection are one object."""
    parts = [[[2, 3], [8, 3], [8, 9], [2, 9]], [[20, 3], [26, 3], [26, 9], [20, 9]]]
    areas = [{"type": "Polygon", "coordinates": [part]} for part in parts]
    both = {"type": "GeometryCollection", "geometries": [*areas, {"type": "Point"}, None]}
    core = feature() | {"properties": {"objectType": "tma_core"}}
    empty = {"type": "GeometryCollection", "geometries": []}
    content = read(
        write(
            tmp_path / "a.geojson",
            collection(
                {"type": "Feature", "geometry": both, "properties": {}},
                {"type": "Feature", "geometry": empty, "properties": {}},
                {"type": "Feature", "geometry": None, "properties": {}},
                {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}},
                core,
            ),
        )
    )
    (found,) = content["annotations"]
    assert found["segmentation"] == [sum(part, []) for part in parts]
    assert content["counts"] == {
        "features without a place": 1,
        "lines, points and empty areas": 2,
        "cores of a TMA": 1,
    }


def test_objects_across_the_border_stay(tmp_path, read, pixels):
    across = [[-4, -3], [6, -3], [6, 5], [-4, 5]]
    content = read(write(tmp_path / "a.geojson", collection(feature(across), crs={"name": "EPSG"})))
    assert (pixels(content["annotations"][0]) == box(0, 0, 6, 5)).all()


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (7, "has another form"),
        ({"type": "Feature"}, "has no 'geometry'"),
        (feature(kind="Circle"), "unknown geometry 'Circle'"),
        (feature(coordinates=[7]), "has another form"),
        (feature(coordinates=[[]]), "where a list of points"),
        (feature(kind="MultiPolygon", coordinates=[[]]), "list of rings"),
        (feature([[2, 3], [12, 3], [12, float("nan")]]), "2 numbers"),
        (feature([[2, 3], [12, 3], [1e30, 3]]), "far outside"),
        (feature([[2, 3], [12, 3]]), "at least 6"),
        (feature([[2, 3], ["a", 3], [12, 3]]), "2 numbers"),
        (feature(name=["x"]), "has the class"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, spoilt, words, refused):
    folder = write(tmp_path / "a.geojson", collection(feature(), feature(), spoilt))
    content = refused(folder, rf"a\.geojson: feature 3.* {words}.*correct it")
    assert content["annotations"][2]["broken"]
    assert len(content["annotations"]) == 3


def test_files_that_cannot_be_used(tmp_path, read):
    write(tmp_path / "a.geojson", [feature()])
    (tmp_path / "b.geojson").write_text('[{"type": "Feature", ')
    (tmp_path / "c.json").write_text('{"other": 1}')
    content = read(tmp_path, skip=True)
    assert len(content["bad"]) == 1 and "b.geojson is not a json file" in content["bad"][0][1]
    assert content["counts"] == {"other json files": 1}
    assert qupath.find(tmp_path / "c.json") is None
    with pytest.raises(InputError, match="has no 'features'"):
        read(write(tmp_path / "d/a.geojson", {"type": "FeatureCollection"}))


def area_of(ring):
    """The area of a ring by the trapezoid rule."""
    return abs(sum((a[0] - b[0]) * (a[1] + b[1]) for a, b in zip(ring, ring[1:]))) / 2


@pytest.mark.parametrize("name", ["Single_cells_61to100", "TD_01_verysmall_mIF"])
def test_real_files(tmp_path, name, read, labels, pixels):
    file = REAL / "qupath_geojson" / f"{name}.geojson"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    raw = json.loads(file.read_text())["features"]
    polygons = [one for one in raw if one["geometry"]["type"] == "Polygon"]
    content = read(write(tmp_path / f"{name}.geojson", collection(*raw), ".png", (1000, 900)))
    wanted = [one["properties"]["classification"]["name"] for one in polygons]
    assert Counter(labels(content)) == Counter(wanted)
    assert content["counts"].get("lines, points and empty areas", 0) == len(raw) - len(polygons)
    for one, annotation in zip(polygons, content["annotations"], strict=True):
        (ring,) = one["geometry"]["coordinates"]
        length = sum(np.hypot(*np.subtract(a, b)) for a, b in zip(ring, ring[1:]))
        assert abs(pixels(annotation, (900, 1000)).sum() - area_of(ring)) < length / 2
    print(f"{name}: {len(polygons)} objects, {len(raw) - len(polygons)} points")


@pytest.mark.parametrize("name", ["gdf_from_mask_2", "geotiff_labels", "gj_to_px_result"])
def test_real_files_of_maps(tmp_path, name, read):
    file = REAL / "spacenet_geojson" / f"{name}.geojson"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    raw = json.loads(file.read_text())
    folder = write(tmp_path / f"{name}.geojson", raw, ".png", (900, 900))
    if name == "gj_to_px_result":  # in pixels, whatever its crs says
        assert len(read(folder)["annotations"]) == len(raw["features"])
    else:
        with pytest.raises(InputError, match="map coordinates"):
            read(folder)
