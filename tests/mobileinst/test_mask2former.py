"""The assembled Mask2Former: sizes, gradients, settings, parts, published names and counts."""

import pytest
import torch
from torch import nn

from mobileinst import zoo
from mobileinst.mask2former.pixel_decoder import PixelDecoder
from mobileinst.mask2former.query_decoder import QueryDecoder

TINY = dict(
    embed_dim=8, depths=(1, 1, 2, 1), backbone_heads=(1, 2, 2, 4), window_size=4, drop_path=0.0,
    width=32, mask_dim=12, num_heads=4, num_encoder_layers=1, encoder_ffn_width=24,
    points_per_level=2, num_queries=7, num_layers=4, ffn_width=24, train_points=48,
)  # fmt: skip
CHANNELS = (8, 16, 32, 64)


def build(**keywords) -> tuple:
    return zoo.build("mask2former_swin_tiny", 3, **TINY | keywords)


def draw_images(height, width, batch=2, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("height, width", [(64, 64), (65, 127), (30, 200), (1, 1)])
@pytest.mark.parametrize("queries", [1, 7])
@torch.no_grad()
def test_any_size(height, width, queries):
    model = build(num_queries=queries)[0].eval()
    outputs = model(draw_images(height, width), torch.zeros(2, height, width, dtype=torch.bool))
    grid = (-(-height // model.mask_stride), -(-width // model.mask_stride))
    shapes = {key: tuple(value.shape) for key, value in outputs.items() if key != "aux"}
    assert shapes == {
        "class_logits": (2, queries, 4),
        "mask_logits": (2, queries, *grid),
        "queries": (2, queries, 32),
        "kernels": (2, queries, 12),
        "pixel_features": (2, 12, *grid),
    }
    assert outputs["aux"] == []


@pytest.mark.parametrize(
    "size, millions", [("tiny", 47.42), ("small", 68.74), ("base", 106.90), ("large", 215.52)]
)
def test_published_numbers_of_parameters(size, millions):
    with torch.device("meta"):
        model, *_ = zoo.build(f"mask2former_swin_{size}", 80)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.query_decoder.num_queries == (200 if size == "large" else 100)


def test_a_backbone_with_more_maps_will_do():
    model, *_ = build(
        backbone="topformer_tiny", embed_dim=0, depths=(), backbone_heads=(), window_size=0
    )
    assert model.pixel_decoder.in_channels == (16, 32, 64, 96)
    assert model.eval()(draw_images(64, 64))["mask_logits"].shape == (2, 7, 16, 16)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"pixel_decoder": (8, 16, 32, 60)}, r"\(8, 16, 32, 64\).*\(8, 16, 32, 60\)"),
        ({"in_channels": 64}, "width of the maps: one part gives 32, the next expects 64"),
        ({"mask_dim": 16}, "mask features: one part gives 12, the next expects 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(keywords, message):
    pixel_decoder = PixelDecoder(keywords.get("pixel_decoder", CHANNELS), 32, 12, 1, 4)
    query_decoder = QueryDecoder(
        keywords.get("in_channels", 32), keywords.get("mask_dim", 12), 3, width=32, num_heads=4
    )
    with pytest.raises(ValueError, match=message):
        build(pixel_decoder=pixel_decoder, query_decoder=query_decoder)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"mask_decoder": nn.Identity()}, "no part is called 'mask_decoder'.*query_decoder"),
        ({"kv_stride": 32}, "no keyword 'kv_stride'.*points_per_level"),
        ({"backbone": "seaformer_tiny"}, "seaformer_tiny has no embed_dim or depths"),
        ({"backbone": "resnet"}, "no backbone is called 'resnet'"),
    ],
)
def test_what_cannot_be_built_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        build(**keywords)
