"""The comparison with transformers: refused where it is absent, and of the same computation."""

import sys

import pytest
import torch

from data.errors import InputError
from engine.files import FailedRun
from engine.tools import benchmark_mask2former
from mobileinst import zoo
from mobileinst.mask2former.published import ARCHITECTURE, hub_config

ARGV = "--image-size 65 --train-size 64 --threads 1 --rounds 2".split()


@pytest.fixture
def tiny(monkeypatch):
    """Small sizes, where transformers is installed."""
    pytest.importorskip("transformers")
    swin = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
    others = {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 7, "dim_feedforward": 40}
    others |= {
        "train_num_points": 200,
        "feature_size": 64,
        "hidden_dim": 64,
        "mask_feature_size": 16,
    }
    monkeypatch.setattr(benchmark_mask2former, "SWIN", swin)
    monkeypatch.setattr(benchmark_mask2former, "OTHERS", others)


def test_without_transformers_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="^transformers cannot be imported.*requirements-dev.txt"):
        benchmark_mask2former.main(ARGV)


def test_the_sizes_are_those_of_the_model_it_stands_for():
    values = {"architectures": [ARCHITECTURE], "model_type": "mask2former"}
    labels = {str(number): "" for number in range(benchmark_mask2former.CLASSES)}
    settings = values | benchmark_mask2former.OTHERS | {"id2label": labels}
    config = hub_config(settings | {"backbone_config": benchmark_mask2former.SWIN})
    with torch.device("meta"):
        own = zoo.build_from_config(config)[0].state_dict()
        named = zoo.build("mask2former_swin_tiny", benchmark_mask2former.CLASSES)[0].state_dict()
    assert {name: x.shape for name, x in own.items()} == {n: x.shape for n, x in named.items()}
    assert config.train_points == 12544


def test_both_are_measured(tiny, capsys):
    benchmark_mask2former.main(ARGV)
    printed = capsys.readouterr().out
    assert "forward, 65 x 65" in printed and "training step, 64 x 64" in printed
    assert all(
        len(line.split()) == 9 for line in printed.splitlines() if line.startswith("forward")
    )


@torch.no_grad()
def test_what_does_not_compute_the_same_is_not_measured(tiny):
    pair = benchmark_mask2former.Pair()
    assert max(benchmark_mask2former.differences(pair.forwards(65))) < 1e-5
    pair.ours.query_decoder.class_embed.bias[0] += 0.01
    with pytest.raises(FailedRun, match=r"differ by 1.0e-02 \(classes\)"):
        benchmark_mask2former.differences(pair.forwards(65))


def test_the_steps_have_about_the_same_loss_and_lower_it(tiny):
    """Other points and dropped paths in each; tests/mobileinst/test_published.py has the same."""
    steps = benchmark_mask2former.Pair().training_steps(64)
    losses = {whose: [step() for _ in range(20)] for whose, step in steps.items()}
    assert losses["ours"][0] == pytest.approx(losses["theirs"][0], rel=0.05)
    assert all(last < 0.95 * first for first, *_, last in losses.values())
