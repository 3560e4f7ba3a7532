"""Options: declared once, checked whether they come from a command line or from a program."""

import argparse
import json
import sys
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

from data.errors import InputError
from engine import dist, recipes
from engine.files import FailedRun
from engine.interrupt import GracefulStop
from engine.values import (
    builder_keywords,
    canvas,
    checked,
    decay,
    default_threads,
    default_workers,
    flag,
    fraction,
    integer,
    keyword,
    positive,
    positive_real,
    real,
    shown,
    whole,
)
from mobileinst import zoo

DATASETS = Path("datasets")
RUNS = Path("runs")


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help and raises InputError for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists all options")


def parser(description: str) -> argparse.ArgumentParser:
    """The parser of an entry."""
    # No abbreviations: the scripts look for some options by their full names.
    return Parser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


METAVARS = {
    **dict.fromkeys((integer, positive, whole), "N"),
    **dict.fromkeys((positive_real, real, fraction, decay), "X"),
    **{Path: "PATH", canvas: "HxW"},
}


def option(
    default: object,
    convert: Callable[[object], object],
    help: str = "",
    group: str | None = None,
    **argument: object,
):
    """Declares an option.

    Args:
        default: None where the value follows from something else.
        convert: from a text or a value to a value; raises ArgumentTypeError.
        group: heading of this option and the following ones in --help.
        argument: for `add_argument`.
    """
    about = {"convert": convert, "help": help, "group": group, "argument": argument}
    return field(default=default, metadata=about)


