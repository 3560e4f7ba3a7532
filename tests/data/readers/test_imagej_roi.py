"""data/readers/imagej_roi.py: regions of every kind, composites, zips of them."""

import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import readers
from data.errors import InputError
from data.readers import imagej_roi

REAL = Path(__file__).parents[4] / "shared" / "datasets" / "formats" / "imagej_roi"
WIDTH, HEIGHT = 40, 25
SQUARE = [(2, 3), (12, 3), (12, 9), (2, 9)]
POLYGON, RECT, OVAL, LINE, FREEHAND, POINT = 0, 1, 2, 3, 7, 10


def roi(kind=POLYGON, points=SQUARE, box=None, subpixel=None, segments=(), version=227,
        subtype=0, position=0, group=0, z=0):  # fmt: skip
    """The bytes of a region; `subpixel`: floats at 18 (of an oval) or further points."""
    points = [] if box or segments else points
    left, top = box[:2] if box else map(min, zip(*points)) if points else (0, 0)
    right, bottom = box[2:] if box else map(max, zip(*points)) if points else (0, 0)
    head = struct.pack(">4shBxhhhhH", b"Iout", version, kind, top, left, bottom, right, len(points))
    head += struct.pack(">4f", *(subpixel if subpixel and box else [0] * 4)) + b"\0\0"
    head += struct.pack(">i8xhh4xi", len(segments), subtype, 128 if subpixel else 0, position)
    body = struct.pack(f">{len(points)}h", *(x - left for x, _ in points))
    body += struct.pack(f">{len(points)}h", *(y - top for _, y in points))
    if subpixel and not box:
        body += struct.pack(f">{len(points)}f", *(x for x, _ in subpixel))
        body += struct.pack(f">{len(points)}f", *(y for _, y in subpixel))
    body += struct.pack(f">{len(segments)}f", *segments)
    second = struct.pack(">4x3i14xB33x", 0, z, 0, group)
    return head + struct.pack(">i", 64 + len(body)) + body + second


def path(points):
    """The segments of a closed path."""
    (x, y), *others = points
    return [0, x, y, *(number for point in others for number in (1, *point)), 4]


def write(folder, *regions, image="a.png", file="a.zip", size=(WIDTH, HEIGHT)):
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        Image.new("RGB", size).save(folder / image)
    if file.endswith(".zip"):
        with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, one in enumerate(regions):
                archive.writestr(f"{number:04}-0012.roi", one)
    else:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(*regions)
    return folder


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def oval(x, y, rx, ry):
    """What an ellipse covers, by the centres of pixels."""
    down, right = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((right - x) / rx) ** 2 + ((down - y) / ry) ** 2 <= 1


def test_outlines(tmp_path, read, labels, pixels):
    finer = [(x + 0.25, y + 0.5) for x, y in SQUARE]
    left = [(x - 5, y - 5) for x, y in SQUARE]
    regions = [roi(), roi(FREEHAND, group=3), roi(8, left), roi(subpixel=finer),
               roi(subpixel=finer, version=221)]  # fmt: skip
    content = read(write(tmp_path, *regions))
    flat = [[float(number) for point in SQUARE for number in point]]
    found = [one["segmentation"] for one in content["annotations"]]
    assert found[0] == found[1] == found[4] == flat
    assert found[3] == [[number for point in finer for number in point]]
    assert (pixels(content["annotations"][2]) == box(0, 0, 7, 4)).all()
    assert labels(content) == ["object", "group 3", "object", "object", "object"]


def test_ovals_and_rectangles(tmp_path, read, pixels):
    regions = [roi(OVAL, box=(4, 3, 24, 15)), roi(OVAL, box=(-6, -4, 6, 4)),
               roi(OVAL, box=(4, 3, 24, 15), subpixel=(4.5, 3.5, 10, 9)),
               roi(RECT, box=(4, 3, 9, 8)), roi(FREEHAND, subtype=5)]  # fmt: skip
    content = read(write(tmp_path, *regions))
    for place, wanted in enumerate((oval(14, 9, 10, 6), oval(0, 0, 6, 4), oval(9.5, 8, 5, 4.5))):
        mask = pixels(content["annotations"][place])
        assert (mask != wanted).sum() <= 0.1 * wanted.sum()
    first, turned = content["annotations"][3:]
    assert first["corners"] and first["bbox"] == [4, 3, 5, 5] and first["segmentation"] == []
    assert turned["corners"] and turned["bbox"] == [2, 3, 10, 6]


