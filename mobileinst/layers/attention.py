"""Attention and the bricks that stand beside it in a transformer block."""

from itertools import pairwise

import torch
from torch import nn

from mobileinst.layers.init import init_linear


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ + bias) v over the last two dimensions.

    [...,N,d], [...,M,d], [...,M,e], bias [...,N,M] -> [...,N,e].

    Written out, with the softmax in float32 also under autocast, because the fused kernels
    have no deterministic backward everywhere and a product of matrices exports to any runtime.
    """
    logits = (queries * scale) @ keys.transpose(-2, -1)  # [...,N,M]
    if bias is not None:
        logits = logits + bias
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(-1, dtype=precise).to(values.dtype) @ values  # [...,N,e]


class MultiHeadAttention(nn.Module):
    """Attention of queries [B,N,C] to keys and values [B,M,C], `num_heads` heads; returns [B,N,C].

    The keys have no bias: it would add the same number to all logits of a query, which the softmax
    takes out again, so it could never receive a gradient.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
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
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`bias` [B,1,N,M] is added to the logits of every head."""
        q = self._split(self.to_q(queries))  # [B,heads,N,C/heads]
        k = self._split(self.to_k(keys))  # [B,heads,M,C/heads]
        v = self._split(self.to_v(values))  # [B,heads,M,C/heads]
        mixed = attend(q, k, v, q.shape[-1] ** -0.5, bias)  # [B,heads,N,C/heads]
        return self.proj(mixed.transpose(1, 2).flatten(2))  # [B,N,C]

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: `MLP(8, 32, 8)` goes 8 -> 32 -> 8."""

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


class DropPath(nn.Module):
    """Drops a residual branch for whole samples with probability `rate` while training.

    What stays is scaled by 1 / (1 - rate), so the expectation is that of evaluation.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
