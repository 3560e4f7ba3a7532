"""Bipartite matching of queries with objects (scipy's Hungarian method), image by image."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mobileinst.layers.device import to_device
from mobileinst.set_prediction.targets import Target

Match = tuple[Tensor, Tensor]


class Matcher:
    """Assigns each object of an image to one query, at the smallest total cost.

    Args:
        cost: (outputs of one image, target of the image) -> [Q,N]. Systems differ in it.
    """

    def __init__(self, cost: Callable[[dict, Target], Tensor]):
        self.cost = cost

    @torch.no_grad()
    def __call__(self, layers: Iterable[tuple[dict, list[Target]]]) -> list[list[Match]]:
        """Matches every image of every output. The CPU waits for the device once.

        Args:
            layers: of each output `class_logits` [B,Q,K], `mask_logits` [B,Q,h,w] and what else
                the cost reads, and B targets; any of them may be without objects.
        Returns:
            For each output B pairs (query_idx, target_idx), int64, of min(Q, N) entries each: query
            `query_idx[k]` has the object `target_idx[k]`.
        Raises:
            FloatingPointError: if a cost is not finite; names the image.
        """
        images, costs = [], []
        for outputs, targets in layers:
            for index, target in enumerate(targets):
                one = {key: x[index] for key, x in outputs.items() if torch.is_tensor(x)}
                costs.append(self.cost(one, target).float())  # [Q,N]
                images.append(target)
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        pairs = []
        for target, cost, part in zip(images, costs, flat.split([cost.numel() for cost in costs])):
            if not part.isfinite().all():
                raise FloatingPointError(f"matching cost of image {target.image_id} is not finite")
            pairs.append(np.stack(linear_sum_assignment(part.view(cost.shape).numpy())))  # [2,M]
        indices = to_device(torch.from_numpy(np.concatenate(pairs, 1)), costs[0].device)
        matches = list(zip(*(each.split([pair.shape[1] for pair in pairs]) for each in indices)))
        return [matches[i : i + len(targets)] for i in range(0, len(matches), len(targets))]
