"""Reads plain pickles of numpy arrays, as detectron2 writes them, without running code.

A pickle is a program that may look up any function and call it. Here lookups give only the
stand-ins below: what numpy writes arrays with, and nothing else.
"""

import mmap
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save's older format begins with
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class PickleRefused(pickle.UnpicklingError):
    """What a pickle asks for and does not get, as a part of a sentence."""


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a plain pickle, and not of torch.save's older format."""
    return head.startswith(b"\x80") and TORCH not in head


def read_pickle(path: Path) -> object:
    """Reads a pickle of protocol 2 to 5; arrays become tensors, down to dicts inside a dict.

    Raises:
        PickleRefused: if it asks for more than arrays of numbers and plain types.
        Exception: of many kinds, if it is cut short or no pickle.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        # Parsed before it is executed: an unpickler first allocates the memory for any length.
        for opcode, argument, _ in pickletools.genops(view):
            if opcode.name.endswith("PUT") and argument > len(view):
                raise PickleRefused(f"it counts to {argument} in {len(view)} bytes")
        view.seek(0)
        return with_tensors(ArrayUnpickler(view, encoding="latin1").load())


class ArrayUnpickler(pickle.Unpickler):
    """Finds the stand-ins only."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        # Names that depend on the version, of numpy and of Python.
        wanted = f"{module}.{name}"
        known = wanted.replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in STAND_INS:
            asked = wanted.encode("unicode_escape").decode()[:80]
            raise PickleRefused(f"it asks to run {asked}, which is never done")
        return lambda *arguments: STAND_INS[known](*arguments)  # a new one: a pickle may change it


class Dtype:
    """A numpy dtype of numbers."""

    __slots__ = ("kind",)

    def __init__(self, code: str, *flags: object):
        if code not in NUMBERS:
            raise PickleRefused(f"it holds arrays of {str(code)[:20]!a}, and weights are numbers")
        self.kind = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.kind = self.kind.newbyteorder(state[1])


class Array:
    """An array, empty until its values come."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor | None = None):
        self.tensor = tensor

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        self.tensor = tensor_of(data, dtype, shape, "F" if is_fortran else "C")


def tensor_of(data: bytes | str, dtype: Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    """Copies the bytes, a text where Python 2 wrote them, into a tensor."""
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
    """Protocol 5's arrays; `axes` if they are in neither order of memory."""
    tensor = tensor_of(data, dtype, shape, order if order in "CF" else "C")
    return Array(tensor if axes is None else tensor.permute(axes).contiguous())


STAND_INS = {
    "_codecs.encode": lambda text, encoding: str.encode(text, "latin1"),  # protocol 2's bytes
    "builtins.bytes": lambda: b"",  # how protocol 2 writes no bytes
    "collections.OrderedDict": OrderedDict,
    "numpy.core.multiarray._reconstruct": lambda kind, shape, code: Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: Array(tensor_of(data, dtype, (), "C")),
    "numpy.core.numeric._frombuffer": from_buffer,
    "numpy.dtype": Dtype,
    "numpy.ndarray": lambda *arguments: None,  # only named, as the type of array to make
}


def with_tensors(value: object, depth: int = 2) -> object:
    """Replaces arrays by tensors, in dicts up to `depth` deep."""
    if isinstance(value, dict) and depth:
        return {key: with_tensors(one, depth - 1) for key, one in value.items()}
    return value.tensor if isinstance(value, Array) else value