def test_composites_are_even_odd(tmp_path, read, pixels):
    hole = [(4, 5), (10, 5), (10, 8), (4, 8)]
    island = [(6, 6), (8, 6), (8, 7), (6, 7)]
    away = [(x + 20, y + 10) for x, y in SQUARE]
    k = 6 * 4 / 3 * (math.sqrt(2) - 1)  # a circle of radius 6 as four cubic curves
    x, y = 20, 12
    circle = [0, x + 6, y, 3, x + 6, y + k, x + k, y + 6, x, y + 6,
              3, x - k, y + 6, x - 6, y + k, x - 6, y, 3, x - 6, y - k, x - k, y - 6, x, y - 6,
              3, x + k, y - 6, x + 6, y - k, x + 6, y, 4]  # fmt: skip
    arch = [0, 0, 10, 2, 10, -10, 20, 10, 4]  # a parabola, highest in its middle
    regions = [path(SQUARE) + path(hole) + path(island), path(SQUARE) + path(away), circle, arch]
    content = read(write(tmp_path, *(roi(RECT, segments=one) for one in regions)))
    rings, parts, disc, bow = content["annotations"]
    wanted = box(2, 3, 12, 9) ^ box(4, 5, 10, 8) ^ box(6, 6, 8, 7)
    assert (pixels(rings) == wanted).all() and wanted.sum() == 60 - 18 + 2
    assert len(parts["segmentation"]) == 2 and parts["segmentation"][0][:2] == [2, 3]
    assert (pixels(disc) != oval(x, y, 6, 6)).sum() <= 6
    assert pixels(bow)[1:9, 10].all() and abs(pixels(bow).sum() - 20 * 10 * 2 / 3) < 12


def test_what_has_no_area_is_counted(tmp_path, read):
    left = [roi(LINE), roi(5), roi(POINT, [(3, 3)]), roi(RECT, box=(1, 1, 5, 5), subtype=1)]
    content = read(write(tmp_path, roi(), *left))
    assert len(content["annotations"]) == 1
    assert content["counts"] == {"lines, points and texts": 4}


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("a.zip", "a.png"),
        ("a_RoiSet.zip", "a.tif"),
        ("RoiSet_a.zip", "a.png"),
        ("aROIs.zip", "a.jpg"),
        ("RoiSet.zip", "other.png"),
        ("a.roi", "a.png"),
        ("0003-0012.roi", "other.png"),
        ("a/0003-0012.roi", "a.png"),
    ],
)
def test_images_by_name(tmp_path, file, image, read):
    content = read(write(tmp_path, roi(), image=image, file=file))
    assert content["images"][0]["file_name"] == image and len(content["annotations"]) == 1


def test_an_image_that_is_not_there(tmp_path, read, refused):
    write(tmp_path, roi())
    write(tmp_path, roi(), image=None, file="b.zip")
    content = refused(tmp_path, r"b\.zip has no image of its name")
    assert len(content["images"]) == 1
    write(tmp_path / "c", roi(), file="b.roi")
    with pytest.raises(InputError, match=r"b\.roi has no image of its name"):
        read(tmp_path / "c")


def test_regions_of_several_slices(tmp_path, read):
    assert len(read(write(tmp_path / "a", roi(position=2), roi(position=2)))["annotations"]) == 2
    assert len(read(write(tmp_path / "b", roi(), roi(position=1, z=1)))["annotations"]) == 2
    with pytest.raises(InputError, match=r"a\.zip: region 0001-0012\.roi is at .*of one slice"):
        read(write(tmp_path / "c", roi(z=1), roi(z=2)))


