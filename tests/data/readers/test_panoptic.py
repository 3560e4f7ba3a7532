"""data/readers/panoptic.py: both kinds of PNG, made here and real, against counts by hand."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import BadRecords, InputError
from data.opening import open_datasets
from data.readers import coco, panoptic

CLASSES = [
    {"id": 1, "name": "crab", "isthing": 1},
    {"id": 30, "name": "sand", "isthing": 0},
    {"id": 7, "name": "fish", "isthing": 1},
]
SEGMENTS = [(70_000, 1, 0), (300, 1, 0), (5, 30, 0), (16_000_000, 7, 1)]  # id, class, crowd
H, W = 20, 30


def drawn():
    """The segments as squares of a map, 0 elsewhere."""
    numbers = np.zeros((H, W), int)
    for place, (id_, _, _) in enumerate(SEGMENTS):
        numbers[2:12, 7 * place : 7 * place + 6] = id_
    return numbers


def save(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [(numbers >> shift) & 255 for shift in (0, 8, 16)]
    Image.fromarray(np.stack(channels, 2).astype(np.uint8)).save(path)


@pytest.fixture
def make(tmp_path):
    """Writes a set of one image after a change of its json; numbers are those of its map."""

    def write(change=lambda content: None, numbers=None):
        segments = [
            {
                "id": id_,
                "category_id": category,
                "iscrowd": crowd,
                "area": 60,
                "bbox": [0, 0, 6, 10],
            }
            for id_, category, crowd in SEGMENTS
        ]
        content = {
            "info": {"description": ""},
            "images": [{"id": 9, "file_name": "a.jpg", "width": W, "height": H}],
            "annotations": [{"image_id": 9, "file_name": "a.png", "segments_info": segments}],
            "categories": [dict(one) for one in CLASSES],
        }
        change(content)
        file = tmp_path / "set/annotations/panoptic_val.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        save(file.with_suffix("") / "a.png", drawn() if numbers is None else numbers)
        (tmp_path / "set/val").mkdir(exist_ok=True)
        Image.new("RGB", (W, H)).save(tmp_path / "set/val/a.jpg")
        return tmp_path / "set"

    return write


def read(root, split="val", skip=True):
    bad = BadRecords(skip)
    return panoptic.read(panoptic.find(root)[split], bad), list(bad)


def masks(content):
    return {
        (one.get("category_id"), one["iscrowd"]): rle.decode([one["segmentation"]], (H, W))[0]
        for one in content["annotations"]
    }


@pytest.mark.filterwarnings("ignore:.*all objects of fish")
def test_things_are_objects(make):
    root = make()
    content, bad = read(root)
    assert content["categories"] == [{"id": 1, "name": "crab"}, {"id": 7, "name": "fish"}]
    assert content["images"][0].items() > {"id": 9, "file_name": "a.jpg", "width": W}.items()
    kinds = [(one["category_id"], one["iscrowd"]) for one in content["annotations"]]
    assert sorted(kinds) == [(1, 0), (1, 0), (7, 1)] and not bad
    assert (masks(content)[7, 1] == (drawn() == 16_000_000)).all()
    void = rle.decode([content["images"][0]["void"]], (H, W))[0]
    assert (void == (drawn() == 0)).all()
    dataset = open_datasets(root, splits=("val",), cache=root / "cache", progress=False)["val"]
    assert " 2 objects, 1 crowd" in dataset.summary() and dataset.class_names == ["crab", "fish"]


@pytest.mark.parametrize("listed", [True, False])
def test_two_channels(make, listed):
    numbers = np.zeros((H, W), int)
    for place, number in enumerate((1, 1 | 1 << 8, 30, 7 | 255 << 8)):
        numbers[2:12, 7 * place : 7 * place + 6] = number
    root = make((lambda c: None) if listed else (lambda c: c.pop("annotations")), numbers)
    content, bad = read(root)
    kinds = [(one["category_id"], one["iscrowd"]) for one in content["annotations"]]
    assert sorted(kinds) == [(1, 0), (1, 0), (7, 1)] and not bad
    assert (masks(content)[7, 1] == (numbers == (7 | 255 << 8))).all()


BAD = {
    "an unlisted segment": (
        lambda c: c["annotations"][0]["segments_info"].pop(0), "segment 70000, which the json"
    ),
    "an unknown class": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=2),
        "segment 70000, of class 2",
    ),
    "a class that is no id": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=[1]), "of class"
    ),
    "an image of another size": (lambda c: c["images"][0].update(width=31), "is 30 x 20 where"),
    "a file outside": (lambda c: c["images"][0].update(file_name="../a.jpg"), "leads out"),
    "no image": (lambda c: c["annotations"][0].update(image_id=4), "names no PNG or no image"),
    "no PNG": (lambda c: c["annotations"].append({"image_id": 9, "file_name": "b.png"}), "b.png "),
    "no record": (lambda c: c["categories"].append(3), "is not a record"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(make, name):
    change, words = BAD[name]
    root = make(change)
    with pytest.raises(InputError, match=words) as error:
        read(root, skip=False)
    assert str(error.value).count("--skip-bad-records") == 1
    content, bad = read(root)
    assert bad
    if "class" in name or "segment" in name:
        assert [one["segmentation"] for one in content["annotations"] if one.get("broken")]


def test_maps_that_cannot_be_used(make):
    root = make()
    path = root / "annotations/panoptic_val/a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="a.png cannot be read as an image"):
        read(root, skip=False)
    Image.new("RGB", (W, H)).save(path, format="JPEG")
    with pytest.raises(InputError, match="a.png is JPEG with a compression"):
        read(root, skip=False)
    shutil.copy(path, path.with_name("c.png"))
    path.unlink()
    with pytest.raises(InputError, match="PNG files that it lists are not in"):
        panoptic.find(root)


def test_layouts(make, tmp_path):
    root = make()
    file = root / "annotations/panoptic_val.json"
    assert coco.find(root) is None and coco.find(file) is None
    assert [*panoptic.find(file)] == ["all"] and panoptic.find(root / "val") is None
    file.with_suffix("").rename(root / "maps")
    assert read(root)[0]["annotations"]
    save(root / "maps/z.png", drawn())
    assert read(root)[0]["counts"]["maps that the json does not list"] == 1
    other = {"images": [], "annotations": [{"segmentation": []}], "categories": [{"isthing": 1}]}
    (root / "annotations/instances_val.json").write_text(json.dumps(other))
    assert [*coco.find(root)] == ["val"] and panoptic.YIELDS_TO == ("coco",)


def by_hand(path):
    """Pixels of each colour R, G, B of a PNG."""
    colours, counts = np.unique(
        np.asarray(Image.open(path)).reshape(-1, 3), axis=0, return_counts=True
    )
    return {tuple(map(int, colour)): int(count) for colour, count in zip(colours, counts)}


@pytest.mark.parametrize("kind", ["panoptic_examples", "two_channel"])
def test_real_files(shared, tmp_path, kind):
    place = shared / "datasets/formats/coco_panoptic"
    shutil.copy(place / "panoptic_examples.json", tmp_path / "panoptic_examples.json")
    shutil.copytree(place / kind, tmp_path / "panoptic_examples")
    raw = json.loads((place / "panoptic_examples.json").read_text())
    (listed,) = [one for one in raw["annotations"] if one["image_id"] == 142238]
    things = {one["id"] for one in raw["categories"] if one["isthing"]}
    expected = sorted(
        (one["category_id"], one["iscrowd"], one["area"])
        for one in listed["segments_info"] if one["category_id"] in things
    )  # fmt: skip
    assert len(expected) == 15 and len(things) == 80
    pixels = by_hand(place / kind / "000000142238.png")
    assert {area for _, _, area in expected} <= set(pixels.values())
    content, bad = read(tmp_path, "all")
    found = sorted(
        (one["category_id"], one["iscrowd"], int(rle.area([one["segmentation"]])[0]))
        for one in content["annotations"]
    )
    assert found == expected and len(content["categories"]) == 80
    void = rle.area([content["images"][0]["void"]])[0]
    assert void == pixels[0, 0, 0] == 2712
    assert len(bad) == 1 and "000000439180.png is missing" in bad[0].reason
