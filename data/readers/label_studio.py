"""Label Studio: its JSON and JSON-MIN exports.

Of several annotations of a task the ground truth is read, else the last one; cancelled annotations
and predictions are not. Tasks without annotations are left out. Coordinates are in percent of the
image size. Rectangles are boxes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from data import rle
from data.errors import MALFORMED, BadRecords, InputError
from data.images import SUFFIXES, upright_size
from data.readers import checks
from data.readers.content import Content
from data.readers.image_files import ImageFiles, annotation_files
from data.readers.source import Source, ellipse, head_of, rotated

NAME, TITLE = "label-studio", "Label Studio json"
LAYOUT = "project-1.json (its JSON export) beside the images"
OWN_IDS = False

FIX = "correct it in Label Studio or remove it"
LABELS = re.compile(r"<(Polygon|Brush|Bitmask|Rectangle|Ellipse|)Labels\b.*?</\1Labels>", re.DOTALL)
LABEL = re.compile(r"""<Label\b[^>]*?\bvalue\s*=\s*(?:"([^"]*)"|'([^']*)')""")
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # in front of the names of uploaded files
WORD = 8  # bits of a value of a brush
SOLID = 127  # threshold of alpha, which is between 0 and 255 at the edge of a stroke
SIZE = ("original_width", "original_height")
PNG_URL = re.compile(r"data:image/png;base64,")
SHAPES = {
    "points": "polygon",
    "rle": "brush",
    "imageDataURL": "bitmask",
    "radiusX": "ellipse",
    "height": "rectangle",
}


class Task(NamedTuple):
    """An image with the regions of one annotation."""

    file: Path
    id: str
    names: list[str]  # paths that the image may have
    regions: list[Any]


def find(path: Path) -> dict[str, Source] | None:
    """The exports in a folder, or one of them; by split if all file names contain one."""
    found = annotation_files(path, (".json",), is_label_studio)
    for split, source in found.items():
        files = [*source.files, *configs(source.path)]
        found[split] = source._replace(files=files)
    return found or None


def read(source: Source, bad: BadRecords) -> dict[str, Any]:
    """The tasks as COCO content; classes as a labeling config lists them, if there, else sorted."""
    content = Content(bad, [name for file in configs(source.path) for name in classes_in(file)])
    images = ImageFiles(source.images[0])
    for name in source.names:
        file = source.path / name
        with bad.noting(file, "the file", "export it again as JSON", where=str(file)):
            for task in annotated_tasks(checks.load_json(file), file, content):
                with bad.noting(file, f"task {task.id}", FIX):
                    regions = regions_of(task)
                    image = add_image(content, task, regions, images, source)
                    for id_, region in regions.items():
                        add_region(content, image, region, file, f"region {id_} of task {task.id}")
    if not content.images and content.counts["tasks without an annotation"]:
        raise InputError(
            f"{source.path}: no task of Label Studio has an annotation, and predictions do not "
            "count: submit them as annotations and export again"
        )
    return content.finished()


def is_label_studio(path: Path) -> bool:
    start = head_of(path)
    exported = '"result"' in start and re.search('"(annotations|completions|predictions)"', start)
    return start.startswith("[") and bool(exported or re.search('"[a-z]+labels"', start))


def configs(folder: Path) -> list[Path]:
    """The labeling configs in a folder."""
    return [file for file in sorted(folder.glob("*.xml")) if head_of(file).startswith("<View")]


def classes_in(config: Path) -> list[str]:
    blocks = (block.group() for block in LABELS.finditer(head_of(config)))
    return [html.unescape(a or b).strip() for block in blocks for a, b in LABEL.findall(block)]


def annotated_tasks(tasks: list, file: Path, content: Content) -> list[Task]:
    """The tasks that have an annotation."""
    found: dict[Any, Task] = {}
    for number, record in enumerate(tasks, start=1):
        id_ = record.get("id", number) if isinstance(record, dict) else number
        with content.bad.noting(file, f"task {id_}", FIX):
            if "result" in record:
                raise InputError("is an annotation without its task, so it names no image")
            if "data" not in record:  # JSON-MIN
                task = Task(file, id_, names_in(record), regions_of_json_min(record))
                content.counts["annotations beside the last"] += task.names[0] in found
                found[task.names[0]] = task
                continue
            regions = regions_of_annotation(record, content)
            names = names_in(record["data"], record.get("file_upload"))
            if regions is not None:
                found[number] = Task(file, id_, names, regions)
    return list(found.values())


