"""Which tensor of a file belongs where: names and shapes compared, nothing copied yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

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
from mobileinst.weights.report import describe, shorten


@dataclass
class Match:
    """The tensors of a file and of the module they are meant for, sorted by name.

    part, state: the module and its tensors, without buffers that follow from sizes. given: those
    of the file, without the prefixes. fitting, missing, other_shape: names in `state`. unexpected,
    dropped (reason -> names): in `given`. absent: optional parts of the module that the file does
    not have. redrawn: layers of the module whose rows in the file are for other classes. carried,
    new: classes whose rows the file has, and has not.
    """

    part: nn.Module
    state: dict[str, torch.Tensor]
    given: dict[str, torch.Tensor]
    prefixes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()
    fitting: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the module is, in words."""
        return recognise(self.state)

    @property
    def telling(self) -> list[str]:
        """What fits and cannot fit by accident, as the counters of all batch norms do."""
        return [name for name in self.fitting if not name.endswith(COUNTER)]

    @property
    def whole(self) -> bool:
        """Whether all of the module comes from the file."""
        return bool(self.telling) and not (self.missing or self.other_shape)


def match_backbone(file: WeightFile, backbone: nn.Module) -> Match:
    """A file against a backbone; raises LoadError if its names are ambiguous."""
    prefixes, given = file.without(*WRAPPERS)
    drop, optional = expectations(given)
    return compare(Match(backbone, backbone.state_dict(), given, prefixes), drop, optional)


def holds_whole_model(file: WeightFile, module: nn.Module) -> bool:
    """Whether a file is meant for all of a model and not for its backbone alone."""
    if not hasattr(module, "backbone"):
        return False
    outside = {name for name in module.state_dict() if not name.startswith("backbone.")}
    return file.config is not None or not outside.isdisjoint(file.without("module.")[1])


def match_model(file: WeightFile, model: nn.Module, classes: Sequence[str] | None) -> Match:
    """A file against a whole model. Where a layer has one row per class (the model's
    `class_layers`), the file's rows come into the order of the model's class names; rows behind
    them have the names in the model's `more_rows`. Published files have no class names: with
    another number of rows, those layers are left as they are in the model.

    Raises:
        LoadError: the file has class names and the model's are not given, or names and rows differ
            in number.
    """
    prefixes, given = file.without("module.")
    match = Match(model, model.state_dict(), given, prefixes)
    if file.classes is not None:
        sort_rows(file, match, classes)
    elif file.naming:
        leave_rows(match, classes)
    optional = getattr(model, "training_layers", ())
    reasons = {f"{name}.": "only training uses it, and it is off here" for name in optional}
    drop = reasons | (PUBLISHED_DROPPED if file.naming else {})
    return compare(match, drop, tuple(reasons))


def sort_rows(file: WeightFile, match: Match, classes: Sequence[str] | None) -> None:
    """Bring the rows of the file's classes into the order of the model's, in `match.given`."""
    if classes is None:
        raise LoadError(
            f"{file.path}: a checkpoint of ours, whose classes ({shorten(file.classes, 4)}) are "
            "matched by name; give the names of the model's classes"
        )
    match.carried = tuple(name for name in classes if name in file.classes)
    match.new = tuple(name for name in classes if name not in file.classes)
    layers = tuple(f"{name}." for name in getattr(match.part, "class_layers", ()))
    more = getattr(match.part, "more_rows", ())
    there, here = (*file.classes, *more), (*classes, *more)
    for name, own in match.state.items():
        if name.startswith(layers) and name in match.given:
            given = match.given[name]
            require_a_name_per_row(file, name, given, there, "the file")
            require_a_name_per_row(file, name, own, here, "the model")
            if same_kind(given[:0], own[:0]):
                match.given[name] = rows_by_class(given, there, own, here)


def leave_rows(match: Match, classes: Sequence[str] | None) -> None:
    """Take the model's class layers out of the comparison if the file tells another number of
    classes apart, all of them alike.
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
        why = f"{', '.join(layers)}, with rows for {number} classes"
        match.redrawn, match.dropped[why] = layers, list(given)
        match.new = tuple(classes or ())


def require_a_name_per_row(
    file: WeightFile, name: str, rows: torch.Tensor, classes: Sequence[str], whose: str
) -> None:
    if rows.shape[:1] != (len(classes),):
        raise LoadError(
            f"{file.path}: {name} of {whose} is {describe(rows)}, and there are {len(classes)} "
            f"class names ({shorten(classes, 4)}); give a name for each row"
        )


def rows_by_class(
    given: torch.Tensor, given_classes: Sequence[str], own: torch.Tensor, classes: Sequence[str]
) -> torch.Tensor:
    """`own` [K,..] with the rows of classes that `given` [K',..] has as well taken from there."""
    merged = own.detach().to("cpu", copy=True)
    for row, name in enumerate(classes):
        if name in given_classes:
            merged[row] = given[given_classes.index(name)]
    return merged


def compare(match: Match, drop: Mapping[str, str], optional: tuple[str, ...]) -> Match:
    """Fill in which names fit and which do not.

    Args:
        match: with `state` and `given`.
        drop: how names begin that may be in the file alone -> why they are left out.
        optional: how names begin that may be in the module alone, if none of them is in the file.
    """
    match.state = {n: own for n, own in match.state.items() if not n.endswith(RECOMPUTED)}
    absent = tuple(
        start
        for start in optional
        if has_any(match.state, start) and not has_any(match.given, start)
    )
    match.absent = tuple(start.rstrip(".") for start in absent)
    starts = tuple(f"{layer}." for layer in match.redrawn)
    for name, own in match.state.items():
        if name.startswith(starts):
            continue
        if name in match.given and same_kind(match.given[name], own):
            match.fitting.append(name)
        elif not name.endswith(COUNTER) and not name.startswith(absent):
            (match.other_shape if name in match.given else match.missing).append(name)
    for name in (name for name in match.given if name not in match.state):
        if reason := why_left_out(name, drop):
            match.dropped.setdefault(reason, []).append(name)
        elif not name.endswith(COUNTER):
            match.unexpected.append(name)
    return match


def has_any(names: Mapping, start: str) -> bool:
    return any(name.startswith(start) for name in names)


def same_kind(given: torch.Tensor, own: torch.Tensor) -> bool:
    """The same shape, and both whole numbers or both real ones."""
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (given, own)]
    return given.shape == own.shape and kinds[0] == kinds[1]


def why_left_out(name: str, drop: Mapping[str, str]) -> str | None:
    """The reason for which a tensor of a file is left out on purpose, if there is one."""
    if name.endswith(RECOMPUTED):
        return "buffers that follow from the sizes"
    reasons = (f"{start}*, {why}" for start, why in drop.items() if name.startswith(start))
    return next(reasons, None)
