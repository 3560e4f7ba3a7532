"""What is damaged in the records of a COCO file and its images; damage_formats.py has the rest."""

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image

from tests.stress.sets import (
    SIZES,
    WRONG,
    Expected,
    SmallSet,
    coco_set,
    image_bytes,
    pick,
)

IMAGE_KINDS = (  # file type and mode
    ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"),
    ("PNG", "1"), ("PNG", "I;16"), ("TIFF", "F"), ("TIFF", "I"), ("BMP", "RGB"), ("GIF", "P"),
    ("WEBP", "RGBA"), ("TIFF", "CMYK"), ("PPM", "RGB"), ("JPEG", "YCbCr"),
)  # fmt: skip


def any_record(rng: Generator, made: SmallSet) -> tuple[str, dict, tuple[str, ...]]:
    """Returns a list of the json, a record in it, and the names for the record in messages."""
    key = pick(rng, ("images", "annotations", "annotations", "categories"))
    number = int(rng.integers(len(made.content[key])))
    record = made.content[key][number]
    what = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    return key, record, (f"{what} {record['id']}", f"{what} number {number + 1}",
                         f"{what} id {record['id']}", f"a{'n' * (what == 'image')} {what} has",
                         *(() if key == "annotations" else ("annotation ", "categories"))
                         )  # fmt: skip


def annotation_of(rng: Generator, made: SmallSet, *places: int) -> tuple[dict, tuple[str, ...]]:
    record = made.content["annotations"][pick(rng, places)]
    return record, (f"annotation {record['id']} ",)


def field_gone(rng: Generator, made: SmallSet) -> Expected:
    _, record, names = any_record(rng, made)
    record.pop(pick(rng, list(record)))
    return Expected(names)


def field_wrong(rng: Generator, made: SmallSet) -> Expected:
    _, record, names = any_record(rng, made)
    record[pick(rng, list(record))] = pick(rng, WRONG)
    return Expected((*names, "images are not in", "used twice"))


def list_wrong(rng: Generator, made: SmallSet) -> Expected:
    key = pick(rng, list(made.content))
    if rng.random() < 0.5:
        made.content[key] = pick(rng, WRONG)
    else:
        made.content[key][int(rng.integers(len(made.content[key])))] = pick(rng, WRONG)
    return Expected((f"{key!r}", "categories", "lists no images", "annotation ", "has "))


def polygon_short(rng: Generator, made: SmallSet) -> Expected:
    record, names = annotation_of(rng, made, 0, 3)
    count = int(rng.integers(0, 6))
    record["segmentation"][-1] = rng.uniform(0, 20, count).tolist()
    alone = len(record["segmentation"]) == 1  # else a stray part
    return Expected(names, refused=alone and (count > 0 or "bbox" not in record))  # a box without


def polygon_values(rng: Generator, made: SmallSet) -> Expected:
    record, names = annotation_of(rng, made, 0, 3)
    part = record["segmentation"][-1]
    bad = (math.nan, math.inf, -math.inf, 1e300, -1e9, 10**400, "3", None, [1], {}, 1e39, 2**70)
    part[int(rng.integers(len(part)))] = pick(rng, bad)
    return Expected(names, refused=True)


def polygon_outside(rng: Generator, made: SmallSet) -> Expected:
    record, _ = annotation_of(rng, made, 0, 3)
    points = np.array(record["segmentation"][0]) + rng.uniform(-60, 60)
    record["segmentation"][0] = points.round(int(rng.integers(0, 4))).tolist()
    return Expected((), refused=False)


def rle_truncated(rng: Generator, made: SmallSet) -> Expected:
    record, names = annotation_of(rng, made, 1, 4)
    counts = record["segmentation"]["counts"]
    place = int(rng.integers(0, len(counts)))
    letters = "".join(chr(int(code)) for code in rng.integers(1, 300, 3))
    changed = (counts[:place], counts[:place] + letters, letters + counts, counts + "0", counts * 9)
    record["segmentation"]["counts"] = pick(rng, changed)
    return Expected(names)


def rle_size(rng: Generator, made: SmallSet) -> Expected:
    record, names = annotation_of(rng, made, 1, 2, 4, 5)
    height, width = record["segmentation"]["size"]
    sizes = ([height + 1, width], [10**9, 10**9], [-height, -width], [height], [], None, "20",
             [height, width, 1], [0, 0], [math.nan, width], [str(height), width], {}, [[], []],
             [2**32 + height, width])  # fmt: skip
    record["segmentation"]["size"] = pick(rng, sizes)
    return Expected(names, refused=True)


def rle_counts(rng: Generator, made: SmallSet) -> Expected:
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
    return Expected(names)