def regions_of_annotation(record: dict, content: Content) -> list | None:
    """The regions of a task; None where it has no annotation."""
    made = record.get("completions", record.get("annotations", []))  # once called completions
    annotations = [one for one in made if not one.get("was_cancelled")]
    content.counts["cancelled annotations"] += len(made) - len(annotations)
    content.counts["predictions"] += len(record.get("predictions") or ())
    if not annotations:
        content.counts["tasks without an annotation"] += 1
        return None
    content.counts["annotations beside the one that counts"] += len(annotations) - 1
    truth = [one for one in annotations if one.get("ground_truth")]
    return (truth or annotations)[-1]["result"]


def regions_of_json_min(record: dict) -> list[dict]:
    """The regions of a row of JSON-MIN, as those of a task."""
    lists = [value for value in record.values() if isinstance(value, list)]
    values = [one for each in lists for one in each if isinstance(one, dict)]
    return [{key: one.get(key) for key in SIZE} | {"value": one} for one in values]


def names_in(data: dict, uploaded: Any = None) -> list[str]:
    """Possible paths of the image of a task, the most likely first."""
    texts = [data.get("image"), *data.values(), uploaded]
    paths = [path_in(text) for text in texts if isinstance(text, str)]
    paths = [path for path in paths if path.lower().endswith(SUFFIXES)] or paths[:1]
    if not paths:
        raise InputError("names no image")
    bases = [path.replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
    return list(dict.fromkeys([*paths, *(UPLOADED.sub("", base) for base in bases)]))


def path_in(text: str) -> str:
    """The path of a URL, or of a file in the local storage."""
    if stored := re.search(r"[?&]d=([^&]*)", text):
        return unquote(stored[1])
    try:
        return unquote(urlsplit(text).path)
    except ValueError:
        return text


class Region(NamedTuple):
    """One or more results of one id: the values together, and the type of the first."""

    record: dict
    value: dict


def regions_of(task: Task) -> dict[Any, Region]:
    """The results of a task by region id; shape and class may be separate results."""
    regions: dict[Any, Region] = {}
    for number, record in enumerate(task.regions):
        value = record["value"] if record.get("type") in TYPES else record.get("value")
        if isinstance(value, dict):
            first = regions.setdefault(str(record.get("id") or number), Region(record, {}))
            first.value.update(value)
    return regions


def kind_of(region: Region) -> str | None:
    """The key of OUTLINES for a region; None if it has no area."""
    words = [str(region.record.get("type")), *region.value]
    kinds = [word.removesuffix("labels") for word in words]
    kinds += [kind for key, kind in SHAPES.items() if key in region.value]
    return next((kind for kind in kinds if kind in OUTLINES), None)


def add_image(
    content: Content, task: Task, regions: dict[Any, Region], images: ImageFiles, source: Source
) -> dict[str, Any]:
    found = (images.find_in_split(name, source.split) for name in task.names)
    found = next(filter(None, found), None)
    sizes = [[one.record.get(side) for side in SIZE] for one in regions.values()]
    size = next((each for each in sizes if None not in each), [None, None])
    if found is not None and None in size:
        size = upright_size(source.images[0] / found)[::-1]
    name = found or task.names[0].replace("\\", "/").rsplit("/", 1)[-1]
    return content.add_image(name, *size, f"task {task.id}")


def add_region(content: Content, image: dict, region: Region, file: Path, what: str) -> None:
    label, kind = None, kind_of(region)
    if kind is None:
        content.counts["results without an area"] += 1
        return
    try:
        label = label_of(region.value)
        if region.record.get("image_rotation"):
            raise InputError("was drawn on an image that was turned, which is not supported")
        size = image["width"], image["height"]
        if any(region.record.get(side) not in (None, size[i]) for i, side in enumerate(SIZE)):
            raise InputError("is of an image of another size than other regions")
        drawn = OUTLINES[kind](region.value, image)
    except MALFORMED as error:
        percent = checks.box_of_points(region.value.get("points"), {"width": 100, "height": 100})
        left = [scale(one, image) for one in percent]
        content.add_broken(image, label, error, file, what, FIX, left)
        return
    if label is None:
        content.counts["regions without a class"] += 1
        content.add(image, None, [drawn], broken=True)
    elif kind == "rectangle":
        content.add_box(image, label, drawn.tolist())
    else:
        content.add(image, label, [drawn])


def label_of(value: dict) -> str | None:
    """The first class of a region, if it has one."""
    labels = [one for key, one in value.items() if key.endswith("labels")]
    named = [one for one in labels if one != []]
    if not named:
        return None
    return checks.class_name(named[0][0] if isinstance(named[0], list) else named[0])


def scale(points: np.ndarray | list[float], image: dict) -> np.ndarray:
    """Points x, y, x, y, ... in percent -> in pixels."""
    return (np.reshape(points, (-1, 2)) * (image["width"], image["height"]) / 100).ravel()


def outline(value: dict, image: dict) -> np.ndarray:
    return checks.polygon(scale(checks.flatten(value.get("points")), image).tolist(), image)


def ellipse_polygon(value: dict, image: dict) -> np.ndarray:
    keys = ("x", "y", "radiusX", "radiusY")
    sizes = scale(checks.numbers([value.get(key) for key in keys]), image)
    return checks.polygon(ellipse(*sizes.tolist(), *rotation_of(value)), image)


def box(value: dict, image: dict) -> np.ndarray:
    """The corners of a rectangle, turned clockwise about its top left one."""
    keys = ("x", "y", "width", "height")
    x, y, width, height = scale(checks.numbers([value.get(key) for key in keys]), image).tolist()
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    return checks.polygon(rotated(corners, (x, y), *rotation_of(value)), image)


def rotation_of(value: dict) -> list[float]:
    return checks.numbers([value.get("rotation") or 0])


def brush(value: dict, image: dict) -> rle.Rle:
    height, width = image["height"], image["width"]
    solid, runs = brush_runs(value.get("rle"), height, width)
    return rle.encode(np.repeat(solid, runs).reshape(1, height, width))[0]


def bitmask(value: dict, image: dict) -> rle.Rle:
    """A PNG of the image's size, transparent but for the object."""
    mask = checks.png_mask(checks.base64_bytes(PNG_URL.sub("", value["imageDataURL"], count=1)))
    if mask.shape != (image["height"], image["width"]):
        height, width = mask.shape
        raise InputError(f"has a mask of {width} x {height} pixels, which its image has not")
    return checks.mask_at(mask, 0, 0, image)


OUTLINES: dict[str, Callable[[dict, dict], checks.Outline]] = {
    "polygon": outline,
    "ellipse": ellipse_polygon,
    "rectangle": box,
    "brush": brush,
    "bitmask": bitmask,
}
TYPES = (*OUTLINES, *(f"{kind}labels" for kind in OUTLINES))


def brush_runs(data: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a brush -> runs of pixels by rows: bool [N] (alpha above SOLID), lengths int64
    [N].

    Bit stream, highest first: 32 bits for the number of values (RGBA by rows), 5 for the bits of a
    value minus 1, 4 times 4 for the sizes of counts minus 1. Then blocks: 1 bit for a repeated
    value, 2 for the size of the count, the count minus 1, and one value or as many.
    """
    raw = bytes(list(data))
    padded = raw + bytes(8)

    def bits(place: int, number: int) -> int:
        window = int.from_bytes(padded[place >> 3 : (place >> 3) + 8], "big")
        return window >> (64 - (place & 7) - number) & ((1 << number) - 1)

    count, word, place = bits(0, 32), bits(32, 5) + 1, 53
    if word != WORD or count != 4 * height * width:
        raise InputError(
            f"has an rle of {count} values of {word} bits where its image has "
            f"{4 * height * width} of {WORD} bits"
        )
    sizes = [bits(place, 4) + 1 for place in range(37, 53, 4)]
    lengths: list[int] = []
    values: list[int] = []
    done = 0
    while done < count and place < 8 * len(raw):
        window = bits(place, 3 + 16 + WORD)  # a block, of a single value or of repeated ones
        size = sizes[window >> 16 + WORD & 3]
        times = (window >> 16 + WORD - size & (1 << size) - 1) + 1
        repeated = window >> 18 + WORD
        place += 3 + size
        if repeated:
            lengths.append(times)
            values.append(window >> 16 - size & (1 << WORD) - 1)
        else:
            lengths += [1] * times
            values += [bits(place + WORD * i, WORD) for i in range(times)]
        place += WORD * (1 if repeated else times)
        done += times
    if done != count or place > 8 * len(raw):
        raise InputError(f"has an rle that ends after {done} of {count} values")
    alphas = np.diff(np.cumsum(lengths) // 4, prepend=0)  # of each run; alpha is the fourth value
    return np.array(values) > SOLID, alphas
