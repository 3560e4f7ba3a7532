"""Large tables of a data set in few flat buffers.

A set of a million Python objects takes five times the memory of what they hold. Worse, every look
at one of them counts a reference, which writes to its page: worker processes that were forked with
the set then copy it page by page. Arrays are only read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class ImageRecord(NamedTuple):
    """A picture: its id and name in the file, its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class Bytes(Sequence[bytes]):
    """Many byte strings in one."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._all = b"".join(parts)
        self._start = starts([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self._start) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._all[self._start[index] : self._start[index + 1]]


class Images(Sequence[ImageRecord]):
    """The pictures of a set, in the order asked for; a record is made when it is looked at."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._ids = np.array([one.id for one in records], dtype=np.int64)
        self._sizes = np.array([one[2:] for one in records], dtype=np.int32).reshape(-1, 2)
        self._names = Bytes([one.file_name.encode("utf-8", "surrogatepass") for one in records])
        self._order = np.arange(len(records))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> ImageRecord:
        place = int(self._order[index])
        name = self._names[place].decode("utf-8", "surrogatepass")
        return ImageRecord(int(self._ids[place]), name, *self._sizes[place].tolist())

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> Images:
        """Some of them, in this order; the buffers are shared."""
        part = object.__new__(Images)
        part.__dict__ |= self.__dict__ | {"_order": self._order[indices]}
        return part


class Outlines:
    """Each either the counts of a compressed RLE or a list of polygons, x, y, x, y, ...

    Taken in one after another and kept as float32: at no time are all of them objects.
    """

    def __init__(self, outlines: Iterable[bytes | list[np.ndarray]]) -> None:
        runs, points = bytearray(), array("f")
        run_start, point_start, part_start = (array("q", [0]) for _ in range(3))
        for outline in outlines:
            if isinstance(outline, bytes):
                runs += outline
            else:
                for part in outline:
                    points.frombytes(part.astype(np.float32).tobytes())
                    point_start.append(len(points))
            run_start.append(len(runs))
            part_start.append(len(point_start) - 1)
        self._runs, self._points = bytes(runs), np.frombuffer(points, dtype=np.float32)
        self._run_start, self._point_start, self._part_start = (
            np.frombuffer(one, dtype=np.int64) for one in (run_start, point_start, part_start)
        )

    def __getitem__(self, index: int) -> bytes | list[np.ndarray]:
        runs = self._runs[self._run_start[index] : self._run_start[index + 1]]
        if runs:
            return runs
        ends = self._point_start[self._part_start[index] : self._part_start[index + 1] + 1]
        return [self._points[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]


def starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of several stretches of these lengths begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64))))
