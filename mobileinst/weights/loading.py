"""Loads a file into a module: compares everything before it copies anything."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mobileinst.layers.pixels import HALF
from mobileinst.weights.files import WeightFile, open_weights
from mobileinst.weights.matching import Match, find_match
from mobileinst.weights.reading import LoadError
from mobileinst.weights.report import Report, describe, fingerprint, shorten


def load(
    module: nn.Module,
    path: str | Path | WeightFile,
    *,
    classes: Sequence[str] | None = None,
    config: Mapping | None = None,
    allow_partial: bool = False,
) -> Report:
    """Loads a file of weights into a backbone, or into a model that has one as `.backbone`.

    Weights of a backbone go into the backbone. A checkpoint of ours fills a whole model; in layers
    with a row per class, the rows of classes of the same name are copied. Published files of
    Mask2Former fill a whole model as well, except for layers with a row per class if their number
    of classes is another. All that belongs there comes from the file, or nothing is changed.

    Args:
        module: keeps its dtypes and device.
        path: the file, or what `open_weights` read from it.
        classes: names of the model's classes, needed for whole checkpoints of ours only.
        config: keywords the model was built with, to name those of a checkpoint that differ;
            modules that only these keywords add keep their values.
        allow_partial: load what fits into the backbone, if anything does; of a whole checkpoint
            that does not fit, load the backbone alone.
    Raises:
        LoadError: if the file cannot be read, does not fit, or holds values that are not finite.
    """
    file = path if isinstance(path, WeightFile) else open_weights(path)
    match = require_match(file, module, classes, config, allow_partial)
    values = convert(file, match)
    report, names = match.report, sorted(values)
    report.before = fingerprint({name: match.state[name] for name in names})[:12]
    with torch.no_grad():
        for name, value in values.items():
            match.state[name].copy_(value)
    report.after = fingerprint({name: match.state[name] for name in names})[:12]
    if file.non_tensors:
        report.dropped["entries that are no tensors"] = dict.fromkeys(file.non_tensors, 0)
    report.conversion = conversion(match)
    report.random = random_parts(module, match)
    report.warnings = tuple(warnings(file, module, match, other_keywords(file, config)))
    return report


def require_match(
    file: WeightFile,
    module: nn.Module,
    classes: Sequence[str] | None = None,
    config: Mapping | None = None,
    allow_partial: bool = False,
) -> Match:
    """Compares a file with a module; raises LoadError if it does not fit."""
    match = find_match(file, module, classes, allow_partial)
    report = match.report
    foreign = [] if allow_partial else other_layers(match)
    enough = report.complete or allow_partial or only_added(match, other_keywords(file, config))
    if report.fitting and enough and not foreign:
        return match
    wrong = []
    if foreign:
        wrong.append(f"{len(foreign)} have no place in it ({shorten(foreign, 3)})")
    if report.missing:
        wrong.append(f"{len(report.missing)} are missing ({shorten(report.missing, 3)})")
    if report.other_shape:
        name = next(iter(report.other_shape))
        there, here = describe(match.given[name]), describe(match.state[name])
        wrong.append(
            f"{len(report.other_shape)} have another shape ({name} is {there} there, {here} here)"
        )
    fits = len(report.fitting)
    total = fits + len(report.missing) + len(report.other_shape)
    model = "the model too" if file.source == report.target else f"the model is {report.target}"
    raise LoadError(
        f"{file.path}: {file.source}, {model}: {fits} of {total} tensors fit, "
        f"{' and '.join(wrong)}; {fix_for(file, match, other_keywords(file, config))}"
    )


def only_added(match: Match, keywords: str) -> bool:
    """Whether a checkpoint of ours lacks only modules that different keywords add to the model."""
    report, there = match.report, {name.rpartition(".")[0] for name in match.given}
    modules = {name.rpartition(".")[0] for name in report.missing}
    added = not any(name in there or name.startswith("backbone.") for name in modules)
    return bool(keywords) and hasattr(match.part, "backbone") and added and not report.other_shape


def other_layers(match: Match) -> list[str]:
    """Unexpected tensors in parts that the backbone has: the file is of another network."""
    start = "backbone." if hasattr(match.part, "backbone") else ""
    names = (name.removeprefix(start) for name in match.state if name.startswith(start))
    parts = tuple({f"{start}{name.partition('.')[0]}." for name in names if "." in name})
    return [name for name in match.report.unexpected if name.startswith(parts)]


def convert(file: WeightFile, match: Match) -> dict[str, Tensor]:
    """The values in the module's dtypes, on the CPU; raises LoadError if they are not finite."""
    values = {name: match.given[name].to(match.state[name].dtype) for name in match.report.loaded}
    wrong = [name for name, value in values.items() if not value.isfinite().all()]
    if wrong:
        raise LoadError(
            f"{file.path}: {len(wrong)} of its tensors hold values that are not finite "
            f"({shorten(wrong, 3)}); get the file again, or take an earlier checkpoint"
        )
    return values


