"""Compares the tensors of a file with those of a module by name and shape; copies nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mobileinst.weights.files import WeightFile
from mobileinst.weights.names import (
    COUNTER,
    PUBLISHED_DROPPED,
    RECOMPUTED,
    WRAPPERS,
    expectations,
    recognise,
)
from mobileinst.weights.reading import LoadError
from mobileinst.weights.report import Report, describe, shorten, sizes


@dataclass
class Match:
    """A module, or its backbone, and the tensors for it.

    part, state: the module and its tensors. given: the tensors of the file, without prefixes.
    report: which of them fit. absent: optional parts of the module that the file does not have.
    redrawn: class layers that the file has for another number of classes.
    """

    part: nn.Module
    state: dict[str, Tensor]
    given: dict[str, Tensor]
    report: Report
    absent: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: WeightFile, part: nn.Module, prefixes: tuple[str, ...]) -> "Match":
        """A comparison yet to be made, with these prefixes removed from the names in the file."""
        removed, given = file.without(*prefixes)
        state = part.state_dict()
        report = Report(
            path=str(file.path),
            source=file.source,
            container=file.container,
            naming=file.naming,
            prefixes=removed,
            target=recognise(state),
        )
        return cls(part, state, given, report)


def find_match(
    file: WeightFile, module: nn.Module, classes: Sequence[str] | None, allow_partial: bool
) -> Match:
    """Compares the file with the module or, if it holds no more, with the module's backbone."""
    is_whole_model = holds_whole_model(file, module)
    if is_whole_model:
        match = match_model(file, module, classes)
        if match.report.complete or not allow_partial:
            return match
    match = match_backbone(file, getattr(module, "backbone", module))
    match.report.whole = match.report.complete and not is_whole_model
    return match


def match_backbone(file: WeightFile, backbone: nn.Module) -> Match:
    """Compares a file with a backbone."""
    match = Match.of(file, backbone, WRAPPERS)
    return compare(match, *expectations(match.given))


def holds_whole_model(file: WeightFile, module: nn.Module) -> bool:
    """Whether a file holds all of a model and not only its backbone."""
    if not hasattr(module, "backbone"):
        return False
    outside = {name for name in module.state_dict() if not name.startswith("backbone.")}
    return file.config is not None or not outside.isdisjoint(file.without("module.")[1])


def match_model(file: WeightFile, model: nn.Module, classes: Sequence[str] | None) -> Match:
    """Compares a file with a whole model.

    In layers with one row per class (the model's `class_layers`), the file's rows are sorted by the
    model's class names; rows behind them have the names in the model's `more_rows`. Published files
    have no class names: with another number of rows, those layers keep the model's values.

    Raises:
        LoadError: if the file has class names and the model's are not given, or names and rows
            differ in number.
    """
    match = Match.of(file, model, ("module.",))
    if file.classes is not None:
        sort_rows(file, match, classes)
    elif file.naming:
        leave_rows(match, classes)
    optional = getattr(model, "training_layers", ())
    reasons = {f"{name}.": "only training uses it, and it is off here" for name in optional}
    drop = reasons | (PUBLISHED_DROPPED if file.naming else {})
    return compare(match, drop, tuple(reasons))


def sort_rows(file: WeightFile, match: Match, classes: Sequence[str] | None) -> None:
    """Sorts the rows of the file's classes by the model's class names, in `match.given`."""
    if classes is None:
        raise LoadError(
            f"{file.path}: a checkpoint of ours, whose classes ({shorten(file.classes, 4)}) are "
            "matched by name; give the names of the model's classes"
        )
    match.report.carried = tuple(name for name in classes if name in file.classes)
    match.report.new = tuple(name for name in classes if name not in file.classes)
    layers = tuple(f"{name}." for name in getattr(match.part, "class_layers", ()))
    more = getattr(match.part, "more_rows", ())
    there, here = (*file.classes, *more), (*classes, *more)
    for name, own in match.state.items():
        if name.startswith(layers) and name in match.given:
            given = match.given[name]
            for rows, names, owner in ((given, there, "the file"), (own, here, "the model")):
                if rows.shape[:1] != (len(names),):
                    raise LoadError(
                        f"{file.path}: {name} of {owner} is {describe(rows)}, and there are "
                        f"{len(names)} class names ({shorten(names, 4)}); give a name for each row"
                    )
            if same_kind(given[:0], own[:0]):
                merged = own.detach().to("cpu", copy=True)
                for row, label in enumerate(here):
                    if label in there:
                        merged[row] = given[there.index(label)]
                match.given[name] = merged


def leave_rows(match: Match, classes: Sequence[str] | None) -> None:
    """Excludes the model's class layers from the comparison if the file has all of them, for
    another number of classes.
    """
    layers = getattr(match.part, "class_layers", ())
    starts = tuple(f"{layer}." for layer in layers)
    own = {name: value for name, value in match.state.items() if name.startswith(starts)}
    given = {name: match.given[name] for name in own if name in match.given}
    rows, here = ({value.shape[:1] for value in each.values()} for each in (given, own))
    if len(given) < len(own) or len(rows) != 1 or () in rows or rows == here:
        return
    if all(same_kind(given[name][:0], own[name][:0]) for name in own):
        number = rows.pop()[0] - len(getattr(match.part, "more_rows", ()))
        reason = f"{', '.join(layers)}, with rows for {number} classes"
        match.report.dropped[reason] = sizes(given, given)
        match.redrawn, match.report.new = layers, tuple(classes or ())


def compare(match: Match, drop: Mapping[str, str], optional: tuple[str, ...]) -> Match:
    """Sorts all names into those that fit and those that do not.

    Args:
        drop: how names begin that may be in the file alone -> why they are left out.
        optional: how names begin that may be in the module alone, if none of them is in the file.
    """
    report = match.report
    match.state = {name: v for name, v in match.state.items() if not name.endswith(RECOMPUTED)}
    absent = tuple(
        start
        for start in optional
        if any(name.startswith(start) for name in match.state)
        and not any(name.startswith(start) for name in match.given)
    )
    match.absent = tuple(start.rstrip(".") for start in absent)
    redrawn = tuple(f"{layer}." for layer in match.redrawn)
    for name, own in match.state.items():
        if name.startswith(redrawn):
            continue
        if name in match.given and same_kind(match.given[name], own):
            report.loaded.update(sizes([name], match.state))
        elif not name.endswith(COUNTER) and not name.startswith(absent):
            group = report.other_shape if name in match.given else report.missing
            group.update(sizes([name], match.state))
    for name in (name for name in match.given if name not in match.state):
        if reason := why_left_out(name, drop):
            report.dropped.setdefault(reason, {}).update(sizes([name], match.given))
        elif not name.endswith(COUNTER):
            report.unexpected.update(sizes([name], match.given))
    return match


def same_kind(given: Tensor, own: Tensor) -> bool:
    """Whether two tensors have the same shape, and both integers or both real numbers."""
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (given, own)]
    return given.shape == own.shape and kinds[0] == kinds[1]


def why_left_out(name: str, drop: Mapping[str, str]) -> str | None:
    """The reason for leaving out a tensor of the file on purpose, if there is one."""
    if name.endswith(RECOMPUTED):
        return "buffers that follow from the sizes"
    reasons = (f"{start}*, {why}" for start, why in drop.items() if name.startswith(start))
    return next(reasons, None)
