"""The IAM-based decoder (SparseInst, section 3.3): activation maps pick the features of instances.

Sizes, order of the channels and start values are those of the published code.
"""

import math
from itertools import chain

import torch
from torch import Tensor, nn

from mobileinst.layers.device import without_autocast
from mobileinst.layers.init import init_caffe, init_fan_out

PRIOR = 0.01  # of activations and class probabilities at the start
EPSILON = 1e-6  # least sum of an activation map


class InstanceBranch(nn.Module):
    """Features [B,C,h,w] -> features of the instances, and what the heads make of them.

    A query is the mean of the features, weighted by its activation map. With groups, each query has
    as many maps (GIAM), and what they pick is joined by a layer.

    groups: maps of a query, each computed from a part of the channels; 0: one map and no layer that
    joins (IAM). softmax: over the cells, in place of a sigmoid and a division by its sum.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 256,
        kernel_dim: int = 128,
        num_queries: int = 100,
        groups: int = 4,
        softmax: bool = False,
        convs: int = 4,
    ):
        super().__init__()
        maps = max(1, groups)
        if width % maps:
            raise ValueError(f"groups is {groups}, which does not divide the width {width}")
        self.groups = maps
        self.inst_convs = conv_stack(in_channels, width, convs)
        self.iam_conv = nn.Conv2d(width, maps * num_queries, 3, padding=1, groups=maps)
        self.fc = nn.Linear(maps * width, maps * width) if groups else None
        self.cls_score = nn.Linear(maps * width, num_classes)
        self.mask_kernel = nn.Linear(maps * width, kernel_dim)
        self.objectness = nn.Linear(maps * width, 1)
        # Without effect, as softmax is invariant to shifts, but published files have it.
        self.softmax_bias = nn.Parameter(torch.zeros(1)) if softmax else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start_stack(self.inst_convs)
        if self.fc is not None:
            init_caffe(self.fc)
        for layer in (self.iam_conv, self.cls_score):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.normal_(self.mask_kernel.weight, std=0.01)
        nn.init.zeros_(self.mask_kernel.bias)
        if self.softmax_bias is not None:
            nn.init.zeros_(self.softmax_bias)

    def forward(self, features: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """[B,C,h,w] -> class_logits [B,Q,K], objectness [B,Q,1], kernels [B,Q,D] and queries
        [B,Q,G·C]; given the `queries` of another frame, the heads read those.
        """
        if queries is None:
            features = self.inst_convs(features)  # [B,C,h,w]
            queries = self.aggregate(self.iam_conv(features), features)
            if self.fc is not None:
                queries = self.fc(queries).relu()
        return {
            "class_logits": self.cls_score(queries),
            "objectness": self.objectness(queries),
            "kernels": self.mask_kernel(queries),
            "queries": queries,
        }

    def aggregate(self, activations: Tensor, features: Tensor) -> Tensor:
        """Means of the features, weighted by the activation maps: [B,G·Q,h,w], [B,C,h,w] ->
        [B,Q,G·C]. In float32, because sums over all cells overflow in half precision.
        """
        with without_autocast(features.device.type):
            maps, cells = (
                x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2)
                for x in (activations, features)
            )  # [B,G·Q,h·w], [B,C,h·w]
            if self.softmax_bias is not None:
                weights = (maps + self.softmax_bias).softmax(2)
            else:
                weights = maps.sigmoid()
                weights = weights / weights.sum(2, keepdim=True).clamp(min=EPSILON)
            picked = weights @ cells.transpose(1, 2)  # [B,G·Q,C]
        return picked.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(2)


class MaskBranch(nn.Module):
    """Features [B,C,h,w] -> pixel features [B,D,h,w]."""

    def __init__(self, in_channels: int, width: int = 256, kernel_dim: int = 128, convs: int = 4):
        super().__init__()
        self.mask_convs = conv_stack(in_channels, width, convs)
        self.projection = nn.Conv2d(width, kernel_dim, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start_stack(self.mask_convs)
        init_fan_out(self.projection)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.mask_convs(features))


class Decoder(nn.Module):
    """Both branches on features with coordinates; `in_channels` are those without coordinates."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 256,
        kernel_dim: int = 128,
        num_queries: int = 100,
        groups: int = 4,
        softmax: bool = False,
        convs: int = 4,
    ):
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        sizes = {"width": width, "kernel_dim": kernel_dim, "convs": convs}
        self.inst_branch = InstanceBranch(
            in_channels + 2, num_classes, **sizes, num_queries=num_queries, groups=groups,
            softmax=softmax,
        )  # fmt: skip
        self.mask_branch = MaskBranch(in_channels + 2, **sizes)


def conv_stack(in_channels: int, width: int, convs: int) -> nn.Sequential:
    """3×3 convolutions, a ReLU after each."""
    layers = (
        (nn.Conv2d(width if i else in_channels, width, 3, padding=1), nn.ReLU(inplace=True))
        for i in range(convs)
    )
    return nn.Sequential(*chain.from_iterable(layers))


def start_stack(stack: nn.Sequential) -> None:
    for layer in stack:
        if isinstance(layer, nn.Conv2d):
            init_fan_out(layer)
