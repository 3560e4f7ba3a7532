"""Small data sets before they are written, and bytes of images to make and to break them."""

import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from numpy.random import Generator
from PIL import Image

from data import rle

SIZES = ((20, 28), (24, 24), (18, 30))  # (h, w) of the images
NAMES = ("ma", "mb", "mc")  # of the images, as they occur in no other word
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
class SmallSet:
    """A set before it is written: its json, other files, links (name -> target)."""

    content: dict | None
    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        if self.content is not None:
            self.files[JSON] = json.dumps(self.content).encode()
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name, target in self.links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)


class Expected(NamedTuple):
    """What is expected of a damaged set.

    names: one of them must be in the message. refused: True must be refused, False must work, None
    either.
    """

    names: tuple[str, ...]
    refused: bool | None = None


def image_bytes(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", **keywords) -> bytes:
    pixels = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).convert(mode).save(file, kind, **keywords)
        return file.getvalue()


def coco_set() -> SmallSet:
    """Three images; polygons of one and two parts, both kinds of RLE, a crowd, void."""
    images, files = [], {}
    for number, (name, (height, width)) in enumerate(zip(NAMES, SIZES)):
        name += ".jpg" if number == 1 else ".png"
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
    return SmallSet({"images": images, "annotations": annotations, "categories": categories}, files)


def plain(mask: np.ndarray) -> dict:
    """Encodes a mask as uncompressed RLE."""
    flat = np.concatenate(([0], mask.T.ravel().astype(np.int8)))
    changes = np.concatenate((np.flatnonzero(np.diff(flat)), [mask.size]))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}


def voc_set() -> SmallSet:
    files = {"VOC2012/ImageSets/Segmentation/train.txt": "\n".join(NAMES).encode()}
    for name, size in zip(NAMES, SIZES):
        files[f"VOC2012/JPEGImages/{name}.jpg"] = image_bytes(size, "JPEG")
        indices = np.zeros(size, np.uint8)
        indices[3:12, 3:12], indices[12, 3:12] = 1, 255
        for part in ("SegmentationClass", "SegmentationObject"):
            files[f"VOC2012/{part}/{name}.png"] = map_bytes(indices)
    return SmallSet(None, files)


def map_bytes(indices: np.ndarray, mode: str = "P") -> bytes:
    with io.BytesIO() as file:
        image = Image.fromarray(indices)
        if mode == "P":
            image.putpalette([0, 0, 0, 128, 0, 0])
        (image if mode == "P" else image.convert(mode)).save(file, "PNG")
        return file.getvalue()


def sbd_set() -> SmallSet:
    files = {"train.txt": "\n".join(NAMES).encode()}
    for name, size in zip(NAMES, SIZES):
        files[f"img/{name}.jpg"] = image_bytes(size, "JPEG")
        files[f"inst/{name}.mat"] = mat_bytes(np.pad(np.ones((6, 6), np.uint8), 5), [9], size)
    return SmallSet(None, files)


def mat_bytes(objects: Any, categories: Any, size: tuple[int, int] | None = None) -> bytes:
    if size is not None:
        objects = np.resize(objects, size)
    with io.BytesIO() as file:
        inside = {"Segmentation": objects, "Categories": categories, "Boundaries": 0}
        scipy.io.savemat(file, {"GTinst": inside})
        return file.getvalue()


def pick(rng: Generator, things: Sequence) -> Any:
    return things[int(rng.integers(len(things)))]


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
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), 1 + int(rng.integers(40))):
        damaged[place] = int(rng.integers(256))
    return bytes(damaged)


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG whose header declares a large image, with a single row of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        mark = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + mark

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = zlib.compress(bytes(1 + (min(width, 10**6) + 7) // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
