"""How often a training step waits for the device, counted on a simulated one.

The simulated device reports itself as CUDA and computes on the CPU. What waits on CUDA is counted:
values that Python reads, results whose size depends on values, copies between host and device
unless they are asynchronous from pinned memory. As on CUDA, an operation on tensors of both
devices is an error, except for scalars of the CPU.
"""

from collections import Counter
from functools import partial
from traceback import extract_stack

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from data.batch import PackedBatch, Sample, collate
from engine.loop import Trainer
from engine.optim import Schedule
from mobileinst import zoo
from tests.small import SMALL

aten = torch.ops.aten
CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
READS = [aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default]
UNKNOWN_SIZES = [
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
]
INDEXING = [
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
]


class OnDevice(Tensor):
    """A tensor of the simulated device: for torch one of "meta", with its values in `host`."""

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device=META
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the simulated device")


class Kernels(TorchDispatchMode):
    """Runs operations of the simulated device on the CPU, and counts what waits for it."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = kwargs.get("device")
        if not any(isinstance(x, OnDevice) for x in tensors) and target != META:
            return func(*args, **kwargs)
        if self.waits_for(func, args, kwargs, tensors):
            self.waits[f"{func} {self.place()}"] += 1
        if target == META:
            kwargs = {**kwargs, "device": CPU}
        unwrap, wrap = (partial(tree_map, convert) for convert in (host_of, device_of))
        result = func(*unwrap(args), **unwrap(kwargs))
        if func in READS or target == CPU or (func is aten.copy_.default and not on(args[0])):
            return result
        if any(map(on, tensors)):
            return return_and_correct_aliasing(func, args, kwargs, wrap(result))
        return wrap(result)

    def waits_for(self, func, args: tuple, kwargs: dict, tensors: list[Tensor]) -> bool:
        if func in READS or func in UNKNOWN_SIZES:
            return True
        if func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype == torch.bool or not on(index) for index in indices)
        if func is aten.copy_.default:
            return on(args[0]) != on(args[1])
        if func is aten._to_copy.default:
            device = kwargs.get("device")
            moved = device is not None and (device == META) != on(args[0])
            pinned = getattr(args[0], "is_pinned_copy", False)
            return moved and not (kwargs.get("non_blocking") and pinned and device == META)
        assert all(on(x) or x.ndim == 0 for x in tensors), f"{func} on tensors of two devices"
        return False

    def place(self) -> str:
        """File and line of the library that asked for the operation."""
        own = [f for f in extract_stack() if f.name != "place" and "tests" not in f.filename]
        own = [f for f in own if any(f"/{x}/" in f.filename for x in ("mobileinst", "engine"))]
        return f"{own[-1].filename.rsplit('/', 1)[1]}:{own[-1].lineno}" if own else ""


class Names(TorchFunctionMode):
    """What Python sees of the simulated device: it is called cuda."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return CUDA if on(args[0]) else func(*args)
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_pinned_copy = True
            return pinned
        if func is Tensor.tolist and on(args[0]):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and on(args[0]):
            kwargs = {"dtype": args[0].dtype, "device": CUDA} | kwargs
            func, args = torch.tensor, args[1:]
        if func is not torch.device and "autocast" not in func.__name__:
            rename = partial(tree_map, lambda x: META if is_cuda(x) else x)
            args, kwargs = rename(args), rename(kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META:
            return func(*args, **{**kwargs, "device": CPU}).to(META)
        return func(*args, **kwargs)


def is_cuda(x: object) -> bool:
    return isinstance(x, str | torch.device) and str(x).startswith("cuda")


def on(x: object) -> bool:
    return isinstance(x, OnDevice)


def host_of(x: object) -> object:
    return x.host if on(x) else x


def device_of(x: object) -> object:
    return OnDevice(x) if isinstance(x, Tensor) else x


def move(model: nn.Module) -> None:
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                moved = OnDevice(value.detach().clone())
                module._parameters[name] = nn.Parameter(moved, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = OnDevice(value.clone())


SYSTEMS = SMALL | {
    "mobileinst_topformer_tiny": SMALL["mobileinst_topformer_tiny"] | {"semantic_weight": 1.0}
}


def packed_batch(num_images: int) -> PackedBatch:
    """Images with 3, 1, 0, 2, 3, … objects; the second has ignored pixels."""
    rng = np.random.default_rng(0)
    samples = []
    for image_id in range(num_images):
        count = (3, 1, 0, 2)[image_id % 4]
        samples.append(
            Sample(
                image=torch.from_numpy(rng.integers(0, 256, (3, 60, 90), dtype=np.uint8)),
                masks=rng.random((count, 60, 90)) < 0.3,
                ignore=np.full((60, 90), image_id == 1) & (rng.random((60, 90)) < 0.3),
                labels=rng.integers(0, 3, count),
                image_id=image_id,
                orig_size=(60, 90),
                canvas=(64, 128),
            )
        )
    return collate(samples)


def one_step(model: nn.Module, criterion: nn.Module, batch: PackedBatch, device: torch.device):
    groups = [{"params": list(model.parameters()), "lr": 1e-3, "base_lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    trainer = Trainer(
        model, criterion, optimizer, Schedule(10), scaler, None, device, seed=0, clip=1.0
    )
    [(values, _)] = trainer.steps([batch])
    return values


@pytest.mark.parametrize("num_images", [1, 4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_step_waits_for_the_device_three_times(name, num_images):
    model, criterion, _ = zoo.build(name, 3, **SYSTEMS[name])
    start = {key: value.clone() for key, value in model.state_dict().items()}
    batch = packed_batch(num_images)
    expected = one_step(model, criterion, batch, CPU)
    model.load_state_dict(start)
    with Names(), Kernels() as kernels:
        move(model)
        values = one_step(model, criterion, batch, CUDA)
    assert values == pytest.approx(expected, rel=1e-5)
    # The matching costs of all outputs, all losses, the norm of the gradients.
    assert kernels.waits.total() == 3, kernels.waits
