"""Random points of an image, and the values of maps and masks there (Mask2Former, section 3.3).

A point is (x, y) over 0..1 of the padded image, so the same points serve grids of any size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileinst.layers.seeds import named_seed


class SeededPoints:
    """Uniform points as a function of (seed, step, layer, image, purpose) only.

    So neither the split of a batch, nor other random numbers, nor the device change a point. Any
    object with this method can be handed to a criterion.
    """

    def __init__(self, seed: int = 0, step: int = 0):
        self.seed, self.step = seed, step

    def draw(self, layer: str, image_id: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Draws numbers in 0..1: float32 on the CPU.

        Args:
            layer: name of the output that is supervised, "" for the last one.
            purpose: use of the points; those for two purposes are independent.
        """
        seed = named_seed(self.seed, self.step, layer, image_id, purpose)
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(shape, generator=generator)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Samples each map at its own points, bilinear, zero beyond the border.

    [M,h,w], [M,P,2] -> [M,P]. Gradients flow to the maps, not to the points.
    """
    return PointSampling.apply(maps, points)


def sample_shared_points(maps: Tensor, points: Tensor) -> Tensor:
    """Samples all maps at the same points: [N,h,w], [P,2] -> [N,P]."""
    return sample_bilinear(maps[None], points[None, None])[0, :, 0]


class PointSampling(torch.autograd.Function):
    """`grid_sample` with another backward, because that of CUDA has no deterministic form.

    `scatter_add` has one, under `torch.use_deterministic_algorithms`. Only the points are saved for
    it: computing corners and shares again is cheaper than storing them for ten outputs.
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


def sample_bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """[B,C,h,w], [B,·,P,2] -> [B,C,·,P]."""
    return F.grid_sample(maps, 2 * points - 1, mode="bilinear", align_corners=False)


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields index in the flattened grid and share of the four cells around each point.

    [...,2] -> 4 × 2 × [...]. The shares of cells beyond the border are zero.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            yield index.long(), across * down * inside
