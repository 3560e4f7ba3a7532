"""The instance context encoder (SparseInst, section 3.2): C3, C4, C5 -> one map at 1/8.

Sizes, order of the maps and start values are those of the published code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.conv import average_over, resize_like
from mobileinst.layers.init import init_caffe, init_fan_out

BINS = (1, 2, 3, 6)  # of the pyramid pooling, per side


class PyramidPooling(nn.Module):
    """Adds what the whole image holds to every cell: [B,D,h,w] -> [B,D,h,w]."""

    def __init__(self, width: int):
        super().__init__()
        narrow = max(1, width // 4)
        self.stages = nn.ModuleList(
            nn.Sequential(AverageOver(bins), nn.Conv2d(width, narrow, 1)) for bins in BINS
        )
        self.bottleneck = nn.Conv2d(len(BINS) * narrow + width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [resize_like(stage(x).relu(), x) for stage in self.stages]  # [B,D/4,h,w] each
        return self.bottleneck(torch.cat((*pooled, x), 1)).relu()


class AverageOver(nn.Module):
    """Means of `bins` × `bins` parts of a map: [B,C,h,w] -> [B,C,bins,bins]."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        return average_over(x, (self.bins, self.bins))


class ContextEncoder(nn.Module):
    """Backbone maps at 1/8, 1/16, 1/32 -> features [B,D,h,w] at 1/8.

    A feature pyramid with pyramid pooling on its coarsest map, whose maps are fused at 1/8. Lists
    of modules go from coarse to fine, as in published files.

    in_channels: of C3, C4, C5. width: D.
    """

    def __init__(self, in_channels: tuple[int, ...], width: int = 256):
        super().__init__()
        self.in_channels, self.width = tuple(in_channels), width
        self.fpn_laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(in_channels))
        self.fpn_outputs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in self.in_channels
        )
        self.ppm = PyramidPooling(width)
        self.fusion = nn.Conv2d(len(self.in_channels) * width, width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (*self.fpn_laterals, *self.fpn_outputs):
            init_caffe(conv)
        init_fan_out(self.fusion)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """C3, C4, C5 [B,C_i,·,·] -> [B,D,H/8,W/8]."""
        coarse_to_fine = zip(reversed(maps), self.fpn_laterals, self.fpn_outputs, strict=True)
        below, outputs = None, []
        for x, lateral, output in coarse_to_fine:
            x = lateral(x)  # [B,D,·,·]
            # Nearest, to the exact grid of the finer map: by a factor of 2 on whole canvases.
            x = self.ppm(x) if below is None else x + F.interpolate(below, x.shape[-2:])
            below = x
            outputs.insert(0, output(x))
        fine = outputs[0]
        resized = [fine, *(resize_like(each, fine) for each in outputs[1:])]
        return self.fusion(torch.cat(resized, 1))
