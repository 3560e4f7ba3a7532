"""ResNet-50 against torchvision's, the names of its files, and its sizes."""

import pickle

import pytest
import torch
from torchvision.models import resnet50 as classifier

from mobileinst import weights
from mobileinst.backbones.resnet import resnet50

NORMS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def published(rebuild):
    """torchvision's network, head included."""
    return rebuild(classifier())


@torch.no_grad()
def test_maps_are_torchvisions_from_its_file(published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "resnet50.pth")
    model = resnet50().eval()
    report = weights.load(model, tmp_path / "resnet50.pth")
    assert report.whole and report.source == "ResNet-50"
    assert "fc.*, a classification head" in report.dropped
    x = images = torch.rand(1, 3, 65, 97)
    for name in ("conv1", "bn1", "relu", "maxpool"):
        x = getattr(published, name)(x)
    for number, got in enumerate(model(images), 1):
        x = getattr(published, f"layer{number}")(x)
        assert torch.equal(got, x)


def other_name(name):
    """A name as the other library writes it, whose files SparseInst starts from."""
    for number in (1, 2, 3, 4):
        name = name.replace(f"layer{number}.", f"res{number + 1}.")
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    for number in (1, 2, 3):
        name = name.replace(f"bn{number}.", f"conv{number}.norm.")
    return name if name.startswith("res") else f"stem.{name}"


def test_a_converted_file_in_other_names_loads(published, tmp_path):
    """A pickle of arrays, without counters of batches, with the head in the stem."""
    state = {n: v for n, v in published.state_dict().items() if not n.endswith("_tracked")}
    assert other_name("layer2.0.downsample.1.bias") == "res3.0.shortcut.norm.bias"
    content = {other_name(name): value.numpy() for name, value in state.items()}
    assert {"stem.conv1.norm.bias", "res5.2.conv3.norm.weight", "stem.fc.weight"} <= content.keys()
    about = {"__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": content} | about))
    model = resnet50()
    report = weights.load(model, tmp_path / "R-50.pkl")
    assert report.whole and len(report.loaded) == 265 and not report.unexpected
    assert "stem.fc.*, a classification head" in report.dropped
    assert all(
        torch.equal(value, state[n]) for n, value in model.state_dict().items() if n in state
    )


def test_parameters_and_multiply_adds(giga_multiply_adds):
    with torch.device("meta"):
        model = resnet50().eval()
    assert sum(p.numel() for p in model.parameters() if p.ndim == 4) == 23_454_912
    assert giga_multiply_adds(model, 640, 640) == pytest.approx(33.4, abs=0.06)
