"""Loading a file into a module: all of it is compared first, then copied, then looked at again."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from mobileinst.layers.pixels import HALF
from mobileinst.weights.files import WeightFile, open_weights
from mobileinst.weights.matching import Match, holds_whole_model, match_backbone, match_model
from mobileinst.weights.reading import LoadError
from mobileinst.weights.report import Report, Tally, describe, shorten


def load(
    module: nn.Module,
    path: str | Path | WeightFile,
    *,
    classes: Sequence[str] | None = None,
    config: Mapping | None = None,
    allow_partial: bool = False,
) -> Report:
    """Load a file of weights into a backbone, or into a model that has one as `.backbone`.

    Weights of a backbone go into the backbone. A checkpoint of ours fills a whole model; in layers
    with a row per class, the rows of classes of the same name come over. Either everything that
    belongs there comes from the file, or LoadError is raised and nothing was changed. Published
    files of Mask2Former fill a whole model as well, but for layers with a row per class if their
    number of classes is another.

    Args:
        module: keeps its dtypes and device.
        path: the file, or what was read from it.
        classes: names of the model's classes, needed for whole checkpoints of ours only.
        config: keywords the model was built with, to tell how those of a checkpoint differ.
        allow_partial: take what fits into the backbone, if anything does; of a whole checkpoint
            that does not fit, take the backbone alone.
    Raises:
        LoadError: the file cannot be read, does not fit, or holds values that are not finite.
    """
    file = path if isinstance(path, WeightFile) else open_weights(Path(path))
    match, short = require_match(file, module, classes, config, allow_partial)
    values = convert(file, match)
    before = fingerprint(match.state, values)
    copy(file, match, values)
    return Report(
        path=str(file.path),
        source=file.source,
        container=file.container,
        naming=file.naming,
        prefixes=match.prefixes,
        target=match.name,
        whole=not short,
        loaded=Tally.of(values, match.state),
        missing=Tally.of(match.missing, match.state),
        other_shape=Tally.of(match.other_shape, match.state),
        unexpected=Tally.of(match.unexpected, match.given),
        dropped=left_out(file, match),
        conversion=conversion(match),
        before=before,
        after=fingerprint(match.state, values),
        carried=match.carried,
        new=match.new,
        random=left_random(module, match),
        warnings=tuple(warnings(file, module, match, other_keywords(file, config))),
    )


def require_match(
    file: WeightFile,
    module: nn.Module,
    classes: Sequence[str] | None = None,
    config: Mapping | None = None,
    allow_partial: bool = False,
) -> tuple[Match, bool]:
    """The same as `find_match`, if it is one that can be loaded; else LoadError."""
    match, short = find_match(file, module, classes, allow_partial)
    if not match.telling or not (match.whole or allow_partial):
        raise LoadError(refusal(file, match, other_keywords(file, config)))
    return match, short


def find_match(
    file: WeightFile, module: nn.Module, classes: Sequence[str] | None, allow_partial: bool
) -> tuple[Match, bool]:
    """The match of the file with the module or with its backbone, and whether it is less than what
    the file was meant for.
    """
    short = False
    if holds_whole_model(file, module):
        match = match_model(file, module, classes)
        if match.whole or not allow_partial:
            return match, False
        short = True
    match = match_backbone(file, getattr(module, "backbone", module))
    return match, short or not match.whole


def convert(file: WeightFile, match: Match) -> dict[str, torch.Tensor]:
    """What is to be copied, in the module's dtypes, on the CPU; LoadError if it is not finite."""
    values = {name: match.given[name].to(match.state[name].dtype) for name in match.fitting}
    wrong = [name for name, value in values.items() if not value.isfinite().all()]
    if wrong:
        raise LoadError(
            f"{file.path}: {len(wrong)} of its tensors hold values that are not finite "
            f"({shorten(wrong, 3)}); get the file again, or take an earlier checkpoint"
        )
    return values


@torch.no_grad()
def copy(file: WeightFile, match: Match, values: Mapping[str, torch.Tensor]) -> None:
    """Copy the values and read them back; if any did not arrive, restore all and raise LoadError.

    A state dict can be a copy of a module's tensors, and tensors can share memory: only reading
    them back shows that they were reached.
    """
    saved = {name: match.state[name].clone() for name in values}
    for name, value in values.items():
        match.state[name].copy_(value)
    held = match.part.state_dict()
    lost = [name for name, value in values.items() if not torch.equal(held[name].cpu(), value)]
    if lost:
        for name, value in saved.items():
            match.state[name].copy_(value)
        raise LoadError(
            f"{file.path}: {len(lost)} tensors of {match.name} ({shorten(lost, 3)}) do not hold "
            "what was copied into them; load into a module whose state dict is its own tensors"
        )


