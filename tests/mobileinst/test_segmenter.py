"""What the models and configs of all systems have in common."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from mobileinst import zoo
from mobileinst.set_prediction.targets import Target
from tests.small import SMALL, make_target

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
    values = config.to_dict()
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


VARIANTS = [  # model, keywords
    ("mobileinst_topformer_tiny", {}),
    ("mobileinst_topformer_tiny", {"guided": True, "semantic_weight": 1.0}),
    ("mobileinst_topformer_tiny", {"self_attention": False, "coordinates": False}),
    ("mobileinst_topformer_tiny", {"mask_stride": 4, "depthwise": True, "placed": True}),
    ("mobileinst_seaformer_tiny", SMALL["mobileinst_topformer_tiny"]),
    # Two channels a group at least: of one a group norm takes out whatever is constant.
    ("mask2former_swin_tiny", {"width": 64, "num_layers": 3}),
    ("sparseinst_topformer_tiny", {}),
]


@pytest.mark.parametrize("name, keywords", VARIANTS)
def test_every_parameter_receives_a_gradient_from_the_criterion(name, keywords):
    torch.manual_seed(0)
    keywords = SMALL.get(name, {}) | {"drop_path": 0.0} | keywords
    model, criterion, _ = zoo.build(name, 3, **keywords)
    for parameter in model.parameters():
        if not parameter.any():  # what starts at zero hides what lies behind it
            nn.init.normal_(parameter, std=0.1)
    size = (65, 127)
    targets = [make_target([0, 2], 1, size), make_target([1], 2, size)]
    outputs = model.train()(torch.rand(2, 3, *size), torch.zeros(2, *size, dtype=torch.bool))
    sum(criterion(outputs, targets).values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # One number added to every key leaves a softmax as it is.
    assert [n for n in missing if not n.endswith("to_k.bn.bias")] == []


MODELS = SMALL | {  # one for each backbone and each pair of decoders
    "mobileinst_seaformer_tiny": SMALL["mobileinst_topformer_tiny"],
    "mobileinst_mobilenet_v2": dict(width=16, semantic_weight=1.0, self_attention=False),
    "mobileinst_mobilenet_v2_torchvision": dict(width=16, guided=True, kv_stride=16),
    "mask2former_mobilenet_v2": dict(num_encoder_layers=1, num_layers=2),
    "mask2former_efficientnet_lite0": dict(num_encoder_layers=1, num_layers=2),
    "sparseinst_topformer_tiny": dict(width=16, num_queries=4, softmax=True),
    "sparseinst_mobilenet_v2": dict(width=16, num_queries=4, groups=0),
    "sparseinst_efficientnet_lite0": dict(width=16, num_queries=4),
    "sparseinst_resnet50": dict(width=16, num_queries=4, frozen_norms=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_without_any_object(name):
    """DistributedDataParallel waits for all of them on every rank."""
    model, criterion, _ = zoo.build(name, num_classes=2, **MODELS[name])
    outputs = model.train()(torch.rand(2, 3, 64, 128))
    losses = criterion(outputs, [make_target([], number, (64, 128)) for number in (1, 2)])
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def changed(value):
    """Another value of a keyword."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(2 * each for each in value)
    return value / 2 if isinstance(value, float) and value else 2 * value or 1


OTHERS = {"mask_stride": 4, "kv_stride": 16, "num_heads": 1, "frozen_stride": 8, "groups": 0}
ABSENT = {  # layers that a backbone does not have
    "frozen_norms": ["mask2former_swin_tiny"],
    "frozen_depthwise": ["mask2former_swin_tiny", "sparseinst_resnet50"],
}


@pytest.mark.parametrize("system", SMALL)
def test_every_keyword_changes_something(system):
    """Parameters, outputs, losses, or detections; all else follows from the seed."""
    keywords = SMALL[system] | {"drop_path": 0.2, "max_detections": 5}

    def parameters(config):
        with torch.device("meta"):
            model = zoo.build_from_config(config)[0]
        kinds = [(n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()]
        return kinds + [type(module) for module in model.modules()]

    def numbers(config):
        model, criterion, postprocess = zoo.build_from_config(config)
        torch.manual_seed(0)
        outputs = model.train()(torch.rand(2, 3, 64, 96))
        targets = [make_target([0, 2], 1), make_target([1], 2)]
        losses = criterion(outputs, targets)
        with torch.no_grad():
            first = {name: x[0] for name, x in outputs.items() if name != "aux"}
            cost = criterion.matcher.cost(first, Target.of(targets[0]))
            logits = outputs["mask_logits"]
            sharp = {"mask_logits": 9 * (logits - logits.median()) / logits.std()}
            detections = postprocess(outputs | sharp, [((64, 96),) * 3] * 2)
        found = [outputs["class_logits"], cost, *losses.values()]
        return found + [each["masks"].float() for each in detections]

    config = zoo.config_for(system, num_classes=3, **keywords)
    before, usual = parameters(config), numbers(config)
    for field in fields(config):
        if field.name == "backbone" or system in ABSENT.get(field.name, ()):
            continue
        value = OTHERS.get(field.name, changed(getattr(config, field.name)))
        other = replace(config, **{field.name: value})
        if parameters(other) == before:
            assert not same(numbers(other), usual), field.name


def same(one, two):
    return len(one) == len(two) and all(map(torch.equal, one, two))
