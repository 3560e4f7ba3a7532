"""The benchmark runs, and counts what the published tables count."""

import re

import pytest

from data.errors import InputError
from engine.tools import benchmark
from mobileinst import zoo


def test_every_system_and_backbone_has_a_cost(monkeypatch):
    systems = ("mobileinst_topformer_tiny", "mask2former_swin_tiny")
    monkeypatch.setattr(zoo, "names", lambda: systems)
    backbones = {name: zoo.BACKBONES[name] for name in ("topformer_tiny", "swin_tiny")}
    monkeypatch.setattr(zoo, "BACKBONES", backbones)
    rows = "\n".join(benchmark.costs(20))
    assert "1,293,888" in rows and "0.423 G" in rows  # TopFormer-T without injection at 512 x 512
    assert all(name in rows for name in systems)


def test_a_step_is_split_into_its_parts(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "costs", lambda classes: [])
    argv = "--device cpu --threads 1 --image-size 64 --batch-size 2 --rounds 1 --set query_width=32"
    benchmark.main(argv.split())
    printed = capsys.readouterr().out
    assert "images/s" in printed and "matching" in printed and "self_attention=false" in printed


def test_a_model_is_compared_with_variants_that_it_has(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "costs", lambda classes: [])
    argv = "--model mask2former_swin_tiny --device cpu --threads 1 --image-size 64 --batch-size 1"
    sizes = "embed_dim=8 depths=1,1,1,1 backbone_heads=1,1,1,1 width=32 num_heads=2 "
    sizes += "num_queries=3 num_layers=3"
    benchmark.main([*argv.split(), "--rounds", "1", "--set", *sizes.split()])
    printed = capsys.readouterr().out
    assert "num_encoder_layers=3" in printed and "kv_stride" not in printed


def test_models_side_by_side(capsys):
    names = ["mobileinst_topformer_tiny", "small:mobileinst_topformer_tiny"]
    argv = ["--threads", "1", "--image-size", "64", "--rounds", "1", "--models"]
    benchmark.main([*argv, *names])
    header, whole, small = capsys.readouterr().out.splitlines()[1:4]
    assert header.split() == ["parameters", "multiply-adds", "ms", "ratio"]
    assert whole.split()[1] == "2,769,749" and whole.split()[-1] == "1.00"
    assert small.split()[0] == names[1] and float(small.split()[2]) < float(whole.split()[2])
    with pytest.raises(InputError, match="--models smal:x: 'smal' is unknown; did you mean small?"):
        benchmark.main([*argv, "smal:x"])
    with pytest.raises(InputError, match="no model is called 'mobileinst_tiny'"):
        benchmark.main([*argv, "mobileinst_tiny"])


def test_parts_of_an_evaluation_of_a_checkpoint(toy_run, capsys):
    benchmark.main(["--checkpoint", str(toy_run / "best.pt"), "--threads", "1"])
    rows = re.findall(r"^(\w.*?) +(\d+\.\d\d) +(\d+\.\d\d)$", capsys.readouterr().out, re.M)
    seconds = {name: float(value) for name, value, _ in rows}
    assert list(seconds) == ["forward", "post-processing", "scoring", "all but the forward"]
    assert rows[0][2] == "1.00"
    rest = seconds["post-processing"] + seconds["scoring"]
    assert seconds["all but the forward"] == pytest.approx(rest, abs=0.011)
