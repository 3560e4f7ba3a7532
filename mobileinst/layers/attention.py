"""Attention and the other modules of a transformer block."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.init import init_linear


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale · q kᵀ + bias) v: [...,N,d], [...,M,d], [...,M,e], [...,N,M] -> [...,N,e].

    Written out, with the softmax in float32 also under autocast, because the fused kernels
    have no deterministic backward everywhere and a product of matrices exports to any runtime.
    """
    logits = (q * scale) @ k.transpose(-2, -1)  # [...,N,M]
    if bias is not None:
        logits = logits + bias
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(precise).softmax(-1).to(v.dtype) @ v  # [...,N,e]


def attend_in_heads(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """`attend` in heads that share the channels: [B,N,C], [B,M,C] twice -> [B,N,C]."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B,heads,·,d]
    return attend(q, k, v, q.shape[-1] ** -0.5, bias).transpose(1, 2).flatten(2)  # [B,N,C]


def require_heads(width: int, num_heads: int) -> None:
    """Checks that the heads divide the channels, raises ValueError."""
    if width % num_heads:
        raise ValueError(f"width {width} is not a multiple of {num_heads} heads")


class MultiHeadAttention(nn.Module):
    """Attention of [B,N,C] to [B,M,C] in heads; keys without bias, which softmax cancels."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        require_heads(width, num_heads)
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.to_q, self.to_k, self.to_v, self.proj):
            init_linear(linear)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """`bias` [B,1,N,M] is added to the logits of every head."""
        q, k, v = self.to_q(queries), self.to_k(keys), self.to_v(values)  # [B,N,C], [B,M,C] twice
        return self.proj(attend_in_heads(q, k, v, self.num_heads, bias))  # [B,N,C]


class StackedAttention(nn.Module):
    """The same with the parameters of `nn.MultiheadAttention`: q, k and v in one matrix."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        require_heads(width, num_heads)
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        init_linear(self.out_proj)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """`bias` [B,1,N,M] is added to the logits of every head."""
        parameters = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3))
        q, k, v = map(F.linear, (queries, keys, values), *zip(*parameters))
        return self.out_proj(attend_in_heads(q, k, v, self.num_heads, bias))  # [B,N,C]


class MLP(nn.Sequential):
    """Linear layers with ReLU between them, from width to width."""

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for in_width, width in pairwise(widths):
            layers += [nn.Linear(in_width, width), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                init_linear(layer)
