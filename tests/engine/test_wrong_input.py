"""A user's mistake is one sentence with the place and the fix, exit code 2, without a traceback."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from engine import checkpoint, evaluate, options, predict, train, visualize
from engine.loop import NonFiniteError
from engine.tools import inspect_modules
from mobileinst import zoo

TRAIN = (
    "--from-scratch --device cpu --threads 1 --workers 0 --image-size 64 --batch-size 4 "
    "--iterations 2"
).split()
ON_CPU = "--device cpu --threads 1".split()
IN_LINE = [*ON_CPU, "--workers", "0"]


def exit_of(main, argv, monkeypatch, capsys):
    """Exit code, and what is left on the terminal's error lines: a bar that cleared itself is not.

    Runs the entry as `python -m engine...` does.
    """
    monkeypatch.setattr(sys, "argv", ["entry", *map(str, argv)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        options.run_entry(main)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    return left.value.code, [line for line in lines if line.strip()]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs an entry in an empty folder; returns the one sentence it says on the way out."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(main, *argv):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code, lines = exit_of(main, argv, monkeypatch, capsys)
        assert code == 2 and len(lines) == 1, lines
        assert lines[0].startswith("error: ") and "Traceback" not in lines[0]
        assert ". " not in lines[0] and not lines[0].endswith("."), "more than one sentence"
        assert ": " in lines[0][7:] or "; " in lines[0][7:], "a fault without a fix"
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        # A whole conversion may stay: the next start needs it again.
        expected = {home, home / "datasets", *(home / "datasets").rglob("*")}
        assert {path for path in after if before.get(path) != after[path]} <= expected
        assert not list(home.rglob("*.tmp")) and not list(home.rglob(".*"))
        return lines[0]

    return run


@pytest.fixture
def coco(toy_coco, tmp_path):
    """A copy of the toy set that may be spoilt."""
    return shutil.copytree(toy_coco, tmp_path / "pond")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def in_train(change):
    """Changes the content of the toy set's training json."""
    return lambda coco: edit(coco / "annotations" / "instances_train.json", change)


def first(content, key="annotations"):
    return content[key][0]


def without(content, image):
    """Removes the objects of an image."""
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != image]


def at(path, act):
    """Does something to a file or folder of a data set."""
    return lambda root: act(root / path)


LARGE = "--model mask2former_swin_tiny --set"
# data set, what is wrong with it, other arguments, parts of the sentence
TRAINING = [
    ("coco", in_train(lambda c: first(c).update(category_id=4)), "",
     "instances_train.json: annotation 1 has category_id 4|remove the annotation"),
    ("coco", in_train(lambda c: first(c).update(image_id=77)), "",
     "instances_train.json: annotation 1 has image_id 77|remove the annotation"),
    ("coco", in_train(lambda c: first(c).update(segmentation="a circle")), "--batch-size 8",
     "instances_train.json: annotation 1 of image 0 (0.png)|not str|give it polygons"),
    ("coco", in_train(lambda c: first(c)["segmentation"].update(size=[5, 5])), "--batch-size 8",
     "instances_train.json: annotation 1|[5, 5]|give it polygons or an RLE"),
    ("coco", in_train(lambda c: c.update(images=[], annotations=[])), "",
     "instances_train.json lists no images|give a file with at least one"),
    ("coco", in_train(lambda c: first(c, "images").update(file_name="gone.png")), "",
     "instances_train.json: 1 of 8 images|gone.png|--images"),
    ("coco", in_train(lambda c: first(c, "images").update(height=32) or without(c, 0)),
     "--batch-size 8", "0.png is 64 x 64|64 x 32|correct its size"),
    ("coco", in_train(lambda c: c.update(annotations=[])), "",
     "instances_train.json: no image of train has an object|crowds|--crowd-as-instances"),
    ("coco", in_train(lambda c: [each.update(segmentation=[], bbox=[1, 2, 9, 9])
                                 for each in c["annotations"]]), "",
     "instances_train.json: no image of train has an object|boxes without masks|--boxes-as-masks"),
    ("coco", in_train(lambda c: [each.update(iscrowd=1) for each in c["annotations"]]), "",
     "instances_train.json: no image of train has an object|crowds|--crowd-as-instances"),
    ("coco", in_train(lambda c: c.update(annotations=c["annotations"][:1])), "--overfit 2 --seed 3",
     "instances_train.json: no image of overfit-2 has an object"),
    ("coco", in_train(lambda c: c.pop("categories")), "",
     "instances_train.json is not a COCO file|'categories'|give a json"),
    ("coco", in_train(lambda c: c["categories"][0].update(name="ring")), "",
     "instances_train.json|instances_val.json|different categories|list the same"),
    ("coco", at("annotations/instances_train.json", lambda path: path.write_text('{"images": [')),
     "", "annotations/instances_train.json is not a json file"),
    ("none", None, "", "no train annotations|--train-json|--data"),
    ("none", None, "--data nowhere", "nowhere is not a folder|--data"),
    ("none", lambda home: (home / "music").mkdir(), "--data music",
     "music holds no files"),
    ("coco", None, "--batch-size 1 --canvas 64x64", "--batch-size 1"),
    ("coco", None, "--resume",
     "runs/mobileinst_topformer_tiny-NNN: no last.pt|without --resume"),
    *(("coco", None, f"--set {frozen}", "at random values forever|--pretrained")
      for frozen in ("frozen_norms=true", "frozen_depthwise=true", "frozen_stride=4")),
    ("coco", None, "--recipe small-pretrained",
     "--recipe small-pretrained, frozen_norms: |random values forever|--pretrained"),
    ("coco", None, f"{LARGE} depths=2,2,2,2,2 backbone_heads=1,2,4,8",
     "--set|of different lengths|change the value"),
    ("coco", None, "--set width", "--set: width: write KEY=VALUE"),
    ("coco", None, "--set num_heads=3", "--set|change the value"),
    ("coco", None, "--set backbone=resnet", "--set|'resnet'|did you mean resnet50?"),
    ("coco", None, "--canvas 64", "--canvas: 64|write HEIGHTxWIDTH"),
    ("coco", None, "--device cuda:99", "--device cuda:99|there is|cpu"),
    ("coco", None, "--device abacus", "--device abacus|there is"),
    ("coco", None, "--iterations many", "--iterations: many is not a whole"),
    ("coco", None, "--epochs inf", "--epochs: inf is not a number above zero"),
    ("coco", None, "--scale 0 1", "--scale: 0 is not a number above zero"),
    ("coco", None, "--workers -1", "--workers: -1|zero or above"),
    ("coco", None, "--flip 1.5", "--flip: 1.5 is not a number from 0 to 1"),
    ("coco", None, "--average 1", "--average: 1 is not a number from 0 to below 1"),
]  # fmt: skip


