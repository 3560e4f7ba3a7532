"""What the models and configs of all systems have in common."""

from dataclasses import replace

import pytest
import torch

from mobileinst import zoo

SYSTEMS = {
    "mobileinst_topformer_tiny": dict(width=16, num_queries=7, query_width=16, num_heads=4),
    "mask2former_swin_tiny": dict(
        embed_dim=8, depths=(1, 1, 1, 1), backbone_heads=(1, 2, 2, 4), window_size=4, width=32,
        mask_dim=12, num_heads=4, num_encoder_layers=1, num_queries=7, num_layers=4,
    ),
    "sparseinst_efficientnet_lite0": dict(width=16, kernel_dim=12, num_queries=7),
}  # fmt: skip


@pytest.fixture(params=SYSTEMS)
def config(request):
    return zoo.config_for(request.param, num_classes=3, **SYSTEMS[request.param])


@pytest.fixture
def model(config):
    return zoo.build_from_config(config)[0].eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def test_mask_logits_are_kernels_times_pixel_features(model, images):
    outputs = model.train()(images)
    assert (
        len(outputs["aux"])
        == {"MobileInst": 1, "Mask2Former": 4, "SparseInst": 0}[type(model).__name__]
    )
    for output in (outputs, *outputs["aux"]):
        want = torch.einsum("bqd,bdhw->bqhw", output["kernels"], outputs["pixel_features"])
        torch.testing.assert_close(output["mask_logits"], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_forward_is_encode_then_decode(model, images):
    padding = torch.zeros(2, 64, 128, dtype=torch.bool)
    padding[1, :, 100:] = True
    whole, features = model(images, padding), model.encode(images, padding)
    parts = model.decode(features)
    assert all(torch.equal(whole[key], parts[key]) for key in whole if key != "aux")
    passed = model.decode(features, whole.get("global_queries", whole["queries"]))
    assert passed["mask_logits"].shape == whole["mask_logits"].shape
    # These are exactly those that were used; Mask2Former starts from others.
    same = type(model).__name__ != "Mask2Former"
    assert torch.equal(passed["queries"], whole["queries"]) == same


@pytest.mark.parametrize("garbage", [1.0, -1e4, float("nan")])
@torch.no_grad()
def test_the_content_of_the_padding_has_no_effect(model, images, garbage):
    padding = torch.zeros(2, 64, 128, dtype=torch.bool)
    padding[0, 50:] = padding[1, :, 70:] = True
    want = model(images, padding)
    got = model(images.masked_fill(padding[:, None], garbage), padding)
    assert all(torch.equal(got[key], want[key]) for key in want if key != "aux")


def test_a_backbone_without_a_needed_stride_is_refused(config):
    backbone = zoo.build_backbone("topformer_small")
    backbone.strides = (8, 16, 128, 256, 512)
    with pytest.raises(ValueError, match=r"TopFormer has maps at .* also needs \[(4, )?32"):
        zoo.build_from_config(config, backbone=backbone)


def test_a_config_is_plain_values_that_come_back(config):
    values = zoo.config_to_dict(config)
    assert zoo.config_from_dict(values) == config
    assert values["system"] == config.system
    for value in values.values():
        plain = value if isinstance(value, tuple) else (value,)
        assert all(type(each) in (int, float, str, bool) for each in plain)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_queries": 0}, "num_queries is 0, but must be a whole number from 1 to 100000"),
        ({"num_queries": 2.0}, "num_queries is 2.0, but must be a whole number from 1 to 100000"),
        ({"width": True}, "width is True, but must be a whole number from 1 to 8192"),
        ({"drop_path": 1}, "drop_path is 1, but must be a number from 0 to 0.99"),
        ({"class_weight": float("nan")}, "class_weight is nan, but must be a number from 0 to"),
        ({"mask_threshold": 1.0}, "mask_threshold is 1.0, but must be"),
        ({"frozen_norms": 1}, "frozen_norms is 1, but must be true or false"),
        ({"backbone": None}, "backbone is None, but must be a name"),
    ],
)
def test_a_value_that_no_model_has_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
    with pytest.raises(ValueError, match=f"describes no {config.system} model: {message}"):
        zoo.config_from_dict(config.to_dict() | change)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"system": "none"}, "of no known system, as mobileinst, mask2former"),
        ({"backbone": "resnet"}, "of no known backbone, as topformer_tiny"),
        ({"queries": 3}, "has no keyword 'queries'; did you mean num_queries"),
    ],
)
def test_values_that_describe_no_model_are_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        zoo.config_from_dict(config.to_dict() | values)
