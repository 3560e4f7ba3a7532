"""SparseInst on the same way through: train, resume, evaluate, diagnose, draw, predict, check."""

import json

import pytest
import torch

from engine import checkpoint, evaluate, predict, train, visualize
from engine.tools import check_weights, inspect_modules, reproduce
from mobileinst import zoo

OPTIONS = (
    "--from-scratch --model sparseinst_topformer_tiny --device cpu --threads 1 --workers 0 "
    "--image-size 64 --canvas 64x64 --batch-size 4 --warmup 2 --average 0 --lr 4e-3 --eval-train 0 "
    "--set width=32 kernel_dim=16 num_queries=8 convs=2"
).split()
IN_LINE = ["--workers", "0", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def run(toy_coco, tmp_path_factory):
    """A run that has looked at four images for a while."""
    out = tmp_path_factory.mktemp("sparseinst") / "run"
    length = "--iterations 60 --eval-every 0 --log-every 20 --overfit 4".split()
    assert train.main([*OPTIONS, *length, "--data", str(toy_coco), "--out", str(out)]) == 0
    return out


def test_it_learns_and_its_checkpoint_says_what_it_is(run):
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]
    content = checkpoint.load(run / "best.pt")
    assert content["config"]["system"] == "sparseinst"
    assert content["config"]["injected"] == 128
    assert type(checkpoint.build(content)[0]).__name__ == "SparseInst"


def test_evaluating_drawing_and_predicting_know_nothing_of_the_system(run, toy_coco, tmp_path):
    argv = ["--checkpoint", str(run / "best.pt"), *IN_LINE]
    evaluate.main([*argv, "--split", "train", "--diagnose", "--out", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "diagnose.json").read_text())
    assert found["recall"]["all"]["all"]["objects"] > 4
    visualize.main([*argv, "--split", "train", "--count", "2", "--out", str(tmp_path / "a.png")])
    images = [str(path) for path in sorted((toy_coco / "val").glob("*.png"))[:2]]
    arguments = ["--checkpoint", str(run / "best.pt"), "--device", "cpu", "--threads", "1"]
    predict.main([*images, *arguments, "--out", str(tmp_path / "p")])
    assert (tmp_path / "a.png").exists() and list((tmp_path / "p").glob("*.json"))


def test_a_resumed_run_is_the_uninterrupted_one(toy_coco, tmp_path, no_finish):
    argv = [*OPTIONS, "--data", str(toy_coco), "--eval-every", "0", "--schedule", "multistep"]
    assert train.main([*argv, "--iterations", "4", "--out", str(tmp_path / "whole")]) == 0
    assert train.main([*argv, "--iterations", "2", "--out", str(tmp_path / "part")]) == 0
    resumed = [*argv, "--iterations", "4", "--out", str(tmp_path / "part"), "--resume"]
    assert train.main(resumed) == 0
    one, two = (checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_starts_from_its_weights_with_other_classes(run, toy_coco, tmp_path, no_finish):
    """Rows of classes of the same name are kept."""
    text = (toy_coco / "annotations" / "instances_train.json").read_text()
    other = tmp_path / "other.json"
    other.write_text(text.replace('"disc"', '"round"'))
    argv = [*OPTIONS[1:], "--train-json", str(other), "--val-json", str(other)]
    argv += ["--images", str(toy_coco / "train"), "--pretrained", str(run / "best.pt")]
    argv += ["--iterations", "1", "--lr", "1e-9", "--out", str(tmp_path / "x")]
    assert train.main(argv) == 0
    name = "decoder.inst_branch.cls_score.weight"
    before, after = (
        checkpoint.load(path)["model"][name]
        for path in (run / "best.pt", tmp_path / "x" / "last.pt")
    )
    kept = [(a - b).abs().max().item() < 1e-6 for a, b in zip(before, after)]
    names = [entry["name"] for entry in checkpoint.load(run / "best.pt")["classes"]]
    assert kept == [name != "disc" for name in names]


def test_a_file_is_checked_and_the_modules_are_inspected(run, tmp_path, capsys):
    check_weights.main([str(run / "best.pt")])
    assert "loads into sparseinst_topformer_tiny" in capsys.readouterr().out.splitlines()
    small = "--image-size 64 --batch-size 2 --rounds 1 --device cpu --threads 1".split()
    path = tmp_path / "parts.json"
    inspect_modules.main([*small, *OPTIONS[1:3], "--json", str(path), *OPTIONS[-5:]])
    paths = [part["path"] for part in json.loads(path.read_text())["parts"]]
    assert {"encoder.ppm", "decoder.inst_branch", "decoder.mask_branch", "criterion"} <= {*paths}


def test_more_objects_than_queries_train(toy_coco, tmp_path, no_finish):
    argv = [*OPTIONS, "num_queries=1", "--data", str(toy_coco), "--iterations", "2"]
    assert train.main([*argv, "--out", str(tmp_path / "one")]) == 0


@pytest.mark.parametrize("groups", [0, 4])
def test_half_precision_is_near(groups, toy_coco):
    model = zoo.build("sparseinst_efficientnet_lite0", 3, width=16, groups=groups)[0].eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        want = model(images)["class_logits"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(images)["class_logits"]
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_training_again_gives_the_same_bits(toy_coco, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "NOISE", -1)
    options = " ".join(OPTIONS).replace("--workers 0 ", "").split()
    argv = [*options, "--data", str(toy_coco), "--iterations", "2", "--eval-every", "0"]
    argv += ["--runs", "2", "--workers", "1", "--out", str(tmp_path / "out")]
    assert reproduce.main(argv) == 0
