"""Export formats: a function that writes each, and its tolerance."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult

from data.errors import InputError
from engine import quantise
from engine.backends import silent_libraries
from mobileinst.deploy import Deployed, FromBytes
from mobileinst.layers.winograd import with_winograd


class Limits(NamedTuple):
    """Tolerances: the largest difference of a score (see parity.SHARE), the least and the median
    mask IoU with the model. missing: share of results of one side only, or of another class. ap:
    loss of AP.
    """

    score: float
    iou: float
    median_iou: float = 0.0
    missing: float = 0.0
    ap: float = 1.0


class Format(NamedTuple):
    """A kind of exported file. `write` makes it from a deployed model, with these packages."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[Deployed, Path], None]
    limits: Limits
    input: dict[str, str]


def write_onnx(model: Deployed, path: Path) -> None:
    """ONNX: input `image` uint8 [1,H,W,3], outputs `scores` and `masks`.

    ONNX Runtime convolves directly on a CPU, so wide convolutions become Winograd's here.
    """
    save_onnx(with_winograd(FromBytes(model)), pixels(model), path)


def pixels(model: Deployed) -> torch.Tensor:
    return torch.zeros(1, *model.size, 3, dtype=torch.uint8)


def save_onnx(module: nn.Module, image: torch.Tensor, path: Path) -> None:
    """Writes a model, given an image like those that it takes, as an ONNX file."""
    import onnx

    program = traced(module, image)
    with silent_libraries():
        names = {"input_names": ["image"], "output_names": ["scores", "masks"]}
        torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path)
    content = onnx.load(path)
    for node in content.graph.node:  # removes source lines and paths
        modules = [each for each in node.metadata_props if each.key == quantise.SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(modules)
    onnx.save(content, path)


def write_plain_onnx(model: Deployed, path: Path) -> None:
    """The same with convolutions as they are: for converters, for runtimes of GPUs, which have a
    fast way of their own, and for float16 and int8, as Winograd's transforms enlarge numbers.
    """
    save_onnx(FromBytes(model), pixels(model), path)


@contextmanager
def plain_onnx(model: Deployed) -> Iterator[Path]:
    """A temporary file of `write_plain_onnx`."""
    with tempfile.TemporaryDirectory() as folder:
        write_plain_onnx(model, path := Path(folder, "plain.onnx"))
        yield path


def write_float16(model: Deployed, path: Path) -> None:
    """The ONNX file in float16."""
    with plain_onnx(model) as source:
        quantise.to_float16(source, path)


def write_pte(model: Deployed, path: Path) -> None:
    """ExecuTorch with XNNPACK: input float32 [1,3,H,W] in 0..1, outputs scores and masks."""
    with silent_libraries():
        path.write_bytes(for_xnnpack(model).to_executorch().buffer)


def for_xnnpack(model: Deployed) -> Any:
    """The graph partitioned for XNNPACK, with operators of ExecuTorch between the parts."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    program = traced(model, torch.zeros(1, 3, *model.size))
    program = constant_prop_pass(program.run_decompositions({}))
    for name, value in program.constants.items():  # files keep no strides, XNNPACK no offsets
        program.constants[name] = value.clone(memory_format=torch.contiguous_format)
    return to_edge_transform_and_lower(program, [drop_copies], [XnnpackPartitioner()])


def drop_copies(module: torch.fx.GraphModule) -> PassResult:
    """Removes copies, which would split the XNNPACK partition."""
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name in COPIES and node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    return PassResult(module, True)


COPIES = "aten.expand_copy.default", "aten.alias_copy.default"
BYTES = {"name": "image", "layout": "NHWC", "type": "uint8"}
FLOATS = {"name": "image", "layout": "NCHW", "type": "float32"}
ONNX = "onnx", "onnxscript", "onnxruntime"
FORMATS = {
    "onnx": Format("model.onnx", ONNX, write_onnx, Limits(1e-3, 0.99), BYTES),
    "onnx-plain": Format("model.plain.onnx", ONNX, write_plain_onnx, Limits(1e-3, 0.99), BYTES),
    "pte": Format("model.pte", ("executorch",), write_pte, Limits(1e-3, 0.99), FLOATS),
}
FP16 = Format("model.fp16.onnx", ONNX, write_float16, Limits(5e-3, 0.98), BYTES)
# Score and missing are our choice: detections nearer to the threshold than that may come and go,
# and of two likely classes the other may be the best.
INT8_LIMITS = Limits(0.15, 0.9, median_iou=0.95, missing=0.02, ap=0.01)


def int8(images: Callable[[], Sequence[np.ndarray]], threshold: float) -> Format:
    """The ONNX file in int8, with ranges from `images`."""

    def write(model: Deployed, path: Path) -> None:
        with plain_onnx(model) as source:
            quantise.to_int8(source, path, images(), threshold)

    return Format("model.int8.onnx", ONNX, write, INT8_LIMITS, BYTES)


def traced(model: nn.Module, image: torch.Tensor) -> torch.export.ExportedProgram:
    """The graph of a model in eval mode; raises InputError with the part that cannot be one."""
    names = {module: name for name, module in model.named_modules()}
    running = []  # modules whose forward has begun and not ended

    def begin(module: nn.Module, _: object) -> None:
        running.append(names[module])

    def end(*_: object) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        with torch.no_grad(), silent_libraries():
            return torch.export.export(model, (image,))
    except Exception as error:  # torch raises nearly everything for what it cannot trace
        part = re.sub(r"^(model\.)+", "", running[-1]) if running else ""  # of the wrappers
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the model cannot be exported: {part or 'it'} is no graph of tensors of fixed sizes "
            f"({reason}); change this part"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
