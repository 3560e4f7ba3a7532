"""What the two demo sets share: the objects of a drawn image, and how a set is written.

Every image has its own generator, seeded by (seed, split, index): the same seed gives the same
images, however many there are. A set appears at once, when it is complete, and holds `demo.json`,
the arguments it was drawn with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import rle
from data.errors import InputError

SPLITS = ("train", "val")
MARK = "demo.json"


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
    """An image, uint8 [H,W,3], and its objects: from back to front, a shrimp before its organs."""

    image: np.ndarray
    items: tuple[Item, ...]


def stack(
    animals: Sequence[tuple[str, np.ndarray, dict[str, np.ndarray]]], least: int
) -> tuple[Item, ...]:
    """The objects of a scene from back to front, without organs of fewer than `least` pixels."""
    items: list[Item] = []
    for place, (name, shape, organs) in enumerate(animals):
        above = [other for _, other, _ in animals[place + 1 :]]
        free = ~np.any([np.zeros_like(shape), *above], axis=0)
        parent = len(items)
        items.append(Item(name, shape & free, shape))
        for organ, whole in organs.items():
            if (whole & free).sum() >= least:
                items.append(Item(organ, whole & free, whole, parent))
    return tuple(items)


def write_split(
    split: str,
    count: int,
    seed: int,
    draw_scene: Callable[[tuple[int, int, int]], Scene],
    images: Path,
    annotations: Path,
    ids: Mapping[str, int],
    quality: int,
) -> Iterator[tuple[str, Scene]]:
    """Draws the scenes of a split, and yields their names and scenes.

    Writes JPEG files into `images` and COCO json with compressed RLE into `annotations`; `ids` are
    those of the categories, by name.
    """
    content: dict[str, list[dict]] = {"images": []}
    content["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    content["annotations"] = records = []
    for index in tqdm(range(count), desc=f"drawing {split}", disable=None):
        scene = draw_scene((seed, SPLITS.index(split), index))
        name = f"{split}_{index:05d}"
        Image.fromarray(scene.image).save(images / f"{name}.jpg", quality=quality)
        height, width = scene.image.shape[:2]
        image = {"id": index + 1, "file_name": f"{name}.jpg", "width": width, "height": height}
        content["images"].append(image)
        masks = rle.encode(np.stack([item.mask for item in scene.items]))
        labels = [ids[item.name] for item in scene.items]
        records += rle.records(masks, labels, index + 1, len(records) + 1)
        yield name, scene
    (annotations / f"instances_{split}.json").write_text(json.dumps(content))


def write_once(
    folder: Path, arguments: dict[str, int | str], write_all: Callable[[Path], None]
) -> Path:
    """Lets `write_all` fill `folder`, and returns it; a finished set is used again.

    Raises:
        InputError: if the numbers are impossible or the folder holds something else.
    """
    folder = Path(folder)
    train, val, seed = (arguments[key] for key in (*SPLITS, "seed"))
    if min(train, val) < 1 or seed < 0:
        raise InputError(
            f"The demo set cannot have train={train}, val={val}, seed={seed}; "
            "ask for at least one image per split and a seed of 0 or more."
        )

    def is_finished() -> bool:
        try:
            return json.loads((folder / MARK).read_text()) == arguments
        except (OSError, ValueError):
            return False

    if is_finished():
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
        (temporary / MARK).write_text(json.dumps(arguments) + "\n")
        temporary.chmod(0o755)  # mkdtemp keeps others out
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and is_finished()):  # a second writer won
            raise
    return folder


def command_line(
    write: Callable[[Path, int, int, int], Path],
    train: int,
    val: int,
    arguments: Sequence[str] | None = None,
) -> int:
    """`python -m data.demo.NAME --out DIR ...`, with these default numbers of images."""
    program = f"python -m data.demo.{Path(sys.argv[0]).stem}"
    parser = argparse.ArgumentParser(prog=program, description="Draw a demo set.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the set")
    parser.add_argument("--train", type=int, default=train, help=f"images to train on ({train})")
    parser.add_argument("--val", type=int, default=val, help=f"images to evaluate on ({val})")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images (0)")
    options = parser.parse_args(arguments)
    try:
        print(write(options.out, options.train, options.val, options.seed))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
