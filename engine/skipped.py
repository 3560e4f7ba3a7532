"""What --skip-bad-records left out: kept in the folder of a run, and listed at the end."""

import json
from collections.abc import Iterable
from pathlib import Path

from data.errors import BadRecord, BadRecords, printable
from engine import dist, files
from engine.log import info

NAME = "skipped.json"
MOST_SHOWN = 20


def records_of(*lists: BadRecords) -> list[dict]:
    """The bad records of several sets as plain values, each once."""
    return [one._asdict() for one in dict.fromkeys(one for bad in lists for one in bad)]


def gather(*lists: BadRecords) -> None:
    """Collective: adds what other ranks have left out to the lists of rank 0."""
    for bad in lists:
        for found in dist.gather_interleaved([list(bad)]):
            bad.add(found)


def write(folder: Path, *lists: BadRecords) -> None:
    """Writes skipped.json of a run folder if anything was left out; raises FailedRun if it cannot,
    and keeps the file before.
    """
    if records := records_of(*lists):
        files.write_json(folder / NAME, records)


def read(folder: Path) -> list[BadRecord]:
    """What a run has left out so far; nothing if the file is missing or not one of ours."""
    try:
        records = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return list(dict.fromkeys(BadRecord(**record) for record in records))
    except (OSError, ValueError, TypeError):
        return []


def report_skipped(lists: Iterable[BadRecords], place: Path | None = None) -> None:
    """Prints what was left out and why; `place` is the file that lists all of it."""
    records = records_of(*lists)
    if records:
        info(f"left out {len(records)} bad records:")
    for record in records[:MOST_SHOWN]:
        info(printable(f"  {record['file']}, {record['record']}: {record['reason']}"))
    if len(records) > MOST_SHOWN:
        where = f", all of them in {place}" if place else ""
        info(f"  and {len(records) - MOST_SHOWN} more{where}")
