"""Bipartite matching of queries with objects (scipy's Hungarian method), picture by picture."""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Match = tuple[Tensor, Tensor]


class Matcher:
    """Assigns each object of a picture to one query, at the smallest total cost.

    Args:
        cost: (outputs of one picture, target of one picture) → [Q,N]. What differs between two
            systems is this function.
    """

    def __init__(self, cost: Callable[[dict, dict], Tensor]):
        self.cost = cost

    @torch.no_grad()
    def __call__(self, outputs: dict, targets: list[dict]) -> list[Match]:
        """Match every picture of a batch.

        Args:
            outputs: `class_logits` [B,Q,K], `mask_logits` [B,Q,h,w] and what else the cost reads.
            targets: B targets; a picture without objects is ordinary.
        Returns:
            B pairs (query_idx, target_idx), int64, of min(Q, N) entries each: query
            `query_idx[k]` answers for object `target_idx[k]`, so its class is
            `labels[target_idx[k]]`.
        Raises:
            FloatingPointError: a cost is not finite; the picture's id is in the message.
        """
        matches = []
        for index, target in enumerate(targets):
            one = {key: value[index] for key, value in outputs.items() if torch.is_tensor(value)}
            cost = self.cost(one, target).float().cpu()  # [Q,N]
            if not torch.isfinite(cost).all():
                raise FloatingPointError(
                    f"matching cost of picture {target['image_id']} is not finite"
                )
            query_idx, target_idx = linear_sum_assignment(cost.numpy())
            device = target["labels"].device
            matches.append(
                (
                    torch.as_tensor(query_idx, dtype=torch.int64, device=device),
                    torch.as_tensor(target_idx, dtype=torch.int64, device=device),
                )
            )
        return matches
