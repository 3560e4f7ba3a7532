"""The criterion: match, gather, add up the terms, for the last and every auxiliary output."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mobileinst.set_prediction.matcher import Match, Matcher
from mobileinst.set_prediction.points import SeededPoints

Counts = dict[str, Tensor]
Term = Callable[[dict, list[dict], list[Match], Counts], dict[str, Tensor]]


class Criterion(nn.Module):
    """Turns outputs and targets into named, weighted loss terms.

    Args:
        matcher: pairs queries with objects, anew for each output.
        class_loss, mask_loss, extra: the terms (`set_prediction.losses`). One that is divided by
            more than the numbers of objects and pictures has a method `counts` of its own.
    """

    def __init__(
        self, matcher: Matcher, class_loss: Term, mask_loss: Term, extra: Sequence[Term] = ()
    ):
        super().__init__()
        self.matcher = matcher
        self.terms = (class_loss, mask_loss, *extra)

    def counts(self, targets: list[dict]) -> Counts:
        """What the terms are divided by; to be summed over micro-batches and ranks."""
        labels = [target["labels"] for target in targets]
        numbers = {"objects": sum(map(len, labels)), "pictures": len(targets)}
        for term in self.terms:
            numbers |= term.counts(targets) if hasattr(term, "counts") else {}
        return {
            name: torch.tensor(float(number), device=labels[0].device)
            for name, number in numbers.items()
        }

    def forward(
        self,
        outputs: dict,
        targets: list[dict],
        counts: Counts | None = None,
        points: SeededPoints | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, already weighted: their sum is the loss.

        Args:
            outputs: the dict of the contract, with its auxiliary outputs under `aux`.
            targets: B targets; any of them, or all, may be without objects.
            counts: `counts(...)` of the whole batch, if these targets are only a part of it.
            points: where terms on random points draw them, the last output first; without it they
                are the same at every call.
        Returns:
            {"class": …, "pixel": …, …} and the same with `_aux0`, `_aux1`, … for `aux`. Scalars, at
            least float32 whatever the precision of the outputs.
        """
        points = points or SeededPoints()
        targets = [{**target, "grids": {}} for target in targets]
        counts = counts or self.counts(targets)
        counts = counts | {"objects": counts["objects"].clamp(min=1)}
        layers = {"": outputs} | {f"_aux{i}": aux for i, aux in enumerate(outputs["aux"])}
        losses = {}
        with torch.autocast(counts["objects"].device.type, enabled=False):
            for suffix, layer in layers.items():
                layer = {key: at_least_float32(x) for key, x in layer.items() if key != "aux"}
                for target in targets:
                    target["draw"] = partial(points.draw, suffix, target["image_id"])
                matches = self.matcher(layer, targets)
                for term in self.terms:
                    for name, value in term(layer, targets, matches, counts).items():
                        losses[name + suffix] = value
        return losses


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
