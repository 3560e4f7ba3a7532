"""Weights to start from: a file that does not fit is told before anything else is done."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from data.errors import InputError
from engine import options
from mobileinst import weights


def load(
    model: nn.Module, config, path: Path, classes: Sequence[str], allow_partial: bool
) -> weights.Report:
    """Load a file into a model that was built from `config`.

    Raises:
        InputError: it does not fit, and nothing was changed.
    """
    try:
        return weights.load(
            model, path, classes=classes, config=asdict(config), allow_partial=allow_partial
        )
    except weights.LoadError as error:
        raise InputError(str(error)) from error


def open_file(path: Path) -> weights.WeightFile:
    """What a file holds; raises InputError if it cannot be read."""
    try:
        return weights.open_weights(path)
    except weights.LoadError as error:
        raise InputError(str(error)) from error


def rehearse(
    opts: argparse.Namespace,
    path: Path,
    classes: Sequence[str] | None = None,
    builder: Callable[..., tuple] = options.build_model,
) -> weights.Report:
    """What loading would do to a new model as the options describe it; nothing is kept.

    Args:
        classes: of the model; None takes those of the file, if it has any.
        builder: puts the model together, if it is to have other parts than the standard ones.
    Raises:
        InputError: the file does not fit, or no such model can be built.
    """
    file = open_file(path)
    config = options.model_config(opts, num_classes=1)
    if classes is None:
        model = builder(config)[0]
        rows = file.rows_per_class(getattr(model, "class_layers", ())) or 1
        number = max(1, rows - len(getattr(model, "more_rows", ())))
        classes = file.classes or ("unnamed",) * number
    config = replace(config, num_classes=len(classes))
    model = builder(config)[0]
    return load(model, config, path, classes, opts.allow_partial)
