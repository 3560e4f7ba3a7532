"""The files of an export: one function for each format, and what it may differ from the model."""

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data.errors import InputError
from mobileinst.deploy import Deployed, FromBytes


class Limits(NamedTuple):
    """The largest difference of a score, and the lowest mask IoU to the answers of the model."""

    score: float
    iou: float


class Format(NamedTuple):
    """A kind of exported file. `write` makes it from a deployed model, with these packages."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[Deployed, Path], None]
    limits: Limits
    input: dict[str, str]


def write_onnx(model: Deployed, path: Path) -> None:
    """ONNX: input `image` uint8 [1,H,W,3], outputs `scores` and `masks`."""
    import onnx

    pixels = torch.zeros(1, *model.size, 3, dtype=torch.uint8)
    program = traced(FromBytes(model), pixels)
    with quiet():
        names = {"input_names": ["image"], "output_names": ["scores", "masks"]}
        torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path)
    content = onnx.load(path)
    for node in content.graph.node:
        del node.metadata_props[:]  # lines and paths of the source
    onnx.save(content, path)


def write_pte(model: Deployed, path: Path) -> None:
    """ExecuTorch with XNNPACK: input float32 [1,3,H,W] in 0..1, outputs scores and masks."""
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        program = traced(model, torch.zeros(1, 3, *model.size))
        program = constant_prop_pass(program.run_decompositions({}))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


BYTES = {"name": "image", "layout": "NHWC", "type": "uint8"}
FLOATS = {"name": "image", "layout": "NCHW", "type": "float32"}
FORMATS = {
    "onnx": Format(
        "model.onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, Limits(1e-3, 0.99), BYTES
    ),
    "pte": Format("model.pte", ("executorch",), write_pte, Limits(1e-3, 0.99), FLOATS),
}


def traced(model: nn.Module, image: torch.Tensor) -> torch.export.ExportedProgram:
    """The graph of a model; raises InputError with the part that cannot be one."""
    running: list[str] = []  # modules whose forward has begun and not ended

    def end(*_: object) -> None:
        running.pop()

    hooks = [module.register_forward_hook(end) for module in model.modules()]
    for name, module in model.named_modules():
        begin = functools.partial(lambda name, *_: running.append(name), name)
        hooks.append(module.register_forward_pre_hook(begin))
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(model, (image,))
    except Exception as error:  # torch raises nearly everything for what it cannot trace
        part = running[-1].rpartition("model.")[2] if running else ""
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the model cannot be exported: {part or 'it'} is no graph of tensors of fixed sizes "
            f"({reason}); change this part"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and log lines that exporters print about their own inside."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
