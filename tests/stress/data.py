"""Broken and hostile data sets: small sets in three formats, each spoilt in one place.

`attempt` opens such a set as a training does and reads every image through the presets. It must
work, or end in one sentence that names the file and the record; then again with bad records left
out. Everything follows from (kind, seed), so a failing case can be repeated.
"""

import io
import json
import math
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from numpy.random import Generator
from PIL import Image

from data import rle
from data.batch import Batch
from data.dataset import CocoDataset
from data.errors import InputError
from data.loaders import eval_loader, train_loader
from data.opening import open_datasets
from data.presets import EvalPreset, TrainPreset
from tests.stress.rows import Row

SIZES = ((20, 28), (24, 24), (18, 30))  # (h, w) of the images
SECONDS = 20  # limit of one case; most take some hundredths
GROWTH = 1200.0  # megabytes that the process may grow by over all cases
JSON = "annotations/instances_train.json"
WRONG: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, -(10**30), 1.5, math.nan, math.inf,
    -math.inf, 1e308, "", "0", "7", "ä ö 虾", "x" * 5000, [], [1], {}, {"a": 1}, [[]], "\ud800",
    "\0", "../../x", "\n\x1b[31m", [None, {}], {"size": 3, "counts": -1},
)  # fmt: skip
NOT_IMAGES = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", b"<html>", b"GIF89a",
    b"II*\0\x08\0\0\0\xff\xff", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"P6 100000 100000 255\n",
)  # fmt: skip
IMAGE_KINDS = (  # file type and mode
    ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"),
    ("PNG", "1"), ("PNG", "I;16"), ("TIFF", "F"), ("TIFF", "I"), ("BMP", "RGB"), ("GIF", "P"),
    ("WEBP", "RGBA"), ("TIFF", "CMYK"), ("PPM", "RGB"), ("JPEG", "YCbCr"),
)  # fmt: skip
ODD_NAMES = (
    "虾 1.png", "a b  c.png", "ä'\"$(x);&.png", "-rf.png", "sub/deep/0.png", "..0.png", "0..png",
    "%2e%2e.png", "a\nb.png", "\x1b[31m.png", "x" * 200 + ".png", "~.png",
)  # fmt: skip
NAMES_THAT_LEAD_AWAY = (
    "../outside.png", "sub/../../outside.png", "/etc/hostname", "..\\outside.png", "", "..", ".",
    "C:\\outside.png", "\\outside.png", "0\0.png", "x" * 300 + ".png", "gone.png", "\ud800.png",
    "x/" * 2000 + "0.png", "x/" * 400 + "0.png", "~/outside.png", "file:///etc/hostname",
)  # fmt: skip


@dataclass
class Made:
    """A set before it is written: its json, other files, links (name -> target), pipes."""

    content: dict | None
    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)
    pipes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        if self.content is not None:
            self.files[JSON] = json.dumps(self.content).encode()
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name, target in self.links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)
        for name in self.pipes:
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name)


class Spoilt(NamedTuple):
    """What is expected of a spoilt set.

    names: one of them must be in the message. refused: True must be refused, False must work, None
    either.
    """

    names: tuple[str, ...]
    refused: bool | None = None


class Outcome(NamedTuple):
    """Result of a case: `state` is works, refused or fault."""

    kind: str
    seed: int
    state: str
    text: str


# --------------------------------------------------------------------------------- whole sets


def image_bytes(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", **keywords) -> bytes:
    pixels = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).convert(mode).save(file, kind, **keywords)
        return file.getvalue()


