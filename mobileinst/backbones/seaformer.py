"""SeaFormer (ICLR 2023): a pyramid of inverted residuals whose coarse stages are each followed by
an axial transformer that feeds the next stage.

Parameter names are those of the published checkpoints (`smb*`, `trans*`). The official backbone
for segmentation returns fewer maps; here each stage gives one, for the decoders of MobileInst.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.conv import ConvBN, Pyramid, Rows
from mobileinst.layers.conv_transformer import attend_on_map, transformer
from mobileinst.layers.pixels import IMAGENET_MEAN, IMAGENET_STD

# The rows of the stages smb1 .. smb5.
TINY = (
    ((3, 1, 16, 1), (3, 4, 16, 2), (3, 3, 16, 1)), ((5, 3, 32, 2), (5, 3, 32, 1)),
    ((3, 3, 64, 2), (3, 3, 64, 1)), ((5, 3, 128, 2),), ((3, 6, 160, 2),),
)  # fmt: skip
SMALL = (
    ((3, 1, 16, 1), (3, 4, 24, 2), (3, 3, 24, 1)), ((5, 3, 48, 2), (5, 3, 48, 1)),
    ((3, 3, 96, 2), (3, 3, 96, 1)), ((5, 4, 160, 2),), ((3, 6, 192, 2),),
)  # fmt: skip
BASE = (
    ((3, 1, 16, 1), (3, 4, 32, 2), (3, 3, 32, 1)), ((5, 3, 64, 2), (5, 3, 64, 1)),
    ((3, 3, 128, 2), (3, 3, 128, 1)), ((5, 4, 192, 2),), ((3, 6, 256, 2),),
)  # fmt: skip
LARGE = (
    ((3, 3, 32, 1), (3, 4, 64, 2), (3, 4, 64, 1)), ((5, 4, 128, 2), (5, 4, 128, 1)),
    ((3, 4, 192, 2), (3, 4, 192, 1)), ((5, 4, 256, 2),), ((3, 6, 320, 2),),
)  # fmt: skip


class SeaFormer(nn.Module):
    """Normalised images [B,3,H,W] -> one map per stage, at 1/4, 1/8, 1/16, 1/32 and 1/64.

    stages: the rows of every stage. stem: channels of the stem. A transformer of `depth` blocks
    follows each of the last stages, one for each of `key_dims` and `mlp_ratios`; its output is the
    map of the stage. Drop path rises from 0 to `drop_path` in each transformer.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        stages: tuple[Rows, ...] = TINY,
        stem: int = 16,
        depth: int = 2,
        num_heads: int = 4,
        key_dims: tuple[int, ...] = (16, 24),
        attn_ratio: int = 2,
        mlp_ratios: tuple[int, ...] = (2, 4),
        drop_path: float = 0.1,
    ):
        super().__init__()
        sizes = [(stem, 1)]
        for i, rows in enumerate(stages, 1):
            stage = Pyramid(*sizes[-1], rows, stem="stem_block" if i == 1 else "")
            self.add_module(f"smb{i}", stage)
            sizes.append(stage.sizes[-1])
        self.channels, self.strides = zip(*sizes[1:])
        self.plain = len(stages) - len(key_dims)  # stages without a transformer
        parts = zip(self.channels[self.plain :], key_dims, mlp_ratios, strict=True)
        for i, (width, key_dim, mlp_ratio) in enumerate(parts, 1):
            attentions = [SeaAttention(width, num_heads, key_dim, attn_ratio) for _ in range(depth)]
            self.add_module(f"trans{i}", transformer(attentions, width, mlp_ratio, drop_path))

    def layers_until(self, stride: int) -> list[nn.Module]:
        layers = []
        for i, total_stride in enumerate(self.strides, 1):
            layers += self.get_submodule(f"smb{i}").layers_until(stride)
            if i > self.plain and total_stride <= stride:
                layers.append(self.get_submodule(f"trans{i - self.plain}"))
        return layers

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = images, []
        for i in range(1, len(self.strides) + 1):
            x = self.get_submodule(f"smb{i}")(x)  # [B,C_i,H/s_i,W/s_i]
            if i > self.plain:
                x = self.get_submodule(f"trans{i - self.plain}")(x)
            maps.append(x)
        return maps  # /4, /8, /16, /32, /64


