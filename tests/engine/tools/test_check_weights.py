"""Whether a file of weights would load, without training and without writing anything."""

import json

import pytest
import torch

from data.errors import InputError
from engine import checkpoint
from engine.tools import check_weights
from mobileinst import zoo
from mobileinst.backbones.topformer import topformer_tiny


@pytest.fixture
def check(capsys, tmp_path):
    """Runs the entry; returns what it printed, and the sentence if the file does not load."""

    def run(*argv):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        why = None
        try:
            check_weights.main([*map(str, argv)])
        except InputError as error:
            why = str(error)
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().out, why

    return run


@pytest.fixture
def tiny_file(tmp_path):
    state = {f"backbone.{name}": value for name, value in topformer_tiny().state_dict().items()}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.fixture
def keywords(tiny):
    """How the network of the toy run was built."""
    return [*tiny[tiny.index("--set") : tiny.index("--data")], "drop_path=0"]


def test_a_file_that_loads(check, tiny_file):
    printed, why = check(tiny_file)
    assert why is None and f"{tiny_file}: TopFormer-T" in printed
    assert "314 tensors, 1,293,888 parameters: all of TopFormer-T" in printed
    assert "random start mask_decoder, instance_decoder" in printed
    said, _, steps = printed.partition("\n\nnext:\n")
    assert said.splitlines()[-1] == "loads into mobileinst_topformer_tiny"
    assert f"--model mobileinst_topformer_tiny --pretrained {tiny_file}" in steps
    report = json.loads(check(tiny_file, "--json")[0])
    assert report["loads"] and report["whole"] and report["container"] == "state_dict"
    assert report["prefixes"] == ["backbone."] and report["loaded"]["tensors"] == 314


@pytest.mark.parametrize("name", ["efficientnet_lite0", "topformer_small"])
def test_the_model_follows_from_the_file(check, tmp_path, name):
    torch.save(zoo.build_backbone(name).state_dict(), tmp_path / "file.pth")
    printed, why = check(tmp_path / "file.pth")
    said = printed.partition("\n\nnext:\n")[0]
    assert why is None and said.splitlines()[-1] == f"loads into mobileinst_{name}"


def test_what_cannot_be_read(check, tmp_path):
    (tmp_path / "notes.txt").write_text("weights are in the other folder\n")
    printed, why = check(tmp_path / "notes.txt")
    assert printed == "" and why.startswith(f"{tmp_path}/notes.txt: not a checkpoint")


def test_a_checkpoint_of_a_run(check, toy_run, keywords):
    path = toy_run / "best.pt"
    printed, why = check(path, *keywords)
    assert why is None and "from the file: square, unused, disc; random start: none" in printed
    printed, why = check(path, *keywords, "--classes", "disc", "ring")
    assert why is None and "from the file: disc; random start: ring" in printed
    printed, why = check(path, *keywords, "--num-classes", "2")
    assert why is None and "from the file: none; random start: class 0, class 1" in printed
    printed, why = check(path)
    assert why is None and f"{path}: MobileInst with TopFormer-T" in printed
    assert "has          3 classes: square, unused, disc" in printed
    assert "iteration    48" in printed
    assert "scores       AP 0." in printed and "-1.000" not in printed
    assert "options      data " in printed and "overfit 4" in printed and "width=32" in printed
    report = json.loads(check(path, "--json")[0])
    assert report["iteration"] == 48 and report["class_names"] == ["square", "unused", "disc"]
    assert report["options"]["overfit"] == 4 and report["scores"]["images"] == 4
    why = check(path, "--set", "width=64")[1]
    assert "the file's keywords, width=32 (64 here)" in why
    printed, why = check(path, *keywords, "--set", "num_heads=3")
    assert "--set: width 32 is not a multiple of 3 heads; change" in why


def test_the_number_of_classes_follows_from_a_plain_state_dict(check, toy_run, keywords, tmp_path):
    content = checkpoint.load(toy_run / "best.pt")
    torch.save(content["model"], tmp_path / "state.pth")
    printed, why = check(tmp_path / "state.pth", *keywords)
    assert why is None and "all of MobileInst with TopFormer-T" in printed
