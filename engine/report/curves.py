"""Entry: run folders -> a figure of their losses and APs over time."""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import InputError
from engine import files, log, options
from engine.coco_ap import NOTHING
from engine.log import info
from engine.report.run_facts import evaluated_split
from engine.visualize import save_image

CURVES = Path("curves")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Draw the loss, validation AP and train AP of runs over time.")
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; the newest if not given")
    where = f"{CURVES}/NNN if not given"
    options.add_out(parser, f"image file, or a folder for it; {where}")
    return parser.parse_args(argv)


def read_run(folder: Path) -> dict[str, np.ndarray]:
    """Reads minutes, loss, and minutes (`evaluated`), AP, AP50 of the evaluations as arrays, and
    "train AP"; NaN where there was nothing to score.

    Raises:
        InputError: if the folder is no run or has no evaluation yet.
    """
    rows = log.read_jsonl(folder / "log.jsonl")
    rows = [row for row in rows if "loss" in row]  # in the others all steps were skipped
    evaluations = log.read_csv(folder / "metrics.csv")
    if not rows or not evaluations:
        raise InputError(
            f"{folder}: no run with an evaluation in its log.jsonl and metrics.csv; give folders "
            f"below {options.RUNS}/"
        )
    val = evaluated_split(evaluations)

    def column(name: str) -> np.ndarray:
        values = np.array([float(row.get(name) or "nan") for row in evaluations])
        return np.where(values == NOTHING, np.nan, values)

    minutes = np.array([row["minutes"] for row in rows])
    return {
        "minutes": minutes,
        "loss": np.array([row["loss"] for row in rows]),
        "evaluated": np.interp(column("iteration"), [row["iteration"] for row in rows], minutes),
        "AP": column(f"{val}/AP"),
        "AP50": column(f"{val}/AP50"),
        "train AP": column("train/AP"),
    }


def smooth(values: np.ndarray, width: int = 15) -> np.ndarray:
    """Running mean; shorter windows at the ends."""
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw_curves(curves: dict[str, dict[str, np.ndarray]], out: Path) -> None:
    """Draws losses on the left, AP (solid), AP50 (dashed) and train AP (dotted) on the right."""
    from matplotlib.figure import Figure  # from requirements-dev.txt, used only here

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, run) in enumerate(curves.items()):
        colour = f"C{number}"
        left.plot(run["minutes"], smooth(run["loss"]), colour)
        right.plot(run["evaluated"], run["AP"], colour, marker=".", label=f"{name}, AP")
        right.plot(run["evaluated"], run["AP50"], colour, linestyle="--", label=f"{name}, AP50")
        if np.isfinite(run["train AP"]).any():
            style = {"linestyle": ":", "marker": ".", "label": f"{name}, train AP"}
            right.plot(run["evaluated"], run["train AP"], colour, **style)
    left.set(xlabel="minutes", ylabel="training loss (running mean)", yscale="log")
    right.set(xlabel="minutes", ylabel="AP", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)  # beside, over no curve
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    save_image(Image.open(buffer).convert("RGB"), out)


def main(argv: list[str]) -> None:
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite)
    folders = opts.runs or [files.newest_runs(options.RUNS)[0]]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = map(str, folders)
    found = dict(zip(names, map(read_run, folders)))
    out = files.output(opts.out, CURVES, "", "curves.png")
    draw_curves(found, out)
    info(f"wrote {out}")


if __name__ == "__main__":
    options.run_entry(main)
