"""Evaluation of a model in memory and of its checkpoint."""

import contextlib
import json
import shutil

import pytest

from engine import checkpoint, evaluate, inference, train, visualize


@pytest.mark.parametrize("average", ["0", "0.5"])
def test_scores_in_training_are_those_of_the_saved_weights(
    tiny, tmp_path, no_finish, monkeypatch, average
):
    """Bit for bit: both run on weights that require no gradients."""
    evaluated, infer = [], inference.run_inference

    def run_inference(model, *args, **keywords):
        flags = [parameter.requires_grad for parameter in model.parameters()]
        evaluated.append(infer(model, *args, **keywords))
        assert flags == [parameter.requires_grad for parameter in model.parameters()]
        return evaluated[-1]

    monkeypatch.setattr(inference, "run_inference", run_inference)
    lengths = ["--iterations", "3", "--eval-every", "3", "--average", average]
    train.main([*tiny, *lengths, "--out", str(tmp_path / "run")])
    common = ["--device", "cpu", "--threads", "1", "--workers", "0"]
    evaluate.main(["--checkpoint", str(tmp_path / "run" / "best.pt"), *common])
    in_training, of_queries, of_file = evaluated
    assert in_training == of_file != of_queries and len(of_file) > 10
    results = json.loads((tmp_path / "run" / "test-001" / "best_val_results.json").read_text())
    assert [each["score"] for each in results["detections"]] == [each["score"] for each in of_file]


@pytest.mark.parametrize("more", [False, True])
def test_another_class_list_than_that_of_the_training(toy_run, toy_coco, tmp_path, capsys, more):
    """Fewer classes, in another order of lists, and one that the model does not know."""
    content = json.loads((toy_coco / "annotations" / "instances_train.json").read_text())
    content["categories"] = [{"id": 90, "name": "disc"}, *([{"id": 5, "name": "star"}] * more)]
    discs = [each for each in content["annotations"] if each["category_id"] == 90]
    stars = [{**each, "category_id": 5} for each in discs] if more else []
    content["annotations"] = stars + discs
    (tmp_path / "discs.json").write_text(json.dumps(content))
    common = ["--checkpoint", str(toy_run / "best.pt"), *"--device cpu --threads 1".split()]
    common += ["--images", str(toy_coco / "train"), "--workers", "0"]
    said = pytest.warns(UserWarning, match="classes star, which .*best.pt has not")
    argv = [*common, "--val-json", str(tmp_path / "discs.json"), "--out"]
    plain = [*common, "--val-json", str(toy_coco / "annotations" / "instances_train.json"), "--out"]
    evaluate.main([*plain, str(tmp_path / "whole.json")])
    with said if more else contextlib.nullcontext():
        evaluate.main([*argv, str(tmp_path / "part.json"), "--diagnose"])
        visualize.main([*argv, str(tmp_path / "sheet.png"), "--count", "2"])
    whole, part = (
        json.loads((tmp_path / f"{name}.json").read_text())["scores"] for name in ("whole", "part")
    )
    rows = [{row["name"]: row for row in each["per_class"]} for each in (whole, part)]
    assert rows[1]["disc"] == rows[0]["disc"] and rows[0]["disc"]["AP"] > 0
    assert rows[1]["square"]["objects"] == 0 and rows[1]["square"]["AP"] == -1
    assert part["metrics"]["AP"] == rows[0]["disc"]["AP"] and "star" not in rows[1]


@pytest.mark.parametrize("option", ["keep_crowds", "crowd_as_instances"])
def test_how_crowds_are_read_is_that_of_the_training(toy_run, toy_coco, tmp_path, option):
    """Unless the options of the evaluation name one; here all discs are brush masks."""
    data = shutil.copytree(toy_coco, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        if one["category_id"] == 90:
            size = one["segmentation"]["size"]
            runs = [10, 200, size[0] * size[1] - 210]
            one |= {"attributes": {}, "iscrowd": 1, "segmentation": {"size": size, "counts": runs}}
    path.write_text(json.dumps(content))
    trained = checkpoint.load(toy_run / "best.pt")
    trained["options"] |= {"data": str(data), option: True}
    checkpoint.save(tmp_path / "best.pt", trained)
    objects = []
    for number, more in enumerate(([], ["--keep-crowds"], ["--crowd-as-instances"])):
        argv = ["--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu", "--threads", "1"]
        out = tmp_path / f"{number}.json"
        evaluate.main([*argv, "--workers", "0", *more, "--out", str(out)])
        objects.append(json.loads(out.read_text())["scores"]["objects"])
    discs = sum(one["category_id"] == 90 for one in content["annotations"])
    every = len(content["annotations"])
    kept = every - discs
    assert objects == [kept if option == "keep_crowds" else every, kept, every] and kept < every


def test_boxes_are_masks_as_in_the_training(toy_run, toy_coco, tmp_path):
    data = shutil.copytree(toy_coco, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    discs = 0
    for one in content["annotations"]:
        if one["category_id"] == 90:
            one |= {"segmentation": [], "bbox": [2, 3, 20, 10]}
            discs += 1
    path.write_text(json.dumps(content))
    trained = checkpoint.load(toy_run / "best.pt")
    objects = []
    for number, (option, more) in enumerate([(0, []), (0, ["--boxes-as-masks"]), (1, [])]):
        trained["options"] |= {"data": str(data), "boxes_as_masks": bool(option)}
        checkpoint.save(tmp_path / "best.pt", trained)
        argv = ["--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu", "--threads", "1"]
        out = tmp_path / f"{number}.json"
        evaluate.main([*argv, "--workers", "0", *more, "--out", str(out)])
        objects.append(json.loads(out.read_text())["scores"]["objects"])
    every = len(content["annotations"])
    assert objects == [every - discs, every, every] and 0 < discs < every


def test_plain_resizing_is_another_input(toy_run, toy_coco, tmp_path, capsys):
    found = {}
    for resize in ("antialiased", "plain", "both"):
        argv = ["--checkpoint", str(toy_run / "best.pt"), "--resize", resize, "--image-size", "32"]
        argv += ["--data", str(toy_coco), "--out", str(tmp_path / f"{resize}.json")]
        evaluate.main([*argv, "--device", "cpu", "--threads", "1", "--workers", "0"])
        found[resize] = json.loads((tmp_path / f"{resize}.json").read_text())
    one, other, both = found.values()
    assert [each["resize"] for each in found.values()] == ["antialiased", "plain", "antialiased"]
    assert one["detections"] != other["detections"]
    assert both["detections"] == one["detections"] and both["scores"] == one["scores"]
    assert both["scores_plain"] == other["scores"]
    expected = [value["scores"]["metrics"]["AP"] for value in (one, other)]
    difference = f"{expected[1] - expected[0]:+.3f}"
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["AP", *(f"{value:.3f}" for value in expected), difference] in rows
