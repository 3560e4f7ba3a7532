"""Atomic files and folders; run folders and their locks."""

import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from data.errors import InputError


class FailedRun(RuntimeError):
    """A run that cannot continue although its input was right, as on a full disk.

    One sentence with cause and fix; commands print it without a traceback and exit with code 3.
    """


@contextmanager
def atomic_file(path: Path, fix: str | None = None) -> Iterator[Path]:
    """A temporary file that replaces `path` at the end of the block, synced to disk.

    A kill leaves the old file or the new one. Links are replaced, not followed.

    Args:
        fix: of the error message for a path of the user; None for a file of a run.
    Raises:
        InputError, or FailedRun without `fix`: if the file cannot be written; `path` is unchanged.
    """
    # Files of a run have one writer; a path of the user may have several.
    own = f".{secrets.token_hex(4)}" if fix else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
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


def write_text(path: Path, text: str, fix: str | None = None) -> None:
    """Writes a text as `atomic_file`; what is no UTF-8 is escaped."""
    with atomic_file(path, fix) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, content: dict | list, fix: str | None = None) -> None:
    write_text(path, json.dumps(content, indent=1), fix)


def write_csv(path: Path, rows: Iterable[Sequence], fix: str | None = None) -> None:
    """Writes rows, the first of which is the header."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue(), fix)


def save_image(path: Path, image: Image.Image, fix: str | None = None) -> None:
    """Writes an image as `atomic_file`; raises InputError if the suffix is of no image format."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        reason = f"no image format ends in '{path.suffix}'"
        raise InputError(f"{path}: cannot be written ({reason}); name a .png or .jpg")
    with atomic_file(path, fix) as temporary:
        image.save(temporary, format=kind)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """The content of a json file of a run; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def is_free(folder: Path) -> bool:
    """Whether a folder is missing, or empty except for temporary files of a killed process."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.suffix == ".tmp" for path in folder.iterdir())


def require_free(out: Path | None, overwrite: bool = False, mark: str = "", more: str = "") -> None:
    """Checks that an output is not in use, or may be replaced.

    Args:
        out: file or folder of the user's choice; None is free.
        mark: a file in all folders that this command wrote; others are never replaced.
        more: another fix, for the message.
    Raises:
        InputError: if it is in use.
    """
    if out is None or is_free(out):
        return
    if not overwrite:
        raise InputError(
            f"{out}: the output exists; {more}replace it with --overwrite, or name another"
        )
    if mark and not (out / mark).is_file():
        raise InputError(f"{out}: holds no {mark}, so --overwrite leaves it alone; name another")


def make_folder(folder: Path, exist_ok: bool = True) -> None:
    """Makes a folder; raises InputError if that fails, FileExistsError if it must not be there."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise InputError(
            f"{folder}: the folder cannot be made ({error.strerror}); choose another --out"
        ) from error


def next_free(parent: Path, stem: str = "") -> Path:
    """Makes the next free folder `parent/stem-NNN`, or `parent/NNN`: above the highest number."""
    make_folder(parent)
    prefix = f"{stem}-" if stem else ""
    numbers = [int(path.name[-3:]) for path in parent.glob(f"{prefix}[0-9][0-9][0-9]")]
    for number in itertools.count(max(numbers, default=0) + 1):
        folder = parent / f"{prefix}{number:03d}"
        with suppress(FileExistsError):  # another process was faster
            make_folder(folder, exist_ok=False)
            return folder


def output(out: Path | None, parent: Path, stem: str, name: str) -> Path:
    """The output file: `out`, or `name` in the folder `out` or the next free `parent/stem-NNN`."""
    if out is None:
        return next_free(parent, stem) / name
    return out / name if out.is_dir() or not out.suffix else out


def clear(folder: Path, but: Path | None = None) -> None:
    """Empties a folder, which stays, and with it a lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path != but:
            shutil.rmtree(path)
        elif path != but:
            path.unlink()


@contextmanager
def atomic_folder(folder: Path, overwrite: bool = False, mark: str = "") -> Iterator[Path]:
    """A temporary folder, whose files are moved to `folder` at the end of the block, `mark` last,
    or removed after an error; for the arguments see `require_free`.

    Raises:
        InputError: if the folder is in use, or another process writes there.
        FailedRun: if the file system does not allow it.
    """
    lock, unfinished = FolderLock(), folder / "unfinished.tmp"
    lock.acquire(folder)
    try:
        require_free(folder, overwrite, mark)
        shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process left
        unfinished.mkdir()
        yield unfinished
        if overwrite:
            clear(folder, but=unfinished)
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == mark):
            path.rename(folder / path.name)
    except OSError as error:
        raise FailedRun(
            f"{folder}: cannot be written ({error.strerror or error}), nothing of it is kept; "
            "make room, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # where nothing was written
        lock.release()


def newest_runs(parent: Path) -> list[Path]:
    """The run folders that have a checkpoint, newest first; raises InputError if there is none."""
    found = [*parent.glob("*/last.pt"), *parent.glob("*/best.pt")]
    if not found:
        raise InputError(f"{parent}: no run with a checkpoint; train one or give --checkpoint FILE")
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(path.parent for path in found))


class FolderLock:
    """One writer per folder: an flock, which is released when the process ends."""

    def __init__(self) -> None:
        self.handle: int | None = None
        # Loader workers outlive a killed trainer by some seconds and must not keep its lock.
        os.register_at_fork(after_in_child=self.release)

    def acquire(self, folder: Path, wait: bool = False) -> None:
        """Makes and locks a folder; raises InputError if another process has it, or waits."""
        make_folder(folder)
        self.handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self.release()
            raise InputError(
                f"{folder}: another process is writing in this folder; wait until it has ended, "
                "or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass

    def claim(
        self, out: Path | None, parent: Path, stem: str, mark: str, overwrite: bool = False
    ) -> Path:
        """Makes and locks the empty folder `out`, or the next free `parent/stem-NNN`, see
        `require_free`.

        Raises:
            InputError: if it is in use, or cannot be emptied.
        """
        folder = out or next_free(parent, stem)
        if self.handle is None:
            self.acquire(folder)
        require_free(folder, overwrite, mark)
        if overwrite:
            try:
                clear(folder)
            except OSError as error:
                raise failure(folder, error, "", "choose another --out") from error
        return folder

    def release(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
