"""What the two demo sets share: the objects of a drawn picture, and how a set is written.

A set appears at once, when it is complete, and holds `demo.json`, the arguments it was drawn with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import rle
from data.errors import InputError

SPLITS = ("train", "val")
_MARK = "demo.json"


@dataclass(frozen=True)
class Item:
    """One object of a scene: `mask` (what is seen) and `shape` (also where covered), bool [H,W].

    `parent` is None for an animal and the index of its shrimp in `Scene.items` for an organ.
    """

    name: str
    mask: np.ndarray
    shape: np.ndarray
    parent: int | None = None


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 [H,W,3], and its objects: from back to front, a shrimp before its organs."""

    image: np.ndarray
    items: tuple[Item, ...]


def coco_annotations(
    scene: Scene, ids: Mapping[str, int], image_id: int, first_id: int
) -> list[dict]:
    """COCO records of all objects of a scene, compressed RLE, ids from `first_id` on.

    `ids` are those of the categories, by name.
    """
    codes = rle.encode(np.stack([item.mask for item in scene.items]))
    areas, boxes = rle.area(codes).tolist(), rle.boxes(codes).tolist()
    return [
        {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": ids[item.name],
            "segmentation": rle.to_json(code),
            "area": int(area),
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }
        for offset, (item, code, area, (left, top, right, bottom)) in enumerate(
            zip(scene.items, codes, areas, boxes, strict=True)
        )
    ]


def write_coco(
    path: Path, images: list[dict], ids: Mapping[str, int], annotations: list[dict]
) -> None:
    """Write a COCO json; `ids` are those of the categories, by name."""
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(coco))


def write_once(
    folder: Path, arguments: dict[str, int | str], write_all: Callable[[Path], None]
) -> Path:
    """Let `write_all` fill `folder`, and return it; a finished set is used again.

    The set appears at once, when it is complete: it is drawn in a folder beside and then renamed.
    Raises InputError for impossible numbers and for a folder that holds something else.
    """
    folder = Path(folder)
    train, val, seed = (arguments[key] for key in (*SPLITS, "seed"))
    if min(train, val) < 1 or seed < 0:
        raise InputError(
            f"The demo set cannot have train={train}, val={val}, seed={seed}; "
            "ask for at least one picture per split and a seed of 0 or more."
        )
    if _holds(folder, arguments):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} already holds something other than the demo set with these arguments; "
            "remove it or name another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_all(temporary)
        (temporary / _MARK).write_text(json.dumps(arguments) + "\n")
        temporary.chmod(0o755)  # mkdtemp keeps others out
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and _holds(folder, arguments)):  # a second writer won
            raise
    return folder


def _holds(folder: Path, arguments: dict[str, int | str]) -> bool:
    """Whether `folder` is a finished set drawn with these arguments."""
    try:
        return json.loads((folder / _MARK).read_text()) == arguments
    except (OSError, ValueError):
        return False


def command_line(
    arguments: Sequence[str] | None,
    module: str,
    write: Callable[[Path, int, int, int], Path],
    train: int,
    val: int,
) -> int:
    """`python -m module --out DIR ...` for a demo set; exit code 2 for a user's mistake.

    `train` and `val` are the numbers of pictures where none are asked for.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Draw a demo set.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the set")
    parser.add_argument("--train", type=int, default=train, help=f"pictures to train on ({train})")
    parser.add_argument("--val", type=int, default=val, help=f"pictures to evaluate on ({val})")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures (0)")
    options = parser.parse_args(arguments)
    try:
        print(write(options.out, options.train, options.val, options.seed))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
