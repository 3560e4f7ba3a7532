"""The criterion: matches, then adds up the loss terms of the last and every auxiliary output."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mobileinst.set_prediction.matcher import Match, Matcher
from mobileinst.set_prediction.points import SeededPoints
from mobileinst.set_prediction.targets import Target

Counts = dict[str, Tensor]
Term = Callable[[dict, list[Target], list[Match], Counts], dict[str, Tensor]]


class Criterion(nn.Module):
    """Outputs and targets -> named, weighted loss terms.

    Args:
        matcher: pairs queries with objects, in each output by itself.
        class_loss, mask_loss, extra: the terms (`set_prediction.losses`). One that is divided by
            other counts than those of objects and images has a method `counts`.
    """

    def __init__(
        self, matcher: Matcher, class_loss: Term, mask_loss: Term, extra: Sequence[Term] = ()
    ):
        super().__init__()
        self.matcher = matcher
        self.terms = (class_loss, mask_loss, *extra)

    def counts(self, targets: list[dict]) -> Counts:
        """The divisors of the terms, to be summed over micro-batches and ranks.

        Scalars on the CPU: known before the forward pass, without waiting for a device.
        """
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
        matches: list[list[Match]] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, already weighted: their sum is the loss.

        Args:
            outputs: the dict of the contract, with its auxiliary outputs under `aux`.
            targets: B targets; any of them, or all, may be without objects.
            counts: `counts(...)` of the whole batch, if these targets are only a part of it.
            points: source of the random points; the default draws the same at every call.
            matches: for the last output, then for each of `aux`: B pairs of indices as the matcher
                returns them. The default asks the matcher.
        Returns:
            {"class": …, "pixel": …, …} and the same with `_aux0`, `_aux1`, … for `aux`. Scalars, at
            least float32 whatever the precision of the outputs.
        Raises:
            FloatingPointError: if a matching cost is not finite.
        """
        points = points or SeededPoints()
        counts = counts or self.counts(targets)
        counts = counts | {"objects": counts["objects"].clamp(min=1)}
        layers = {"": outputs} | {f"_aux{i}": aux for i, aux in enumerate(outputs["aux"])}
        shared = [Target.of(target) for target in targets]
        own = {key: [replace(t, points=points, layer=key) for t in shared] for key in layers}
        losses = {}
        with torch.autocast(outputs["class_logits"].device.type, enabled=False):
            if matches is None:
                matches = self.matcher((in_float32(layers[key]), own[key]) for key in layers)
            for (key, layer), pairs in zip(layers.items(), matches, strict=True):
                layer = in_float32(layer)
                for term in self.terms:
                    for name, value in term(layer, own[key], pairs, counts).items():
                        losses[name + key] = value
        return losses


def in_float32(outputs: dict) -> dict[str, Tensor]:
    """One output with half precision as float32; double stays."""
    return {
        key: x.to(torch.promote_types(x.dtype, torch.float32))
        for key, x in outputs.items()
        if key != "aux"
    }
