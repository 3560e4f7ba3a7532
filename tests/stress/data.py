"""Damaged data sets: small sets in every format, each damaged in one place.

`attempt` opens such a set as a training does and reads every image through the presets. It must
work, or end in one sentence that names the file and the record; then again with bad records left
out. Everything follows from (kind, seed), so a failing case can be repeated.
"""

import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.batch import Batch
from data.dataset import CocoDataset
from data.errors import InputError
from data.loaders import eval_loader, train_loader
from data.opening import open_datasets
from data.presets import EvalPreset, TrainPreset
from tests.stress.damage import RECORDS
from tests.stress.damage_formats import OF_FORMATS
from tests.stress.rows import Row
from tests.stress.sets import Expected

KINDS = RECORDS | OF_FORMATS
SECONDS = 20  # limit of one case; most take some hundredths
GROWTH = 1200.0  # megabytes that the process may grow by over all cases


class Outcome(NamedTuple):
    """Result of a case: `state` is works, refused or fault."""

    kind: str
    seed: int
    state: str
    text: str


def write_case(kind: str, seed: int, folder: Path) -> tuple[dict, Expected]:
    """Writes a damaged set; returns the keywords to open it with, and what is expected."""
    base, damage = KINDS[kind]
    made = base()
    expected = damage(np.random.default_rng([seed, *kind.encode()]), made)
    made.write(folder)
    return {"data": folder, "cache": folder / "cache"}, expected


def attempt(kind: str, seed: int, folder: Path) -> Outcome:
    """Runs one case, strictly and then with bad records left out."""
    keywords, expected = write_case(kind, seed, folder)
    try:
        with limited(SECONDS):
            message, _ = walk(keywords, skip_bad=False)
            complaint = judge(message, folder, expected)
            if not complaint:
                later, bad = walk(keywords, skip_bad=True)
                complaint = judge_skipping(message, later, bad)
    except Exception as error:
        complaint, message = f"{type(error).__name__}: {error}", None
    state = "fault" if complaint else "works" if message is None else "refused"
    return Outcome(kind, seed, state, complaint or message or "")


def walk(keywords: dict, skip_bad: bool) -> tuple[str | None, int]:
    """Opens a set and reads all of it as training and evaluation do.

    Returns the error message or None, and the number of records that were left out.
    """
    dataset = None
    try:
        dataset = open_datasets(**keywords, splits=("train",), skip_bad=skip_bad, progress=False)[
            "train"
        ]
        for index in range(len(dataset)):
            path = os.path.normpath(dataset.path(index))  # links are followed
            assert path.startswith(str(keywords["data"])), f"{path} is outside of the set"
        dataset.summary()
        dataset.ground_truth()
        steps = math.ceil(len(dataset) / 2)
        preset = TrainPreset(copy_paste=0.5)
        canvases = [(64, 64)]
        for packed in train_loader(
            dataset, preset, batch_size=2, stop_step=steps, canvases=canvases
        ):
            check(packed.to("cpu"), dataset)
        for packed in eval_loader(dataset, EvalPreset(48), batch_size=2):
            check(packed.to("cpu"), dataset)
        dataset.ground_truth()
    except InputError as error:
        return str(error), 0 if dataset is None else len(dataset.bad)
    return None, len(dataset.bad)


def check(batch: Batch, dataset: CocoDataset) -> None:
    """Raises AssertionError for an invalid batch."""
    assert torch.isfinite(batch.images).all() and 0 <= batch.images.min() <= batch.images.max() <= 1
    for target in batch.targets:
        assert target["masks"].shape[0] == len(target["labels"])
        assert target["masks"].flatten(1).any(1).all() if len(target["labels"]) else True
        assert all(0 <= label < len(dataset.categories) for label in target["labels"].tolist())


def judge(message: str | None, folder: Path, expected: Expected) -> str:
    """Returns what is wrong with the result of a case; empty if nothing is."""
    if message is None:
        return "it should have been refused" if expected.refused else ""
    if expected.refused is False:
        return f"it should work: {message}"
    if "failed to read as" in message:
        return f"its reader did not expect this: {message}"
    if not message.isprintable() or len(message) > 4000:
        return f"not one line: {message[:300]!r}"
    if str(folder) not in message or not any(name in message for name in expected.names):
        return f"names not the file, or none of {expected.names}: {message}"
    return "" if ": " in message else f"an error without a fix: {message}"


def judge_skipping(strictly: str | None, message: str | None, bad: int) -> str:
    if strictly is None and (message or bad):
        return f"works, but leaves out {bad} records: {message}"
    if strictly is not None and not message and not bad:
        return f"refused ({strictly}), but nothing is left out"
    return ""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError after `seconds`; numerical warnings raise as well."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)  # about crowds
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_all(cases: Sequence[tuple[str, int]], scratch: Path) -> list[Outcome]:
    """Runs several cases, each in a temporary folder."""
    outcomes = []
    for kind, seed in cases:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            outcomes.append(attempt(kind, seed, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def peak_megabytes() -> float:
    """Returns the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def try_and_measure(cases: Sequence[tuple[str, int]], scratch: Path) -> tuple[list[Outcome], float]:
    before = peak_megabytes()
    return try_all(cases, scratch), peak_megabytes() - before


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """Yields a row for each kind; all run in one process, so that a crash is noticed."""
    each = 400 if thorough else 25
    cases = [(kind, seed) for kind in KINDS for seed in range(each)]
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            outcomes, growth = alone.submit(try_and_measure, cases, scratch).result()
    except BrokenProcessPool:
        yield Row("bad data", f"{len(cases)} sets", "the process crashed", False)
        return
    for kind in KINDS:
        states = Counter(one.state for one in outcomes if one.kind == kind)
        faults = [f"seed {one.seed}: {one.text}" for one in outcomes if one[::2] == (kind, "fault")]
        result = f"{states['works']} work, {states['refused']} end in one sentence"
        yield Row(f"bad data: {kind}", f"{each} sets", "; ".join([result, *faults[:3]]), not faults)
    grown = f"the process grew by {growth:.0f} MB at its highest"
    yield Row("bad data: memory", f"{len(cases)} sets", grown, growth < GROWTH)
