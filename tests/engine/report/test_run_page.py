"""The page of a run: what it holds of what the folder has, and how a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from data import rle
from data.errors import InputError
from data.opening import open_datasets
from engine import log, train
from engine.report import results_page, run_page, write

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# What a browser finds wrong: content wider than the window, texts outside their chart, images
# without pixels.
LOOK = """<script>
const wrong = [], root = document.documentElement;
if (root.scrollWidth > innerWidth + 1) wrong.push("wide " + root.scrollWidth);
for (const svg of document.querySelectorAll("svg")) {
  const box = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll("text")) {
    const own = text.getBoundingClientRect();
    if (own.width && (own.left < box.left - 3 || own.right > box.right + 3))
      wrong.push("text " + text.textContent + " of " + svg.getAttribute("aria-label"));
  }
}
for (const image of document.images) if (!image.naturalWidth) wrong.push("image " + image.alt);
const paper = getComputedStyle(document.body).backgroundColor;
parent.postMessage(JSON.stringify({wrong, paper, width: innerWidth}), "*");
</script>"""
# A window of headless Chromium is at least 500 wide; a frame is as narrow as a phone.
FRAME = """<title></title><script>onmessage = each => document.title = each.data;</script>
<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>"""


class Page(HTMLParser):
    """Which elements are open at the end, what is loaded, where links lead."""

    EMPTY = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.links, self.ids = [], [], set(), set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open += [] if tag in self.EMPTY else [tag]
        self.loaded += [v for k, v in attrs.items() if k == "src" and not v.startswith("data:")]
        self.loaded += [tag] if tag in ("script", "link", "iframe", "object") else []
        self.links |= {attrs["href"]} if "href" in attrs else set()
        self.ids |= {f"#{attrs['id']}"} if "id" in attrs else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    page = Page()
    page.feed(text)
    assert not page.open and not page.loaded and page.links <= page.ids
    return page


def made(names, images, dataset=None):
    """Evidence of the form of evidence.json: numbers at random, answers that are the objects."""
    rng, recall = np.random.default_rng(0), np.linspace(0, 1, 101)
    counts = rng.integers(0, 9, (len(names) + 1, len(names) + 1))
    counts[-1, -1] = 0
    precision = {f"precision{iou}": (1 - recall**3).tolist() for iou in ("50", "75", "")}
    by_score = dict.fromkeys(("precision", "recall", "f1"), recall.tolist())
    shown, answers = {"worst": [], "median": [], "best": []}, {}
    for index in range(len(dataset or ())):
        shown[("worst", "median", "best")[index % 3]].append(index)
        truth = dataset.annotation(index)
        answers[str(index)] = [
            {"class": int(label), "score": 0.75, "rle": rle.to_json(mask)}
            for label, mask in zip(truth.labels, truth.rles)
        ]
    per_image = [
        {"file": f"ä {index}.jpg", "index": index, "score": index / images, "objects": 3}
        | {"found": 1, "missed": 1, "extra": 0, "wrong_class": 1}
        for index in range(images)
    ]
    recalls = {"objects": 4, "recall50": 0.5, "recall75": -1.0}
    return {
        "split": "val", "threshold": 0.25, "images": images, "objects": 3 * images, "headline": {},
        "curves": {"recall": recall.tolist(), **precision},
        "thresholds": {"score": recall.tolist(), **by_score},
        "confusion": {"names": names, "counts": counts.tolist()},
        "classes": [
            {"name": name, "objects": 3, "train_objects": 9, "AP": i / len(names), "AP50": 1.0}
            | {"AR": -1.0}
            for i, name in enumerate(names)
        ],
        "per_image": per_image, "shown": shown, "answers": answers,
        "diagnosis": {
            "images": images, "masks": 9, "max_masks": 6, "recall": {"all": {"all": recalls}},
            "missed": {"objects": 3, "not alone": 2, "in a merged mask": 1},
            "oracles": {"as evaluated": {"AP": 0.25, "AP50": 0.5}, "both": {"AP": 0.5, "AP50": 1}},
        },
        "warnings": [{"what": "A <title>", "why": "numbers & more", "do": "bash sbin/train.sh"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def dataset(toy_coco):
    return open_datasets(data=toy_coco, splits=("val",))["val"]


@pytest.fixture(scope="module")
def whole(toy_run, dataset, tmp_path_factory):
    """A folder with a page of everything, and its text."""
    folder = shutil.copytree(toy_run, tmp_path_factory.mktemp("page") / "a run")
    run_page.write(folder, json.loads(json.dumps(made(dataset.class_names, 4, dataset))), dataset)
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


def test_the_confusion_is_that_of_the_counts(dataset):
    evidence = made(["a", "b"], 4)
    evidence["confusion"]["counts"] = [[5, 1, 2], [0, 7, 0], [3, 0, 0]]
    text = results_page.confusion(evidence)
    for words in ("Of 15 objects, 12 are found with their class, 1 with another class, and 2 are",
                  "3 predictions more have no object"):  # fmt: skip
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
    assert "mask AP" not in text and 'id="classes"' not in text and 'alt="training batch"' in text


def test_files_that_are_missing_leave_their_part_out(toy_run, tmp_path):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    for path in folder.iterdir():
        if path.name != "best.pt":
            path.unlink()
    write.main([str(folder)])
    page = parsed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.ids == {"#classes", "#training", "#next"}
    assert (folder / "summary.md").exists()
    with pytest.raises(InputError, match="no run with a checkpoint"):
        write.main([str(tmp_path)])
    with pytest.raises(InputError, match="no such run folder"):
        write.main([str(tmp_path / "no")])


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_all_of_it(whole, tmp_path, width, dark):
    page = whole[1].replace("</body>", f"{LOOK}</body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    command.append(f"--blink-settings=preferredColorScheme={int(not dark)}")
    command.append((tmp_path / "frame.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    paper = "rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)"
    assert found == {"wrong": [], "paper": paper, "width": width}
