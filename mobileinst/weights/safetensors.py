"""The .safetensors format: a length, a table as json, and the bytes of all tensors."""

import json
import math
import struct
from pathlib import Path
from typing import BinaryIO

import torch

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
LONGEST_TABLE = 100_000_000  # bytes, the format's own limit


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name, on the CPU. Nothing in the file is run.

    Raises:
        ValueError: the file is cut short or does not keep to the format.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = path.stat().st_size
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(LONGEST_TABLE, size - 8):
            raise ValueError(f"a table of {length} bytes in a file of {size}")
        table = json.loads(file.read(length))
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        return {name: _tensor(file, 8 + length, size, **entries[name]) for name in entries}


def _tensor(
    file: BinaryIO, start: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> torch.Tensor:
    """One tensor, from its entry in the table and where the bytes start."""
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
