"""The page of a run: what it holds of what the folder has, and how a browser shows it."""

import json
import re
import shutil

import numpy as np
import pytest

from data.errors import InputError
from data.opening import open_datasets
from engine import log, train
from engine.report import results_page, run_page, write
from tests.engine.report.pages import fine, in_a_browser, look, made, parsed


@pytest.fixture(scope="module")
def dataset(toy_coco):
    return open_datasets(data=toy_coco, splits=("val",))["val"]


@pytest.fixture(scope="module")
def whole(toy_run, dataset, tmp_path_factory):
    """A folder with a page of everything, and its text."""
    folder = shutil.copytree(toy_run, tmp_path_factory.mktemp("page") / "a run")
    evidence = json.loads(json.dumps(made(dataset.class_names, 4, dataset)))
    (folder / run_page.NAME).write_text(run_page.build(folder, evidence, dataset))
    return folder, (folder / "report.html").read_text(encoding="utf-8")


def test_a_training_writes_its_page(toy_run):
    text = (toy_run / "report.html").read_text(encoding="utf-8")
    page = parsed(text)
    assert {"#time", "#classes", "#training", "#next"} <= page.ids
    for words in ("48.0 epochs", "mobileinst_topformer_tiny", "overfit-4 AP", "Training loss"):
        assert words in text
    assert "Not finished" not in text and f"bash sbin/export.sh --checkpoint {toy_run}" in text


def test_the_page_holds_everything(whole):
    folder, text = whole
    page = parsed(text)
    assert {f"#{name}" for name, _ in run_page.SECTIONS} == page.ids == page.links
    assert text.index("A &lt;title&gt;") < text.index("mask AP") < text.index('id="time"')
    assert "numbers &amp; more" in text and "bash sbin/train.sh" in text
    assert "0.25 chosen" in text and "ä 3.jpg" in text
    assert text.count("data:image/jpeg;base64,") == 4 * 3 + 1  # rows of four images, the batch
    terms = [name for name in log.read_jsonl(folder / "log.jsonl")[0] if "aux" in name]
    assert terms and all(f"<b>{name}</b>" in text for name in terms)
    assert "warmup" in text and "user" in text and len(text) < 300_000
    assert f"--checkpoint &#x27;{folder}/best.pt&#x27;" in text  # a path with a space


def test_options_are_listed_by_their_origin_without_the_recipe():
    chosen = {"recipe": "small", "lr": 0.1, "canvas": None, "warmup": 5, "set": {"width": 32}}
    origins = {"recipe": "user", "lr": "recipe", "set.width": "user", "warmup": "default"}
    chosen |= {"origins": origins, "derived": {"canvas": [[64, 96]]}}
    cells = re.findall("<td[^>]*>(.*?)</td>", "".join(run_page.decisions(chosen)))
    assert cells == [
        *("set.width", "32", "user", "canvas", "64x96", "data", "lr", "0.1", "recipe"),
        *("warmup", "5", "default"),
    ]


def test_the_confusion_is_that_of_the_counts(dataset):
    evidence = made(["a", "b"], 4)
    evidence["confusion"]["counts"] = [[5, 1, 2], [0, 7, 0], [3, 0, 0]]
    text = results_page.confusion(evidence)
    for words in ("class: 12 of 15 objects; with another class: 1; missed: 2.", "object: 3."):
        assert words in text
    cells = re.findall(r'<td(?: style="--share:(\d+)%" class="(\w+) ?\w*")?>(\d*)</td>', text)
    assert [cell[2] for cell in cells] == ["5", "1", "2", "", "7", "", "3", "", ""]
    assert cells[0][:2] == ("62", "right") and cells[1][:2] == ("12", "wrong")
    assert cells[2][:2] == ("25", "none") and cells[4][:2] == ("100", "right")
    assert cells[6][:2] == ("100", "none")


def test_many_classes_are_listed_by_what_is_confused_most():
    names = [f"class {i}" for i in range(80)]
    evidence = made(names, 4)
    counts = np.diag(np.full(81, 10))
    counts[80, 80], counts[3, 7], counts[9, 80], counts[80, 11] = 0, 30, 10, 6
    evidence["confusion"]["counts"] = counts.tolist()
    text = re.sub(r"<[^>]*>", " ", results_page.confusion(evidence))
    text = " ".join(text.split())
    assert "class 3 class 7 30 75%" in text and "class 9 10 50%" in text and "class 11 6" in text
    assert "class 20" not in text


def test_a_large_run_gives_a_small_page(toy_run, tmp_path):
    folder = shutil.copytree(toy_run, tmp_path / "large")
    (row, *_) = log.read_jsonl(folder / "log.jsonl")
    rows = (row | {"iteration": i, "epoch": i / 100, "loss": 9 + np.sin(i)} for i in range(20_000))
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    rows = [row | {"iteration": i, "epoch": i / 100} for i in range(0, 20_000, 20)
            for row in log.read_csv(toy_run / "metrics.csv")[:1]]  # fmt: skip
    log.write_csv(folder / "metrics.csv", rows)
    text = run_page.build(folder, made([f"class {i}" for i in range(365)], 5000))
    parsed(text)
    assert len(text) < 1_000_000
    assert "The 10 best and the 10 worst of 365 classes" in text and "All 365 classes" in text
    assert "The images cannot be read" in text


def test_a_run_that_was_stopped_has_a_page_of_what_is_there(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop = lambda run: (_ for _ in ()).throw(train.Interrupted(2))  # noqa: E731
    monkeypatch.setattr(train.Run, "log_interval", stop)
    argv = [*tiny, "--iterations", "9", "--log-every", "1", "--out", str(out)]
    assert train.main(argv) == 130
    text = (out / "report.html").read_text(encoding="utf-8")
    parsed(text)
    assert "Not finished: iteration 0 of 9" in text and "--resume" in text
    assert "mask AP" not in text and 'id="classes"' not in text and "A training batch" in text


def test_files_that_are_missing_leave_their_part_out(toy_run, tmp_path):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    for path in folder.iterdir():
        if path.name != "best.pt":
            path.unlink()
    write.main([str(folder)])
    page = parsed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.ids == {f"#{name}" for name, _ in run_page.SECTIONS} - {"#time"}
    assert (folder / "summary.md").exists()
    for name in (".", "no"):
        with pytest.raises(InputError, match="no run folder"):
            write.main([str(tmp_path / name)])
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(InputError, match="twice"):
        write.main([str(folder), str(folder)])


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_all_of_it(whole, tmp_path, width, dark):
    assert look(whole[1], tmp_path, width, dark) == fine(width, dark)
