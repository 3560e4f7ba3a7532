"""Run folders: one per training, never overwritten unless told."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from data.errors import InputError
from engine.errors import FailedRun


def choose(out: Path | None, parent: Path, stem: str, resume: bool, overwrite: bool) -> Path:
    """The folder of a run; nothing is written yet.

    Args:
        out: the folder asked for; None takes the next free `parent/stem-NNN`, or with `resume` the
            newest one there is.
        resume: go on in a folder that has a `last.pt`.
        overwrite: a used run folder may be taken.
    Raises:
        InputError: the folder is in use, or there is nothing to resume.
    """
    if resume:
        return _to_resume(out, parent, stem)
    if out is None:
        taken = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]"))
        number = int(taken[-1].name[-3:]) + 1 if taken else 1
        return parent / f"{stem}-{number:03d}"
    if not is_free(out):
        if not overwrite:
            raise InputError(
                f"{out}: the output folder is in use; go on with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        if not (out / "options.json").exists():
            raise InputError(
                f"{out}: not a run folder, so --overwrite leaves it alone; choose another --out"
            )
    return out


def is_free(folder: Path) -> bool:
    """Whether a folder is missing or empty; half a file of a start that was killed is nothing."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.suffix == ".tmp" for path in folder.iterdir())


def make(folder: Path, replace: bool = False) -> None:
    """Make an empty folder; with `replace`, what is there is thrown away first.

    Raises:
        InputError: the file system does not allow it, or somebody else was faster.
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
    """A folder to write into that takes its name when all is written, or leaves no trace.

    Raises:
        InputError: there is something under that name already.
        FailedRun: the file system does not allow it.
    """
    if not is_free(folder):
        raise InputError(f"{folder}: the output folder is in use; choose another --out")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    make(unfinished, replace=True)
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when all is written, and is on the disk.

    So a kill at any moment leaves the file as it was, or the new one. What lies under the temporary
    name, half a file of an earlier kill, is thrown away. A link at either place is replaced and not
    followed: folders from strangers may hold links to anything.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    open(temporary, "xb").close()
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def replacing_in_run(path: Path) -> Iterator[Path]:
    """The same for a file of a run.

    Raises:
        FailedRun: the file system does not allow it; the file is as it was.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except BaseException as error:
        raise_unwritten(path, error, "the one before it is kept")


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or nothing.

    Raises:
        FailedRun: the file system does not allow it; the file is as it was.
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
        raise_unwritten(path, error, "what was in it is kept")


def raise_unwritten(path: Path, error: BaseException, kept: str) -> NoReturn:
    """One sentence where a file could not be written; every other error goes on as it is."""
    # torch's writer turns an OSError into a RuntimeError.
    if isinstance(error, FailedRun) or not isinstance(error, (OSError, RuntimeError)):
        raise error
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise FailedRun(
        f"{path}: cannot be written ({reason}), {kept}; make room and go on with --resume"
    ) from error


def sweep(folder: Path) -> None:
    """Throw away the half-written files that a kill left."""
    for path in folder.glob("*.tmp"):
        path.unlink()


def write_json_in_run(path: Path, content: dict | list) -> None:
    """Write json that belongs to a run; raises FailedRun as `replacing_in_run` does."""
    with replacing_in_run(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def newest_checkpoint(parent: Path) -> Path:
    """The best checkpoint of the newest run.

    Raises:
        InputError: there is none.
    """
    found = list(parent.glob("*/best.pt")) or list(parent.glob("*/last.pt"))
    if not found:
        raise InputError(f"{parent}: no run with a checkpoint; train one or give --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


def write_json(path: Path, content: dict | list) -> None:
    """Write json through a temporary file.

    Raises:
        InputError: the file system does not allow it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another") from error


def _to_resume(out: Path | None, parent: Path, stem: str) -> Path:
    """The folder asked for, or else the newest, that has a `last.pt`."""
    candidates = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]")) if out is None else [out]
    there = [folder for folder in candidates if (folder / "last.pt").exists()]
    if not there:
        fix = "start without --resume"
        if any((folder / "best.pt").exists() for folder in candidates):
            fix = "best.pt holds weights alone; start a new run from it with --pretrained"
        raise InputError(f"{out or parent / (stem + '-NNN')}: no last.pt to resume from; {fix}")
    links = [path.name for path in there[-1].iterdir() if path.is_symlink()]
    if links:  # its logs are written on, wherever they may lead
        raise InputError(
            f"{there[-1]}: {links[0]} is a link, and a run is not resumed into files elsewhere; "
            "put the file itself there"
        )
    return there[-1]
