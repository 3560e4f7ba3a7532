"""TopFormer (CVPR 2022): a token pyramid of inverted residuals and a small transformer at 1/64.

Parameter names are those of the published checkpoints (`tpm.*`, `trans.*`, `SIM.*`). MobileInst's
enhancers take the place of the paper's semantics injection, for which ImageNet checkpoints have no
weights; SparseInst, which has no use for X6, reads the injected maps.
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.conv import ConvBN, Pyramid, Rows, resize_like
from mobileinst.layers.conv_transformer import attend_on_map, transformer
from mobileinst.layers.init import init_conv
from mobileinst.layers.pixels import IMAGENET_MEAN, IMAGENET_STD

TINY = (
    (3, 1, 16, 1), (3, 4, 16, 2), (3, 3, 16, 1), (5, 3, 32, 2), (5, 3, 32, 1),
    (3, 3, 64, 2), (3, 3, 64, 1), (5, 6, 96, 2), (5, 6, 96, 1),
)  # fmt: skip
SMALL = (
    (3, 1, 16, 1), (3, 4, 24, 2), (3, 3, 24, 1), (5, 3, 48, 2), (5, 3, 48, 1),
    (3, 3, 96, 2), (3, 3, 96, 1), (5, 6, 128, 2), (5, 6, 128, 1), (3, 6, 128, 1),
)  # fmt: skip
BASE = (
    (3, 1, 16, 1), (3, 4, 32, 2), (3, 3, 32, 1), (5, 3, 64, 2), (5, 3, 64, 1),
    (3, 3, 128, 2), (3, 3, 128, 1), (5, 6, 160, 2), (5, 6, 160, 1), (3, 6, 160, 1),
)  # fmt: skip


class TopFormer(nn.Module):
    """Normalised images [B,3,H,W] -> the taps of the pyramid and X6, the transformer's map.

    rows: of the pyramid, after its stem. taps: indices of the rows whose outputs are returned. X6
    holds all taps, averaged onto half the grid of the last tap (rounded up) and mixed by `depth`
    transformer blocks, whose drop path rises from 0 to `drop_path`. injected: channels of the maps
    that replace all taps but the first, if X6 is injected into them.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        rows: Rows = TINY,
        taps: tuple[int, ...] = (2, 4, 6, 8),
        depth: int = 4,
        num_heads: int = 4,
        key_dim: int = 16,
        attn_ratio: int = 2,
        mlp_ratio: int = 2,
        drop_path: float = 0.1,
        injected: int = 0,
    ):
        super().__init__()
        self.tpm = TokenPyramid(rows, taps)
        channels, strides = zip(*(self.tpm.sizes[tap + 1] for tap in taps))
        width = sum(channels)
        attentions = [MapAttention(width, num_heads, key_dim, attn_ratio) for _ in range(depth)]
        self.trans = transformer(attentions, width, mlp_ratio, drop_path)
        self.widths = channels
        if injected:
            self.SIM = nn.ModuleDict(
                {str(i): Injection(c, injected) for i, c in enumerate(channels) if i}
            )
            channels = (channels[0], *(injected for _ in self.SIM))
        self.channels, self.strides = (*channels, width), (*strides, 2 * strides[-1])

    def layers_until(self, stride: int) -> list[nn.Module]:
        coarse = [self.trans] if stride >= self.strides[-1] else []
        return self.tpm.layers_until(stride) + coarse

    def forward(self, images: Tensor) -> list[Tensor]:
        taps = self.tpm(images)  # /4, /8, /16, /32
        height, width = taps[-1].shape[-2:]
        tokens = [average_onto(tap, (height + 1) // 2, (width + 1) // 2) for tap in taps]
        x6 = self.trans(torch.cat(tokens, 1))  # and /64
        if hasattr(self, "SIM"):
            parts = x6.split(self.widths, 1)  # one for each tap
            for i, inject in enumerate(self.SIM.values(), 1):
                taps[i] = inject(taps[i], parts[i])  # [B,injected,h,w]
        return [*taps, x6]


class TokenPyramid(Pyramid):
    """Images -> the outputs of the rows in `taps`."""

    def __init__(self, rows: Rows, taps: tuple[int, ...]):
        super().__init__(16, 1, rows, stem="stem")
        self.taps = taps

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = images, []
        for layer in self:
            x = layer(x)  # [B,C_i,H/s_i,W/s_i]
            maps.append(x)
        return [maps[tap + 1] for tap in self.taps]


class Injection(nn.Module):
    """A tap [B,C,h,w] and its part of X6 [B,C,·,·] -> [B,channels,h,w]: semantics gate the tap and
    are added to it.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        for name in ("local_embedding", "global_embedding", "global_act"):
            layers = {"conv": nn.Conv2d(in_channels, channels, 1, bias=False)}
            layers["bn"] = nn.BatchNorm2d(channels)
            self.add_module(name, nn.Sequential(OrderedDict(layers)))

    def reset_parameters(self) -> None:
        for conv_bn in self.children():
            init_conv(conv_bn.conv)

    def forward(self, tap: Tensor, semantics: Tensor) -> Tensor:
        gate = resize_like(F.hardsigmoid(self.global_act(semantics)), tap)
        added = resize_like(self.global_embedding(semantics), tap)
        return self.local_embedding(tap) * gate + added


class MapAttention(nn.Module):
    """Self-attention over the cells of a map, every projection a 1×1 convolution with BatchNorm.

    The logits are not scaled: the official code computes a scale and never uses it.
    """

    def __init__(self, width: int, num_heads: int, key_dim: int, attn_ratio: int):
        super().__init__()
        self.num_heads = num_heads
        keys, values = num_heads * key_dim, num_heads * key_dim * attn_ratio
        self.to_q = ConvBN(width, keys)
        self.to_k = ConvBN(width, keys)
        self.to_v = ConvBN(width, values)
        self.proj = nn.Sequential(nn.ReLU6(), ConvBN(values, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.proj[1].bn.weight)  # the block begins as its MLP alone

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (to(x).flatten(2) for to in (self.to_q, self.to_k, self.to_v))  # [B,·,h·w]
        mixed = attend_on_map(q, k, v, self.num_heads, scale=1.0)  # [B,values,h·w]
        return self.proj(mixed.unflatten(2, x.shape[-2:]))  # [B,C,h,w]


def average_onto(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling [B,C,H,W] -> [B,C,height,width], with a deterministic backward.

    Strided where the size divides, as on all canvases; otherwise a matrix per axis.
    """
    rows, columns = x.shape[-2:]
    step = (1 if rows % height else rows // height, 1 if columns % width else columns // width)
    x = F.avg_pool2d(x, step)
    if columns % width:
        x = average_columns(x, width)
    if rows % height:
        x = average_columns(x.transpose(2, 3), height).transpose(2, 3)
    return x


def average_columns(x: Tensor, bins: int) -> Tensor:
    """[..,n] -> [..,bins]: bin i averages the cells from floor(i·n/bins) to ceil((i+1)·n/bins)."""
    size = x.shape[-1]
    cell = torch.arange(size, device=x.device)[:, None]
    i = torch.arange(bins, device=x.device)
    inside = (cell >= i * size // bins) & (cell < ((i + 1) * size + bins - 1) // bins)
    return x @ inside.to(x.dtype) / inside.sum(0)


# 1.29, 2.81 and 4.68 M parameters; 0.42, 0.77 and 1.20 G multiply-adds at 512 × 512.
topformer_tiny = TopFormer
topformer_small = partial(TopFormer, SMALL, taps=(2, 4, 6, 9), num_heads=6)
topformer_base = partial(TopFormer, BASE, taps=(2, 4, 6, 9), num_heads=8)
