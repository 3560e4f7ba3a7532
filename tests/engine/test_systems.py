"""Mask2Former and SparseInst on the way of MobileInst: train, resume, evaluate, draw, predict."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint, evaluate, predict, train, visualize
from engine.tools import check_weights, inspect_modules
from mobileinst import zoo

KEYWORDS = {
    "mask2former_swin_tiny": (
        "embed_dim=16 depths=1,1,1,1 backbone_heads=1,2,2,4 window_size=4 drop_path=0.2 width=64 "
        "mask_dim=32 num_heads=4 num_encoder_layers=1 encoder_ffn_width=64 num_queries=8 "
        "num_layers=3 ffn_width=64 train_points=256"
    ),
    "sparseinst_topformer_tiny": "width=32 kernel_dim=16 num_queries=8 convs=2",
}
RATES = {"mask2former_swin_tiny": "2e-3", "sparseinst_topformer_tiny": "4e-3"}
CLASSIFIERS = {  # a row for each class; that of Mask2Former has one more, for no object
    "mask2former_swin_tiny": "query_decoder.class_embed.weight",
    "sparseinst_topformer_tiny": "decoder.inst_branch.cls_score.weight",
}
ON_CPU = "--device cpu --threads 1".split()
IN_LINE = ["--workers", "0", *ON_CPU]


def options(system, data):
    """Options of a training without its length; they begin with --from-scratch."""
    words = "--from-scratch --image-size 64 --canvas 64x64 --batch-size 4 --warmup 2 --average 0 "
    words += f"--eval-train 0 --eval-every 0 --lr {RATES[system]} --model {system} "
    return [*words.split(), *IN_LINE, "--data", str(data), "--set", *KEYWORDS[system].split()]


@pytest.fixture(scope="module", params=KEYWORDS)
def run(request, toy_coco, tmp_path_factory):
    """A system and the folder of a run that has looked at four images for a while."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    argv = [*options(request.param, toy_coco), "--out", str(out)]
    assert train.main([*argv, *"--iterations 40 --log-every 10 --overfit 4".split()]) == 0
    return request.param, out


def test_it_learns_and_its_checkpoint_names_its_system(run):
    system, folder = run
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]
    content = checkpoint.load(folder / "best.pt")
    config, model = content["config"], checkpoint.build(content)[0]
    if system.startswith("mask2former"):
        assert config["system"] == "mask2former" and config["depths"] == (1, 1, 1, 1)
        assert type(model).__name__ == "Mask2Former"
    else:
        assert config["system"] == "sparseinst" and config["injected"] == 128
        assert type(model).__name__ == "SparseInst"


def test_a_run_of_any_system_is_evaluated_drawn_and_used(run, toy_coco, tmp_path):
    best = ["--checkpoint", str(run[1] / "best.pt")]
    split = [*best, "--split", "train", *IN_LINE]
    evaluate.main([*split, "--diagnose", "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["scores"]["metrics"]["AP50"] > 0.05
    found = json.loads((tmp_path / "diagnose.json").read_text())
    assert found["recall"]["all"]["all"]["objects"] > 4
    visualize.main([*split, "--count", "2", "--out", str(tmp_path / "sheet.png")])
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
    image = str(toy_coco / "train" / "0.png")
    predict.main([image, *best, *ON_CPU, "--out", str(tmp_path / "found")])
    assert (tmp_path / "found" / "objects.json").exists()


@pytest.mark.parametrize("system", KEYWORDS)
def test_a_resumed_run_is_the_uninterrupted_one(system, toy_coco, tmp_path, no_finish):
    """Drop path, the points of the losses and the optimizer go on where they were."""
    argv = [*options(system, toy_coco), "--schedule", "multistep"]
    for name, steps, *more in (("whole", 4), ("part", 2), ("part", 4, "--resume")):
        out = ["--out", str(tmp_path / name), *more]
        assert train.main([*argv, "--iterations", str(steps), *out]) == 0
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "part"))
    assert checkpoint.fingerprint(one) == checkpoint.fingerprint(two)


def test_a_run_starts_from_its_weights_with_other_classes(run, toy_coco, tmp_path, no_finish):
    """Rows of classes of the same name are kept, and the row for no object."""
    system, folder = run
    text = (toy_coco / "annotations" / "instances_train.json").read_text()
    other = tmp_path / "other.json"
    other.write_text(text.replace('"disc"', '"round"'))
    argv = [*options(system, toy_coco)[1:], "--train-json", str(other), "--val-json", str(other)]
    del argv[argv.index("--data") : argv.index("--data") + 2]
    argv += ["--images", str(toy_coco / "train"), "--pretrained", str(folder / "best.pt")]
    argv += ["--iterations", "1", "--lr", "1e-9", "--out", str(tmp_path / "x")]
    assert train.main(argv) == 0
    before, after = (
        checkpoint.load(path)["model"][CLASSIFIERS[system]]
        for path in (folder / "best.pt", tmp_path / "x" / "last.pt")
    )
    kept = [(a - b).abs().max().item() < 1e-6 for a, b in zip(before, after)]
    names = [entry["name"] for entry in checkpoint.load(folder / "best.pt")["classes"]]
    assert kept[:3] == [name != "disc" for name in names] and all(kept[3:])


def test_one_small_image_at_a_time_trains(toy_coco, tmp_path, no_finish):
    """There are no batch norms that would need more."""
    argv = [*options("mask2former_swin_tiny", toy_coco), "--batch-size", "1"]
    assert train.main([*argv, "--iterations", "1", "--out", str(tmp_path / "one")]) == 0


def test_a_file_is_checked_and_the_modules_are_inspected(toy_coco, tmp_path, capsys):
    name = "sparseinst_topformer_tiny"
    file, parts = tmp_path / "weights.pt", tmp_path / "parts.json"
    torch.save(zoo.build(name, 80)[0].state_dict(), file)
    check_weights.main([str(file), "--model", name])
    assert f"loads into {name}" in capsys.readouterr().out
    small = "--image-size 64 --batch-size 2 --rounds 1".split()
    keywords = ["--set", *KEYWORDS[name].split()]
    inspect_modules.main([*small, *ON_CPU, "--model", name, "--json", str(parts), *keywords])
    paths = [part["path"] for part in json.loads(parts.read_text())["parts"]]
    assert {"encoder.ppm", "decoder.inst_branch", "decoder.mask_branch", "criterion"} <= {*paths}


def test_more_objects_than_queries_train(toy_coco, tmp_path, no_finish):
    argv = [*options("sparseinst_topformer_tiny", toy_coco), "num_queries=1", "--iterations", "2"]
    assert train.main([*argv, "--out", str(tmp_path / "one")]) == 0
