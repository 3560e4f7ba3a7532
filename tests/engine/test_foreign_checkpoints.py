"""Checkpoints of other origin: absurd values are refused in one sentence."""

import io
import math
import sys
import zipfile

import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.records import Category
from engine import checkpoint, options, predict
from mobileinst import weights, zoo

SMALL = dict(width=16, kernel_dim=8, query_width=16, num_heads=2, num_queries=3)
CLASSES = [Category(0, 4, "../../crab"), Category(1, 9, "car/truck")]  # names are only shown


@pytest.fixture(scope="module")
def honest():
    """What a run would save."""
    config = zoo.config_for("mobileinst_topformer_tiny", num_classes=2, **SMALL)
    return {
        **checkpoint.describe_model(config, CLASSES),
        "model": zoo.build_from_config(config)[0].state_dict(),
        "average": None,
        "best": {"AP": 0.5, "iteration": 3, "threshold": 0.0},
        "options": {"data": "pond", "image_size": 64, "tiles": 1}
        | dict.fromkeys(("crowd_as_instances", "keep_crowds", "boxes_as_masks"), False),
        "iteration": 7,
    }


def use(path):
    """What entries do with a checkpoint."""
    content = checkpoint.load(path)
    assert 0 < checkpoint.preset_of(content).image_size < 1e6
    checkpoint.score_threshold(content["best"])
    return checkpoint.build(content)


def changed(content, field, value, key=None):
    """A copy with another value for a field, or for a key in it; no value takes it out."""
    inner = value if key is None else {**content[field], key: value}
    content = {**content, field: inner}
    if value is None:
        (content if key is None else content[field]).pop(field if key is None else key)
    return content


NAMED = [{"index": 0, "id": 4, "name": "crab"}, {"index": 1, "id": 9, "name": "a"}]
ABSURD = {
    "no config": ("config", None),
    "config of another type": ("config", "tiny"),
    "unknown system": ("config", "rm", "system"),
    "unknown backbone": ("config", "/etc/passwd", "backbone"),
    "backbone of another type": ("config", 7, "backbone"),
    "unknown keyword": ("config", 1, "__class__"),
    "wide beyond measure": ("config", 10**9, "width"),
    "wide": ("config", 99_999, "width"),
    "many queries": ("config", 99_999, "num_queries"),
    "of no width": ("config", 0, "width"),
    "negative": ("config", -16, "width"),
    "a number as text": ("config", "16", "width"),
    "a flag as number": ("config", 2, "self_attention"),
    "not a number": ("config", math.nan, "drop_path"),
    "more classes than named": ("config", 3, "num_classes"),
    "no classes": ("classes", []),
    "classes of another type": ("classes", "crab"),
    "a class without a name": ("classes", [{"index": 0, "id": 1}]),
    "a name of two lines": ("classes", [NAMED[0], {**NAMED[1], "name": "a\nb"}]),
    "a name that steers terminals": ("classes", [NAMED[0], {**NAMED[1], "name": "\x1b[2J"}]),
    "a name of another type": ("classes", [NAMED[0], {**NAMED[1], "name": ["a"]}]),
    "an id of another type": ("classes", [NAMED[0], {**NAMED[1], "id": "9"}]),
    "an id twice": ("classes", [NAMED[0], {**NAMED[1], "id": 4}]),
    "an index that is missing": ("classes", [NAMED[0], {**NAMED[1], "index": 2}]),
    "iteration of another type": ("iteration", "many"),
    "no options": ("options", None),
    "options of another type": ("options", [1]),
    "no image size": ("options", None, "image_size"),
    "a huge image size": ("options", 10**9, "image_size"),
    "no tiles": ("options", None, "tiles"),
    "half a tile": ("options", 0.5, "tiles"),
    "best of another type": ("best", 1.0),
    "a threshold of another type": ("best", "high", "threshold"),
    "a threshold that is none": ("best", math.nan, "threshold"),
    "no model": ("model", None),
    "model of another type": ("model", [torch.ones(1)]),
    "a list in the model": ("model", [1], "extra"),
    "a tensor that is sparse": ("model", torch.eye(2).to_sparse(), "extra"),
    "a tensor too many": ("model", torch.ones(1), "extra"),
    "of the wrong shape": ("model", torch.ones(3), "instance_decoder.query_features.weight"),
    "one value for a terabyte": ("model", torch.ones(1).expand(10**6, 10**6), "extra"),
    "average of another type": ("average", 3),
}


def test_an_honest_one_is_used(honest, tmp_path):
    checkpoint.save(tmp_path / "best.pt", honest)
    model, _, _ = use(tmp_path / "best.pt")
    assert torch.equal(next(model.parameters()), next(iter(honest["model"].values())))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_values_are_refused(honest, tmp_path, name):
    path = tmp_path / "best.pt"
    checkpoint.save(path, changed(honest, *ABSURD[name]))
    with pytest.raises(InputError) as error:
        use(path)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600 and ("give a" in said or "start a new" in said)


def test_an_entry_reports_it_with_exit_code_2(honest, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    checkpoint.save(tmp_path / "best.pt", changed(honest, "config", 10**9, "width"))
    argv = [tmp_path / "a.png", "--checkpoint", tmp_path / "best.pt", "--out", tmp_path / "found"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, argv), "--device", "cpu"])
    with pytest.raises(SystemExit) as left:
        options.run_entry(predict.main)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == 2 and "best.pt: describes no mobileinst model: " in said
    assert not (tmp_path / "found").exists()


def test_names_of_classes_and_paths_name_nothing_that_is_written(honest, tmp_path, monkeypatch):
    """Not even with every text a path out of the folder."""
    work = tmp_path / "inside" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    away = str(tmp_path / "away")
    texts = dict.fromkeys(("out", "pretrained", "data", "train_json", "images", "model"), away)
    content = {**honest, "options": {**honest["options"], **texts}, "out": away, "name": away}
    checkpoint.save(work / "best.pt", content)
    Image.new("RGB", (64, 48)).save("a.png")
    predict.main("a.png --checkpoint best.pt --out found --device cpu --threads 1".split())
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    names = ("objects.json", "objects.csv", "00001_a_overlay.jpg", "00001_a_instances.png")
    assert written == {"inside/work/best.pt", "inside/work/a.png"} | {
        f"inside/work/found/{name}" for name in names
    }
    assert "../../crab" in (work / "found" / "objects.json").read_text()


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path):
    stored = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "model": {"x": torch.zeros(10**6)}}, stored)
    with zipfile.ZipFile(stored) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(InputError, match="bomb.pt: .*read safely, it is compressed"):
        checkpoint.load(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["a\nb", 7, None])
def test_foreign_weights_need_class_names_of_one_line(honest, tmp_path, name):
    classes = [{"index": 0, "id": 1, "name": name}]
    checkpoint.save(tmp_path / "a.pt", {**honest, "classes": classes})
    with pytest.raises(weights.LoadError, match="without a whole config and class list"):
        weights.open_weights(tmp_path / "a.pt")
