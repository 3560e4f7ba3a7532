"""Entry: a data set -> a page with its content and its problems, before a training."""

import argparse
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data.dataset import CocoDataset
from data.errors import InputError, counted
from data.inspection import Facts, facts_of
from data.opening import PARTS, divide
from engine import fetch, files, options, start_weights, values
from engine.commands import START, arguments, command, data_arguments, show_next, train_script
from engine.datasets import open_splits
from engine.findings import ERROR, Finding, Place, find_all
from engine.fit import fit_to_data
from engine.log import info, progress
from engine.options import TrainOptions
from engine.recipes import FITTED
from engine.report import data_page

CHECKS = Path("checks")
PAGE, LIST = "report.html", "problems.csv"
RECIPE = "small"  # that of sbin/train.sh


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser("Check a data set before a training: what is in it, what is wrong.")
    parser.add_argument("folder", type=Path, nargs="?", help="the same as --data")
    options.add_out(parser, "new folder for the page; checks/NNN if not given")
    group = parser.add_argument_group("data")
    for name in (*options.SOURCE, "val_fraction", *options.READING):
        if name != "skip_bad_records":  # they are listed
            options.add_option(group, name)
    group = parser.add_argument_group("training, for which the data are checked")
    options.add_option(group, "recipe", default=RECIPE)
    for name in ("set", *START):
        options.add_option(group, name, default=None)
    group = parser.add_argument_group("machine")
    number = values.default_workers()
    options.add_option(
        group, "workers", default=number, help="processes that read images; 0 reads in line"
    )
    opts = parser.parse_args(argv)
    if opts.folder and opts.data:
        raise InputError(f"{opts.folder} and --data {opts.data} are two data sets; give one")
    opts.data = opts.folder or opts.data
    return opts


def open_all(opts: argparse.Namespace) -> tuple[dict[str, CocoDataset], list[str], list[str]]:
    """All splits, divided as in a training if there is no validation split; messages; warnings."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        every = argparse.Namespace(**vars(opts), skip_bad_records=True)
        sets = open_splits(every, None, report=notes.append)
        if "all" in sets and "train" not in sets:
            sets = {"train": sets.pop("all"), **sets}
            sets["train"].name = "train"
        if "train" in sets and "val" not in sets:
            parts = divide(sets["train"], PARTS, opts.val_fraction, None, notes.append)
            if parts["val"] is not parts["train"]:
                sets = parts | {split: sets[split] for split in sets if split != "train"}
    return sets, notes, [str(one.message) for one in caught]


def read_facts(sets: dict[str, CocoDataset], workers: int) -> dict[str, list[Facts]]:
    found = {}
    with progress(total=sum(map(len, sets.values())), unit="image") as bar:
        for split, one in sets.items():
            bar.set_description(f"checking {split}", refresh=False)
            found[split] = []
            for facts in facts_of(one, workers):
                found[split].append(facts)
                bar.update()
    return found


def training(opts: argparse.Namespace, sets: dict[str, CocoDataset]) -> tuple[TrainOptions, dict]:
    """Options of a training on these data, with reasons of those that the data determine."""
    names = ("recipe", "set", *START, "data", "train_json")
    trained = TrainOptions(**{name: getattr(opts, name) for name in names})
    with suppress(InputError):  # missing weights are no problem of the data
        start = start_weights.choose(trained, lambda one: fetch.FOLDER / fetch.PUBLISHED[one].file)
        trained = trained.changed(start, "weights")
    fits = trained.recipe in FITTED and "train" in sets and sets["train"].with_objects()
    return trained, fit_to_data(trained, sets["train"]) if fits else {}


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """Writes all places of all findings as csv."""
    rows = [("level", "what", "split", "image", "where")]
    for one in findings:
        places = one.places or [Place("", text=f"{one.count} in all")]
        rows += [(one.level, one.title, each.split, each.image, each.text) for each in places]
    files.write_csv(path, rows, "choose another --out")


def verdict(sets: dict[str, CocoDataset], findings: Sequence[Finding]) -> str:
    """One line: what was checked, errors to correct, warnings."""
    numbers = {
        "image": sum(map(len, sets.values())),
        "object": sum(int(one.objects_per_image().sum()) for one in sets.values()),
        "class": len(next(iter(sets.values())).categories),
    }
    checked = ", ".join(counted(number, noun) for noun, number in numbers.items())
    errors = [f"{one.title} ({one.count:,})" for one in findings if one.level == ERROR]
    warnings = [f"{one.title} ({one.count:,})" for one in findings if one.level != ERROR]
    if errors:
        text = f"NOT READY, {checked}; to correct: {', '.join(errors)}"
    else:
        text = f"READY, {checked}"
    return text + (f"; warnings: {', '.join(warnings)}" if warnings else "")


def main(argv: list[str]) -> int:
    """Exit code 2 if the data must be corrected.

    Raises:
        InputError: if the data cannot be opened.
    """
    opts = parse(argv)
    files.require_free(opts.out, opts.overwrite, PAGE)
    sets, notes, warned = open_all(opts)
    for text in notes:
        info(text)
    trained, reasons = training(opts, sets)
    facts = read_facts(sets, opts.workers)
    findings = find_all(sets, facts, trained, warned)
    line = verdict(sets, findings)
    content = data_page.Content(
        str(opts.data or opts.train_json or opts.val_json), line, notes, sets, facts, findings,
        trained, reasons,
    )  # fmt: skip
    out = opts.out or files.next_free(CHECKS)
    with files.atomic_folder(out, opts.overwrite, PAGE) as folder:
        write_list(folder / LIST, findings)
        files.write_text(folder / PAGE, data_page.build(content), "choose another --out")
    info(f"{line}: {out / PAGE}")
    words = data_arguments(vars(opts))
    if any(one.level == ERROR for one in findings):
        show_next({"when it is corrected": command("check_data", *words)})
        return 2
    words += arguments(**{name: getattr(opts, name) for name in START})
    script = train_script(trained.model)
    show_next(
        {
            "self-test on 8 images": command(script, *words, "--overfit", 8),
            "training": command(script, *words),
        }
    )
    return 0


if __name__ == "__main__":
    options.run_entry(main)
