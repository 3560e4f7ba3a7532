"""Entry: what a file of weights is, and whether it loads into a model."""

import argparse
import json
import textwrap
from pathlib import Path

from data.errors import InputError, counted
from engine import checkpoint, options, start_weights
from engine.commands import command, show_next, train_script
from engine.log import info
from engine.report.tables import number
from engine.values import is_unset, model_errors, shown
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


def contents(path: Path) -> dict[str, object]:
    """Class names, scores, iteration and options of a checkpoint of ours."""
    content = checkpoint.load(path)
    found = {name: content.get(name) for name in ("iteration", "best", "scores", "options")}
    found["class_names"] = [one["name"] for one in content.get("classes", ())]
    return {name: value for name, value in found.items() if value is not None}


def lines_of(content: dict[str, object]) -> list[str]:
    """The same as lines of text; of a last.pt, the scores are the AP of its best.pt."""
    lines = []
    if names := content.get("class_names"):
        lines.append(f"has          {counted(len(names), 'class')}: {', '.join(names)}")
    if "iteration" in content:
        lines.append(f"iteration    {content['iteration']}")
    scores = content.get("scores", {})
    numbers = scores.get("void_removed") or scores.get("metrics")
    numbers = numbers or {"AP": content.get("best", {}).get("AP", -2.0)}
    if numbers["AP"] > -2:  # else it was never evaluated
        texts = [f"{key} {number(value)}" for key, value in numbers.items()]
        lines.append("scores       " + "  ".join(texts))
    given = {name: v for name, v in content.get("options", {}).items() if not is_unset(v)}
    items = [f"{name} {shown(v)}" for name, v in given.items() if name != "set"]
    items += [f"{key}={shown(v)}" for key, v in (given.get("set") or {}).items()]
    if items:
        text = textwrap.fill(", ".join(items), 87, break_on_hyphens=False, break_long_words=False)
        lines.append(textwrap.indent(text, " " * 13).replace(" " * 13, "options      ", 1))
    return lines


def main(argv: list[str]) -> None:
    opts = parse(argv)
    classes = opts.classes
    if opts.num_classes:
        classes = [f"class {index}" for index in range(opts.num_classes)]
    with model_errors():
        file = weights.open_weights(opts.file)
    whole = start_weights.model_of(file)
    if whole and opts.model in (None, whole[0]):
        opts.model, keywords = whole
        opts.set = keywords | dict(opts.set)
    if opts.model is None:  # the MobileInst of the file's backbone, if there is one
        found = f"mobileinst_{start_weights.backbone_in(file)}"
        opts.model = found if found in zoo.MODELS else options.TrainOptions.model
    content = contents(opts.file) if file.config else {}
    try:
        report = options.dry_run(opts, file, classes)
    except InputError as error:
        about = {"loads": False, "file": str(opts.file), "source": file.source, "why": str(error)}
        about |= content
        info(json.dumps(about, indent=1) if opts.json else file.text)
        raise
    if opts.json:
        info(
            json.dumps({"loads": True, "model": opts.model} | report.as_dict() | content, indent=1)
        )
    else:
        info(report.text)
        if content:
            info("\n".join(lines_of(content)))
        info(f"loads into {opts.model}")
        words = ("--data", "DIR", "--model", opts.model, "--pretrained", opts.file)
        steps = {"start from it": command(train_script(opts.model), *words)}
        score = {"score it": command("test", "--checkpoint", opts.file)}
        show_next(score | steps if content else steps)


if __name__ == "__main__":
    options.run_entry(main)
