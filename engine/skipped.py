"""The records that --skip-bad-records left out: stored in the run folder, printed at the end."""

from pathlib import Path

from data.errors import BadRecord, BadRecords, InputError, printable
from engine import dist, files
from engine.log import info

NAME = "skipped.json"
MOST_SHOWN = 20


def gather(bad: BadRecords) -> None:
    """Collective: adds what other ranks have left out to the list of rank 0."""
    for found in dist.gather_interleaved([list(bad)]):
        bad.add(found)


def write(folder: Path, bad: BadRecords) -> None:
    """Writes skipped.json if anything was left out; raises FailedRun if that fails."""
    if len(bad):
        files.write_json(folder / NAME, [one._asdict() for one in bad])


def read(folder: Path) -> list[BadRecord]:
    """What a run has left out so far."""
    records = files.read_json(folder / NAME) or ()
    return list(dict.fromkeys(BadRecord(**record) for record in records))


def report_skipped(bad: BadRecords, place: Path | None = None) -> None:
    """Prints what was left out and why; `place` is the file that lists all of it."""
    if len(bad):
        info(f"left out {len(bad)} bad records:")
    for one in list(bad)[:MOST_SHOWN]:
        info(printable(f"  {one.file}, {one.record}: {one.reason}"))
    if len(bad) > MOST_SHOWN:
        where = f", all of them in {place}" if place else ""
        info(f"  and {len(bad) - MOST_SHOWN} more{where}")


def require_none(bad: BadRecords, images: int, place: Path | None = None) -> None:
    """Ends work that went on after unreadable images with InputError, if there were any."""
    unread = sum(one.image_id is not None for one in bad)
    if unread:
        where = f"{place} lists" if place else "listed above"
        raise InputError(
            f"{unread} of {images} images cannot be read, as {where}; replace them, or leave them "
            "out with --skip-bad-records"
        )
