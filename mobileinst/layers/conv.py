"""Convolution modules, and resizing between the grids of a pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.freeze import FrozenBatchNorm2d
from mobileinst.layers.init import init_conv

Rows = tuple[tuple[int, int, int, int], ...]  # (kernel, expansion, channels, stride)


class ConvBN(nn.Sequential):
    """Convolution without bias, then BatchNorm; no activation. Names as in published checkpoints.

    Odd kernels are padded by half their size: [B,·,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)].
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ):
        super().__init__()
        self.c = nn.Conv2d(
            in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)

    def reset_parameters(self) -> None:
        init_conv(self.c)
        self.bn.reset_parameters()


class SameConv2d(nn.Conv2d):
    """A convolution without bias, with TensorFlow's "same" padding: h -> ceil(h/stride)."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.padded(x))  # [B,C,ceil(H/stride),ceil(W/stride)]

    def padded(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:  # is padded by the convolution
            return x
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


def conv_norm(conv: SameConv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(conv(x)). In training a frozen norm becomes part of the filters, which saves a pass over
    the map: 7 % of a step of Mask2Former with EfficientNet-Lite0. Hooks of both do not run then.
    """
    if not (conv.training and isinstance(norm, FrozenBatchNorm2d)):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return conv._conv_forward(conv.padded(x), weight, shift)


class InvertedResidual(nn.Module):
    """1×1 expansion (absent at 1), depth-wise convolution, 1×1 projection without activation."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 3, expansion: int = 1, stride: int = 1
    ):
        super().__init__()
        hidden = round(in_channels * expansion)
        steps: list[nn.Module] = []
        if expansion != 1:
            steps += [ConvBN(in_channels, hidden), nn.ReLU(inplace=True)]
        steps += [ConvBN(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*steps, ConvBN(hidden, channels))
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class Pyramid(nn.Sequential):
    """Inverted residuals `layer1` .. `layerN`, after a stem of stride 2 if it has a name.

    width, stride: of the input; with a stem, `width` is the stem's. rows: one per layer.
    `sizes`: channels and stride of the output of each layer, the stem included.
    """

    def __init__(self, width: int, stride: int, rows: Rows, stem: str = ""):
        super().__init__()
        self.sizes = []
        if stem:
            stride *= 2
            self.add_module(stem, conv_bn_relu(3, width, 3, stride=2))
            self.sizes.append((width, stride))
        for i, (kernel, expansion, channels, step) in enumerate(rows, 1):
            layer = InvertedResidual(width, channels, kernel, expansion, step)
            self.add_module(f"layer{i}", layer)
            width, stride = channels, stride * step
            self.sizes.append((width, stride))

    def layers_until(self, stride: int) -> list[nn.Module]:
        return [layer for layer, (_, s) in zip(self, self.sizes, strict=True) if s <= stride]


def conv_bn_relu(
    in_channels: int, channels: int, kernel: int = 1, stride: int = 1
) -> nn.Sequential:
    return nn.Sequential(ConvBN(in_channels, channels, kernel, stride), nn.ReLU(inplace=True))


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    """`x` resized bilinearly to the exact grid of `other`."""
    return F.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)


def average_over(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive average pooling to `grid` as matrix products: deterministic on CUDA, exportable."""
    rows, columns = (averages(n, m, x) for n, m in zip(x.shape[-2:], grid))
    return rows @ x @ columns.T


def averages(cells: int, groups: int, like: Tensor) -> Tensor:
    """The matrix [groups,cells] that averages each group's cells; neighbours may share one."""
    group = torch.arange(groups, device=like.device)[:, None]
    cell = torch.arange(cells, device=like.device)
    inside = (cell >= group * cells // groups) & (cell * groups < (group + 1) * cells)
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def max_pool_ceil(x: Tensor, factor: int) -> Tensor:
    """Maximum over `factor` × `factor` cells, fewer at the border: h -> ceil(h/factor)."""
    return F.max_pool2d(x, factor, factor, ceil_mode=True) if factor > 1 else x


def apply_kernels(kernels: Tensor, pixel_features: Tensor) -> Tensor:
    """Every kernel as a 1×1 convolution: [B,Q,D], [B,D,h,w] -> mask logits [B,Q,h,w]."""
    return (kernels @ pixel_features.flatten(2)).unflatten(2, pixel_features.shape[-2:])
