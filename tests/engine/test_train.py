"""The whole way through on toy images: train, stop, resume, evaluate, draw, predict."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import rle
from data.errors import InputError
from engine import checkpoint, evaluate, predict, train, visualize
from mobileinst import zoo
from mobileinst.set_prediction.postprocess import Postprocess

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = "--device cpu --threads 1".split()
IN_LINE = [*ON_CPU, "--workers", "0"]
CLASSES = [(0, 0, "square"), (1, 7, "unused"), (2, 90, "disc")]  # index, id, name


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def flat(value, path=""):
    """Nested dicts and lists as path -> leaf."""
    if not isinstance(value, (dict, list)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, one in items for k, v in flat(one, f"{path}/{key}").items()}


def require_same_bits(first, second, but=("seconds", "cpu_seconds", "options")):
    """Two checkpoints agree in everything but the times and the command line."""
    one, two = (
        flat({key: value for key, value in content.items() if key not in but})
        for content in (first, second)
    )
    assert one.keys() == two.keys() and len(one) > 100
    for key, value in one.items():
        if torch.is_tensor(value):
            assert torch.equal(value, two[key]), key
        else:
            assert value == two[key], key


def test_the_files_of_a_run(toy_run):
    assert {path.name for path in toy_run.iterdir()} == {
        *("options.json", "log.jsonl", "metrics.csv", "last.pt", "best.pt"),
        *("train_batch.png", "predictions.png", "summary.md", "evidence.json", "report.html"),
    }
    for name in ("train_batch.png", "predictions.png"):
        image = np.asarray(Image.open(toy_run / name))
        assert image.std() > 10 and len(np.unique(image.reshape(-1, 3), axis=0)) > 500
    assert json.loads((toy_run / "options.json").read_text())["lr"] == 1.1e-2
    log = log_of(toy_run)
    assert [row["iteration"] for row in log] == [12, 24, 36, 48]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert {"class", "pixel", "dice", "objectness", "grad_norm", "lr", "seconds"} <= log[0].keys()
    summary = (toy_run / "summary.md").read_text()
    assert "| AP50" in summary and "split overfit-4" in summary
    assert "recipe: none" in summary and "through the mask grid" in summary


def test_scores_on_training_images_are_never_called_val(toy_run):
    rows = rows_of(toy_run / "metrics.csv")
    assert [row["iteration"] for row in rows] == ["24", "48"]
    assert {key.split("/")[0] for key in rows[0]} == {"iteration", "epoch", "overfit-4"}
    assert float(rows[-1]["overfit-4/AP50"]) > 0.2
    assert not re.search(r"\bval\b", (toy_run / "summary.md").read_text())


def test_a_checkpoint_holds_the_class_map_and_the_best_score(toy_run):
    last, best = (checkpoint.load(toy_run / name) for name in ("last.pt", "best.pt"))
    for content in (last, best):
        classes = [(c["index"], c["id"], c["name"]) for c in content["classes"]]
        assert classes == CLASSES
        assert content["options"]["image_size"] == 64 and content["config"]["width"] == 32
    assert last["iteration"] == 48 and last["best"] == best["best"]
    highest = max(float(row["overfit-4/AP"]) for row in rows_of(toy_run / "metrics.csv"))
    assert best["best"]["AP"] == pytest.approx(highest, abs=1e-5)
    assert best["best"]["iteration"] == best["iteration"]
    assert 0 < best["best"]["threshold"] < 1


def results_of(toy_run, out, *options):
    argv = ["--checkpoint", str(toy_run / "best.pt"), "--out", str(out), *IN_LINE]
    evaluate.main([*argv, *options])
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def on_train(toy_run, tmp_path_factory):
    return results_of(toy_run, tmp_path_factory.mktemp("r") / "one.json", "--split", "train")


def test_results_carry_the_original_ids_and_the_name_of_the_split(on_train, toy_coco):
    truth = json.loads((toy_coco / "annotations" / "instances_train.json").read_text())
    images = {image["id"]: image for image in truth["images"]}
    assert on_train["split"] == "train"
    assert {(c["id"], c["name"]) for c in on_train["categories"]} == {c[1:] for c in CLASSES}
    assert {each["image_id"] for each in on_train["detections"]} <= images.keys()
    assert {each["category_id"] for each in on_train["detections"]} <= {0, 7, 90}
    for each in on_train["detections"]:
        image = images[each["image_id"]]
        mask = rle.from_annotation(each["segmentation"], image["height"], image["width"])
        assert rle.area([mask])[0] > 0


def test_ap_does_not_depend_on_the_batch_size(on_train, toy_run, tmp_path):
    alone = results_of(toy_run, tmp_path / "a.json", "--split", "train", "--batch-size", "1")
    few = results_of(toy_run, tmp_path / "b.json", "--split", "train", "--batch-size", "3")
    key = ("image_id", "category_id")
    for other in (alone, few):
        assert other["scores"]["metrics"] == pytest.approx(on_train["scores"]["metrics"], abs=1e-6)
        pairs = list(zip(on_train["detections"], other["detections"], strict=True))
        assert all([one[k] for k in key] == [two[k] for k in key] for one, two in pairs)
        assert all(one["score"] == pytest.approx(two["score"], abs=1e-4) for one, two in pairs)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("given", ["data", "checkpoint"])
def test_the_ground_truth_as_predictions_is_perfect(toy_run, toy_coco, capsys, given, split):
    source = {"data": ["--data", toy_coco], "checkpoint": ["--checkpoint", toy_run / "best.pt"]}
    evaluate.main([*map(str, source[given]), "--split", split, "--ground-truth-as-predictions"])
    printed = capsys.readouterr().out
    assert f"bash sbin/train.sh --data {toy_coco} " in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["AP", "IoU", "0.50:0.95", "1.000", "1.000"] in lines
    assert any(line[:1] == ["square"] and line[2] == "1.000" for line in lines)


def test_sheets_are_drawn_at_the_best_threshold(toy_run, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    argv = ["--checkpoint", str(toy_run / "best.pt"), "--split", "train", "--count", "3"]
    visualize.main([*argv, "--out", str(out), *IN_LINE])
    best = checkpoint.load(toy_run / "best.pt")["best"]["threshold"]
    assert f"3 images of the train split, scores above {best:.3f}" in capsys.readouterr().out
    assert np.asarray(Image.open(out)).std() > 10


def test_predictions_of_images_a_folder_and_a_list(toy_run, toy_coco, tmp_path):
    (tmp_path / "list.txt").write_text(f"{toy_coco}/train/0.png\n{toy_coco}/train/1.png\n")
    out = tmp_path / "found"
    images = [tmp_path / "list.txt", toy_coco / "val", toy_coco / "train" / "2.png"]
    argv = [*map(str, images), "--checkpoint", str(toy_run / "best.pt"), "--threshold", "0.05"]
    predict.main([*argv, "--out", str(out), *ON_CPU])
    content = json.loads((out / "objects.json").read_text())
    names = ["0.png", "1.png", "8.png", "9.png", "10.png", "11.png", "2.png"]
    assert [image["file_name"] for image in content["images"]] == names
    rows = rows_of(out / "objects.csv")
    assert len(rows) == len(content["annotations"]) > 2
    for row, each in zip(rows, content["annotations"], strict=True):
        image = content["images"][each["image_id"] - 1]
        size = (image["height"], image["width"])
        mask = rle.decode([each["segmentation"]], size)[0]
        ys, xs = np.nonzero(mask)
        assert each["area"] == int(row["area"]) == len(xs) and each["score"] > 0.05
        assert (int(row["x0"]), int(row["y1"])) == (xs.min(), ys.max() + 1)
        assert float(row["cx"]) == pytest.approx(xs.mean(), abs=0.06)
        assert row["class"] == {0: "square", 7: "unused", 90: "disc"}[each["category_id"]]
    expected = np.zeros((64, 64), int)
    first = [each for each in content["annotations"] if each["image_id"] == 1]
    for each in sorted(
        first, key=lambda each: (each["area"], each["id"])
    ):  # the smallest is on top
        mask = rle.decode([each["segmentation"]], (64, 64))[0]
        expected[mask & (expected == 0)] = each["id"]
    assert (np.asarray(Image.open(out / "00001_0_instances.png")) == expected).all()
    assert expected.max() > 0
    assert Image.open(out / "00001_0_overlay.jpg").size == (64, 64)
    assert len(list(out.iterdir())) == 2 * 7 + 2


def test_without_anything_found_a_stopgap_threshold_is_named(tiny, toy_coco, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([*tiny, "--iterations", "1", "--out", str(out)]) == 0
    assert checkpoint.load(out / "best.pt")["best"]["threshold"] is None
    assert "above 0.300 (a default" in capsys.readouterr().out
    visualize.main(["--checkpoint", str(out / "best.pt"), *IN_LINE])
    assert "above 0.300 (a default" in capsys.readouterr().out
    assert (out / "visualize-001" / "best_val.png").exists()
    image = str(toy_coco / "val" / "8.png")
    where = str(tmp_path / "found")
    predict.main([image, "--checkpoint", str(out / "best.pt"), "--out", where, *ON_CPU])
    assert "above 0.300 (a default" in capsys.readouterr().out


# The length of the runs that are compared bit by bit: accumulation, drop path, augmentation and
# several canvases are all in play, and step 1 lies in the middle of an epoch.
STEPS = "--iterations 4 --batch-size 2 --accumulate 2 --average 0.9".split()


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main([*tiny, *STEPS, "--eval-every", "1", "--out", str(out)]) == 0
    return out


def stop_at(monkeypatch, iteration, number=signal.SIGTERM):
    """A signal arrives while this optimizer step is running."""
    step = train.Trainer.step

    def interrupted(trainer, *args):
        values = step(trainer, *args)
        if trainer.iteration == iteration:
            signal.raise_signal(number)
        return values

    monkeypatch.setattr(train.Trainer, "step", interrupted)


@pytest.mark.parametrize("iteration", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(
    tiny, uninterrupted, tmp_path, monkeypatch, capsys, no_finish, iteration
):
    out = tmp_path / "run"
    argv = [*tiny, *STEPS, "--eval-every", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        stop_at(patch, iteration)
        assert train.main(argv) == 143
    assert f"stopped at iteration {iteration}" in capsys.readouterr().out
    assert checkpoint.load(out / "last.pt")["iteration"] == iteration
    torch.manual_seed(99)  # what the process has drawn before does not matter
    assert train.main([*argv, "--resume"]) == 0
    for name in ("last.pt", "best.pt"):
        require_same_bits(checkpoint.load(out / name), checkpoint.load(uninterrupted / name))
    assert rows_of(out / "metrics.csv") == rows_of(uninterrupted / "metrics.csv")
    times = ("seconds", "minutes", "cpu_minutes", "images_per_second")
    whole = {row["iteration"]: row for row in log_of(uninterrupted)}
    found = {row["iteration"]: row for row in log_of(out)}
    assert found.keys() == whole.keys() == {2, 4}
    for key, value in whole[4].items():
        assert key in times or found[4][key] == value


def test_ctrl_c_saves_and_leaves_and_resume_finishes(tiny, tmp_path, no_finish):
    out = tmp_path / "run"
    argv = [*tiny, "--iterations", "100000", "--eval-every", "0", "--log-every", "1"]
    argv += ["--workers", "1", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.train", *argv],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "log.jsonl").exists() and len(log_of(out)) >= 2:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
        said, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    reached = checkpoint.load(out / "last.pt")["iteration"]
    assert reached >= 2 and f"stopped at iteration {reached}" in said
    assert not list(out.glob("*.tmp"))
    assert train.main([*argv, "--iterations", str(reached + 2), "--resume"]) == 0
    assert checkpoint.load(out / "last.pt")["iteration"] == reached + 2
    assert [row["iteration"] for row in log_of(out)] == list(range(1, reached + 3))


def test_a_run_starts_from_the_weights_of_a_file(tiny, toy_run, tmp_path, monkeypatch, capsys):
    """The average does too; a resumed run has them in its checkpoint and needs the file no more."""
    file, out = tmp_path / "start.pt", tmp_path / "run"
    shutil.copy(toy_run / "best.pt", file)
    argv = [*tiny[1:], "--iterations", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", lambda run: None)
        assert train.main([*argv, "--pretrained", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"weights      {file}: MobileInst with TopFormer-T" in said
    assert "from the file: square, unused, disc" in said
    start, learned = checkpoint.load(out / "last.pt"), checkpoint.load(file)["model"]
    for part in ("model", "average"):
        require_same_bits(start[part], learned)
    file.unlink()
    report = (out / "weights.json").read_text()
    assert train.main([*argv, "--resume"]) == 0
    assert (out / "weights.json").read_text() == report
    assert json.loads((out / "options.json").read_text())["pretrained"] == str(file)
    assert f"started from: {file}: MobileInst with TopFormer-T" in (out / "summary.md").read_text()
    assert "weights.json" in capsys.readouterr().out


def test_part_of_the_weights_is_taken_on_demand_only(tiny, tmp_path, no_finish, capsys):
    state = zoo.build_backbone("topformer_tiny").state_dict()
    part = {name: torch.rand(value.shape) for name, value in state.items() if "layer9" not in name}
    torch.save(part, tmp_path / "part.pth")
    argv = [*tiny[1:], "--iterations", "1", "--pretrained", str(tmp_path / "part.pth")]
    with pytest.raises(InputError, match="are missing"):
        train.main([*argv, "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
    assert train.main([*argv, "--out", str(tmp_path / "run"), "--allow-partial"]) == 0
    assert "STARTS FROM RANDOM VALUES: mask_decoder" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert report["whole"] is False and report["missing"]["tensors"] == 15


def test_evaluation_asks_for_every_score(toy_run, toy_coco, tmp_path, monkeypatch):
    """A threshold of 0.3 once capped a recall at 5 %: evaluation must not have any."""
    asked = []
    found = Postprocess.__call__

    def noted(self, outputs, sizes, threshold=None, encode=None):
        asked.append(threshold)
        return found(self, outputs, sizes, threshold, encode)

    monkeypatch.setattr(Postprocess, "__call__", noted)
    argv = [*IN_LINE, "--checkpoint", str(toy_run / "best.pt"), "--data", str(toy_coco)]
    assert not evaluate.main([*argv, "--out", str(tmp_path / "results.json")])
    assert asked and set(asked) == {None}


def test_more_than_a_hundred_objects_are_scored_when_the_model_may_find_them(
    tiny, tmp_path, monkeypatch
):
    limits = []

    def stop(*args, max_dets):
        limits.append(max_dets)
        raise ZeroDivisionError

    monkeypatch.setattr(train, "score_with_curves", stop)
    argv = [*tiny, "--set", "max_detections=300", "--iterations", "1"]
    with pytest.raises(ZeroDivisionError):
        train.main([*argv, "--out", str(tmp_path / "run")])
    assert limits == [300]


def test_copy_paste_is_an_option_of_the_training_images(tiny, tmp_path, no_finish):
    def first_batch(name, *options):
        out = tmp_path / name
        assert train.main([*tiny, "--iterations", "1", "--out", str(out), *options]) == 0
        return np.asarray(Image.open(out / "train_batch.png"))

    without, never = first_batch("without"), first_batch("never", "--copy-paste", "0")
    assert np.array_equal(without, never)
    always = first_batch("always", "--copy-paste", "1")
    assert always.shape != without.shape or not np.array_equal(always, without)


def test_overfit_beyond_the_set_takes_all_of_it(tiny, toy_coco, capsys):
    data = train.open_data(train.parse([*tiny, "--overfit", "99"]))
    assert "--overfit 99: there are 8 images, all are taken" in capsys.readouterr().out
    assert len(data.train) == len(data.val) == 8 and data.train.name == "overfit-8"
    train.open_data(train.parse([*tiny, "--overfit", "8"]))
    assert "all are taken" not in capsys.readouterr().out
