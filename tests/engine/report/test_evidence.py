"""evidence.json of a run: written by the training, made again from the checkpoint alone."""

import json
import shutil

import pytest
import torch

from data import rle
from engine import checkpoint
from engine.datasets import parts_of_run
from engine.report import evidence


@pytest.fixture(scope="module")
def found(toy_run):
    return evidence.load(toy_run)


def computed(folder):
    """The evidence of the best.pt in a folder, as it is read back."""
    content = checkpoint.load(folder / "best.pt")
    parts = parts_of_run(folder, content)
    return json.loads(json.dumps(evidence.compute(folder, content, parts, torch.device("cpu"))))


def test_the_training_writes_what_the_checkpoint_alone_gives(toy_run, found, tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    for name in ("best.pt", "options.json", "metrics.csv", "log.jsonl"):
        shutil.copy(toy_run / name, folder)
    assert evidence.load(folder) == {}
    assert computed(folder) == evidence.load(folder) == found


def test_its_numbers_agree(toy_run, found):
    content = checkpoint.load(toy_run / "best.pt")
    assert found["iteration"] == content["iteration"] and found["split"] == "overfit-4"
    assert found["threshold"] == content["best"]["threshold"] == content["scores"]["best_threshold"]
    assert found["headline"]["mask"] == content["scores"]["metrics"]
    names, counts = found["confusion"]["names"], found["confusion"]["counts"]
    assert [row["name"] for row in found["classes"]] == names
    for row, objects in zip(found["classes"], counts):
        assert row["objects"] == row["train_objects"] == sum(objects)
    rows = found["per_image"]
    assert len(rows) == found["images"] == 4
    for key, total in (
        ("objects", found["objects"]),
        ("found", sum(counts[i][i] for i in range(len(names)))),
        ("missed", sum(row[-1] for row in counts)),
        ("extra", sum(counts[-1])),
    ):
        assert sum(row[key] for row in rows) == total, key
    assert all(row["objects"] == row["found"] + row["missed"] + row["wrong_class"] for row in rows)
    assert all(0 <= row["score"] <= 1 for row in rows)
    shown = sum(found["shown"].values(), [])
    assert sorted(shown) == sorted(map(int, found["detections"])) == [row["index"] for row in rows]
    for row in rows:
        detections = found["detections"][str(row["index"])]
        assert len(detections) == row["found"] + row["wrong_class"] + row["extra"]
        assert all(each["score"] > found["threshold"] for each in detections)
        assert all(
            rle.area([each["rle"]])[0] > 0 and each["class"] < len(names) for each in detections
        )
    assert found["diagnosis"]["oracles"]["as evaluated"]["AP"] == found["headline"]["mask"]["AP"]


def test_of_a_large_set_a_part_is_diagnosed(toy_run, found, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "DIAGNOSED", 2)
    for name in ("best.pt", "options.json", "metrics.csv", "log.jsonl"):
        shutil.copy(toy_run / name, tmp_path)
    part = computed(tmp_path)
    objects = [row["objects"] for row in found["per_image"]]
    diagnosis = part.pop("diagnosis")
    assert diagnosis["images"] == 2
    assert diagnosis["recall"]["all"]["all"]["objects"] == objects[0] + objects[2]
    assert part == {key: value for key, value in found.items() if key != "diagnosis"}


def test_best_median_and_worst_images():
    scored = [(i / 30, 1) for i in range(31)]
    assert evidence.choose(scored) == {
        "best": [30, 29, 28, 27], "median": [13, 14, 15, 16], "worst": [0, 1, 2, 3],
    }  # fmt: skip
    for number in range(12):
        chosen = evidence.choose(scored[:number])
        places = sum(chosen.values(), [])
        assert len(places) == len(set(places)) == number and len(chosen["worst"]) <= 4
    assert evidence.choose([(1.0, 0), (0.5, 3), (0.5, 4), (0.2, 1), (1.0, 0)]) == {
        "worst": [3, 2], "best": [1, 0], "median": [4],
    }  # fmt: skip