def conversion(match: Match) -> str:
    """How many tensors changed their dtype, by pairs of dtypes; "" if none did."""
    names = match.report.loaded
    pairs = Counter((match.given[name].dtype, match.state[name].dtype) for name in names)
    texts = (f"{n} tensors from {old} to {new}" for (old, new), n in pairs.items() if old != new)
    return ", ".join(texts).replace("torch.", "")


def random_parts(module: nn.Module, match: Match) -> tuple[str, ...]:
    """The parts of the module that keep their start values."""
    names = (*match.report.missing, *match.report.other_shape)
    groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    children = [] if match.part is module else module.named_children()
    outside = (name for name, child in children if child is not match.part and child.state_dict())
    return (*outside, *match.report.random, *groups)


def other_keywords(file: WeightFile, config: Mapping | None) -> str:
    """Keywords in which a checkpoint of ours and the model differ."""
    there = {} if file.config is None or config is None else file.config
    carried = ("num_classes", "num_queries")  # carried over by rows; the report has the numbers
    return ", ".join(
        f"{key}={value} ({config[key]} here)"
        for key, value in there.items()
        if key not in carried and key in config and config[key] != value
    )


def fix_for(file: WeightFile, match: Match, keywords: str) -> str:
    """How to fix that a file does not fit."""
    missing = [*match.report.missing]
    end = f".{missing[0]}" if missing else "no name"
    if longer := next((name for name in match.given if name.endswith(end)), None):
        return f"save it again without the '{longer[: 1 - len(end)]}' in front of its names"
    if keywords:
        return f"build the model with the file's keywords, {keywords}"
    if file.source != match.report.target:
        return (
            f"give a file of {match.report.target}, or choose the model that this file belongs to"
        )
    act = "get the whole file" if missing else "build the model in the sizes of the file"
    return f"{act}, or allow a partial load of what fits"


def warnings(file: WeightFile, module: nn.Module, match: Match, keywords: str) -> Iterator[str]:
    """Reasons why weights that fit may be wrong."""
    given, report = match.given, match.report
    if keywords:
        yield f"the checkpoint's model was built with {keywords}"
    if extra := report.unexpected:
        yield f"{len(extra)} tensors of the file have no place here ({shorten(extra, 3)})"
    starts = {"running_mean": 0.0, "running_var": 1.0}
    ends = [(name, name.rpartition(".")[2]) for name in report.loaded]
    norms = [(given[name] == starts[end]).all() for name, end in ends if end in starts]
    if norms and all(norms):
        yield "the file's BatchNorm statistics are those of an untrained network"
    is_model = match.part is module and hasattr(module, "backbone")
    if is_model and file.classes is None and not match.redrawn:
        yield "the file has no class names, its rows count as this model's classes"
    # MobileNetV2 is published in two conventions with the same names and shapes.
    if report.target.startswith("MobileNetV2"):
        is_original_here = tuple(map(float, getattr(match.part, "mean", ()))) == HALF
        if is_original_here and any(name.startswith("classifier.") for name in given):
            yield (
                "a file of torchvision, which needs ImageNet's mean and deviation and padding on "
                "all sides: use mobilenet_v2_torchvision"
            )
        if not is_original_here and "127.5" in str(file.meta.get("input", "")):
            yield (
                "a file in the original's convention, which needs pixels in -1..1 and padding on "
                "one side: use mobilenet_v2"
            )
