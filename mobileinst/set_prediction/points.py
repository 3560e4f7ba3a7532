"""Random points of a picture, and what maps and masks hold there (Mask2Former, section 3.3).

A point is (x, y) over 0..1 of the padded picture, so the same points serve grids of any size.
"""

import zlib
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


class SeededPoints:
    """Uniform points as a function of (seed, step, layer, picture, purpose) and of nothing else.

    So how a batch is split, what else drew numbers, and the device change no point. Any object with
    this method can be handed to a criterion in its place.
    """

    def __init__(self, seed: int = 0, step: int = 0):
        self.seed, self.step = seed, step

    def draw(self, layer: str, picture: object, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """float32 on the CPU, in 0..1.

        Args:
            layer: which output is supervised, "" for the last one.
            picture: `image_id` of the target.
            purpose: what the points are for; those for two purposes have nothing in common.
        """
        name = f"{self.seed}/{self.step}/{layer}/{picture}/{purpose}"
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(shape, generator=generator)


def draw_points(target: dict, purpose: str, count: tuple[int, ...], like: Tensor) -> Tensor:
    """[*count,2] points for one picture, of the dtype and on the device of `like`.

    They come from the function under `draw` in the target, which a criterion puts there; a term
    that is called alone gets those of `SeededPoints()`.
    """
    draw = target.get("draw") or partial(SeededPoints().draw, "", target["image_id"])
    return draw(purpose, (*count, 2)).to(like)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Each map at its own points, bilinear, zero beyond the border: [M,h,w], [M,P,2] → [M,P].

    Gradients flow to the maps, not to the points.
    """
    return PointSampling.apply(maps, points)


def sample_shared_points(maps: Tensor, points: Tensor) -> Tensor:
    """All maps at the same points: [N,h,w], [P,2] → [N,P]."""
    if not len(maps):
        return points.new_zeros(0, len(points))
    return _sample(maps[None], points[None, None])[0, :, 0]


def valid_points(target: dict, points: Tensor) -> Tensor:
    """1 for points where a mask's value can be trusted, else 0: [M,P,2] → [M,P].

    A point counts unless one of the pixels that its bilinear value is made of is ignored. Padding
    counts as background, as it does in Mask2Former.
    """
    ignore = target["ignore"][None].to(points)
    return (
        (sample_shared_points(ignore, points.flatten(0, 1)) == 0).to(points).view(points.shape[:2])
    )


class PointSampling(torch.autograd.Function):
    """`grid_sample` with a backward of its own, because that of CUDA has no deterministic form.
    `scatter_add` has one, under torch.use_deterministic_algorithms; on a CPU it needs no asking.

    Only the points are kept for it: the corners and their shares are cheaper to compute again than
    to store for ten outputs.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(points)
        ctx.grid = maps.shape[-2:]
        if not len(maps):
            return points.new_zeros(points.shape[:2])
        return _sample(maps[:, None], points[:, None])[:, 0, 0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        height, width = ctx.grid
        flat = gradient.new_zeros(len(points), height * width)
        for index, share in corners(points, height, width):
            flat.scatter_add_(1, index, gradient * share)
        return flat.unflatten(1, (height, width)), None


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """[B,C,h,w], [B,·,P,2] → [B,C,·,P]."""
    return F.grid_sample(maps, 2 * points - 1, mode="bilinear", align_corners=False)


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four cells around each point: index in the flattened grid, and share; both [...].

    The shares of cells beyond the border are zero.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            yield index.long(), across * down * inside
