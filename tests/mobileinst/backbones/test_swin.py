"""Swin against torchvision where the rules agree; test_transformers.py has smaller maps."""

import math
import re
import zlib

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from mobileinst import zoo
from mobileinst.backbones.swin import (
    SwinTransformer,
    swin_base,
    swin_small,
    swin_tiny,
)
from mobileinst.layers.init import draw_parameters

SMALL = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


def randomise(module: nn.Module) -> nn.Module:
    """`module` in eval mode, every parameter drawn from its name and large enough to matter."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and not name.endswith("bias_table"):
                noise *= math.sqrt(1 / math.prod(value.shape[1:]))
            elif value.ndim == 1:
                noise = 0.2 * noise + float("norm" in name and name.endswith("weight"))
            value.copy_(noise)
    return module.eval()


@pytest.fixture
def undrawn(monkeypatch):
    """Large models are built without drawing what is replaced at once."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)


def draw_images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def official_name(name: str) -> str:
    """`features.3.1.mlp.0.weight` -> `layers.1.blocks.1.mlp.fc1.weight`, and so on."""
    number, rest = re.fullmatch(r"features\.(\d+)\.(.+)", name).groups()
    stage, kind = divmod(int(number) - 1, 2)
    if number == "0":
        return "patch_embed." + rest.replace("0.", "proj.").replace("2.", "norm.")
    if kind:
        return f"layers.{stage}.downsample.{rest}"
    rest = rest.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
    return f"layers.{stage}.blocks.{rest}"


def torchvision_maps(features: nn.Sequential, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the four stages, normalised without scale and shift: [B,C,h,w]."""
    maps, x = [], images
    for number, part in enumerate(features):
        x = part(x)
        if number % 2:
            maps.append(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize(
    "theirs, ours, size",
    [
        ("swin_t", swin_tiny, (260, 300)),  # odd maps: 65 x 75, 33 x 38, 17 x 19, 9 x 10
        ("swin_s", swin_small, (228, 256)),
        ("swin_b", lambda: swin_base(window_size=7), (256, 228)),
    ],
)
@torch.no_grad()
def test_agrees_with_torchvision_where_no_map_fits_into_one_window(undrawn, theirs, ours, size):
    features = randomise(torchvision.models.get_model(theirs, weights=None).features)
    parameters = {f"features.{name}": value for name, value in features.named_parameters()}
    model = ours().eval()
    missing, unexpected = model.load_state_dict(
        {official_name(name): value for name, value in parameters.items()}, strict=False
    )
    assert not unexpected
    assert missing == [f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    images = draw_images(1, 3, *size)
    maps = model(images)
    assert max(map(relative_error, maps, torchvision_maps(features, images))) < 1e-5


@pytest.mark.parametrize(
    "name, millions, window",
    [("tiny", 27.52, 7), ("small", 48.84, 7), ("base", 86.88, 12), ("large", 195.20, 12)],
)
def test_published_sizes(name, millions, window):
    with torch.device("meta"):  # counting needs no values
        model = zoo.build_backbone(f"swin_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    for stage, channels in zip(model.layers, model.channels):
        table = stage.blocks[1].attn.relative_position_bias_table
        assert table.shape == ((2 * window - 1) ** 2, channels // 32)


def test_first_values():
    model = SwinTransformer(**SMALL)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(math.nan)
    draw_parameters(model, 0)
    for name, value in model.named_parameters():
        if "norm" in name:
            assert value.eq(float(name.endswith("weight"))).all(), name
        elif name.startswith("patch_embed"):
            assert value.abs().max() <= 1 / math.sqrt(48)  # torch's own start of a convolution
        elif name.endswith("bias"):
            assert value.eq(0).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 32 is not a multiple of 3 heads"):
        SwinTransformer(embed_dim=32, num_heads=(3, 2, 4, 8))


@torch.no_grad()
def test_an_exported_graph_has_ordinary_operators():
    """Its attention as well, and the same outputs; windows are padded at this size."""
    model, images = randomise(SwinTransformer(12, (2, 2), (1, 2))), torch.rand(1, 3, 40, 72)
    program = torch.export.export(model, (images,))
    assert not [node for node in program.graph.nodes if "dot_product" in str(node.target)]
    for found, wanted in zip(program.module()(images), model(images), strict=True):
        torch.testing.assert_close(found, wanted)