def coco_set() -> Made:
    """Three images; polygons of one and two parts, both kinds of RLE, a crowd, void."""
    images, files = [], {}
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.{'jpg' if number == 1 else 'png'}"
        files[f"train/{name}"] = image_bytes((height, width), "JPEG" if number == 1 else "PNG")
        images.append({"id": 10 * number, "file_name": name, "width": width, "height": height})
    masks = [np.zeros(size, dtype=bool) for size in SIZES]
    for mask in masks:
        mask[4:14, 5:16] = True
    compressed = [rle.to_json(rle.encode(mask[None])[0]) for mask in masks]
    images[0]["void"] = rle.to_json(rle.encode(~masks[0][None])[0]) | {}
    outlines = [
        [[4, 4, 14, 4, 14, 12.5, 4, 12.5]], compressed[0], plain(masks[1]),
        [[2, 2, 8, 2, 8, 8], [12, 12, 20, 12.25, 20, 20]], compressed[2], plain(masks[2]),
    ]  # fmt: skip
    annotations = [
        {"id": number + 1, "image_id": 10 * (number // 2), "category_id": (3, 7)[number % 2],
         "segmentation": outline, "iscrowd": int(number == 5), "area": 9.0, "bbox": [1, 1, 3, 3]}
        for number, outline in enumerate(outlines)
    ]  # fmt: skip
    categories = [{"id": 7, "name": "crab"}, {"id": 3, "name": "shrimp"}]
    return Made({"images": images, "annotations": annotations, "categories": categories}, files)


def plain(mask: np.ndarray) -> dict:
    """Encodes a mask as uncompressed RLE."""
    flat = np.concatenate(([0], mask.T.ravel().astype(np.int8)))
    changes = np.concatenate((np.flatnonzero(np.diff(flat)), [mask.size]))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}


def voc_set() -> Made:
    files = {"VOC2012/ImageSets/Segmentation/train.txt": b"a\nb\nc\n"}
    for name, size in zip("abc", SIZES):
        files[f"VOC2012/JPEGImages/{name}.jpg"] = image_bytes(size, "JPEG")
        indices = np.zeros(size, np.uint8)
        indices[3:12, 3:12], indices[12, 3:12] = 1, 255
        for part in ("SegmentationClass", "SegmentationObject"):
            files[f"VOC2012/{part}/{name}.png"] = map_bytes(indices)
    return Made(None, files)


def map_bytes(indices: np.ndarray, mode: str = "P") -> bytes:
    with io.BytesIO() as file:
        image = Image.fromarray(indices)
        if mode == "P":
            image.putpalette([0, 0, 0, 128, 0, 0])
        (image if mode == "P" else image.convert(mode)).save(file, "PNG")
        return file.getvalue()


def sbd_set() -> Made:
    files = {"train.txt": b"a\nb\nc\n"}
    for name, size in zip("abc", SIZES):
        files[f"img/{name}.jpg"] = image_bytes(size, "JPEG")
        files[f"inst/{name}.mat"] = mat_bytes(np.pad(np.ones((6, 6), np.uint8), 5), [9], size)
    return Made(None, files)


def mat_bytes(objects: Any, categories: Any, size: tuple[int, int] | None = None) -> bytes:
    if size is not None:
        objects = np.resize(objects, size)
    with io.BytesIO() as file:
        inside = {"Segmentation": objects, "Categories": categories, "Boundaries": 0}
        scipy.io.savemat(file, {"GTinst": inside})
        return file.getvalue()


# --------------------------------------------------------------------------------- what is spoilt


def pick(rng: Generator, things: Sequence) -> Any:
    return things[int(rng.integers(len(things)))]


def any_record(rng: Generator, made: Made) -> tuple[str, dict, tuple[str, ...]]:
    """Returns a list of the json, a record in it, and the names for the record in messages."""
    key = pick(rng, ("images", "annotations", "annotations", "categories"))
    number = int(rng.integers(len(made.content[key])))
    record = made.content[key][number]
    what = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    return key, record, (f"{what} {record['id']}", f"{what} number {number + 1}",
                         f"{what} id {record['id']}", f"a{'n' * (what == 'image')} {what} has",
                         *(() if key == "annotations" else ("annotation ", "categories"))
                         )  # fmt: skip


def annotation_of(rng: Generator, made: Made, *places: int) -> tuple[dict, tuple[str, ...]]:
    record = made.content["annotations"][pick(rng, places)]
    return record, (f"annotation {record['id']} ",)


def field_gone(rng: Generator, made: Made) -> Spoilt:
    _, record, names = any_record(rng, made)
    record.pop(pick(rng, list(record)))
    return Spoilt(names)


