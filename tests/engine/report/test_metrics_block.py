"""The block of test metrics: its text to the letter, its numbers against pycocotools."""

import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import rle
from data.loaders import eval_loader
from data.opening import open_datasets
from data.presets import EvalPreset
from engine import checkpoint, evaluate
from engine.coco_ap import score
from engine.report.metrics_block import MeanLoss, all_metrics, block, class_names

FIXED = set(
    "epoch test_loss test_map test_map_50 test_map_75 test_map_large test_map_medium "
    "test_map_small test_mar_1 test_mar_10 test_mar_100 test_mar_large test_mar_medium "
    "test_mar_small test_runtime test_samples_per_second test_steps_per_second".split()
)

EXPECTED = """\
***** test metrics *****
  epoch                   = 40.0
  test_loss               = 12.3457
  test_map                = 0.1235
  test_map_background     = -1.0
  test_mar_100            = 0.5
  test_runtime            = 0:01:03.31
  test_samples_per_second = 1234.5679
  test_steps_per_second   = 0.5"""


def test_the_block_to_the_letter():
    metrics = {
        "test_runtime": 63.319,
        "test_map": 0.12345678,
        "test_map_background": -1.0,
        "epoch": 40.0,
        "test_samples_per_second": 1234.56789,
        "test_steps_per_second": 0.5,
        "test_mar_100": 0.5,
        "test_loss": 12.34567,
    }
    assert block(metrics) == EXPECTED


def test_long_runs_and_short_ones():
    text = block({"test_runtime": 90061.999})
    assert text.splitlines()[1] == "  test_runtime = 1 day, 1:01:01.99"
    assert "0:00:00.05" in block({"test_runtime": 0.0599})


@pytest.fixture(scope="module")
def evaluated(toy_run, tmp_path_factory):
    """Results and output of `--metrics-block`; the checkpoint overfits some training images."""
    out = tmp_path_factory.mktemp("evaluated") / "results.json"
    argv = ["--checkpoint", str(toy_run / "last.pt"), "--split", "train", "--out", str(out)]
    argv += "--metrics-block --device cpu --threads 1 --workers 0".split()
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "info", said.append)
        evaluate.main(argv)
    return json.loads(out.read_text()), "\n".join(said)


def test_a_checkpoint_has_every_key_and_each_declared_class(evaluated):
    metrics = evaluated[0]["metrics"]
    classes = {f"test_{kind}_{name}" for kind in ("map", "mar_100") for name in ("disc", "square")}
    absent = {"test_map_unused", "test_mar_100_unused"}
    assert metrics.keys() == FIXED | classes | absent
    assert all(metrics[key] == -1.0 for key in absent)
    assert metrics["test_map_large"] == -1.0  # the images are smaller than that
    assert metrics["test_map_50"] > 0.05 and metrics["epoch"] == 48.0  # batches of all 4 images
    assert metrics["test_samples_per_second"] * metrics["test_runtime"] == pytest.approx(8)


def test_numbers_against_pycocotools(evaluated, toy_coco):
    content, _ = evaluated
    truth = COCO(str(toy_coco / "annotations" / "instances_train.json"))
    for annotation in truth.dataset["annotations"]:
        annotation["area"] = int(rle.area([annotation["segmentation"]])[0])
    evaluation = COCOeval(truth, truth.loadRes(content["detections"]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = "map map_50 map_75 map_small map_medium map_large".split()
    names += "mar_1 mar_10 mar_100 mar_small mar_medium mar_large".split()
    ours = [content["metrics"][f"test_{name}"] for name in names]
    assert ours == pytest.approx(evaluation.stats.tolist())


def test_loss_of_each_image_on_its_own(evaluated, toy_run, toy_coco):
    model, criterion, _ = checkpoint.build(checkpoint.load(toy_run / "last.pt"))
    dataset = open_datasets(toy_coco)["train"]
    losses = []
    for packed in eval_loader(dataset, EvalPreset(64), batch_size=1):
        batch = packed.to("cpu")
        with torch.no_grad():
            terms = criterion(model(batch.images, batch.padding), batch.targets)
        assert not [name for name in terms if "aux" in name]
        losses.append(sum(terms.values()).item())
    assert len(losses) == 8
    assert evaluated[0]["metrics"]["test_loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)


def test_nothing_found_is_zero_and_nothing_there_is_minus_one():
    ground_truth = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "categories": [{"id": 0, "name": "background"}, {"id": 1, "name": "shrimp"}],
        "annotations": [],
    }
    loss = MeanLoss(None)
    empty = all_metrics(score(ground_truth, []), loss, 1.0, 2.0)
    assert {empty["test_map"], empty["test_map_shrimp"], empty["test_mar_100"]} == {-1.0}
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 2:12, 2:12] = True
    ground_truth["annotations"].append(
        {"image_id": 1, "category_id": 1, "segmentation": rle.encode(mask)[0]}
    )
    missed = all_metrics(score(ground_truth, []), loss, 1.0, 2.0)
    assert missed["test_map"] == missed["test_map_shrimp"] == missed["test_map_small"] == 0.0
    assert missed["test_map_background"] == missed["test_map_large"] == -1.0


def test_no_class_overwrites_another_number():
    names = class_names(["small", "50", "fish", "fish"])
    assert names == ["small_class", "50_class", "fish", "fish_class"]
