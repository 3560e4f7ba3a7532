"""Multi-scale deformable attention (Deformable DETR, ICLR 2021) without a compiled operator.

A bilinear sample is a weighted sum of four cells, so a weighted sum of samples is a weighted sum of
rows of a table: `F.embedding_bag`, which does not store the samples. For one layer of width 256 at
640 × 640 on one CPU thread, forward + backward take 39 + 206 ms; with embedding_bag's own gradient
54 + 408, with grid_sample per level 250 + 578.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mobileinst.layers.device import to_device

Sizes = list[tuple[int, int]]  # (height, width) of each level

BORDER = 2  # zero cells around each level, so that four cells beyond the border are all zero


def deformable_attention(values: Tensor, sizes: Sizes, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples; beyond its border a level is zero.

    values [B,S,heads,d]: the cells of all levels, row by row. places [B,N,2,heads,L,points]: x and
    y in cells of their level, whose first has its centre at 0. weights [B,N,heads,L,points].
    -> [B,N,heads·d]
    """
    heads = values.shape[2]
    canvas = lay_out(values.flatten(2), sizes)  # [B,rows,columns,heads·d]
    cells = places.detach().floor()
    corners = table_rows(cells, sizes, canvas).flatten(0, 2).flatten(1)  # [B·N·heads,L·points]
    # The fraction of x and y, not a distance to a corner: it has a slope at whole numbers too.
    x, y = (places - cells).unbind(2)  # [B,N,heads,L,points]
    lower = weights * y
    upper = weights - lower
    upper_right, lower_right = upper * x, lower * x
    four = (upper - upper_right, upper_right, lower - lower_right, lower_right)
    four = torch.stack([part.flatten(0, 2).flatten(1) for part in four], 1)  # [·,4,L·points]
    down = heads * canvas.shape[2]
    steps = (0, heads, down, down + heads)  # from the first corner to each of the four
    offsets = to_device(torch.tensor(steps, dtype=corners.dtype), corners.device)
    offsets = offsets[:, None].repeat(1, corners.shape[1])  # a sum with [4,1] takes 4 times as long
    rows = (corners[:, None] + offsets).flatten(1)  # [·,4·L·points]
    table = canvas.view(-1, values.shape[3])  # [B·rows·columns·heads,d]
    if torch.compiler.is_exporting():  # no runtime has an embedding bag
        samples = table.index_select(0, rows.flatten()).unflatten(0, (len(rows), -1))
        sums = four.flatten(1)[:, None] @ samples  # [B·N·heads,1,d]
        return sums.view(*weights.shape[:2], -1)
    sums = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=four.flatten(1))
    sums = TableGradient.apply(sums, table, corners, steps, four.detach())  # [B·N·heads,d]
    return sums.view(*weights.shape[:2], -1)


def lay_out(values: Tensor, sizes: Sizes) -> Tensor:
    """Levels below each other on one canvas, zeros around each: [B,S,C] -> [B,rows,columns,C]."""
    widest = max(width for _, width in sizes)
    levels = []
    for level, (h, w) in zip(values.split([h * w for h, w in sizes], 1), sizes):
        border = (0, 0, BORDER, BORDER + widest - w, BORDER, BORDER)
        levels.append(F.pad(level.unflatten(1, (h, w)), border))
    return torch.cat(levels, 1)


def table_rows(cells: Tensor, sizes: Sizes, canvas: Tensor) -> Tensor:
    """Index of each cell in a table with a row per cell of the canvas and head.

    cells [B,N,2,heads,L,points], canvas [B,rows,columns,·] -> int32 [B,N,heads,L,points]. A place
    beyond the border, or NaN, gets a row of the border.
    """
    batch, _, _, *shape = cells.shape
    heads, (rows, columns) = shape[0], canvas.shape[1:3]

    def integers(numbers: Iterable[int]) -> Tensor:
        return to_device(torch.tensor([*numbers], dtype=torch.int32), cells.device)

    # Expanded to full size: loops over short dimensions would cost more than all the rest.
    last = torch.stack((integers(w for _, w in sizes), integers(h for h, _ in sizes)))  # [2,L]
    last = last[:, None, :, None].expand(2, *shape).contiguous()
    x, y = cells.to(torch.int32).clamp(torch.full_like(last, -BORDER), last).unbind(2)
    tops = accumulate((h + 2 * BORDER for h, _ in sizes[:-1]), initial=BORDER)
    origins = integers(top * columns + BORDER for top in tops)[:, None] * heads
    origins = (origins + integers(range(heads))[:, None, None]).expand(shape).contiguous()
    images = integers(range(batch)).view(-1, 1, 1, 1, 1) * (rows * columns * heads)
    return torch.add(origins + images, x.add(y, alpha=columns), alpha=heads)


class TableGradient(torch.autograd.Function):
    """Passes sums [n,d] on, and computes the gradient of their table [R,d].

    sums[n] = sum of weights[n,s,k] · table[corners[n,k] + steps[s]] over s and k. The first corners
    are sorted, after which the gradient is again a sum of rows, per step. The sort is stable and
    nothing is added by atomics, so the bits are the same each time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        table: Tensor,
        corners: Tensor,
        steps: tuple[int, ...],
        weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(corners, weights)
        ctx.rows, ctx.steps = table.shape[0], steps
        return sums.view_as(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        corners, weights = ctx.saved_tensors
        grad = grad.contiguous()
        rows, order = corners.flatten().sort(stable=True)
        numbers = torch.arange(ctx.rows, dtype=rows.dtype, device=rows.device)
        starts = torch.searchsorted(rows, numbers, out_int32=True)
        sums = (order // corners.shape[1]).to(rows.dtype)
        table_grad = torch.zeros(ctx.rows, grad.shape[1], dtype=grad.dtype, device=grad.device)
        for i, step in enumerate(ctx.steps):
            weight = weights[:, i].flatten().index_select(0, order)
            part = F.embedding_bag(sums, grad, starts, mode="sum", per_sample_weights=weight)
            table_grad[step:] += part[: ctx.rows - step]
        return grad, table_grad, None, None, None
