"""Entry: what each part of a model receives and returns, and what it costs.

Parts are the model's own modules. Start values, images and targets come from fixed seeds.
"""

import argparse
import inspect
import math
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.errors import InputError
from engine import files, options
from engine.commands import command, show_next
from engine.determinism import reseed
from engine.log import info
from engine.report.tables import aligned
from engine.tools.benchmark import add_synthetic, multiply_adds, parameters, synthetic_batch
from engine.values import device_for, model_errors
from mobileinst import zoo

STRIDES = tuple(2**power for power in range(8))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("What each part of a model receives and returns, and what it costs.")
    add_synthetic(parser, batch_size=2, rounds=3)
    depths = "1: the model's parts; 2: also their parts"
    parser.add_argument("--depth", type=options.positive, default=2, help=depths)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers as json")
    parser.add_argument("--overwrite", action="store_true", help="replace what --json names")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Value:
    """A tensor, or a number without shape: stride of its grid, smallest and largest value."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    stride: int | None
    channels: int | None
    least: float | None
    most: float | None


@dataclass(frozen=True)
class Part:
    """What a part receives and returns in its last call, and its costs in one forward."""

    path: str
    kind: str
    seconds: float
    receives: list[Value]
    returns: list[Value]
    depth: int = 0
    calls: int = 1
    parameters: int = 0
    multiply_adds: int | None = None


def stride_of(grid: Sequence[int], size: int) -> int | None:
    """The stride at which a square input of side `size` has this grid, rounded up or down."""
    fits = (s for s in STRIDES if set(grid) in ({-(-size // s)}, {size // s}))
    return next(fits, None)


def geometry(tensor: Tensor, size: int) -> tuple[int | None, int | None]:
    """Stride and channels: maps [B,C,h,w] and [B,h,w,C], masks [·,h,w], vectors [·,C]."""
    shape = tuple(tensor.shape)
    if len(shape) == 4:
        for grid, channels in ((shape[2:], shape[1]), (shape[1:3], shape[3])):
            if stride := stride_of(grid, size):
                return stride, channels
        return None, None
    if tensor.dtype == torch.bool:
        return stride_of(shape[-2:], size) if len(shape) > 1 else None, None
    return None, shape[-1] if len(shape) > 1 else None


def describe(name: str, content: Tensor | float, size: int) -> Value:
    """Describes a leaf before later operations in place can change it."""
    if not torch.is_tensor(content):
        return Value(name, None, type(content).__name__, None, None, content, content)
    limits = (None, None)
    if content.numel():
        numbers = content.detach().to(torch.float64 if content.is_floating_point() else torch.int64)
        limits = numbers.min().item(), numbers.max().item()
    dtype = str(content.dtype).removeprefix("torch.")
    return Value(name, tuple(content.shape), dtype, *geometry(content, size), *limits)


def values(content: Any, size: int, name: str = "") -> list[Value]:
    """Describes the tensors and numbers inside dicts, lists and tuples, named by their paths."""
    if isinstance(content, dict):
        inside = [(f"{name}.{key}".lstrip("."), x) for key, x in content.items()]
    elif isinstance(content, (list, tuple)):
        inside = [(f"{name}[{index}]", x) for index, x in enumerate(content)]
    elif torch.is_tensor(content) or isinstance(content, (int, float)):
        return [describe(name or "output", content, size)]
    else:
        return []
    return [value for path, x in inside for value in values(x, size, path)]


def find_parts(model: nn.Module, depth: int) -> dict[str, nn.Module]:
    """Path -> module down to `depth`, "" for the model; containers are skipped."""
    parts = {"": model}
    for path, module in model.named_modules():
        container = type(module).forward is nn.Module.forward  # cannot be called
        if path and not container and len(ancestors(path, parts)) <= depth:
            parts[path] = module
    return parts


def ancestors(path: str, parts: dict[str, nn.Module]) -> list[str]:
    """The parts that contain a part, outermost first, and the part itself."""
    return [other for other in parts if f"{path}.".startswith(f"{other}." if other else "")]


def in_order(parts: dict[str, nn.Module], called: Sequence[str]) -> list[str]:
    """Sorts paths by the order of calls; a part that is never called is the last of its parent."""
    place = {path: number for number, path in enumerate(called)}
    return sorted(
        parts, key=lambda path: [place.get(other, len(place)) for other in ancestors(path, parts)]
    )


def watched(parts: dict[str, nn.Module], before: Callable, after: Callable) -> ExitStack:
    """Hooks: before(path, module, args, kwargs) and after(path, module, args, output)."""
    hooks = ExitStack()
    for path, part in parts.items():
        handle = part.register_forward_pre_hook(partial(before, path), with_kwargs=True)
        hooks.enter_context(handle)
        hooks.enter_context(part.register_forward_hook(partial(after, path)))
    return hooks


def now() -> float:
    """Seconds, after all work of a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def inspect_model(
    model: nn.Module, images: Tensor, padding: Tensor, *, depth: int, rounds: int
) -> tuple[list[Part], dict]:
    """All parts of a model in eval mode in order of calls, costs of the batch, and the outputs."""
    size = images.shape[-1]
    parts = find_parts(model, depth)
    amounts = multiply_adds(model, images, padding)
    calls, received, returned = Counter(), {}, {}

    def before(path: str, module: nn.Module, arguments: tuple, keywords: dict) -> None:
        given = inspect.signature(module.forward).bind(*arguments, **keywords).arguments
        calls[path] += 1
        received[path] = values(given, size)

    def after(path: str, module: nn.Module, arguments: tuple, output: Any) -> None:
        returned[path] = values(output, size)

    with watched(parts, before, after):
        outputs = model(images, padding)
    seconds = {path: [] for path in parts}

    def start(path: str, *_: Any) -> None:
        seconds[path][-1] -= now()

    def stop(path: str, *_: Any) -> None:
        seconds[path][-1] += now()

    with watched(parts, start, stop):
        for _ in range(rounds):
            for measured in seconds.values():
                measured.append(0.0)
            model(images, padding)
    rows = [
        Part(
            path=path or "model",
            kind=type(parts[path]).__name__,
            depth=len(ancestors(path, parts)) - 1,
            calls=calls[path],
            parameters=parameters(parts[path]),
            multiply_adds=amounts.get(path, 0),
            seconds=statistics.median(seconds[path]),
            receives=received.get(path, []),
            returns=returned.get(path, []),
        )
        for path in in_order(parts, list(calls))
    ]
    return rows, outputs


