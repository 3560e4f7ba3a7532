"""Pairwise costs between the queries and the objects of one picture: [Q,·] × [N,·] → [Q,N]."""

from dataclasses import dataclass

from torch import Tensor

from mobileinst.set_prediction.grids import soft_masks


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


@dataclass(frozen=True)
class DiceClassCost:
    """−dice^α · p(class)^β (SparseInst; the paper is read as following it).

    Computed on the grid of the mask logits, stride 8 (our choice, because only the order of the
    costs matters there; SparseInst upsamples all N logit maps to stride 4 first).
    """

    dice_power: float = 0.8
    class_power: float = 0.2

    def __call__(self, outputs: dict, target: dict) -> Tensor:
        """Cost of one picture: outputs without the batch axis, one target → [Q,N]."""
        mask_logits = outputs["mask_logits"]  # [Q,h,w]
        masks, valid = soft_masks(target, tuple(mask_logits.shape[-2:]))
        dice = pairwise_dice(mask_logits.sigmoid().flatten(1), masks.flatten(1), valid.flatten())
        class_prob = outputs["class_logits"].sigmoid()[:, target["labels"]]  # [Q,N]
        return -(dice**self.dice_power) * class_prob**self.class_power
