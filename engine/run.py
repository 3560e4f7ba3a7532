"""Run folders: one per training, never overwritten unless told."""

from pathlib import Path

from data.errors import InputError
from engine import files


def choose(out: Path | None, parent: Path, stem: str, resume: bool, overwrite: bool) -> Path:
    """The folder of a run; nothing is written yet.

    Args:
        out: the folder asked for; None takes the next free `parent/stem-NNN`, or with `resume` the
            newest one.
        resume: continue in a folder that has a `last.pt`.
        overwrite: a used run folder may be replaced.
    Raises:
        InputError: if the folder is in use, or there is nothing to resume.
    """
    if resume:
        return folder_to_resume(out, parent, stem)
    if out is None:
        taken = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]"))
        number = int(taken[-1].name[-3:]) + 1 if taken else 1
        return parent / f"{stem}-{number:03d}"
    if not files.is_free(out):
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


def folder_to_resume(out: Path | None, parent: Path, stem: str) -> Path:
    """The folder asked for, or else the newest, that has a `last.pt`."""
    candidates = sorted(parent.glob(f"{stem}-[0-9][0-9][0-9]")) if out is None else [out]
    found = [folder for folder in candidates if (folder / "last.pt").exists()]
    if not found:
        fix = "start without --resume"
        if any((folder / "best.pt").exists() for folder in candidates):
            fix = "best.pt holds weights alone; start a new run from it with --pretrained"
        raise InputError(f"{out or parent / (stem + '-NNN')}: no last.pt to resume from; {fix}")
    links = [path.name for path in found[-1].iterdir() if path.is_symlink()]
    if links:  # its logs are appended to, wherever they may lead
        raise InputError(
            f"{found[-1]}: {links[0]} is a link, and a run is not resumed into files elsewhere; "
            "put the file itself there"
        )
    return found[-1]


def newest_checkpoint(parent: Path) -> Path:
    """The best checkpoint of the newest run.

    Raises:
        InputError: if there is none.
    """
    found = list(parent.glob("*/best.pt")) or list(parent.glob("*/last.pt"))
    if not found:
        raise InputError(f"{parent}: no run with a checkpoint; train one or give --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)
