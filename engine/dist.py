"""Many processes as one training: those that torchrun started, or a single one at no cost.

`join` reads what torchrun put into the environment. Tensors on a CPU travel through gloo, those on
CUDA through nccl; flags, counts and results always lie on the CPU, so that a process that is gone
is noticed at once. Functions marked *collective* are to be called by all processes in one order.
Sums are taken in the order of the ranks, so they are the same bits however they travelled.
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
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import InputError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

LEFT_ALONE = 75  # exit code of a process that ends because another one did
# One process reads, scores or draws while the others wait. A process that is gone is noticed
# without this limit, one that is stuck only by it.
PATIENCE = timedelta(hours=3)


class PeerLost(RuntimeError):
    """Another process of this training is gone, so this one cannot go on either."""


def world() -> int:
    """How many processes train together."""
    return torch_dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process, 0 .. world - 1."""
    return torch_dist.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def on_this_machine() -> int:
    """How many processes torchrun started on this machine; known before `join`."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _joined() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def join() -> None:
    """Become one of the processes that torchrun started; without torchrun nothing happens."""
    told = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not told or int(os.environ["WORLD_SIZE"]) == 1 or _joined():
        return
    if on_this_machine() <= torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=PATIENCE)
    if not is_main():
        warnings.simplefilter("ignore")  # the main process has the same ones


def leave(error: BaseException | None = None) -> None:
    """Leave the others: at the same moment, unless an `error` is this process's alone.

    torchrun ends all others as soon as one process fails, so the one that has something to say or
    to save must not be left behind.
    """
    if not _joined():
        return
    if error is None or is_agreed(error):
        try:
            torch_dist.barrier()
        except RuntimeError:  # somebody was faster
            return
    torch_dist.destroy_process_group()


def device_for(device: torch.device) -> torch.device:
    """The device of this process, where `device` is what the user asked for.

    Raises:
        InputError: there are fewer devices than processes, or it is of a kind for one process.
    """
    if world() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise InputError(
            f"--device {device}: several processes run on cuda, one GPU each, or on cpu; "
            "name one of these, or start a single process"
        )
    if on_this_machine() > torch.cuda.device_count():
        raise InputError(
            f"{on_this_machine()} processes were started and this machine has "
            f"{torch.cuda.device_count()} GPUs; start one for each, or give --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def agreed(error: E) -> E:
    """Marks an error that every process raises at the same place: one of them says it."""
    error.agreed = True
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether all processes raise this error, or the one that it was made from."""
    cause = error.__cause__
    return getattr(error, "agreed", False) or (cause is not None and is_agreed(cause))


def must_say(error: BaseException) -> bool:
    """Whether it falls to this process to tell the user of an error."""
    return is_main() or not is_agreed(error)


@contextmanager
def together(*kinds: type[Exception]) -> Iterator[None]:
    """Collective: all processes leave the block well, or all with the error of the first of them.

    kinds: errors that are agreed on. Any other ends its process, which ends the rest.
    """
    if world() == 1:
        yield
        return
    failure = None
    try:
        yield
    except kinds as error:
        failure = error
    if not maximum(failure is not None):
        return
    told = [None] * world()
    with _needing_all():
        torch_dist.all_gather_object(told, failure)
    first = next(number for number, error in enumerate(told) if error is not None)
    raise agreed(failure if first == rank() else told[first])


def in_step(items: Iterable[T], *kinds: type[Exception]) -> Iterator[T]:
    """Collective: the items, as many on every process; an error while getting one reaches all."""
    items, nothing = iter(items), object()
    while True:
        with together(*kinds):
            item = next(items, nothing)
        if item is nothing:
            return
        yield item