def inspect_call(
    path: str, call: Callable, given: dict[str, Any], *, size: int, rounds: int
) -> Part:
    """Inspects the criterion or post-processing."""
    times = []
    for _ in range(rounds):
        start = now()
        returned = call(*given.values())
        times.append(now() - start)
    received, returned = values(given, size), values(returned, size)
    return Part(path, type(call).__name__, statistics.median(times), received, returned)


def inspect_all(opts: argparse.Namespace, device: torch.device) -> list[Part]:
    """The model, its parts, the criterion and post-processing.

    As in evaluation, no parameter requires a gradient, which may change the low bits of a forward.

    Raises:
        InputError: if the batch is too small for the batch norms of a training forward.
    """
    config = options.model_config(opts, num_classes=opts.num_classes)
    with model_errors():
        model, criterion, postprocess = zoo.build_from_config(config)
    model.to(device).eval().requires_grad_(False)
    limits = {"size": opts.image_size, "rounds": opts.rounds}
    batch = Batch(*synthetic_batch(opts.image_size, opts.batch_size, opts.num_classes, device))
    images, padding = batch.images, batch.padding
    rows, outputs = inspect_model(model, images, padding, depth=opts.depth, rounds=opts.rounds)
    reseed(0)  # drop path
    try:
        trained = model.train()(images, padding)  # with auxiliary outputs
    except ValueError as error:
        raise InputError(
            f"no training forward ({error}); raise --batch-size or --image-size"
        ) from error
    model.eval()
    given = {"outputs": trained, "targets": batch.targets}
    rows.append(inspect_call("criterion", criterion, given, **limits))
    given = {"outputs": outputs, "sizes": batch.sizes()}
    rows.append(inspect_call("postprocess", postprocess, given, **limits))
    return rows


