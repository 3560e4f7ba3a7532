"""Files and folders that are written whole or not at all; run folders and their locks."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import InputError


class FailedRun(RuntimeError):
    """A run that cannot continue although its input was right, such as one on a full disk.

    One sentence with cause and fix; entries print it without a traceback and exit with code 3.
    """


@contextmanager
def replacing(path: Path, fix: str | None = None) -> Iterator[Path]:
    """A temporary file that replaces `path` when it is complete and on the disk.

    A kill at any moment leaves the old file or the new one. Links are replaced, not followed.

    Args:
        fix: what the user can do about a path that they chose; None for a file of a run.
    Raises:
        InputError, or FailedRun without `fix`: if the file cannot be written; `path` is unchanged.
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


def write_json(path: Path, content: dict | list, fix: str | None = None) -> None:
    """Writes json atomically; the errors are those of `replacing`."""
    with replacing(path, fix) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a json file of a run; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_free(folder: Path) -> bool:
    """Whether a folder is missing or empty; an unfinished file of a killed start does not count."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.suffix == ".tmp" for path in folder.iterdir())


def make_folder(folder: Path, replace: bool = False) -> None:
    """Makes an empty folder, with `replace` after deleting the old one; raises InputError if that
    fails or another process was faster.
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
    """A folder to write into that takes its name when it is complete, or is removed; raises
    InputError if the name is in use, FailedRun if the file system does not allow it.
    """
    if not is_free(folder):
        raise InputError(f"{folder}: the output folder exists; choose another --out")
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


def choose(out: Path | None, parent: Path, stem: str, resume: bool, overwrite: bool) -> Path:
    """The folder of a run, by default the next free `parent/stem-NNN`; nothing is written yet.

    Args:
        resume: continue in `out`, by default in the newest folder, which must have a `last.pt`.
        overwrite: a used run folder may be replaced.
    Raises:
        InputError: if the folder is in use, or there is nothing to resume.
    """
    numbered = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]"))
    if resume:
        return folder_to_resume([out] if out else numbered, out or parent / f"{stem}-NNN")
    if out is None:
        number = int(numbered[-1].name[-3:]) + 1 if numbered else 1
        return parent / f"{stem}-{number:03d}"
    if not is_free(out):
        if not overwrite:
            raise InputError(
                f"{out}: the output folder exists; go on with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        if not (out / "options.json").exists():
            raise InputError(
                f"{out}: not a run folder, so --overwrite leaves it alone; choose another --out"
            )
    return out


def folder_to_resume(candidates: list[Path], asked: Path) -> Path:
    """The last candidate that has a `last.pt`; raises InputError, which names `asked`, if none."""
    found = [folder for folder in candidates if (folder / "last.pt").exists()]
    if not found:
        fix = "start without --resume"
        if any((folder / "best.pt").exists() for folder in candidates):
            fix = "best.pt holds weights alone; start a new run from it with --pretrained"
        raise InputError(f"{asked}: no last.pt to resume from; {fix}")
    links = [path.name for path in found[-1].iterdir() if path.is_symlink()]
    if links:  # its logs are appended to, wherever they may lead
        raise InputError(
            f"{found[-1]}: {links[0]} is a link, and a run is not resumed into files elsewhere; "
            "put the file itself there"
        )
    return found[-1]


def newest_checkpoint(parent: Path) -> Path:
    """The best checkpoint of the newest run; raises InputError if there is none."""
    found = list(parent.glob("*/best.pt")) or list(parent.glob("*/last.pt"))
    if not found:
        raise InputError(f"{parent}: no run with a checkpoint; train one or give --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


class FolderLock:
    """One writer per run folder: an flock, which ends with the process and is never stale."""

    def __init__(self) -> None:
        self.handle: int | None = None
        # Loader workers outlive a killed trainer for some seconds: they must not keep its lock.
        os.register_at_fork(after_in_child=self.release)

    def acquire(self, folder: Path) -> None:
        """Locks a folder instead of the one before; raises InputError if another process has it."""
        self.release()
        self.handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise InputError(
                f"{folder}: another process is training in this run folder; wait until it has "
                "ended, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
