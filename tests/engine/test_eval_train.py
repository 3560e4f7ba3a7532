"""Train AP beside val AP: which images, the same numbers each time, and no bit of the training."""

import shutil

import numpy as np
import pytest
import torch

from data.loaders import first_images
from data.opening import open_datasets
from data.presets import EvalPreset
from engine import checkpoint, inference, log, train
from engine.coco_ap import score
from engine.report import run_page, summary
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
