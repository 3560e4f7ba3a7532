"""EfficientNet-Lite 0, 1, 2 (Tan 2020): EfficientNet without squeeze-excitation, with ReLU6."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mobileinst.layers.conv import SameConv2d, conv_norm, max_pool_ceil

# (kernel, repeats, expansion, channels, stride) of each stage of Lite0.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 3, 6, 80, 2),
    (5, 3, 6, 112, 1),
    (5, 4, 6, 192, 2),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280
TAPS = (1, 2, 4, 6)  # stages that end at strides 4, 8, 16, 32


class EfficientNetLite(nn.Module):
    """Normalised images [B,3,H,W] -> maps at strides 4, 8, 16, 32, and X6 at 64.

    X6 is the 1280 wide convolution before the classifier, its maximum over 2 × 2 cells: these
    channels are what ImageNet taught about classes. A map at stride s has the grid ceil(H/s) ×
    ceil(W/s). Strided convolutions are padded as TensorFlow pads them, and
    pixels are normalised as (x - 127) / 128 of 0..255: the published weights need both.

    width, depth: factors of the channels and repeats of Lite0; the first and the last stage keep
    one block, the stem and the head their channels.
    drop_path: rate of the last residual block, linearly rising from 0 at the first.
    """

    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, width: float, depth: float, drop_path: float = 0.0):
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM, 3, 2)
        self.bn0 = batch_norm(STEM)
        blocks: list[Block] = []
        self.ends = []  # number of blocks up to the end of each stage
        channels = STEM
        for stage, (kernel, repeats, expansion, out, stride) in enumerate(STAGES):
            out = scaled_channels(out, width)
            if 0 < stage < len(STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(Block(channels, out, kernel, expansion, step))
                channels = out
            self.ends.append(len(blocks))
        residual = [block for block in blocks if block.residual]
        rates = torch.linspace(0, drop_path, len(residual), device="cpu").tolist()
        for block, rate in zip(residual, rates):
            block.drop_path = StochasticDepth(rate, "row")
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(channels, HEAD, 1)
        self.bn1 = batch_norm(HEAD)
        widths = tuple(scaled_channels(STAGES[tap][3], width) for tap in TAPS)
        self.channels = (*widths, HEAD)
        self.strides = (4, 8, 16, 32, 64)

    @property
    def last_map_layers(self) -> list[nn.Module]:
        return [self.conv_head, self.bn1]

    def layers_until(self, stride: int) -> list[nn.Module]:
        """The layers that work at this stride or a finer one, in order."""
        layers: list[nn.Module] = [self.conv_stem, self.bn0] if stride >= 2 else []
        current, start = 2, 0
        for (*_, step), end in zip(STAGES, self.ends):
            current *= step
            if current <= stride:
                layers += self.blocks[start:end]
            start = end
        return layers + (self.last_map_layers if stride >= self.strides[-1] else [])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = nn.functional.relu6(conv_norm(self.conv_stem, self.bn0, images))  # [B,32,H/2,W/2]
        maps, taps = [], {self.ends[tap] for tap in TAPS}
        for number, block in enumerate(self.blocks, 1):
            x = block(x)  # [B,C_i,H/s_i,W/s_i]
            if number in taps:
                maps.append(x)
        x = nn.functional.relu6(conv_norm(self.conv_head, self.bn1, x))  # [B,1280,H/32,W/32]
        return [*maps, max_pool_ceil(x, 2)]  # /4, /8, /16, /32 and /64


class Block(nn.Module):
    """1×1 expansion (absent at 1), depth-wise convolution, 1×1 projection without activation."""

    def __init__(self, in_channels: int, channels: int, kernel: int, expansion: int, stride: int):
        super().__init__()
        hidden = in_channels * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and in_channels == channels
        if self.expands:
            self.expand_conv = SameConv2d(in_channels, hidden, 1)
            self.bn0 = batch_norm(hidden)
        self.depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.bn1 = batch_norm(hidden)
        self.project_conv = SameConv2d(hidden, channels, 1)
        self.bn2 = batch_norm(channels)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expands:
            y = nn.functional.relu6(conv_norm(self.expand_conv, self.bn0, y))  # [B,C·expansion,h,w]
        y = conv_norm(self.depthwise_conv, self.bn1, y)  # [B,C·expansion,h/s,w/s]
        y = conv_norm(self.project_conv, self.bn2, nn.functional.relu6(y))  # [B,C',h/s,w/s]
        return x + self.drop_path(y) if self.residual else y


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def scaled_channels(channels: int, factor: float) -> int:
    """The nearest multiple of 8 to channels · factor that is at least 0.9 of it."""
    exact = channels * factor
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def efficientnet_lite0(**overrides: Any) -> EfficientNetLite:
    """3.37 M parameters."""
    return EfficientNetLite(1.0, 1.0, **overrides)


def efficientnet_lite1(**overrides: Any) -> EfficientNetLite:
    """4.14 M parameters."""
    return EfficientNetLite(1.0, 1.1, **overrides)


def efficientnet_lite2(**overrides: Any) -> EfficientNetLite:
    """4.81 M parameters."""
    return EfficientNetLite(1.1, 1.2, **overrides)
