"""ResNet-50 (CVPR 2016): torchvision's layers and names, our taps."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import StochasticDepth

from mobileinst.layers.pixels import IMAGENET_MEAN, IMAGENET_STD


class ResNet(resnet.ResNet):
    """Normalised images [B,3,H,W] -> maps at strides 4, 8, 16, 32, of 256 to 2048 channels.

    A map at stride s has the grid ceil(H/s) × ceil(W/s).

    depths: blocks of each stage.
    drop_path: rate of the last block, linearly rising from 0 at the first.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    channels, strides = (256, 512, 1024, 2048), (4, 8, 16, 32)

    def __init__(self, depths: tuple[int, ...], drop_path: float = 0.0):
        super().__init__(Bottleneck, depths, num_classes=1)
        del self.avgpool, self.fc
        blocks = [block for stage in self.stages for block in stage]
        rates = torch.linspace(0, drop_path, len(blocks), device="cpu").tolist()
        for block, rate in zip(blocks, rates, strict=True):
            block.drop_path = StochasticDepth(rate, "row")

    @property
    def stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def layers_until(self, stride: int) -> list[nn.Module]:
        """The layers that work at this stride or a finer one, in order."""
        layers: list[nn.Module] = [self.conv1, self.bn1] if stride >= 2 else []
        return layers + [layer for layer, s in zip(self.stages, self.strides) if s <= stride]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))  # [B,64,H/2,W/2]
        x, maps = self.maxpool(x), []  # [B,64,H/4,W/4]
        for stage in self.stages:
            x = stage(x)  # [B,C_i,H/s_i,W/s_i]
            maps.append(x)
        return maps  # /4, /8, /16 and /32


class Bottleneck(resnet.Bottleneck):
    """The same with `drop_path`, which ResNet sets."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))  # [B,C,h,w]
        y = self.relu(self.bn2(self.conv2(y)))  # [B,C,h/s,w/s]
        y = self.drop_path(self.bn3(self.conv3(y)))  # [B,4C,h/s,w/s]
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet50(**overrides: Any) -> ResNet:
    """23.5 M parameters; 21.5 G multiply-adds at 512 × 512."""
    return ResNet((3, 4, 6, 3), **overrides)
