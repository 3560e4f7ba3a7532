"""Memory of a training and its workers with an annotation file of COCO's size.

`write_set` makes a data set of any size with outlines of COCO's lengths: on average 20 corners a
polygon (counted in its val split), and RLEs. Measured in a separate process, from Linux's /proc.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data import rle
from data.loaders import train_loader
from data.opening import open_datasets
from data.presets import TrainPreset
from engine import log
from tests.stress.rows import Row

COCO_TRAIN = (118_287, 860_001)  # images, objects of instances_train2017.json
SIZES = ((480, 640), (427, 640), (640, 480), (375, 500))  # (h, w), the commonest of COCO
CATEGORIES = 80
POOL = 250  # at most so many RLEs per size, and seven times as many polygons; objects repeat them
# Bounds for COCO's training split: seconds until a training may start, megabytes of the process at
# its peak and after opening, and private megabytes of a loader worker. `grown`: growth of a worker
# while it reads; `drift`: relative growth of a training; `fixed`: added to the bounds of a smaller
# set, for what does not shrink with it.
BOUNDS = {
    "seconds": 90.0, "peak": 3000.0, "after": 1290.0, "worker": 200.0, "grown": 60.0, "drift": 0.05,
    "fixed": 100.0,
}  # fmt: skip
IMAGES_READ = 960  # evenly from the whole set, by two workers
MEGABYTE = 1 << 20
JSON = Path("annotations") / "instances_train.json"
TRAINING = (
    "--from-scratch --device cpu --threads 1 --workers 2 --image-size 64 --canvas 64x64 64x128 "
    "--batch-size 4 --eval-every 0 --log-every 5 --warmup 10 --set width=32 kernel_dim=16 "
    "query_width=32 num_heads=2 num_queries=6"
)


def write_set(folder: Path, images: int, objects: int, seed: int = 0) -> Path:
    """Writes a data set in COCO layout, split train; returns its json.

    The images are links to four files. One object in eight is an RLE, more than COCO has, as these
    are the longest.
    """
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True)
    write_images(folder / "train", images)
    pool = max(1, min(POOL, objects // 40))
    outlines = [draw_outlines(rng, size, pool) for size in SIZES]
    names = [{"id": number + 1, "name": f"class {number + 1}"} for number in range(CATEGORIES)]
    path = folder / JSON
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"categories": ' + json.dumps(names) + ',\n"images": [\n')
        file.write(",\n".join(json.dumps(image_record(number)) for number in range(images)))
        file.write('],\n"annotations": [\n')
        for number in range(objects):
            place, pick = int(rng.integers(images)), int(rng.integers(8 * pool))
            crowd = int(pick < pool and pick % 8 == 0)
            file.write(
                f'{", " if number else ""}{{"segmentation": {outlines[place % len(SIZES)][pick]}, '
                f'"area": 1204.25, "iscrowd": {crowd}, "image_id": {7 * place}, '
                f'"bbox": [199.84, 200.46, 77.71, 70.88], '
                f'"category_id": {1 + number % CATEGORIES}, "id": {number + 1}}}\n'
            )
        file.write("]}\n")
    return path


def image_record(number: int) -> dict:
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


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"source{number}.jpg", quality=90)
    for number in range(count):
        (folder / f"{number:012d}.jpg").symlink_to(f"source{number % len(SIZES)}.jpg")


def draw_outlines(rng: np.random.Generator, size: tuple[int, int], pool: int) -> list[str]:
    """8 * pool outlines as json: RLEs of discs, a few hundred runs each, then polygons with 20
    corners on average, many with few and some with many.
    """
    rows, columns = np.mgrid[: size[0], : size[1]]
    outlines: list[dict | list] = []
    for _ in range(pool):
        mask = np.zeros(size, dtype=bool)
        for _ in range(rng.integers(1, 5)):
            centre, radius = rng.uniform((0, 0), size), rng.uniform(10, 90)
            mask |= np.hypot(rows - centre[0], columns - centre[1]) < radius
        outlines.append(rle.to_json(rle.encode(mask[None])[0]))
    for _ in range(7 * pool):
        corners = int(np.clip(rng.lognormal(2.7, 0.75), 3, 400))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = rng.uniform(8, 80) * rng.uniform(0.7, 1.3, corners)
        centre = rng.uniform((0, 0), size[::-1])
        points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        outlines.append([np.clip(points, 0, size[::-1]).round(2).ravel().tolist()])
    return [json.dumps(outline) for outline in outlines]


def measure(json_file: str, images: int, workers: int) -> dict[str, float]:
    """Opens a data set and reads images from all of it with loader workers.

    Returns megabytes, CPU seconds (`seconds`) and wall seconds (`clock`). Call it in a fresh
    process: the peak is that of the whole process.
    """
    found = {"before": megabytes("status", "VmRSS")}
    began, clock = time.process_time(), time.monotonic()
    dataset = open_datasets(train_json=json_file, splits=("train",), progress=False)["train"]
    found |= {"seconds": time.process_time() - began, "clock": time.monotonic() - clock}
    found |= {"peak": megabytes("status", "VmHWM"), "after": megabytes("status", "VmRSS")}
    batches = train_loader(
        dataset, TrainPreset(), batch_size=8, stop_step=images // 8, canvases=[(128, 128)],
        workers=workers,
    )  # fmt: skip
    private = []
    for number, _ in enumerate(batches):
        if number % 10 == 0:  # not after the last batch: the workers have ended
            private.append(max(map(private_memory, children()), default=0.0))
    return found | {"worker at first": private[0], "worker": max(private)}


def measured_alone(json_file: Path, images: int, workers: int = 2) -> dict[str, float]:
    """Runs `measure` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(measure, str(json_file), images, workers).result()


