"""3×3 convolutions with a quarter of the products, for runtimes that only know the direct way.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): F(4×4, 3×3).
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 4  # of the tiles of the output; those of the input overlap, with two cells more
# Our choice, measured in ONNX Runtime. On 80 × 80 cells 64 channels take as long, 96 .87 and 128 .7
# of the time. On 16 × 24 cells 128 channels take as long, and on smaller maps the products, of few
# tiles each, are slow: 3 times as long with 128 channels on 8 × 8.
LEAST_CHANNELS = 96
LEAST_PRODUCT = 4096  # tiles times channels

# One axis of the three transforms; the last is of the kernel.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of one image with padding: [1,C,h,w] -> [1,D,h,w].

    Small maps, those whose sides are no multiples of four, and batches are convolved directly.
    """
    channels, height, width = x.shape[-3:]
    product = height // SIDE * (width // SIDE) * min(weight.shape[:2])
    if x.shape[:-3] != (1,) or height % SIDE or width % SIDE or product < LEAST_PRODUCT:
        return F.conv2d(x, weight, bias, padding=1)
    cut, join = filters(INPUT).to(x), filters(zip(*OUTPUT, strict=True)).to(x)
    one_axis = torch.tensor(KERNEL, dtype=x.dtype, device=x.device)
    kernels = torch.einsum("iy,dcyx,jx->ijdc", one_axis, weight, one_axis).flatten(0, 1)
    tiles = F.conv2d(x.reshape(channels, 1, height, width), cut, stride=SIDE, padding=1)
    products = kernels @ tiles.flatten(2).transpose(0, 1)  # [36,D,T]
    products = products.transpose(0, 1).unflatten(2, tiles.shape[2:])  # [D,36,h/4,w/4]
    x = F.conv_transpose2d(products, join, stride=SIDE).transpose(0, 1)  # [1,D,h,w]
    return x if bias is None else x + bias[:, None, None]


def filters(rows: Iterable[tuple[float, ...]]) -> Tensor:
    """The transform of both axes as one filter per pair of rows: [n²,1,m,m] of n rows of m."""
    one_axis = torch.tensor(list(rows))
    return torch.einsum("iy,jx->ijyx", one_axis, one_axis).flatten(0, 1).unsqueeze(1)


def with_winograd(module: nn.Module) -> nn.Module:
    """A copy for one image, which computes wide 3×3 convolutions by `winograd_conv`."""
    module = copy.deepcopy(module)
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and is_wide(conv):
            conv._conv_forward = winograd_conv  # what subclasses do around it stays
    return module


def is_wide(conv: nn.Conv2d) -> bool:
    """Whether it is a convolution that `winograd_conv` computes, and has many channels."""
    if type(conv)._conv_forward is not nn.Conv2d._conv_forward or conv.padding_mode != "zeros":
        return False
    form = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    plain = form == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    return plain and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
