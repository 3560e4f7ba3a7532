"""Target masks at the coarse grids on which predictions live."""

import torch
import torch.nn.functional as F
from torch import Tensor


def stride_grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Cells of a map of `stride` over a canvas of `size`, by the ceil rule."""
    return -(-size[0] // stride), -(-size[1] // stride)


def valid_pixels(target: dict) -> Tensor:
    """Pixels that may be supervised: inside the picture and not ignored. bool [H,W]."""
    valid = ~target["ignore"]
    height, width = target["size"]
    valid[height:] = False
    valid[:, width:] = False
    return valid


def soft_masks(target: dict, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Average a target's masks over the cells of a grid.

    A cell's value is the share of its *valid* pixels that belong to the object, so a cell half
    covered by void is not mistaken for half an object. (Our choice, because it is exact; SparseInst
    samples the masks bilinearly and knows no void.)

    Args:
        target: one target of the data contract: `masks` bool [N,H,W], `ignore`, `size`. A dict
            under the key `grids`, if there is one, remembers the answer for the next caller.
        grid: (h, w) cells.
    Returns:
        soft [N,h,w] in 0..1 and valid [h,w], the share of each cell's pixels that is valid.
    """
    remembered = target.get("grids", {})
    if grid not in remembered:
        valid = valid_pixels(target)
        inside = torch.cat([target["masks"] & valid, valid[None]]).float()  # [N+1,H,W]
        averaged = F.interpolate(inside[None], size=grid, mode="area")[0]  # [N+1,h,w]
        share = averaged[-1]
        remembered[grid] = (averaged[:-1] / share.clamp(min=1e-6), share)
    return remembered[grid]
