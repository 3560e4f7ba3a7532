"""Distributed training with torchrun; no-ops with a single process.

CPU tensors use gloo, CUDA tensors nccl; flags, counts and results stay on the CPU, where the loss
of a rank is detected at once. All ranks call the functions marked *collective* in the same order.
Sums are taken in rank order.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import chain, zip_longest
from typing import TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import InputError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

EXIT_RANK_LOST = 75  # exit code of a rank that ends because another rank is gone
# Ranks wait while rank 0 scores or draws; only a rank that hangs takes so long to detect.
TIMEOUT = timedelta(hours=3)


class RankLost(RuntimeError):
    """Another rank has ended, so this one cannot continue."""


def world_size() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def local_world_size() -> int:
    """Number of processes that torchrun started on this machine; known before `init`."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def init() -> None:
    """Joins the process group that torchrun describes in the environment, if it does."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ
    if not several or torch_dist.is_initialized():
        return
    if local_world_size() <= torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=TIMEOUT)
    if not is_main_process():
        warnings.simplefilter("ignore")  # rank 0 shows them


def shutdown(error: BaseException | None = None) -> None:
    """Leaves the process group, with a barrier unless only this rank has the `error`: torchrun
    kills all ranks as soon as one exits with an error, while others may still save or report.
    """
    if not torch_dist.is_initialized():
        return
    if error is None or is_synced(error):
        try:
            torch_dist.barrier()
        except RuntimeError:  # another rank has already ended
            return
    torch_dist.destroy_process_group()


def device_of_rank(device: torch.device) -> torch.device:
    """The device of this rank; raises InputError if there are not enough devices."""
    if world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise InputError(
            f"--device {device}: several processes run on cuda, one GPU each, or on cpu; "
            "name one of these, or start a single process"
        )
    if local_world_size() > torch.cuda.device_count():
        raise InputError(
            f"{local_world_size()} processes were started and this machine has "
            f"{torch.cuda.device_count()} GPUs; start one for each, or give --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def mark_synced(error: E) -> E:
    """Marks an error that every rank raises at the same place, so that only rank 0 reports it."""
    error.synced = True
    return error


def is_synced(error: BaseException) -> bool:
    """Whether all ranks raise this error, or the one that it was raised from."""
    cause = error.__cause__
    return getattr(error, "synced", False) or (cause is not None and is_synced(cause))


def should_report(error: BaseException) -> bool:
    return is_main_process() or not is_synced(error)


@contextmanager
def synced_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Collective: if a rank leaves the block with an error of `kinds`, all ranks raise it, that of
    the lowest rank if there are several. Any other error ends its rank, and thereby the job.
    """
    if world_size() == 1:
        yield
        return
    failure = None
    try:
        yield
    except kinds as error:
        failure = error
    if not max_over_ranks(failure is not None):
        return
    failures = [None] * world_size()
    with detect_lost_ranks():
        torch_dist.all_gather_object(failures, failure)
    first = next(number for number, error in enumerate(failures) if error is not None)
    raise mark_synced(failure if first == rank() else failures[first])


def lockstep(items: Iterable[T], *kinds: type[Exception]) -> Iterator[T]:
    """Collective: iterates over equally many items; errors of `kinds` are raised on all ranks."""
    items, end = iter(items), object()
    while True:
        with synced_errors(*kinds):
            item = next(items, end)
        if item is end:
            return
        yield item


