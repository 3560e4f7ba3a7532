"""What a run needs to go on, which weights are its best ones, and a warm-up that fits it."""

import json
import math
import shutil

import pytest
import torch

from engine import checkpoint, evaluate, log, train
from engine.coco_ap import METRICS, Scores
from engine.options import TrainOptions
from engine.report import draw, run_page, summary
from mobileinst import zoo

STEPS = "--iterations 4 --eval-every 1 --average 0.9 --log-every 1".split()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that was evaluated after steps 2 and 4 of 4; it starts with a report on weights."""
    folder = tmp_path_factory.mktemp("finished")
    state = zoo.build_backbone("topformer_tiny").state_dict()
    torch.save(state, folder / "start.pth")
    argv = [*tiny[1:], *STEPS, "--pretrained", str(folder / "start.pth"), "--skip-bad-records"]
    assert train.main([*argv, "--out", str(folder / "run")]) == 0
    return argv, folder / "run"


def damaged(path, how):
    if how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "missing":
        path.unlink()


HOW = ("missing", "half", "as it was")


@pytest.mark.parametrize("how", HOW)
def test_a_finished_run_goes_on_from_last_pt_alone(finished, tmp_path, capsys, how):
    argv, whole = finished
    folder = shutil.copytree(whole, tmp_path / "elsewhere")
    for path in folder.iterdir():
        if path.name != "last.pt":
            damaged(path, how)
    capsys.readouterr()
    assert train.main([*argv, "--out", str(folder), "--resume"]) == 0
    said = capsys.readouterr().out
    dropped = f"{folder}: best.pt is missing or not that of last.pt"
    assert (dropped in said) == (how != "as it was")
    one, two = (checkpoint.load(run / "best.pt") for run in (whole, folder))
    assert checkpoint.fingerprint(one) == checkpoint.fingerprint(two)
    assert one["best"] == two["best"] and one["scores"] == two["scores"]
    last = log.read_csv(folder / "metrics.csv")[-1]
    assert last == log.read_csv(whole / "metrics.csv")[-1]
    assert "iteration 4, split val" in (folder / "summary.md").read_text()
    json.loads((folder / "options.json").read_text())


def test_best_weights_of_another_run_do_not_count(finished, toy_run, tmp_path, capsys):
    argv, whole = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.copy(toy_run / "best.pt", folder)
    assert train.main([*argv, "--out", str(folder), "--resume"]) == 0
    assert "not that of last.pt" in capsys.readouterr().out
    one, two = (checkpoint.load(run / "best.pt") for run in (whole, folder))
    assert checkpoint.fingerprint(one) == checkpoint.fingerprint(two)


@pytest.mark.parametrize("how", HOW[:2])
def test_reports_of_a_damaged_run(finished, tmp_path, how):
    folder = shutil.copytree(finished[1], tmp_path / "run")
    for name in ("best.pt", "weights.json", "skipped.json", "log.jsonl", "metrics.csv"):
        if (folder / name).exists():
            damaged(folder / name, how)
    text = summary.summary(folder)
    assert "length: 4 iterations" in text and "best weights" not in text
    assert "Not finished" not in run_page.build(folder)


def test_numbers_drawn_for_class_names_are_explained_at_the_end(
    finished, tmp_path, capsys, monkeypatch
):
    argv, whole = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(draw, "font_file", lambda text: None if "disc" in text else "a font")
    assert train.main([*argv, "--out", str(folder), "--resume"]) == 0
    sentence = "no font here has the letters of these classes; images show numbers: 2 = disc"
    assert sentence in capsys.readouterr().out
    assert sentence in (folder / "summary.md").read_text()


def scores(ap):
    """Scores of this AP."""
    numbers = dict.fromkeys(METRICS, ap)
    return Scores(4, 9, 5, 100, numbers, [], None, None, numbers, 0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "aps, expected",  # the iteration of best.pt after each evaluation
    [
        ([-1.0, -1.0, -1.0], [1, 2, 3]),
        ([0.0, 0.0, 0.0], [1, 2, 3]),
        ([-1.0, 0.0, -1.0, 0.0], [1, 2, 2, 4]),
        ([0.2, 0.1, 0.2, -1.0, 0.3, 0.0], [1, 1, 3, 3, 5, 5]),
    ],
)
def test_the_best_is_the_highest_score_and_the_later_of_equal_ones(tiny, tmp_path, aps, expected):
    opts = train.parse([*tiny, "--iterations", "9", "--out", str(tmp_path / "run")])
    with train.prepare(opts, zoo.build_from_config) as run:
        for iteration, (ap, best) in enumerate(zip(aps, expected, strict=True), 1):
            run.trainer.iteration = iteration
            run.keep_best(scores(ap), None)
            content = checkpoint.load(run.folder / "best.pt")
            assert content["iteration"] == content["best"]["iteration"] == best


def test_weights_without_a_score_are_not_called_best(tiny, toy_coco, tmp_path, capsys):
    data = shutil.copytree(toy_coco, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    out = tmp_path / "run"
    argv = [*tiny, *STEPS, "--data", str(data), "--out", str(out)]
    assert train.main(argv) == 0
    said, text = capsys.readouterr().out, (out / "summary.md").read_text()
    reason = "weights of the last evaluation: iteration 4, split val has no objects to score"
    assert reason in said and f"- {reason}\n" in text and "best weights:" not in said + text
    assert f"{path}: no objects, so no score: best.pt holds the last weights" in said
    assert "val at iteration 2: mask AP -  AP50 -  AR100 -" in said
    assert checkpoint.load(out / "best.pt")["iteration"] == 4
    evaluate.main(["--checkpoint", str(out / "best.pt"), "--device", "cpu", "--workers", "0"])
    lines = run_page.ap_lines(log.read_csv(out / "metrics.csv"))
    assert all(math.isnan(value) for line in lines for value in line.y)


def test_weights_that_found_nothing_are_not_called_best(tiny, tmp_path, capsys):
    assert train.main([*tiny, "--iterations", "1", "--out", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "iteration 1, split val was never scored above 0" in text


def rates(folder):
    return [row["lr"] for row in log.read_jsonl(folder / "log.jsonl")]


def test_a_warm_up_longer_than_the_run_is_shortened(tiny, tmp_path, no_finish, capsys):
    """The default of 200 iterations, for a run of 12: a tenth of it, then the cosine."""
    at = tiny.index("--warmup")
    argv = [*tiny[:at], *tiny[at + 2 :], "--lr", "1e-4", "--iterations", "12", "--eval-every", "0"]
    argv += ["--log-every", "1", "--out"]
    assert train.main([*argv, str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "warmup 1: the run has 12 iterations, with 200 it would end below --lr" in said
    assert "warmup 1" in said.partition("\ndata ")[2].partition("\nmachine")[0]
    stored = json.loads((tmp_path / "run" / "options.json").read_text())
    assert stored["warmup"] == 1 and stored["origins"]["warmup"] == "data"
    # Iteration 0 warms up at a half; iteration 1 has the whole rate.
    assert rates(tmp_path / "run")[:2] == pytest.approx([0.5e-4, 1e-4])
    assert train.main([*argv, str(tmp_path / "user"), "--warmup", "200"]) == 0
    said = capsys.readouterr().out
    assert "warmup 200: the run has 12 iterations, it ends below the learning rate 0.0001" in said
    assert max(rates(tmp_path / "user")) == pytest.approx(12 / 201 * 1e-4)


@pytest.mark.parametrize(
    "recipe, iterations, expected",
    [("small", 101, 100), ("small", 100, 10), ("small", 1, 0), (None, 201, 200), (None, 200, 20)],
)
def test_a_warm_up_within_the_run_stays(recipe, iterations, expected):
    opts = TrainOptions(recipe=recipe, iterations=iterations)
    train.shorten_warmup(opts, iterations)
    assert opts.warmup == expected
