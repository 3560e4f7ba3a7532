"""The training loop and the inference loop. No files, no arguments."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from data import rle
from data.batch import Batch, PackedBatch
from data.errors import InputError
from engine import dist
from engine.log import Stopwatch, Timed, progress, say
from engine.optim import MovingAverage, Schedule
from engine.seed import reseed
from mobileinst.set_prediction.points import SeededPoints


class BadStep(RuntimeError):
    """A loss or gradient is not finite; nothing was updated."""


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the running step."""

    EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before = {}

    def __enter__(self) -> "StopRequest":
        for number in self.EXIT_CODES:
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame) -> None:
        if self.signal is not None:  # asked twice: leave at once
            raise KeyboardInterrupt
        self.signal = number
        say("stopping after this step, once it is saved; a second time stops at once")

    def is_asked(self) -> bool:
        """Whether any of the processes was asked to stop: collective, so all stop together."""
        asked = dist.maximum(self.signal or 0)
        if asked:
            self.signal = asked
        return bool(asked)

    @property
    def exit_code(self) -> int:
        return self.EXIT_CODES[self.signal]


@dataclass
class Trainer:
    """All that one optimizer step needs, and all that a checkpoint must hold.

    `matching` is the criterion's matcher where its share of the time is to be told apart.
    `iteration` counts finished optimizer steps; with the seed it fixes every random number.
    Where several processes train together, each has a trainer and takes all its steps with the
    others: same losses, same gradients, same weights.
    """

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    device: torch.device
    seed: int
    accumulate: int = 1
    clip: float = 0.0
    amp: torch.dtype | None = None
    matching: Timed | None = None
    iteration: int = 0

    def __post_init__(self) -> None:
        self.parallel = dist.parallel(self.model)

    def state(self) -> dict:
        """Plain tensors and types that `restore` understands."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on exactly where `state` was taken; rates and decays stay those of the optimizer."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.param_groups
        settings = [
            {key: group[key] for key in ("base_lr", "weight_decay", "fused")} for group in groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update(own)
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
            self.average.updates = state["average_updates"]

    def steps(
        self, loader: Iterable[PackedBatch]
    ) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        """Optimizer steps over a loader of micro-batches; yields (values, seconds) of each.

        Raises:
            InputError, BadStep: on all processes, wherever it arose.
        """
        self.model.train()
        micro_batches, watch = [], Stopwatch()
        for batch in dist.in_step(loader, InputError):
            micro_batches.append(batch.to(self.device))
            watch.lap("data")
            if len(micro_batches) == self.accumulate:
                values = self.step(micro_batches, watch)
                yield values, dict(watch.parts)
                micro_batches, watch = [], Stopwatch()
                self.model.train()  # whoever took the value may have evaluated

    def step(self, micro_batches: list[Batch], watch: Stopwatch) -> dict[str, float]:
        """One update from `accumulate` micro-batches.

        Raises:
            BadStep: before any weight is changed.
        """
        self.schedule.apply(self.optimizer, self.iteration)
        counts = self.total_counts(micro_batches)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for number, batch in enumerate(micro_batches):
            reseed(self.seed, "step", self.iteration, number * dist.world() + dist.rank())
            with dist.summing(self.parallel, last=number + 1 == len(micro_batches)):
                with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
                    outputs = self.parallel(batch.images, batch.padding)
                watch.lap("forward")
                with dist.together(BadStep):
                    losses = self.finite_losses(outputs, batch, counts)
                watch.lap("loss")
                if self.matching:
                    watch.share("matching", "loss", self.matching.take())
                self.scaler.scale(sum(losses.values())).backward()
                watch.lap("backward")
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item()
        totals = dist.total(totals)
        grad_norm = self.update()
        watch.lap("update")
        return {"loss": sum(totals.values()), **totals, "grad_norm": grad_norm}

    def total_counts(self, micro_batches: list[Batch]) -> dict[str, torch.Tensor]:
        """The criterion's counts over all micro-batches of the step, on all processes."""
        parts = [self.criterion.counts(batch.targets) for batch in micro_batches]
        return dist.total({name: sum(part[name] for part in parts) for name in parts[0]})

    def finite_losses(
        self, outputs: dict, batch: Batch, counts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The loss terms of a micro-batch; stops before the damage."""
        points = SeededPoints(self.seed, self.iteration)
        try:
            losses = self.criterion(outputs, batch.targets, counts, points)
        except FloatingPointError as error:  # the matcher was first to see it
            raise self.bad_step(str(error), batch) from error
        if not all(math.isfinite(value.item()) for value in losses.values()):
            terms = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
            raise self.bad_step(f"terms: {terms}", batch)
        return losses

    def bad_step(self, reason: str, batch: Batch) -> BadStep:
        pictures = ", ".join(str(target["image_id"]) for target in batch.targets)
        rate = self.optimizer.param_groups[0]["lr"]
        return BadStep(
            f"the loss is not finite at iteration {self.iteration} "
            f"({reason}; pictures: {pictures}; learning rate {rate:.3g})"
        )

    def update(self) -> float:
        """Clip, step, average. Returns the gradient norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.clip or math.inf, foreach=True
        ).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise dist.agreed(BadStep(f"the gradient norm is {norm} at iteration {self.iteration}"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        dist.average_statistics(self.model)
        if self.average:
            self.average.update()
        self.iteration += 1
        return norm


@torch.inference_mode()
def run_inference(
    model: nn.Module,
    postprocess: Callable,
    loader: Iterable[PackedBatch],
    device: torch.device,
    category_ids: list[int],
    *,
    threshold: float | None = None,
    watch: Callable[[dict, Batch], None] | None = None,
    title: str = "evaluating",
) -> list[dict]:
    """Predictions of a whole set in the COCO result format, RLE at the original size.

    Where several processes evaluate together, each is given its share of the batches (every
    `world`-th one), and the main process gets what all have found, in the order that a single one
    would have found it.

    Args:
        model: is put into eval mode.
        category_ids: original id of each class index.
        threshold: None for evaluation: AP needs the low scores.
        watch: is shown the outputs and the batch they belong to, if anybody wants to see them.
    Returns:
        [{image_id, category_id, segmentation, score, best}], picture by picture, the highest score
        first; best: whether it is the best answer of its query, which for use is the only one.
    """
    model.eval()
    found = []
    with dist.together(InputError):
        for batch in progress(loader, desc=title, leave=False):
            batch = batch.to(device)
            outputs = model(batch.images, batch.padding)
            if watch:
                watch(outputs, batch)
            results = postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)
            found.append(detections_of(batch, results, category_ids))
    return list(chain.from_iterable(dist.in_turns(found)))


def detections_of(batch: Batch, results: list[dict], category_ids: list[int]) -> list[dict]:
    """What post-processing found in a batch, as `run_inference` lists it."""
    return [
        {
            "image_id": target["image_id"],
            "category_id": category_ids[label],
            "segmentation": mask,
            "score": score,
            "best": best,
        }
        for target, result in zip(batch.targets, results)
        for score, label, mask, best in zip(
            result["scores"].tolist(),
            result["labels"].tolist(),
            result["masks"],
            result["best"].tolist(),
        )
    ]
