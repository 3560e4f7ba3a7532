"""The transformer decoder with masked attention (Mask2Former, CVPR 2022, section 3.2).

Learned queries read the maps of the pixel decoder, coarse to fine, repeatedly, each only inside
its own last mask. Parameter names are those of the published checkpoints.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.attention import StackedAttention
from mobileinst.layers.conv import resize_like
from mobileinst.layers.init import init_linear
from mobileinst.layers.position import detr_position


class QueryDecoder(nn.Module):
    """Maps of several levels and mask features -> classes and masks, one of each per query.

    in_channels: of the maps; they are projected if that is not `width`. mask_dim: channels of the
    mask features and kernels. num_classes: K; the class logits have one more, the last, for "no
    object". num_layers: of masked attention to one level, self-attention, feed-forward; layer i
    reads map i mod `levels`.
    """

    def __init__(
        self,
        in_channels: int,
        mask_dim: int,
        num_classes: int,
        num_queries: int = 100,
        width: int = 256,
        num_heads: int = 8,
        ffn_width: int = 2048,
        num_layers: int = 9,
        levels: int = 3,
    ):
        super().__init__()
        self.in_channels, self.mask_dim = in_channels, mask_dim
        self.num_classes, self.num_queries = num_classes, num_queries
        self.query_feat = nn.Embedding(num_queries, width)
        self.query_embed = nn.Embedding(num_queries, width)
        self.level_embed = nn.Embedding(levels, width)
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == width else LevelProjection(in_channels, width)
            for _ in range(levels)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(width, num_heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(width, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(width, ffn_width) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.mask_embed = MaskEmbed(width, width, width, mask_dim)

    def forward(
        self, maps: list[Tensor], mask_features: Tensor, queries: Tensor | None = None
    ) -> dict[str, Any]:
        """Maps [B,in_channels,·,·] and mask features [B,D,h,w] -> dict of outputs.

        class_logits [B,Q,K+1], queries [B,Q,C] (normalised), kernels [B,Q,D], and aux: while
        training, a list with the same for the start values and after every layer but the last.
        `queries` [B,Q,C], such as those of another frame, replace the learned ones.
        """
        if queries is None:
            queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)  # [B,Q,C]
        positions = self.query_embed.weight  # [Q,C]
        memories = [self.memory(level, x) for level, x in enumerate(maps)]
        # A mask is linear in the mask features: resized once, they give the masks of all layers on
        # the grid of a level, and evaluation makes no full mask but the last.
        small = [resize_like(mask_features.detach(), x).flatten(2) for x in maps]  # [B,D,M] each
        predictions = [self.predict(queries)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
        )
        for i, (cross_attention, self_attention, ffn) in enumerate(layers):
            level = i % len(maps)
            bias = attention_bias(predictions[-1]["kernels"], small[level])  # [B,1,Q,M]
            queries = cross_attention(queries, positions, *memories[level], bias)
            queries = ffn(self_attention(queries, positions))  # [B,Q,C]
            predictions.append(self.predict(queries))
        *aux, outputs = predictions if self.training else predictions[-1:]
        return outputs | {"aux": aux}

    def memory(self, level: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """One map [B,in_channels,h,w] as keys and values, both [B,M,C]; only keys get positions."""
        tokens = self.input_proj[level](x).flatten(2).transpose(1, 2)  # [B,M,C]
        tokens = tokens + self.level_embed.weight[level]
        positions = detr_position(*x.shape[-2:], tokens.shape[-1], device=x.device)
        return tokens + positions.to(tokens.dtype), tokens

    def predict(self, queries: Tensor) -> dict[str, Tensor]:
        """The heads, shared by all layers."""
        queries = self.decoder_norm(queries)  # [B,Q,C]
        return {
            "class_logits": self.class_embed(queries),  # [B,Q,K+1]
            "kernels": self.mask_embed(queries),  # [B,Q,D]
            "queries": queries,
        }


@torch.no_grad()
def attention_bias(kernels: Tensor, mask_features: Tensor) -> Tensor:
    """0 inside the last mask, -inf outside, 0 if it is empty: [B,Q,D], [B,D,M] -> [B,1,Q,M]."""
    logits = kernels @ mask_features  # [B,Q,M]
    hidden = logits < 0
    hidden &= ~hidden.all(-1, keepdim=True)
    return torch.zeros_like(logits).masked_fill(hidden, -torch.inf)[:, None]


class CrossAttentionLayer(nn.Module):
    """Queries attend to a memory; residual, then norm. Positions are added to the queries."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.multihead_attn = StackedAttention(width, num_heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        """[B,Q,C], [Q,C], [B,M,C], [B,M,C], [B,1,Q,M] -> [B,Q,C]."""
        return self.norm(queries + self.multihead_attn(queries + positions, keys, values, bias))


class SelfAttentionLayer(nn.Module):
    """Queries attend to each other; residual, then norm. Positions go to queries and keys."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.self_attn = StackedAttention(width, num_heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        """[B,Q,C], [Q,C] -> [B,Q,C]."""
        look = queries + positions  # [B,Q,C]
        return self.norm(queries + self.self_attn(look, look, queries))


class FeedForwardLayer(nn.Module):
    """C -> hidden -> C with a ReLU between; residual, then norm."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.linear1, self.linear2):  # biases start as torch has them
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries: Tensor) -> Tensor:
        hidden = F.relu(self.linear1(queries))  # [B,Q,hidden]
        return self.norm(queries + self.linear2(hidden))  # [B,Q,C]


class MaskEmbed(nn.Module):
    """Linear layers with ReLU between, from queries to kernels."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))  # [B,Q,C]
        return self.layers[-1](x)  # [B,Q,D]


class LevelProjection(nn.Conv2d):
    """A 1×1 convolution for maps of another width; Xavier-uniform, zero bias."""

    def __init__(self, in_channels: int, width: int):
        super().__init__(in_channels, width, 1)

    def reset_parameters(self) -> None:
        init_linear(self)
