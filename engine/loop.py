"""The training loop and the inference loop. No files, no arguments."""

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from data import rle
from data.batch import Batch, PackedBatch
from data.errors import InputError
from engine import dist
from engine.errors import FailedRun
from engine.log import Stopwatch, Timed, progress, say
from engine.optim import MovingAverage, Schedule, clip_gradients, gradient_norms
from engine.seed import reseed
from mobileinst.set_prediction.points import SeededPoints


class BadStep(FailedRun):
    """A loss or gradient is not finite; the model, its average and the optimizer are as before."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended what was going on, at once."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = StopRequest.EXIT_CODES[number]


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the running step.

    `at_once`: they end whatever runs; asking twice does so in any case.
    """

    EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

    def __init__(self, at_once: bool = False) -> None:
        self.signal: int | None = None
        self.at_once = at_once
        self.before = {}
        self.process = os.getpid()

    def __enter__(self) -> "StopRequest":
        for number in self.EXIT_CODES:
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame) -> None:
        if os.getpid() != self.process:  # a loader process that has just begun: its parent decides
            return
        asked_before, self.signal = self.signal is not None, self.signal or number
        if asked_before or self.at_once:
            raise Stopped(self.signal)
        with suppress(RuntimeError):  # of a stream in the middle of a line
            say("stopping after this step, once it is saved; a second time stops at once")

    def is_asked(self) -> bool:
        """Whether any of the processes was asked to stop: collective, so all stop together."""
        asked = dist.maximum(self.signal or 0)
        if asked:
            self.signal = asked
        return bool(asked)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """For work by which nothing is lost, as evaluating and drawing: a wish ends it at once.

        Raises:
            Stopped: there is such a wish.
        """
        before, self.at_once = self.at_once, True
        try:
            if self.signal is not None:
                raise Stopped(self.signal)
            yield
        finally:
            self.at_once = before


@dataclass
class Trainer:
    """All that one optimizer step needs, and all that a checkpoint must hold.

    `matching` is the criterion's matcher where its share of the time is to be told apart.
    `skip_bad_steps`: how many steps with bad numbers may be left out, in the whole run.
    `iteration` counts finished optimizer steps, and the `skipped` ones among them; with the seed it
    fixes every random number.
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
    skip_bad_steps: int = 0
    iteration: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.parallel = dist.parallel(self.model)

    def state(self) -> dict:
        """Plain tensors and types that `restore` understands."""
        return {
            "iteration": self.iteration,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on exactly where `state` was taken; rates and decays stay those of the optimizer."""
        self.iteration = state["iteration"]
        self.skipped = state.get("skipped", 0)
        self.model.load_state_dict(state["model"])
        own = self.optimizer.state_dict()["param_groups"]
        moments = state["optimizer"]["state"]
        if not moments.keys() <= {number for group in own for number in group["params"]}:
            raise ValueError("the optimizer has other parameters")
        self.optimizer.load_state_dict({"state": moments, "param_groups": own})
        for parameter, values in self.optimizer.state.items():
            if any(value.ndim and value.shape != parameter.shape for value in values.values()):
                raise ValueError("the optimizer has parameters of other shapes")
        self.schedule.apply(self.optimizer, max(0, self.iteration - 1))  # as the last step left it
        if state["scaler"]:  # empty where it was not needed
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
            self.average.updates = state["average_updates"]

    def steps(
        self, loader: Iterable[PackedBatch]
    ) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        """Optimizer steps over a loader of micro-batches; yields (values, seconds) of each.

        A step that was skipped has no values.

        Raises:
            InputError: on all processes, whichever met a broken picture.
            BadStep: likewise; no more steps may be skipped.
        """
        self.model.train()
        micro_batches, watch = [], Stopwatch()
        for batch in dist.in_step(loader, InputError):
            micro_batches.append(batch.to(self.device))
            watch.lap("data")
            if len(micro_batches) == self.accumulate:
                values = self.step_or_skip(micro_batches, watch)
                yield values, dict(watch.parts)
                micro_batches, watch = [], Stopwatch()
                self.model.train()  # whoever took the value may have evaluated

    def step_or_skip(self, micro_batches: list[Batch], watch: Stopwatch) -> dict[str, float]:
        """One update, or none where its numbers are bad and that may be passed over."""
        # A forward of bad numbers has spoilt the statistics of the norms before any loss is seen.
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        try:
            return self.step(micro_batches, watch)
        except BadStep as error:
            for buffer, before in zip(self.model.buffers(), buffers):
                buffer.copy_(before)
            if self.skipped >= self.skip_bad_steps:
                raise
            self.skipped += 1
            self.iteration += 1
            say(f"skipped, {self.skipped} of {self.skip_bad_steps}: {error}")
            return {}

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
        grad_norm = self.update(micro_batches)
        watch.lap("update")
        # That of an overflow says nothing, and would spoil the mean of its interval.
        norm = {"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}
        return {"loss": sum(totals.values()), **totals, **norm}

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
            raise self.bad_step("loss", str(error), [pictures_of(batch)]) from error
        values = {name: value.item() for name, value in losses.items()}
        bad = [f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise self.bad_step("loss", some_of(bad), [pictures_of(batch)])
        return losses

    def bad_step(self, what: str, reason: str, pictures: list[list[int]]) -> BadStep:
        """pictures: ids of those that may be to blame, micro-batch by micro-batch."""
        listed = ", ".join(map(str, chain.from_iterable(pictures)))
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return BadStep(
            f"the {what} is not finite at iteration {self.iteration} "
            f"({reason}; pictures: {listed}; learning rate {rate:.3g})"
        )

    def update(self, micro_batches: list[Batch]) -> float:
        """Clip, step, average. Returns the gradient norm before clipping.

        Raises:
            BadStep: it is not finite. With a scaler that is an overflow, which the scaler mends by
                leaving the step out and halving its factor, as long as there is one left to halve.
        """
        self.scaler.unscale_(self.optimizer)
        norms = gradient_norms(self.model)
        norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not norm.isfinite() and not overflow:
            self.scaler.update(self.scaler.get_scale())  # forgets that this step was unscaled
            bad = [f"of {name}" for name, value in norms.items() if not value.isfinite()]
            reason = some_of([f"norm {norm:g}", *bad], shown=4)
            pictures = dist.in_turns([pictures_of(batch) for batch in micro_batches])
            raise dist.agreed(self.bad_step("gradient", reason, pictures))
        if self.clip:
            clip_gradients(self.model, norm, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        dist.average_statistics(self.model)
        if self.average:
            self.average.update()
        self.iteration += 1
        return norm.item()

    def require_finite(self) -> None:
        """Nothing that a checkpoint is made of may be bad: it is to be the way back.

        Raises:
            BadStep: something is, after steps whose losses and gradients were finite.
        """
        state = {"model": self.model, "average": self.average and self.average.model}
        named = [
            (f"{part} {name}", value)
            for part, module in state.items()
            if module
            for name, value in module.state_dict().items()
        ]
        for moments in self.optimizer.state.values():
            named += [(f"optimizer {name}", value) for name, value in moments.items()]
        finite = [value.isfinite().all().to(self.device) for _, value in named]
        bad = [name for (name, _), good in zip(named, torch.stack(finite).tolist()) if not good]
        if bad:
            raise BadStep(f"not finite after iteration {self.iteration}: {some_of(bad)}")


def pictures_of(batch: Batch) -> list[int]:
    """The ids of its pictures."""
    return [target["image_id"] for target in batch.targets]


def some_of(names: list[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = [f"{len(names) - shown} more"] if len(names) > shown else []
    return ", ".join([*names[:shown], *more])


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
