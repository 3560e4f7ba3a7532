"""What is in a file, read without running code, whichever form it has."""

import argparse
import re
import warnings
from pathlib import Path

import torch

from mobileinst.weights.pickled import PickleRefused, is_pickle, read_pickle
from mobileinst.weights.safetensors import read_safetensors

MEND = "give a file of weights that torch.save wrote, a .safetensors, or a .pkl of numpy arrays"
STARTS = {  # what other files begin with
    b"\x89PNG": "it is a picture",
    b"\xff\xd8\xff": "it is a picture",
    b"PK\x03\x04": "it is a zip archive that was cut short or holds something else",
    b"version https://git-lfs": "it is a git-lfs pointer, the file itself was never fetched",
    b"<": "it is a web page, what was to be downloaded is something else",
    b"{": "it is text that looks like json",
    b"[": "it is text that looks like json",
}


class LoadError(ValueError):
    """A file of weights that cannot be used: one sentence with the file, the fault, the mend."""


def read(path: Path, mend: str = MEND) -> object:
    """What `torch.save` wrote, or is in a .safetensors or a plain pickle of numpy arrays, on the
    CPU. Nothing but tensors and plain types is made from it. What a file is shows in how it begins.

    argparse.Namespace is let through: timm stores the options of its runs as one, and making it
    runs no code.

    Raises:
        LoadError: there is no such file, or not one that can be read; it ends with `mend`.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise LoadError(f"{path}: {fault}; {mend}")
    try:
        return _content(path)
    except Exception as error:  # what is no pickle fails in nearly every way there is
        raise LoadError(
            f"{path}: not a checkpoint that can be read safely, {_fault(path, error)}; {mend}"
        ) from error


def _content(path: Path) -> object:
    with open(path, "rb") as file:
        head = file.read(32)
    if is_pickle(head):
        return read_pickle(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # where the table begins
        return read_safetensors(path)
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about the pickle; what fails is told elsewhere
        return torch.load(path, map_location="cpu", weights_only=True)


def _fault(path: Path, error: Exception) -> str:
    """Why a file cannot be read, from how it begins or what went wrong."""
    if isinstance(error, PickleRefused):
        return str(error)
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks to run {asked[1]}, which is never done"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    for start, what in STARTS.items():
        if head.lstrip().startswith(start):
            return what
    if not set(head) & set(range(9)):
        return "it is text"
    return f"it is of another kind or cut short ({type(error).__name__})"
