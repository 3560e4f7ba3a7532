"""data/readers/cvat_xml.py: masks against runs decoded by hand, and wrong files."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data import rle
from data.errors import BadRecords, InputError
from data.opening import open_datasets
from data.readers import cvat_xml

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/cvat_xml"
WIDTH, HEIGHT = 40, 30
LABELS = ("cell", "dirt & dust")


def write(path, images, meta="<job><subset>default</subset>{labels}</job>"):
    """images: what stands between <annotations> and its end, after the meta."""
    names = "".join(f"<label><name>{n.replace('&', '&amp;')}</name></label>" for n in LABELS)
    labels = f"<labels>{names}</labels>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta>{meta.format(labels=labels)}</meta>\n{images}\n</annotations>\n",
        encoding="utf-8",
    )
    return path


def image(shapes="", name="a.png", width=40, height=30, more=""):
    return f'<image id="0" name="{name}" width="{width}" height="{height}" {more}>{shapes}</image>'


def read(path, skip=False, split="all"):
    bad = BadRecords(skip)
    return cvat_xml.read(cvat_xml.find(path)[split], bad), bad


def row_runs(mask):
    """Runs row by row, the first one of background."""
    runs, value = [0], False
    for pixel in mask.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return ", ".join(map(str, runs))


def mask_tag(mask, left, top, label="cell", more=""):
    height, width = mask.shape
    return (
        f'<mask label="{label}" rle="{row_runs(mask)}" left="{left}" top="{top}" '
        f'width="{width}" height="{height}" {more}/>'
    )


def test_masks_go_row_by_row_in_their_own_box(tmp_path, pixels):
    drawn = np.random.default_rng(0).random((7, 11)) < 0.5
    drawn[0, 0] = True  # the first run is 0
    shapes = mask_tag(drawn, 5, 9) + mask_tag(drawn, -3, -2) + mask_tag(drawn, 35, 28)
    content, _ = read(write(tmp_path / "annotations.xml", image(shapes)))
    first, above, below = map(pixels, content["annotations"])
    expected = np.zeros((3, 30, 40), bool)
    expected[0, 9:16, 5:16] = drawn
    expected[1, :5, :8] = drawn[2:, 3:]
    expected[2, 28:, 35:] = drawn[:2, :5]
    assert (np.stack([first, above, below]) == expected).all()
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    assert content["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "dirt & dust"}]


def test_polygons_keep_their_vertices_and_groups_are_one_object(tmp_path, pixels):
    square = '<polygon label="cell" points="{0},1.25;{1},1.25;{1},9.5;{0},9.5" {2}/>'
    shapes = (
        square.format(1.125, 5.5, 'group_id="3"')
        + square.format(20, 29, 'group_id="0"')
        + square.format(10, 15, 'group_id="3"')
        + square.format(30, 35, 'group_id="3"').replace("cell", "dirt &amp; dust")
        + mask_tag(np.ones((4, 4), bool), 1, 20, more='group_id="4"')
        + square.format(10, 15, 'group_id="4"')
        + '<box label="cell" xtl="1" ytl="1" xbr="15" ybr="9" group_id="3"/>'
    )
    content, _ = read(write(tmp_path / "annotations.xml", image(shapes)))
    two, one, other, mixed = content["annotations"]
    assert two["segmentation"] == [
        [1.125, 1.25, 5.5, 1.25, 5.5, 9.5, 1.125, 9.5],
        [10.0, 1.25, 15.0, 1.25, 15.0, 9.5, 10.0, 9.5],
    ]
    assert len(one["segmentation"]) == len(other["segmentation"]) == 1
    assert [each["category_id"] for each in content["annotations"]] == [1, 1, 2, 1]
    expected = pixels({"segmentation": [two["segmentation"][1]]})
    expected[20:24, 1:5] = True
    assert (pixels(mixed) == expected).all()
    assert content["counts"] == {"boxes of objects that have a mask": 1}


def test_other_xml_files_and_empty_groups(tmp_path):
    square = '<polygon label="cell" points="1,1;9,1;9,9" group_id=""/>'
    write(tmp_path / "annotations.xml", image(square + square))
    (tmp_path / "._annotations.xml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "a_config.xml").write_text("<View/>")
    assert len(read(tmp_path)[0]["annotations"]) == 2


def test_ellipses_are_filled(tmp_path, pixels, ellipse):
    shapes = '<ellipse label="cell" cx="20" cy="16" rx="16" ry="7" rotation="30"/>'
    content, _ = read(write(tmp_path / "annotations.xml", image(shapes)))
    expected, drawn = ellipse(20, 16, 16, 7, np.radians(30)), pixels(content["annotations"][0])
    assert (drawn & expected).sum() / (drawn | expected).sum() > 0.95


def test_boxes_stay_boxes_also_turned_ones(tmp_path):
    box = '<box label="cell" xtl="10" ytl="12" xbr="20" ybr="16" {}/>'
    shapes = box.format("") + box.format('rotation="90.0"') + '<tag label="cell"/>'
    shapes += '<polyline label="cell" points="1,1;2,2"/><points label="cell" points="3,3"/>'
    shapes += '<skeleton label="cell"><points label="x" points="1,2"/></skeleton>'
    content, _ = read(write(tmp_path / "annotations.xml", image(shapes)))
    straight, turned = content["annotations"]
    assert straight["bbox"] == [10, 12, 10, 4]
    assert turned["bbox"] == pytest.approx([13, 9, 4, 10])
    assert all(one["segmentation"] == [] and one["corners"] for one in (straight, turned))
    assert content["counts"] == {"tags": 1, "lines": 1, "points": 1, "skeletons": 1}


def test_boxes_of_a_group_are_one_object(tmp_path):
    box = '<box label="cell" xtl="{}" ytl="2" xbr="{}" ybr="6" group_id="1"/>'
    shapes = box.format(1, 5) + box.format(11, 17)
    (one,) = read(write(tmp_path / "annotations.xml", image(shapes)))[0]["annotations"]
    assert one["bbox"] == [1, 2, 16, 4] and len(one["corners"]) == 16


def test_subsets_are_splits(tmp_path):
    names = {"a": "Train", "b": "Validation", "c": "default"}
    images = "".join(image(name=f"{n}.png", more=f'subset="{s}"') for n, s in names.items())
    path = write(tmp_path / "annotations.xml", images, "<project>{labels}</project>")
    for subset in names.values():
        (tmp_path / "images" / subset).mkdir(parents=True)
    found = cvat_xml.find(tmp_path)
    assert found.keys() == {"train", "val"}
    assert found["val"].images[0] == tmp_path / "images" / "Validation"
    assert [each["file_name"] for each in read(path, split="train")[0]["images"]] == [
        "a.png",
        "c.png",
    ]
    assert [each["file_name"] for each in read(path, split="val")[0]["images"]] == ["b.png"]


def test_the_files_of_a_folder_are_one_set(tmp_path):
    write(tmp_path / "job_1.xml", image(name="a.png"))
    write(tmp_path / "job_2.xml", image(name="b.png"), "<job><subset>Validation</subset></job>")
    write(tmp_path / "job_3.xml", image(name="c.png"), "<task><subset>Train</subset></task>")
    found = cvat_xml.find(tmp_path)
    assert {split: source.names for split, source in found.items()} == {
        "train": ["job_3.xml", "job_1.xml"],
        "val": ["job_2.xml"],
    }
    assert len(cvat_xml.read(found["train"], BadRecords())["images"]) == 2


def test_labels_of_points_and_skeletons_are_no_classes(tmp_path):
    labels = "<labels>" + "".join(
        f"<label><name>{name}</name><type>{kind}</type>{more}</label>"
        for name, kind, more in (
            ("cell", "any", ""),
            ("pose", "skeleton", ""),
            ("hand", "points", "<parent>pose</parent>"),
            ("area", "mask", ""),
        )
    )
    path = write(tmp_path / "a.xml", image(), f"<task>{labels}</labels></task>")
    assert [each["name"] for each in read(path)[0]["categories"]] == ["cell", "area"]


def test_a_file_without_meta_has_the_names_that_occur(tmp_path):
    shapes = '<polygon label="b" points="1,1;9,1;9,9"/><polygon label="a" points="1,1;9,1;9,9"/>'
    path = write(tmp_path / "a.xml", image(shapes), "")
    content, _ = read(path)
    assert content["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert [each["category_id"] for each in content["annotations"]] == [2, 1]


def test_other_xml_is_not_recognised(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation><folder>VOC</folder></annotation>")
    (tmp_path / "b.json").write_text("{}")
    assert cvat_xml.find(tmp_path) is None
    assert cvat_xml.find(tmp_path / "a.xml") is None
    assert cvat_xml.find(tmp_path / "b.json") is None


def test_videos_are_refused_with_advice(tmp_path):
    path = write(tmp_path / "a.xml", '<track id="0" label="cell"></track>')
    with pytest.raises(InputError, match='CVAT for images 1.1"'):
        cvat_xml.find(path)


POLYGON = '<polygon label="cell" points="1,1;9,1;9,9"/>'
SQUARE = mask_tag(np.ones((4, 4), bool), 1, 1)
WRONG = {
    "at least 6 coordinates": POLYGON.replace(";9,9", ""),
    "even number": POLYGON.replace("9,9", "9,9,9"),
    "no numbers": POLYGON.replace("9,9", "9;x"),
    "not finite": POLYGON.replace("9,9", "nan,9"),
    "far outside": POLYGON.replace("9,9", "1e8,9"),
    "no label": POLYGON.replace('"cell"', '""'),
    "15 pixels where its box has 16": SQUARE.replace('rle="0, 16"', 'rle="0, 15"'),
    "no list of whole numbers": SQUARE.replace('rle="0, 16"', 'rle="0, 1.5"'),
    "rle that is no list": SQUARE.replace('rle="0, 16"', ""),
    "16 pixels where its box has 16": SQUARE.replace('"0, 16"', '"-1, 17"'),
    "box of 0 x 4": SQUARE.replace('width="4"', 'width="0"'),
    "box of 999999 x 999999": re.sub('(width|height)="4"', r'\1="999999"', SQUARE),
    "no usable numbers": SQUARE.replace('left="1"', 'left="1.5"'),
    'rotation="x"': '<box label="cell" xtl="1" ytl="1" xbr="2" ybr="2" rotation="x"/>',
    'ry=""': '<ellipse label="cell" cx="1" cy="1" rx="2"/>',
    'rx="inf"': '<ellipse label="cell" cx="1" cy="1" rx="inf" ry="1"/>',
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_shape_is_named_and_the_others_stay(tmp_path, reason):
    path = write(tmp_path / "a.xml", image(POLYGON + WRONG[reason]))
    with pytest.raises(InputError, match=rf"a\.xml: \w+ 2 of image a\.png .*{re.escape(reason)}"):
        read(path)
    content, bad = read(path, skip=True)
    assert len(bad) == 1 and next(iter(bad)).file == str(path)
    assert sorted("broken" in one for one in content["annotations"]) == [False, True]


def test_a_group_with_a_broken_part_is_ignored(tmp_path):
    good = POLYGON.replace("/>", ' group_id="2"/>')
    shapes = good + good.replace("9,1", "1e9,1")
    content, bad = read(write(tmp_path / "a.xml", image(shapes)), skip=True)
    (one,) = content["annotations"]
    assert one["broken"] and len(one["segmentation"]) == 2 and len(bad) == 1


def test_the_box_of_a_broken_shape_remains(tmp_path, pixels):
    shapes = SQUARE.replace('rle="0, 16"', 'rle="0, 15"') + POLYGON.replace("9,1", "1e9,1")
    content, _ = read(write(tmp_path / "a.xml", image(shapes)), skip=True)
    for one, size in zip(content["annotations"], (16, 64), strict=True):
        assert one["broken"] and pixels(one).sum() == size


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (image(name="../a.png"), "leads out"),
        (image(name="/etc/a.png"), "leads out"),
        (image(name=""), "no file_name"),
        (image(width=0), "0 x 30 pixels"),
        (image(width="x"), "no usable numbers"),
        (image(width=99999, height=99999), "99999 x 99999 pixels"),
        (image(name="ok.png"), "about too"),
    ],
)
def test_a_bad_image_is_named_and_the_others_stay(tmp_path, wrong, reason):
    path = write(tmp_path / "a.xml", image(name="ok.png") + wrong)
    with pytest.raises(InputError, match=rf"a\.xml: image .*{reason}"):
        read(path)
    content, bad = read(path, skip=True)
    assert len(content["images"]) == len(bad) == 1


def test_a_truncated_file_keeps_what_came_before(tmp_path):
    path = write(tmp_path / "a.xml", image(name="a.png") + image(name="b.png"))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match="export it again"):
        read(path)
    assert [each["file_name"] for each in read(path, skip=True)[0]["images"]] == ["a.png"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
@pytest.mark.parametrize("name", [path.name for path in sorted(REAL.glob("*.xml"))])
def test_real_files(name):
    root = ElementTree.parse(REAL / name).getroot()
    content = cvat_xml.read(next(iter(cvat_xml.find(REAL / name).values())), BadRecords())
    assert [one["file_name"] for one in content["images"]] == [
        one.get("name") for one in root.iter("image")
    ]
    boxes = [one for one in content["annotations"] if one.get("corners")]
    assert len(boxes) == len(root.findall("image/box"))
    assert len(content["annotations"]) - len(boxes) == len(
        [*root.findall("image/mask"), *root.findall("image/polygon")]
    )
    names = {one["id"]: one["name"] for one in content["categories"]}
    labels = [one.findtext("name") for one in root.iter("label") if one.findtext("type") != "tag"]
    assert list(names.values()) == labels
    for number, image in enumerate(root.iter("image"), start=1):
        own = iter(
            [o for o in content["annotations"] if o["image_id"] == number and "corners" not in o]
        )
        height, width = int(image.get("height")), int(image.get("width"))
        for shape in image:
            if shape.tag not in ("mask", "polygon"):
                continue
            annotation = next(own)
            assert names[annotation["category_id"]] == shape.get("label")
            if shape.tag == "polygon":
                points = [tuple(map(float, p.split(","))) for p in shape.get("points").split(";")]
                flat = annotation["segmentation"][0]
                assert list(zip(flat[::2], flat[1::2])) == points
                continue
            pixels, value = [], 0
            for run in shape.get("rle").split(","):
                pixels += [value] * int(run)
                value = 1 - value
            left, top, w, h = (int(shape.get(k)) for k in ("left", "top", "width", "height"))
            inside = np.array(pixels, bool).reshape(h, w)
            assert int(rle.area([annotation["segmentation"]])[0]) == inside.sum()
            found = rle.decode([annotation["segmentation"]], (height, width))[0]
            assert (found[top : top + h, left : left + w] == inside).all()
        assert next(own, None) is None


def test_no_image_is_one_sentence_that_names_the_file(tmp_path):
    write(tmp_path / "annotations.xml", "")
    with pytest.raises(InputError, match=r"CVAT XML 1.1 without an annotated image .*\(none is l"):
        open_datasets(tmp_path, cache=tmp_path / "cache", progress=False)
    write(tmp_path / "annotations.xml", image(width=-1))
    with pytest.raises(InputError, match=r"CVAT XML 1.1 without .*\(\S*annotations.xml: image a"):
        open_datasets(tmp_path, cache=tmp_path / "cache", progress=False, skip_bad=True)
    assert not (tmp_path / "cache").exists()
