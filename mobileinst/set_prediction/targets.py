"""Targets in the form that matching costs and losses need."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileinst.set_prediction.points import SeededPoints, sample_shared_points


@dataclass(frozen=True)
class Target:
    """The target of one image: labels … has_ignore as in the data contract.

    points: source of the random points. layer: name of the output that is supervised, "" for the
    last one. grids: results of `soft_masks`, which all outputs share.
    """

    labels: Tensor
    masks: Tensor
    ignore: Tensor
    image_id: int
    size: tuple[int, int]
    has_ignore: bool = True
    points: SeededPoints = SeededPoints()
    layer: str = ""
    grids: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, target: dict) -> "Target":
        names = ("labels", "masks", "ignore", "image_id", "size")
        return cls(*(target[key] for key in names), target.get("has_ignore", True))

    def draw(self, purpose: str, *shape: int) -> Tensor:
        """Random points of this image and output: float32 [*shape,2] on the CPU."""
        return self.points.draw(self.layer, self.image_id, purpose, (*shape, 2))

    def soft_masks(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Masks averaged over a grid's cells [N,h,w], and the valid share of each cell [h,w].

        A cell's value is the share of its valid pixels that belong to the object, so a cell half
        covered by void is not half an object. Valid are pixels inside the image that are not
        ignored. (Our choice, because it is exact; SparseInst samples bilinearly and has no void.)
        """
        if grid not in self.grids:
            valid = ~self.ignore  # [H,W]
            height, width = self.size
            valid[height:] = False
            valid[:, width:] = False
            inside = torch.cat([self.masks & valid, valid[None]]).float()  # [N+1,H,W]
            averaged = F.interpolate(inside[None], size=grid, mode="area")[0]  # [N+1,h,w]
            share = averaged[-1]
            self.grids[grid] = averaged[:-1] / share.clamp(min=1e-6), share
        return self.grids[grid]

    def valid_points(self, points: Tensor) -> Tensor:
        """0 for points beside ignored pixels, else 1; padding is background: [M,P,2] -> [M,P]."""
        if not self.has_ignore:
            return points.new_ones(points.shape[:2])
        values = sample_shared_points(self.ignore[None].to(points), points.flatten(0, 1))  # [1,M·P]
        return (values == 0).to(points).view(points.shape[:2])

    @torch.no_grad()
    def ignores(self, mask_logits: Tensor) -> Tensor:
        """Which masks have more than half of their area inside `ignore`: [Q,h,w] -> bool [Q]."""
        if not self.has_ignore:
            return torch.zeros(len(mask_logits), dtype=torch.bool, device=mask_logits.device)
        ignore = self.ignore[None, None].float()
        share = F.interpolate(ignore, size=mask_logits.shape[-2:], mode="area")[0, 0]  # [h,w]
        masks = (mask_logits > 0).flatten(1).float()  # [Q,h·w]
        return masks @ share.flatten() > 0.5 * masks.sum(1).clamp(min=1)


def stride_grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Cells of a map of `stride` over a canvas of `size`, by the ceil rule."""
    return -(-size[0] // stride), -(-size[1] // stride)


def at_stride(mask_logits: Tensor, canvas: tuple[int, int], stride: int) -> Tensor:
    """Mask logits resized to a map of `stride` over a canvas; 0: unchanged. [N,h,w] -> [N,·,·]."""
    if not stride:
        return mask_logits
    grid = stride_grid(canvas, stride)
    logits = F.interpolate(mask_logits[:, None], size=grid, mode="bilinear", align_corners=False)
    return logits[:, 0]
