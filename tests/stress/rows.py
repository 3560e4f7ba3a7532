"""What the stress reports have in common: a row of their table."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A trial: what was tested, how often or how large, what came out, and whether that is well."""

    what: str
    tried: str
    result: str
    passed: bool


# (a folder of its own to write into, whether to take long) → the rows, as they become known
Report = Callable[[Path, bool], Iterable[Row]]

HEAD = ("what", "tried", "result", "command")


def command(name: str, thorough: bool) -> str:
    """The command that gives a report again."""
    return f"bash sbin/stress.sh {name}" + (" --thorough" if thorough else "")


def markdown(rows: Sequence[tuple[Row, str]]) -> str:
    """Rows with their commands as a table; what failed says so in front of its result."""
    cells = [HEAD, ["---"] * len(HEAD)]
    for row, how in rows:
        result = row.result if row.passed else f"FAILED: {row.result}"
        cells.append((row.what, row.tried, result, f"`{how}`"))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
