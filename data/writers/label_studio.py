"""Label Studio: <split>.json to import, label_config.xml for the project, images in <split>.

An object of one polygon is a polygon in percent, any other a brush mask. If objects have scores,
all are predictions, which Label Studio shows to be corrected. Images are named as its local storage
serves them, with the folder of the set as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from data import rle
from data.writers import target
from data.writers.shapes import relative
from data.writers.target import Losses, Object, Splits, Wrap

NAME, TITLE, BY_STEM = "label-studio", "Label Studio json", False

WORD = 8  # bits of a value
SIZES = (3, 4, 8, 16)  # bits that the length of a block may take
KINDS = {"polygon": "PolygonLabels", "brush": "BrushLabels", "rectangle": "RectangleLabels"}


def image_path(split: str, name: str) -> str:
    return f"{split}/{name}"


def write(folder: Path, splits: Splits, lost: Losses, wrap: Wrap) -> None:
    target.note_equal_names(splits, lost)
    for split, content in splits.items():
        with open(target.with_parent(folder / f"{split}.json"), "w", encoding="utf-8") as file:
            mark = "["
            predicted = any("score" in one for one in content["annotations"])
            for image, objects in target.images_of(content, wrap):
                kept = target.drop_unsupported(image, objects, lost, boxes=False)
                file.write(f"{mark}\n{json.dumps(task(image, kept, split, predicted, lost))}")
                mark = ","
            file.write("\n]\n")
        names = [each["name"] for each in content["categories"]]
    lines = ["<View>", '  <Image name="image" value="$image"/>']
    for kind, tag in KINDS.items():
        lines.append(f'  <{tag} name="{kind}" toName="image">')
        lines += [f"    <Label value={quoteattr(name)}/>" for name in names]
        lines.append(f"  </{tag}>")
    lines.append("</View>\n")
    (folder / "label_config.xml").write_text("\n".join(lines), encoding="utf-8")


def task(
    image: dict, objects: list[Object], split: str, predicted: bool, lost: Losses
) -> dict[str, Any]:
    result = [region(one, lost) for one in objects]
    path = quote(image_path(split, image["file_name"]))
    record = {"id": image["id"], "data": {"image": f"/data/local-files/?d={path}"}}
    if not predicted:
        return record | {"annotations": [{"result": result, "was_cancelled": False}]}
    scores = [one.annotation["score"] for one in objects]
    about = {"model_version": "mobileinst", "score": float(np.mean(scores)) if scores else 0.0}
    return record | {"predictions": [about | {"result": result}]}


def region(one: Object, lost: Losses) -> dict[str, Any]:
    width, height = one.image["width"], one.image["height"]
    if len(one.parts) > 1:
        lost.note("objects of several polygons, which become brush masks", one.where)
    if one.is_box:
        left, top, right, bottom = one.box()
        kind, value = "rectangle", {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * (right - left) / width,
            "height": 100 * (bottom - top) / height,
            "rotation": 0,
        }  # fmt: skip
    elif len(one.parts) == 1:
        points = relative(one.parts[0], (width, height), 100.0)
        kind, value = "polygon", {"points": points.tolist(), "closed": True}
    else:
        inside, (left, top) = rle.decode_inside(one.mask())
        runs = rle.runs_at(inside.T, top, left, width, height)  # along rows
        kind, value = "brush", {"format": "rle", "rle": brush_bytes(runs)}
    found = {
        "id": str(one.annotation["id"]),
        "type": f"{kind}labels",
        "from_name": kind,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value | {f"{kind}labels": [one.label]},
    }
    return found | {"score": one.annotation["score"]} if "score" in one.annotation else found


def brush_bytes(runs: np.ndarray) -> list[int]:
    """Run lengths of pixels, background first -> the bytes of a brush.

    The bit stream is described in data/readers/label_studio.py.
    """
    lengths, values = 4 * runs, np.arange(len(runs)) % 2 * 255
    longest = 1 << SIZES[-1]
    blocks = -(-lengths // longest)
    values = np.repeat(values, blocks)
    times = np.full(len(values), longest)
    times[np.cumsum(blocks)[blocks > 0] - 1] = ((lengths - 1) % longest + 1)[blocks > 0]
    which = np.searchsorted([1 << size for size in SIZES], times)
    sizes = np.array(SIZES)[which]
    codes = (((4 + which) << sizes | times - 1) << WORD) | values
    head = [(int(lengths.sum()), 32), (WORD - 1, 5), *((size - 1, 4) for size in SIZES)]
    codes = np.concatenate(([code for code, _ in head], codes))
    counts = np.concatenate(([count for _, count in head], 3 + sizes + WORD))
    ends = np.cumsum(counts)
    shifts = np.repeat(ends, counts) - 1 - np.arange(ends[-1])
    bits = (np.repeat(codes, counts) >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tolist()
