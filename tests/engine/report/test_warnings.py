"""Runs that are spoilt in a known way have one warning that says how; healthy ones have none."""

import json

import numpy as np
import pytest
from PIL import Image

from data.dataset import CocoDataset
from engine.datasets import Parts
from engine.report.run_facts import RunFacts
from engine.report.warnings import warnings_of

NAMES = ["ant", "bee", "cat", "dog"]
FALLING = [20, 14, 10, 8, 7, 6.5, 6, 5.8, 5.6, 5.5]


def rows_of(losses, **more):
    return [{"iteration": 20 * i, "loss": loss, **more} for i, loss in enumerate(losses, 1)]


def run_of(folder, losses=FALLING, train=0.5, val=0.45, evaluated=True, **more):
    """A healthy run but for what is given."""
    opts = {"pretrained": "w.pth", "recipe": "small-pretrained", "lr": 1e-3, "image_size": 256}
    opts |= {"data": "set of mine", "origins": {"lr": "recipe"}} | more.pop("options", {})
    metrics = [{"iteration": "200", "val/AP": str(val), "train/AP": str(train)}] * evaluated
    return RunFacts(folder, opts, rows_of(losses), metrics, None)._replace(**more)


def titles(run):
    return [each["what"] for each in warnings_of(run)]


def test_a_healthy_run(tmp_path):
    assert titles(run_of(tmp_path)) == []
    assert titles(run_of(tmp_path, FALLING[:3], evaluated=False)) == []  # stopped early
    assert titles(run_of(tmp_path, options={"lr": 2e-3, "origins": {"lr": "user"}})) == []
    assert titles(RunFacts(tmp_path, {}, [], [], None)) == []


@pytest.mark.parametrize(
    "losses, why",
    [
        ([19, 35, 100, 447, 834, 226, 74], "from 19 to 834 at iteration 100 and was 74 at the end"),
        ([20, 19, 21, 19, 20, 19.5, 19], "did not fall: 20 at first, 19 at the end"),
        ([20, 10, 5, 14, 15, 15.5, 16], "fell to 5 and rose again to 16"),
    ],
)
def test_a_learning_rate_that_is_too_high(tmp_path, losses, why):
    run = run_of(tmp_path, losses, train=0.02, val=0.01)
    (found,) = warnings_of(run)  # not that it should train longer
    assert found["what"] == "The learning rate is too high" and found["level"] == "error"
    assert why in found["why"] and "AP is 0.020 on training images" in found["why"]
    assert found["do"] == "Train again with --lr 0.0001."
    (stopped,) = warnings_of(run_of(tmp_path, losses, evaluated=False))
    assert "it ended before its first evaluation" in stopped["why"]
    learned = titles(run_of(tmp_path, losses, train=0.4, val=0.3))
    assert learned == ["The learning rate is too high"] * (max(losses) > 100)


def test_a_learning_rate_far_above_that_of_the_recipe(tmp_path):
    high = {"lr": 0.1, "origins": {"lr": "user"}}
    (found,) = warnings_of(run_of(tmp_path, train=0.15, val=0.1, options=high))
    assert "--lr is 0.1, 100 times that of the recipe (0.001)" in found["why"]
    assert found["do"] == "Train again with --lr 0.001."


def test_low_train_ap_and_random_values(tmp_path):
    low = run_of(tmp_path, train=0.1, val=0.08)
    assert titles(low) == ["The training images are not fitted yet"]
    random = low._replace(options=low.options | {"pretrained": None})
    assert titles(random)[0] == "The network started from random values"
    part = low._replace(weights={"whole": False, "headline": "w.pth: half of it"})
    assert "Half" in warnings_of(part)[0]["why"] or "half" in warnings_of(part)[0]["why"]
    assert titles(run_of(tmp_path, options={"pretrained": None})) == []  # AP is high


@pytest.mark.parametrize("train, val, is_wide", [(0.5, 0.34, 0), (0.5, 0.32, 1), (0.3, 0.16, 0)])
def test_val_ap_far_below_train_ap(tmp_path, train, val, is_wide):
    """By more than 0.15, and below two thirds of it."""
    assert len(titles(run_of(tmp_path, train=train, val=val))) == is_wide


