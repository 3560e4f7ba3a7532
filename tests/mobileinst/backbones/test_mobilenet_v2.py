"""MobileNetV2: torchvision's numbers, the original's padding, what freezing keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

from mobileinst import zoo
from mobileinst.backbones.mobilenet_v2 import (
    mobilenet_v2,
    mobilenet_v2_torchvision,
)
from mobileinst.layers.conv import SameConv2d
from mobileinst.layers.freeze import FrozenBatchNorm2d


def randomise(module: nn.Module) -> nn.Module:
    """Norms that are no identities, in eval mode."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@torch.no_grad()
def test_the_same_numbers_as_torchvision():
    theirs = randomise(torchvision_mobilenet_v2(weights=None))
    ours = mobilenet_v2_torchvision().eval()
    ours.features.load_state_dict(theirs.features.state_dict())
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    maps = ours(images)
    for got, last in zip(maps, (3, 6, 13, 18)):
        torch.testing.assert_close(got, theirs.features[: last + 1](images))
    assert torch.equal(maps[4], F.max_pool2d(maps[3], 2, ceil_mode=True))


def test_the_two_conventions_differ_in_strided_convolutions_and_pixel_statistics():
    original, torchvisions = mobilenet_v2(), mobilenet_v2_torchvision()
    assert original.state_dict().keys() == torchvisions.state_dict().keys()
    assert sum(isinstance(m, SameConv2d) for m in original.modules()) == 5
    assert not any(isinstance(m, SameConv2d) for m in torchvisions.modules())
    assert (original.mean, original.std) == ((0.5,) * 3, (0.5,) * 3)
    assert torchvisions.mean == (0.485, 0.456, 0.406)
    model, *_ = zoo.build("mobileinst_mobilenet_v2", 3)
    assert model.normalise(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [-1, -1, -1]


@pytest.mark.parametrize("name", ["mobileinst_mobilenet_v2", "mobileinst_topformer_tiny"])
def test_frozen_norms_keep_statistics_and_scales_in_training(name):
    model, *_ = zoo.build(name, 3, width=16, kernel_dim=16, num_queries=4, frozen_norms=True)
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(torch.rand(2, 3, 64, 128))["class_logits"].sum().backward()
    assert all(torch.equal(v, before[n]) for n, v in model.backbone.state_dict().items())
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.mask_decoder.modules())
    ordinary, *_ = zoo.build(name, 3, width=16, kernel_dim=16, num_queries=4)
    assert ordinary.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[n]) for n, v in ordinary.backbone.state_dict().items())
