"""Entry: a run folder -> its report.html and summary.md; several -> a page that compares them."""

import argparse
from pathlib import Path

import torch

from data.dataset import CocoDataset
from data.errors import InputError
from engine import checkpoint, files, log, options
from engine.commands import command, show_next
from engine.datasets import parts_of_run
from engine.log import info
from engine.report import compare, compare_page, evidence, run_page, summary
from engine.values import device_for

COMPARISONS = Path("comparisons")
MARKS = (options.MARK, "last.pt", "best.pt")  # one of them is in every run folder


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Write the page of a run, or a page that compares several runs.")
    parser.add_argument("runs", type=Path, nargs="*", help="run folders; the newest if not given")
    where = f"{run_page.NAME} in the folder of the run, {COMPARISONS}/NNN for several, if not given"
    options.add_out(parser, f"html file, or a folder for it; {where}")
    options.add_device(parser, workers=True)
    return parser.parse_args(argv)


def evidence_of(folder: Path, opts: argparse.Namespace) -> tuple[dict, CocoDataset | None, str]:
    """The evidence of a run, made where it is missing or of other weights; its data set; and why
    one of them is missing, in a sentence.
    """
    found, best = evidence.load(folder), checkpoint.load_if_whole(folder / "best.pt")
    if not best:
        return found, None, ""
    try:
        with log.quiet(progress=log.has_progress.get()):
            parts = parts_of_run(folder, best)
        if found.get("iteration") != best["iteration"]:
            found = evidence.compute(folder, best, parts, device_for(opts.device), opts.workers)
        return found, parts.val, ""
    except InputError as error:
        info(f"{folder}: {error}")
        return found, None, str(error)


def write_run(folder: Path, opts: argparse.Namespace) -> Path:
    """The page of one run, and its summary."""
    text = run_page.build(folder, *evidence_of(folder, opts))
    summary.write(folder)
    out = files.output(opts.out or folder, folder, "", run_page.NAME)
    files.write_text(out, text, "name another --out")
    return out


def write_comparison(folders: list[Path], opts: argparse.Namespace) -> Path:
    """The page of several runs."""
    datasets = [evidence_of(folder, opts)[1] for folder in folders]
    compared, detections = compare.compare(folders), []
    if all(datasets) and compared["images"]:
        machine = {"device": device_for(opts.device), "workers": opts.workers}
        indices = zip(*(row["index"] for row in compared["images"]))
        detections = [
            compare.detections_of(*each, **machine) for each in zip(folders, datasets, indices)
        ]
    text = compare_page.build(folders, compared, detections, datasets[0] if detections else None)
    out = files.output(opts.out, COMPARISONS, "", compare_page.NAME)
    files.write_text(out, text, "name another --out")
    return out


def main(argv: list[str]) -> None:
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite)
    folders = opts.runs or files.newest_runs(options.RUNS)[:1]
    for folder in folders:
        if not any((folder / name).is_file() for name in MARKS):
            raise InputError(f"{folder}: no run folder; give one below {options.RUNS}/")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is given twice; give each once")
    torch.set_num_threads(opts.threads)
    one = len(folders) == 1
    out = write_run(folders[0], opts) if one else write_comparison(folders, opts)
    info(f"wrote {out}")
    if one:
        show_next({"beside another run": command("report", folders[0], "RUN")})
    else:
        show_next({"one of them alone": command("report", folders[0])})


if __name__ == "__main__":
    options.run_entry(main)
