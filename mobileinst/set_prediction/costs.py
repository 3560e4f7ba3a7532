"""Pairwise costs between the queries and the objects of one image: [Q,·] × [N,·] -> [Q,N]."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mobileinst.layers.device import to_device
from mobileinst.set_prediction.points import sample_shared_points
from mobileinst.set_prediction.targets import Target


def pairwise_dice(probs: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Dice score of every query with every object, squared denominators as in SparseInst.

    Args:
        probs: [Q,P] mask probabilities; masks: [N,P] targets in 0..1; weights: [P] in 0..1.
    Returns:
        [Q,N] in 0..1.
    """
    overlap = (probs * weights) @ masks.T  # [Q,N]
    energy = (probs.square() @ weights)[:, None] + (masks.square() @ weights)[None]
    return 2 * overlap / (energy + 1e-4)


def pairwise_smoothed_dice(probs: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """1 − dice of every query with every object, plain denominators and one added to both parts.

    [Q,P], [N,P], [P] -> [Q,N] in 0..1.
    """
    overlap = (probs * weights) @ masks.T  # [Q,N]
    size = (probs @ weights)[:, None] + (masks @ weights)[None]
    return 1 - (2 * overlap + 1) / (size + 1)


def pairwise_pixel_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of every query with every object, averaged over the valid points.

    [Q,P], [N,P], [P] -> [Q,N]. As softplus(x) − x · mask, it takes one product of matrices.
    """
    loss = (F.softplus(logits) @ weights)[:, None] - (logits * weights) @ masks.T  # [Q,N]
    return loss / weights.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class DiceClassCost:
    """−dice^α · p(class)^β (SparseInst; the paper is read as following it).

    Computed on the grid of the mask logits, stride 8 (our choice, because only the order of the
    costs matters there; SparseInst upsamples all N logit maps to stride 4 first).
    """

    dice_power: float = 0.8
    class_power: float = 0.2

    def __call__(self, outputs: dict, target: Target) -> Tensor:
        """Cost of one image: outputs without the batch axis, one target -> [Q,N]."""
        mask_logits = outputs["mask_logits"]  # [Q,h,w]
        masks, valid = (x.to(mask_logits) for x in target.soft_masks(mask_logits.shape[-2:]))
        dice = pairwise_dice(mask_logits.sigmoid().flatten(1), masks.flatten(1), valid.flatten())
        class_prob = outputs["class_logits"].sigmoid()[:, target.labels]  # [Q,N]
        return -(dice**self.dice_power) * class_prob**self.class_power


@dataclass(frozen=True)
class PointCost:
    """−p(class), cross-entropy and dice of the masks at random points, weighted (Mask2Former).

    All queries and objects of an image are compared at the same points. Points beside ignored
    pixels have no weight (`Target.valid_points`), our extension.
    """

    class_weight: float = 2.0
    pixel_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544

    def __call__(self, outputs: dict, target: Target) -> Tensor:
        """Cost of one image: outputs without the batch axis, one target -> [Q,N]."""
        mask_logits = outputs["mask_logits"]  # [Q,h,w]
        drawn = to_device(target.draw("match", self.points), mask_logits.device)
        points = drawn.to(mask_logits.dtype)  # [P,2]
        logits = sample_shared_points(mask_logits, points)  # [Q,P]
        masks = sample_shared_points(target.masks.to(points), points)  # [N,P]
        weights = target.valid_points(points[None])[0]  # [P]
        class_prob = outputs["class_logits"].softmax(-1)[:, target.labels]  # [Q,N]
        return (
            self.pixel_weight * pairwise_pixel_loss(logits, masks, weights)
            + self.dice_weight * pairwise_smoothed_dice(logits.sigmoid(), masks, weights)
            - self.class_weight * class_prob
        )
