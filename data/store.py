"""The annotations of a data set in flat arrays; masks are decoded on access."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from data import rle
from data.packed import Bytes, pack_polygons, unpack_polygons
from data.records import Row


class Store:
    """All annotations sorted by image: labels, kinds, areas; `void`: RLE counts of each image or
    empty.
    """

    def __init__(self, rows: Iterable[tuple[dict, Row]], void: Bytes) -> None:
        positions, labels, kinds, areas = array("q"), array("i"), array("b"), array("d")
        drawn = array("b")

        def outlines() -> Iterator[bytes]:
            for _, row in rows:
                positions.append(row.position)
                labels.append(row.label)
                kinds.append(row.kind)
                areas.append(row.area)
                drawn.append(isinstance(row.outline, list))
                yield pack_polygons(row.outline) if drawn[-1] else row.outline

        self._outlines = Bytes(outlines())  # in the order of the file, as _drawn
        self._drawn = np.asarray(drawn).astype(bool)
        of_row = np.asarray(positions)
        self._order = np.argsort(of_row, kind="stable")
        self._first = np.searchsorted(of_row[self._order], np.arange(len(void) + 1))
        self._void = void
        self.labels = np.asarray(labels)[self._order]
        self.kinds = np.asarray(kinds)[self._order]
        self.areas = np.asarray(areas)[self._order]

    def drop(self, gone: np.ndarray) -> None:
        """Removes rows: bool, one for each."""
        self._first = np.append(0, np.cumsum(~gone))[self._first]
        self._order, self.labels = self._order[~gone], self.labels[~gone]
        self.kinds, self.areas = self.kinds[~gone], self.areas[~gone]

    def rows(self, position: int) -> slice:
        """The rows of the image at this position of the file."""
        return slice(int(self._first[position]), int(self._first[position + 1]))

    def of_image(self, position: int, size: tuple[int, int]) -> tuple[list[rle.Rle], list[rle.Rle]]:
        """The masks of one image in the order of its rows, and its void region if it has one."""
        masks = [self._mask(place, size) for place in self._order[self.rows(position)]]
        counts = self._void[position]
        return masks, [{"size": list(size), "counts": counts}] if counts else []

    def polygons(self, row: int) -> list[np.ndarray]:
        """The polygons of a row, none if it has an RLE."""
        place = self._order[row]
        return unpack_polygons(self._outlines[place]) if self._drawn[place] else []

    def _mask(self, place: int, size: tuple[int, int]) -> rle.Rle:
        outline = self._outlines[place]
        if not self._drawn[place]:
            return {"size": list(size), "counts": outline}
        return rle.from_polygons(unpack_polygons(outline), *size)
