"""The page of several runs: each number stands with its run, and a browser shows it."""

import re
import shutil

import pytest

from data.opening import open_datasets
from engine.report import compare_page
from tests.engine.report.pages import fine, in_a_browser, look, made, parsed


def compared(dataset, **changed):
    """Numbers of two runs, of the form of compare.py."""
    return {
        "names": ["one", "<two>"], "split": ["val", "val"], "notes": ["Other <images>."],
        "options": [{"name": "lr", "values": ["0.001", "0.1"]}],
        "headline": [
            {"metric": "AP", "values": [0.25, 0.125]}, {"metric": "AP50", "values": [0.5, -1.0]},
            {"metric": "AP75", "values": [0.1, 0.2]}, {"metric": "APs", "values": [None, 0.3]},
        ],
        "classes": [
            {"name": "disc", "AP": [0.5, 0.625]}, {"name": "square", "AP": [0.75, 0.25]},
            {"name": "unused", "AP": [None, -1.0]},
        ],
        "images": [
            {"file": dataset.images[i].file_name, "index": [i, i], "scores": [0.9, 0.1]}
            for i in range(2)
        ],
    } | changed  # fmt: skip


@pytest.fixture(scope="module")
def dataset(toy_coco):
    return open_datasets(data=toy_coco, splits=("val",))["val"]


@pytest.fixture(scope="module")
def text(toy_run, dataset, tmp_path_factory):
    other = shutil.copytree(toy_run, tmp_path_factory.mktemp("runs") / "two")
    detections = made(dataset.class_names, 4, dataset)["detections"]
    none = {index: [] for index in detections}
    return compare_page.build([toy_run, other], compared(dataset), [detections, none], dataset)


def words(text):
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_each_number_stands_with_its_run(text):
    parsed(text)
    said = words(text)
    assert "one and &lt;two&gt; Other &lt;images&gt;." in said
    assert "lr 0.001 0.1" in said and "AP 0.250 0.125" in said and "AP50 0.500 -" in said
    assert "<b>0.250</b>" in text and "<b>0.125</b>" not in text and "<b>0.500</b>" not in text
    rows = ["square 0.750 0.250 0.500", "disc 0.500 0.625 0.125", "unused - - -"]
    places = [said.index(row) for row in rows]
    assert places == sorted(places)  # those that differ most first
    assert 'class="h0" style="left:75.0%"' in text and 'class="h1" style="left:25.0%"' in text
    assert "panoptic quality one: 0.90 &lt;two&gt;: 0.10" in said
    assert text.count("data:image/jpeg") == 2 * 4


def test_curves_of_both_share_an_axis(text):
    charts = re.findall(r'<figure class="chart">.*?</figure>', text, re.S)
    titles = {re.search("<b>(.*?)</b>", chart)[1]: chart for chart in charts}
    assert {"AP", "AP by minutes", "Training loss", "Learning rate"} <= titles.keys()
    for chart in titles.values():
        found = re.findall(r'class="line h(\d)" d="(.*?)"|d="([^"]*)" class="line h(\d)"', chart)
        assert len(found) == 2, chart


def test_equal_runs_and_runs_without_images(toy_run, dataset):
    equal = compared(dataset, options=[], images=[], notes=[])
    text = compare_page.build([toy_run, toy_run], equal)
    parsed(text)
    assert "All options are equal." in text and "differ most</h2>" not in text


@in_a_browser
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_a_browser_shows_all_of_it(text, tmp_path, width, dark):
    assert look(text, tmp_path, width, dark) == fine(width, dark)
