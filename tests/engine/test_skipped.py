"""--skip-bad-records in the entries, and that no link leads a result elsewhere."""

import errno
import json
import os
import shutil

import pytest

from data.errors import InputError
from engine import evaluate, files, predict, skipped, train, visualize
from engine.files import FailedRun


@pytest.fixture
def coco(toy_coco, tmp_path):
    """The toy set with a bad annotation and a broken image in each split."""
    root = shutil.copytree(toy_coco, tmp_path / "pond")
    for split, number in (("train", 3), ("val", 9)):
        image = root / split / f"{number}.png"
        image.write_bytes(image.read_bytes()[:60])
        path = root / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["segmentation"] = [[1, 2, 3]]
        path.write_text(json.dumps(content))
    return root


def skipped_in(path):
    return sorted(one["record"] for one in json.loads(path.read_text()))


def test_a_training_goes_on_without_and_lists_them(coco, tiny, tmp_path, capsys, no_finish):
    out = tmp_path / "run"
    argv = [*tiny[: tiny.index("--data")], "--data", str(coco), "--out", str(out)]
    argv += ["--skip-bad-records", "--eval-every", "1"]
    assert train.main([*argv, "--iterations", "2"]) == 0
    expected = ["image 27", "image 9", "number 1 of annotations", "number 1 of annotations"]
    assert skipped_in(out / "skipped.json") == expected
    said = capsys.readouterr().out
    assert "left out 4 bad records" in said and "9.png" in said and "annotation 1 " in said
    (coco / "train" / "3.png").write_bytes((coco / "train" / "0.png").read_bytes())
    assert train.main([*argv, "--iterations", "3", "--resume"]) == 0  # it stays left out
    assert "image 9" in skipped_in(out / "skipped.json")


def test_evaluation_and_images_leave_them_out(coco, toy_run, tmp_path, capsys):
    argv = ["--data", str(coco), "--checkpoint", str(toy_run / "best.pt"), "--skip-bad-records"]
    argv += "--device cpu --threads 1 --workers 0".split()
    evaluate.main([*argv, "--out", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["record"] for one in results["skipped"]] == ["number 1 of annotations", "image 27"]
    assert results["scores"]["images"] == 3
    assert 27 not in {each["image_id"] for each in results["detections"]}
    visualize.main([*argv, "--out", str(tmp_path / "sheet.png")])
    assert (tmp_path / "sheet.png").exists()
    assert capsys.readouterr().out.count("left out 2 bad records") == 2


def test_long_lists_are_cut_and_name_the_file(tmp_path, capsys):
    from data.errors import BadRecords

    bad = BadRecords(skip=True)
    for number in range(30):
        bad.note(InputError(f"reason {number}"), "set.json", f"annotation {number}")
    skipped.write(tmp_path, bad)
    skipped.report_skipped(bad, tmp_path / skipped.NAME)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22 and "30 bad records" in lines[0] and "10 more" in lines[-1]
    assert "set.json, annotation 7: reason 7" in lines[8] and "skipped.json" in lines[-1]
    assert skipped.read(tmp_path) == list(bad)
    record = {"file": "set.json", "record": "annotation 7", "reason": "\x1b[2J"}
    (tmp_path / skipped.NAME).write_text(json.dumps([record]))
    bad = BadRecords()
    bad.add(skipped.read(tmp_path))
    skipped.report_skipped(bad)
    assert "\x1b" not in capsys.readouterr().out
    assert skipped.read(tmp_path / "nowhere") == []
    skipped.report_skipped(BadRecords())
    assert not capsys.readouterr().out


# --- links in downloaded folders --------------------------------------------------------------


def test_results_are_not_written_through_links(toy_run, tmp_path):
    theirs, mine = tmp_path / "downloaded", tmp_path / "diary.txt"
    theirs.mkdir()
    mine.write_text("dear diary")
    for name in ("results.json", "sheet.png", "results.json.tmp"):
        (theirs / name).symlink_to(mine)
    argv = ["--checkpoint", str(toy_run / "best.pt"), *"--device cpu --threads 1".split()]
    argv += ["--workers", "0", "--overwrite", "--out"]
    evaluate.main([*argv, str(theirs / "results.json")])
    visualize.main([*argv, str(theirs / "sheet.png"), "--count", "1"])
    assert mine.read_text() == "dear diary"
    assert not (theirs / "sheet.png").is_symlink()
    assert json.loads((theirs / "results.json").read_text())["scores"]


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), files.atomic_file(path) as unfinished:
        unfinished.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.png"]
    with files.atomic_file(path) as unfinished:
        assert unfinished != path and unfinished.parent == tmp_path
        unfinished.write_text("after")
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["a.png"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(FailedRun, match="found: cannot be written .No space left"):
        with files.atomic_folder(tmp_path / "found"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_names_of_images_lead_nowhere(toy_coco, toy_run, tmp_path):
    """Odd, long and climbing names: every result lies in the one new folder."""
    data = (toy_coco / "val" / "8.png").read_bytes()
    folder = tmp_path / "in"
    names = ["..png.png", "虾" * 80 + ".png", "a b\n.png", "x" * 200 + ".png"]
    (folder / "sub").mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(data)
    os.link(folder / names[0], os.fsencode(folder) + b"/\xff.png")  # no UTF-8
    (folder / "sub" / "list.txt").write_text("../..png.png\n")
    before = set(tmp_path.rglob("*"))
    argv = [str(folder), str(folder / "sub" / "list.txt"), "--checkpoint", str(toy_run / "best.pt")]
    predict.main([*argv, "--out", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"])
    new = set(tmp_path.rglob("*")) - before
    assert new and all(path == tmp_path / "out" or path.parent == tmp_path / "out" for path in new)
    assert len(list((tmp_path / "out").glob("*_overlay.jpg"))) == 5  # the hidden one by its list
    assert len(json.loads((tmp_path / "out" / "objects.json").read_text())["images"]) == 5
