"""The training step, the steps of a run, and inference. Reads and writes no files."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from data import rle
from data.batch import Batch, PackedBatch
from data.errors import InputError, first_of
from engine import dist
from engine.determinism import reseed
from engine.files import FailedRun
from engine.log import StepTimer, info, progress
from engine.optim import MovingAverage, Schedule
from mobileinst.deploy import fold_batchnorms
from mobileinst.set_prediction.points import SeededPoints


class NonFiniteError(FailedRun):
    """A loss, a gradient or a weight is not finite. No parameter was updated with it."""


@dataclass
class Trainer:
    """The state of training on one rank: everything that a step needs and a checkpoint stores."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    device: torch.device
    seed: int
    accumulate: int = 1  # micro-batches per optimizer step
    clip: float = 0.0  # largest gradient norm; 0 is off
    amp: torch.dtype | None = None  # of the forward pass; None is float32
    skip_bad_steps: int = 0  # how many steps of the run may be skipped as not finite
    iteration: int = 0  # finished steps, skipped ones too; fixes random numbers with the seed
    skipped: int = 0

    def __post_init__(self) -> None:
        self.parallel = dist.wrap_ddp(self.model)

    def steps(
        self, loader: Iterable[PackedBatch]
    ) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        """Yields (values, seconds) of each optimizer step; a skipped step has no values.

        Raises:
            InputError: on all ranks, if one of them cannot read an image.
            NonFiniteError: on all ranks, if no more steps may be skipped.
        """
        self.model.train()
        micro_batches, timer = [], StepTimer()
        for batch in dist.lockstep(loader, InputError):
            micro_batches.append(batch.to(self.device))
            timer.lap("data")
            if len(micro_batches) < self.accumulate:
                continue
            can_skip = self.skipped < self.skip_bad_steps
            # A forward with bad numbers spoils BatchNorm statistics before the loss is known.
            buffers = [buffer.clone() for buffer in self.model.buffers()] if can_skip else []
            try:
                values = self.step(micro_batches, timer)
            except NonFiniteError as error:
                if not can_skip:
                    raise
                for buffer, before in zip(self.model.buffers(), buffers):
                    buffer.copy_(before)
                self.iteration, self.skipped, values = self.iteration + 1, self.skipped + 1, {}
                info(f"skipped, {self.skipped} of {self.skip_bad_steps}: {error}")
            yield values, dict(timer.parts)
            micro_batches, timer = [], StepTimer()
            self.model.train()  # the caller may have evaluated

    def step(self, micro_batches: list[Batch], timer: StepTimer) -> dict[str, float]:
        """Makes one update. Returns the loss, its terms and the gradient norm, over all ranks.

        Raises:
            NonFiniteError: before any parameter is changed.
        """
        self.schedule.apply(self.optimizer, self.iteration)
        counts = [self.criterion.counts(batch.targets) for batch in micro_batches]
        counts = dist.sum_over_ranks({key: sum(each[key] for each in counts) for key in counts[0]})
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for number, batch in enumerate(micro_batches):
            reseed(self.seed, "step", self.iteration, number * dist.world_size() + dist.rank())
            with dist.grad_sync(self.parallel, last=number + 1 == len(micro_batches)):
                with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
                    outputs = self.parallel(batch.images, batch.padding)
                timer.lap("forward")
                with dist.synced_errors(NonFiniteError):
                    losses, values = self.finite_losses(outputs, batch, counts)
                timer.lap("loss")
                self.scaler.scale(sum(losses.values())).backward()
                timer.lap("backward")
            totals = {name: totals.get(name, 0.0) + value for name, value in values.items()}
        totals = dist.sum_over_ranks(totals)
        grad_norm = self.update(micro_batches)
        timer.lap("update")
        # The norm of an overflow would spoil the mean of its logging interval.
        norm = {"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}
        return {"loss": sum(totals.values()), **totals, **norm}

    def finite_losses(
        self, outputs: dict, batch: Batch, counts: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The loss terms of a micro-batch, and their values, read from the device once."""
        points = SeededPoints(self.seed, self.iteration)
        try:
            losses = self.criterion(outputs, batch.targets, counts, points)
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist()))
            bad = [f"{name} {loss:g}" for name, loss in values.items() if not math.isfinite(loss)]
            if bad:
                raise FloatingPointError(first_of(bad))
        except FloatingPointError as error:  # from the matcher as well
            raise self.non_finite("loss", str(error), image_ids(batch)) from error
        return losses, values

    def non_finite(self, what: str, reason: str, images: list[int]) -> NonFiniteError:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return NonFiniteError(
            f"the {what} is not finite at iteration {self.iteration} "
            f"({reason}; images: {', '.join(map(str, images))}; learning rate {rate:.3g})"
        )

    def update(self, micro_batches: list[Batch]) -> float:
        """Clips, steps, averages. Returns the gradient norm before clipping.

        Raises:
            NonFiniteError: if it is not finite. With a scaler that is an overflow: the scaler skips
                the step and halves its scale, as long as that is at least 1.
        """
        self.scaler.unscale_(self.optimizer)
        named = {n: p for n, p in self.model.named_parameters() if p.grad is not None}
        norm = get_total_norm([parameter.grad for parameter in named.values()])
        grad_norm = norm.item()
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not math.isfinite(grad_norm) and not overflow:
            self.scaler.update(self.scaler.get_scale())  # resets that gradients are unscaled
            bad = [f"of {name}" for name, p in named.items() if not p.grad.isfinite().all()]
            images = dist.gather_interleaved([image_ids(batch) for batch in micro_batches])
            reason = first_of([f"norm {grad_norm:g}", *bad], shown=4)
            error = self.non_finite("gradient", reason, list(chain.from_iterable(images)))
            raise dist.mark_synced(error)
        if self.clip:
            clip_grads_with_norm_(named.values(), self.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        dist.average_batchnorm_stats(self.model)
        if self.average:
            self.average.update()
        self.iteration += 1
        return grad_norm


def image_ids(batch: Batch) -> list[int]:
    return [target["image_id"] for target in batch.targets]


@torch.inference_mode()
def run_inference(
    model: nn.Module,
    postprocess: Callable,
    loader: Iterable[PackedBatch],
    device: torch.device,
    category_ids: list[int],
    *,
    threshold: float | None = None,
    callback: Callable[[dict, Batch], None] | None = None,
    title: str = "evaluating",
) -> list[dict]:
    """Predicts a whole data set; every rank the batches of its loader, rank 0 gets all results.

    Args:
        model: stays unchanged; a copy with folded BatchNorms runs.
        category_ids: original id of each class index.
        threshold: None for evaluation: AP needs the low scores.
        callback: called with (outputs, batch).
    Returns:
        COCO results with RLE at the original size, image by image, highest score first, with the
        `best` of the contract.
    """
    model = fold_batchnorms(model)
    found = []
    with dist.synced_errors(InputError):
        for batch in progress(loader, desc=title, leave=False):
            batch = batch.to(device)
            outputs = model(batch.images, batch.padding)
            if callback:
                callback(outputs, batch)
            results = postprocess(outputs, batch.sizes(), threshold, encode=rle.encode)
            found.append(coco_results(image_ids(batch), results, category_ids))
    return list(chain.from_iterable(dist.gather_interleaved(found)))


def coco_results(of: list[int], results: list[dict], category_ids: list[int]) -> list[dict]:
    """The results of the images with these ids as COCO results with `best`."""
    rows = []
    for image_id, result in zip(of, results, strict=True):
        values = (result[key].tolist() for key in ("scores", "labels", "best"))
        rows += [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "segmentation": mask,
                "score": score,
                "best": best,
            }
            for score, label, best, mask in zip(*values, result["masks"])
        ]
    return rows