def fingerprint(state: Mapping[str, torch.Tensor], names: Mapping) -> str:
    """A short number that changes when any of these tensors does."""
    digest = hashlib.sha256()
    for name in sorted(names):
        value = state[name].detach().cpu().contiguous()
        digest.update(name.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def conversion(match: Match) -> str:
    """Which dtypes were converted to which, in words; "" if none was."""
    pairs = [(match.given[name].dtype, match.state[name].dtype) for name in match.fitting]
    changed = sorted({pair for pair in pairs if pair[0] != pair[1]}, key=str)
    words = (f"{pairs.count(pair)} tensors from {pair[0]} to {pair[1]}" for pair in changed)
    return ", ".join(words).replace("torch.", "")


def left_random(module: nn.Module, match: Match) -> tuple[str, ...]:
    """The parts of the module that keep the values they were drawn with."""
    groups = dict.fromkeys(
        ".".join(name.split(".")[:2]) for name in (*match.missing, *match.other_shape)
    )
    others = [] if match.part is module else module.named_children()
    outside = (name for name, child in others if child is not match.part and child.state_dict())
    return (*outside, *match.absent, *match.redrawn, *groups)


def other_keywords(file: WeightFile, config: Mapping | None) -> str:
    """Keywords in which a checkpoint of ours and the model differ, in words."""
    there = {} if file.config is None or config is None else file.config
    return ", ".join(
        f"{key}={value} ({config[key]} here)"
        for key, value in there.items()
        if key != "num_classes" and key in config and config[key] != value
    )


def refusal(file: WeightFile, match: Match, keywords: str) -> str:
    """The sentence for a file that does not fit: what it is, what is wrong, the mend."""
    wrong = []
    if match.missing:
        wrong.append(f"{len(match.missing)} are missing ({shorten(match.missing, 3)})")
    if match.other_shape:
        name = match.other_shape[0]
        there, here = describe(match.given[name]), describe(match.state[name])
        wrong.append(
            f"{len(match.other_shape)} have another shape ({name} is {there} there, {here} here)"
        )
    fits = len(match.telling)
    total = fits + len(match.missing) + len(match.other_shape)
    model = "the model too" if file.source == match.name else f"the model is {match.name}"
    return (
        f"{file.path}: {file.source}, {model}: {fits} of {total} tensors fit, "
        f"{' and '.join(wrong)}; {mend(file, match, keywords)}"
    )


def mend(file: WeightFile, match: Match, keywords: str) -> str:
    """What to do about a file that does not fit."""
    if prefix := unknown_prefix(match):
        return f"save it again without the '{prefix}' in front of its names"
    if keywords:
        return f"build the model with the file's keywords, {keywords}"
    if file.source != match.name:
        return f"give a file of {match.name}, or choose the model that this file belongs to"
    act = "get the whole file" if match.missing else "build the model in the sizes of the file"
    return f"{act}, or allow a partial load of what fits"


def unknown_prefix(match: Match) -> str:
    """What stands before the names in the file, if they would fit without it; else ""."""
    if not match.missing:
        return ""
    end = f".{match.missing[0]}"
    return next((name[: 1 - len(end)] for name in match.given if name.endswith(end)), "")


def left_out(file: WeightFile, match: Match) -> dict[str, Tally]:
    """What was left out on purpose, by the reason."""
    dropped = {why: Tally.of(names, match.given) for why, names in match.dropped.items()}
    return dropped | ({"entries that are no tensors": Tally(file.others)} if file.others else {})


def warnings(file: WeightFile, module: nn.Module, match: Match, keywords: str) -> list[str]:
    """What can make weights that fit work badly all the same."""
    found = []
    if keywords:
        found.append(f"the checkpoint's model was built with {keywords}")
    if match.unexpected:
        names = shorten(match.unexpected, 3)
        found.append(f"{len(match.unexpected)} tensors of the file have no place here ({names})")
    if untrained_statistics(match):
        found.append("the file's BatchNorm statistics are those of an untrained network")
    is_model = match.part is module and hasattr(module, "backbone")
    if is_model and file.classes is None and not match.redrawn:
        found.append("the file has no class names, its rows were taken for this model's classes")
    return [*found, *convention_warnings(file, match)]


def untrained_statistics(match: Match) -> bool:
    """Whether every norm of the file still has mean 0 and variance 1."""
    ends = {"running_mean": 0.0, "running_var": 1.0}
    norms = [(name, name.rpartition(".")[2]) for name in match.fitting]
    values = [(match.given[name], ends[end]) for name, end in norms if end in ends]
    return bool(values) and all((value == untouched).all() for value, untouched in values)


def convention_warnings(file: WeightFile, match: Match) -> list[str]:
    """MobileNetV2 is published in two conventions with the same names and shapes."""
    mean = getattr(match.part, "mean", None)
    if mean is None or not match.name.startswith("MobileNetV2"):
        return []
    is_original_here = tuple(map(float, mean)) == HALF
    is_torchvision = any(name.startswith("classifier.") for name in match.given)
    if is_torchvision and is_original_here:
        return [
            "a file of torchvision, which wants ImageNet's mean and deviation and padding all "
            "round: use mobilenet_v2_torchvision"
        ]
    if "127.5" in str(file.meta.get("input", "")) and not is_original_here:
        return [
            "a file in the original's convention, which wants pixels in -1..1 and padding on one "
            "side: use mobilenet_v2"
        ]
    return []
