"""Entry: what a file of weights is, and whether it loads into a model."""

import argparse
import json
from pathlib import Path

from data.errors import InputError
from engine import options, start_weights
from engine.log import info
from engine.values import model_errors
from mobileinst import weights, zoo


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Print what a file of weights is and whether it loads into a model.")
    parser.add_argument("file", type=Path, help="weights of a backbone, or a checkpoint")
    group = options.add_config(parser)
    parser.set_defaults(model=None)
    options.add_option(group, "allow_partial")
    names = group.add_mutually_exclusive_group()
    names.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="class names of the model; those of the file if not given",
    )  # fmt: skip
    names.add_argument(
        "--num-classes", type=options.positive,
        help="how many classes the model has, where none has the name of one in the file",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print json instead of lines")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    classes = opts.classes
    if opts.num_classes:
        classes = [f"class {number}" for number in range(opts.num_classes)]
    with model_errors():
        file = weights.open_weights(opts.file)
    if opts.model is None:  # the MobileInst of the file's backbone, if there is one
        found = f"mobileinst_{start_weights.backbone_in(file)}"
        opts.model = found if found in zoo.MODELS else options.TrainOptions.model
    try:
        report = options.dry_run(opts, file, classes)
    except InputError as error:
        about = {"loads": False, "file": str(opts.file), "source": file.source, "why": str(error)}
        info(json.dumps(about, indent=1) if opts.json else file.text)
        raise
    if opts.json:
        info(json.dumps({"loads": True} | report.as_dict(), indent=1))
    else:
        info(report.text)
        info(f"loads into {opts.model}")


if __name__ == "__main__":
    options.run_entry(main)
