"""The pixel decoder of Mask2Former (CVPR 2022, section 3.2.2): layers of multi-scale deformable
attention (Deformable DETR, ICLR 2021) over the strides 32, 16, 8, and a step down to stride 4.

Parameter names are those of the published checkpoints (`sem_seg_head.pixel_decoder.*`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.conv import resize_like
from mobileinst.layers.device import to_device, without_autocast
from mobileinst.layers.init import init_linear
from mobileinst.layers.position import detr_position
from mobileinst.mask2former.deformable import Sizes, deformable_attention

# Tokens of an image that pass the MLP at a time, so that they stay in a cache. With 8400 of width
# 256 it saves a tenth of the time of the MLP on a CPU, and a fifth in training.
PART = 1024


class PixelDecoder(nn.Module):
    """Backbone maps at the strides 4, 8, 16, 32 -> three maps for the queries, and mask features.

    width, mask_dim: channels of the three maps, at strides 32, 16, 8, and of the mask features.
    num_layers, num_heads, points (per head and level), ffn_width: of the encoder.

    Raises:
        ValueError: if `width` is not a multiple of 4 and of `num_heads`.
    """

    def __init__(
        self,
        in_channels: tuple[int, int, int, int],
        width: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        points: int = 4,
        ffn_width: int = 1024,
    ):
        super().__init__()
        if width % 4 or width % num_heads:
            raise ValueError(f"width {width} is not a multiple of 4 and of {num_heads} heads")
        self.in_channels = tuple(in_channels)
        self.width = width
        self.mask_dim = mask_dim
        finest, *coarse = self.in_channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), group_norm(width))
            for channels in reversed(coarse)
        )
        self.transformer = DeformableEncoder(
            width, len(coarse), num_layers, num_heads, points, ffn_width
        )
        self.adapter_1 = ConvGN(finest, width)
        self.layer_1 = ConvGN(width, width, 3)
        self.mask_features = nn.Conv2d(width, mask_dim, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv, _ in self.input_proj:
            init_linear(conv)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps [B,C_i,h_i,w_i], finest first -> maps [B,width,h_i,w_i] at strides 32, 16, 8, and
        mask features [B,mask_dim,h,w] at stride 4.

        Computes in the type of its parameters also under autocast, as the official code does. Maps
        are channels last, our choice: on a CPU, group norm takes a third of the time so. ExecuTorch
        has no group norm of such maps.
        """
        dtype = self.mask_features.weight.dtype
        exporting = torch.compiler.is_exporting()
        layout = torch.preserve_format if exporting else torch.channels_last
        with without_autocast(maps[0].device.type):
            finest, *coarse = (x.to(dtype, memory_format=layout) for x in maps)
            coarse = zip(self.input_proj, reversed(coarse), strict=True)
            maps = self.transformer([project(x) for project, x in coarse])  # [B,width,h_i,w_i] each
            x = self.adapter_1(finest)  # [B,width,h,w]
            x = self.layer_1(x + resize_like(maps[-1], x)).relu_()
            return maps, self.mask_features(x)  # [B,mask_dim,h,w]


def group_norm(width: int) -> nn.GroupNorm:
    """32 groups as published, or 4 if the width is no multiple of 32."""
    return nn.GroupNorm(4 if width % 32 else 32, width)


