"""Plain pickles of numpy arrays, the form of the authors' checkpoints: read, and nothing is run.

A pickle is a list of orders, and "look this up and call it" is one of them. Whatever it looks up
comes from the table of stand-ins below, which holds what numpy writes arrays with and nothing else.
"""

import math
import mmap
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save's older form begins with
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
MOST_DIMENSIONS = 8  # our choice; weights have up to 5
OUTSIDE = "it refers to things that are kept outside of it"
REFUSED = {  # orders that are refused wherever they stand
    "PERSID": OUTSIDE,
    "BINPERSID": OUTSIDE,
    "NEXT_BUFFER": OUTSIDE,
    "READONLY_BUFFER": OUTSIDE,
    "EXT1": "it asks for an extension of this computer",
    "EXT2": "it asks for an extension of this computer",
    "EXT4": "it asks for an extension of this computer",
}


class PickleRefused(pickle.UnpicklingError):
    """What a pickle asks for and does not get, as a part of a sentence."""


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a plain pickle, and none of torch.save's older form."""
    return head[:1] == b"\x80" and head[1:2] in PROTOCOLS and TORCH not in head


def read_pickle(path: Path) -> object:
    """What a pickle of protocol 2 to 5 holds: arrays as tensors, down to dicts inside a dict.

    Raises:
        PickleRefused: it asks for more than arrays of numbers and plain types are made of.
        Exception: of many kinds, it is cut short or no pickle.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        check_orders(view)
        view.seek(0)
        return with_tensors(ArrayUnpickler(view, encoding="latin1").load())


def check_orders(view: mmap.mmap) -> None:
    """Go through all orders without following any: what stands in a file of this size cannot be
    longer than it, and an unpickler makes room for what it is told before it looks.
    """
    for order, argument, _ in pickletools.genops(view):
        if order.name in REFUSED:
            raise PickleRefused(REFUSED[order.name])
        if order.name.endswith("PUT") and argument > len(view):
            raise PickleRefused(f"it counts to {argument} in {len(view)} bytes")


class ArrayUnpickler(pickle.Unpickler):
    """Knows the stand-ins alone."""

    def find_class(self, module: str, name: str) -> "StandIn":
        wanted = f"{module}.{name}"
        known = wanted
        for spelling, usual in SPELLINGS.items():
            known = known.replace(spelling, usual)
        if known not in STAND_INS:
            asked = wanted.encode("unicode_escape").decode()[:80]
            raise PickleRefused(f"it asks to run {asked}, which is never done")
        return STAND_INS[known]


class StandIn:
    """Called in the place of what a pickle names. A pickle cannot set anything on it."""

    __slots__ = ("make",)

    def __init__(self, make: Any):
        self.make = make

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise PickleRefused("it asks to change what it may only call")


class Entries(dict):
    """An OrderedDict. Attributes, such as the versions that torch notes on one, are left out."""

    def __setstate__(self, state: object) -> None:
        pass


class Dtype:
    """A numpy dtype: what it is called, and the order of its bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *flags: object):
        if code not in NUMBERS:
            raise PickleRefused(f"it holds arrays of {str(code)[:20]!a}, and weights are numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        _, self.order, *parts = state
        if any(part is not None for part in parts[:3]):
            raise PickleRefused("it holds arrays of records, and weights are numbers")

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array:
    """An array, empty at first: its values come later."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor | None = None):
        self.tensor = tensor

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        self.tensor = tensor_of(data, dtype, shape, "F" if is_fortran else "C")


def tensor_of(data: bytes, dtype: Dtype, shape: tuple[int, ...], order: str) -> torch.Tensor:
    """A copy of the bytes as a tensor; PickleRefused unless they are all of its values."""
    if isinstance(data, str):  # bytes, as Python 2 wrote them
        data = data.encode("latin1")
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype) and is_shape(shape)):
        raise PickleRefused("it holds an array that is not made of a shape, a dtype and bytes")
    kind = dtype.numpy
    if math.prod(shape) * kind.itemsize != len(data):
        raise PickleRefused(
            f"it holds an array of {shape} {dtype.code} and {len(data)} bytes for its values"
        )
    array = np.ndarray(shape, kind, data, order=order)
    return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C", copy=True))


def is_shape(shape: object) -> bool:
    plain = isinstance(shape, tuple) and len(shape) <= MOST_DIMENSIONS
    return plain and all(type(size) is int and 0 <= size < 2**48 for size in shape)


def from_buffer(
    data: bytes,
    dtype: Dtype,
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> Array:
    """How protocol 5 writes arrays; `axes` if they are in neither order of memory."""
    tensor = tensor_of(data, dtype, shape, order if order in "CF" else "C")
    return Array(tensor if axes is None else tensor.permute(axes).contiguous())


def single(dtype: Dtype, data: bytes) -> Array:
    """How numbers that were taken out of arrays are written."""
    return Array(tensor_of(data, dtype, (), "C"))


def encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise PickleRefused("it asks for another encoding than latin1")
    return str.encode(text, "latin1")


def never(*arguments: object) -> None:
    raise PickleRefused("it asks to make an array in an unusual way")


STAND_INS = {
    "_codecs.encode": StandIn(encode),
    "builtins.bytes": StandIn(lambda: b""),  # protocol 2 writes no bytes so
    "collections.OrderedDict": StandIn(Entries),
    "numpy.core.multiarray._reconstruct": StandIn(lambda kind, shape, code: Array()),
    "numpy.core.multiarray.scalar": StandIn(single),
    "numpy.core.numeric._frombuffer": StandIn(from_buffer),
    "numpy.dtype": StandIn(Dtype),
    "numpy.ndarray": StandIn(never),  # only named, as the kind of array to make
}
# What is in two places, by version: of numpy, and of Python.
SPELLINGS = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins."}


def with_tensors(value: object, depth: int = 2) -> object:
    """Tensors in the place of arrays, in dicts so many deep."""
    if isinstance(value, dict) and depth:
        return {key: with_tensors(one, depth - 1) for key, one in value.items()}
    if not isinstance(value, Array):
        return value
    if value.tensor is None:
        raise PickleRefused("it holds an array without values")
    return value.tensor
