"""Weights to start a training from."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from data.errors import InputError
from engine import options
from engine.values import keyword_errors
from mobileinst import weights, zoo


def open_file(path: Path) -> weights.WeightFile:
    """Reads a file; raises InputError if it cannot be read."""
    try:
        return weights.open_weights(path)
    except weights.LoadError as error:
        raise InputError(str(error)) from error


def load(
    model: nn.Module,
    config: zoo.Config,
    file: Path | weights.WeightFile,
    classes: Sequence[str],
    allow_partial: bool,
) -> weights.Report:
    """Loads a file into a model that was built from `config`.

    Raises:
        InputError: if it does not fit; nothing is changed.
    """
    keywords = {"classes": classes, "config": asdict(config), "allow_partial": allow_partial}
    try:
        return weights.load(model, file, **keywords)
    except weights.LoadError as error:
        raise InputError(str(error)) from error


def dry_run(
    opts: argparse.Namespace,
    file: weights.WeightFile,
    classes: Sequence[str] | None = None,
    builder: Callable[..., tuple] = zoo.build_from_config,
) -> weights.Report:
    """Loads a file into a new model that the options describe; keeps only the report.

    Args:
        classes: of the model; None takes those of the file, if it has any.
        builder: builds the model from a config.
    Raises:
        InputError: if the file does not fit, or no such model can be built.
    """
    config = options.model_config(opts, num_classes=1)
    with keyword_errors():
        if classes is None:
            model = builder(config)[0]
            rows = file.rows_per_class(getattr(model, "class_layers", ())) or 1
            number = max(1, rows - len(getattr(model, "more_rows", ())))
            classes = file.classes or ("unnamed",) * number
        config = replace(config, num_classes=len(classes))
        model = builder(config)[0]
    return load(model, config, file, classes, opts.allow_partial)
