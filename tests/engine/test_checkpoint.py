"""Checkpoints are restored unchanged, other files are refused, a failed write keeps the old one."""

import os

import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.records import Category
from engine import checkpoint, files, predict
from engine.files import FailedRun
from mobileinst import zoo
from tests.small import SMALL

CLASSES = [Category(0, 0, "../../crab"), Category(1, 90, "car/truck")]  # names are only shown


def content_of(seed=0, average=True):
    config = zoo.config_for(
        "mobileinst_topformer_tiny", num_classes=2, **SMALL["mobileinst_topformer_tiny"]
    )
    model = zoo.build_from_config(config, seed=seed)[0]
    other = zoo.build_from_config(config, seed=seed + 1)[0]
    return {
        **checkpoint.describe_model(config, CLASSES),
        "model": model.state_dict(),
        "average": other.state_dict() if average else None,
        "best": {"AP": 0.5, "iteration": 3, "threshold": 0.0},
        "options": {"lr": 1e-3, "data": "pond", "scale": [0.5, 2.0], "image_size": 64, "tiles": 1}
        | dict.fromkeys(("crowd_as_instances", "keep_crowds", "boxes_as_masks"), False),
        "iteration": 7,
    }


def plain(value):
    """Whether only tensors and plain types are in it."""
    if isinstance(value, dict):
        return all(type(key) in (str, int) and plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool, torch.Tensor)


def test_a_checkpoint_is_restored_unchanged(tmp_path):
    content = content_of()
    checkpoint.save(tmp_path / "last.pt", content)
    found = checkpoint.load(tmp_path / "last.pt")
    for part in ("model", "average"):
        assert found[part].keys() == content[part].keys()
        assert all(torch.equal(found[part][name], content[part][name]) for name in found[part])
    rest = content.keys() - {"model", "average"}
    assert {key: found[key] for key in rest} == {key: content[key] for key in rest}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_file_holds_plain_types_only(tmp_path):
    checkpoint.save(tmp_path / "last.pt", content_of())
    found = torch.load(tmp_path / "last.pt", weights_only=True)
    assert plain(found)
    assert found["classes"] == [
        {"index": 0, "id": 0, "name": "../../crab"},
        {"index": 1, "id": 90, "name": "car/truck"},
    ]


@pytest.mark.parametrize("average", [True, False])
def test_the_model_is_built_from_the_file_alone(tmp_path, average):
    content = content_of(average=average)
    checkpoint.save(tmp_path / "best.pt", content)
    model, criterion, postprocess = checkpoint.build(checkpoint.load(tmp_path / "best.pt"))
    expected = content["average" if average else "model"]
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    outputs = model(torch.rand(1, 3, 64, 64))
    assert outputs["class_logits"].shape == (1, 6, 2)


class Malicious:
    """What a malicious file may hold: unpickling it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


NO_CHECKPOINTS = {
    "state dict": lambda path: torch.save({"conv.weight": torch.ones(3)}, path),
    "tensor": lambda path: torch.save(torch.ones(3), path),
    "cut off": lambda path: path.write_bytes(good_bytes(path)[:-2000]),
    "missing": lambda path: None,
}


def good_bytes(path):
    checkpoint.save(path, content_of())
    return path.read_bytes()


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_other_files_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "weights.pt"
    NO_CHECKPOINTS[kind](path)
    with pytest.raises(InputError, match=r"weights\.pt: .*(give|train)") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


def test_code_in_a_file_is_not_run(tmp_path):
    mark, path = tmp_path / "was_here", tmp_path / "evil.pt"
    torch.save({"format": checkpoint.FORMAT, "model": Malicious(mark)}, path)
    with pytest.raises(InputError, match=r"evil\.pt: not a checkpoint that can be read safely"):
        checkpoint.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_call_keeps_the_file_before(tmp_path, monkeypatch, call):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"iteration": 1})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(FailedRun, match="No space left.*make room"):
        checkpoint.save(path, {"iteration": 2})
    assert checkpoint.load(path)["iteration"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_threshold_is_always_a_number_with_its_origin():
    assert checkpoint.score_threshold({"threshold": 0.4}) == (0.4, "the best F1 at the evaluation")
    assert checkpoint.score_threshold({"threshold": 0.4}, 0.0)[0] == 0.0
    value, origin = checkpoint.score_threshold({"threshold": None})
    assert value == checkpoint.FALLBACK_THRESHOLD == 0.3 and "no object was found" in origin


def test_a_checkpoint_with_tensors_of_another_version_is_refused(toy_run):
    content = checkpoint.load(toy_run / "best.pt")
    content["model"]["semantic_head.weight"] = torch.zeros(3, 4)
    with pytest.raises(InputError, match="another version of the library wrote it"):
        checkpoint.build(content)


def test_a_loaded_checkpoint_can_be_saved_again(tmp_path):
    checkpoint.save(tmp_path / "one.pt", content_of())
    content = checkpoint.load(tmp_path / "one.pt")
    checkpoint.save(tmp_path / "two.pt", content)
    again = checkpoint.load(tmp_path / "two.pt")
    assert (again["best"], again["options"]) == (content["best"], content["options"])


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


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_values_are_refused(tmp_path, name):
    path = tmp_path / "best.pt"
    checkpoint.save(path, changed(content_of(average=False), *ABSURD[name]))
    with pytest.raises(InputError) as error:
        content = checkpoint.load(path)
        checkpoint.preset_of(content)
        checkpoint.build(content)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600 and ("give a" in said or "start a new" in said)


def test_names_in_a_checkpoint_are_no_paths(tmp_path, monkeypatch):
    """Not even with every text a path out of the folder."""
    work = tmp_path / "inside" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    away = str(tmp_path / "away")
    texts = dict.fromkeys(("out", "pretrained", "data", "train_json", "images", "model"), away)
    content = content_of() | {"out": away, "name": away}
    content["options"] |= texts
    checkpoint.save(work / "best.pt", content)
    Image.new("RGB", (64, 48)).save("a.png")
    predict.main("a.png --checkpoint best.pt --out found --device cpu --threads 1".split())
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    names = ("objects.json", "objects.csv", "00001_a_overlay.jpg", "00001_a_instances.png")
    assert written == {"inside/work/best.pt", "inside/work/a.png"} | {
        f"inside/work/found/{name}" for name in names
    }
    assert "../../crab" in (work / "found" / "objects.json").read_text()
