"""Reads plain pickles of numpy arrays, as detectron2 writes them, without running code.

A pickle is a program that may look up any function and call it. Here lookups give only the
stand-ins below: what numpy writes arrays with, and nothing else.
"""

import math
import mmap
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save's older format begins with
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
# Extensions are cached by Python, past `find_class`.
REFUSED = "PERSID BINPERSID NEXT_BUFFER READONLY_BUFFER EXT1 EXT2 EXT4".split()


class PickleRefused(pickle.UnpicklingError):
    """What a pickle asks for and does not get, as a part of a sentence."""


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a plain pickle, and not of torch.save's older format."""
    return head[:1] == b"\x80" and head[1:2] in PROTOCOLS and TORCH not in head


def read_pickle(path: Path) -> object:
    """Reads a pickle of protocol 2 to 5; arrays become tensors, down to dicts inside a dict.

    Raises:
        PickleRefused: if it asks for more than arrays of numbers and plain types.
        Exception: of many kinds, if it is cut short or no pickle.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        check_opcodes(view)
        view.seek(0)
        return with_tensors(ArrayUnpickler(view, encoding="latin1").load())


def check_opcodes(view: mmap.mmap) -> None:
    """Parses all opcodes without executing any: pickletools refuses lengths beyond the end of the
    file, for which an unpickler would first allocate memory.
    """
    for opcode, argument, _ in pickletools.genops(view):
        if opcode.name in REFUSED:
            raise PickleRefused("it refers to objects outside of the file")
        if opcode.name.endswith("PUT") and argument > len(view):
            raise PickleRefused(f"it counts to {argument} in {len(view)} bytes")


class ArrayUnpickler(pickle.Unpickler):
    """Finds the stand-ins only."""

    def find_class(self, module: str, name: str) -> "StandIn":
        # Names that depend on the version, of numpy and of Python.
        wanted = f"{module}.{name}"
        known = wanted.replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in STAND_INS:
            asked = wanted.encode("unicode_escape").decode()[:80]
            raise PickleRefused(f"it asks to run {asked}, which is never done")
        return STAND_INS[known]


class StandIn:
    """Called in place of what a pickle names. A pickle cannot set anything on it."""

    __slots__ = ("make",)

    def __init__(self, make: Any):
        self.make = make

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise PickleRefused("it asks to change what it may only call")


class Entries(dict):
    """An OrderedDict without attributes, such as the versions that torch notes on one."""

    def __setstate__(self, state: object) -> None:
        pass


class Dtype:
    """A numpy dtype: its code and byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *flags: object):
        if code not in NUMBERS:
            raise PickleRefused(f"it holds arrays of {str(code)[:20]!a}, and weights are numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        _, self.order, *parts = state
        if any(part is not None for part in parts[:3]):
            raise PickleRefused("it holds arrays of records, and weights are numbers")


class Array:
    """An array, empty until its values come."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor | None = None):
        self.tensor = tensor

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        self.tensor = tensor_of(data, dtype, shape, "F" if is_fortran else "C")


def tensor_of(data: bytes, dtype: Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    """Copies the bytes into a tensor.

    Raises:
        PickleRefused: if they are not exactly its values.
    """
    if isinstance(data, str):  # bytes, as Python 2 wrote them
        data = data.encode("latin1")
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype) and is_shape(shape)):
        raise PickleRefused("it holds an array that is not made of a shape, a dtype and bytes")
    kind = np.dtype(dtype.order + dtype.code)
    if math.prod(shape) * kind.itemsize != len(data):
        raise PickleRefused(
            f"it holds an array of {shape} {dtype.code} and {len(data)} bytes for its values"
        )
    array = np.ndarray(shape, kind, data, order=order)
    return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C", copy=True))


def is_shape(shape: object) -> bool:
    """Whether it is a shape whose product is quick to compute: weights have up to 5 dimensions."""
    plain = isinstance(shape, tuple) and len(shape) <= 8
    return plain and all(type(size) is int and 0 <= size < 2**48 for size in shape)


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


def encode(text: str, encoding: str) -> bytes:
    """Protocol 2's bytes."""
    if encoding != "latin1":
        raise PickleRefused("it asks for another encoding than latin1")
    return str.encode(text, "latin1")


def refuse(*arguments: object) -> None:
    raise PickleRefused("it asks to make an array in an unusual way")


STAND_INS = {
    "_codecs.encode": StandIn(encode),
    "builtins.bytes": StandIn(lambda: b""),  # how protocol 2 writes no bytes
    "collections.OrderedDict": StandIn(Entries),
    "numpy.core.multiarray._reconstruct": StandIn(lambda kind, shape, code: Array()),
    "numpy.core.multiarray.scalar": StandIn(
        lambda dtype, data: Array(tensor_of(data, dtype, (), "C"))
    ),
    "numpy.core.numeric._frombuffer": StandIn(from_buffer),
    "numpy.dtype": StandIn(Dtype),
    "numpy.ndarray": StandIn(refuse),  # only named, as the type of array to make
}


def with_tensors(value: object, depth: int = 2) -> object:
    """Replaces arrays by tensors, in dicts up to `depth` deep."""
    if isinstance(value, dict) and depth:
        return {key: with_tensors(one, depth - 1) for key, one in value.items()}
    if not isinstance(value, Array):
        return value
    if value.tensor is None:
        raise PickleRefused("it holds an array without values")
    return value.tensor
