"""Checkpoints of other origin: absurd values are refused in one sentence."""

import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.records import Category
from engine import checkpoint, predict
from mobileinst import zoo
from tests.small import SMALL

CLASSES = [Category(0, 4, "../../crab"), Category(1, 9, "car/truck")]  # names are only shown


@pytest.fixture(scope="module")
def honest():
    """What a run would save."""
    config = zoo.config_for(
        "mobileinst_topformer_tiny", num_classes=2, **SMALL["mobileinst_topformer_tiny"]
    )
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


ABSURD = {
    "no config": ("config", None),
    "unknown system": ("config", "rm", "system"),
    "unknown backbone": ("config", "/etc/passwd", "backbone"),
    "unknown keyword": ("config", 1, "__class__"),
    "of no width": ("config", 0, "width"),
    "a number as text": ("config", "16", "width"),
    "no options": ("options", None),
    "no image size": ("options", None, "image_size"),
    "no tiles": ("options", None, "tiles"),
    "no model": ("model", None),
    "a tensor too many": ("model", torch.ones(1), "extra"),
    "of the wrong shape": ("model", torch.ones(3), "instance_decoder.query_features.weight"),
}


def test_an_honest_one_is_used(honest, tmp_path):
    checkpoint.save(tmp_path / "best.pt", honest)
    model, _, _ = use(tmp_path / "best.pt")
    assert torch.equal(next(model.parameters()), next(iter(honest["model"].values())))


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_values_are_refused(honest, tmp_path, name):
    path = tmp_path / "best.pt"
    checkpoint.save(path, changed(honest, *ABSURD[name]))
    with pytest.raises(InputError) as error:
        use(path)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600 and ("give a" in said or "start a new" in said)


def test_names_in_a_checkpoint_are_no_paths(honest, tmp_path, monkeypatch):
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
