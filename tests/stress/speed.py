"""Speed of reading annotations: CPU time per object in every format that can be written."""

import time
from collections.abc import Iterator
from pathlib import Path

from data.opening import open_datasets
from data.writers import WRITERS
from engine import convert
from tests.stress.memory import write_set
from tests.stress.rows import Row

BOUND = 1.0  # milliseconds of CPU per object
IMAGES = 200  # with ten objects each


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """A row for each format; the second opening finds what was converted."""
    images = 20 * IMAGES if thorough else IMAGES
    write_set(scratch / "set", images, 10 * images)
    for name in WRITERS:
        convert.main([str(scratch / "set"), str(scratch / name), "--to", name])
        seconds = []
        for _ in range(2):
            began = time.process_time()
            sets = open_datasets(
                scratch / name, splits=None, cache=scratch / "cache", progress=False
            )
            seconds.append(time.process_time() - began)
        objects = sum(int(one.objects_per_image().sum()) for one in sets.values())
        first, again = (1000 * one / objects for one in seconds)
        result = f"{first:.2f} ms of CPU per object, {again:.2f} ms when opened again"
        yield Row(f"speed: {name}", f"{objects} objects", result, first < BOUND)
