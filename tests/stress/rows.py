"""Rows of the table that all stress reports share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A trial: subject, count or size, result, and whether it passed."""

    what: str
    tried: str
    result: str
    passed: bool


# (scratch folder, whether to run the long form) -> rows
Report = Callable[[Path, bool], Iterable[Row]]

HEAD = ("what", "tried", "result", "command")


def command(name: str, thorough: bool) -> str:
    """Returns the command that repeats a report."""
    return f"bash sbin/stress.sh {name}" + (" --thorough" if thorough else "")


def markdown(rows: Sequence[tuple[Row, str]]) -> str:
    """Formats rows and their commands as a table; failed rows start with FAILED."""
    cells = [HEAD, ["---"] * len(HEAD)]
    for row, how in rows:
        result = row.result if row.passed else f"FAILED: {row.result}"
        cells.append((row.what, row.tried, result, f"`{how}`"))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
