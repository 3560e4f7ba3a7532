"""The criterion: match, gather, add up the terms, for the last and every auxiliary output."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mobileinst.set_prediction.matcher import Match, Matcher

Counts = dict[str, Tensor]
Term = Callable[[dict, list[dict], list[Match], Counts], dict[str, Tensor]]


class Criterion(nn.Module):
    """Turns outputs and targets into named, weighted loss terms.

    Args:
        matcher: pairs queries with objects, anew for each output.
        class_loss, mask_loss, extra: the terms (`set_prediction.losses`).
    """

    def __init__(
        self, matcher: Matcher, class_loss: Term, mask_loss: Term, extra: Sequence[Term] = ()
    ):
        super().__init__()
        self.matcher = matcher
        self.terms = (class_loss, mask_loss, *extra)

    @staticmethod
    def counts(targets: list[dict]) -> Counts:
        """What the terms are divided by; to be summed over micro-batches and ranks."""
        labels = [target["labels"] for target in targets]
        return {
            "objects": torch.tensor(float(sum(map(len, labels))), device=labels[0].device),
            "pictures": torch.tensor(float(len(targets)), device=labels[0].device),
        }

    def forward(
        self, outputs: dict, targets: list[dict], counts: Counts | None = None
    ) -> dict[str, Tensor]:
        """Loss terms, already weighted: their sum is the loss.

        Args:
            outputs: the dict of the contract, with its auxiliary outputs under `aux`.
            targets: B targets; any of them, or all, may be without objects.
            counts: `counts(...)` of the whole batch, if these targets are only a part of it.
        Returns:
            {"class": …, "pixel": …, …} and the same with `_aux0`, `_aux1`, … for `aux`. Scalars,
            float32 whatever the precision of the outputs.
        """
        targets = [{**target, "grids": {}} for target in targets]
        counts = counts or self.counts(targets)
        counts = {name: count.clamp(min=1) for name, count in counts.items()}
        layers = {"": outputs} | {f"_aux{i}": aux for i, aux in enumerate(outputs["aux"])}
        losses = {}
        with torch.autocast(counts["objects"].device.type, enabled=False):
            for suffix, layer in layers.items():
                layer = {key: value.float() for key, value in layer.items() if key != "aux"}
                matches = self.matcher(layer, targets)
                for term in self.terms:
                    for name, value in term(layer, targets, matches, counts).items():
                        losses[name + suffix] = value
        return losses
