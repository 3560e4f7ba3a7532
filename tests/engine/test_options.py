"""Keywords of the builder: text becomes a value of the type that the config has."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from data.errors import InputError
from engine import options, recipes, values
from engine.options import TrainOptions

MODEL = "mask2former_swin_tiny"


def test_keywords_take_the_types_of_the_config():
    pairs = [("depths", "2,2,6,2"), ("frozen_norms", "true"), ("drop_path", "0"), ("width", "64")]
    found = values.builder_keywords(MODEL, pairs)
    expected = {"depths": (2, 2, 6, 2), "frozen_norms": True, "drop_path": 0.0, "width": 64}
    assert found == expected and type(found["drop_path"]) is float
    assert values.builder_keywords(MODEL, [("depths", "3")]) == {"depths": (3,)}


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("depths", "2,,6", "whole numbers from 1 to 100, as 2,2,6"),
        ("depths", "", "whole numbers from 1 to 100, as 2,2,6"),
        ("frozen_norms", "yes", "frozen_norms is yes, but must be true or false"),
        ("width", "6.5", "width is 6.5, but must be a whole number from 1 to 8192"),
        ("drop_path", "nan", "drop_path is nan, but must be a number from 0 to 0.99"),
        ("importance", "2", "importance is 2.0, but must be a number from 0 to 1; change"),
        ("kv_stride", "32", "mask2former has no keyword 'kv_stride'; it has backbone, .*width"),
        ("num_classes", "3", "follows from the data"),
    ],
)
def test_a_wrong_keyword_is_refused(key, text, message):
    with pytest.raises(InputError, match=f"--set.*{message}"):
        values.builder_keywords(MODEL, [(key, text)])


# --- options of a training: default < recipe < what the user gives --------------------------------


def test_values_of_a_recipe_and_of_the_user_with_their_origins():
    opts = TrainOptions(recipe="small", data="x", lr=0.5, set={"num_queries": 70})
    assert (opts.lr, opts.epochs, opts.clip, opts.data) == (0.5, 130, 1.0, Path("x"))
    assert opts.set["num_queries"] == 70 and opts.set["guided"] is True
    names = ("lr", "epochs", "clip", "set.num_queries", "set.guided", "threads")
    origins = [opts.origins[name] for name in names]
    assert origins == ["user", "recipe", "default", "user", "recipe", "machine"]
    words = "--recipe small --data x --lr 0.5 --set num_queries=70".split()
    assert options.train_options(words, "") == opts
    lines = opts.describe({"iterations": 7}).splitlines()
    assert lines[0] == "user      data x, lr 0.5, num_queries=70"
    assert lines[1].startswith("recipe    small: model mobileinst_topformer_tiny, epochs 130")
    assert "data      iterations 7" in lines


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_describes_a_model(name):
    opts = TrainOptions(recipe=name)
    config = options.model_config(opts, num_classes=3)
    assert (opts.recipe, config.num_classes) == (name, 3)
    given = recipes.RECIPES[name]
    assert all(opts.plain()[key] == plain(given[key]) for key in given.keys() & {"lr", "scale"})
    assert (opts.epochs is None) != (opts.iterations is None)


def plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "name, given, expected",
    [
        ("small", {"overfit": 8, "pretrained": "f"}, "overfit"),
        ("demo", {"overfit": 8}, "overfit"),
        ("small", {"pretrained": "f"}, "small-pretrained"),
        ("demo", {"pretrained": "f"}, "demo-pretrained"),
        ("mask2former-demo", {"overfit": 8}, "mask2former-overfit"),
        (
            "mask2former-demo",
            {"pretrained": "f", "model": "mask2former_efficientnet_lite0"},
            "mask2former-demo-pretrained",
        ),
        ("mask2former-small", {"pretrained": "f"}, "mask2former-pretrained"),
        (
            "mask2former-small",
            {"pretrained": "f", "model": "mask2former_mobilenet_v2"},
            "mask2former-small-pretrained",
        ),
        ("coco", {"pretrained": "f"}, "coco"),
        ("sparseinst-demo", {"overfit": 8}, "sparseinst-overfit"),
        ("sparseinst-small", {"pretrained": "f"}, "sparseinst-small-pretrained"),
        (
            "sparseinst-small",
            {"pretrained": "f", "model": "sparseinst_resnet50"},
            "sparseinst-pretrained",
        ),
    ],
)
def test_overfit_and_pretrained_choose_a_variant(name, given, expected):
    opts = TrainOptions(recipe=name, **given)
    assert opts.recipe == expected
    narrow = "embed_dim" in opts.set
    assert narrow == ("mask2former" in expected and "pretrained" not in expected)


def test_a_length_of_the_user_replaces_that_of_the_recipe():
    assert TrainOptions(recipe="small", iterations=5).epochs is None
    later = options.train_options("--epochs 3 --epochs 4".split(), "")
    assert (later.epochs, later.iterations) == (4.0, None)
    with pytest.raises(InputError, match="two lengths"):
        options.train_options("--epochs 3 --iterations 5".split(), "")
    assert TrainOptions().epochs == 60.0
    with pytest.raises(InputError, match="two lengths"):
        TrainOptions(epochs=3, iterations=5)
    with pytest.raises(InputError, match="--scale 2.0 1.0: give the smaller number first"):
        TrainOptions(scale=(2.0, 1.0))
    with pytest.raises(InputError, match="--overfit trains and evaluates whole images"):
        TrainOptions(overfit=4, tiles=2)
    with pytest.raises(InputError, match="--drops: the schedule is cosine"):
        TrainOptions(drops=(5,))


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("lr", -1, "--lr: -1 is not a number above zero"),
        ("batch_size", 1.5, "--batch-size: 1.5 is not a whole number above zero"),
        ("canvas", ["100x64"], "--canvas: 100x64: both sides must be multiples of 64"),
        ("model", "yolo", "--model: .*'yolo'.*mobileinst_topformer_tiny"),
        ("recipe", "none", "--recipe: .*'none'.*small"),
    ],
)
def test_a_program_and_a_command_line_get_the_same_messages(name, value, words):
    with pytest.raises(InputError, match=words):
        TrainOptions(**{name: value})
    texts = map(str, value if isinstance(value, list) else [value])
    with pytest.raises(InputError, match=words):
        options.train_options([f"--{name.replace('_', '-')}", *texts], "")


def test_threads_and_workers_follow_the_cores(monkeypatch):
    for number, local, expected in ((8, 1, (4, 2)), (1, 1, (1, 1)), (8, 8, (1, 1))):
        monkeypatch.setattr(values, "cores", lambda number=number: number)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        opts = TrainOptions()
        assert (opts.threads, opts.workers) == expected
        assert TrainOptions(recipe="coco").workers == min(8, max(1, number // local))
        assert TrainOptions(workers=9).workers == 9


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit):
        options.train_options(["--help"], "")
    said = capsys.readouterr().out
    for each in fields(TrainOptions):
        assert re.search(rf"^  --{each.name.replace('_', '-')}\b", said, re.MULTILINE), each.name
