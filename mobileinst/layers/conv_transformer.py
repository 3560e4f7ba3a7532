"""The transformer of mobile backbones: it works on maps, and its linear layers are convolutions."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mobileinst.layers.attention import attend
from mobileinst.layers.conv import ConvBN
from mobileinst.layers.init import init_conv


def transformer(
    attentions: list[nn.Module], width: int, mlp_ratio: int, drop_path: float
) -> nn.Sequential:
    """Blocks on one map [B,C,h,w]; drop path rises from 0 to `drop_path`. Published names."""
    rates = torch.linspace(0, drop_path, len(attentions), device="cpu").tolist()
    blocks = [Block(attn, width, mlp_ratio, rate) for attn, rate in zip(attentions, rates)]
    return nn.Sequential(OrderedDict(transformer_blocks=nn.Sequential(*blocks)))


class Block(nn.Module):
    """A given attention and an MLP with residuals and drop path; BatchNorms are inside both."""

    def __init__(self, attn: nn.Module, width: int, mlp_ratio: int, rate: float):
        super().__init__()
        self.attn = attn
        self.mlp = ConvMLP(width, mlp_ratio * width)
        self.drop_path = StochasticDepth(rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))  # [B,C,h,w]
        return x + self.drop_path(self.mlp(x))


class ConvMLP(nn.Sequential):
    """1×1 convolution, depth-wise 3×3 (with bias, without BatchNorm), ReLU6, 1×1 convolution."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = ConvBN(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.ReLU6(inplace=True)
        self.fc2 = ConvBN(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.dwconv)


def attend_on_map(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float) -> Tensor:
    """`attend` in heads over n cells, channels first: [B,keys,n] twice, [B,values,n] -> as v."""
    q, k, v = (x.unflatten(1, (num_heads, -1)).transpose(2, 3) for x in (q, k, v))  # [B,heads,n,·]
    return attend(q, k, v, scale).transpose(2, 3).flatten(1, 2)  # [B,values,n]
