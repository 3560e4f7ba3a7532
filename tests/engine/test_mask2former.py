"""Mask2Former on the same way through: train, resume, evaluate, draw, start from its weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint, evaluate, train, visualize
from engine.log import StepTimer
from engine.loop import Trainer
from engine.optim import Schedule, parameter_groups
from mobileinst import zoo

KEYWORDS = (
    "embed_dim=16 depths=1,1,1,1 backbone_heads=1,2,2,4 window_size=4 drop_path=0.2 width=64 "
    "mask_dim=32 num_heads=4 num_encoder_layers=1 encoder_ffn_width=64 num_queries=8 num_layers=3 "
    "ffn_width=64 train_points=256"
)
OPTIONS = (
    "--from-scratch --model mask2former_swin_tiny --device cpu --threads 1 --workers 0 "
    "--image-size 64 --canvas 64x64 --batch-size 4 --warmup 2 --average 0 --lr 2e-3 "
    f"--set {KEYWORDS}"
).split()
IN_LINE = ["--workers", "0", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def run(toy_coco, tmp_path_factory):
    """A run that has looked at four images for a while."""
    out = tmp_path_factory.mktemp("mask2former") / "run"
    length = "--iterations 60 --eval-every 0 --log-every 20 --overfit 4".split()
    assert train.main([*OPTIONS, *length, "--data", str(toy_coco), "--out", str(out)]) == 0
    return out


def test_it_learns_and_its_checkpoint_says_what_it_is(run):
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]
    content = checkpoint.load(run / "best.pt")
    assert content["config"]["system"] == "mask2former"
    assert content["config"]["depths"] == (1, 1, 1, 1)
    model, _, postprocess = checkpoint.build(content)
    assert type(model).__name__ == "Mask2Former" and postprocess.cut == 0


def test_one_small_picture_at_a_time_trains(toy_coco, tmp_path, no_finish):
    """There are no batch norms that would need more."""
    argv = [*OPTIONS, "--data", str(toy_coco), "--batch-size", "1"]
    assert train.main([*argv, "--iterations", "1", "--out", str(tmp_path / "one")]) == 0


def test_evaluating_and_drawing_know_nothing_of_the_system(run, tmp_path):
    argv = ["--checkpoint", str(run / "best.pt"), "--split", "train", *IN_LINE]
    evaluate.main([*argv, "--out", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["scores"]["metrics"]["AP50"] > 0.05
    visualize.main([*argv, "--count", "2", "--out", str(tmp_path / "sheet.png")])
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10


def test_a_resumed_run_is_the_uninterrupted_one(toy_coco, tmp_path, no_finish):
    """Drop path, the points of the losses and the optimizer go on where they were."""
    argv = [*OPTIONS, "--data", str(toy_coco), "--eval-every", "0", "--schedule", "multistep"]
    assert train.main([*argv, "--iterations", "4", "--out", str(tmp_path / "whole")]) == 0
    assert train.main([*argv, "--iterations", "2", "--out", str(tmp_path / "part")]) == 0
    resumed = [*argv, "--iterations", "4", "--out", str(tmp_path / "part"), "--resume"]
    assert train.main(resumed) == 0
    one, two = (checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_starts_from_its_weights_with_other_classes(run, toy_coco, tmp_path, no_finish):
    """Rows of classes of the same name are kept, and the row for no object behind them."""
    text = (toy_coco / "annotations" / "instances_train.json").read_text()
    other = tmp_path / "other.json"
    other.write_text(text.replace('"disc"', '"round"'))
    argv = [*OPTIONS[1:], "--train-json", str(other), "--val-json", str(other)]
    argv += ["--images", str(toy_coco / "train"), "--pretrained", str(run / "best.pt")]
    assert (
        train.main([*argv, "--iterations", "1", "--lr", "1e-9", "--out", str(tmp_path / "x")]) == 0
    )
    before, after = (
        checkpoint.load(path)["model"]["query_decoder.class_embed.weight"]
        for path in (run / "best.pt", tmp_path / "x" / "last.pt")
    )
    kept = [(a - b).abs().max().item() < 1e-6 for a, b in zip(before, after)]
    names = [entry["name"] for entry in checkpoint.load(run / "best.pt")["classes"]]
    assert kept == [name != "disc" for name in names] + [True]


def test_the_points_of_a_step_follow_from_the_seed_and_the_step():
    """Whatever else drew numbers, and however often the same step is taken."""
    seen = []

    class Noting(torch.nn.Module):
        counts = staticmethod(lambda targets: {})

        def forward(self, outputs, targets, counts=None, points=None):
            seen.append(points.draw("", 1, "match", (2,)))
            return {"x": outputs["class_logits"].sum()}

    keywords = dict(part.split("=") for part in KEYWORDS.split())
    small = {key: int(value) for key, value in keywords.items() if value.isdecimal()}
    model = zoo.build(
        "mask2former_swin_tiny", 2, depths=(1, 1, 1, 1), backbone_heads=(1, 2, 2, 4), **small
    )[0]

    class Images:
        images = torch.rand(1, 3, 64, 64)
        padding = torch.zeros(1, 64, 64, dtype=torch.bool)
        targets = []

    for seed in (1, 1, 2):
        trainer = Trainer(
            model=model,
            criterion=Noting(),
            optimizer=torch.optim.SGD(parameter_groups(model, 1e-9, 0.0)),
            schedule=Schedule(9),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            average=None,
            device=torch.device("cpu"),
            seed=seed,
        )
        torch.rand(seed + len(seen))
        for _ in range(2):
            trainer.step([Images()], StepTimer())
    one, two, again, also, other, _ = seen
    assert torch.equal(one, again) and torch.equal(two, also)
    assert not torch.equal(one, two) and not torch.equal(one, other)
