"""The built-in demo set: shrimp-pond scenes drawn by code, one drawing written in two layouts.

`python -m data.demo.pond --out DIR` writes the VOC2012 layout (whole animals, void borders) and
COCO-RLE json (animals, and the organs inside the shrimps).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from data.demo.animals import DRAW, paint_inks
from data.demo.drawing import (
    Part,
    Sprite,
    blob,
    curve,
    expose,
    noise,
    render,
    ribbon,
    smooth,
    unit_area,
)
from data.demo.files import SPLITS, Scene, command_line, stack, write_once, write_split

Size = tuple[int, int]  # height, width
Window = tuple[slice, slice]

ANIMALS = ("shrimp", "fish", "crab", "starfish", "shell")
ORGANS = ("heart", "stomach", "hepatopancreas", "intestine")
CATEGORIES = ANIMALS + ORGANS  # the VOC layout has the animals only
COCO_IDS = {name: place for place, name in enumerate(CATEGORIES, start=1)}
VOID = 255
TONES = (  # of sand and mud
    (0.76, 0.66, 0.48), (0.5, 0.44, 0.32), (0.36, 0.42, 0.36), (0.3, 0.45, 0.5), (0.6, 0.6, 0.56),
)  # fmt: skip

FREQUENCIES = (0.34, 0.18, 0.16, 0.16, 0.16)  # of ANIMALS: it is a shrimp pond
SWIMMERS = ("shrimp", "fish")  # seen from the side, so roughly level; others at any angle
COUNT = (2, 7)  # animals per image
AREA_MEDIAN, AREA_SPREAD = 0.085, 0.5  # log-normal, of an uncovered animal, as share of the image
AREA_DRAWN = (0.03, 0.3)
AREA_LEFT = 0.013  # an animal keeps at least this share of the image ...
SHAPE_LEFT = 0.55  # ... and of its own shape, whatever covers it
NEAR_ANOTHER = 0.35  # how often an animal is put next to one that is there, mostly overlapping it
ORGAN_PIXELS = 10  # an organ of which less is seen counts as hidden
DRAWING = 2  # raise it whenever the same arguments begin to give other images


def draw_scene(seed: int | Sequence[int]) -> Scene:
    """Draws one image of about 240 x 320."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(228, 257)), int(rng.integers(304, 341))
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)])
    image = draw_ground(rng, size, light)
    placed = place_animals(rng, size, light)
    for _, sprite, corner in placed:
        paste(image, sprite, corner, light)
    image = draw_water(rng, image)
    animals = []
    for name, sprite, corner in placed:
        masks = {name: sprite.mask} | sprite.organs
        masks = {key: on_canvas(mask, corner, size) for key, mask in masks.items()}
        animals.append((name, masks.pop(name), masks))
    return Scene(image, stack(animals, ORGAN_PIXELS))


