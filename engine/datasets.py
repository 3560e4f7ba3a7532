"""Opens the data sets that options name, divided as in an earlier run."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from data.dataset import CocoDataset
from data.errors import BadRecords, counted
from data.loaders import first_images
from data.opening import PARTS, open_datasets
from data.presets import EvalPreset, Size, TrainPreset
from engine import checkpoint, files, log, options
from engine.log import info

LISTS = "split.json"  # in a run folder: the file names of the parts


def open_splits(
    opts: argparse.Namespace | options.TrainOptions,
    splits: Sequence[str] | None,
    fraction: float | None = None,
    lists: Mapping[str, list[str]] | None = None,
    report: Callable[[str], None] = info,
) -> dict[str, CocoDataset]:
    """Opens splits of the data that the options name, see `open_datasets`."""
    named = {name: getattr(opts, name) for name in (*options.SOURCE, *options.READING)}
    return open_datasets(
        skip_bad=named.pop("skip_bad_records"),
        **named,
        splits=splits,
        val_fraction=(opts.val_fraction or 0) if fraction is None else fraction,
        lists=lists,
        cache=options.CONVERTED,
        report=report,
        progress=not log.is_quiet.get(),
    )


class Parts(NamedTuple):
    """The data sets of a run.

    val: chooses best.pt; training images if there is no other. seen: training images to be scored,
    if any. preset, canvases: how a training reads its images.
    """

    train: CocoDataset
    val: CocoDataset
    seen: CocoDataset | None = None
    preset: TrainPreset | EvalPreset | None = None
    canvases: Sequence[Size] = ()

    @property
    def has_val(self) -> bool:
        """Whether val is a validation split, and not training images."""
        return self.val.name == "val"

    @property
    def sets(self) -> list[CocoDataset]:
        """Those there are, each once."""
        found = (self.train, self.val, self.seen)
        return [*{id(one): one for one in found if one is not None}.values()]

    @property
    def bad(self) -> BadRecords:
        """What was left out of train and val."""
        bad = BadRecords()
        bad.add([*self.train.bad, *self.val.bad])
        return bad


def open_parts(opts: argparse.Namespace | options.TrainOptions, folder: Path | None) -> Parts:
    """Opens the data sets of a training; with the `folder` of a run, divided as in that run."""
    splits, fraction = (("train",), 0) if opts.overfit else (PARTS, opts.val_fraction)
    sets = open_splits(opts, splits, fraction, folder and read_lists(folder))
    train = sets["train"]
    if opts.overfit:
        if opts.overfit > len(train):
            info(
                f"--overfit {opts.overfit}: there are {counted(len(train), 'image')}, all are taken"
            )
        train = train.subset(first_images(len(train), opts.seed, opts.overfit))
        train.name = f"overfit-{len(train)}"  # never called val
        return Parts(train, train)
    return with_seen(opts, train, sets["val"])


def with_seen(
    opts: argparse.Namespace | options.TrainOptions, train: CocoDataset, val: CocoDataset
) -> Parts:
    """The parts with --eval-train images, which are `val` if there is no validation split."""
    chosen = first_images(len(train), opts.seed, opts.eval_train)
    seen = train.subset(chosen) if chosen else None
    if val.name == "val":
        return Parts(train, val, seen)
    val = seen or train.subset(range(len(train)))
    val.name = f"train-{len(val)}"  # never called val
    return Parts(train, val)


def parts_of_run(folder: Path, content: checkpoint.Fields) -> Parts:
    """The data sets of a run again, with the classes of its checkpoint `content`.

    Raises:
        InputError: if they are not there any more.
    """
    opts = argparse.Namespace(**content["options"])
    for name in ("data", "train_json", "val_json", "images"):
        value = getattr(opts, name)
        setattr(opts, name, value and Path(value))
    parts = open_parts(opts, folder)
    for one in parts.sets:
        one.use_classes(content["classes"], str(folder))
        one.bad.skip = True  # what the run went on without is not read here either
    return parts


def open_split(opts: argparse.Namespace, trained: tuple[Path, dict] | None = None) -> CocoDataset:
    """One split, by default of the data of the checkpoint. Of data without a validation split it is
    the part of that run, even if the data were moved; of other data all images, unless the options
    have a fraction.

    trained: path and content of the checkpoint.
    """
    splits = (opts.split,)
    named = opts.data or opts.train_json or opts.val_json
    if named and not (trained and names_same_data(opts, trained[1]["options"])):
        lists = trained and opts.val_fraction is None and read_lists(trained[0].parent)
        if lists:
            whole = open_splits(opts, splits)[opts.split]
            if {each.file_name for each in whole.images} != {*chain(*lists.values())}:
                return whole
        return open_splits(opts, splits, lists=lists)[opts.split]
    path, content = trained or checkpoint.load_or_newest(opts.checkpoint, options.RUNS)
    trained_with = content["options"]
    for name in options.SOURCE:
        if getattr(opts, name) is None and trained_with[name] is not None:
            value = trained_with[name]
            setattr(opts, name, value if name == "format" else Path(value))
    if not (opts.crowd_as_instances or opts.keep_crowds):
        opts.crowd_as_instances = trained_with["crowd_as_instances"]
        opts.keep_crowds = trained_with["keep_crowds"]
    opts.boxes_as_masks |= trained_with["boxes_as_masks"]
    opts.skip_bad_records |= trained_with["skip_bad_records"]
    lists = None
    if opts.val_fraction is None:
        opts.val_fraction, lists = trained_with["val_fraction"], read_lists(path.parent)
    return open_splits(opts, splits, lists=lists)[opts.split]


def names_same_data(opts: argparse.Namespace, trained_with: Mapping[str, object]) -> bool:
    """Whether the options name the data of a training, in its format or in none."""
    paths = [
        [one and Path(one).resolve() for one in (getattr(opts, name), trained_with[name])]
        for name in ("data", "train_json", "val_json")
    ]
    same = all(one == other for one, other in paths)
    return same and opts.format in (None, trained_with["format"])


def write_lists(folder: Path, train: CocoDataset, val: CocoDataset) -> None:
    """Writes the lists of a run whose sets are parts of one."""
    if train.bad is val.bad and val.name == "val":
        sets = zip(PARTS, (train, val), strict=True)
        names = {part: [each.file_name for each in one.images] for part, one in sets}
        files.write_json(folder / LISTS, names)


def read_lists(folder: Path) -> dict[str, list[str]] | None:
    """The lists of a run folder; None where it has none."""
    return files.read_json(folder / LISTS)
