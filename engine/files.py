"""Files and folders that are written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError


class FailedRun(RuntimeError):
    """A run that cannot continue although its input was right, such as one on a full disk.

    One sentence with cause and fix; entries print it without a traceback and exit with code 3.
    """


@contextmanager
def replacing(path: Path, fix: str | None = None) -> Iterator[Path]:
    """A temporary file that replaces `path` when it is complete and on the disk.

    A kill at any moment leaves the old file or the new one. A link at either place is replaced and
    not followed.

    Args:
        fix: what the user can do about a path that they chose; None for a file of a run.
    Raises:
        InputError: if the file cannot be written and `fix` is given; `path` is unchanged.
        FailedRun: if it cannot be written otherwise; likewise.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if fix:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        open(temporary, "xb").close()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        raise failure(path, error, "the one before it is kept", fix) from error


def failure(path: Path, error: BaseException, kept: str, fix: str | None = None) -> BaseException:
    """The exception for a file that could not be written; other errors are returned unchanged."""
    # torch's writer turns an OSError into a RuntimeError.
    if isinstance(error, FailedRun) or not isinstance(error, (OSError, RuntimeError)):
        return error
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    if fix:
        return InputError(f"{path}: cannot be written ({reason}); {fix}")
    return FailedRun(
        f"{path}: cannot be written ({reason}), {kept}; make room and go on with --resume"
    )


def append(path: Path, text: str) -> None:
    """Adds text to the end of a file, all of it or nothing.

    Raises:
        FailedRun: if the file system does not allow it; the file is unchanged.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab", buffering=0) as file:
            left = text.encode()
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        raise failure(path, error, "what was in it is kept") from error


def write_json(path: Path, content: dict | list, fix: str | None = None) -> None:
    """Writes json atomically; the errors are those of `replacing`."""
    with replacing(path, fix) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def is_free(folder: Path) -> bool:
    """Whether a folder is missing or empty; an unfinished file of a killed start does not count."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.suffix == ".tmp" for path in folder.iterdir())


def make_folder(folder: Path, replace: bool = False) -> None:
    """Makes an empty folder; with `replace`, after deleting what was there.

    Raises:
        InputError: if the file system does not allow it or another process was faster.
    """
    try:
        if replace and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=folder.is_dir() and is_free(folder))
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be made ({error.strerror}); choose another --out"
        ) from error


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when it is complete, or leaves no trace.

    Raises:
        InputError: if there is something under that name already.
        FailedRun: if the file system does not allow it.
    """
    if not is_free(folder):
        raise InputError(f"{folder}: the output folder is in use; choose another --out")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    make_folder(unfinished, replace=True)
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.replace(folder)
    except OSError as error:
        raise FailedRun(
            f"{folder}: cannot be written ({error.strerror or error}), nothing of it is kept; "
            "make room, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
