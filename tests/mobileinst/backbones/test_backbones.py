"""What all backbones have in common: the grids of their maps, drop path, and freezing."""

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from mobileinst import zoo
from mobileinst.layers.freeze import FrozenBatchNorm2d, freeze_depthwise, freeze_layers

SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


def build(name: str, **keywords) -> nn.Module:
    return zoo.build_backbone(name, **keywords, **(SWIN if name.startswith("swin") else {}))


@pytest.mark.parametrize("name", zoo.BACKBONES)
@torch.no_grad()
def test_grids_follow_the_ceil_rule(name):
    model = build(name).eval()
    assert model.strides == (4, 8, 16, 32, 64)[: len(model.strides)]
    for height, width in ((65, 127), (30, 300), (1, 1)):
        maps = model(torch.rand(1, 3, height, width))
        for x, channels, stride in zip(maps, model.channels, model.strides, strict=True):
            assert x.shape == (1, channels, -(-height // stride), -(-width // stride))
            assert x.isfinite().all()


@pytest.mark.parametrize("name", zoo.BACKBONES)
def test_drop_path_rises_evenly_from_zero(name):
    """Over all blocks, or over those of each transformer."""
    rates = [m.p for m in build(name, drop_path=0.3).modules() if isinstance(m, StochasticDepth)]
    starts = [place for place, rate in enumerate(rates) if rate == 0]
    assert len(rates) > 3 and starts[0] == 0
    for start, end in zip(starts, [*starts[1:], len(rates)]):
        assert rates[start:end] == pytest.approx(torch.linspace(0, 0.3, end - start).tolist())


@pytest.mark.parametrize("name", zoo.BACKBONES)
def test_frozen_layers_are_those_that_make_the_maps_up_to_a_stride(name):
    """Found by the gradients of these maps."""
    torch.manual_seed(0)
    model, frozen = build(name), build(name, drop_path=0.3)
    parameters = dict(model.named_parameters())
    maps = model(torch.rand(2, 3, 64, 128))
    assert frozen.layers_until(1) == []
    for stride in model.strides:
        total = sum(x.sum() for x, own in zip(maps, model.strides) if own <= stride)
        gradients = torch.autograd.grad(
            total, parameters.values(), retain_graph=True, allow_unused=True
        )
        needed = {n for n, gradient in zip(parameters, gradients) if gradient is not None}
        freeze_layers(frozen, stride)
        assert {n for n, p in frozen.named_parameters() if not p.requires_grad} == needed
        for layer in frozen.layers_until(stride):
            for module in layer.modules():
                assert type(module) is not nn.BatchNorm2d
                assert not isinstance(module, StochasticDepth) or module.p == 0
    images = torch.rand(2, 3, 64, 128)
    first, second = frozen.train()(images), frozen(images)
    assert all(map(torch.equal, first, second))
    assert any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) or "swin" in name


@pytest.mark.parametrize("name", zoo.BACKBONES)
def test_frozen_depthwise_filters_are_those_of_one_channel(name):
    model = build(name)
    freeze_depthwise(model)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in model.named_parameters() if p.dim() == 4 and p.shape[1] == 1}
    assert bool(frozen) == ("swin" not in name and "resnet" not in name)
