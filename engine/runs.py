"""Run folders: one per training, never overwritten unless told."""

import json
import shutil
from pathlib import Path

from data.errors import InputError


def claim(out: Path | None, parent: Path, stem: str, resume: bool, overwrite: bool) -> Path:
    """The folder of a run.

    Args:
        out: the folder asked for; None takes the next free `parent/stem-NNN`, or with `resume` the
            newest one there is.
        resume: go on in a folder that has a `last.pt`.
        overwrite: empty a used run folder first.
    Raises:
        InputError: the folder is in use, or there is nothing to resume.
    """
    if out is None:
        taken = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]"))
        if resume:
            unfinished = [run for run in taken if (run / "last.pt").exists()]
            if not unfinished:
                raise InputError(f"{parent}: no run {stem}-NNN to resume; start without --resume")
            return unfinished[-1]
        number = int(taken[-1].name[-3:]) + 1 if taken else 1
        out = parent / f"{stem}-{number:03d}"
    if resume:
        if not (out / "last.pt").exists():
            raise InputError(f"{out}: no last.pt to resume from; start without --resume")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise InputError(
                f"{out}: the output folder is in use; go on with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        if not (out / "options.json").exists():
            raise InputError(f"{out}: not a run folder, so --overwrite leaves it alone")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


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
    """Write json through a temporary file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)
