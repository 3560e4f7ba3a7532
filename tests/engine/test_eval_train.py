"""Train AP beside val AP: which images, the same numbers each time, and no bit of the training."""

import shutil

import numpy as np
import pytest
import torch

from data.dataset import CocoDataset
from data.loaders import first_images
from data.opening import open_datasets
from data.presets import EvalPreset
from engine import checkpoint, inference, log, train
from engine.coco_ap import score
from engine.options import TrainOptions
from engine.report import run_page, summary
from engine.report.run_facts import RunFacts
from engine.report.warnings import warnings_of
from mobileinst import zoo


@pytest.fixture(scope="module")
def steps(tiny, toy_run):
    """Evaluated after steps 2 and 4 of 4; starts from weights that find something."""
    options = "--iterations 4 --eval-every 1 --average 0.9 --lr 1e-4".split()
    return [*tiny[1:], *options, "--pretrained", str(toy_run / "best.pt")]


@pytest.fixture(scope="module")
def run(steps, tmp_path_factory):
    out = tmp_path_factory.mktemp("seen") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish", lambda run: None)
        assert train.main([*steps, "--eval-train", "5", "--out", str(out)]) == 0
    return out


def test_the_numbers_are_those_of_seeded_training_images(run, toy_coco):
    content = checkpoint.load(run / "best.pt")
    model, _, postprocess = checkpoint.build(content, zoo.build_from_config)
    whole = open_datasets(data=toy_coco)["train"]
    seen = whole.subset(first_images(len(whole), 0, 5))
    settings = {"preset": EvalPreset(64), "workers": 0, "device": torch.device("cpu")}
    found = inference.predictions(model, postprocess, seen, **settings)
    numbers = score(seen.ground_truth(), found).metrics
    rows = {int(row["iteration"]): row for row in log.read_csv(run / "metrics.csv")}
    assert rows.keys() == {2, 4} and numbers["AP"] > 0.05
    row = rows[content["iteration"]]
    for key in ("AP", "AP50"):
        assert float(row[f"train/{key}"]) == pytest.approx(numbers[key], abs=1e-5)
        assert float(row[f"val/{key}"]) == pytest.approx(
            content["scores"]["metrics"][key], abs=1e-5
        )


def test_fewer_are_seen_if_that_follows_from_the_data(toy_coco, monkeypatch):
    def fit(opts: TrainOptions, _: CocoDataset) -> dict:
        opts.eval_train = 2
        return {}

    monkeypatch.setattr(train, "fit_to_data", fit)
    divided = train.open_data(TrainOptions(recipe="small", data=toy_coco))
    assert divided.val.name == "val" and len(divided.seen) == 2
    alone = {"train_json": toy_coco / "annotations/instances_train.json"}
    alone |= {"images": toy_coco / "train", "val_fraction": 0.0}
    whole = train.open_data(TrainOptions(recipe="small", **alone))
    assert (whole.val.name, len(whole.val), whole.seen) == ("train-2", 2, None)


def test_no_bit_of_the_training_changes_and_a_resumed_run_repeats_them(
    run, steps, tmp_path, no_finish, capsys
):
    argv = [*steps, "--out", str(tmp_path / "run")]
    assert train.main([*argv, "--iterations", "2", "--eval-train", "0"]) == 0
    assert "train AP" not in capsys.readouterr().out
    assert train.main([*argv, "--resume", "--eval-train", "5"]) == 0
    assert "train AP 0." in capsys.readouterr().out
    one, two = (checkpoint.load(folder / "last.pt") for folder in (run, tmp_path / "run"))
    for part in ("model", "average", "optimizer"):
        assert checkpoint.fingerprint(one[part]) == checkpoint.fingerprint(two[part])
    (before, *one), (first, *two) = (
        log.read_csv(folder / "metrics.csv") for folder in (run, tmp_path / "run")
    )
    assert one == two
    assert first == before | {"train/AP": "", "train/AP50": ""}
    of_train = run_page.ap_lines(log.read_csv(tmp_path / "run" / "metrics.csv"))[1]
    assert np.isfinite(of_train.y).tolist() == [False, True]


def test_all_images_are_scored_where_there_are_fewer(tiny):
    argv = [*tiny, "--iterations", "1"]
    assert len(train.open_data(train.parse([*argv, "--eval-train", "100"])).seen) == 8
    assert train.open_data(train.parse(argv)).seen is None
    both = ["--eval-train", "3", "--overfit", "2"]
    assert train.open_data(train.parse([*argv, *both])).seen is None
    images = {
        seed: train.open_data(train.parse([*argv, "--eval-train", "3", "--seed", seed])).seen.images
        for seed in ("0", "1")
    }
    ids = [[image.id for image in images[seed]] for seed in images]
    assert len(set(ids[0])) == 3 and ids[0] != ids[1]


def test_curve_and_summary_show_both(run, tmp_path):
    text = summary.summary(run)
    assert "train/AP" in text and "val/AP" in text
    assert "the same 5 training images in each evaluation" in text
    assert "is far above val AP" in text
    without = tmp_path / "without"
    shutil.copytree(run, without)
    rows = log.read_csv(without / "metrics.csv")
    rows = [{k: v for k, v in row.items() if not k.startswith("train/")} for row in rows]
    log.write_csv(without / "metrics.csv", rows)
    assert "train AP" in run_page.build(run) and "train AP" not in run_page.build(without)


@pytest.mark.parametrize(
    "on_train, on_val, expected",
    [
        (0.19, 0.1, "Train AP is 0.190"),
        (0.19, 0.01, "Train AP is 0.190"),
        (0.21, 0.1, ""),
        (0.5, 0.34, ""),  # val AP is more than two thirds of it
        (0.5, 0.33, "Train AP 0.500 is far above val AP 0.330"),
        (0.9, 0.61, ""),
        (0.9, 0.5, "overfit"),
        (0.3, 0.16, ""),  # the gap is less than 0.15
        (-1.0, 0.4, ""),
        (0.5, -1.0, ""),
        ("", 0.4, ""),
    ],
)
def test_a_low_train_ap_and_a_wide_gap_are_named(tmp_path, on_train, on_val, expected):
    rows = [
        {"iteration": "1", "train/AP": "0.9", "val/AP": "0.0"},
        {"iteration": "2", "val/AP": str(on_val), "train/AP": str(on_train)},
    ]
    run = RunFacts(tmp_path, {"pretrained": "x"}, [], rows, None)
    found = warnings_of(run)
    assert len(found) == bool(expected)
    assert not expected or expected in found[0]["what"] + found[0]["why"]
    assert warnings_of(run._replace(metrics=[{"iteration": "1", "overfit-4/AP": "0.9"}])) == []
