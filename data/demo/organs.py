"""The demo set of nested masks: shrimps under a macro lens and the organs inside them, drawn.

`python -m data.demo.organs --out DIR` writes COCO json with compressed RLE and the images. An
organ's pixels belong to its shrimp as well. The category `background` is declared and has no
object, as some annotation tools export it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from data.demo.drawing import expose
from data.demo.files import SPLITS, Scene, command_line, stack, write_once, write_split
from data.demo.grounds import draw_ground
from data.demo.shrimp import ORGANS, Shrimp, paint, shrimp

COCO_IDS = {name: place for place, name in enumerate(("background", "shrimp", *ORGANS))}
SIZE = (240, 320)  # height, width

COUNTS = (0.56, 0.3, 0.14)  # shares of images with one, two, three shrimps
LENGTHS = ((210, 320), (160, 230), (140, 180))  # of a body in pixels, by that number
SEEN = 0.75  # so much of an animal lies in the image ...
FREE = 0.8  # ... and of that, so much is not covered by other animals
TRIES = 40  # places tried before an image stays with fewer shrimps
ORGAN_PIXELS = 20  # an organ of which less is seen counts as hidden
DRAWING = 1  # raise it whenever the same arguments begin to give other images


def draw_scene(seed: int | Sequence[int] | Generator) -> Scene:
    """Draws one image of 240 x 320 with one to three shrimps."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)])
    image = draw_ground(rng, SIZE)
    animals = place_shrimps(rng)
    for animal, _ in animals:
        paint(rng, image, animal, light)
    shapes = [("shrimp", mask, animal.organ_masks(SIZE)) for animal, mask in animals]
    return Scene(expose(rng, image), stack(shapes, ORGAN_PIXELS))


def place_shrimps(rng: Generator) -> list[tuple[Shrimp, np.ndarray]]:
    """The shrimps of an image with their masks, from back to front; at least one."""
    count = int(rng.choice(len(COUNTS), p=COUNTS)) + 1
    height, width = SIZE
    placed: list[tuple[Shrimp, np.ndarray]] = []
    tries = 0
    while not placed or (len(placed) < count and tries < TRIES):
        tries += 1
        centre = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
        length, angle = rng.uniform(*LENGTHS[count - 1]), rng.normal(0, 0.5)  # roughly level
        animal = shrimp(rng, length, centre, angle)
        mask = animal.mask(SIZE)
        if fits(animal, mask, [other for _, other in placed]):
            placed.append((animal, mask))
    return placed


def fits(animal: Shrimp, mask: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether enough of an animal, and of those that it would cover, can be seen."""
    height, width = mask.shape
    whole = animal.moved(np.array([width, height])).mask((3 * height, 3 * width))
    if mask.sum() < SEEN * whole.sum():
        return False
    return all((mask & other).sum() <= (1 - FREE) * other.sum() for other in others)


def write(folder: Path, train: int = 160, val: int = 40, seed: int = 0) -> Path:
    """Draws the demo set, see `write_once`."""
    arguments = {"set": "organs", "train": train, "val": val, "seed": seed, "drawing": DRAWING}

    def write_all(empty: Path) -> None:
        (empty / "annotations").mkdir()
        for split, count in zip(SPLITS, (train, val)):
            (empty / split).mkdir()
            folders = (empty / split, empty / "annotations")
            for _ in write_split(split, count, seed, draw_scene, *folders, COCO_IDS, 92):
                pass

    return write_once(folder, arguments, write_all)


main = partial(command_line, write, 160, 40)

if __name__ == "__main__":
    sys.exit(main())
