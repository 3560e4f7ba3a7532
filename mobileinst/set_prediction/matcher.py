"""Pairwise costs of queries and objects, and their bipartite matching (scipy's Hungarian method).

A cost is a callable: outputs of one image (no batch axis), its target -> [Q,N].
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mobileinst.layers.device import to_device
from mobileinst.set_prediction.points import sample_shared_points
from mobileinst.set_prediction.targets import Target, at_stride

Match = tuple[Tensor, Tensor]  # query_idx, target_idx


class Matcher:
    """Assigns each object of an image to one query, at the smallest total cost.

    aux_matches: queries per object in the auxiliary outputs, fewer where objects would lack one.
    More than one teaches them faster, as in H-DETR; the last output must not find one twice.
    """

    def __init__(self, cost: Callable[[dict, Target], Tensor], aux_matches: int = 1):
        self.cost = cost
        self.aux_matches = aux_matches

    @torch.no_grad()
    def __call__(self, layers: Iterable[tuple[dict, list[Target]]]) -> list[list[Match]]:
        """Matches every image of every output. The CPU waits for the device once.

        Args:
            layers: of each output, the last one first, the tensors [B,...] that the cost reads, and
                B targets; any of them may be without objects.
        Returns:
            For each output B pairs (query_idx, target_idx), int64, of min(Q, N) entries each, or a
            multiple of N in auxiliary outputs: query `query_idx[k]` has object `target_idx[k]`.
        Raises:
            FloatingPointError: if a cost is not finite; names the image.
        """
        images, costs = [], []
        for number, (outputs, targets) in enumerate(layers):
            for index, target in enumerate(targets):
                one = {key: x[index] for key, x in outputs.items() if torch.is_tensor(x)}
                cost = self.cost(one, target).float()  # [Q,N]
                fair = max(1, cost.shape[0] // max(1, cost.shape[1]))
                times = min(self.aux_matches, fair) if number else 1
                costs.append(cost.repeat(1, times))  # [Q,times·N]
                images.append(target)
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        pairs = []
        for target, cost, part in zip(images, costs, flat.split([cost.numel() for cost in costs])):
            if not part.isfinite().all():
                raise FloatingPointError(f"matching cost of image {target.image_id} is not finite")
            query_idx, column = linear_sum_assignment(part.view(cost.shape).numpy())
            pairs.append(np.stack((query_idx, column % max(1, len(target.labels)))))  # [2,M]
        indices = to_device(torch.from_numpy(np.concatenate(pairs, 1)), costs[0].device)
        matches = list(zip(*(each.split([pair.shape[1] for pair in pairs]) for each in indices)))
        return [matches[i : i + len(targets)] for i in range(0, len(matches), len(targets))]


@dataclass(frozen=True)
class DiceClassCost:
    """−dice^α · p(class)^β, dice with squared denominators (SparseInst; the paper follows it).

    stride: of the grid of the dice, 4 in SparseInst; 0: that of the logits (our choice for
    MobileInst, because only the order of the costs matters).
    """

    dice_power: float = 0.8
    class_power: float = 0.2
    stride: int = 0

    def __call__(self, outputs: dict, target: Target) -> Tensor:
        mask_logits = outputs["mask_logits"]  # [Q,h,w]
        mask_logits = at_stride(mask_logits, tuple(target.ignore.shape), self.stride)
        masks, valid = (x.to(mask_logits) for x in target.soft_masks(mask_logits.shape[-2:]))
        probs, masks, valid = mask_logits.sigmoid().flatten(1), masks.flatten(1), valid.flatten()
        overlap = (probs * valid) @ masks.T  # [Q,N]
        energy = (probs.square() @ valid)[:, None] + (masks.square() @ valid)[None]
        dice = 2 * overlap / (energy + 1e-4)
        class_prob = outputs["class_logits"].sigmoid()[:, target.labels]  # [Q,N]
        return -(dice**self.dice_power) * class_prob**self.class_power


@dataclass(frozen=True)
class PointCost:
    """−p(class), cross-entropy and dice of the masks at random points, weighted (Mask2Former).

    All queries and objects of an image are compared at the same points. Points beside ignored
    pixels have no weight, our extension.
    """

    class_weight: float = 2.0
    pixel_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544

    def __call__(self, outputs: dict, target: Target) -> Tensor:
        mask_logits = outputs["mask_logits"]  # [Q,h,w]
        drawn = to_device(target.draw("match", self.points), mask_logits.device)
        points = drawn.to(mask_logits.dtype)  # [P,2]
        logits = sample_shared_points(mask_logits, points)  # [Q,P]
        masks = sample_shared_points(target.masks.to(points), points)  # [N,P]
        weights = target.valid_points(points[None])[0]  # [P]
        # Cross-entropy as softplus(x) − x · mask, which takes one product of matrices.
        pixel = (F.softplus(logits) @ weights)[:, None] - (logits * weights) @ masks.T  # [Q,N]
        pixel = pixel / weights.sum().clamp(min=1e-6)
        probs = logits.sigmoid()
        overlap = (probs * weights) @ masks.T  # [Q,N]
        size = (probs @ weights)[:, None] + (masks @ weights)[None]
        dice = 1 - (2 * overlap + 1) / (size + 1)
        class_prob = outputs["class_logits"].softmax(-1)[:, target.labels]  # [Q,N]
        return self.pixel_weight * pixel + self.dice_weight * dice - self.class_weight * class_prob
