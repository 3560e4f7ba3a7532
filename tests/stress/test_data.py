"""Mutated data sets: every case works or ends in one sentence, also from the command line."""

import json

import numpy as np
import pytest

from data import records, rle
from data.errors import InputError
from data.opening import open_datasets
from data.readers import READERS
from tests.stress import data as stress_data
from tests.stress.damage import RECORDS
from tests.stress.data import KINDS
from tests.stress.formats import SETS
from tests.stress.sets import JSON, coco_set, voc_set

# `bash sbin/stress.sh data` tries 25 of each.
EACH = 8  # of the damage of COCO, VOC and SBD
EACH_OF_FORMATS = 1  # of that of other formats


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_sets_work_or_end_in_one_sentence(tmp_path, kind):
    before = stress_data.peak_megabytes()
    many = kind in RECORDS or kind.split(":")[0] in ("coco", "voc", "sbd")
    each = EACH if many else EACH_OF_FORMATS
    outcomes = stress_data.try_all([(kind, seed) for seed in range(each)], tmp_path)
    assert not [one for one in outcomes if one.state == "fault"]
    assert len(outcomes) == each
    assert stress_data.peak_megabytes() - before < 600


def test_the_sets_work_before_they_are_damaged(tmp_path):
    for number, base in enumerate({base for base, _ in KINDS.values()}):
        folder = tmp_path / str(number)
        base().write(folder)
        message, bad = stress_data.walk(
            {"data": folder, "cache": tmp_path / "cache"}, skip_bad=True
        )
        assert (message, bad) == (None, 0)


def test_every_format_has_a_set():
    """A new reader needs one in tests/stress/formats.py."""
    assert {one.NAME for one in READERS} == {name.split(",")[0] for name in SETS}


def test_faults_are_seen(tmp_path, monkeypatch):
    """Other errors, messages without the record and wrong results are faults."""
    kind = "a polygon of 0 to 5 numbers"
    assert stress_data.attempt(kind, 0, tmp_path / "a").state == "refused"

    def without_a_name(*arguments):
        raise InputError("this cannot be used: fix it")

    for number, (module, name, instead) in enumerate(
        [
            (rle, "polygons_of", lambda *arguments: 1 / 0),
            (rle, "polygons_of", lambda *arguments: ([np.zeros(6)], 0)),
            (records, "categories", without_a_name),
        ]
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, instead)
            assert stress_data.attempt(kind, 0, tmp_path / str(number)).state == "fault"


@pytest.mark.parametrize(
    "name", ["../outside.png", "sub/../../outside.png", "{outside}", "C:\\a.png"]
)
def test_nothing_outside_the_image_folder_is_read(tmp_path, name):
    made = coco_set()
    made.files["outside.png"] = made.files["train/ma.png"]
    name = name.format(outside=tmp_path / "set" / "outside.png")
    made.content["images"][0]["file_name"] = name
    made.write(tmp_path / "set")
    with pytest.raises(InputError, match="image 0 .* leads out of the image folder"):
        open_datasets(tmp_path / "set", splits=("train",))
    left = open_datasets(tmp_path / "set", splits=("train",), skip_bad=True)["train"]
    assert [record.id for record in left.images] == [10, 20]
    assert left.bad and {one.file for one in left.bad} == {str(tmp_path / "set" / JSON)}


def test_reading_writes_nothing_into_the_set(tmp_path):
    """Links in a set are read through and never written through, whatever is asked of the set."""
    made = voc_set()
    made.files["outside.jpg"] = made.files["VOC2012/JPEGImages/ma.jpg"]
    made.links["VOC2012/JPEGImages/ma.jpg"] = "../../outside.jpg"
    made.write(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = stress_data.walk({"data": tmp_path / "set", "cache": tmp_path / "cache"}, skip_bad=True)
    assert found == (None, 0)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert all(before[path] == when for path, when in after.items())


def test_hostile_text_reaches_no_terminal():
    sentence = str(InputError("a\nb \x1b[2J \u202e " + "x" * 10_000))
    assert sentence.isprintable() and len(sentence) < 2000 and "\\x1b[2J" in sentence
    assert json.loads(json.dumps(sentence)) == sentence