def megabytes(file: str, *names: str, process: int | str = "self") -> float:
    """Sums fields of a file in /proc/PROCESS."""
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return sum(int(values[name]) for name in names) * 1024 / MEGABYTE


def private_memory(process: int) -> float:
    """Private memory of a process; 0 if it has just ended."""
    try:
        return megabytes("smaps_rollup", "Private_Clean", "Private_Dirty", process=process)
    except OSError:
        return 0.0


def proportional_memory(process: int) -> float:
    """Memory of a process, shared pages in proportion; 0 if it has just ended.

    Without libraries: their part grows when any other process that uses them ends.
    """
    try:
        return megabytes("smaps_rollup", "Pss_Anon", "Pss_Shmem", process=process)
    except OSError:
        return 0.0


def children(parent: int | None = None) -> list[int]:
    """Running child processes."""
    parent, found = parent or os.getpid(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            found += [int(folder.name)] if int(fields[1]) == parent and fields[0] != "Z" else []
    return found


def watch_training(scratch: Path, iterations: int) -> list[tuple[int, float]]:
    """Runs a small training with two workers: (iteration, megabytes including the workers)."""
    data, out = scratch / "images", scratch / "run"
    write_set(data, 200, 1400)
    command = [sys.executable, "-m", "engine.train", *TRAINING.split(), "--out", str(out)]
    command += ["--train-json", str(data / JSON), "--val-json", str(data / JSON)]
    command += ["--images", str(data / "train"), "--iterations", str(iterations)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[int, float]] = []
    try:
        while process.poll() is None:
            rows = log.read_jsonl(out / "log.jsonl") if (out / "log.jsonl").exists() else []
            if rows and (not samples or rows[-1]["iteration"] > samples[-1][0]):
                family = [process.pid, *children(process.pid)]
                samples.append((rows[-1]["iteration"], sum(map(proportional_memory, family))))
            time.sleep(0.2)
    finally:
        process.kill()
    return samples[:-1]  # at the last one the workers may have ended


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """Opens a set of COCO's size, then checks whether a training grows.

    The short form opens a tenth; its bounds are a tenth above an empty process.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        yield Row("memory", "nothing", "needs /proc of Linux", False)
        return
    yield from report_opening(scratch, 1.0 if thorough else 0.1)
    yield report_training(scratch, 500 if thorough else 200)


def report_opening(scratch: Path, share: float) -> Iterator[Row]:
    images, objects = (round(share * number) for number in COCO_TRAIN)
    path = write_set(scratch / "coco", images, objects)
    size = path.stat().st_size / MEGABYTE
    found = measured_alone(path, IMAGES_READ)
    slack = BOUNDS["fixed"] if share < 1 else 0.0
    bounds = {"seconds": share * BOUNDS["seconds"]}
    for key in ("peak", "after"):
        bounds[key] = found["before"] + share * (BOUNDS[key] - found["before"]) + slack
    tried = f"{images} images, {objects} objects, {size:.0f} MB of json"
    numbers = ", ".join(
        f"{key} {found[key]:.0f} of {bounds[key]:.0f} MB" for key in ("peak", "after")
    )
    yield Row(
        "memory: opening a set",
        tried,
        f"{found['seconds']:.1f} s of {bounds['seconds']:.0f} ({found['clock']:.0f} wall), "
        f"{numbers}, {found['before']:.0f} before it",
        all(found[key] < bound for key, bound in bounds.items()),
    )
    grown = found["worker"] - found["worker at first"]
    yield Row(
        "memory: a loader worker",
        f"{IMAGES_READ} images from all of {tried}",
        f"{found['worker']:.0f} MB private, {grown:.0f} more than at first; the main process has "
        f"{found['after']:.0f}",
        found["worker"] < BOUNDS["worker"] and grown < BOUNDS["grown"],
    )


def report_training(scratch: Path, iterations: int) -> Row:
    samples = watch_training(scratch, iterations)
    tried = f"{iterations} iterations with 2 workers"
    if len(samples) < 8:
        return Row("memory: a training", tried, "ended too soon to be measured", False)
    settled = [value for number, value in samples if number >= iterations // 5]
    half = len(settled) // 2
    early, late = np.median(settled[:half]), np.median(settled[half:])
    return Row(
        "memory: a training",
        tried,
        f"{early:.0f} MB in the first half, {late:.0f} in the second",
        bool(late < early * (1 + BOUNDS["drift"])),
    )
