"""ResNet-50 (CVPR 2016), in torchvision's form and names: the stride is in the 3×3 convolution."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mobileinst.layers.init import init_conv
from mobileinst.layers.pixels import IMAGENET_MEAN, IMAGENET_STD

STEM, EXPANSION = 64, 4
STRIDES = (4, 8, 16, 32)


class ResNet(nn.Module):
    """Normalised images [B,3,H,W] -> maps at strides 4, 8, 16, 32, of 256 to 2048 channels.

    A map at stride s has the grid ceil(H/s) × ceil(W/s).

    depths: blocks of each stage.
    drop_path: rate of the last block, linearly rising from 0 at the first.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, depths: tuple[int, ...], drop_path: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        channels = STEM
        for stage, depth in enumerate(depths):
            hidden, blocks = STEM * 2**stage, []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(channels, hidden, stride, next(rates)))
                channels = EXPANSION * hidden
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = tuple(EXPANSION * STEM * 2**stage for stage in range(len(depths)))
        self.strides = STRIDES
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.conv1)

    @property
    def stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def layers_until(self, stride: int) -> list[nn.Module]:
        """The layers that work at this stride or a finer one, in order."""
        layers: list[nn.Module] = [self.conv1, self.bn1] if stride >= 2 else []
        return layers + [layer for layer, s in zip(self.stages, STRIDES) if s <= stride]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))  # [B,64,H/2,W/2]
        x, maps = self.maxpool(x), []  # [B,64,H/4,W/4]
        for stage in self.stages:
            x = stage(x)  # [B,C_i,H/s_i,W/s_i]
            maps.append(x)
        return maps  # /4, /8, /16 and /32


class Bottleneck(nn.Module):
    """1×1, 3×3 with the stride, 1×1 to four times the channels, added to the input."""

    def __init__(self, in_channels: int, hidden: int, stride: int, drop_path: float):
        super().__init__()
        channels = EXPANSION * hidden
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.downsample = None
        if in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.conv1, self.conv2, self.conv3):
            init_conv(conv)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))  # [B,C,h,w]
        y = self.relu(self.bn2(self.conv2(y)))  # [B,C,h/s,w/s]
        y = self.drop_path(self.bn3(self.conv3(y)))  # [B,4C,h/s,w/s]
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet50(**overrides: Any) -> ResNet:
    """23.5 M parameters; 21.5 G multiply-adds at 512 × 512."""
    return ResNet((3, 4, 6, 3), **overrides)