def local_first(make: Callable[[], T], *kinds: type[Exception]) -> T:
    """Collective: `make()` on every rank, first on one rank per machine, which fills a cache."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    for turn in (True, False):
        with synced_errors(*kinds):
            if is_first == turn:
                made = make()
    return made


def broadcast_from_main(make: Callable[[], T], *kinds: type[Exception]) -> T:
    """Collective: the result of `make()` on rank 0."""
    made = [None]
    with synced_errors(*kinds):
        if is_main_process():
            made = [make()]
    if world_size() > 1:
        with detect_lost_ranks():
            torch_dist.broadcast_object_list(made)
    return made[0]


def barrier() -> None:
    """Collective: waits until all ranks have arrived."""
    max_over_ranks(0)


def max_over_ranks(value: int) -> int:
    """Collective: the largest value of all ranks."""
    if world_size() == 1:
        return int(value)
    values = torch.tensor([int(value)])
    with detect_lost_ranks():
        torch_dist.all_reduce(values, torch_dist.ReduceOp.MAX)
    return int(values)


def sum_over_ranks(values: dict[str, T]) -> dict[str, T]:
    """Collective: sums of named numbers or scalar tensors; names must be the same on all ranks."""
    if world_size() == 1:
        return values
    sums = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    sums = ordered_all_reduce(sums).tolist()
    return {
        name: value.new_tensor(each) if torch.is_tensor(value) else each
        for (name, value), each in zip(values.items(), sums)
    }


def gather_interleaved(items: list[T]) -> list[T]:
    """Collective: undoes `everything[rank::world_size]` on rank 0; other ranks keep `items`."""
    if world_size() == 1:
        return items
    parts = [None] * world_size() if is_main_process() else None
    with detect_lost_ranks():
        torch_dist.gather_object(items, parts)
    if parts is None:
        return items
    missing = object()  # of ranks with fewer items
    merged = chain.from_iterable(zip_longest(*parts, fillvalue=missing))
    return [item for item in merged if item is not missing]


def ordered_all_reduce(values: Tensor) -> Tensor:
    """Collective: the sum over all ranks, added in rank order.

    The order of torch's all-reduce depends on the place of a value in memory, which for gradients
    changes after a resume. Here each rank adds up one share and gathers the others: same traffic.
    """
    if world_size() == 1:
        return values
    flat = values.flatten()
    flat = torch.cat((flat, flat.new_zeros(-len(flat) % world_size())))
    shares = torch.empty_like(flat)
    with detect_lost_ranks():
        torch_dist.all_to_all_single(shares, flat)
        share, *others = shares.chunk(world_size())
        for other in others:
            share = share + other
        torch_dist.all_gather(list(flat.chunk(world_size())), share)
    return flat[: values.numel()].view_as(values)


def wrap_ddp(model: nn.Module) -> nn.Module:
    """DDP that sums gradients, as losses are already divided by the counts of the whole step."""
    if world_size() == 1:
        return model
    # No broadcast of buffers, see `average_batchnorm_stats`. Newer torch renamed the switch.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **{switch: False})
    wrapped.register_comm_hook(None, ordered_hook)
    return wrapped


def ordered_hook(state: None, bucket: torch_dist.GradBucket) -> torch.futures.Future[Tensor]:
    future = torch.futures.Future()
    future.set_result(ordered_all_reduce(bucket.buffer()))
    return future


def grad_sync(model: nn.Module, last: bool) -> AbstractContextManager:
    """The context of a micro-batch: gradients are summed over the ranks in the last one only."""
    return nullcontext() if last or world_size() == 1 else model.no_sync()


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> None:
    """On CUDA, synchronises unfrozen BatchNorms; on CPU see `average_batchnorm_stats`."""
    if world_size() == 1 or device.type != "cuda":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                parent.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


@torch.no_grad()
def average_batchnorm_stats(model: nn.Module) -> None:
    """Collective: replaces running statistics of unsynchronised BatchNorms by their mean."""
    norms = [norm for norm in model.modules() if type(norm) is nn.BatchNorm2d]
    if world_size() == 1 or not norms:
        return
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    means = ordered_all_reduce(torch.cat(buffers)) / world_size()
    for buffer, mean in zip(buffers, means.split([len(buffer) for buffer in buffers])):
        buffer.copy_(mean)


@contextmanager
def detect_lost_ranks() -> Iterator[None]:
    """Turns the various RuntimeErrors of an exchange with a lost rank into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankLost(f"rank {rank()} ends because another rank is gone ({reason})") from error
