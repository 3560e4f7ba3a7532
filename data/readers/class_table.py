"""The classes of masks whose format has none: classes.txt and objects.csv, where they are there.

Each line of classes.txt is a class. The columns of objects.csv are "mask", a file relative to the
table, "number", the value of the object in it, and "class". data/writers writes both.
"""

from __future__ import annotations

import csv
from pathlib import Path

from data.errors import InputError
from data.readers.checks import class_name
from data.readers.source import lines_of

NAMES, TABLE = "classes.txt", "objects.csv"
ONLY = "object"  # the class of what is in no table


class ClassTable:
    """The class tables in a folder; raises InputError if one cannot be used."""

    def __init__(self, folder: Path) -> None:
        names, table = files_in(folder)
        self._folder, self._classes = folder, {}
        self.names = lines_of(names, "write one class per line") if names.is_file() else [ONLY]
        if not table.is_file():
            return
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                if not {"mask", "number", "class"} <= {*(rows.fieldnames or ())}:
                    raise InputError("has no columns mask, number, class")
                for row in rows:
                    key = row["mask"], int(row["number"])
                    self._classes[key] = class_name(row["class"])
        except (OSError, ValueError, TypeError, csv.Error) as reason:
            raise InputError(
                f"{table} {reason}: correct it, or remove it and all objects are of one class"
            ) from None

    def of(self, file: Path, number: int) -> str:
        """The class of an object in a file."""
        return self._classes.get((file.relative_to(self._folder).as_posix(), number), ONLY)


def files_in(folder: Path) -> list[Path]:
    return [folder / NAMES, folder / TABLE]
