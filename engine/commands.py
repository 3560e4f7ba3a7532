"""Command lines of next steps, printed at the end of a command."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.log import info
from engine.options import READING, SOURCE, TrainOptions

START = ("model", "image_size", "pretrained", "from_scratch")  # what a training starts from


def command(script: str, *words: object) -> str:
    """The command line of a script in sbin/, quoted where a shell needs it."""
    return shlex.join(["bash", f"sbin/{script}.sh", *map(str, words)])


def show_next(steps: Mapping[str, str]) -> None:
    """Prints command lines, each after what it is for."""
    width = max(map(len, steps))
    info("\nnext:")
    for what, line in steps.items():
        info(f"  {what:<{width}}  {line}")


def arguments(**given: object) -> list[str]:
    """Options by name -> the arguments of a command line; None and False are left out."""
    found = []
    for name, value in given.items():
        if value is None or value is False:
            continue
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
    return found


def data_arguments(given: Mapping[str, object]) -> list[str]:
    """The arguments that name the data set of these options; those of the default are left out."""
    named = {name: given.get(name) for name in (*SOURCE, "val_fraction", *READING)}
    if named["val_fraction"] == TrainOptions.val_fraction:
        named["val_fraction"] = None
    return arguments(**named)


def train_script(model: str) -> str:
    """The script that trains models of this name's system on own data."""
    system = model.partition("_")[0]
    return "train" if system == "mobileinst" else f"train_{system}"


def after_training(checkpoint: Path, options: TrainOptions) -> dict[str, str]:
    """Next steps after a training."""
    if options.overfit:
        start = {name: options.given.get(name) for name in START}
        words = data_arguments(options.given) + arguments(**start)
        return {"train on all images": command(train_script(options.model), *words)}
    return with_checkpoint(checkpoint)


def with_checkpoint(checkpoint: Path) -> dict[str, str]:
    """What can be done with the best.pt of a run."""
    return {
        "on images of your own": command("predict", "IMAGES", "--checkpoint", checkpoint),
        "for a phone or browser": command("export", "--checkpoint", checkpoint),
        "beside another run": command("report", checkpoint.parent, "RUN"),
    }