@pytest.mark.parametrize("place, spoil, arguments, expected", TRAINING)
def test_wrong_data_and_options_of_a_training(
    refused, request, tmp_path, place, spoil, arguments, expected
):
    none = place == "none"
    root = tmp_path / "home" if none else request.getfixturevalue(place)
    if spoil:
        spoil(root)
    data = [] if none else ["--data", root]
    said = refused(train.main, *TRAIN, *data, *arguments.split())
    assert all(words in said for words in expected.split("|")), said


def test_wrong_weights(refused, coco, tmp_path):
    path = tmp_path / "file.pth"
    argv = [
        *TRAIN[1:],
        "--data",
        coco,
        "--model",
        "mobileinst_topformer_tiny",
        "--pretrained",
        path,
    ]
    assert f"{path}: no such file; give a file of weights" in refused(train.main, *argv)
    torch.save(zoo.build_backbone("topformer_small").state_dict(), path)
    said = refused(train.main, *argv)
    assert "TopFormer-S, the model is TopFormer-T" in said and "25 of 263 tensors fit" in said


def test_resuming_with_other_weights(refused, tiny, toy_coco, toy_run, tmp_path, no_finish):
    out = tmp_path / "run"
    argv = [*tiny, "--data", str(toy_coco), "--out", str(out)]
    assert train.main([*argv, "--iterations", "1"]) == 0
    argv += ["--iterations", "2", "--resume", "--pretrained", str(toy_run / "best.pt")]
    assert "--from-scratch and --pretrained are two starts" in refused(train.main, *argv)
    said = refused(train.main, *argv[1:])
    assert f"--pretrained {toy_run}/best.pt did not start this run (nothing did)" in said


def test_a_place_that_may_not_be_read(monkeypatch, capsys):
    def main(argv):
        raise PermissionError(13, "Permission denied", "/photos")

    code, lines = exit_of(main, [], monkeypatch, capsys)
    wanted = "error: /photos: permission denied; allow it, or name another place"
    assert (code, lines) == (2, [wanted])


