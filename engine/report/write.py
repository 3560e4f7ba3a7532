"""Entry: a run folder -> its report.html and summary.md, at any time."""

import argparse
from pathlib import Path

from data.errors import InputError
from engine import files, options
from engine.log import info
from engine.report import run_page, summary


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Write report.html and summary.md of a run, at any time.")
    parser.add_argument("run", type=Path, nargs="?", help="run folder; the newest if not given")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    folder = opts.run or files.newest_runs(options.RUNS)[0]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; give one below {options.RUNS}/")
    summary.write(folder)
    info(f"wrote {run_page.write(folder)}")


if __name__ == "__main__":
    options.run_entry(main)
