"""data/readers/davis.py: palette maps against plain numpy, layouts, and wrong files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import rle
from data.errors import InputError
from data.readers import davis, voc

REAL = Path(__file__).resolve().parents[3].parent / "shared/datasets/formats/davis"
SIZE = (30, 40)


def indices():
    values = np.zeros(SIZE, np.uint8)
    values[2:12, 3:13] = 1
    values[8:20, 20:33] = 3
    values[25:28] = 255
    return values


def save(path, values, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = Image.fromarray(values, mode="P")
        image.putpalette([(57 * i) % 256 for i in range(768)])
    image.save(path)


def write(root, video, frames=2, size="480p", maps="Annotations", values=None, palette=True):
    for frame in range(frames):
        save(
            root / maps / size / video / f"{frame:05}.png",
            indices() if values is None else values,
            palette,
        )
        image = root / "JPEGImages" / size / video / f"{frame:05}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(image)


def write_lists(root, year, **lists):
    folder = root / "ImageSets" / year
    folder.mkdir(parents=True)
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def masks_of(content, size=SIZE):
    return rle.decode([one["segmentation"] for one in content["annotations"]], size)


def test_indices_are_objects_and_255_is_void(tmp_path, read):
    write(tmp_path, "bear", frames=1)
    content = read(tmp_path)
    assert (masks_of(content) == np.stack([indices() == 1, indices() == 3])).all()
    image = content["images"][0]
    assert (image["file_name"], image["width"], image["height"]) == ("bear/00000.jpg", 40, 30)
    assert (rle.decode([image["void"]], SIZE)[0] == (indices() == 255)).all()
    assert content["categories"] == [{"id": 1, "name": "object"}]


def test_255_is_the_object_of_maps_without_palette(tmp_path, read):
    values = (indices() == 1) * np.uint8(255)
    write(tmp_path, "bear", frames=1, values=values, palette=False)
    content = read(tmp_path)
    assert (masks_of(content)[0] == (values > 0)).all() and "void" not in content["images"][0]
    write(tmp_path, "bear", frames=1, values=values)
    content = read(tmp_path)
    assert not content["annotations"] and "void" in content["images"][0]


def test_lists_are_splits(tmp_path, read):
    for video in ("bear", "bus", "cows", "unlisted"):
        write(tmp_path, video)
    write_lists(tmp_path, "2017", train=["bear", "bus"], val=["cows"], **{"test-dev": ["absent"]})
    write_lists(tmp_path, "2016", train=["bear"])
    found = davis.find(tmp_path)
    assert {split: len(one.names) for split, one in found.items()} == {"train": 4, "val": 2}
    assert read(tmp_path, "val")["images"][1]["file_name"] == "cows/00001.jpg"


def test_lists_of_frames(tmp_path):
    for video in ("bear", "bus"):
        write(tmp_path, video)
    line = "/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png"
    lines = [line.format(video) for video in ("bear", "bus")]
    write_lists(tmp_path, "480p", train=lines[:1], val=lines[1:], trainval=lines)
    found = davis.find(tmp_path)
    assert {split: one.names[0] for split, one in found.items()} == {
        "train": "bear/00000.png",
        "val": "bus/00000.png",
    }


def test_resolutions(tmp_path):
    write(tmp_path, "bear", size="Full-Resolution", maps="Annotations_unsupervised")
    assert davis.find(tmp_path)["all"].images == [tmp_path / "JPEGImages/Full-Resolution"]
    write(tmp_path, "bear")
    assert davis.find(tmp_path)["all"].images == [tmp_path / "JPEGImages/480p"]


def test_youtube_vos_has_classes(tmp_path, read):
    for video, values in (("0a", indices()), ("0b", np.where(indices() == 3, 3, 0))):
        write(tmp_path, video, frames=1, size="", values=values.astype(np.uint8))
    objects = {"1": {"category": "sheep", "frames": []}, "3": {"category": "dog", "frames": []}}
    videos = {"0a": {"objects": objects}, "0b": {"objects": {"3": {"category": "sheep"}}}}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"videos": videos}))
    content = read(tmp_path)
    names = {one["id"]: one["name"] for one in content["categories"]}
    assert names == {1: "dog", 2: "sheep"}
    assert [one["category_id"] for one in content["annotations"]] == [2, 1, 2]
    videos["0b"] = {"objects": {}}
    meta.write_text(json.dumps({"videos": videos}))
    with pytest.raises(InputError, match=r"0b/00000\.png holds object 3, which meta.json"):
        read(tmp_path)
    for wrong in ([], {"videos": []}, {"videos": {"0a": {"objects": {"x": {"category": "a"}}}}}):
        meta.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"meta\.json is not that of YouTube-VOS"):
            read(tmp_path)


def test_other_folders(tmp_path):
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.xml").write_text("<annotation/>")
    assert davis.find(tmp_path) is None
    write(tmp_path / "davis", "bear")
    write_lists(tmp_path / "davis", "2017", train=["bear"])
    assert voc.find(tmp_path / "davis") is None


WRONG = {
    "41 x 30": lambda path: save(path, np.zeros((30, 41), np.uint8)),
    "cannot be read": lambda path: path.write_bytes(path.read_bytes()[:40]),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_map_is_named_and_the_others_stay(tmp_path, reason, refused):
    write(tmp_path, "bear")
    WRONG[reason](tmp_path / "Annotations/480p/bear/00000.png")
    assert len(refused(tmp_path, rf"bear/00000\.png .*{reason}")["images"]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
def test_real_files(tmp_path, read):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/480p").symlink_to(REAL)
    (tmp_path / "JPEGImages/480p").mkdir(parents=True)
    content = read(tmp_path)
    maps = [np.asarray(Image.open(path)) for path in sorted(REAL.glob("*/*.png"))]
    expected = [values == number for values in maps for number in np.unique(values) if number]
    assert (masks_of(content, maps[0].shape) == np.stack(expected)).all()
    assert len(content["images"]) == len(maps) == 2