def one_first(make: Callable[[], T], *kinds: type[Exception]) -> T:
    """Collective: `make()` on every process, on one of each machine before the others, because it
    fills a cache that the others read.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0 or world() == 1
    for turn in (True, False):
        with together(*kinds):
            if first == turn:
                made = make()
    return made


def from_main(make: Callable[[], T], *kinds: type[Exception]) -> T:
    """Collective: what `make()` gives on the main process."""
    made = [None]
    with together(*kinds):
        if is_main():
            made = [make()]
    if world() > 1:
        with _needing_all():
            torch_dist.broadcast_object_list(made)
    return made[0]


def wait() -> None:
    """Collective: until all have come here."""
    maximum(0)


def maximum(value: int) -> int:
    """Collective: the largest of a number that each process has."""
    return int(_reduced(torch.tensor([int(value)]), torch_dist.ReduceOp.MAX).item())


def total(values: dict[str, T]) -> dict[str, T]:
    """Collective: sums over all processes of named numbers or scalar tensors, same names on all."""
    if world() == 1:
        return values
    summed = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    summed = sum_in_order(summed).tolist()
    return {
        name: value.new_tensor(each) if torch.is_tensor(value) else each
        for (name, value), each in zip(values.items(), summed)
    }


def in_turns(mine: list[T]) -> list[T]:
    """Collective: all lists as one for the main process, in turns as `[rank::world]` dealt it.

    Returns:
        The whole list on the main process; on the others only their own.
    """
    if world() == 1:
        return mine
    parts = [None] * world() if is_main() else None
    with _needing_all():
        torch_dist.gather_object(mine, parts)
    if not is_main():
        return mine
    missing = object()  # of a process that has fewer, or had to leave some out
    turns = chain.from_iterable(zip_longest(*parts, fillvalue=missing))
    return [one for one in turns if one is not missing]


def sum_in_order(values: torch.Tensor) -> torch.Tensor:
    """Collective: the sum over all processes, first the value of rank 0, then that of 1, and so on.

    An ordinary all-reduce of three or more adds in an order that depends on where a value lies in
    memory, which for gradients is another in the first step after a resume than in those behind it.
    Each process adds up one share of the values, then all get all shares: the same traffic.
    """
    if world() == 1:
        return values
    flat = values.flatten()
    flat = torch.cat((flat, flat.new_zeros(-len(flat) % world())))
    shares = torch.empty_like(flat)
    with _needing_all():
        torch_dist.all_to_all_single(shares, flat)
        share, *others = shares.chunk(world())
        for other in others:
            share = share + other
        torch_dist.all_gather_into_tensor(flat, share)
    return flat[: values.numel()].view_as(values)


def parallel(model: nn.Module) -> nn.Module:
    """The model as the training loop calls it: backward adds up the gradients of all processes.

    Sums and not means: every loss is already divided by the counts of the whole step.
    """
    if world() == 1:
        return model
    # Buffers are seen to by `average_statistics`. The switch is called otherwise in newer torch.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **{switch: False})
    wrapped.register_comm_hook(None, _sum_bucket)
    return wrapped


def _sum_bucket(state: None, bucket: torch_dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    future = torch.futures.Future()
    future.set_result(sum_in_order(bucket.buffer()))
    return future


def summing(model: nn.Module, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: only that of the `last` adds up gradients."""
    return nullcontext() if last or world() == 1 else model.no_sync()


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """On CUDA, BatchNorms see the pictures of all processes; frozen ones stay as they are.

    There is no such thing for a CPU: see `average_statistics`.
    """
    if world() == 1 or device.type != "cuda":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                parent.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Collective: running statistics of unsynchronised BatchNorms become the mean of all processes.

    In the step itself each process normalises with the pictures it has.
    """
    norms = [norm for norm in model.modules() if type(norm) is nn.BatchNorm2d]
    if world() == 1 or not norms:
        return
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    means = sum_in_order(torch.cat(buffers)) / world()
    for buffer, mean in zip(buffers, means.split([len(buffer) for buffer in buffers])):
        buffer.copy_(mean)


def _reduced(values: torch.Tensor, how: torch_dist.ReduceOp) -> torch.Tensor:
    if world() > 1:
        with _needing_all():
            torch_dist.all_reduce(values, how)
    return values


@contextmanager
def _needing_all() -> Iterator[None]:
    """Exchanges fail with all sorts of RuntimeErrors when a process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PeerLost(f"process {rank()} ends, for it lost another one ({reason})") from error
