"""MobileNetV2: torchvision's numbers, the original's padding, what freezing keeps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2
from torchvision.ops import StochasticDepth
from torchvision.transforms.functional import pil_to_tensor

from mobileinst import weights, zoo
from mobileinst.backbones.mobilenet_v2 import (
    mobilenet_v2,
    mobilenet_v2_torchvision,
)
from mobileinst.layers.conv import SameConv2d
from mobileinst.layers.freeze import FrozenBatchNorm2d, freeze_layers


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


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (31, 20)])
@pytest.mark.parametrize("build", [mobilenet_v2, mobilenet_v2_torchvision])
@torch.no_grad()
def test_channels_and_grids_are_those_declared(build, size):
    backbone = build().eval()
    maps = backbone(torch.randn(1, 3, *size))
    for got, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert got.shape == (1, channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 9), (8, 5), (1, 2)])
def test_one_sided_padding_is_the_originals_same_padding(size):
    """The rule, in the original's terms: as few zeros as the output grid ceil(n / 2) needs, the
    odd one out at the end."""
    conv = SameConv2d(2, 3, 3, 2)
    images = torch.randn(1, 2, *size)
    total = [max(0, (-(-n // 2) - 1) * 2 + 3 - n) for n in size]
    (top, left), (bottom, right) = zip(*((n // 2, n - n // 2) for n in total))
    wanted = F.conv2d(F.pad(images, (left, right, top, bottom)), conv.weight, stride=2)
    torch.testing.assert_close(conv(images), wanted)


def test_the_two_conventions_differ_in_strided_convolutions_and_pixel_statistics():
    original, torchvisions = mobilenet_v2(), mobilenet_v2_torchvision()
    assert original.state_dict().keys() == torchvisions.state_dict().keys()
    assert sum(isinstance(m, SameConv2d) for m in original.modules()) == 5
    assert not any(isinstance(m, SameConv2d) for m in torchvisions.modules())
    assert (original.mean, original.std) == ((0.5,) * 3, (0.5,) * 3)
    assert torchvisions.mean == (0.485, 0.456, 0.406)
    model, *_ = zoo.build("mobileinst_mobilenet_v2", 3)
    assert model.normalise(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [-1, -1, -1]


def test_drop_path_rises_over_the_residual_blocks():
    rates = [m.p for m in mobilenet_v2(drop_path=0.9).modules() if isinstance(m, StochasticDepth)]
    assert len(rates) == 10 and rates[0] == 0 and rates[-1] == pytest.approx(0.9)
    assert rates == sorted(rates)
    assert not any(isinstance(m, StochasticDepth) for m in mobilenet_v2().modules())


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


@pytest.mark.parametrize(
    "name, frozen, free",
    [
        ("mobileinst_mobilenet_v2", ["features.0.", "features.3."], ["features.4.", "features.18"]),
        ("mobileinst_topformer_tiny", ["tpm.stem", "tpm.layer3."], ["tpm.layer4.", "trans."]),
    ],
)
def test_frozen_layers_get_no_gradient_and_keep_their_values(name, frozen, free):
    model, *_ = zoo.build(name, 3, width=16, kernel_dim=16, num_queries=4, frozen_stride=4)
    model.train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    outputs = model(torch.rand(2, 3, 64, 128))
    (outputs["class_logits"].sum() + outputs["mask_logits"].square().sum()).backward()
    gradients = {n: p.grad is not None for n, p in model.backbone.named_parameters()}
    for prefix in frozen:
        assert not any(got for n, got in gradients.items() if n.startswith(prefix))
        states = [n for n in before if n.startswith(prefix)]
        assert all(torch.equal(model.backbone.state_dict()[n], before[n]) for n in states)
    for prefix in free:
        assert all(got for n, got in gradients.items() if n.startswith(prefix))


def single_class_images(voc, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that show one class only, 128 × 128, and that class."""
    images, classes = [], []
    for path in sorted((voc / "SegmentationClass").glob("*.png")):
        present = set(np.unique(np.asarray(Image.open(path)))) - {0, 255}
        if len(present) == 1:
            image = Image.open(voc / "JPEGImages" / f"{path.stem}.jpg").resize((128, 128))
            images.append(pil_to_tensor(image) / 255)
            classes.append(present.pop())
        if len(images) == count:
            break
    return torch.stack(images), torch.tensor(classes)


def nearest_neighbour_accuracy(model: nn.Module, images: torch.Tensor, classes) -> float:
    """How often the image with the most similar averaged features shows the same class."""
    maps = [model.backbone(model.normalise(part))[3].mean((2, 3)) for part in images.split(16)]
    features = F.normalize(torch.cat(maps))
    similarity = (features @ features.T).fill_diagonal_(-1)
    return (classes[similarity.argmax(1)] == classes).float().mean().item()


@torch.no_grad()
def test_the_real_weights_know_classes(shared):
    """Loaded with the normalising and padding of its own, the published file sees what is alike;
    an untrained network, or values that came to the wrong places, would not."""
    file = shared / "datasets" / "weights" / "mobilenet_v2_imagenet_features_fp16.pth"
    images, classes = single_class_images(shared / "datasets/VOC/VOCdevkit/VOC2012", 160)
    model = zoo.build("mobileinst_mobilenet_v2", 20)[0].eval()
    untrained = nearest_neighbour_accuracy(model, images, classes)
    assert weights.load(model, file).whole
    assert nearest_neighbour_accuracy(model, images, classes) > untrained + 0.4


@pytest.mark.parametrize("name", ["topformer_tiny", "seaformer_tiny", "mobilenet_v2"])
def test_a_backbone_frozen_up_to_64_is_frozen_whole_and_gives_the_same_twice(name):
    backbone = zoo.build_backbone(name, drop_path=0.5)
    freeze_layers(backbone, 64)
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad]
    images = torch.rand(2, 3, 64, 128)
    first, second = backbone.train()(images), backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert zoo.build_backbone(name).layers_until(1) == []