@dataclass(init=False)
class TrainOptions:
    """All options of a training. Values given override the recipe's, and those the defaults.

    `origins` says where each value comes from: "default", "recipe", "user", or "machine" where it
    follows from the cores; keywords of `set` are named `set.KEY`.

    Raises:
        InputError: if a value is wrong.
    """

    recipe: str | None = option(
        None,
        str,
        f"named numbers of engine/recipes.py: {', '.join(recipes.RECIPES)}",
        "recipe",
        choices=tuple(recipes.RECIPES),
        metavar="NAME",
    )

    data: Path | None = option(None, Path, "a VOC or COCO folder, recognised by itself", "data")
    train_json: Path | None = option(None, Path, "COCO json of the training split")
    val_json: Path | None = option(None, Path, "COCO json of the validation split")
    images: Path | None = option(None, Path, "folder of the images in the json files")
    crowd_as_instances: bool = option(
        False, flag, "read iscrowd objects as ordinary ones (some tools export brush masks so)"
    )
    skip_bad_records: bool = option(
        False, flag, "leave out records and images that cannot be used, and list them at the end"
    )

    model: str = option(
        "mobileinst_topformer_tiny",
        str,
        f"one of {', '.join(zoo.names())}",
        "model",
        choices=zoo.names(),
        metavar="NAME",
    )
    set: dict[str, object] | None = option(
        None, keyword, "other values for keywords of the model, as width=64 num_queries=50",
        action="extend", nargs="+", metavar="KEY=VALUE",
    )  # fmt: skip
    allow_partial: bool = option(False, flag, "load what fits of weights that do not fit whole")
    pretrained: Path | None = option(
        None, Path, "start from these weights: of a backbone, or a checkpoint of any class list",
        metavar="FILE",
    )  # fmt: skip

    epochs: float | None = option(
        None, positive_real, "length in passes over the training set; 60 if nothing is given",
        "length and schedule",
    )  # fmt: skip
    iterations: int | None = option(None, positive, "length in optimizer steps, instead of epochs")
    schedule: str = option("cosine", str, "course of the learning rate",
                           choices=("cosine", "multistep", "poly"))  # fmt: skip
    warmup: int = option(200, whole, "iterations of linear warm-up")
    drops: tuple[int, ...] = option((), whole, "multistep: iterations of the drops", nargs="*")

    batch_size: int = option(8, positive, "images at a time, in each process", "optimizer step")
    accumulate: int = option(1, positive, "batches per optimizer step")
    lr: float = option(1e-3, positive_real, "learning rate")
    backbone_factor: float = option(1.0, real, "learning rate of the backbone, relative")
    weight_decay: float = option(0.05, real, "of AdamW")
    clip: float = option(1.0, real, "largest gradient norm; 0 is off")
    average: float = option(0.998, decay, "decay of the EMA; 0 is off")
    amp: str = option("off", str, "mixed precision", choices=("off", "bf16", "fp16"))
    skip_bad_steps: int = option(
        0, whole, "leave out up to N steps whose loss or gradient is not finite"
    )
    seed: int = option(0, integer, "fixes every random number")

    image_size: int = option(320, positive, "short side", "what the model sees")
    canvas: list[tuple[int, int]] | None = option(
        None, canvas, "HEIGHTxWIDTH of training batches, one drawn per step; as in evaluation if "
        "not given", nargs="+",
    )  # fmt: skip
    scale: tuple[float, float] = option(
        (0.6, 1.8), positive_real, "scale jitter; 1 just fits the image into the canvas",
        nargs=2, metavar=("MIN", "MAX"),
    )  # fmt: skip
    flip: float = option(0.5, fraction, "chance of a horizontal flip")
    colour: float = option(0.3, fraction, "strength of the colour jitter")
    copy_paste: float = option(
        0.0, fraction, "chance that objects of another training image are pasted onto an image"
    )
    overfit: int | None = option(
        None, positive, "self-test: train on the first N images of the seeded order, without "
        "augmentation, and evaluate on the same",
    )  # fmt: skip

    out: Path | None = option(None, Path, "run folder; runs/<model>-NNN if not given", "run")
    resume: bool = option(False, flag, "go on with an interrupted run")
    overwrite: bool = option(False, flag, "replace the run in --out")
    eval_every: float = option(5.0, real, "epochs between evaluations; 0: at the end only")
    save_every: int | None = option(
        None, positive, "iterations between saves for --resume; a minute or so if not given",
    )  # fmt: skip
    log_every: int = option(20, positive, "iterations between lines of the log")

    device: str | None = option(None, str, "cuda, mps or cpu; the best if not given", "machine")
    threads: int | None = option(
        None, positive, "threads of each training process; half of the cores if not given"
    )
    workers: int | None = option(
        None, whole, "loader processes, 0 loads in line; 2 if not given and there are cores"
    )
    deterministic: bool | None = option(
        None, flag, "the same bits each time; if not given, on a CPU, where it costs nothing",
        action=argparse.BooleanOptionalAction,
    )  # fmt: skip

    def __init__(self, **given: object) -> None:
        declared = {each.name: each for each in fields(self)}
        if unknown := given.keys() - declared.keys():
            raise TypeError(f"no option is called {min(unknown)}; there are {', '.join(declared)}")
        given = {
            name: checked(name, declared[name].metadata, value)
            for name, value in given.items()
            if value is not None
        }
        values, name = {}, given.get("recipe")
        if name:
            asked = (given.get("model"), "overfit" in given, "pretrained" in given)
            given["recipe"], values = recipes.values_of(name, *asked)
        if {"epochs", "iterations"} <= given.keys():
            raise InputError("--epochs and --iterations are two lengths; give one of them")
        if {"epochs", "iterations"} & given.keys():
            values = {k: v for k, v in values.items() if k not in ("epochs", "iterations")}
        for name, each in declared.items():
            setattr(self, name, given.get(name, values.get(name, each.default)))
        if self.scale[0] > self.scale[1]:
            raise InputError(f"--scale {shown(self.scale)}: give the smaller number first")
        if "drops" in given and self.schedule != "multistep":
            raise InputError(f"--drops: the schedule is {self.schedule}; add --schedule multistep")
        merged = {**values.get("set", {}), **given.get("set", {})}
        self.set = builder_keywords(self.model, merged)
        self.origins = {
            name: "user" if name in given else "recipe" if name in values else "default"
            for name in declared
        }
        for key in self.set:
            self.origins[f"set.{key}"] = "user" if key in given.get("set", {}) else "recipe"
        if self.epochs is None and self.iterations is None:
            self.epochs = 60.0
        if "threads" not in given | values:
            self.threads, self.origins["threads"] = default_threads(), "machine"
        if "workers" not in given:
            self.workers = default_workers(self.workers or 2)
            self.origins["workers"] = "machine"

    def plain(self) -> dict:
        """Plain values by name, paths as text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.loads(json.dumps(values, default=str))

    def describe(self, derived: dict[str, object]) -> str:
        """Every value with its origin, one paragraph per origin.

        Args:
            derived: values that follow from the data.
        """
        listed = {"user": [], "recipe": [], "data": [], "machine": [], "default": []}
        for name, value in self.plain().items():
            unset = value is None or value is False or value == []
            if name not in ("set", "recipe", *derived) and not unset:
                listed[self.origins[name]].append(f"{name} {shown(value)}")
        for key, value in self.set.items():
            listed[self.origins[f"set.{key}"]].append(f"{key}={shown(value)}")
        listed["data"] = [f"{name} {shown(value)}" for name, value in derived.items()]
        text = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
        text.subsequent_indent = " " * 10
        paragraphs = []
        for origin, values in listed.items():
            text.initial_indent = f"{origin:<10}"
            values = [value.replace(" ", "\0") for value in values]  # each stays on one line
            if origin == "recipe" and self.recipe:
                values.insert(0, f"{self.recipe}:")
            if values:
                paragraphs.append(text.fill(", ".join(values)).replace("\0", " "))
        return "\n".join(paragraphs).replace(":, ", ": ")


class Instead(argparse.Action):
    """Of --epochs and --iterations the later one counts."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for name in ("epochs", "iterations"):
            vars(namespace).pop(name, None)
        setattr(namespace, self.dest, values)


