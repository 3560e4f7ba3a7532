"""Weights to start a training from."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from data.errors import InputError
from engine import options
from engine.values import keyword_errors
from mobileinst import weights, zoo


@contextmanager
def load_errors() -> Iterator[None]:
    """Turns the LoadError of a file that cannot be read or does not fit into an InputError."""
    try:
        yield
    except weights.LoadError as error:
        raise InputError(str(error)) from error


def dry_run(
    opts: argparse.Namespace | options.TrainOptions,
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
    settings = {"config": asdict(config), "allow_partial": opts.allow_partial}
    with load_errors():
        return weights.load(model, file, classes=classes, **settings)
