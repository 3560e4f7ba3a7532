"""Large tables of a data set in few flat buffers.

A million Python objects need five times the memory of their content, and accessing them changes
reference counts, so that forked workers would copy their pages.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

END = np.float64(np.nan).tobytes()  # of a polygon


class ImageRecord(NamedTuple):
    """An image: its id and name in the file, its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class Bytes(Sequence[bytes]):
    """Many byte strings in one."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        joined, start = bytearray(), array("q", [0])
        for part in parts:  # an iterator, so that they are never all in memory
            joined += part
            start.append(len(joined))
        self._all = np.frombuffer(joined, dtype=np.uint8)
        self._start = np.frombuffer(start, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._start) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._all[self._start[index] : self._start[index + 1]].tobytes()


class Images(Sequence[ImageRecord]):
    """The images of a set, in the order asked for; a record is made when it is accessed."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._ids = np.array([one.id for one in records], dtype=np.int64)
        self._sizes = np.array([one[2:] for one in records], dtype=np.int32).reshape(-1, 2)
        self._names = Bytes(one.file_name.encode("utf-8", "surrogatepass") for one in records)
        self.positions = np.arange(len(records))  # in the file

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> ImageRecord:
        place = int(self.positions[index])
        name = self._names[place].decode("utf-8", "surrogatepass")
        return ImageRecord(int(self._ids[place]), name, *self._sizes[place].tolist())

    def take(self, indices: np.ndarray) -> Images:
        """Some of them, in this order; the buffers are shared."""
        part = copy.copy(self)
        part.positions = self.positions[indices]
        return part


def pack_polygons(polygons: Sequence[np.ndarray]) -> bytes:
    """Polygons, each x, y, x, y, ..., as float64 in one byte string."""
    return END.join(part.astype(np.float64).tobytes() for part in polygons)


def unpack_polygons(packed: bytes) -> list[np.ndarray]:
    """The inverse of `pack_polygons`."""
    values = np.frombuffer(packed, dtype=np.float64)
    ends = np.flatnonzero(np.isnan(values))
    return [values[start:stop] for start, stop in zip([0, *ends + 1], [*ends, None], strict=True)]
