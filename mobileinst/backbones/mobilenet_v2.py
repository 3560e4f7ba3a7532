"""MobileNetV2 (CVPR 2018): torchvision's layers under their own names, our taps, and an X6.

Published weights follow one of two conventions and lose accuracy under the other: the original's
(RGB in -1..1, strided convolutions padded on the right and bottom only) and torchvision's
(ImageNet mean and deviation, padding all round). They are two backbones here, chosen by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2 as Classifier
from torchvision.ops import StochasticDepth

from mobileinst.layers.conv import SameConv2d, max_pool_ceil
from mobileinst.layers.pixels import HALF, IMAGENET_MEAN, IMAGENET_STD

LAST_AT_STRIDE = {2: 1, 4: 3, 8: 6, 16: 13, 32: 18}  # indices of `features`
TAPS = tuple(LAST_AT_STRIDE[stride] for stride in (4, 8, 16, 32))


class MobileNetV2(nn.Module):
    """Normalised images [B,3,H,W] -> maps at strides 4, 8, 16, 32, and X6 at 64.

    The map at 32 is that of the last, 1280 wide convolution; X6 is its maximum over 2 × 2 cells.
    Both are our choice, as the paper does not state what replaces the transformer's map.

    one_sided: strided convolutions pad as the original does.
    drop_path: rate of the last residual block, linearly rising from 0 at the first.
    """

    def __init__(
        self, one_sided: bool, mean: Sequence[float], std: Sequence[float], drop_path: float = 0.0
    ):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.features = Classifier(num_classes=1).features
        if one_sided:
            pad_on_one_side(self.features)
        if drop_path:
            drop_residuals(self.features, drop_path)
        self.channels = (24, 32, 96, 1280, 1280)
        self.strides = (4, 8, 16, 32, 64)

    def layers_until(self, stride: int) -> list[nn.Module]:
        """The layers that work at this stride or a finer one, in order."""
        last = max((i for s, i in LAST_AT_STRIDE.items() if s <= stride), default=-1)
        return list(self.features[: last + 1])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for i, layer in enumerate(self.features):
            x = layer(x)  # [B,C_i,H/s_i,W/s_i]
            if i in TAPS:
                maps.append(x)
        return [*maps, max_pool_ceil(x, 2)]  # /4, /8, /16, /32 and /64


def pad_on_one_side(layers: nn.Module) -> None:
    """Puts a `SameConv2d` in the place of every convolution of stride 2."""
    for module in list(layers.modules()):
        for name, conv in module.named_children():
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                one_sided = SameConv2d(conv.in_channels, conv.out_channels, 3, 2, conv.groups)
                module.add_module(name, one_sided)


def drop_residuals(layers: nn.Module, drop_path: float) -> None:
    """Appends `StochasticDepth` to every residual branch; the rate rises from 0 to `drop_path`."""
    blocks = [m for m in layers if isinstance(m, InvertedResidual) and m.use_res_connect]
    rates = torch.linspace(0, drop_path, len(blocks), device="cpu").tolist()
    for block, rate in zip(blocks, rates, strict=True):
        block.conv.append(StochasticDepth(rate, "row"))


def mobilenet_v2(**overrides: Any) -> MobileNetV2:
    """2.22 M parameters, for weights of the original and what was converted from it."""
    return MobileNetV2(**{"one_sided": True, "mean": HALF, "std": HALF} | overrides)


def mobilenet_v2_torchvision(**overrides: Any) -> MobileNetV2:
    """The same for the weights torchvision publishes."""
    convention = {"one_sided": False, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return MobileNetV2(**convention | overrides)
