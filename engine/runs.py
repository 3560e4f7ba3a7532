"""Run folders: one per training, never overwritten unless told."""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError


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
    """Whether a folder is missing or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


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
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def newest_checkpoint(parent: Path) -> Path:
    """The best checkpoint of the newest run.

    Raises:
        InputError: there is none.
    """
    found = list(parent.glob("*/best.pt")) or list(parent.glob("*/last.pt"))
    if not found:
        raise InputError(f"{parent}: no run with a checkpoint; train one or give --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write, which takes its place when all is written.

    Its name is nobody's before, and a link that lies at `path` is replaced, not followed: folders
    from strangers may hold links to anything. The ending stays, as kinds of pictures hang on it.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    open(unfinished, "xb").close()  # not through a link either
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def write_json(path: Path, content: dict | list) -> None:
    """Write json through a temporary file.

    Raises:
        InputError: the file system does not allow it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another") from error


def _to_resume(out: Path | None, parent: Path, stem: str) -> Path:
    """The folder asked for, or else the newest, that has a `last.pt`."""
    candidates = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]")) if out is None else [out]
    there = [folder for folder in candidates if (folder / "last.pt").exists()]
    if not there:
        raise InputError(
            f"{out or parent / (stem + '-NNN')}: no last.pt to resume from; start without --resume"
        )
    links = [path.name for path in there[-1].iterdir() if path.is_symlink()]
    if links:  # its logs are written on, wherever they may lead
        raise InputError(
            f"{there[-1]}: {links[0]} is a link, and a run is not resumed into files elsewhere; "
            "put the file itself there"
        )
    return there[-1]