def test_an_output_folder_in_use(refused, toy_coco, toy_run, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    argv = [train.main, *TRAIN, "--data", toy_coco, "--out"]
    assert f"{out}: the output exists; go on with --resume" in refused(*argv, out)
    assert f"{out}: holds no options.json" in refused(*argv, out, "--overwrite")
    assert f"{out}: no last.pt to resume from" in refused(*argv, out, "--resume")
    file = out / "thesis.txt"
    assert f"{file}: the output exists" in refused(*argv, file)
    assert f"{file}/run: the folder cannot be made" in refused(*argv, file / "run")
    argv = [predict.main, toy_coco / "val", "--checkpoint", toy_run / "best.pt", "--out"]
    assert f"{out}: holds no objects.json" in refused(*argv, out, *ON_CPU, "--overwrite")
    said = refused(inspect_modules.main, "--json", file)
    assert f"{file}: the output exists; replace it with --overwrite, or name another" in said
    (out / "diagnose.json").touch()
    argv = ["--checkpoint", toy_run / "best.pt", "--out", out / "new.json", "--diagnose"]
    assert f"{out}/diagnose.json: the output exists" in refused(evaluate.main, *argv)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_failed_start_keeps_the_old_run(refused, coco, toy_run, tmp_path):
    out = shutil.copytree(toy_run, tmp_path / "old")
    truncate(coco / "train" / "3.png")
    argv = [*TRAIN, "--batch-size", "8", "--data", coco, "--out", out, "--overwrite"]
    assert "3.png cannot be read as an image" in refused(train.main, *argv)
    assert checkpoint.load(out / "last.pt")["iteration"] == 48


def test_resuming_another_model_or_other_classes(refused, coco, toy_run, tmp_path):
    out = shutil.copytree(toy_run, tmp_path / "run")
    argv = [*TRAIN, "--out", out, "--resume", "--data", coco]
    assert f"{out}/last.pt: holds another model" in refused(train.main, *argv)
    for split in ("train", "val"):
        path = coco / "annotations" / f"instances_{split}.json"
        edit(path, lambda content: content["categories"].append({"id": 8, "name": "crab"}))
    said = refused(train.main, *argv)
    assert "the class list does not fit" in said and "crab" in said and "train again" in said


def test_resuming_another_training(refused, tiny, toy_coco, tmp_path, no_finish):
    """A self-test, above all: its score on training images would pass for one on val."""
    out = tmp_path / "run"
    argv = [*tiny, "--data", str(toy_coco), "--out", str(out)]
    assert train.main([*argv, "--iterations", "1"]) == 0
    changes = "--overfit 4", "--seed 1", "--batch-size 2", "--colour 0", "--copy-paste 0.5"
    for name, value in map(str.split, changes):
        said = refused(train.main, *argv, name, value, "--iterations", "2", "--resume")
        assert f"{out}: {name} was" in said and "options.json" in said


ENTRIES = {
    "evaluate": (evaluate.main, []),
    "visualize": (visualize.main, []),
    "predict": (predict.main, ["PICTURES"]),
}


@pytest.fixture(params=ENTRIES)
def entry(request, toy_coco):
    main, argv = ENTRIES[request.param]
    return main, [toy_coco / "val" if each == "PICTURES" else each for each in argv]


def test_no_run_yet(refused, entry):
    main, argv = entry
    assert "runs: no run with a checkpoint; train one" in refused(main, *argv, *ON_CPU)


def test_a_missing_or_foreign_checkpoint(refused, entry, tmp_path):
    main, argv = entry
    gone, text, foreign = (tmp_path / name for name in ("gone.pt", "text.pt", "foreign.pt"))
    text.write_text("not a checkpoint")
    torch.save({"weight": torch.ones(2)}, foreign)
    for path, words in ((gone, "no such"), (text, "not a"), (foreign, "of this library; give a")):
        said = refused(main, *argv, "--checkpoint", path, *ON_CPU)
        assert f"{path}: " in said and words in said


@pytest.mark.parametrize("main", [evaluate.main, visualize.main])
def test_a_class_list_that_does_not_fit(refused, coco, toy_run, main):
    edit(coco / "annotations/instances_val.json", lambda c: c["categories"][0].update(name="ring"))
    said = refused(main, "--checkpoint", toy_run / "best.pt", "--data", coco, *IN_LINE)
    assert "the class list does not fit" in said and "instances_val.json" in said
    assert "only given: 90 (disc); only there: 90 (ring)" in said and "train again" in said


@pytest.mark.parametrize("main", [evaluate.main, visualize.main])
def test_data_that_moved_away_since_the_training(refused, coco, toy_run, tmp_path, main):
    content = checkpoint.load(toy_run / "best.pt")
    content["options"]["data"] = str(tmp_path / "unplugged_disk")
    checkpoint.save(tmp_path / "best.pt", content)
    said = refused(main, "--checkpoint", tmp_path / "best.pt", *IN_LINE)
    assert "unplugged_disk is not a folder" in said and "--data" in said


@pytest.mark.parametrize(
    "main, out", [(evaluate.main, "results.json"), (visualize.main, "sheet.png")]
)
def test_scoring_and_drawing_go_on_after_a_broken_image(
    coco, toy_run, tmp_path, monkeypatch, capsys, main, out
):
    truncate(coco / "val" / "9.png")
    argv = ["--checkpoint", toy_run / "best.pt", "--data", coco, "--out", tmp_path / out, *IN_LINE]
    code, lines = exit_of(main, argv, monkeypatch, capsys)
    assert code == 2 and "1 of 4 images cannot be read" in lines[-1]
    assert "--skip-bad-records" in lines[-1] and (tmp_path / out).stat().st_size


def test_results_that_cannot_be_written(refused, toy_run, tmp_path):
    argv = ["--checkpoint", toy_run / "best.pt", *IN_LINE]
    (tmp_path / "file").touch()
    said = refused(evaluate.main, *argv, "--out", tmp_path / "file" / "results.json")
    assert f"{tmp_path}/file/results.json: cannot be written" in said and "name another" in said
    said = refused(visualize.main, *argv, "--count", "1", "--out", tmp_path / "sheet.psd")
    assert "sheet.psd: cannot be written" in said and "name a .png" in said


def test_wrong_images_to_predict(refused, coco, toy_run, tmp_path):
    argv = ["--checkpoint", toy_run / "best.pt", "--out", tmp_path / "found", *ON_CPU]
    assert "gone.jpg is missing" in refused(predict.main, "gone.jpg", *argv)
    (tmp_path / "list.txt").write_text("gone.png\n")
    assert "gone.png is missing" in refused(predict.main, tmp_path / "list.txt", *argv)
    (tmp_path / "empty").mkdir()
    said = refused(predict.main, tmp_path / "empty", *argv)
    assert "empty: no images (" in said and ".jpg, " in said
    (tmp_path / "empty" / "._a.jpg").touch()
    said = refused(predict.main, tmp_path / "empty", *argv)
    assert "(skipped: hidden files: 1)" in said
    truncate(coco / "val" / "9.png")
    assert "9.png cannot be read as a" in refused(predict.main, coco / "val" / "9.png", *argv)


def test_prediction_goes_on_after_a_broken_image(coco, toy_run, tmp_path, monkeypatch, capsys):
    for name in ("9.png", "10.png"):
        truncate(coco / "val" / name)
    out = tmp_path / "found"
    argv = [coco / "val", "--checkpoint", toy_run / "best.pt", "--out", out, *ON_CPU]
    argv = ["gone.png", *argv]  # and 8, 9, 10, 11
    code, lines = exit_of(predict.main, argv, monkeypatch, capsys)
    assert code == 2 and "3 of 5 images cannot be read" in lines[-1]
    assert "skipped.json" in lines[-1] and "--skip-bad-records" in lines[-1]
    names = [each["file_name"] for each in json.loads((out / "objects.json").read_text())["images"]]
    assert names == ["8.png", "11.png"] and len(list(out.glob("*_overlay.jpg"))) == 2
    bad = json.loads((out / "skipped.json").read_text())
    assert [Path(one["file"]).name for one in bad] == ["gone.png", "9.png", "10.png"]
    argv[argv.index(out)] = tmp_path / "more"
    predict.main([str(each) for each in [*argv, "--skip-bad-records"]])
    said = capsys.readouterr().out
    assert "2 of 5 images" in said and "left out 3 bad records" in said and "9.png" in said


def test_a_run_resumes_after_a_broken_image(coco, tmp_path, monkeypatch, capsys, no_finish):
    monkeypatch.chdir(tmp_path)
    whole = (coco / "val" / "9.png").read_bytes()
    truncate(coco / "val" / "9.png")  # met at the first evaluation, after two steps
    argv = [*TRAIN, "--iterations", "4", "--eval-every", "1", "--data", coco, "--out", "run"]
    argv += ["--workers", "1"]  # the sentence has to come through from another process
    code, lines = exit_of(train.main, argv, monkeypatch, capsys)
    assert code == 2 and "val/9.png cannot be read as an image" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 2
    assert not list((tmp_path / "run").glob("*.tmp"))
    (coco / "val" / "9.png").write_bytes(whole)
    code, lines = exit_of(train.main, [*argv, "--resume"], monkeypatch, capsys)
    assert code == 0 and checkpoint.load(tmp_path / "run" / "best.pt")["iteration"] > 0


@pytest.mark.parametrize(
    "error, code", [(InputError, 2), (NonFiniteError, 3), (KeyboardInterrupt, 130)]
)
def test_exit_codes_and_the_traceback_on_demand(monkeypatch, capsys, error, code):
    def main(argv):
        raise error("the reason")

    assert exit_of(main, [], monkeypatch, capsys)[0] == code
    found, lines = exit_of(main, ["--debug"], monkeypatch, capsys)
    assert found == code
    assert ("Traceback" in lines[0]) == (error is not KeyboardInterrupt)


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    def main(argv):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["entry"])
    with pytest.raises(RuntimeError):
        options.run_entry(main)
