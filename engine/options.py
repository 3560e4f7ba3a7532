"""Options: declared once, checked whether they come from a command line or from a program."""

import argparse
import json
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from data.errors import InputError
from data.readers import READERS
from engine import dist, recipes, values
from engine.files import FailedRun
from engine.interrupt import GracefulStop
from engine.parser import Parser, option
from engine.values import fraction, is_unset, positive, positive_real, real, shown, whole
from mobileinst import weights, zoo
from mobileinst.config import did_you_mean
from mobileinst.set_prediction.postprocess import DUPLICATE_IOU

DATASETS = Path("datasets")
CONVERTED = DATASETS / "converted"  # what was read in other formats
RUNS = Path("runs")
MARK = "options.json"  # of a run folder
# The options that name a data set, and how it is read.
SOURCE = ("data", "format", "train_json", "val_json", "images")
READING = ("crowd_as_instances", "keep_crowds", "boxes_as_masks", "skip_bad_records")
CHECKPOINT = (
    "best.pt, last.pt, or an exported .onnx or .pte; best.pt of the newest run if not given"
)
SPLIT = "part of the data set"


@dataclass(init=False)
class TrainOptions:
    """All options of a training: given values override the recipe, and those the defaults. A wrong
    one raises InputError.

    `origins` holds where each value comes from: "default", "recipe", "user", "machine" where it
    follows from the cores, "data" (engine/fit.py), "weights" or "run" (engine/start_weights.py);
    keywords of `set` are named `set.KEY`. `given` are the values of the user.
    """

    # fmt: off
    recipe: str | None = option(
        None, str, f"model and numbers of engine/recipes.py: {', '.join(recipes.RECIPES)}",
        "recipe", choices=tuple(recipes.RECIPES), metavar="NAME")

    data: Path | None = option(
        None, Path, "a data set: a folder, or its json, xml, csv or yaml; the format is recognised",
        "data")
    format: str | None = option(
        None, str, f"read --data as this format: {', '.join(one.NAME for one in READERS)}",
        choices=tuple(one.NAME for one in READERS), metavar="NAME")
    val_fraction: float = option(
        0.2, values.decay, "images that are held out for validation where the data has no split "
        "for it; 0: train on all")
    train_json: Path | None = option(None, Path, "COCO json of the training split")
    val_json: Path | None = option(None, Path, "COCO json of the validation split")
    images: Path | None = option(None, Path, "folder of the images in the json files")
    crowd_as_instances: bool = option(
        False, bool, "read iscrowd objects as ordinary ones (some tools export brush masks so)")
    keep_crowds: bool = option(
        False, bool, "leave brush masks of annotation tools the crowds that they are exported as")
    boxes_as_masks: bool = option(
        False, bool, "read boxes without a mask as objects that fill them, where the boxes are the "
        "shapes themselves; else their region is ignored")
    skip_bad_records: bool = option(
        False, bool, "leave out records and images that cannot be used, and list them at the end")

    model: str = option(
        "mobileinst_topformer_tiny", str, "without it, the one whose ImageNet weights are in "
        f"datasets/weights or come with pip, else the default; one of {', '.join(zoo.names())}",
        "model", choices=zoo.names(), metavar="NAME")
    set: dict[str, object] | None = option(
        None, values.keyword, "other values for keywords of the model, as width=64 num_queries=50",
        action="extend", nargs="+", metavar="KEY=VALUE")
    allow_partial: bool = option(False, bool, "load what fits of weights that do not fit whole")
    pretrained: Path | None = option(
        None, Path, "start from these weights: of a backbone, or a checkpoint of any class list",
        metavar="FILE")
    from_scratch: bool = option(
        False, bool, "start from random values; else from --pretrained or an ImageNet file in "
        "datasets/weights, and without --model a model that has one")

    epochs: float | None = option(
        None, positive_real, "length in passes over the training set; 60 if nothing is given",
        "length and schedule")
    iterations: int | None = option(None, positive, "length in optimizer steps, instead of epochs")
    schedule: str = option(
        "cosine", str, "course of the learning rate after the warm-up",
        choices=("cosine", "multistep", "poly"))
    warmup: int = option(200, whole, "iterations of linear warm-up")
    drops: tuple[int, ...] = option((), whole, "multistep: iterations of the drops", nargs="*")

    batch_size: int = option(8, positive, "images at a time, in each process", "optimizer step")
    accumulate: int = option(1, positive, "batches per optimizer step")
    lr: float = option(1e-3, positive_real, "highest learning rate")
    backbone_factor: float = option(1.0, real, "learning rate of the backbone, relative to --lr")
    weight_decay: float = option(0.05, real, "weight decay of AdamW")
    clip: float = option(1.0, real, "largest gradient norm; 0 is off")
    average: float = option(0.998, values.decay, "decay of the EMA; 0 is off")
    amp: str = option(
        "off", str, "mixed precision; off is float32", choices=("off", "bf16", "fp16"))
    skip_bad_steps: int = option(
        0, whole, "leave out up to N steps whose loss or gradient is not finite")
    seed: int = option(0, values.integer, "fixes every random number")

    image_size: int = option(
        320, values.image_side, "short side of the images in pixels", "input and augmentation")
    canvas: list[tuple[int, int]] | None = option(
        None, values.canvas, "HEIGHTxWIDTH of training batches, one drawn per step from those that "
        "its images fill well; follows from --image-size if not given", nargs="+")
    tiles: int = option(
        1, positive, "evaluate windows of each image as well, N along its long side, each as large "
        "for the network as the image: finds small objects; 1: off", metavar="N")
    scale: tuple[float, float] = option(
        (0.6, 1.8), positive_real, "scale jitter; 1 just fits the image into the canvas",
        nargs=2, metavar=("MIN", "MAX"))
    flip: float = option(0.5, fraction, "chance of a horizontal flip")
    colour: float = option(0.3, fraction, "strength of the colour jitter")
    copy_paste: float = option(
        0.0, fraction, "chance that objects of another training image are pasted onto an image")
    overfit: int | None = option(
        None, positive, "self-test: train on the first N images of the seeded order, without "
        "augmentation, and evaluate on the same")

    out: Path | None = option(None, Path, "run folder; runs/<model>-NNN if not given", "run")
    resume: bool = option(False, bool, "go on with an interrupted run")
    overwrite: bool = option(False, bool, "replace the run in --out")
    eval_every: float = option(5.0, real, "epochs between evaluations; 0: at the end only")
    eval_train: int = option(
        100, whole, "training images that each evaluation scores beside val, the first N of the "
        "seeded order; 0: none")
    save_every: int | None = option(
        None, positive, "iterations between saves for --resume; a minute or so if not given")
    log_every: int = option(20, positive, "iterations between lines of the log")

    device: str | None = option(None, str, "cuda, mps or cpu; the best if not given", "machine")
    threads: int | None = option(
        None, positive, "threads of each training process; half of the cores if not given")
    workers: int | None = option(
        None, whole, "loader processes, 0 loads in line; 2 if not given and there are cores")
    deterministic: bool | None = option(
        None, bool, "the same bits each time; if not given, on a CPU, where it costs nothing",
        action=argparse.BooleanOptionalAction)
    # fmt: on

    def __init__(self, **given: object) -> None:
        declared = {each.name: each for each in fields(self)}
        if unknown := given.keys() - declared.keys():
            hint = did_you_mean(sorted(unknown), list(declared))
            hint = hint or f"there are {', '.join(declared)}"
            raise TypeError(f"no option is called {', '.join(sorted(unknown))}; {hint}")
        given = {
            name: values.checked(name, declared[name].metadata, value)
            for name, value in given.items()
            if value is not None
        }
        self.given = dict(given)
        if given.get("from_scratch") and "pretrained" in given:
            raise InputError("--from-scratch and --pretrained are two starts; give one of them")
        chosen = {}
        if "recipe" in given:
            given["recipe"], chosen = recipes.values_of(
                given["recipe"], given.get("model"), "overfit" in given, "pretrained" in given
            )
        lengths = {"epochs", "iterations"}
        if lengths <= given.keys():
            raise InputError("--epochs and --iterations are two lengths; give one of them")
        if lengths & given.keys():
            chosen = {name: value for name, value in chosen.items() if name not in lengths}
        self.origins = {}
        for name, each in declared.items():
            origin = "user" if name in given else "recipe" if name in chosen else "default"
            self.origins[name] = origin
            setattr(self, name, given.get(name, chosen.get(name, each.default)))
        self.from_scratch = self.from_scratch and not self.pretrained
        if self.scale[0] > self.scale[1]:
            raise InputError(f"--scale {shown(self.scale)}: give the smaller number first")
        if self.overfit and self.tiles > 1:
            raise InputError("--overfit trains and evaluates whole images; leave out --tiles")
        if "drops" in given and self.schedule != "multistep":
            raise InputError(f"--drops: the schedule is {self.schedule}; add --schedule multistep")
        own = given.get("set", {})
        self.set = values.builder_keywords(self.model, chosen.get("set", {}) | own)
        self.origins |= {f"set.{key}": "user" if key in own else "recipe" for key in self.set}
        if self.epochs is None and self.iterations is None:
            self.epochs = 60.0
        if self.threads is None:
            self.threads, self.origins["threads"] = values.default_threads(), "machine"
        if "workers" not in given:
            self.workers = values.default_workers(self.workers or 2)
            self.origins["workers"] = "machine"

    def changed(self, values: dict[str, object], origin: str) -> "TrainOptions":
        """These options with other values of this origin, and the recipe for them."""
        values = {name: v for name, v in values.items() if v != getattr(self, name)}
        changed = TrainOptions(**self.given | values) if values else self
        changed.origins |= dict.fromkeys(values, origin)
        keywords = values.get("set", {}).keys() - self.given.get("set", {}).keys()
        changed.origins |= {f"set.{key}": origin for key in keywords}
        return changed

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all ranks."""
        return self.batch_size * self.accumulate * dist.world_size()

    def plain(self) -> dict:
        """Plain values by name, paths as text."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.loads(json.dumps(found, default=str))

    def describe(self, derived: dict[str, object]) -> str:
        """Every value, one paragraph per origin; `derived` are those that follow from the data."""
        origins = ("user", "run", "weights", "recipe", "data", "machine", "default")
        listed = {origin: [] for origin in origins}
        for name, value in self.plain().items():
            if name not in ("set", "recipe", *derived) and not is_unset(value):
                listed[self.origins[name]].append(f"{name} {shown(value)}")
        for key, value in self.set.items():
            listed[self.origins[f"set.{key}"]].append(f"{key}={shown(value)}")
        listed["data"] += [f"{name} {shown(value)}" for name, value in derived.items()]
        paragraphs = []
        for origin, items in listed.items():
            start = f"{origin:<10}" + (f"{self.recipe}: " if origin == "recipe" else "")
            # Each item stays on one line: its spaces come back after wrapping.
            text = ", ".join(item.replace(" ", "\0") for item in items)
            layout = {"subsequent_indent": " " * 10, "break_long_words": False}
            lines = textwrap.fill(text, 100, initial_indent=start, break_on_hyphens=False, **layout)
            paragraphs += [lines.replace("\0", " ")] if items else []
        return "\n".join(paragraphs)


