"""The criterion, its loss terms, and their functions.

Every sum is divided by a count of the whole batch (all micro-batches, all ranks), which is known
before the forward pass, so accumulating 4 × 4 images is the same computation as a batch of 16.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileinst.layers.device import to_device, without_autocast
from mobileinst.set_prediction.matcher import Match, Matcher
from mobileinst.set_prediction.points import SeededPoints, sample_points
from mobileinst.set_prediction.targets import Target, at_stride

Targets, Matches = list[Target], list[Match]  # of the B images
Counts = Losses = dict[str, Tensor]  # scalars by name
Term = Callable[[dict, Targets, Matches, Counts], Losses]


class Criterion(nn.Module):
    """Outputs and targets -> named, weighted loss terms.

    Args:
        matcher: pairs queries with objects, in each output separately.
        class_loss, mask_loss, extra: terms (outputs, targets, matches, counts) -> losses. One that
            is divided by other counts than those of objects and images has a method `counts`.
    """

    def __init__(
        self, matcher: Matcher, class_loss: Term, mask_loss: Term, extra: Sequence[Term] = ()
    ):
        super().__init__()
        self.matcher = matcher
        self.terms = (class_loss, mask_loss, *extra)

    def counts(self, targets: list[dict]) -> Counts:
        """The divisors of the terms, to be summed over micro-batches and ranks: on the CPU."""
        numbers = {"objects": sum(len(t["labels"]) for t in targets), "images": len(targets)}
        for term in self.terms:
            numbers |= term.counts(targets) if hasattr(term, "counts") else {}
        return {name: torch.tensor(float(number)) for name, number in numbers.items()}

    def forward(
        self,
        outputs: dict,
        targets: list[dict],
        counts: Counts | None = None,
        points: SeededPoints | None = None,
        matches: list[Matches] | None = None,
    ) -> Losses:
        """Loss terms, already weighted: their sum is the loss.

        Args:
            outputs, targets: of the data contract; any target may be without objects.
            counts: `counts(...)` of the whole batch, if these targets are only a part of it.
            points: source of the random points; the default draws the same at every call.
            matches: for the last output, then for each of `aux`; the default asks the matcher.
        Returns:
            {"class": …, "pixel": …, …} and the same with `_aux0`, `_aux1`, … for `aux`. Scalars, at
            least float32 whatever the precision of the outputs.
        Raises:
            FloatingPointError: if a matching cost is not finite.
        """
        counts = counts or self.counts(targets)
        counts = counts | {"objects": counts["objects"].clamp(min=1)}
        layers = {"": outputs} | {f"_aux{i}": aux for i, aux in enumerate(outputs["aux"])}
        layers = {key: in_float32(layer) for key, layer in layers.items()}
        points = points or SeededPoints()
        shared = [Target.of(target) for target in targets]
        own = {key: [replace(t, points=points, layer=key) for t in shared] for key in layers}
        losses = {}
        with without_autocast(outputs["class_logits"].device.type):
            if matches is None:
                matches = self.matcher((layers[key], own[key]) for key in layers)
            for (key, layer), pairs in zip(layers.items(), matches, strict=True):
                for term in self.terms:
                    for name, value in term(layer, own[key], pairs, counts).items():
                        losses[name + key] = value
        return losses


def in_float32(outputs: dict) -> dict[str, Tensor]:
    """One output, without `aux`, with half precision as float32; double stays."""
    return {
        key: x.to(torch.promote_types(x.dtype, torch.float32))
        for key, x in outputs.items()
        if key != "aux"
    }


def class_targets(
    outputs: dict, targets: Targets, matches: Matches, no_object: int
) -> tuple[Tensor, Tensor]:
    """The class of each query, and whether it has a class loss: int64 and bool [B,Q].

    An unmatched query, of the class `no_object`, has none if more than half of its mask lies inside
    ignored pixels (void, crowd): it may have found an object that is not annotated.
    """
    mask_logits = outputs["mask_logits"]  # [B,Q,h,w]
    wanted = torch.full(mask_logits.shape[:2], no_object, device=mask_logits.device)  # [B,Q]
    for row, target, (query_idx, target_idx) in zip(wanted, targets, matches):
        row[query_idx] = target.labels[target_idx]
    ignored = torch.stack([target.ignores(x) for x, target in zip(mask_logits, targets)])
    return wanted, ~ignored | (wanted != no_object)


@dataclass(frozen=True)
class FocalClassLoss:
    """Focal loss (Lin et al. 2017) over all queries × classes; unmatched queries have target 0."""

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        logits = outputs["class_logits"]  # [B,Q,K]
        classes = torch.arange(logits.shape[2], device=logits.device)
        wanted, counted = class_targets(outputs, targets, matches, logits.shape[2])
        one_hot = (wanted[..., None] == classes).to(logits)  # [B,Q,K]
        loss = focal_loss(logits, one_hot, self.alpha, self.gamma) * counted[..., None]
        return {"class": self.weight * loss.sum() / counts["objects"]}


@dataclass(frozen=True)
class CrossEntropyClassLoss:
    """Softmax cross-entropy of all queries, with a class for no object (Mask2Former).

    Divided by the sum of the weights of all queries: 1 for a matched one, `no_object_weight` for
    another. Those without a class loss stay in that sum, which must be known before the forward.

    num_queries: Q of the model; with it the numbers of objects determine those of matched queries.
    iou_targets: a matched query has its class with the IoU of its mask, and no object with the
    rest, both of weight 1, so that scores order detections by their masks; one that expects less
    than a half is no object. Our choice for large objects: Penn-Fudan gains, small organs lose by
    it (assets/results/neighbours.md).
    """

    num_queries: int
    weight: float = 2.0
    no_object_weight: float = 0.1
    iou_targets: bool = False

    def counts(self, targets: list[dict]) -> dict[str, int]:
        """How many queries will be matched, and how many not."""
        matched = sum(min(self.num_queries, len(target["labels"])) for target in targets)
        return {"matched": matched, "unmatched": self.num_queries * len(targets) - matched}

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        logits = outputs["class_logits"]  # [B,Q,K+1]
        no_object = logits.shape[2] - 1
        wanted, counted = class_targets(outputs, targets, matches, no_object)  # [B,Q]
        weights = torch.where(wanted == no_object, self.no_object_weight, 1.0).to(logits) * counted
        classes = torch.arange(no_object + 1, device=logits.device)
        shares = (wanted[..., None] == classes).to(logits)  # [B,Q,K+1]
        if self.iou_targets:
            ious = matched_ious(outputs, targets, matches, without_cells=1.0)
            ious = ious.split([len(query_idx) for query_idx, _ in matches])
            for row, (query_idx, _), iou in zip(shares, matches, ious, strict=True):
                row[query_idx] *= iou[:, None]
                row[query_idx, no_object] = 1 - iou
        loss = -(shares * logits.log_softmax(-1)).sum(-1)  # [B,Q]
        total = counts["matched"] + self.no_object_weight * counts["unmatched"]
        total = total.clamp(min=1e-6)  # zero without objects if no_object_weight is 0
        return {"class": self.weight * (loss * weights).sum() / total}


def matched(outputs: Tensor, matches: Matches) -> Tensor:
    """Rows of the matched queries, image after image: [B,Q,...] -> [M,...]."""
    return torch.cat([output[query_idx] for output, (query_idx, _) in zip(outputs, matches)])


def matched_masks(
    targets: Targets, matches: Matches, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Soft masks and valid shares of the matched objects, ordered as `matched`: 2 × [M,h,w]."""
    masks, weights = [], []
    for target, (_, target_idx) in zip(targets, matches):
        soft, valid = target.soft_masks(grid)
        masks.append(soft[target_idx])
        weights.append(valid.expand(len(target_idx), *grid))
    return torch.cat(masks), torch.cat(weights)