def field_wrong(rng: Generator, made: Made) -> Spoilt:
    _, record, names = any_record(rng, made)
    record[pick(rng, list(record))] = pick(rng, WRONG)
    return Spoilt((*names, "images are not in", "used twice"))


def list_wrong(rng: Generator, made: Made) -> Spoilt:
    key = pick(rng, list(made.content))
    if rng.random() < 0.5:
        made.content[key] = pick(rng, WRONG)
    else:
        made.content[key][int(rng.integers(len(made.content[key])))] = pick(rng, WRONG)
    return Spoilt((f"{key!r}", "categories", "lists no images", "annotation ", "has "))


def polygon_short(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 0, 3)
    count = int(rng.integers(0, 6))
    record["segmentation"][-1] = rng.uniform(0, 20, count).tolist()
    return Spoilt(names, refused=len(record["segmentation"]) == 1)  # else a stray part


def polygon_values(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 0, 3)
    part = record["segmentation"][-1]
    bad = (math.nan, math.inf, -math.inf, 1e300, -1e9, 10**400, "3", None, [1], {}, 1e39, 2**70)
    part[int(rng.integers(len(part)))] = pick(rng, bad)
    return Spoilt(names, refused=True)


def polygon_outside(rng: Generator, made: Made) -> Spoilt:
    record, _ = annotation_of(rng, made, 0, 3)
    points = np.array(record["segmentation"][0]) + rng.uniform(-60, 60)
    record["segmentation"][0] = points.round(int(rng.integers(0, 4))).tolist()
    return Spoilt((), refused=False)


def polygon_knot(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 0, 3)
    corners = int(rng.integers(3, 40_000))
    record["segmentation"][0] = rng.choice([-400.0, 400.0], 2 * corners).tolist()
    return Spoilt(names, refused=None if corners < 10_000 else True)


def rle_truncated(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 1, 4)
    counts = record["segmentation"]["counts"]
    place = int(rng.integers(0, len(counts)))
    letters = "".join(chr(int(code)) for code in rng.integers(1, 300, 3))
    changed = (counts[:place], counts[:place] + letters, letters + counts, counts + "0", counts * 9)
    record["segmentation"]["counts"] = pick(rng, changed)
    return Spoilt(names)


def rle_size(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 1, 2, 4, 5)
    height, width = record["segmentation"]["size"]
    sizes = ([height + 1, width], [10**9, 10**9], [-height, -width], [height], [], None, "20",
             [height, width, 1], [0, 0], [math.nan, width], [str(height), width], {}, [[], []],
             [2**32 + height, width])  # fmt: skip
    record["segmentation"]["size"] = pick(rng, sizes)
    return Spoilt(names, refused=True)


def rle_counts(rng: Generator, made: Made) -> Spoilt:
    record, names = annotation_of(rng, made, 2, 5)
    counts = record["segmentation"]["counts"]
    place = int(rng.integers(len(counts)))
    bad = (-1, 2**31, 2**32 + 5, 2**40, 2**64, 2**70, 1.5, math.nan, "4", None, [], True)
    shapes = (
        [*counts[:place], pick(rng, bad), *counts[place + 1 :]],
        [], [-1, sum(counts) + 1], [2**32, *counts], [0] * 50 + [1], None, 7, {}, "~" * 40, "0" * 9,
        "P" * 3000 + "0", [2**31, 2**31, sum(counts)],
    )  # fmt: skip
    record["segmentation"]["counts"] = pick(rng, shapes)
    return Spoilt(names)


def duplicated(rng: Generator, made: Made) -> Spoilt:
    key = pick(rng, list(made.content))
    first, second = rng.choice(len(made.content[key]), 2, replace=False)
    made.content[key][second]["id"] = made.content[key][first]["id"]
    return Spoilt(("used twice", "annotation "), refused=key != "annotations")


