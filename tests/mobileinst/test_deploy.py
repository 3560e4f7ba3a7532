"""Models made ready for use find what the trained ones find."""

import copy

import pytest
import torch
from torch import nn

from mobileinst import zoo
from mobileinst.deploy import (
    FromBytes,
    deploy,
    final_postprocess,
    fold_batchnorms,
    graph_postprocess,
)

SMALL = dict(width=16, num_queries=7, query_width=16, num_heads=4)
MODELS = [f"mobileinst_{name}" for name in ("topformer_tiny", "seaformer_tiny", "mobilenet_v2")]
MODELS += [
    "mobileinst_topformer_tiny_lite",
    "mobileinst_efficientnet_lite0",
    "mask2former_mobilenet_v2",
]


def trained(name, **keywords):
    """A model whose BatchNorms have statistics, scales and shifts of their own."""
    small = SMALL if name.startswith("mobileinst") else dict(width=32, num_queries=7)
    small = small | {"num_heads": 4} if name.startswith("mask2former") else small
    torch.manual_seed(0)
    model = zoo.build(name, 3, **small | keywords)[0].eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                values.normal_(std=0.2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_no_batchnorm_is_left_and_answers_are_the_same(name):
    model = trained(name, **{"mask_stride": 4} if name == "mobileinst_topformer_tiny" else {})
    before, images = copy.deepcopy(model.state_dict()), torch.rand(2, 3, 64, 128)
    folded = fold_batchnorms(model.train())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training and not any(one.requires_grad for one in folded.parameters())
    assert model.training and all(one.requires_grad for one in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted, found = model.eval().double()(images.double()), folded(images)
    for key in ("class_logits", "mask_logits", "pixel_features"):
        spread = (wanted[key].max() - wanted[key].min()).item()
        torch.testing.assert_close(found[key].double(), wanted[key], rtol=0, atol=2e-3 * spread)


class OtherOrder(nn.Module):
    """Norms that are defined in another order than they are used."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.norm_two(self.two(self.norm_one(self.one(x)).relu())).relu()


class ReluBetween(nn.Module):
    """A ReLU in place makes another value, but no other tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.relu = (
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
        )

    def forward(self, x):
        return self.norm(self.relu(self.one(x)))


class SharedConv(nn.Module):
    """One convolution at two places, each with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.norm, self.other = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.norm(self.one(self.other(self.one(self.first(x)))))


@pytest.mark.parametrize("stem", [OtherOrder, ReluBetween, SharedConv])
def test_a_norm_that_does_not_follow_its_convolution_is_left_as_it_is(stem):
    model = trained("mobileinst_topformer_tiny")
    model.backbone.tpm.stem = stem()
    for norm in (one for one in model.backbone.tpm.stem.modules() if hasattr(one, "running_var")):
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.uniform_(-1, 1)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model.eval()(images)
        found = fold_batchnorms(model)(images)
    torch.testing.assert_close(found["mask_logits"], wanted["mask_logits"], rtol=1e-3, atol=1e-4)


SIZE = (128, 192)
DEPLOYED = {
    "mobileinst_topformer_tiny": {"semantic_weight": 1.0},
    "mobileinst_topformer_tiny_lite": {"placed": True, "guided": True},
    "mobileinst_seaformer_tiny": {"placed": True, "guided": True, "kv_stride": 16},
    "mobileinst_mobilenet_v2": {"mask_stride": 4},
    "mask2former_efficientnet_lite0": {"num_layers": 2, "num_encoder_layers": 1},
    "mask2former_mobilenet_v2": {"num_layers": 1, "num_encoder_layers": 1, "stable_scores": True},
    "sparseinst_mobilenet_v2": {},
}


def with_postprocess(name, **keywords):
    """A model of `trained` without gradients, and its post-processing."""
    model = trained(name, **keywords).requires_grad_(False)
    return model, zoo.build(name, 3, **keywords)[2]


def padded(model: nn.Module, size: tuple[int, int]):
    """An image in 0..1 of this size on the canvas, once with zeros and once with the mean."""
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    padding = torch.ones(1, *SIZE, dtype=torch.bool)
    padding[:, : size[0], : size[1]] = False
    return image * ~padding, torch.where(padding[:, None], model.normalise.mean, image), padding


@pytest.mark.parametrize("size", [SIZE, (97, 151)])
@pytest.mark.parametrize("name", DEPLOYED)
@torch.no_grad()
def test_the_graph_answers_as_model_and_postprocess(name, size):
    model, postprocess = with_postprocess(name, **DEPLOYED[name])
    before = copy.deepcopy(model.state_dict())
    image, with_mean, padding = padded(model, size)
    outputs = model(image, padding)
    postprocess.cut = outputs["mask_logits"].median().item()
    deployed = deploy(model, postprocess, SIZE)
    scores, masks = deployed(with_mean)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(each, nn.BatchNorm2d) for each in deployed.modules())
    assert not any("semantic" in key for key in deployed.state_dict())

    reference = graph_postprocess(postprocess)
    reference.duplicate_iou = 1
    sizes = [(SIZE, size, (211, 333))]
    [expected] = reference(outputs, sizes)
    found = {"scores": scores, "mask_logits": masks}
    [found] = final_postprocess(100, 1)(found, sizes)
    assert len(expected["scores"]) and expected["masks"].float().mean() > 0.02
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-6, rtol=1e-4)
    pairs = zip(found["query_idx"], found["labels"], found["masks"])
    detections = {(int(query), int(label)): mask for query, label, mask in pairs}
    for query, label, mask in zip(expected["query_idx"], expected["labels"], expected["masks"]):
        differ = (detections[int(query), int(label)] != mask).sum()
        assert differ <= 1e-3 * mask.sum() + 2


@torch.no_grad()
def test_bytes_with_the_rounded_pad_colour_are_padding():
    model, postprocess = with_postprocess("mobileinst_topformer_tiny")
    deployed = deploy(model, postprocess, SIZE)
    _, image, padding = padded(model, (97, 151))
    pixels = (image * 255).round().byte()
    expected = deployed(torch.where(padding[:, None], model.normalise.mean, pixels / 255))
    found = FromBytes(deployed)(pixels.permute(0, 2, 3, 1))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


def test_a_quality_of_its_own_is_no_part_of_a_graph():
    model, postprocess = with_postprocess("mobileinst_topformer_tiny")
    postprocess.quality = lambda *_: torch.ones(7)
    with pytest.raises(ValueError, match="mask quality"):
        deploy(model, postprocess, SIZE)