def merged(listed: Sequence[Value]) -> list[Value]:
    """Joins the same entry of records in a list, named with [*], and the numbers of a list."""
    groups: dict[tuple, list[Value]] = defaultdict(list)
    for value in listed:
        index = r"\[\d+\]" if value.shape is None else r"\[\d+\](?=\.)"
        groups[re.sub(index, "[*]", value.name), value.shape, value.dtype].append(value)
    found = []
    for (name, *_), group in groups.items():
        known = [value for value in group if value.least is not None]
        least = min((value.least for value in known), default=None)
        most = max((value.most for value in known), default=None)
        name = group[0].name if len(group) == 1 else name
        found.append(replace(group[0], name=name, least=least, most=most))
    return found


def title(part: Part) -> str:
    facts = [f"{part.parameters:,} parameters"] if part.parameters else []
    if part.multiply_adds:
        facts.append(f"{part.multiply_adds / 1e6:,.1f} M multiply-adds")
    facts += [f"{1000 * part.seconds:.1f} ms"] if part.calls else ["never called as a module"]
    if part.calls > 1:
        facts.append(f"{part.calls} calls, the last of them:")
    return f"{part.path} ({part.kind})  " + ", ".join(facts)


def cells(direction: str, value: Value) -> list[str]:
    """The columns of the table."""
    limits = {value.least: "", value.most: ""}  # one if they are equal
    return [
        direction,
        value.name,
        "" if value.shape is None else " x ".join(map(str, value.shape)) or "one number",
        value.dtype,
        "" if value.stride is None else f"stride {value.stride}",
        "" if value.channels is None else f"{value.channels} channels",
        "empty" if value.least is None else " .. ".join(f"{limit:.4g}" for limit in limits),
    ]


def table(parts: list[Part]) -> str:
    """All parts, indented by depth, with columns of equal width."""
    blocks = [
        [cells("receives", value) for value in merged(part.receives)]
        + [cells("returns", value) for value in merged(part.returns)]
        for part in parts
    ]
    every = [row for rows in blocks for row in rows]
    texts, lines = iter(aligned(every, len(every[0])).splitlines()), []
    for part, rows in zip(parts, blocks):
        indent = "  " * part.depth
        lines += ["", indent + title(part), *(f"{indent}  {next(texts)}" for _ in rows)]
    return "\n".join(lines)


def as_json(part: Part) -> dict:
    """Plain values; NaN and infinities become text."""
    plain = asdict(part)
    for value in (*plain["receives"], *plain["returns"]):
        for limit in ("least", "most"):
            if value[limit] is not None and not math.isfinite(value[limit]):
                value[limit] = str(value[limit])
    return plain


def main(argv: list[str]) -> None:
    opts = parse(argv)
    files.require_free(opts.json, opts.overwrite)
    torch.set_num_threads(opts.threads)
    device = device_for(opts.device)
    parts = inspect_all(opts, device)
    info(
        f"{opts.model}: {opts.batch_size} images of {opts.image_size} x {opts.image_size}, "
        f"{opts.num_classes} classes, {opts.threads} threads, {device}"
    )
    info(table(parts))
    if opts.json:
        names = ("model", "image_size", "batch_size", "threads", "num_classes")
        about = {name: getattr(opts, name) for name in names}
        about |= {"set": dict(opts.set), "device": str(device)}
        about["parts"] = [as_json(part) for part in parts]
        files.write_json(opts.json, about, "name another")
        info(f"\nas json: {opts.json}")
    line = command("benchmark", "--model", opts.model)
    show_next({"time of a training step": line})


if __name__ == "__main__":
    options.run_entry(main)
