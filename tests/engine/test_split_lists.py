"""Data without a validation split: one is held out, kept in the run folder, and found again."""

import json
import re
import shutil

import pytest

from data.errors import InputError
from data.opening import open_datasets
from engine import checkpoint, evaluate, train, visualize

COMMON = "--device cpu --threads 1 --workers 0".split()
STEPS = "--iterations 2 --eval-every 0 --log-every 1".split()


@pytest.fixture(scope="module")
def data(toy_coco, tmp_path_factory):
    """The eight training images of the toy set, without its val."""
    root = tmp_path_factory.mktemp("data") / "set"
    shutil.copytree(toy_coco / "train", root / "train")
    (root / "annotations").mkdir()
    shutil.copy(toy_coco / "annotations" / "instances_train.json", root / "annotations")
    return root


@pytest.fixture(scope="module")
def run(data, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = [*tiny, *STEPS, "--data", str(data), "--val-fraction", "0.25", "--out", str(folder)]
    assert train.main(argv) == 0
    return folder


def lists_of(folder):
    return json.loads((folder / "split.json").read_text())


def scored(folder, capsys, *argv):
    """Images that are evaluated with a checkpoint, and what is printed."""
    capsys.readouterr()
    evaluate.main([*COMMON, "--checkpoint", str(folder / "best.pt"), *argv])
    results = max(folder.glob("test-*/*_results.json"), key=lambda path: path.parent.name)
    return json.loads(results.read_text()), capsys.readouterr().out


def images_of(said):
    return int(re.findall(r": (\d+) images? \(", said)[-1])


def test_the_lists_are_kept_and_make_up_the_set(run):
    lists = lists_of(run)
    assert len(lists["val"]) == 2 and len(lists["train"]) == 6
    assert {*lists["val"], *lists["train"]} == {f"{number}.png" for number in range(8)}
    assert checkpoint.load(run / "best.pt")["num_images"] == 6


def test_the_split_is_found_again(run, capsys):
    _, said = scored(run, capsys)
    assert images_of(said) == 2 and "that of the run is used" in said
    _, said = scored(run, capsys, "--split", "train")
    assert images_of(said) == 6
    visualize.main([*COMMON, "--checkpoint", str(run / "best.pt")])
    assert "2 images of the val split" in capsys.readouterr().out


def test_without_the_lists_the_same_split_is_made_again(run, data, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(run / "best.pt", copy)
    _, said = scored(copy, capsys)
    assert images_of(said) == 2 and "2 of 8 images are held out" in said
    again = open_datasets(data, val_fraction=0.25)["val"]
    assert [each.file_name for each in again.images] == lists_of(run)["val"]


def test_other_data_is_evaluated_whole(run, toy_coco, data, tmp_path, capsys):
    _, said = scored(run, capsys, "--data", str(shutil.copytree(data, tmp_path / "moved")))
    assert images_of(said) == 2 and "that of the run is used" in said  # no image of the training
    other = ["--val-json", str(toy_coco / "annotations" / "instances_train.json")]
    _, said = scored(run, capsys, *other, "--images", str(toy_coco / "train"))
    assert images_of(said) == 8
    file = toy_coco / "annotations" / "instances_val.json"
    _, said = scored(run, capsys, "--data", str(file))
    assert images_of(said) == 4 and "all 4 images are evaluated" in said
    _, said = scored(run, capsys, "--data", str(file), "--val-fraction", "0.5")
    assert images_of(said) == 2 and "2 of 4 images are held out" in said


def test_the_format_of_a_run_is_found_again(run, data, tiny, tmp_path, capsys, no_finish):
    """A LabelMe file beside makes two readings possible."""
    both = shutil.copytree(data, tmp_path / "both")
    record = {"version": "5.0", "shapes": [], "imagePath": "0.png"}
    (both / "train" / "0.json").write_text(json.dumps(record))
    argv = [*tiny, *STEPS, "--data", str(both), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="--format coco or --format labelme"):
        train.main(argv)
    assert train.main([*argv, "--format", "coco"]) == 0
    for more in ((), ("--data", str(both))):
        _, said = scored(tmp_path / "run", capsys, *more)
        assert images_of(said) == 2 and "that of the run is used" in said
    with pytest.raises(InputError, match="has no categories"):
        scored(tmp_path / "run", capsys, "--data", str(both), "--format", "labelme")


def test_data_that_has_changed_since(run, data, tiny, tmp_path, capsys):
    """New images are in neither part, those that are gone are missed."""
    moved, copy = (
        shutil.copytree(*pair) for pair in ((data, tmp_path / "a"), (run, tmp_path / "b"))
    )
    path = moved / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    gone = lists_of(run)["val"][0]
    first = next(each for each in content["images"] if each["file_name"] != gone)
    (moved / "train" / gone).unlink()
    shutil.copy(moved / "train" / first["file_name"], moved / "train" / "new.png")
    content["images"] = [each for each in content["images"] if each["file_name"] != gone]
    content["images"].append({**first, "id": 999, "file_name": "new.png"})
    known = {each["id"] for each in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in known]
    path.write_text(json.dumps(content))
    saved = checkpoint.load(copy / "best.pt")
    saved["options"]["data"] = str(moved)
    checkpoint.save(copy / "best.pt", saved)
    _, said = scored(copy, capsys)
    assert images_of(said) == 1
    assert "1 image gone, 1 new image left out" in said
    _, said = scored(copy, capsys, "--data", str(moved))  # the same data, given again
    assert images_of(said) == 1 and "1 new image left out" in said


def test_a_resumed_run_keeps_its_split(run, data, tiny, tmp_path, capsys, no_finish):
    copy = shutil.copytree(run, tmp_path / "copy")
    argv = [*tiny, *STEPS, "--data", str(data), "--val-fraction", "0.25", "--out", str(copy)]
    argv += ["--iterations", "4"]
    capsys.readouterr()
    assert train.main([*argv, "--resume"]) == 0
    assert "that of the run is used" in capsys.readouterr().out
    del argv[argv.index("--val-fraction") : argv.index("--val-fraction") + 2]
    argv += ["--iterations", "6"]
    assert train.main([*argv, "--resume"]) == 0
    assert "resumed with --val-fraction" not in capsys.readouterr().out
    assert lists_of(copy) == lists_of(run)
    with pytest.raises(InputError, match="--val-fraction was 0.25 in this run and is 0.5 now"):
        train.main([*argv, "--resume", "--val-fraction", "0.5"])


def test_training_on_all_images(data, tiny, tmp_path, capsys):
    argv = [*tiny, *STEPS, "--data", str(data), "--val-fraction", "0"]
    assert train.main([*argv, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "all 8 images are trained on and evaluated" in said
    assert "evaluated on 8 training images" in said and "split train-8" in said
    assert not (tmp_path / "run" / "split.json").exists()
    _, said = scored(tmp_path / "run", capsys)
    assert images_of(said) == 8 and "all 8 images are evaluated" in said