class ConvGN(nn.Conv2d):
    """Convolution without bias, then group norm; the grid stays."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1):
        super().__init__(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = group_norm(channels)

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class DeformableEncoder(nn.Module):
    """Cells attend to a few sampled points on all levels: maps [B,C,h_i,w_i] -> same shapes."""

    no_weight_decay = ("level_embed",)

    def __init__(
        self, width: int, levels: int, num_layers: int, num_heads: int, points: int, ffn_width: int
    ):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, width))
        stack = (
            EncoderLayer(width, levels, num_heads, points, ffn_width) for _ in range(num_layers)
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(stack)})  # published names
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sizes = [tuple(x.shape[-2:]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # [B,N,C]
        codes = [detr_position(*size, tokens.shape[2], tokens.device).to(tokens) for size in sizes]
        positions = torch.cat([c + e for c, e in zip(codes, self.level_embed)])  # [N,C]
        centres = reference_points(sizes, tokens)  # [N,2,L]
        for layer in self.encoder["layers"]:
            tokens = layer(tokens, positions, centres, sizes)  # [B,N,C]
        levels = tokens.split([h * w for h, w in sizes], 1)
        return [x.unflatten(1, size).permute(0, 3, 1, 2) for x, size in zip(levels, sizes)]


def reference_points(sizes: Sizes, like: Tensor) -> Tensor:
    """Centres of all cells, as x and y on every level, in its cells, the first at 0: [N,2,L]."""
    extent = to_device(torch.tensor([(w, h) for h, w in sizes]), like.device).T.to(like)  # [2,L]
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, device=like.device).to(like) + 0.5) / height
        x = (torch.arange(width, device=like.device).to(like) + 0.5) / width
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), 2)
        centres.append(grid.view(-1, 2, 1) * extent - 0.5)  # [h·w,2,L]
    return torch.cat(centres)


class EncoderLayer(nn.Module):
    """Deformable self-attention and an MLP, a LayerNorm after each residual."""

    def __init__(self, width: int, levels: int, num_heads: int, points: int, ffn_width: int):
        super().__init__()
        self.self_attn = DeformableAttention(width, levels, num_heads, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.norm2 = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, positions: Tensor, centres: Tensor, sizes: Sizes) -> Tensor:
        mixed = self.self_attn(tokens + positions, tokens, centres, sizes)
        tokens = self.norm1(tokens + mixed)  # [B,N,C]
        parts = [
            self.norm2(x + self.linear2(self.linear1(x).relu_())) for x in tokens.split(PART, 1)
        ]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class DeformableAttention(nn.Module):
    """Weighted mean of `points` samples per head and level; offsets and weights from the query."""

    def __init__(self, width: int, levels: int, num_heads: int, points: int):
        super().__init__()
        self.shape = (num_heads, levels, points)
        samples = num_heads * levels * points
        self.sampling_offsets = nn.Linear(width, 2 * samples)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every head begins with its own direction, at 1, 2, 3 … cells."""
        for linear in (self.value_proj, self.output_proj):
            init_linear(linear)
        for zero in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zero)
        num_heads, _, points = self.shape
        angles = 2 * math.pi / num_heads * torch.arange(num_heads)
        rays = torch.stack((angles.cos(), angles.sin()), 1)
        rays = rays / rays.abs().amax(1, keepdim=True)  # to the border of the square around 0
        steps = torch.arange(1, points + 1)[:, None]
        bias = self.sampling_offsets.bias.detach().view(*self.shape, 2)
        bias.copy_(rays[:, None, None] * steps)

    def forward(self, queries: Tensor, tokens: Tensor, centres: Tensor, sizes: Sizes) -> Tensor:
        """Queries and tokens [B,N,C], `centres` [N,2,L] of the queries' cells -> [B,N,C]."""
        num_heads, levels, points = self.shape
        values = self.value_proj(tokens).unflatten(2, (num_heads, -1))  # [B,N,heads,C/heads]
        weights = self.attention_weights(queries).unflatten(2, (num_heads, -1)).softmax(-1)
        weights = weights.unflatten(3, (levels, points))  # [B,N,heads,L,points]
        # Rows for x and y alternate; all x, then all y, moves weights instead of the result.
        rows = (torch.cat((p[::2], p[1::2])) for p in self.sampling_offsets.parameters())
        offsets = F.linear(queries, *rows)
        centres = centres[:, :, None, :, None].expand(-1, -1, num_heads, -1, points)
        places = (offsets + centres.flatten(1)).unflatten(2, (2, *self.shape))
        return self.output_proj(deformable_attention(values, sizes, places, weights))
