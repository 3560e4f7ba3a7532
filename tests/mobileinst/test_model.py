"""The assembled MobileInst: sizes, gradients, padding, and parts that do not fit."""

from dataclasses import replace

import pytest
import torch

from mobileinst import zoo
from mobileinst.backbones.topformer import topformer_tiny
from mobileinst.layers.init import draw_parameters
from mobileinst.mobile.instance_decoder import InstanceDecoder
from mobileinst.mobile.mask_decoder import MaskDecoder
from mobileinst.mobile.model import MobileInst, MobileInstConfig, build_mobileinst

CONFIG = MobileInstConfig(
    num_classes=3, width=16, num_queries=7, query_width=16, num_heads=4, ffn_ratio=2
)


def build(**overrides) -> MobileInst:
    config = replace(CONFIG, **overrides)
    model = build_mobileinst(config, topformer_tiny(drop_path=config.drop_path))
    draw_parameters(model, 0)
    return model


def draw_images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "height, width", [(64, 64), (65, 127), (200, 333), (96, 864), (30, 500), (1, 1)]
)
@pytest.mark.parametrize(
    "queries, mask_stride, overrides",
    [(7, 8, {}), (1, 8, {"kv_stride": 16}), (7, 4, {"kv_stride": 16, "guided": True})]
    + [(6, 8, {"placed": True}), (5, 4, {"placed": True, "kv_stride": 16, "guided": True})],
)
@torch.no_grad()
def test_any_size(height, width, queries, mask_stride, overrides):
    keywords = {"num_queries": queries, "mask_stride": mask_stride, "kernel_dim": 5}
    model = build(**keywords, **overrides).eval()
    assert model.mask_stride == mask_stride
    outputs = model(draw_images(height, width), torch.zeros(2, height, width, dtype=torch.bool))
    grid = (-(-height // mask_stride), -(-width // mask_stride))
    length = 10 if "placed" in overrides else 5
    shapes = {key: tuple(value.shape) for key, value in outputs.items() if key != "aux"}
    assert shapes == {
        "class_logits": (2, queries, 3),
        "mask_logits": (2, queries, *grid),
        "objectness": (2, queries, 1),
        "queries": (2, queries, 16),
        "kernels": (2, queries, length),
        "pixel_features": (2, length, *grid),
        "global_queries": (2, queries, 16),
    }
    assert outputs["aux"] == []


def test_semantic_logits_of_every_map_in_use_while_training_only():
    model, *_ = zoo.build("mobileinst_topformer_tiny", 5, num_queries=3, semantic_weight=1.0)
    images = torch.rand(2, 3, 128, 192)
    outputs = model.train()(images)
    grids = {"mask": (16, 24), "x3": (16, 24), "x4": (8, 12), "x5": (4, 6), "x6": (2, 3)}
    got = {n: tuple(v.shape) for n, v in outputs.items() if n.startswith("semantic_logits")}
    assert got == {f"semantic_logits_{place}": (2, 5, *grid) for place, grid in grids.items()}
    assert not [name for name in model.eval()(images) if "semantic" in name]


def test_normalising_takes_out_the_statistics_and_zeroes_the_padding():
    model = build()
    images, padding = draw_images(8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    padding[:, 5:] = True
    got = model.normalise(images, padding)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel in range(3):
        want = (images[:, channel, :5] - mean[channel]) / std[channel]
        assert torch.allclose(got[:, channel, :5], want, atol=1e-6)
    assert got[:, :, 5:].eq(0).all()
    assert not {"mean", "std"} & model.state_dict().keys()


def test_parts_can_be_handed_in():
    backbone = topformer_tiny()
    mask_decoder = MaskDecoder(backbone.channels[1:], width=24, kernel_dim=10)
    model = build_mobileinst(CONFIG, backbone, mask_decoder=mask_decoder)
    assert model.mask_decoder is mask_decoder
    assert model.eval()(draw_images(64, 64))["kernels"].shape == (2, 7, 10)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"mask_decoder": (24, 48, 96, 296)}, r"\(32, 64, 96, 208\).*\(24, 48, 96, 296\)"),
        ({"x6": 100}, "X6: one part gives 208, the next expects 100"),
        ({"mask_channels": 32}, "mask features: one part gives 16, the next expects 32"),
        ({"kernel_dim": 32}, "kernel: one part gives 16, the next expects 32"),
        ({"mask_stride": 4}, "stride of the masks: one part gives 8, the next expects 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    mask_decoder = MaskDecoder(parts.get("mask_decoder", (32, 64, 96, 208)), width=16)
    instance_decoder = InstanceDecoder(
        parts.get("x6", 208),
        parts.get("mask_channels", 16),
        num_classes=3,
        kernel_dim=parts.get("kernel_dim", 16),
        mask_stride=parts.get("mask_stride", 8),
    )
    with pytest.raises(ValueError, match=message):
        build_mobileinst(CONFIG, topformer_tiny(), mask_decoder, instance_decoder)


def test_masks_are_at_stride_4_or_8():
    with pytest.raises(ValueError, match="mask_stride is 4 or 8, not 6"):
        build(mask_stride=6)