def duplicated(rng: Generator, made: SmallSet) -> Expected:
    key = pick(rng, list(made.content))
    first, second = rng.choice(len(made.content[key]), 2, replace=False)
    made.content[key][second]["id"] = made.content[key][first]["id"]
    return Expected(("used twice", "annotation "), refused=key != "annotations")


def categories_wrong(rng: Generator, made: SmallSet) -> Expected:
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
    return Expected(("annotation ", "categories", "category "), refused=True)


def declared_size(rng: Generator, made: SmallSet) -> Expected:
    image = pick(rng, made.content["images"])
    image.pop("void", None)
    made.content["annotations"] = []
    side = pick(rng, (0, -5, 1, 10**6, 10**9, 2**31, 2**32, 2**62, 10**19, 20_000, 4_000_000))
    image[pick(rng, ("width", "height"))] = side
    if rng.random() < 0.3:
        image["width"] = image["height"] = side
    return Expected((f"image {image['id']}",), refused=True)


def void_wrong(rng: Generator, made: SmallSet) -> Expected:
    image = made.content["images"][0]
    image["void"] = pick(rng, [each for each in WRONG if each is not None])
    return Expected(("image 0",), refused=True)


def image_kind(rng: Generator, made: SmallSet) -> Expected:
    """Another mode, depth or file type under the old name; the size is right."""
    name, size = "train/ma.png", SIZES[0]
    kind, mode = pick(rng, IMAGE_KINDS)
    if mode == "I;16":
        with io.BytesIO() as file:
            deep = rng.integers(0, 2 ** int(rng.integers(1, 17)), size).astype(np.uint16)
            Image.fromarray(deep).save(file, kind)
            made.files[name] = file.getvalue()
    else:
        made.files[name] = image_bytes(size, kind, mode)
    return Expected((), refused=False)


def image_no_numbers(rng: Generator, made: SmallSet) -> Expected:
    values = rng.uniform(-1, 1, SIZES[0]).astype(np.float32)
    values[0, 0] = pick(rng, (math.nan, math.inf, -math.inf))
    with io.BytesIO() as file:
        Image.fromarray(values).save(file, "TIFF")
        made.files["train/ma.png"] = file.getvalue()
    return Expected(("ma.png",), refused=True)


def image_turned(rng: Generator, made: SmallSet) -> Expected:
    """Every EXIF orientation, with annotations of the image as displayed or as stored."""
    turn, displayed = int(rng.integers(0, 10)), bool(rng.integers(2))
    exif = Image.Exif()
    exif[0x0112] = turn
    height, width = SIZES[0]
    stored = (width, height) if turn in (5, 6, 7, 8) and displayed else (height, width)
    kind = pick(rng, ("PNG", "JPEG", "WEBP", "TIFF"))
    made.files["train/ma.png"] = image_bytes(stored, kind, exif=exif)
    return Expected(("ma.png",), refused=turn in (5, 6, 7, 8) and not displayed)


def image_wide(rng: Generator, made: SmallSet) -> Expected:
    size = int(rng.integers(1, 9)), 20_000
    size = size if rng.integers(2) else size[::-1]
    made.files["train/ma.png"] = image_bytes(size)
    made.content["images"][0] |= {"height": size[0], "width": size[1], "void": None}
    made.content["annotations"] = made.content["annotations"][2:]
    far = [0, 0, size[1], 0, size[1], size[0], 0, size[0]]
    made.content["annotations"].append(
        {"id": 99, "image_id": 0, "category_id": 3, "segmentation": [far]}
    )
    return Expected((), refused=False)


Damage = Callable[[Generator, SmallSet], Expected]
RECORDS: dict[str, tuple[Callable[[], SmallSet], Damage]] = {
    "a field gone": (coco_set, field_gone),
    "a field of the wrong type, negative, huge": (coco_set, field_wrong),
    "a list or a record of the wrong type": (coco_set, list_wrong),
    "a polygon of 0 to 5 numbers": (coco_set, polygon_short),
    "a polygon with NaN, infinite, huge, no numbers": (coco_set, polygon_values),
    "a polygon outside the image": (coco_set, polygon_outside),
    "RLE text cut short, with other letters": (coco_set, rle_truncated),
    "RLE of another size": (coco_set, rle_size),
    "RLE with absurd counts": (coco_set, rle_counts),
    "ids used twice": (coco_set, duplicated),
    "categories missing, misnamed": (coco_set, categories_wrong),
    "a declared size of any number": (coco_set, declared_size),
    "a void region of the wrong type": (coco_set, void_wrong),
    "CMYK, 16 bits, other kinds and endings": (coco_set, image_kind),
    "an image with NaN": (coco_set, image_no_numbers),
    "EXIF rotation": (coco_set, image_turned),
    "20,000 pixels wide or high": (coco_set, image_wide),
}
