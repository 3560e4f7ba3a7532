"""Entry: stress tests; prints a table with a row for each trial.

A report is a function of a scratch folder and a flag for the long form, and yields rows
(tests/stress/rows.py). To add one, name it in REPORTS.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from engine import files, options
from engine.files import FailedRun
from engine.log import info
from tests.stress import data as stress_data
from tests.stress import kills as stress_kills
from tests.stress import memory as stress_memory
from tests.stress import processes as stress_processes
from tests.stress import speed as stress_speed
from tests.stress.rows import Report, Row, command, markdown

REPORTS: dict[str, Report] = {
    "data": stress_data.report,
    "memory": stress_memory.report,
    "speed": stress_speed.report,
    "kills": stress_kills.report,
    "processes": stress_processes.report,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(
        "Test broken data, memory, speed of reading, kills and several processes."
    )
    parser.add_argument(
        "reports", nargs="*", choices=[*REPORTS, []], metavar="REPORT",
        help=f"some of {', '.join(REPORTS)}; all of them if none is named",
    )  # fmt: skip
    parser.add_argument("--thorough", action="store_true", help="full sizes and counts; takes long")
    parser.add_argument(
        "--scratch", type=Path, help="folder for what is written; a temporary one if not given"
    )
    parser.add_argument("--out", type=Path, help="also write the rows as json")
    return parser.parse_args(argv)


def run(name: str, scratch: Path, thorough: bool) -> list[Row]:
    """Runs one report and prints each row as soon as it is known."""
    info(f"{name}:")
    rows, began = [], time.monotonic()
    for row in REPORTS[name](scratch, thorough):
        rows.append(row)
        info(f"  {'ok    ' if row.passed else 'FAILED'}  {row.what}, {row.tried}: {row.result}")
    info(f"  {time.monotonic() - began:.0f} seconds")
    return rows


def main(argv: list[str]) -> None:
    """Raises FailedRun (exit code 3) where a trial failed."""
    opts = parse(argv)
    torch.set_num_threads(1)
    rows: list[tuple[Row, str]] = []
    for name in opts.reports or REPORTS:
        how = command(name, opts.thorough)
        with tempfile.TemporaryDirectory(prefix=f"stress-{name}-", dir=opts.scratch) as folder:
            rows += [(row, how) for row in run(name, Path(folder), opts.thorough)]
    info(f"\n{markdown(rows)}")
    if opts.out:
        files.write_json(
            opts.out, [{**row._asdict(), "command": how} for row, how in rows], "name another"
        )
    failed = [row.what for row, _ in rows if not row.passed]
    if failed:
        raise FailedRun(f"{len(failed)} of {len(rows)} trials failed: {'; '.join(failed)}")


if __name__ == "__main__":
    options.run_entry(main)