def matched_ious(
    outputs: dict,
    targets: Targets,
    matches: Matches,
    threshold: float = 0.5,
    stride: int = 0,
    without_cells: float = 0.0,
) -> Tensor:
    """IoU of the matched masks (probability ≥ threshold) with their objects (> 0.5) on the valid
    cells, without gradient, ordered as `matched`: [M].

    stride: of the grid; 0: that of the logits. without_cells: for objects that fill none of them.
    """
    logits = matched(outputs["mask_logits"], matches).detach()  # [M,h,w]
    logits = at_stride(logits, tuple(targets[0].ignore.shape), stride)
    masks, weights = (x.to(logits) for x in matched_masks(targets, matches, logits.shape[-2:]))
    predicted, wanted = logits.sigmoid() >= threshold, masks > 0.5
    overlap = ((predicted & wanted) * weights).sum((-2, -1))
    union = ((predicted | wanted) * weights).sum((-2, -1))
    has_cells = (wanted * weights).sum((-2, -1)) > 0
    return torch.where(has_cells, overlap / union.clamp(min=1e-6), without_cells)


@dataclass(frozen=True)
class MaskLoss:
    """Dice and pixel cross-entropy of the matched masks at stride 4 (SparseInst).

    Each pair's value is divided by the number of objects (our choice for the pixel term, because
    SparseInst's mean over the matched pairs of one device depends on how a batch is split).
    """

    pixel_weight: float = 2.0
    dice_weight: float = 2.0
    stride: int = 4

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        logits = matched(outputs["mask_logits"], matches)  # [M,h,w]
        logits = at_stride(logits, tuple(targets[0].ignore.shape), self.stride)
        masks, weights = (x.to(logits) for x in matched_masks(targets, matches, logits.shape[-2:]))
        flat = logits.flatten(1), masks.flatten(1), weights.flatten(1)  # 3 × [M,P]
        return {
            "pixel": self.pixel_weight * pixel_loss(*flat).sum() / counts["objects"],
            "dice": self.dice_weight * dice_loss(*flat).sum() / counts["objects"],
        }