def evidence_of(classes=(), **more):
    """Of a val set with 40 objects of each class, but for what is given."""
    rows = [{"name": n, "objects": 40, "train_objects": 160, "AP": 0.4} for n in NAMES]
    for row, change in zip(rows, classes):
        row |= change
    oracles = {"right class": {"AP": 0.5}}
    return {
        "split": "val",
        "threshold": 0.3,
        "objects": sum(row["objects"] for row in rows),
        "headline": {"mask": {"AP": float(np.mean([row["AP"] for row in rows]))}},
        "confusion": {"names": NAMES},
        "classes": rows,
        "per_image": [{"index": i, "score": 0.5, "objects": 8, "found": 6} for i in range(20)],
        "diagnosis": {"oracles": oracles, "recall": {"all": {"all": {"recall50": 0.8}}}},
    } | more


def named(called, right=1.0, number=30):
    """A confusion where class i is called `called[i]`, the rest is missed or right."""
    counts = np.zeros((5, 5), int)
    for truth, detection in enumerate(called):
        counts[truth, detection] += round(right * number)
        counts[truth, truth] += number - round(right * number)
        counts[truth, 4] += 10
    return counts


IDENTITY = named([0, 1, 2, 3])


@pytest.mark.parametrize(
    "called, right, pairs",
    [
        ([1, 0, 2, 3], 0.9, ["27 of 30 ant are called bee", "27 of 30 bee are called ant"]),
        ([1, 2, 0, 3], 1.0, ["30 of 30 cat are called ant"]),
        ([3, 2, 1, 0], 0.8, ["24 of 30 ant are called dog"]),
        ([1, 2, 3, 3], 1.0, ["30 of 30 ant are called bee", "30 of 30 bee are called cat"]),
        ([0, 3, 2, 3], 1.0, ["30 of 30 bee are called dog"]),  # one class, known in train
    ],
)
def test_permuted_class_names(tmp_path, called, right, pairs):
    run = run_of(tmp_path, train=0.5, val=0.1, evidence=evidence_of(), named=named(called, right))
    (found,) = warnings_of(run._replace(named_in_train=IDENTITY))
    assert found["what"] == "Class names differ between train and val"
    assert all(pair in found["why"] for pair in pairs), found["why"]
    assert "on training images 100% of them are right" in found["why"]
    assert "AP would be 0.500, not 0.400" in found["why"]
    assert "check_data.sh --data 'set of mine'" in found["do"]


def test_ordinary_confusion_is_not_a_permutation(tmp_path):
    run = run_of(tmp_path, evidence=evidence_of(), named_in_train=IDENTITY)
    assert titles(run._replace(named=IDENTITY)) == []
    assert titles(run._replace(named=named([1, 0, 2, 3], 0.5))) == []  # half of them
    assert titles(run._replace(named=named([1, 0, 2, 3], number=4))) == []  # too few
    assert titles(run._replace(named=named([2, 2, 2, 2]))) == []  # one class draws the others
    swapped = named([1, 0, 2, 3])
    assert titles(run._replace(named=swapped, named_in_train=swapped)) == []  # unsure in train
    one = named([0, 3, 2, 3])
    assert titles(run._replace(named=one, named_in_train=None)) == []
    assert titles(run._replace(named=np.zeros((5, 5), int))) == []


def toy_parts(folder, train=20, val=10, leaked=0):
    """Sets of images of noise, `leaked` of val in train as well, under another name and size."""
    rng, sets = np.random.default_rng(1), {}
    for split, number in (("val", val), ("train", train)):
        (folder / split).mkdir()
        images = []
        for i in range(number):
            small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
            image = small.resize((160, 120), Image.Resampling.BICUBIC)
            if split == "train" and i < leaked:
                image = Image.open(folder / "val" / f"val {i}.png").resize((120, 90))
            image.save(folder / split / f"{split} {i}.{'jpg' if split == 'train' else 'png'}")
            name = f"{split} {i}.{'jpg' if split == 'train' else 'png'}"
            images.append(
                {"id": i, "file_name": name, "width": image.width, "height": image.height}
            )
        outline = [[10, 10, 60, 10, 60, 60, 10, 60]]
        annotations = [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": outline, "iscrowd": 0}
            for i in range(number)
        ]
        categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / f"{split}.json"
        path.write_text(json.dumps(content))
        sets[split] = CocoDataset(path, folder / split, name=split)
    return Parts(sets["train"], sets["val"], None)


