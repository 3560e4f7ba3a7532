"""Positions of the cells of a grid: sine codes and coordinates."""

import math

import torch
from torch import Tensor
from torch.types import Device

# Our choice: the longest wave goes through half a period from border to border, the shortest
# through 16 periods, about three cells of a 54-cell row, the finest that attention sees here.
LOWEST, HIGHEST = math.pi / 2, 16 * math.pi


def cell_centres(count: int, device: Device = "cpu") -> Tensor:
    """Centres of `count` equal cells over -1..1: float32 [count]."""
    return (2 * torch.arange(count, device=device, dtype=torch.float32) + 1) / count - 1


def cell_corners(count: int, device: Device = "cpu") -> Tensor:
    """`count` positions over -1..1 with the first and last at the ends: float32 [count]."""
    last = count - 1
    return (2 * torch.arange(count, device=device, dtype=torch.float32) - last) / max(last, 1)


def coordinate_maps(
    height: int, width: int, device: Device = "cpu", corners: bool = False
) -> Tensor:
    """x and y of every cell in -1..1, at centres or `corners` (SparseInst): [1,2,height,width]."""
    places = cell_corners if corners else cell_centres
    x = places(width, device).expand(height, width)
    y = places(height, device)[:, None].expand(height, width)
    return torch.stack((x, y))[None]


def sine_position(height: int, width: int, channels: int, device: Device = "cpu") -> Tensor:
    """Sine code of every cell, row by row: float32 [height·width, channels].

    A quarter of the channels each: sin y, cos y, sin x, cos x, with x and y over -1..1 and angular
    frequencies in a geometric series.

    Raises:
        ValueError: if 4 does not divide `channels`.
    """
    require_quarters(channels)
    steps = torch.linspace(math.log(LOWEST), math.log(HIGHEST), channels // 4, device=device)
    angles = [cell_centres(n, device)[:, None] * steps.exp() for n in (height, width)]  # [n,C/4]
    return over_grid(*(torch.cat((a.sin(), a.cos()), 1) for a in angles))


def detr_position(height: int, width: int, channels: int, device: Device = "cpu") -> Tensor:
    """DETR's sine code of every cell, row by row: float32 [height·width, channels].

    The first half of the channels is for y, the second for x; in each, sines and cosines alternate
    over wave lengths from one image side to 10000 of them.

    Raises:
        ValueError: if 4 does not divide `channels`.
    """
    require_quarters(channels)
    powers = torch.arange(channels // 4, device=device, dtype=torch.float32) / (channels // 4)
    halves = []
    for count in (height, width):
        steps = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        angles = (2 * math.pi * steps / (count + 1e-6))[:, None] / 10000**powers  # [count,C/4]
        halves.append(torch.stack((angles.sin(), angles.cos()), 2).flatten(1))  # [count,C/2]
    return over_grid(*halves)


def require_quarters(channels: int) -> None:
    """Checks that 4 divides the channels, raises ValueError."""
    if channels % 4:
        raise ValueError(f"a 2-D sine position needs a multiple of 4 channels, not {channels}")


def over_grid(y: Tensor, x: Tensor) -> Tensor:
    """Codes of rows [h,C/2] and columns [w,C/2] -> of cells, row by row: [h·w,C]."""
    parts = y[:, None].expand(-1, len(x), -1), x[None].expand(len(y), -1, -1)  # [h,w,C/2]
    return torch.cat(parts, 2).flatten(0, 1)