def categories_wrong(rng: Generator, made: Made) -> Spoilt:
    which = int(rng.integers(4))
    if which == 0:
        made.content["categories"].pop(int(rng.integers(2)))
    elif which == 1:
        made.content["categories"].clear()
    elif which == 2:
        made.content["categories"][0]["name"] = pick(rng, ("", [], {}, "a\nb", "\x1b[2J", None))
    else:
        record, _ = annotation_of(rng, made, *range(6))
        record["category_id"] = pick(rng, (0, -3, 4, "3", 3.0, None, [3], 10**20))
    return Spoilt(("annotation ", "categories", "category "), refused=True)


def declared_size(rng: Generator, made: Made) -> Spoilt:
    image = pick(rng, made.content["images"])
    image.pop("void", None)
    made.content["annotations"] = []
    side = pick(rng, (0, -5, 1, 10**6, 10**9, 2**31, 2**32, 2**62, 10**19, 20_000, 4_000_000))
    image[pick(rng, ("width", "height"))] = side
    if rng.random() < 0.3:
        image["width"] = image["height"] = side
    return Spoilt((f"image {image['id']}",), refused=True)


def void_wrong(rng: Generator, made: Made) -> Spoilt:
    image = made.content["images"][0]
    image["void"] = pick(rng, [each for each in WRONG if each is not None])
    return Spoilt(("image 0",), refused=True)


