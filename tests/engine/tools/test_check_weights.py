"""Whether a file of weights would load, without training and without writing anything."""

import json
import pickle
import sys

import pytest
import torch

from data.errors import InputError
from engine import checkpoint, options
from engine.tools import check_weights
from mobileinst import zoo
from mobileinst.backbones.topformer import topformer_small, topformer_tiny


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


def test_a_file_of_another_model_is_named_first(check, tiny_file):
    printed, why = check(tiny_file, "--model", "mobileinst_topformer_small")
    assert printed == f"{tiny_file}: TopFormer-T, 314 tensors under 'state_dict'\n"
    assert "TopFormer-T, the model is TopFormer-S" in why
    answer = json.loads(check(tiny_file, "--model", "mobileinst_topformer_small", "--json")[0])
    assert answer["loads"] is False and answer["source"] == "TopFormer-T" and answer["why"] == why
    printed, why = check(tiny_file, "--model", "mobileinst_topformer_small", "--allow-partial")
    assert why is None and "STARTS FROM RANDOM VALUES: mask_decoder, instance_decoder" in printed


def test_exit_codes(tiny_file, monkeypatch, capsys):
    for model, code in (("tiny", 0), ("small", 2)):
        argv = ["entry", str(tiny_file), "--model", f"mobileinst_topformer_{model}"]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as left:
            options.run_entry(check_weights.main)
        assert left.value.code == code
        assert ("error: " in capsys.readouterr().err) == bool(code)


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


def test_the_model_asked_for_counts(check, tmp_path):
    torch.save(topformer_small().state_dict(), tmp_path / "small.pth")
    assert check(tmp_path / "small.pth", "--model", "mobileinst_topformer_small")[1] is None
    other = check(tmp_path / "small.pth", "--model", "mobileinst_topformer_tiny")
    assert "the model is TopFormer-T" in other[1]


# Published files of Mask2Former

SMALL = dict(
    embed_dim=16, depths=(1, 1, 1, 1), backbone_heads=(1, 1, 1, 1), window_size=4, width=64,
    mask_dim=16, num_heads=2, num_encoder_layers=1, encoder_ffn_width=16, num_queries=5,
    num_layers=1, ffn_width=16,
)  # fmt: skip
M2F = ("--model", "mask2former_swin_tiny", "--set") + tuple(
    f"{name}={str(value).strip('()').replace(' ', '')}" for name, value in SMALL.items()
)


@pytest.fixture(scope="module")
def authors():
    """The tensors of a small model of 80 classes in the names of the authors."""
    state = zoo.build("mask2former_swin_tiny", 80, **SMALL)[0].state_dict()
    starts = {"pixel_decoder": "sem_seg_head.pixel_decoder", "backbone": "backbone"}
    starts["query_decoder"] = "sem_seg_head.predictor"
    parts = {name: name.partition(".") for name in state}
    return {f"{starts[p[0]]}.{p[2]}": state[name].numpy() for name, p in parts.items()}


@pytest.fixture
def pickled(tmp_path):
    def pickled(content):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
        return tmp_path / "model.pkl"

    return pickled


def test_the_authors_file_of_a_mask2former(check, pickled, authors):
    path = pickled({"model": authors, "__author__": "name"})
    printed, why = check(path, *M2F)
    assert why is None and f"{path}: Mask2Former with Swin" in printed
    assert (
        "found        'model', in the names of its authors" in printed
        and "random start" not in printed
    )
    printed, why = check(path, *M2F, "--classes", "shrimp", "organ")
    assert why is None and "2 of query_decoder.class_embed, with rows for 80 classes" in printed
    assert "from the file: none; random start: shrimp, organ" in printed
    assert "random start query_decoder.class_embed\n" in printed
    report = json.loads(check(path, *M2F, "--num-classes", "7", "--json")[0])
    assert report["loads"] and report["naming"] == "its authors" and report["whole"]


class Call:
    def __reduce__(self):
        return print, ("was here",)


@pytest.mark.parametrize("hostile", [True, False])
def test_a_pickle_that_does_not_load_ends_with_one_sentence(
    pickled, authors, monkeypatch, capsys, hostile
):
    rest = {name: value for name, value in authors.items() if "query_feat" not in name}
    path = pickled({"model": authors, "x": Call()} if hostile else {"model": rest})
    monkeypatch.setattr(sys, "argv", ["entry", str(path), *M2F])
    with pytest.raises(SystemExit) as left:
        options.run_entry(check_weights.main)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and "was here" not in out
    assert err.startswith(f"error: {path}: ") and err.count("\n") == 1
    missing = "1 are missing (query_decoder.query_feat.weight); get the whole file"
    assert ("asks to run builtins.print, which" if hostile else missing) in err
