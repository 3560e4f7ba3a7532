"""What all backbones have in common: the grids of their maps."""

import pytest
import torch

from mobileinst import zoo

SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


@pytest.mark.parametrize("name", zoo.BACKBONES)
@pytest.mark.parametrize("height, width", [(65, 127), (30, 300), (1, 1)])
@torch.no_grad()
def test_grids_follow_the_ceil_rule(name, height, width):
    model = zoo.build_backbone(name, **(SWIN if name.startswith("swin") else {})).eval()
    assert model.strides == (4, 8, 16, 32, 64)[: len(model.strides)]
    maps = model(torch.rand(1, 3, height, width))
    for x, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert x.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert x.isfinite().all()