def broken_bytes(rng: Generator, data: bytes) -> bytes:
    """Returns a file cut short, empty, with changed bytes, or of another type."""
    which = int(rng.integers(8))
    if which < 2:
        return data[: int(rng.integers(len(data)))]
    if which == 2:
        return b""
    if which == 3:
        return rng.bytes(int(rng.integers(1, 3000)))
    if which == 4:
        return pick(rng, [*NOT_IMAGES, bomb(20_000, 20_000), bomb(2**31 - 1, 1)])
    spoilt = bytearray(data)
    for place in rng.integers(0, len(data), 1 + int(rng.integers(40))):
        spoilt[place] = int(rng.integers(256))
    return bytes(spoilt)


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG whose header declares a large image, with a single row of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        mark = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + mark

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = zlib.compress(bytes(1 + (min(width, 10**6) + 7) // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def image_broken(rng: Generator, made: Made) -> Spoilt:
    name = pick(rng, sorted(made.files))
    made.files[name] = broken_bytes(rng, made.files[name])
    return Spoilt((Path(name).name,))


def image_kind(rng: Generator, made: Made) -> Spoilt:
    """Another mode, depth or file type under the old name; the size is right."""
    name, size = "train/0.png", SIZES[0]
    kind, mode = pick(rng, IMAGE_KINDS)
    if mode == "I;16":
        with io.BytesIO() as file:
            deep = rng.integers(0, 2 ** int(rng.integers(1, 17)), size).astype(np.uint16)
            Image.fromarray(deep).save(file, kind)
            made.files[name] = file.getvalue()
    else:
        made.files[name] = image_bytes(size, kind, mode)
    return Spoilt((), refused=False)


def image_no_numbers(rng: Generator, made: Made) -> Spoilt:
    values = rng.uniform(-1, 1, SIZES[0]).astype(np.float32)
    values[0, 0] = pick(rng, (math.nan, math.inf, -math.inf))
    with io.BytesIO() as file:
        Image.fromarray(values).save(file, "TIFF")
        made.files["train/0.png"] = file.getvalue()
    return Spoilt(("0.png",), refused=True)


def image_turned(rng: Generator, made: Made) -> Spoilt:
    """Every EXIF orientation, with annotations of the image as displayed or as stored."""
    turn, displayed = int(rng.integers(0, 10)), bool(rng.integers(2))
    exif = Image.Exif()
    exif[0x0112] = turn
    height, width = SIZES[0]
    stored = (width, height) if turn in (5, 6, 7, 8) and displayed else (height, width)
    kind = pick(rng, ("PNG", "JPEG", "WEBP", "TIFF"))
    made.files["train/0.png"] = image_bytes(stored, kind, exif=exif)
    return Spoilt(("0.png",), refused=turn in (5, 6, 7, 8) and not displayed)


def image_wide(rng: Generator, made: Made) -> Spoilt:
    size = int(rng.integers(1, 9)), 20_000
    size = size if rng.integers(2) else size[::-1]
    made.files["train/0.png"] = image_bytes(size)
    made.content["images"][0] |= {"height": size[0], "width": size[1], "void": None}
    made.content["annotations"] = made.content["annotations"][2:]
    far = [0, 0, size[1], 0, size[1], size[0], 0, size[0]]
    made.content["annotations"].append(
        {"id": 99, "image_id": 0, "category_id": 3, "segmentation": [far]}
    )
    return Spoilt((), refused=False)


def paths(rng: Generator, made: Made) -> Spoilt:
    """Names that are odd but valid, and names that lead out of the folder."""
    image, data = made.content["images"][0], made.files.pop("train/0.png")
    made.files["outside.png"] = data  # beside the image folder
    if rng.integers(2):
        image["file_name"] = pick(rng, ODD_NAMES)
        made.files[f"train/{image['file_name']}"] = data
        return Spoilt((), refused=False)
    image["file_name"] = pick(rng, NAMES_THAT_LEAD_AWAY)
    return Spoilt(("image 0", "images are not in", "cannot be read"), refused=True)


def links(rng: Generator, made: Made) -> Spoilt:
    """Links instead of an image; links to an image are followed anywhere."""
    made.files["outside.png"] = made.files["train/0.png"]
    targets = ("../outside.png", "gone.png", "0.png", "/dev/zero", "/etc", "../train", "/dev/stdin")
    which = int(rng.integers(len(targets) + 2))
    if which < len(targets):
        made.links["train/0.png"] = targets[which]
        return Spoilt(("0.png", "image 0"), refused=which > 0)
    if which == len(targets):
        made.pipes.append("train/0.png")
        return Spoilt(("0.png",), refused=True)
    del made.files["train/0.png"]
    made.files["train/0.png/inside.txt"] = b"a folder with the name of an image"
    return Spoilt(("0.png",), refused=True)


def json_text(rng: Generator, made: Made) -> Spoilt:
    text = json.dumps(made.content)
    made.content = None
    place = int(rng.integers(len(text)))
    odd = (text[:place], text[:place] + chr(int(rng.integers(32, 1000))) + text[place + 1 :], "",
           "null", "[" * 100_000, '{"a":' * 100_000, text.replace("18", "9" * 5000), f"[{text}]",
           text.replace("4,", "NaN,"), text.replace('"id"', '"id": 5, "id"'), text + text,
           text.replace("12.5", "1e999"), text.replace("20", "2e1"),
           text.replace("{", "[{", 3))  # fmt: skip
    raw = pick(rng, odd).encode(pick(rng, ("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    if rng.random() < 0.2:
        raw = raw[:place] + rng.bytes(3) + raw[place + 1 :]
    made.files[JSON] = raw
    return Spoilt(("instances_train.json",))


def voc_map(rng: Generator, made: Made) -> Spoilt:
    part = pick(rng, ("SegmentationClass", "SegmentationObject"))
    name = f"VOC2012/{part}/b.png"
    size = SIZES[1]
    which = int(rng.integers(5))
    if which == 0:
        made.files[name] = broken_bytes(rng, made.files[name])
    elif which == 1:
        made.files[name] = map_bytes(rng.integers(0, 256, size).astype(np.uint8))
    elif which == 2:
        indices = np.zeros(size, np.uint8)
        made.files[name] = map_bytes(indices, pick(rng, ("RGB", "RGBA", "1", "I;16", "L", "LA")))
    elif which == 3:
        other = (size[0] + int(rng.integers(1, 3)), size[1])
        made.files[name] = map_bytes(np.ones(other, np.uint8))
    else:
        del made.files[name]
    return Spoilt(("b.png", "b.jpg", "lists b", "classes"))


def voc_list(rng: Generator, made: Made) -> Spoilt:
    made.files["VOC2012/JPEGImages/../outside.jpg"] = made.files["VOC2012/JPEGImages/a.jpg"]
    lines = ("../outside", "/etc/hostname", "..", "gone", "a", "", "虾", "x" * 400, "a/b", "\0",
             "..\\a", "\x1b[31m", "a.jpg", "b c d e")  # fmt: skip
    names = [pick(rng, lines) for _ in range(int(rng.integers(0, 4)))]
    raw = "\n".join(names).encode() + (b"\xff\xfe" if rng.random() < 0.1 else b"")
    made.files["VOC2012/ImageSets/Segmentation/train.txt"] = raw
    return Spoilt(("train.txt",))


def sbd_file(rng: Generator, made: Made) -> Spoilt:
    which, name = int(rng.integers(3)), "inst/b.mat"
    if which == 0:
        made.files[name] = broken_bytes(rng, made.files[name])
    elif which == 1:
        size = SIZES[1]
        things = (np.ones(size), np.full(size, math.nan), np.zeros((0, 0)), "text", 3,
                  np.full(size, -1, np.int16), np.full(size, 200, np.uint8),
                  np.ones(5, int))  # fmt: skip
        made.files[name] = mat_bytes(pick(rng, things), pick(rng, ([9], [], [0], [99], "x", [1.5])))
    else:
        made.files["train.txt"] = pick(rng, (b"a\n../b\n", b"/etc/hostname\n", b"a\ngone\n", b"\n"))
    return Spoilt(("b.mat", "b.jpg", "gone.mat", "train.txt", "inst holds no image"))


Spoil = Callable[[Generator, Made], Spoilt]
KINDS: dict[str, tuple[Callable[[], Made], Spoil]] = {
    "a field gone": (coco_set, field_gone),
    "a field of the wrong type, negative, huge": (coco_set, field_wrong),
    "a list or a record of the wrong type": (coco_set, list_wrong),
    "a polygon of 0 to 5 numbers": (coco_set, polygon_short),
    "a polygon with NaN, infinite, huge, no numbers": (coco_set, polygon_values),
    "a polygon outside the image": (coco_set, polygon_outside),
    "a polygon of thousands of long edges": (coco_set, polygon_knot),
    "RLE text cut short, with other letters": (coco_set, rle_truncated),
    "RLE of another size": (coco_set, rle_size),
    "RLE with absurd counts": (coco_set, rle_counts),
    "ids used twice": (coco_set, duplicated),
    "categories missing, misnamed": (coco_set, categories_wrong),
    "a declared size of any number": (coco_set, declared_size),
    "a void region of the wrong type": (coco_set, void_wrong),
    "an image cut short, empty, other bytes, a bomb": (coco_set, image_broken),
    "CMYK, 16 bits, other kinds and endings": (coco_set, image_kind),
    "an image with NaN": (coco_set, image_no_numbers),
    "EXIF rotation": (coco_set, image_turned),
    "20,000 pixels wide or high": (coco_set, image_wide),
    "paths: .., absolute, unicode, spaces": (coco_set, paths),
    "links, pipes and folders for images": (coco_set, links),
    "json text cut short, nested, recoded": (coco_set, json_text),
    "VOC maps": (voc_set, voc_map),
    "VOC lists": (voc_set, voc_list),
    "VOC images and maps, other bytes": (voc_set, image_broken),
    "SBD files and lists": (sbd_set, sbd_file),
}


# --------------------------------------------------------------------------------- trying them


def write_case(kind: str, seed: int, folder: Path) -> tuple[dict, Spoilt]:
    """Writes a spoilt set; returns the keywords to open it with, and what is expected."""
    base, spoil = KINDS[kind]
    made = base()
    spoilt = spoil(np.random.default_rng([seed, *kind.encode()]), made)
    made.write(folder)
    return {"data": folder, "cache": folder / "cache"}, spoilt


def attempt(kind: str, seed: int, folder: Path) -> Outcome:
    """Runs one case, strictly and then with bad records left out."""
    keywords, spoilt = write_case(kind, seed, folder)
    try:
        with limited(SECONDS):
            message, _ = walk(keywords, skip_bad=False)
            complaint = judge(message, folder, spoilt)
            if not complaint:
                later, bad = walk(keywords, skip_bad=True)
                complaint = judge_skipping(message, later, bad)
    except Exception as error:
        complaint, message = f"{type(error).__name__}: {error}", None
    state = "fault" if complaint else "works" if message is None else "refused"
    return Outcome(kind, seed, state, complaint or message or "")


def walk(keywords: dict, skip_bad: bool) -> tuple[str | None, int]:
    """Opens a set and reads all of it as training and evaluation do.

    Returns the error message or None, and the number of records that were left out.
    """
    dataset = None
    try:
        dataset = open_datasets(**keywords, splits=("train",), skip_bad=skip_bad, progress=False)[
            "train"
        ]
        dataset.summary()
        dataset.ground_truth()
        steps = math.ceil(len(dataset) / 2)
        preset = TrainPreset(copy_paste=0.5)
        canvases = [(64, 64)]
        for packed in train_loader(
            dataset, preset, batch_size=2, stop_step=steps, canvases=canvases
        ):
            check(packed.to("cpu"), dataset)
        for packed in eval_loader(dataset, EvalPreset(48), batch_size=2):
            check(packed.to("cpu"), dataset)
        dataset.ground_truth()
    except InputError as error:
        return str(error), 0 if dataset is None else len(dataset.bad)
    return None, len(dataset.bad)


def check(batch: Batch, dataset: CocoDataset) -> None:
    """Raises AssertionError for an invalid batch."""
    assert torch.isfinite(batch.images).all() and 0 <= batch.images.min() <= batch.images.max() <= 1
    for target in batch.targets:
        assert target["masks"].shape[0] == len(target["labels"])
        assert target["masks"].flatten(1).any(1).all() if len(target["labels"]) else True
        assert all(0 <= label < len(dataset.categories) for label in target["labels"].tolist())


def judge(message: str | None, folder: Path, spoilt: Spoilt) -> str:
    """Returns what is wrong with the result of a case; empty if nothing is."""
    if message is None:
        return "it should have been refused" if spoilt.refused else ""
    if spoilt.refused is False:
        return f"it should work: {message}"
    if not message.isprintable() or len(message) > 4000:
        return f"not one line: {message[:300]!r}"
    if str(folder) not in message or not any(name in message for name in spoilt.names):
        return f"names not the file, or none of {spoilt.names}: {message}"
    return "" if ": " in message else f"an error without a fix: {message}"


def judge_skipping(strictly: str | None, message: str | None, bad: int) -> str:
    if strictly is None and (message or bad):
        return f"works, but leaves out {bad} records: {message}"
    if strictly is not None and not message and not bad:
        return f"refused ({strictly}), but nothing is left out"
    return ""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError after `seconds`; numerical warnings raise as well."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)  # about crowds
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_all(cases: Sequence[tuple[str, int]], scratch: Path) -> list[Outcome]:
    """Runs several cases, each in a temporary folder."""
    outcomes = []
    for kind, seed in cases:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            outcomes.append(attempt(kind, seed, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def peak_megabytes() -> float:
    """Returns the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def try_and_measure(cases: Sequence[tuple[str, int]], scratch: Path) -> tuple[list[Outcome], float]:
    before = peak_megabytes()
    return try_all(cases, scratch), peak_megabytes() - before


def report(scratch: Path, thorough: bool) -> Iterator[Row]:
    """Yields a row for each kind; all run in one process, so that a crash is noticed."""
    each = 400 if thorough else 25
    cases = [(kind, seed) for kind in KINDS for seed in range(each)]
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            outcomes, growth = alone.submit(try_and_measure, cases, scratch).result()
    except BrokenProcessPool:
        yield Row("bad data", f"{len(cases)} sets", "the process crashed", False)
        return
    for kind in KINDS:
        states = Counter(one.state for one in outcomes if one.kind == kind)
        faults = [f"seed {one.seed}: {one.text}" for one in outcomes if one[::2] == (kind, "fault")]
        result = f"{states['works']} work, {states['refused']} end in one sentence"
        yield Row(f"bad data: {kind}", f"{each} sets", "; ".join([result, *faults[:3]]), not faults)
    grown = f"the process grew by {growth:.0f} MB at its highest"
    yield Row("bad data: memory", f"{len(cases)} sets", grown, growth < GROWTH)
