"""Pages of the tests: what they load, what a browser finds wrong with them, evidence to draw."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from data import rle

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
    """Evidence of the form of evidence.json: numbers at random, detections that are the objects."""
    rng, recall = np.random.default_rng(0), np.linspace(0, 1, 101)
    counts = rng.integers(0, 9, (len(names) + 1, len(names) + 1))
    counts[-1, -1] = 0
    precision = {f"precision{iou}": (1 - recall**3).tolist() for iou in ("50", "75", "")}
    by_score = dict.fromkeys(("precision", "recall", "f1"), recall.tolist())
    shown, detections = {"worst": [], "median": [], "best": []}, {}
    for index in range(len(dataset or ())):
        shown[("worst", "median", "best")[index % 3]].append(index)
        truth = dataset.annotation(index)
        detections[str(index)] = [
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
        "per_image": per_image, "shown": shown, "detections": detections,
        "diagnosis": {
            "images": images, "masks": 9, "max_masks": 6, "recall": {"all": {"all": recalls}},
            "missed": {"objects": 3, "not alone": 2, "in a merged mask": 1},
            "oracles": {"as evaluated": {"AP": 0.25, "AP50": 0.5}, "both": {"AP": 0.5, "AP50": 1}},
        },
        "warnings": [{"what": "A <title>", "why": "numbers & more", "do": "bash sbin/train.sh"}],
    }  # fmt: skip


in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


def look(page, folder, width, dark):
    """What a browser finds wrong with a page in a frame of this width, and its background."""
    (folder / "page.html").write_text(page.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    command.append(f"--blink-settings=preferredColorScheme={int(not dark)}")
    command.append((folder / "frame.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))


def fine(width, dark):
    """What `look` finds on a page without faults."""
    paper = "rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)"
    return {"wrong": [], "paper": paper, "width": width}