@dataclass(frozen=True)
class PointMaskLoss:
    """Cross-entropy and dice of the matched masks at points, most of them uncertain (Mask2Former).

    For each pair, of `oversample` × `points` random points the `importance` × `points` whose logits
    are nearest to zero are kept; other random points fill the rest. Each pair's value is divided by
    the number of objects. Points beside ignored pixels have no weight, our extension.
    """

    pixel_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        logits = matched(outputs["mask_logits"], matches)  # [M,h,w]
        points = self.choose_points(logits.detach(), targets, matches)  # [M,P,2]
        masks, weights = [], []
        parts = points.split([len(target_idx) for _, target_idx in matches])
        for target, (_, target_idx), part in zip(targets, matches, parts):
            masks.append(sample_points(target.masks[target_idx].to(part), part))
            weights.append(target.valid_points(part))
        values = sample_points(logits, points), torch.cat(masks), torch.cat(weights)  # 3 × [M,P]
        return {
            "pixel": self.pixel_weight * pixel_loss(*values).sum() / counts["objects"],
            "dice": self.dice_weight * smoothed_dice_loss(*values).sum() / counts["objects"],
        }

    def choose_points(self, logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """[M,h,w] -> [M,P,2]."""

        def draw(purpose: str, count: int) -> Tensor:
            rows = [len(query_idx) for query_idx, _ in matches]
            drawn = [target.draw(purpose, row, count) for target, row in zip(targets, rows)]
            return to_device(torch.cat(drawn), logits.device).to(logits.dtype)  # [M,count,2]

        uncertain = int(self.importance * self.points)
        candidates = draw("candidates", int(self.oversample * self.points))
        certainty = sample_points(logits, candidates).abs()
        order = certainty.topk(uncertain, largest=False).indices  # [M,uncertain]
        kept = candidates.gather(1, order[..., None].expand(-1, -1, 2))
        return torch.cat([kept, draw("fresh", self.points - uncertain)], 1)


@dataclass(frozen=True)
class ObjectnessLoss:
    """Cross-entropy of a matched query's objectness with the IoU of its mask (SparseInst).

    The IoU is that of (probability ≥ 0.4) with (target > 0.5) on the valid cells, without gradient.
    Unmatched queries have no objectness loss.

    stride: of the grid of the IoU, 4 in SparseInst; 0: that of the logits.
    """

    weight: float = 1.0
    stride: int = 0

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        scores = matched(outputs["objectness"], matches)[:, 0]  # [M]
        iou = matched_ious(outputs, targets, matches, 0.4, self.stride)  # [M]
        loss = F.binary_cross_entropy_with_logits(scores, iou, reduction="sum")
        return {"objectness": self.weight * loss / counts["objects"]}


@dataclass(frozen=True)
class SemanticLoss:
    """Cross-entropy of every cell with the classes on it; training only, not the paper's.

    Our choice for small sets without pretrained weights: the queries show a backbone a class
    through a few matched vectors per image, here every cell does. A cell may hold several classes
    (nested objects), so classes are independent. Summed over classes, averaged over the valid cells
    of an image and over images. One term per output `semantic_logits_*`.
    """

    weight: float = 1.0

    def __call__(self, outputs: dict, targets: Targets, matches: Matches, counts: Counts) -> Losses:
        names = [name for name in outputs if name.startswith("semantic_logits")]
        losses = {name: sum(map(self.of_image, outputs[name], targets)) for name in names}
        return {
            name.replace("_logits", ""): self.weight * loss / counts["images"]
            for name, loss in losses.items()
        }

    @staticmethod
    def of_image(logits: Tensor, target: Target) -> Tensor:
        """[K,h,w] -> []."""
        grid = logits.shape[-2:]
        masks, valid = (x.to(logits) for x in target.soft_masks(grid))  # [N,h,w], [h,w]
        wanted = torch.zeros_like(logits)  # [K,h,w]
        wanted.scatter_reduce_(0, target.labels[:, None, None].expand_as(masks), masks, "amax")
        bce = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(0)  # [h,w]
        return (bce * valid).sum() / valid.sum().clamp(min=1e-6)


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss, element by element. Any shape; targets in 0..1."""
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    prob = logits.sigmoid()
    miss = prob * (1 - targets) + (1 - prob) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * miss**gamma * bce


def dice_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """1 − dice with squared denominators (SparseInst). 3 × [M,P] -> [M]."""
    probs = logits.sigmoid()
    overlap = (probs * masks * weights).sum(-1)
    energy = ((probs.square() + masks.square()) * weights).sum(-1)
    return 1 - 2 * overlap / (energy + 1e-4)


def smoothed_dice_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """1 − dice with plain denominators, one added to both parts (Mask2Former). 3 × [M,P] -> [M]."""
    probs = logits.sigmoid() * weights
    overlap = (probs * masks).sum(-1)
    return 1 - (2 * overlap + 1) / (probs.sum(-1) + (masks * weights).sum(-1) + 1)


def pixel_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the valid pixels. 3 × [M,P] -> [M]."""
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return (bce * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)