def test_a_zip_is_a_data_set_where_it_holds_regions_alone(tmp_path):
    write(tmp_path, roi())
    found = readers.recognise(tmp_path / "a.zip")
    assert found["all"].reader is imagej_roi and list(found["all"].names) == ["a.zip"]
    assert readers.recognise(tmp_path)["all"].reader is imagej_roi
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("__MACOSX/._0000.roi", b"x")
    assert imagej_roi.is_roi(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("read me.txt", b"x")
    with pytest.raises(InputError, match="is an archive"):
        readers.recognise(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (b"", "is damaged"),
        (roi()[:70], "is damaged"),
        (b"Junk" + roi()[4:], "no region of ImageJ"),
        (roi(11), "unknown kind 11"),
        (roi(points=SQUARE[:2]), "at least 6"),
        (roi(points=[]), "at least 6"),
        (roi(subpixel=[(math.nan, 1)] * 4), "not finite"),
        (roi(subpixel=[(1e30, 1), (2, 2), (3, 3), (4, 4)]), "far outside"),
        (roi(RECT, segments=[0, 1, 1, 9, 3, 3]), "unknown kind 9"),
        (roi(RECT, segments=[1, 1, 1]), "unknown kind 1"),
        (roi(RECT, segments=[0, 1, 1, 3, 1, 1]), "ends early"),
        (roi(OVAL, box=(1, 1, 9, 9), subpixel=[math.nan] * 4), "not finite"),
        (roi(OVAL, box=(1, 1, 9, 9), subpixel=[math.inf] * 4), "not finite|far"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, spoilt, words, refused):
    folder = write(tmp_path, roi(), spoilt)
    content = refused(folder, rf"a\.zip: region 0001-0012\.roi .*({words}).*save it")
    assert "broken" not in content["annotations"][0]
    assert all(one["broken"] for one in content["annotations"][1:])


def test_zips_that_are_damaged(tmp_path, read):
    data = bytearray((write(tmp_path, roi(), roi(group=1)) / "a.zip").read_bytes())
    data[60:70] = b"\xff" * 10  # inside of the first region
    (tmp_path / "a.zip").write_bytes(data)
    content = read(tmp_path, skip=True)
    assert "cannot be unpacked" in content["bad"][0][1]
    (tmp_path / "a.zip").write_bytes(data[:200])
    assert imagej_roi.find(tmp_path) is None


def raw_points(name):
    """What another reader of these files found in one, and its kind."""
    about = json.loads((REAL / f"{name}.json").read_text())[name]
    return about, about["type"]


def test_real_files():
    files = sorted(REAL.glob("*.roi"))
    if not files:
        pytest.skip(f"{REAL} is not here")
    seen = 0
    for file in files:
        if not file.with_suffix(".json").is_file():
            continue
        about, kind = raw_points(file.stem)
        paths = [one.reshape(-1, 2) for one in imagej_roi.parse(file.read_bytes()).paths]
        if kind in ("point", "polyline"):
            assert not paths
        elif kind == "composite":
            wanted = [np.array(one) for one in about["paths"]]
            assert len(paths) == len(wanted)
            for ours, theirs in zip(paths, wanted):
                close = np.abs(ours[:, None] - theirs).max(2).min(0)
                assert close.max() < 0.01 if len(ours) == len(theirs) else close.max() < 1
        elif kind == "oval":
            low = [about["left"], about["top"]]
            size = [about["width"], about["height"]]
            assert np.abs(paths[0].min(0) - low).max() < 0.1
            assert np.abs(np.ptp(paths[0], 0) - size).max() < 0.2
        elif "aspect_ratio" in about:
            ends = np.array([[about["ex1"], about["ey1"]], [about["ex2"], about["ey2"]]])
            centre, (right, down) = ends.mean(0), np.diff(ends, axis=0)[0]
            along = (paths[0] - centre) @ [right, down] / math.hypot(right, down)
            across = (paths[0] - centre) @ [-down, right] / math.hypot(right, down)
            half = math.hypot(right, down) / 2
            radii = np.hypot(along, across / about["aspect_ratio"]) / half
            assert np.abs(radii - 1).max() < 0.02
        else:
            assert (paths[0] == np.stack([about["x"], about["y"]], 1)).all()
        seen += 1
    assert seen >= 12
    print(f"{seen} files")


def test_a_real_zip(tmp_path, read, pixels):
    if not (REAL / "EduROIs.zip").is_file():
        pytest.skip(f"{REAL} is not here")
    (tmp_path / "EduROIs.zip").write_bytes((REAL / "EduROIs.zip").read_bytes())
    Image.new("RGB", (900, 900)).save(tmp_path / "Edu.png")
    content = read(tmp_path)
    with zipfile.ZipFile(REAL / "EduROIs.zip") as archive:
        raw = [archive.read(name) for name in archive.namelist()]
    assert len(content["annotations"]) == len(raw)
    for data, annotation in zip(raw, content["annotations"]):
        top, left, _, _, count = struct.unpack_from(">4hH", data, 8)
        numbers = struct.unpack_from(f">{2 * count}h", data, 64)
        x, y = np.array(numbers[:count]) + left, np.array(numbers[count:]) + top
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        assert pixels(annotation, (900, 900)).sum() == area  # traced along the pixels
    print(f"{len(raw)} regions")
