"""Losses of set prediction: pure functions first, then the weighted terms a criterion is made of.

A term is a callable (outputs, targets, matches, counts) → {name: weighted scalar}. Every sum is
divided by a count of the *whole* batch (all micro-batches, all ranks), which is known before the
forward pass; so accumulating 4 × 4 pictures is the same computation as a batch of 16.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileinst.set_prediction.grids import soft_masks, stride_grid
from mobileinst.set_prediction.matcher import Match


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, element by element (Lin et al. 2017). Any shape; targets in 0..1."""
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    prob = logits.sigmoid()
    miss = prob * (1 - targets) + (1 - prob) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * miss**gamma * bce


def dice_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """1 − dice with squared denominators (SparseInst). [M,P], [M,P], [M,P] → [M]."""
    probs = logits.sigmoid()
    overlap = (probs * masks * weights).sum(-1)
    energy = ((probs.square() + masks.square()) * weights).sum(-1)
    return 1 - 2 * overlap / (energy + 1e-4)


def pixel_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the valid pixels. [M,P], [M,P], [M,P] → [M]."""
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return (bce * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)


def matched(outputs: Tensor, matches: list[Match]) -> Tensor:
    """Rows of the matched queries, picture after picture: [B,Q,...] → [M,...]."""
    return torch.cat([output[query_idx] for output, (query_idx, _) in zip(outputs, matches)])


def matched_masks(
    targets: list[dict], matches: list[Match], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Soft masks and valid shares of the matched objects, ordered as `matched`: 2 × [M,h,w]."""
    masks, weights = [], []
    for target, (_, target_idx) in zip(targets, matches):
        soft, valid = soft_masks(target, grid)
        masks.append(soft[target_idx])
        weights.append(valid.expand(len(target_idx), *grid))
    return torch.cat(masks), torch.cat(weights)


@dataclass(frozen=True)
class FocalClassLoss:
    """Focal loss over all queries × classes; an unmatched query's target is all zero (SparseInst).

    An unmatched query that lies with more than half of its mask inside ignored pixels (void, crowd)
    may well have found an object nobody labelled: it has no class loss.
    """

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = outputs["class_logits"]  # [B,Q,K]
        wanted = torch.zeros_like(logits)
        counted = ~torch.stack(
            [in_ignore(masks, target) for masks, target in zip(outputs["mask_logits"], targets)]
        )  # [B,Q]
        for index, (target, (query_idx, target_idx)) in enumerate(zip(targets, matches)):
            wanted[index, query_idx, target["labels"][target_idx]] = 1
            counted[index, query_idx] = True
        loss = focal_loss(logits, wanted, self.alpha, self.gamma) * counted[..., None]
        return {"class": self.weight * loss.sum() / counts["objects"]}


@torch.no_grad()
def in_ignore(mask_logits: Tensor, target: dict) -> Tensor:
    """Which queries have more than half of their mask inside `ignore`. [Q,h,w] → bool [Q]."""
    if not target["ignore"].any():
        return torch.zeros(len(mask_logits), dtype=torch.bool, device=mask_logits.device)
    ignore = target["ignore"][None, None].float()
    share = F.interpolate(ignore, size=mask_logits.shape[-2:], mode="area")[0, 0]  # [h,w]
    masks = (mask_logits > 0).flatten(1).float()
    return masks @ share.flatten() > 0.5 * masks.sum(1).clamp(min=1)


@dataclass(frozen=True)
class MaskLoss:
    """Dice and pixel cross-entropy of the matched masks at stride 4 (SparseInst).

    Each pair's value is divided by the number of objects (our choice for the pixel term, because
    SparseInst's mean over the matched pairs of one device depends on how a batch is split).
    """

    pixel_weight: float = 2.0
    dice_weight: float = 2.0
    stride: int = 4

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        grid = stride_grid(tuple(targets[0]["ignore"].shape), self.stride)
        logits = matched(outputs["mask_logits"], matches)  # [M,h,w]
        if not len(logits):
            nothing = outputs["mask_logits"].sum() * 0  # keeps every parameter in the graph
            return {"pixel": nothing, "dice": nothing}
        logits = F.interpolate(logits[:, None], size=grid, mode="bilinear", align_corners=False)
        masks, weights = matched_masks(targets, matches, grid)
        flat = logits.flatten(1), masks.flatten(1), weights.flatten(1)  # 3 × [M,P]
        return {
            "pixel": self.pixel_weight * pixel_loss(*flat).sum() / counts["objects"],
            "dice": self.dice_weight * dice_loss(*flat).sum() / counts["objects"],
        }


@dataclass(frozen=True)
class ObjectnessLoss:
    """Cross-entropy of a matched query's score with the IoU its mask has (SparseInst, the paper).

    The IoU is that of (probability ≥ 0.4) with (target > 0.5) on the grid of the logits, without
    gradient. Unmatched queries have no objectness loss.
    """

    weight: float = 1.0

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = matched(outputs["objectness"], matches)[:, 0]  # [M]
        logits = matched(outputs["mask_logits"], matches).detach()  # [M,h,w]
        if not len(scores):
            return {"objectness": outputs["objectness"].sum() * 0}
        masks, weights = matched_masks(targets, matches, tuple(logits.shape[-2:]))
        iou = mask_iou(logits.sigmoid() >= 0.4, masks > 0.5, weights)
        loss = F.binary_cross_entropy_with_logits(scores, iou, reduction="sum")
        return {"objectness": self.weight * loss / counts["objects"]}


@dataclass(frozen=True)
class SemanticLoss:
    """Cross-entropy of every cell with the classes that lie on it; training only, not the paper's.

    Our choice for small sets without pretrained weights: queries alone teach a backbone the look
    of a class through a few matched vectors a picture; here every cell does. A cell may hold
    several classes (nested objects), so classes are independent. Summed over classes, averaged
    over the valid cells of a picture and over pictures.
    """

    weight: float = 1.0

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One term for each of the outputs `semantic_logits_*`; auxiliary outputs have none."""
        return {
            name.replace("_logits", ""): self.weight
            * sum(map(semantic_loss, logits, targets))
            / counts["pictures"]
            for name, logits in outputs.items()
            if name.startswith("semantic_logits")
        }


def semantic_loss(logits: Tensor, target: dict) -> Tensor:
    """Cross-entropy with the classes on each cell, averaged over the valid cells: [K,h,w] → []."""
    masks, valid = soft_masks(target, tuple(logits.shape[-2:]))  # [N,h,w], [h,w]
    wanted = torch.zeros_like(logits)
    index = target["labels"][:, None, None].expand_as(masks)
    wanted.scatter_reduce_(0, index, masks, "amax")
    bce = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(0)
    return (bce * valid).sum() / valid.sum().clamp(min=1e-6)


def mask_iou(predicted: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """IoU of pairs of boolean masks with weighted cells: 3 × [M,h,w] → [M]."""
    overlap = ((predicted & wanted) * weights).sum((-2, -1))
    union = ((predicted | wanted) * weights).sum((-2, -1))
    return overlap / union.clamp(min=1e-6)