def train_options(argv: list[str], description: str) -> TrainOptions:
    """The options of a training from a command line."""
    reader = parser(description)
    reader.usage = "%(prog)s [options]"
    group = None
    for each in fields(TrainOptions):
        if each.metadata["group"]:
            group = reader.add_argument_group(each.metadata["group"])
        action = {"action": Instead} if each.name in ("epochs", "iterations") else {}
        add_option(group, each.name, given_only=True, **action)
    add_debug(reader)
    given = vars(reader.parse_args(argv))
    given.pop("debug")
    return TrainOptions(**given)


def add_option(group, name: str, given_only: bool = False, **changes: object) -> None:
    """Adds an option of `TrainOptions` to a parser or group.

    Args:
        given_only: the namespace has the option only if the user gave it.
        changes: other settings for `add_argument`.
    """
    declared = next(each for each in fields(TrainOptions) if each.name == name)
    about, default = declared.metadata, declared.default
    convert, settings = about["convert"], {"help": about["help"], "default": default}
    if convert is flag:
        settings["action"] = "store_true"
    else:
        settings |= {"type": convert, "metavar": METAVARS.get(convert)}
    settings |= about["argument"]
    if given_only:
        if default not in (None, ()) and default is not False:
            settings["help"] += f" (default: {shown(default)})"
        settings["default"] = argparse.SUPPRESS
    group.add_argument(f"--{name.replace('_', '-')}", **settings | changes)


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    for name in ("data", "train_json", "val_json", "images", "crowd_as_instances"):
        add_option(group, name)
    add_skip_bad(group)


def add_skip_bad(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    add_option(parser, "skip_bad_records")


def add_config(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options that describe a model; returns their group."""
    group = parser.add_argument_group("model")
    add_option(group, "model")
    add_option(group, "set", default=[])
    return group


def add_model(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options of a model and its weights; returns their group."""
    group = add_config(parser)
    add_option(group, "allow_partial")
    return group


def add_image_size(parser: argparse.ArgumentParser) -> None:
    add_option(
        parser, "image_size", default=None, help="short side; that of the training if not given"
    )


def add_device(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options of the machine; returns their group."""
    group = parser.add_argument_group("machine")
    add_option(group, "device")
    add_option(group, "threads", default=default_threads(), help="threads of each process")
    return group


def add_workers(parser: argparse.ArgumentParser) -> None:
    add_option(
        parser, "workers", default=default_workers(), help="loader processes; 0 loads in line"
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def model_config(opts: TrainOptions | argparse.Namespace, num_classes: int) -> zoo.Config:
    """The config that --model and --set describe; raises InputError for a wrong keyword."""
    keywords = builder_keywords(opts.model, opts.set)
    return zoo.config_for(opts.model, num_classes=num_classes, **keywords)


def build_model(config: zoo.Config, seed: int = 0) -> zoo.Built:
    """`zoo.build_from_config`; raises InputError if the keywords do not fit."""
    try:
        return zoo.build_from_config(config, seed=seed)
    except ValueError as error:
        raise InputError(f"--set: no such model can be built, {error}; change the value") from error


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
