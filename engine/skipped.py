"""What --skip-bad-records left out: kept in the folder of a run, and listed at the end."""

import json
from collections.abc import Iterable
from pathlib import Path

from data.errors import BadRecord, BadRecords
from engine import dist, files
from engine.log import info

NAME = "skipped.json"
MOST_SHOWN = 20


def records_of(*lists: BadRecords) -> list[dict]:
    """The bad records of several sets as plain values, each once."""
    return [one._asdict() for one in dict.fromkeys(one for bad in lists for one in bad)]


def gather(*lists: BadRecords) -> None:
    """Adds what other ranks have left out to the lists of rank 0. Collective."""
    for bad in lists:
        for found in dist.gather_interleaved([list(bad)]):
            bad.add(found)


def write(folder: Path, *lists: BadRecords) -> None:
    """Writes skipped.json of a run folder if anything was left out.

    Raises:
        FailedRun: if the file system does not allow it; the file before is kept.
    """
    records = records_of(*lists)
    if records:
        files.write_json(folder / NAME, records)


def read(folder: Path) -> list[BadRecord]:
    """What a run has left out so far; none if the list is missing or not one of ours."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        records = [BadRecord(**record) for record in found]
    except (OSError, ValueError, TypeError):
        return []
    fine = all(
        all(isinstance(text, str) and text.isprintable() for text in record[:3])
        and (record.image_id is None or type(record.image_id) is int)
        for record in records
    )
    return records if fine else []


def report_skipped(lists: Iterable[BadRecords], place: str | Path | None = None) -> None:
    """Prints what was left out and why; `place` is the file that lists all of it."""
    records = records_of(*lists)
    if not records:
        return
    info(f"left out {len(records)} bad records:")
    for record in records[:MOST_SHOWN]:
        info(f"  {record['file']}, {record['record']}: {record['reason']}")
    if len(records) > MOST_SHOWN:
        info(
            f"  and {len(records) - MOST_SHOWN} more"
            + (f", all of them in {place}" if place else "")
        )
