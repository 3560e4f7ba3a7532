"""data/split.py: images that belong together stay together, classes are alike in both parts."""

import numpy as np
import pytest

from data.split import hold_out, source_of

ONE = np.array([0])


def held_out(names, labels=None, fraction=0.2):
    chosen, _ = hold_out(names, labels or [ONE] * len(names), fraction)
    assert chosen == sorted(set(chosen))
    return [names[index] for index in chosen]


GROUPS = {  # name -> the part of it that names its group
    "copies": [f"leaf{k}_jpg.rf.{h:032x}.jpg" for k in range(20) for h in range(3)],
    "frames": [f"clip{chr(97 + k)}_{i:06d}.jpg" for k in range(5) for i in range(12)],
    "numbered videos": [f"video_{k}_{i:04d}.png" for k in range(5) for i in range(12)],
    "tiles": [f"scene{k}_{x}_{y}.tif" for k in range(9) for x in range(3) for y in range(4)],
    "tiles with letters": [
        f"s{k}-x{x}-y{y}.tif" for k in range(9) for x in range(3) for y in (0, 9)
    ],
    "tiles of numbered images": [
        f"img{k}_{x}_{y}.png" for k in range(10) for x in (0, 512) for y in (0, 512, 1024)
    ],
    "tiles of numbers": [f"{k}_{x}_{y}.png" for k in range(10) for x in (0, 512) for y in (0, 9)],
    "tiles with long gaps": [
        f"P{k}__1__{x}___{y}.png" for k in range(9) for x in "09" for y in "09"
    ],
    "folders": [f"clip{k}/{i:05d}.jpg" for k in range(6) for i in range(10)],
    "frames in folders": [f"clip{k}/frame_{i}.jpg" for k in range(6) for i in range(10)],
    "equal stems": [f"{folder}/drop {k}.jpg" for folder in ("near", "far") for k in "abcdefghij"],
}
KEYS = {
    "copies": lambda name: name.split(".rf.")[0],
    "numbered videos": lambda name: name.rpartition("_")[0],
    "tiles with letters": lambda name: name.split("-")[0],
    "folders": lambda name: name.split("/")[0],
    "frames in folders": lambda name: name.split("/")[0],
    "equal stems": lambda name: name.split("/")[1],
}


@pytest.mark.parametrize("kind", GROUPS)
def test_what_belongs_together_stays_together(kind):
    names = GROUPS[kind]
    key = KEYS.get(kind, lambda name: name.split("_")[0])
    val = held_out(names)
    train = set(names) - set(val)
    assert 0.15 * len(names) <= len(val) <= 0.25 * len(names)
    assert not {key(name) for name in val} & {key(name) for name in train}
    shuffled = [names[i] for i in np.random.default_rng(3).permutation(len(names))]
    assert len(held_out(shuffled)) == len(val)


@pytest.mark.parametrize(
    "names",
    [
        [f"{i:012d}.jpg" for i in range(100)],
        [f"IMG_{i:04d}.JPG" for i in range(100)],
        [f"COCO_val2014_{i:012d}.jpg" for i in range(100)],
        [f"IMG_20240513_{i:06d}.jpg" for i in range(100)],
    ],
)
def test_numbers_alone_tell_nothing(names):
    assert len(held_out(names)) == 20 and hold_out(names, [ONE] * 100, 0.2)[1] == "single images"


def test_one_video_is_cut_into_runs():
    names = [f"pond_{i}.jpg" for i in range(100)]
    places = sorted(int(name[5:-4]) for name in held_out(names))
    assert len(places) == 20
    assert np.count_nonzero(np.diff(places) == 1) >= 16  # four runs of five


def test_names_of_classes_are_no_groups():
    """No class may be in validation alone."""
    names = [f"{name}_{i:03d}.jpg" for name in ("cat", "dog", "cow") for i in range(40)]
    labels = [np.array([k]) for k in range(3) for _ in range(40)]
    val = held_out(names, labels)
    for name in ("cat", "dog", "cow"):
        assert sum(one.startswith(name) for one in val) in (6, 12)  # runs of six


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_classes_and_empty_images_are_alike_in_both(fraction):
    rng = np.random.default_rng(5)
    chances = np.array([0.5, 0.2, 0.1, 0.03])
    labels = [np.flatnonzero(rng.random(4) < chances) for _ in range(600)]
    names = [f"{i}.jpg" for i in range(600)]
    chosen, _ = hold_out(names, labels, fraction)
    assert abs(len(chosen) - 600 * fraction) <= 3

    def counted(indices):
        empty = sum(len(labels[i]) == 0 for i in indices)
        return np.bincount(np.concatenate([labels[i] for i in indices]), minlength=4), empty

    for held, every in zip(counted(chosen), counted(range(600))):
        assert np.all(np.abs(held - fraction * np.array(every)) <= 1.5)


def test_the_smallest_sets():
    assert held_out(["a.jpg"]) == []
    assert len(held_out(["a.jpg", "b.jpg"])) == 1
    assert len(held_out(list("abc"), [np.array([k]) for k in range(3)])) == 1
    assert len(held_out([f"{i}.jpg" for i in range(6)], [np.array([], int)] * 6)) == 1


def test_sources_of_names():
    assert source_of("a/plant_jpg.rf.0f3c.jpg", 0) == source_of("plant_jpg.rf.77aa.jpg", 1)
    assert source_of("plant_12_3.png", 2) == source_of("plant_7.png", 1) == "plant"
    assert source_of("7.png", 2) == "7" and source_of("IMG_7.png", 2) == "IMG_7"
    assert source_of("photo (3).jpg", 1) == "photo (3)" and source_of("crab (3).jpg", 1) == "crab"