def train_options(argv: list[str], description: str) -> TrainOptions:
    """The options of a training from a command line."""
    parser = Parser(description)
    group, names = None, [each.name for each in fields(TrainOptions)]
    for each in fields(TrainOptions):
        if each.metadata["group"]:
            group = parser.add_argument_group(each.metadata["group"])
        add_option(group, each.name)
    # None stays where the user gave nothing: defaults are only for --help.
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names)))
    return TrainOptions(**{name: getattr(given, name) for name in names})


def add_option(group, name: str, **changes: object) -> None:
    """Adds an option of `TrainOptions` to a parser or group, with other settings in `changes`."""
    declared = TrainOptions.__dataclass_fields__[name]
    about, convert = declared.metadata, declared.metadata["convert"]
    settings = {"help": about["help"], "default": declared.default}
    if convert is bool:
        settings["action"] = "store_true"
    else:
        settings["type"] = convert
    group.add_argument(f"--{name.replace('_', '-')}", **settings | about["argument"] | changes)


def add_data(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    for name in (*SOURCE, *READING):
        add_option(group, name)
    help = (
        "images of --split val where the data has no split for it; those of the run if not given, "
        "or all of other data"
    )
    add_option(group, "val_fraction", default=None, help=help)


def add_config(parser: Parser) -> argparse._ArgumentGroup:
    """Adds the options that describe a model; returns their group."""
    group = parser.add_argument_group("model")
    add_option(group, "model")
    add_option(group, "set", default=[])
    return group


def add_out(parser: Parser, help: str) -> None:
    parser.add_argument("--out", type=Path, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")


def add_duplicate_iou(parser: Parser) -> None:
    help = "drop detections whose mask has a larger IoU with a better one of their class; 1: off"
    parser.add_argument("--duplicate-iou", type=fraction, default=DUPLICATE_IOU, help=help)


def add_tiles(parser: Parser) -> None:
    help = (
        "also look at N overlapping windows along the long side, and as many along the short side "
        "as their shape needs, each as large for the network as the whole image is: finds small "
        "objects in large images; 1: off; that of the training if not given"
    )
    add_option(parser, "tiles", default=None, help=help)


def add_colour_by(parser: Parser) -> None:
    help = "what has a colour of its own: each object, or each class, the same in every image"
    parser.add_argument("--colour-by", choices=("object", "class"), default="object", help=help)


def add_image_size(parser: Parser) -> None:
    help = "short side of the images in pixels; that of the training if not given"
    add_option(parser, "image_size", default=None, help=help)


def add_device(parser: Parser, workers: bool = False) -> None:
    """Adds the options of the machine, with `workers` those of the loader processes."""
    group = parser.add_argument_group("machine")
    add_option(group, "device")
    add_option(group, "threads", default=values.default_threads(), help="threads of each process")
    if workers:
        number = values.default_workers()
        add_option(group, "workers", default=number, help="loader processes; 0 loads in line")


def model_config(opts: TrainOptions | argparse.Namespace, num_classes: int) -> zoo.Config:
    """The config that --model and --set describe; raises InputError for a wrong keyword."""
    keywords = values.builder_keywords(opts.model, opts.set)
    return zoo.config_for(opts.model, num_classes=num_classes, **keywords)


def dry_run(
    opts: TrainOptions | argparse.Namespace,
    file: weights.WeightFile,
    classes: Sequence[str] | None = None,
    builder: Callable[..., tuple] = zoo.build_from_config,
) -> weights.Report:
    """Loads weights into a new model that the options describe; returns the report alone. Its
    classes are those of the file if not given. Raises InputError if the file does not fit.
    """
    config = model_config(opts, num_classes=1)
    with values.model_errors():
        if classes is None:
            model = builder(config)[0]
            rows = file.rows_per_class(getattr(model, "class_layers", ())) or 1
            number = max(1, rows - len(getattr(model, "more_rows", ())))
            classes = file.classes or ("unnamed",) * number
        config = replace(config, num_classes=len(classes))
        keywords = {"config": asdict(config), "allow_partial": opts.allow_partial}
        return weights.load(builder(config)[0], file, classes=classes, **keywords)


def run_entry(main: Callable[[list[str]], int | None]) -> None:
    """Runs an entry: a user's mistake is one sentence and exit code 2, a failed run is 3.

    SIGTERM ends it with 143 as Ctrl-C does with 130.
    """
    complaint, failure = "", None
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    dist.init()
    try:
        with GracefulStop(at_once=True):
            code = main(sys.argv[1:]) or 0
    except (InputError, FailedRun, PermissionError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        failure = sentence = error
        if isinstance(error, PermissionError):
            sentence = InputError(
                f"{error.filename}: permission denied; allow it, or name another place"
            )
        complaint = f"error: {sentence}" if dist.should_report(error) else ""
        code = 3 if isinstance(error, FailedRun) else 2
    except dist.RankLost as error:
        failure, complaint, code = error, str(error), dist.EXIT_RANK_LOST
    except KeyboardInterrupt as stop:
        # Its frames hold loaders, whose workers end only when they are let go.
        failure = stop.with_traceback(None)
        complaint, code = "interrupted", getattr(stop, "exit_code", 130)
    if complaint:  # only now: progress bars leave the terminal when the error lets go of them
        print(complaint, file=sys.stderr)
    dist.shutdown(failure)
    sys.exit(code)
