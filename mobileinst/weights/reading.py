"""Reads what is in a file of weights, in any of three formats, without running code."""

import argparse
import json
import math
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mobileinst.weights.pickled import PickleRefused, is_pickle, read_pickle

FIX = "give a file of weights that torch.save wrote, a .safetensors, or a .pkl of numpy arrays"
STARTS = {  # how other files begin
    b"\x89PNG": "it is an image",
    b"\xff\xd8\xff": "it is an image",
    b"PK\x03\x04": "it is a zip archive that was cut short or holds something else",
    b"version https://git-lfs": "it is a git-lfs pointer, the file itself was never fetched",
    b"<": "it is a web page, what was to be downloaded is something else",
    b"{": "it is text that looks like json",
    b"[": "it is text that looks like json",
}
LONGEST_TABLE = 100_000_000  # bytes, the limit of the .safetensors format
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class LoadError(ValueError):
    """A file of weights that cannot be used: one sentence with the file, what is wrong, the fix."""


def read(path: str | Path, fix: str = FIX) -> object:
    """Reads tensors and plain types from a file that `torch.save` wrote, a .safetensors, or a plain
    pickle of numpy arrays, onto the CPU. The content decides which it is.

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
        require_uncompressed(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about the pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an arbitrary file can fail in nearly any way
        raise LoadError(
            f"{path}: not a checkpoint that can be read safely, {reason(path, error)}; {fix}"
        ) from error


def require_uncompressed(path: Path) -> None:
    """Refuses compressed zip files, which may unpack to more than the memory; torch writes none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                raise PickleRefused("it is compressed, as torch.save never does it")


def reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, from the error or from how the file begins."""
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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file: a length, a table as json, the bytes of all tensors.

    Raises:
        ValueError, KeyError, TypeError, struct.error: if it is cut short or not of this format.
    """
    with open(path, "rb") as file:
        size = path.stat().st_size
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(LONGEST_TABLE, size - 8):
            raise ValueError(f"a table of {length} bytes in a file of {size}")
        table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        return {name: read_tensor(file, 8 + length, size, **entry) for name, entry in table.items()}


def read_tensor(
    file: BinaryIO, start: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> Tensor:
    """Reads one tensor, given its entry in the table and where the bytes of all tensors start."""
    first, last = data_offsets
    kind = DTYPES[dtype]
    if not 0 <= first <= last <= size - start or min(shape, default=0) < 0:
        raise ValueError(f"bytes {first} to {last} of {size - start}")
    if last - first != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{last - first} bytes for a tensor of {shape} {dtype}")
    if first == last:
        return torch.empty(shape, dtype=kind)
    file.seek(start + first)
    return torch.frombuffer(bytearray(file.read(last - first)), dtype=kind).view(shape)


def read_json(path: Path, fix: str) -> dict:
    """Reads a json object.

    Raises:
        LoadError: if there is none in the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}; {fix}") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: is no json ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path}: holds no settings, but a {type(content).__name__}; {fix}")
    return content
