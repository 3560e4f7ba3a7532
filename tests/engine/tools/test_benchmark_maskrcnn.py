"""The comparison with Mask R-CNN: what it trains on, what it returns, and its table."""

import argparse
import functools
import json

import pytest
import torch

from data import rle
from data.opening import open_datasets
from engine import options
from engine.coco_ap import score
from engine.tools import benchmark_maskrcnn as peer
from mobileinst import zoo


@pytest.fixture
def toy(toy_coco, tmp_path):
    return open_datasets(toy_coco, cache=tmp_path)


@pytest.fixture
def backbone_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "lite0.pth"
    torch.save(zoo.build_backbone("efficientnet_lite0").state_dict(), path)
    return path


def test_flipped_targets_are_those_of_the_flipped_image(toy):
    read = toy["train"].read(toy["train"].with_objects()[0])
    image, target = peer.view(*read, None, None)
    flips = (peer.view(*read, None, torch.Generator().manual_seed(seed)) for seed in range(8))
    other, flipped = next(one for one in flips if not torch.equal(one[0], image))
    assert torch.equal(other, image.flip(-1))
    assert torch.equal(flipped["masks"], target["masks"].flip(-1))
    boxes = torch.from_numpy(rle.boxes(rle.encode(flipped["masks"]))).float()
    assert torch.equal(flipped["boxes"], boxes) and flipped["labels"].min() >= 1


def test_the_learning_rate_follows_from_the_share_of_the_minutes():
    rates = [peer.rate_at(done) for done in (0, 1 / 52, 1 / 26, 0.6, 0.62, 0.84, 0.85, 1.1)]
    assert rates == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_perfect_answers_score_one(toy):
    val_set = toy["val"]
    found = []
    for index in range(len(val_set)):
        _, target = peer.view(*val_set.read(index), None, None)
        output = target | {"masks": target["masks"][:, None].float()}
        output["scores"] = torch.ones(len(target["labels"]))
        found += peer.to_results(val_set, target["image_id"], output)
    assert score(val_set.ground_truth(), found).metrics["AP"] == pytest.approx(1)


def test_results_have_ids_and_sizes_of_the_images_and_losses_are_finite(toy):
    torch.manual_seed(0)
    classes = len(toy["train"].categories)
    model = peer.build(zoo.build_backbone("efficientnet_lite0"), classes, 64, rois=8, max_dets=5)
    opts = argparse.Namespace(batch_size=2, seed=0, workers=0)
    trained = peer.train(model, toy["train"], 1e-4, opts)  # raises FailedRun for a bad loss
    assert trained["steps"] >= 1 and trained["CPU minutes"] >= 1e-4
    found = peer.predict(model, toy["val"], workers=0)
    sizes = {one.id: [one.height, one.width] for one in toy["val"].images}
    assert found and {each["image_id"] for each in found} == set(sizes)
    ids = {one.id for one in toy["val"].categories}
    assert all(each["segmentation"]["size"] == sizes[each["image_id"]] for each in found)
    assert {each["category_id"] for each in found} <= ids


def test_the_command_tries_short_sides_and_writes_its_table(
    toy_coco, backbone_file, tmp_path, capsys, monkeypatch
):
    few = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 4}
    monkeypatch.setattr(peer, "MaskRCNN", functools.partial(peer.MaskRCNN, **few))
    out = tmp_path / "out"
    words = f"--data {toy_coco} --pretrained {backbone_file} --out {out}"
    small = "--cpu-minutes 0.01 --short-sides 32 64 --batch-size 2 --rois 8 --threads 1 --workers 1"
    peer.main([*words.split(), *small.split()])
    rows = json.loads((out / "maskrcnn.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["trial", "trial", "Mask R-CNN"]
    assert [row["short side"] for row in rows[:2]] == [32, 64]
    assert rows[2]["CPU minutes"] >= 0.01
    table = (out / "maskrcnn.md").read_text()
    assert "| run | short side | CPU minutes | steps |" in table
    assert "plain AP50" in capsys.readouterr().out


def test_the_weights_must_be_named(toy_coco):
    with pytest.raises(options.InputError, match="--pretrained"):
        peer.parse(["--data", str(toy_coco)])
