"""Swin Transformer (ICCV 2021): attention inside windows that shift from block to block.

The form that Mask2Former uses: images of any size in, four maps out, each behind its own
LayerNorm. Parameter names are those of the published checkpoints. Inside, maps are [B,h,w,C].
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mobileinst.layers.attention import attend, require_heads
from mobileinst.layers.pixels import IMAGENET_MEAN, IMAGENET_STD


class SwinTransformer(nn.Module):
    """Normalised images [B,3,H,W] -> maps [B,C,h,w] at strides 4, 8, 16, 32, channels last.

    embed_dim: channels of the first stage, doubled by each further one. depths, num_heads: blocks
    and attention heads per stage. window_size: side of a window in cells. drop_path: rate of the
    last block; the rates rise linearly from 0 at the first.

    Raises:
        ValueError: if `depths` and `num_heads` differ in length, or heads do not divide channels.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path: float = 0.3,
    ):
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {depths} and num_heads {num_heads} are of different lengths")
        self.channels = tuple(embed_dim * 2**i for i in range(len(depths)))
        self.strides = tuple(4 * 2**i for i in range(len(depths)))
        self.patch_embed = PatchEmbed(embed_dim)
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(depths)
        self.layers = nn.ModuleList(
            SwinStage(width, heads, window_size, own.tolist(), last=width == self.channels[-1])
            for width, heads, own in zip(self.channels, num_heads, rates)
        )
        for i, width in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def layers_until(self, stride: int) -> list[nn.Module]:
        within = [i for i, s in enumerate(self.strides) if s <= stride]
        layers: list[nn.Module] = [self.patch_embed] if within else []
        for i in within:
            layers += [self.layers[i - 1].downsample] if i else []
            layers += [*self.layers[i].blocks, self.get_submodule(f"norm{i}")]
        return layers

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)  # [B,H/4,W/4,C]
        maps = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))  # [B,C,h,w]
            x = stage.downsample(x)  # [B,h/2,w/2,2C]
        return maps


class PatchEmbed(nn.Module):
    """One cell per 4 × 4 pixels: images [B,3,H,W] -> [B,ceil(H/4),ceil(W/4),C]."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = self.proj(F.pad(images, (0, -width % 4, 0, -height % 4)))  # [B,C,h,w]
        return self.norm(x.permute(0, 2, 3, 1))  # [B,h,w,C]


class SwinStage(nn.Module):
    """Blocks on one grid [B,h,w,C], every second one with shifted windows."""

    def __init__(
        self, width: int, num_heads: int, window_size: int, rates: list[float], last: bool
    ):
        super().__init__()
        self.window_size, self.shift = window_size, window_size // 2
        self.blocks = nn.ModuleList(
            SwinBlock(width, num_heads, window_size, self.shift if i % 2 else 0, rate)
            for i, rate in enumerate(rates)
        )
        self.downsample = nn.Identity() if last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        mask = shift_mask(*x.shape[1:3], self.window_size, self.shift, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm and with a residual."""

    def __init__(self, width: int, num_heads: int, window_size: int, shift: int, rate: float):
        super().__init__()
        self.window_size, self.shift = window_size, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, window_size)
        self.norm2 = nn.LayerNorm(width)
        fc1, fc2 = TruncatedLinear(width, 4 * width), TruncatedLinear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.drop_path = StochasticDepth(rate, "row")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask`: of `shift_mask`. Padded cells are zero but not masked: the published rule."""
        windows = to_windows(self.norm1(x), self.window_size, self.shift)
        windows = self.attn(windows, mask if self.shift else None)  # [B,n,N,C]
        mixed = from_windows(windows, self.window_size, self.shift, *x.shape[1:3])
        x = x + self.drop_path(mixed)  # [B,h,w,C]
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per head and relative position."""

    no_weight_decay = ("relative_position_bias_table",)

    def __init__(self, width: int, num_heads: int, window_size: int):
        super().__init__()
        require_heads(width, num_heads)
        self.num_heads = num_heads
        rows = (2 * window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))
        index = relative_index(window_size)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = TruncatedLinear(width, 3 * width)
        self.proj = TruncatedLinear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """n windows of N cells each, [B,n,N,C] -> [B,n,N,C]; `mask` [n,N,N] is added to logits."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B,n,N,3,heads,d]
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # [B,n,heads,N,d]
        # An embedding: the backward of plain indexing adds in an order that varies on a CPU.
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)
        bias = bias.permute(2, 0, 1)  # [heads,N,N]
        if mask is not None:
            bias = bias + mask[:, None]  # [n,heads,N,N]
        # The fused backward is not deterministic on every device. Exported, it splits the graph.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            mixed = attend(q, k, v, q.shape[-1] ** -0.5, bias)
        else:
            bias = bias.expand(*q.shape[:3], -1, -1)
            flat = (x.flatten(0, 1) for x in (q, k, v, bias))  # the kernel takes 4 dimensions
            mixed = F.scaled_dot_product_attention(*flat).unflatten(0, q.shape[:2])
        return self.proj(mixed.transpose(2, 3).flatten(3))  # [B,n,N,C]


class PatchMerging(nn.Module):
    """Four neighbouring cells become one: [B,h,w,C] -> [B,ceil(h/2),ceil(w/2),2C]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = TruncatedLinear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))  # 4C -> 2C


class TruncatedLinear(nn.Linear):
    """A linear layer with the paper's start: truncated normal of deviation 0.02, zero bias."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """[B,h,w,C] with zeros at the right and bottom, up to multiples of `size`."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % size, 0, -height % size))


def to_windows(x: Tensor, size: int, shift: int = 0) -> Tensor:
    """[B,h,w,C], padded and rolled -> [B,n,N,C]: n windows of N = size² cells, both row by row."""
    x = pad_to_multiple(x, size)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # [B,rows,size,columns,size,C]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(x: Tensor, size: int, shift: int, height: int, width: int) -> Tensor:
    """The inverse: [B,n,N,C] -> [B,h,w,C]."""
    x = x.unflatten(2, (size, size)).unflatten(1, (-(-height // size), -(-width // size)))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width]


def relative_index(size: int) -> Tensor:
    """Row of the bias table for each pair of cells of a window, by (dy, dx): int64 [N,N]."""
    y, x = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    dy, dx = y[:, None] - y + size - 1, x[:, None] - x + size - 1
    return dy * (2 * size - 1) + dx


def shift_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Separates cells that only the rolling of a map h × w made neighbours: [n,N,N].

    The last `shift` rows and columns of a rolled map come from its other end. Logits between the
    two sides of such a seam get -100, the published value, all others 0.
    """
    rows = torch.arange(height + -height % size, device=device)
    columns = torch.arange(width + -width % size, device=device)
    below, right = rows >= len(rows) - shift, columns >= len(columns) - shift
    part = 2 * below[:, None] + right.int()  # [h',w']
    part = to_windows(part[None, ..., None], size).flatten(2)[0]  # [n,N]
    return -100.0 * (part[:, :, None] != part[:, None])


# 27.52, 48.84, 86.88 and 195.20 M parameters.
swin_tiny = SwinTransformer
swin_small = partial(swin_tiny, depths=(2, 2, 18, 2))
swin_base = partial(swin_small, embed_dim=128, num_heads=(4, 8, 16, 32), window_size=12)
swin_large = partial(swin_small, embed_dim=192, num_heads=(6, 12, 24, 48), window_size=12)
