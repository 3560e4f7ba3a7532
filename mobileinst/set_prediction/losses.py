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
from mobileinst.set_prediction.points import draw_points, sample_points, valid_points


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


def smoothed_dice_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """1 − dice with plain denominators, one added to both parts (Mask2Former). 3 × [M,P] → [M]."""
    probs = logits.sigmoid() * weights
    overlap = (probs * masks).sum(-1)
    return 1 - (2 * overlap + 1) / (probs.sum(-1) + (masks * weights).sum(-1) + 1)


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


@dataclass(frozen=True)
class CrossEntropyClassLoss:
    """Softmax cross-entropy of all queries; those without an object should say so (Mask2Former).

    Divided by the sum of the weights of all queries: 1 for a matched one, `no_object_weight` for
    another. As with `FocalClassLoss`, an unmatched query inside ignored pixels has no loss. It
    stays in the sum of weights, which has to be known before the forward pass, so it changes
    nothing for the others.

    queries: Q of the model; with it the numbers of objects tell how many queries are matched.
    """

    queries: int
    weight: float = 2.0
    no_object_weight: float = 0.1

    def counts(self, targets: list[dict]) -> dict[str, int]:
        """How many queries will be matched, and how many not."""
        matched = sum(min(self.queries, len(target["labels"])) for target in targets)
        return {"matched": matched, "unmatched": self.queries * len(targets) - matched}

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = outputs["class_logits"]  # [B,Q,K+1]
        if logits.shape[1] != self.queries:
            raise ValueError(f"a loss for {self.queries} queries was given {logits.shape[1]}")
        no_object = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], no_object, device=logits.device)  # [B,Q]
        for index, (target, (query_idx, target_idx)) in enumerate(zip(targets, matches)):
            wanted[index, query_idx] = target["labels"][target_idx]
        weights = torch.where(wanted == no_object, self.no_object_weight, 1.0).to(logits)
        for index, target in enumerate(targets):
            skipped = in_ignore(outputs["mask_logits"][index], target)
            weights[index] *= ~(skipped & (wanted[index] == no_object))
        # Flattened, because the kernel for [B,K+1,Q] has no deterministic backward on CUDA.
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        total = counts["matched"] + self.no_object_weight * counts["unmatched"]
        total = total.clamp(min=1e-6)  # zero where no object is to count for nothing, and none is
        return {"class": self.weight * (loss * weights.flatten()).sum() / total}


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
        masks, weights = (x.to(logits) for x in matched_masks(targets, matches, grid))
        flat = logits.flatten(1), masks.flatten(1), weights.flatten(1)  # 3 × [M,P]
        return {
            "pixel": self.pixel_weight * pixel_loss(*flat).sum() / counts["objects"],
            "dice": self.dice_weight * dice_loss(*flat).sum() / counts["objects"],
        }


@dataclass(frozen=True)
class PointMaskLoss:
    """Cross-entropy and dice of the matched masks at points, most of them uncertain (Mask2Former).

    For each pair, of `oversample` × `points` random points the `importance` × `points` whose logits
    are nearest to zero are kept; fresh random points fill the rest. Each pair's value is divided by
    the number of objects. Ignored pixels take no part (`valid_points`), our extension.
    """

    pixel_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __call__(
        self, outputs: dict, targets: list[dict], matches: list[Match], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = matched(outputs["mask_logits"], matches)  # [M,h,w]
        if not len(logits):
            nothing = outputs["mask_logits"].sum() * 0  # keeps every parameter in the graph
            return {"pixel": nothing, "dice": nothing}
        points = self.choose_points(logits.detach(), targets, matches)  # [M,P,2]
        masks, weights = points_of_targets(targets, matches, points)
        values = sample_points(logits, points), masks, weights  # 3 × [M,P]
        return {
            "pixel": self.pixel_weight * pixel_loss(*values).sum() / counts["objects"],
            "dice": self.dice_weight * smoothed_dice_loss(*values).sum() / counts["objects"],
        }

    def choose_points(self, logits: Tensor, targets: list[dict], matches: list[Match]) -> Tensor:
        """[M,h,w] → [M,P,2]."""

        def draw(purpose: str, count: int) -> Tensor:
            parts = [
                draw_points(target, purpose, (len(query_idx), count), logits)
                for target, (query_idx, _) in zip(targets, matches)
            ]
            return torch.cat(parts)  # [M,count,2]

        uncertain = int(self.importance * self.points)
        candidates = draw("candidates", int(self.oversample * self.points))
        certainty = sample_points(logits, candidates).abs()
        order = certainty.topk(uncertain, largest=False).indices  # [M,uncertain]
        kept = candidates.gather(1, order[..., None].expand(-1, -1, 2))
        return torch.cat([kept, draw("fresh", self.points - uncertain)], 1)


def points_of_targets(
    targets: list[dict], matches: list[Match], points: Tensor
) -> tuple[Tensor, Tensor]:
    """What the matched objects are at their points, and which points count: 2 × [M,P]."""
    masks, weights = [], []
    parts = points.split([len(target_idx) for _, target_idx in matches])
    for target, (_, target_idx), own in zip(targets, matches, parts):
        masks.append(sample_points(target["masks"][target_idx].to(own), own))
        weights.append(valid_points(target, own))
    return torch.cat(masks), torch.cat(weights)


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
        grid = tuple(logits.shape[-2:])
        masks, weights = (x.to(logits) for x in matched_masks(targets, matches, grid))
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
    grid = tuple(logits.shape[-2:])
    masks, valid = (x.to(logits) for x in soft_masks(target, grid))  # [N,h,w], [h,w]
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
