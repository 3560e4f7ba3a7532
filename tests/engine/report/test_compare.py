"""Numbers of runs beside each other, and the command that makes a page of them."""

import json
import shutil

import pytest

from data.errors import InputError
from engine import files
from engine.report import compare, evidence, write
from mobileinst import zoo
from tests.engine.report.pages import made, parsed

ON_CPU = "--device cpu --threads 1 --workers 0".split()


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs with what is compared, and no checkpoint."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, rate in zip(folders, (0.001, 0.1)):
        folder.mkdir()
        content = {"model": "mobileinst_topformer_tiny", "lr": rate, "out": str(folder)}
        content |= {"set": {}, "canvas": None, "drops": [], "epochs": None}
        files.write_json(folder / "options.json", content | {"derived": {"canvas": [[64, 96]]}})
        found = made(["disc", "square"], 12)
        found["headline"] = {"mask": {"AP": rate, "AP50": 0.5}, "box": {"AP": 0.25}}
        files.write_json(folder / evidence.NAME, found)
    return folders


def changed(folder, change):
    found = evidence.load(folder)
    change(found)
    files.write_json(folder / evidence.NAME, found)


def test_options_and_numbers_of_each_run(runs):
    content = files.read_json(runs[1] / "options.json")
    content |= {"derived": {}, "canvas": [[64, 64], [96, 64]], "epochs": 2.5, "drops": [3, 4]}
    files.write_json(runs[1] / "options.json", content | {"set": {"width": 32}})
    found = compare.compare(runs)
    assert found["names"] == ["one", "two"] and found["notes"] == []
    assert {row["name"]: row["values"] for row in found["options"]} == {
        "lr": ["0.001", "0.1"],
        "canvas": ["64x96", "64x64 96x64"],
        "drops": ["-", "3 4"],
        "epochs": ["-", "2.5"],
        "set.width": [str(zoo.config_for("mobileinst_topformer_tiny").width), "32"],
    }
    numbers = {row["metric"]: row["values"] for row in found["headline"]}
    assert numbers["AP"] == [0.001, 0.1] and numbers["box AP"] == [0.25, 0.25]
    assert numbers["APs"] == [None, None]
    assert found["classes"] == [
        {"name": "disc", "AP": [0.0, 0.0]}, {"name": "square", "AP": [0.5, 0.5]},
    ]  # fmt: skip
    assert found["images"] == []  # every image has the same score


def test_images_are_found_by_their_names(runs):
    def change(found):
        found["per_image"].reverse()
        for row in found["per_image"]:
            row["index"] += 5
            row["score"] = 1 - row["score"]

    changed(runs[1], change)
    rows = compare.compare(runs)["images"]
    assert len(rows) == compare.IMAGES and rows[0]["file"] == "ä 0.jpg"
    assert rows[0]["index"] == (0, 5) and rows[0]["scores"] == (0.0, 1.0)
    spreads = [row["spread"] for row in rows]
    assert spreads == sorted(spreads, reverse=True) and spreads[0] == 1.0


def test_what_does_not_compare_is_said(runs):
    changed(runs[1], lambda found: found["per_image"][0].update(objects=4))
    assert "same images with other objects" in compare.compare(runs)["notes"][0]
    changed(runs[1], lambda found: found["per_image"][0].update(objects=3))
    changed(runs[1], lambda found: found["classes"][0].update(objects=2))
    assert "same images with other objects" in compare.compare(runs)["notes"][0]
    changed(runs[1], lambda found: found["per_image"].pop())
    assert "scored on different images" in compare.compare(runs)["notes"][0]
    changed(runs[1], lambda found: found["classes"][1].update(name="star"))
    found = compare.compare(runs)
    assert "different classes" in found["notes"][1] and found["images"] == []
    (runs[1] / evidence.NAME).unlink()
    (runs[1] / "options.json").write_text("damaged")
    found = compare.compare(runs)
    assert found["notes"] == ["Two has no evidence.json: its AP, classes and images are left out."]
    assert found["classes"][1]["AP"] == [0.5, None]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "deep" / "one")
    assert compare.compare([runs[0], other])["names"] == [str(runs[0]), str(other)]


def test_the_command_makes_the_page_and_the_evidence(toy_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [shutil.copytree(toy_run, tmp_path / name) for name in ("one", "two")]
    (folders[1] / "evidence.json").unlink()
    best = json.loads((folders[0] / "evidence.json").read_text())
    changed(folders[0], lambda found: found["per_image"][1].update(score=0.0))
    write.main([*map(str, folders), *ON_CPU])
    assert evidence.load(folders[1])["per_image"] == best["per_image"]
    text = (tmp_path / "comparisons" / "001" / "comparison.html").read_text(encoding="utf-8")
    parsed(text)
    assert "one and two" in text and text.count("data:image/jpeg") == 4  # of the changed image
    assert "comparisons/001/comparison.html" in capsys.readouterr().out
    (folders[1] / "best.pt").unlink()
    write.main([str(folders[1]), *ON_CPU, "--out", "new/mine.html"])
    parsed((tmp_path / "new" / "mine.html").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match="mine.html: the output exists"):
        write.main([str(folders[0]), "--out", "new/mine.html"])


def test_data_that_are_gone_are_named_on_the_page(toy_run, tmp_path, monkeypatch):
    def gone(folder, content):
        raise InputError("datasets/x: not there <any> more")

    folder = shutil.copytree(toy_run, tmp_path / "run")
    monkeypatch.setattr(write, "parts_of_run", gone)
    write.main([str(folder), *ON_CPU])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "datasets/x: not there &lt;any&gt; more" in text and 'id="confusion"' in text
    assert "The images cannot be read" in text
