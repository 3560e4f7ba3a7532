"""The error for input that cannot be used, and the list of records that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

LONGEST = 1500  # characters of a message; it may quote a file
# Exceptions of code that reads a record of another form than its format prescribes.
MALFORMED = (AttributeError, LookupError, OverflowError, TypeError, ValueError)


class InputError(ValueError):
    """A mistake in the user's files or options, in one sentence: what, where, how to fix it.

    Commands print it without a traceback and exit with code 2. It is printable text of one line, as
    it may quote any file.
    """

    def __init__(self, sentence: object) -> None:
        super().__init__(printable(str(sentence)))


class FileError(InputError):
    """An error whose sentence names its file and the fix already."""


class NotSkipped(InputError):
    """The error of a bad record without `skip`."""


def printable(text: str) -> str:
    """The text as one line, with control characters escaped, shortened if it is very long."""
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_of(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list, for a message, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def counted(number: int, noun: str) -> str:
    """1 class, 2 classes."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun[-1] in 'sx' else 's'}"


class BadRecord(NamedTuple):
    """A record that was left out: file, record, reason, and the image id of a bad image."""

    file: str
    record: str
    reason: str
    image_id: int | None = None


class BadRecords:
    """The bad records of a data set: the first one is raised, or with `skip` all are listed."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self._found: dict[BadRecord, None] = {}  # each once, in order

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRecord]:
        return iter(self._found)

    def note(
        self, error: InputError, file: object, record: str, image_id: int | None = None
    ) -> None:
        """Notes a bad record, or raises its error without `skip`."""
        if not self.skip:
            raise NotSkipped(f"{error}, or leave it out with --skip-bad-records") from None
        self.add([BadRecord(printable(str(file)), printable(record), str(error), image_id)])

    def note_error(
        self, error: Exception, file: object, record: str, fix: str = "", where: str = ""
    ) -> None:
        """Notes a record that raised an error of `MALFORMED`.

        With a fix, an InputError is the middle of a sentence, "FILE: shape 3 has no points: FIX";
        without one it is the whole sentence, and other errors are not expected.
        """
        where = where or f"{file}: {record}"
        if not isinstance(error, InputError):
            wrong = f"has another form than expected ({error})"
            wrong = f"has no {error}" if isinstance(error, KeyError) else wrong
            error = InputError(f"{where} {wrong}: {fix}")
        elif fix and not isinstance(error, FileError):
            error = InputError(f"{where} {error}: {fix}")
        self.note(error, file, record)

    @contextmanager
    def noting(self, file: object, record: str, fix: str = "", where: str = "") -> Iterator[None]:
        """Notes the error of a block that reads a record, see `note_error`."""
        try:
            yield
        except NotSkipped:
            raise
        except MALFORMED as error:
            if not (fix or isinstance(error, InputError)):
                raise
            self.note_error(error, file, record, fix, where)

    def add(self, records: Iterable[BadRecord]) -> None:
        """Notes records that were found by a loader worker, another rank, or an earlier run."""
        self._found.update(dict.fromkeys(records))

    @property
    def image_ids(self) -> set[int]:
        """The images of the set that turned out to be unreadable."""
        return {one.image_id for one in self if one.image_id is not None}
