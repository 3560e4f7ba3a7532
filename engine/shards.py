"""An output folder of `predict` that the jobs of an array share.

Image n of the list belongs to shard (n - 1) % N + 1. A shard writes the images of what it finds
straight into the folder, and after those of an image one line into its own
`shards/I-of-N/records.jsonl`: an image is done when its line is whole. `shards/run.json` says what
is found with what; a shard that was started otherwise is refused.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from data.errors import BadRecord, BadRecords, InputError, first_of
from engine import files, log
from engine.files import FailedRun

FOLDER, RUN, RECORDS = "shards", "run.json", "records.jsonl"


class Shard(NamedTuple):
    """Shard `index` of `count`, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, number: int) -> bool:
        """Whether it does the image of this number."""
        return (number - self.index) % self.count == 0

    def folder(self, out: Path) -> Path:
        return out / FOLDER / f"{self.index}-of-{self.count}"


def shard(text: str) -> Shard:
    """I/N of an option."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 1 to N, as 2/10")
    return Shard(int(index), int(count))


def begin(out: Path, about: dict) -> None:
    """Writes what the shards have in common, or checks that it is the same.

    Raises:
        InputError: if the folder holds something else, or was begun with other options.
    """
    path, lock = out / FOLDER / RUN, files.FolderLock()
    lock.acquire(out, wait=True)  # several jobs may start at once
    try:
        if not path.exists():
            if any(one.name != FOLDER for one in out.iterdir()):
                raise InputError(
                    f"{out}: the output exists and is not of shards; name another --out"
                )
            files.write_json(path, about, "choose another --out")
    finally:
        lock.release()
    known = read_run(out)
    for name, value in about.items():
        if known.get(name) != value:
            was, now = (
                "" if each is None or isinstance(each, (list, dict)) else f" ({each})"
                for each in (known.get(name), value)
            )
            raise InputError(
                f"{out}: was begun with other {name}{was} than now{now}; give the same, or start "
                "in another --out"
            )


def read_run(out: Path) -> dict:
    """What the shards have in common; raises InputError if there is nothing."""
    known = files.read_json(out / FOLDER / RUN)
    if not isinstance(known, dict) or "shards" not in known:
        raise InputError(f"{out}: holds no {FOLDER}/{RUN}; give the --out of commands with --shard")
    return known


class Records:
    """The images that a shard has done, by number, and how others are added."""

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, {}
        self.bad: list[dict] = []
        for record in log.read_jsonl(path):
            if "bad" in record:
                self.bad.append(record)
            else:
                self.done[record["image"]["id"]] = record

    def add(self, record: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if "image" in record:
            self.done[record["image"]["id"]] = record

    def missing(self, own: Shard, images: int) -> set[int]:
        """The images of its shard that are left, of so many images in all."""
        bad = {n for one in self.bad for n in range(one["bad"]["image_id"], one["last"] + 1)}
        return set(range(own.index, images + 1, own.count)) - self.done.keys() - bad


def every_shard(out: Path, known: dict) -> Iterator[tuple[Shard, Records]]:
    """The shards of a folder with their records."""
    for index in range(1, known["shards"] + 1):
        own = Shard(index, known["shards"])
        yield own, Records(own.folder(out) / RECORDS)


@contextmanager
def opened(out: Path, own: Shard) -> Iterator[Records]:
    """The records of a shard, which one process at a time can add to.

    What a killed process left of a line is removed, and what was bad is tried again.

    Raises:
        InputError: if another process has the shard.
        FailedRun: if the file system does not allow to write there, also inside.
    """
    lock = files.FolderLock()
    lock.acquire(own.folder(out))
    try:
        path = own.folder(out) / RECORDS
        records = Records(path)
        lines = (json.dumps(each) + "\n" for each in records.done.values())
        files.write_text(path, "".join(lines), "choose another --out")
        records.bad.clear()
        yield records
    except OSError as error:
        raise FailedRun(
            f"{out}: cannot be written ({error.strerror or error}), images before are done; make "
            "room and start the same command again"
        ) from error
    finally:
        lock.release()


def joined(out: Path, known: dict) -> tuple[list[dict], BadRecords]:
    """The records of all shards by number, and what could not be read.

    Raises:
        InputError: if a shard is not finished.
    """
    found, bad, left = {}, {}, {}
    for own, records in every_shard(out, known):
        found |= records.done
        for one in records.bad:
            record = BadRecord(**one["bad"])
            if record.image_id not in records.done:
                first = bad.setdefault(record.file, record)  # of the shards that read its pages
                bad[record.file] = min(first, record, key=lambda each: each.image_id)
        if missing := records.missing(own, known["images"]):
            left[str(own)] = len(missing)
    if left:
        named = first_of([f"{name} ({count} images)" for name, count in left.items()], shown=8)
        raise InputError(f"{out}: not all shards are finished; start them again: --shard {named}")
    all_bad = BadRecords(skip=True)
    all_bad.add(sorted(bad.values(), key=lambda each: each.image_id))
    return [found[number] for number in sorted(found)], all_bad