class SeaAttention(nn.Module):
    """Squeeze-enhanced axial attention: detail from convolutions, gated by the axes.

    Rows attend to rows by their means over the width, columns to columns by their means over the
    height. Both are added to the values at every cell and become a gate in 0..1 on a convolution
    of queries, keys and values. Unlike TopFormer's, the logits are scaled.
    """

    def __init__(self, width: int, num_heads: int, key_dim: int, attn_ratio: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = key_dim**-0.5
        keys, values = num_heads * key_dim, num_heads * key_dim * attn_ratio
        self.to_q = ConvBN(width, keys)
        self.to_k = ConvBN(width, keys)
        self.to_v = ConvBN(width, values)
        joint = 2 * keys + values
        self.dwconv = ConvBN(joint, joint, 3, groups=joint)
        self.act = nn.ReLU6()
        self.pwconv = ConvBN(joint, width)
        self.pos_emb_rowq = PositionEmbedding(keys)
        self.pos_emb_rowk = PositionEmbedding(keys)
        self.pos_emb_columnq = PositionEmbedding(keys)
        self.pos_emb_columnk = PositionEmbedding(keys)
        self.proj_encode_row = nn.Sequential(nn.ReLU6(), ConvBN(values, values))
        self.proj_encode_column = nn.Sequential(nn.ReLU6(), ConvBN(values, values))
        self.proj = nn.Sequential(nn.ReLU6(), ConvBN(values, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)  # [B,·,h,w]
        detail = self.pwconv(self.act(self.dwconv(torch.cat((q, k, v), 1))))  # [B,C,h,w]
        row_q, row_k = self.pos_emb_rowq(q.mean(3)), self.pos_emb_rowk(k.mean(3))  # [B,keys,h]
        rows = attend_on_map(row_q, row_k, v.mean(3), self.num_heads, self.scale)  # [B,values,h]
        column_q, column_k = self.pos_emb_columnq(q.mean(2)), self.pos_emb_columnk(k.mean(2))
        columns = attend_on_map(column_q, column_k, v.mean(2), self.num_heads, self.scale)
        rows = self.proj_encode_row(rows.unsqueeze(3))  # [B,values,h,1]
        columns = self.proj_encode_column(columns.unsqueeze(2))  # [B,values,1,w]
        return F.hardsigmoid(self.proj(v + rows + columns)) * detail  # [B,C,h,w]


class PositionEmbedding(nn.Module):
    """[B,C,n] plus a learned code of 16 positions, interpolated linearly to n."""

    no_weight_decay = ("pos_embed",)

    def __init__(self, channels: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, channels, 16))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.pos_embed)  # as torch starts its embeddings

    def forward(self, x: Tensor) -> Tensor:
        # As a map of one row: bilinear has a deterministic backward everywhere, linear has not.
        row, size = self.pos_embed[:, :, None], (1, x.shape[2])
        return x + F.interpolate(row, size, mode="bilinear", align_corners=False)[:, :, 0]


# 1.62, 3.91, 8.49 and 13.73 M parameters; 0.47, 0.88, 1.53 and 5.91 G multiply-adds at 512 × 512.
seaformer_tiny = SeaFormer
seaformer_small = partial(SeaFormer, SMALL, depth=3, num_heads=6)
seaformer_base = partial(SeaFormer, BASE, depth=4, num_heads=8)
seaformer_large = partial(
    SeaFormer, LARGE, stem=32, depth=3, num_heads=8, key_dims=(16, 20, 24), mlp_ratios=(2, 4, 6)
)
