"""Command-line options in named groups. Nothing below the entries sees them."""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from data.errors import InputError
from engine import dist
from engine.files import FailedRun
from engine.interrupt import GracefulStop
from mobileinst import zoo

DATASETS = Path("datasets")
RUNS = Path("runs")


class Parser(argparse.ArgumentParser):
    """A parser that shows its defaults, and whose complaints are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists what there is")


def parser(description: str) -> argparse.ArgumentParser:
    """The parser of an entry."""
    # No abbreviations: the scripts look for some options by their full names.
    return Parser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def _checked(kind: type, holds: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A type for argparse: a number of this kind for which `holds` is true."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return convert


positive = _checked(int, lambda value: value > 0, "a whole number above zero")
whole = _checked(int, lambda value: value >= 0, "a whole number, zero or above")
positive_real = _checked(float, lambda value: value > 0, "a number above zero")
real = _checked(float, lambda value: value >= 0, "a number, zero or above")
fraction = _checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
decay = _checked(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def canvas(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, both multiples of 64."""
    try:
        height, width = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write HEIGHTxWIDTH, as 256x320") from None
    if height <= 0 or width <= 0 or height % 64 or width % 64:
        raise argparse.ArgumentTypeError(f"{text}: both sides must be multiples of 64")
    return height, width


def keyword(text: str) -> tuple[str, str]:
    """KEY=VALUE for the model's builder."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}: write KEY=VALUE, as width=64")
    return key, value


def builder_keywords(name: str, pairs: list[tuple[str, str]]) -> dict:
    """KEY=VALUE pairs as values of the types the model's config has; whole numbers as 2,2,6.

    Raises:
        InputError: if there is no such keyword, or a value is not one it can have.
    """
    config = zoo.config_for(name)
    try:
        values = {key: config.parse(key, text) for key, text in pairs if key != "num_classes"}
        zoo.config_for(name, **values)
    except ValueError as error:
        raise InputError(f"--set: {error}; change the value") from error
    if len(values) < len(dict(pairs)):
        raise InputError("--set num_classes: it follows from the data; leave it out")
    return values


def model_config(opts: argparse.Namespace, num_classes: int):
    """The config that --model and --set describe; raises InputError for a wrong keyword."""
    keywords = builder_keywords(opts.model, opts.set)
    return zoo.config_for(opts.model, num_classes=num_classes, **keywords)


def build_model(config, seed: int = 0):
    """Model, criterion and post-processing; raises InputError if the keywords do not fit."""
    try:
        return zoo.build_from_config(config, seed=seed)
    except ValueError as error:
        raise InputError(f"--set: no such model can be built, {error}; change the value") from error


class Instead(argparse.Action):
    """Takes a value and drops that of the option it stands instead `of`: the later one counts."""

    def __init__(self, *args, of: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.other = of

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, self.other, None)


def add_data(options: argparse.ArgumentParser) -> None:
    group = options.add_argument_group("data")
    group.add_argument("--data", type=Path, help="a VOC or COCO folder, recognised by itself")
    group.add_argument("--train-json", type=Path, help="COCO json of the training split")
    group.add_argument("--val-json", type=Path, help="COCO json of the validation split")
    group.add_argument("--images", type=Path, help="where the pictures of the json files lie")
    group.add_argument(
        "--crowd-as-instances",
        action="store_true",
        help="take iscrowd objects for ordinary ones (some tools export brush masks that way)",
    )
    add_skip_bad(group)


def add_skip_bad(options: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    options.add_argument(
        "--skip-bad-records",
        action="store_true",
        help="leave out records and pictures that cannot be used, and list them at the end",
    )


def add_config(options: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options that describe a model; returns their group."""
    group = options.add_argument_group("model")
    group.add_argument("--model", choices=zoo.names(), default="mobileinst_topformer_tiny")
    group.add_argument(
        "--set", type=keyword, action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="other values for the model's keywords, as width=64 num_queries=50",
    )  # fmt: skip
    return group


def add_model(options: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options of a model and its weights; returns their group."""
    group = add_config(options)
    group.add_argument(
        "--allow-partial", action="store_true",
        help="take what fits of a file of weights that does not fit whole",
    )  # fmt: skip
    return group


def add_image_size(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--image-size", type=positive, help="short side; that of the training if not given"
    )


def add_device(options: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options of the machine; returns their group."""
    group = options.add_argument_group("machine")
    group.add_argument("--device", help="cuda, mps or cpu; the best there is if not given")
    # Half of the cores: small networks gain little from more, and when anything else needs a core
    # (a loader worker does), threads that wait for one another lose far more than they gained.
    group.add_argument(
        "--threads",
        type=positive,
        default=max(1, (os.cpu_count() or 1) // 2 // dist.local_world_size()),
        help="threads of each training process; its loader processes have their own",
    )
    return group


def add_workers(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--workers", type=whole, default=2, help="loader processes; 0 loads in line"
    )


def add_debug(options: argparse.ArgumentParser) -> None:
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")


def device_for(name: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        InputError: the device is not on this machine.
    """
    there = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name is None:
        return torch.device(next(kind for kind, number in there.items() if number))
    kind, _, index = name.partition(":")
    if not (index or "0").isdecimal() or int(index or 0) >= there.get(kind, 0):
        found = [f"{each}:{i}" for each in there for i in range(there[each])]
        raise InputError(f"--device {name}: not on this machine; there is {', '.join(found)}")
    return torch.device(name)


def as_json(options: argparse.Namespace) -> dict:
    """Options as plain values, paths as text."""
    return json.loads(json.dumps(vars(options), default=str))


def run_entry(main: Callable[[list[str]], int | None]) -> None:
    """Run an entry: a user's mistake is one sentence and exit code 2, a failed run is 3.

    SIGTERM ends it as Ctrl-C does, cleaning up behind itself: 143 and 130.
    """
    complaint, failure = "", None
    dist.init()
    try:
        with GracefulStop(at_once=True):
            code = main(sys.argv[1:]) or 0
    except (InputError, FailedRun) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        failure = error
        complaint = f"error: {error}" if dist.should_report(error) else ""
        code = 2 if isinstance(error, InputError) else 3
    except dist.RankLost as error:
        failure, complaint, code = error, str(error), dist.EXIT_RANK_LOST
    except KeyboardInterrupt as stop:
        failure, complaint, code = stop, "interrupted", getattr(stop, "exit_code", 130)
    if complaint:  # only now: progress bars leave the terminal when the error lets go of them
        print(complaint, file=sys.stderr)
    dist.shutdown(failure)
    sys.exit(code)
