"""Memory: an annotation file of COCO's size, and what a training and its workers hold of it.

`write_set` makes a set of any size with outlines of the lengths COCO has: 20 corners a polygon and
1.1 polygons an object on average (counted in its val split), and both kinds of RLE. Measured in a
process of its own, by Linux's own books (/proc).
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data import rle
from data.folder import open_sets
from data.loaders import train_loader
from data.presets import TrainPreset
from engine.stress_table import Row

COCO_TRAIN = (118_287, 860_001)  # pictures, objects of instances_train2017.json
SIZES = ((480, 640), (427, 640), (640, 480), (375, 500))  # (h, w), the commonest of COCO
CATEGORIES = 80
POOL = 250  # different outlines of each kind for a size; objects repeat them
# What may be needed for COCO's training split: seconds until a training may start, megabytes of
# the process at its highest and then, and of a loader worker what it shares with nobody.
BOUNDS = {"seconds": 90.0, "peak": 3000.0, "after": 1200.0, "worker": 300.0}
MEGABYTE = 1 << 20


def write_set(folder: Path, pictures: int, objects: int, seed: int = 0) -> Path:
    """A set in COCO layout, split train; returns its json.

    The pictures are links to four files. One object in eight is an RLE, half of them compressed:
    more than COCO has, as these are the longest.
    """
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True)
    _write_pictures(folder / "train", pictures)
    outlines = [_outlines(rng, size) for size in SIZES]
    path = folder / "annotations" / "instances_train.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"categories": ' + json.dumps(_categories()) + ',\n"images": [\n')
        file.write(",\n".join(json.dumps(_picture(number)) for number in range(pictures)))
        file.write('],\n"annotations": [\n')
        for start in range(0, objects, 10_000):
            numbers = range(start, min(start + 10_000, objects))
            places = rng.integers(0, pictures, len(numbers)).tolist()
            kinds = rng.integers(0, CATEGORIES, len(numbers)).tolist()
            picks = rng.integers(0, 8 * POOL, len(numbers)).tolist()
            rows = [
                f'{{"segmentation": {outlines[place % len(SIZES)][pick]}, "area": 1204.25, '
                f'"iscrowd": {int(pick < POOL and pick % 8 == 0)}, "image_id": {7 * place}, '
                f'"bbox": [199.84, 200.46, 77.71, 70.88], "category_id": {kind + 1}, '
                f'"id": {number + 1}}}'
                for number, place, kind, pick in zip(numbers, places, kinds, picks)
            ]
            file.write((",\n" if start else "") + ",\n".join(rows))
        file.write("]}\n")
    return path


def _categories() -> list[dict]:
    return [{"id": number + 1, "name": f"class {number + 1}"} for number in range(CATEGORIES)]


def _picture(number: int) -> dict:
    height, width = SIZES[number % len(SIZES)]
    return {
        "license": 3,
        "file_name": f"{number:012d}.jpg",
        "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{number:012d}_z.jpg",
        "id": 7 * number,
    }


def _write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"source{number}.jpg", quality=90)
    for number in range(count):
        (folder / f"{number:012d}.jpg").symlink_to(f"source{number % len(SIZES)}.jpg")


def _outlines(rng: np.random.Generator, size: tuple[int, int]) -> list[str]:
    """8 * POOL outlines as json: a POOL of RLE, half of them compressed, then polygons."""
    runs = [_runs(rng, size, compressed=number % 2 == 0) for number in range(POOL)]
    return [
        json.dumps(outline) for outline in runs + [_polygons(rng, size) for _ in range(7 * POOL)]
    ]


def _runs(rng: np.random.Generator, size: tuple[int, int], compressed: bool) -> dict:
    """Some discs as one region: a few hundred runs."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, dtype=bool)
    for _ in range(rng.integers(1, 5)):
        centre, radius = rng.uniform((0, 0), size), rng.uniform(10, 90)
        mask |= np.hypot(rows - centre[0], columns - centre[1]) < radius
    if compressed:
        return rle.to_json(rle.encode(mask[None])[0])
    flat = np.concatenate(([0], mask.T.ravel().astype(np.int8)))
    changes = np.concatenate((np.flatnonzero(np.diff(flat)), [mask.size]))
    return {"size": list(size), "counts": np.diff(changes, prepend=0).tolist()}


def _polygons(rng: np.random.Generator, size: tuple[int, int]) -> list[list[float]]:
    """One object: mostly one polygon, 20 corners on average, many with few and some with many."""
    parts = []
    for _ in range(1 + (rng.random() < 0.1)):
        corners = int(np.clip(rng.lognormal(2.7, 0.75), 3, 400))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = rng.uniform(8, 80) * rng.uniform(0.7, 1.3, corners)
        centre = rng.uniform((0, 0), size[::-1])
        points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        parts.append(np.clip(points, 0, size[::-1]).round(2).ravel().tolist())
    return parts


def measure(json_file: str, pictures: int, workers: int = 2) -> dict[str, float]:
    """Open a set, read pictures from all over it with loader workers; seconds and megabytes.

    To be called in a process of its own: the peak is that of the whole process.
    """
    began = time.monotonic()
    dataset = open_sets(train_json=json_file, splits=("train",), progress=False)["train"]
    found = {"seconds": time.monotonic() - began, "pictures": len(dataset)}
    found |= {"peak": _megabytes("status", "VmHWM"), "after": _megabytes("status", "VmRSS")}
    batches = train_loader(
        dataset, TrainPreset(), batch_size=8, stop_step=max(1, pictures // 8),
        canvases=[(128, 128)], workers=workers,
    )  # fmt: skip
    private = [[0.0]]
    for _ in batches:
        private.append([_private(child) for child in _children()] or [0.0])
    found["worker"] = max(private[-2])  # before the first of them has come to its end
    found["worker at first"] = max(private[1])
    return found


def _megabytes(book: str, *names: str, process: int | str = "self") -> float:
    """The sum of some lines of a book that Linux keeps on a process."""
    lines = Path(f"/proc/{process}/{book}").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return sum(int(values[name]) for name in names) * 1024 / MEGABYTE


def _private(process: int) -> float:
    return _megabytes("smaps_rollup", "Private_Clean", "Private_Dirty", process=process)


def _children(parent: int | None = None) -> list[int]:
    """The processes that a process has started and that still run."""
    parent, found = parent or os.getpid(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            found += [int(folder.name)] if int(fields[1]) == parent and fields[0] != "Z" else []
    return found


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """COCO's training split, or a tenth of it: the bounds then are a tenth of what they leave
    above the memory of a process that has opened nothing."""
    if not Path("/proc/self/smaps_rollup").exists():
        yield Row("memory", "nothing", "needs /proc of Linux", False)
        return
    share = 1.0 if thorough else 0.1
    pictures, objects = (round(share * number) for number in COCO_TRAIN)
    path = write_set(scratch, pictures, objects)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        found = alone.submit(measure, str(path), 1600).result()
    yield Row("peak", f"{pictures}", json.dumps(found), True)
