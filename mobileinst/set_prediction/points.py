"""Random points of an image, and the values of maps and masks there (Mask2Former, section 3.3).

A point is (x, y) over 0..1 of the padded image, so the same points serve grids of any size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileinst.layers.seeds import named_seed


@dataclass(frozen=True)
class SeededPoints:
    """Uniform points as a function of (seed, step, layer, image, purpose) only.

    So neither the split of a batch, nor other random numbers, nor the device change a point. Any
    object with this method can be given to a criterion.
    """

    seed: int = 0
    step: int = 0

    def draw(self, layer: str, image_id: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Numbers in 0..1, float32 on the CPU; `layer` is "" for the last output."""
        seed = named_seed(self.seed, self.step, layer, image_id, purpose)
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(shape, generator=generator)


def sample_bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """[B,C,h,w], [B,·,P,2] -> [B,C,·,P]; zero beyond the border."""
    return F.grid_sample(maps, 2 * points - 1, mode="bilinear", align_corners=False)


def sample_shared_points(maps: Tensor, points: Tensor) -> Tensor:
    """Samples all maps at the same points: [N,h,w], [P,2] -> [N,P]."""
    return sample_bilinear(maps[None], points[None, None])[0, :, 0]


class PointSampling(torch.autograd.Function):
    """Samples each map at its own points: [M,h,w], [M,P,2] -> [M,P]. Points get no gradient.

    `grid_sample` with another backward, because that of CUDA has no deterministic form;
    `scatter_add` has one. Only the points are saved for it: computing corners and shares again is
    cheaper than storing them for ten outputs.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(points)
        ctx.grid = maps.shape[-2:]
        return sample_bilinear(maps[:, None], points[:, None])[:, 0, 0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        height, width = ctx.grid
        flat = gradient.new_zeros(len(points), height * width)  # [M,h·w]
        for index, share in corners(points, height, width):
            flat.scatter_add_(1, index, gradient * share)
        return flat.unflatten(1, (height, width)), None


sample_points = PointSampling.apply


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Index in the flattened grid and share of the four cells around each point: 4 × 2 × [...].

    The shares of cells beyond the border are zero.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            yield index.long(), across * down * inside