def test_images_of_val_in_train(tmp_path):
    parts = toy_parts(tmp_path, leaked=3)
    scores = [
        {"index": i, "score": 0.9 if i < 3 else 0.4, "objects": 1, "found": 1} for i in range(10)
    ]
    run = run_of(tmp_path, parts=parts, evidence=evidence_of(per_image=scores))
    (found,) = warnings_of(run)
    assert found["what"] == "Images of val are also in train" and found["level"] == "error"
    assert "3 of 10 images of val" in found["why"] and "val 0.png is train 0.jpg" in found["why"]
    assert "mean panoptic quality is 0.90 on them and 0.40 on the other 7" in found["why"]
    assert found["images"] == [(f"val {i}.png", f"train {i}.jpg") for i in range(3)]
    train, val = parts.train, parts.val
    clean = parts._replace(val=val.subset(range(3, 10)))
    assert titles(run._replace(parts=clean)) == []
    (whole,) = warnings_of(run._replace(parts=parts._replace(val=val.subset(range(3)))))
    assert "3 of 3 images" in whole["why"]
    overfit = run._replace(parts=Parts(train, train, None), evidence=evidence_of(split="overfit-4"))
    assert titles(overfit) == []
    own = run._replace(parts=Parts(train, train, None), evidence=evidence_of(split="train-20"))
    assert titles(own) == ["AP is measured on training images"]


def test_classes_that_are_missing_in_train_or_in_val(tmp_path):
    parts = toy_parts(tmp_path, train=40, val=10)
    run = run_of(tmp_path, parts=parts, train=0.6, val=0.3)
    missing = evidence_of([{}, {"train_objects": 0, "AP": 0.0}])
    (found,) = warnings_of(run._replace(evidence=missing))  # not that it overfits
    assert found["what"] == "Classes without enough objects in train"
    assert "Train has 0 objects of bee, val 40, AP 0.000" in found["why"]
    assert "AP is 0.300, and 0.400 over the classes of train" in found["why"]
    rare = evidence_of([{"train_objects": 12, "AP": 0.1}])  # of 160 that are expected
    assert "Train has 12 objects of ant" in warnings_of(run._replace(evidence=rare))[0]["why"]
    healthy = run_of(tmp_path, parts=parts)
    assert titles(healthy._replace(evidence=evidence_of([{"train_objects": 80}]))) == []
    few = evidence_of([{"objects": 2, "train_objects": 1}])
    assert titles(healthy._replace(evidence=few)) == []  # by chance
    unscored = evidence_of([{"objects": 0, "train_objects": 160, "AP": -1}])
    assert titles(healthy._replace(evidence=unscored)) == ["Classes without objects in val"]
    parts.val.unknown = {"eel": 7}
    (found,) = warnings_of(healthy._replace(evidence=evidence_of()))
    assert "Train has no class eel, so 7 objects of val do not count" in found["why"]


def test_objects_beyond_the_queries_and_below_the_mask_grid(tmp_path):
    run = run_of(tmp_path, parts=toy_parts(tmp_path), evidence=evidence_of())
    assert titles(run) == []
    (found,) = warnings_of(run._replace(num_queries=0))
    assert "val: 10 images of 10 with more objects (up to 1) than the 0 queries" in found["why"]
    tiny = run._replace(options=run.options | {"image_size": 24})  # objects of 10 x 10 pixels
    (found,) = warnings_of(tiny)
    assert "100% of the objects of val are under 16 pixels wide" in found["why"]


def test_a_threshold_of_little_recall_and_few_objects(tmp_path):
    low = evidence_of(per_image=[{"index": 0, "score": 0.1, "objects": 20, "found": 2}])
    (found,) = warnings_of(run_of(tmp_path, evidence=low))
    assert "10% of the objects are found, while 80% have a right mask" in found["why"]
    few = evidence_of(objects=5)
    assert titles(run_of(tmp_path, evidence=few)) == ["Too few objects in val for a reliable AP"]