def draw_ground(rng: Generator, size: Size, light: np.ndarray) -> np.ndarray:
    """Sand or mud with pebbles and weeds, float32 [H,W,3] in 0..1."""
    chosen = rng.integers(0, len(TONES), 2)
    first, second = (np.array(TONES[i]) * rng.uniform(0.75, 1.1) for i in chosen)
    waves = 0.5 + 0.5 * noise(rng, size, 110) + 0.2 * noise(rng, size, 30)
    grain = 1 + 0.09 * noise(rng, size, 10) + 0.1 * noise(rng, size, 2)
    image = first + (second - first) * np.clip(waves, 0, 1)[..., None]
    image *= grain[..., None]
    clutter = [draw_weed(rng) for _ in range(rng.integers(0, 9))]
    clutter += [draw_pebble(rng) for _ in range(rng.integers(5, 16))]
    spread = [
        replace(part, outline=part.outline + rng.uniform((0, 0), size[::-1])) for part in clutter
    ]
    sprite = render(rng, spread, 1.0, 0.0, light)
    paste(image, sprite, np.subtract(size, sprite.mask.shape) // 2, light)
    return image


def draw_pebble(rng: Generator) -> Part:
    """A stone, in pixels around the origin."""
    radius = rng.uniform(2, 10)
    stone = blob(rng, (0, 0), (radius, radius * rng.uniform(0.6, 1)), rng.uniform(0, 3))
    return Part(stone, rng.uniform(0.25, 0.75) * rng.uniform(0.85, 1.1, 3))


def draw_weed(rng: Generator) -> Part:
    """A leaf of a weed, in pixels, grown upwards from the origin."""
    tall, lean = rng.uniform(30, 95), rng.uniform(-30, 30, 2)
    line = curve((0, 0), (-lean[0], -0.5 * tall), (lean[0] + lean[1], -tall))
    green = np.array([0.25, 0.4, 0.16]) * rng.uniform(0.5, 1.3, 3)
    return Part(ribbon(line, (3, rng.uniform(5, 9), 1)), green)


def draw_water(rng: Generator, image: np.ndarray) -> np.ndarray:
    """Lays bubbles, haze, and what `expose` adds over the image.

    A bubble is a bright ring with a gleam inside, too thin to count as covering anything.
    """
    for _ in range(rng.integers(0, 9)):
        radius, box = rng.uniform(2, 6), 10
        row, column = (int(rng.integers(box, n - box)) for n in image.shape[:2])
        y, x = np.mgrid[-box:box, -box:box].astype(np.float32)
        gleam = np.exp(-((np.hypot(x, y) - radius) ** 2))
        gleam += np.exp(-((x + radius / 3) ** 2) - (y + radius / 3) ** 2)
        patch = image[row - box : row + box, column - box : column + box]
        patch += 0.35 * gleam[..., None] * (1 - patch)
    haze = np.array([0.35, 0.48, 0.45], np.float32) * np.float32(rng.uniform(0.7, 1.3))
    image = image + np.float32(rng.uniform(0.0, 0.22)) * (haze - image)
    return expose(rng, image)


def place_animals(
    rng: Generator, size: Size, light: np.ndarray
) -> list[tuple[str, Sprite, np.ndarray]]:
    """Name, sprite and upper left corner (row, column) of the animals, from back to front."""
    wanted = int(rng.integers(COUNT[0], COUNT[1] + 1))
    placed: list[tuple[str, Sprite, np.ndarray]] = []
    shapes: list[np.ndarray] = []
    for _ in range(3 * wanted):
        name = str(rng.choice(ANIMALS, p=FREQUENCIES))
        parts = DRAW[name](rng, paint_inks(rng, name))
        share = np.clip(AREA_MEDIAN * np.exp(AREA_SPREAD * rng.normal()), *AREA_DRAWN)
        angle = rng.normal(0, 0.6) if name in SWIMMERS else rng.uniform(0, 2 * np.pi)
        scale = np.sqrt(share * np.prod(size) / unit_area(parts))
        sprite = render(rng, parts, scale, angle, light)
        corner = find_corner(rng, sprite, shapes, size)
        if corner is not None:
            placed.append((name, sprite, corner))
            shapes.append(on_canvas(sprite.mask, corner, size))
        if len(placed) == wanted:
            break
    return placed


def find_corner(
    rng: Generator, sprite: Sprite, shapes: list[np.ndarray], size: Size
) -> np.ndarray | None:
    """A place for the next animal above `shapes`, so that enough of all of them is seen."""
    full, extent = sprite.mask.sum(), np.array(sprite.mask.shape)
    least = AREA_LEFT * size[0] * size[1]
    near = bool(shapes) and rng.random() < NEAR_ANOTHER
    for _ in range(12):
        if near:
            other = shapes[rng.integers(len(shapes))]
            centre = np.array(np.nonzero(other)).mean(1)
            way, reach = rng.uniform(0, 2 * np.pi), 0.42 * (np.sqrt(full) + np.sqrt(other.sum()))
            centre = centre + rng.uniform(0.8, 1.4) * reach * np.array([np.sin(way), np.cos(way)])
        else:
            centre = rng.uniform(0, size)
        corner = (centre - extent / 2).astype(int)
        shape = on_canvas(sprite.mask, corner, size)
        if shape.sum() < 0.85 * full:
            continue
        stack = [*shapes, shape]
        left = [(under & ~np.any(stack[i + 1 :], axis=0)).sum() for i, under in enumerate(shapes)]
        bounds = [max(least, SHAPE_LEFT * under.sum()) for under in shapes]
        if shape.sum() > least and all(np.greater_equal(left, bounds)):
            return corner
    return None


def window(shape: Size, corner: np.ndarray, size: Size) -> tuple[Window, Window]:
    """Slices of the canvas and of a patch of `shape` that lie over one another."""
    canvas, patch = [], []
    for start, length, limit in zip(corner.tolist(), shape, size):
        first, last = max(start, 0), max(min(start + length, limit), max(start, 0))
        canvas.append(slice(first, last))
        patch.append(slice(first - start, last - start))
    return tuple(canvas), tuple(patch)


def on_canvas(mask: np.ndarray, corner: np.ndarray, size: Size) -> np.ndarray:
    """A patch's mask as a mask [H,W] of the image."""
    full = np.zeros(size, bool)
    canvas, patch = window(mask.shape, corner, size)
    full[canvas] = mask[patch]
    return full


def paste(image: np.ndarray, sprite: Sprite, corner: np.ndarray, shadow: np.ndarray) -> None:
    """Lays a sprite and its soft shadow, cast along `shadow` (x, y), on the image, in place."""
    size, reach = image.shape[:2], 5
    dark = 0.4 * smooth(np.pad(sprite.alpha, 2 * reach), 2)
    moved = corner - 2 * reach + np.round(reach * shadow[::-1]).astype(int)
    canvas, patch = window(dark.shape, moved, size)
    image[canvas] *= 1 - dark[patch][..., None]
    canvas, patch = window(sprite.mask.shape, corner, size)
    under, alpha = image[canvas], sprite.alpha[patch][..., None]
    under += alpha * (sprite.colour[patch] - under)


def voc_maps(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """SegmentationClass and SegmentationObject, uint8 [H,W]; 255: outlines, two pixels wide."""
    classes, instances = np.zeros((2, *scene.image.shape[:2]), np.uint8)
    animals = [item for item in scene.items if item.parent is None]
    for number, item in enumerate(animals, start=1):
        classes[item.mask] = 1 + ANIMALS.index(item.name)
        instances[item.mask] = number
    void = ndimage.maximum_filter(instances, 3) != ndimage.minimum_filter(instances, 3)
    classes[void] = instances[void] = VOID
    return classes, instances


def voc_palette() -> list[int]:
    """The colours of the VOC devkit: the bits of an index, dealt to red, green and blue in turn."""
    index, palette = np.arange(256), np.zeros((256, 3), int)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= (index >> (3 * level + channel) & 1) << (7 - level)
    return palette.ravel().tolist()


def write(folder: Path, train: int = 240, val: int = 60, seed: int = 0) -> Path:
    """Draws the demo set in both layouts, see `write_once`."""

    def write_all(empty: Path) -> None:
        voc, coco = empty / "VOCdevkit" / "VOC2012", empty / "coco" / "annotations"
        names = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
        images, *maps, lists = (voc / name for name in names)
        for place in (images, *maps, lists, coco):
            place.mkdir(parents=True)
        palette, drawn = voc_palette(), {"trainval": []}
        for split, count in zip(SPLITS, (train, val)):
            drawn[split] = []
            for name, scene in write_split(
                split, count, seed, draw_scene, images, coco, COCO_IDS, 90
            ):
                for place, labels in zip(maps, voc_maps(scene), strict=True):
                    png = Image.fromarray(labels, mode="P")
                    png.putpalette(palette)
                    png.save(place / f"{name}.png")
                drawn[split].append(name)
            drawn["trainval"] += drawn[split]
        for split, names in drawn.items():
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (voc / "classes.txt").write_text("".join(f"{name}\n" for name in ANIMALS))

    arguments = {"train": train, "val": val, "seed": seed, "drawing": DRAWING}
    return write_once(folder, arguments, write_all)


main = partial(command_line, write, 240, 60)

if __name__ == "__main__":
    sys.exit(main())
