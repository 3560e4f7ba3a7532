"""What --skip-bad-records left out: kept in the folder of a run, and listed at the end."""

import json
from collections.abc import Iterable
from pathlib import Path

from data.errors import BadRecord, BadRecords
from engine import dist, files
from engine.log import info

NAME = "skipped.json"
_SHOWN = 20


def records_of(*lists: BadRecords) -> list[dict]:
    """The bad records of several sets as plain values, each once."""
    return [one._asdict() for one in dict.fromkeys(one for bad in lists for one in bad)]


def gather(*lists: BadRecords) -> None:
    """Collective: the main process takes in what the others have left out."""
    for bad in lists:
        for found in dist.gather_interleaved([list(bad)]):
            bad.add(found)


def write(folder: Path, *lists: BadRecords) -> None:
    """Into skipped.json of a run folder; nothing where nothing was left out.

    Raises:
        FailedRun: the file system does not allow it; the file is as it was.
    """
    records = records_of(*lists)
    if records:
        files.write_json(folder / NAME, records)


def read(folder: Path) -> list[BadRecord]:
    """What a run has left out before it was interrupted; an unreadable list is begun anew."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        records = [BadRecord(**record) for record in found]
        texts = [text for record in records for text in record[:3]]
        ids = [record.image_id for record in records]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise TypeError("a text of none of ours")
        if not all(id_ is None or type(id_) is int for id_ in ids):
            raise TypeError("an id of none of ours")
        return records
    except (OSError, ValueError, TypeError):
        return []


def report_skipped(lists: Iterable[BadRecords], place: str | Path | None = None) -> None:
    """List what was left out: where, which, why. `place`: the file that has all of them."""
    records = records_of(*lists)
    if not records:
        return
    info(f"left out {len(records)} bad records:")
    for record in records[:_SHOWN]:
        info(f"  {record['file']}, {record['record']}: {record['reason']}")
    if len(records) > _SHOWN:
        info(f"  and {len(records) - _SHOWN} more" + (f", all of them in {place}" if place else ""))
