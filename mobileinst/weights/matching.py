"""Compares the tensors of a file with those of a module by name and shape; copies nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobileinst.weights.files import WeightFile
from mobileinst.weights.names import (
    BACKBONE_NEW,
    COUNTER,
    DROPPED,
    PUBLISHED_DROPPED,
    QUERY_ROWS,
    RECOMPUTED,
    WRAPPER,
    WRAPPERS,
    recognise,
)
from mobileinst.weights.reading import LoadError
from mobileinst.weights.report import Report, describe, shorten, sizes


@dataclass
class Match:
    """A module, or its backbone, and the tensors for it.

    part, state: the module and its tensors. given: the tensors of the file, without prefixes.
    report: which of them fit. redrawn: class layers that are in the file for another number of
    classes. queries: how many the file has and the module has, if they differ.
    """

    part: nn.Module
    state: dict[str, Tensor]
    given: dict[str, Tensor]
    report: Report
    redrawn: tuple[str, ...] = ()
    queries: tuple[int, int] | None = None

    @classmethod
    def of(cls, file: WeightFile, part: nn.Module, prefixes: tuple[str, ...]) -> "Match":
        """What is compared, with these prefixes removed from the names in the file."""
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
    state = module.state_dict() if hasattr(module, "backbone") else {}
    outside = {name for name in state if not name.startswith("backbone.")}
    is_whole_model = bool(outside) and (
        file.config is not None or not outside.isdisjoint(file.without(*WRAPPER)[1])
    )
    if is_whole_model:
        match = match_model(file, module, classes)
        if match.report.complete or not allow_partial:
            return match
    backbone = getattr(module, "backbone", module)
    match = compare(Match.of(file, backbone, WRAPPERS), DROPPED, BACKBONE_NEW)
    match.report.whole = match.report.complete and not is_whole_model
    return match


def match_model(file: WeightFile, model: nn.Module, classes: Sequence[str] | None) -> Match:
    """Compares a file with a whole model.

    In layers with one row per class (the model's `class_layers`), the file's rows are sorted by the
    model's class names; rows behind them have the names in the model's `more_rows`. Published files
    have no class names: with another number of rows, those layers keep the model's values.

    Raises:
        LoadError: if the file has class names and the model's are not given, or names and rows
            differ in number.
    """
    match = Match.of(file, model, WRAPPER)
    if file.classes is not None:
        match_class_rows(file, match, classes)
    elif file.naming:
        skip_class_layers(match, classes)
    resize_queries(match)
    optional = getattr(model, "training_layers", ())
    reasons = {f"{name}.": "only training uses it, and it is off here" for name in optional}
    drop = reasons | (PUBLISHED_DROPPED if file.naming else {})
    return compare(match, drop, tuple(reasons))


def match_class_rows(file: WeightFile, match: Match, classes: Sequence[str] | None) -> None:
    """Sorts the rows of the file's classes by the model's class names, in `match.given`."""
    if classes is None:
        raise LoadError(
            f"{file.path}: a checkpoint of ours, whose classes ({shorten(file.classes, 4)}) are "
            "matched by name; give the names of the model's classes"
        )
    match.report.carried = tuple(name for name in classes if name in file.classes)
    match.report.new = tuple(name for name in classes if name not in file.classes)
    more = getattr(match.part, "more_rows", ())
    there, here = (*file.classes, *more), (*classes, *more)
    for name, own in class_tensors(match).items():
        given = match.given.get(name)
        if given is None or not same_kind(given[:0], own[:0]):
            continue
        if len(given) != len(there) or len(own) != len(here):
            raise LoadError(
                f"{file.path}: {name} is {describe(given)} there and {describe(own)} here, for "
                f"{len(there)} and {len(here)} class names; give a name for each row"
            )
        merged = own.detach().to("cpu", copy=True)
        for row, label in enumerate(here):
            if label in there:
                merged[row] = given[there.index(label)]
        match.given[name] = merged


def class_tensors(match: Match) -> dict[str, Tensor]:
    """The module's tensors with one row per class."""
    starts = tuple(f"{layer}." for layer in getattr(match.part, "class_layers", ()))
    return {name: value for name, value in match.state.items() if name.startswith(starts)}


def skip_class_layers(match: Match, classes: Sequence[str] | None) -> None:
    """Excludes class layers from the comparison if their numbers of classes differ."""
    own = class_tensors(match)
    given = {name: match.given[name] for name in own if name in match.given}
    rows, here = ({value.shape[:1] for value in each.values()} for each in (given, own))
    fits = all(given[name].shape[1:] == own[name].shape[1:] for name in given)
    if len(given) == len(own) and fits and len(rows) == 1 and rows != here:
        match.redrawn, match.report.new = match.part.class_layers, tuple(classes or ())
        number = rows.pop()[0] - len(getattr(match.part, "more_rows", ()))
        reason = f"{', '.join(match.redrawn)}, with rows for {number} class{'es' * (number > 1)}"
        match.report.dropped[reason] = sizes(given, given)


def resize_queries(match: Match) -> None:
    """Fits the rows of queries in `match.given` to the model's number; new rows keep its values."""
    own = {name: value for name, value in match.state.items() if name.endswith(QUERY_ROWS)}
    given = {name: match.given[name] for name in own if name in match.given}
    there, here = ({value.shape[:1] for value in each.values()} for each in (given, own))
    fits = all(same_kind(given[name][:0], own[name][:0]) for name in given if given[name].ndim)
    if len(given) < len(own) or not fits or len(there) != 1 or there == here or () in there:
        return
    match.queries = there, here = there.pop()[0], here.pop()[0]
    for name, value in given.items():
        rest = own[name].detach().cpu()[there:]
        match.given[name] = torch.cat([value[:here].to(rest.dtype), rest])
    new = f"; random start: {here - there}" if here > there else ""
    match.report.queries = f"{min(there, here)} of {there} from the file{new}"


def compare(match: Match, drop: Mapping[str, str], optional: tuple[str, ...]) -> Match:
    """Sorts all names into those that fit and those that do not.

    Args:
        drop: prefixes of names that only the file may have -> why they are left out.
        optional: prefixes of names that only the module may have, if the file has none of them.
    """
    report, given = match.report, match.given
    state = {name: v for name, v in match.state.items() if not name.endswith(RECOMPUTED)}
    match.state = state
    absent = () if any(name.startswith(optional) for name in given) else optional
    starts = {start.rstrip("."): any(name.startswith(start) for name in state) for start in absent}
    report.random = (*(start for start in starts if starts[start]), *match.redrawn)
    skipped = (*absent, *(f"{layer}." for layer in match.redrawn))
    for name, own in state.items():
        fits = name in given and same_kind(given[name], own)
        if name.startswith(skipped) or not fits and name.endswith(COUNTER):
            continue
        unfit = report.other_shape if name in given else report.missing
        (report.loaded if fits else unfit).update(sizes([name], state))
    for name in (name for name in given if name not in state):
        found = [f"{start}*, {why}" for start, why in drop.items() if name.startswith(start)]
        if name.endswith(RECOMPUTED):
            found = ["buffers that follow from the sizes"]
        if found:
            report.dropped.setdefault(found[0], {}).update(sizes([name], given))
        elif not name.endswith(COUNTER):
            report.unexpected.update(sizes([name], given))
    return match


def same_kind(given: Tensor, own: Tensor) -> bool:
    """Whether two tensors have the same shape, and both integers or both real numbers."""
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (given, own)]
    return given.shape == own.shape and kinds[0] == kinds[1]
