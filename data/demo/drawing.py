"""Drawing with polygons: their geometry, brushes, and the one renderer that shades every animal.

Outlines are [P,2] (x right, y down), sizes (height, width). Everything here is our own choice.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

SUPERSAMPLE = 2  # polygons are painted at this multiple of the size, then reduced
ROUND = np.linspace(0, 2 * np.pi, 24, endpoint=False)  # the corners of every ellipse
Pair = Sequence[float]  # x, y


@dataclass(frozen=True)
class Part:
    """A filled polygon [P,2] (x right, y down) with an RGB colour 0..1; later parts lie on top."""

    outline: np.ndarray
    colour: np.ndarray
    height: float = 0.6  # relief 0..1: a step in it is shaded as an edge
    opacity: float = 1.0
    solid: bool = True  # False: drawn, but too thin to belong to the mask
    organ: str | None = None


@dataclass(frozen=True)
class Sprite:
    """A rendered animal: colour [h,w,3] and alpha [h,w] in 0..1, mask bool [h,w], organ masks."""

    colour: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray
    organs: dict[str, np.ndarray]


def ellipse(centre: Pair, radii: Pair, angle: float = 0.0) -> np.ndarray:
    """Polygon [24,2] of an ellipse whose first radius points along `angle`."""
    x, y = radii[0] * np.cos(ROUND), radii[1] * np.sin(ROUND)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], 1)


def blob(rng: Generator, centre: Pair, radii: Pair, angle: float, rough=0.12) -> np.ndarray:
    """An ellipse with an uneven outline [24,2]."""
    even = ellipse((0, 0), radii, angle)
    waves = [np.cos(k * ROUND + rng.uniform(0, 6.3)) / k for k in (2, 3, 4, 5)]
    return np.asarray(centre) + even * (1 + rough * np.sum(waves, 0))[:, None]


def ribbon(line: np.ndarray, widths: Sequence[float] | float) -> np.ndarray:
    """Polygon around a line [P,2] with full width `widths`, spread evenly along the line."""
    ends = np.atleast_1d(np.asarray(widths, float))
    half = np.interp(np.linspace(0, 1, len(line)), np.linspace(0, 1, len(ends)), ends) / 2
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.stack([-along[:, 1], along[:, 0]], 1) * half[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def curve(*points: Pair) -> np.ndarray:
    """A Bezier curve [14,2] with the given control points."""
    t = np.linspace(0, 1, 14)[:, None]
    level = [np.asarray(p, float) for p in points]
    while len(level) > 1:
        level = [(1 - t) * a + t * b for a, b in pairwise(level)]
    return level[0]


class Spine:
    """A bent axis of length 1, t = 0 at the head; `heading(t)` in radians, from +x towards +y."""

    def __init__(self, heading: Callable[[np.ndarray], np.ndarray]) -> None:
        self.t = np.linspace(0, 1, 101)
        self.heading = heading(self.t)
        steps = np.stack([np.cos(self.heading), np.sin(self.heading)], 1)[:-1] / 100
        self.points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])

    def direction(self, t: np.ndarray | float) -> np.ndarray:
        return np.interp(t, self.t, self.heading)

    def at(self, t: np.ndarray | float, back: np.ndarray | float = 0.0) -> np.ndarray:
        """Points [...,2] at `t`, straight on beyond the ends, `back` nearer to the back."""
        inside, angle = np.clip(t, 0, 1), self.direction(t)
        over = t - inside
        x = np.interp(inside, self.t, self.points[:, 0]) + over * np.cos(angle)
        y = np.interp(inside, self.t, self.points[:, 1]) + over * np.sin(angle)
        return np.stack([x + back * np.sin(angle), y - back * np.cos(angle)], -1)

    def band(self, start: float, stop: float, back, belly, bulge: float = 0.0) -> np.ndarray:
        """Polygon between `start` and `stop` with half widths `back(t)`, `belly(t)`; the rear
        bulges.
        """
        t = np.linspace(start, stop, 16)
        across = np.linspace(0.9, -0.9, 7)
        rear = np.where(across > 0, back(stop), belly(stop)) * across
        edge = self.at(stop + bulge * (1 - across**2), rear)
        return np.concatenate([self.at(t, back(t)), edge, self.at(t[::-1], -belly(t[::-1]))])


def profile(*knots: tuple[float, float]) -> Callable[[np.ndarray | float], np.ndarray]:
    """A half width that goes through `(t, width)` knots."""
    places, widths = zip(*knots, strict=True)
    return lambda t: np.interp(t, places, widths)


def mix(first: np.ndarray, second: Sequence[float], share: float) -> np.ndarray:
    """`share` of the second colour in the first."""
    return (1 - share) * first + share * np.asarray(second)


def noise(rng: Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise [H,W], about -1..1, with bumps of `cell` pixels."""
    grid = rng.uniform(-1, 1, [int(side / cell) + 3 for side in size]).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC))


def smooth(field: np.ndarray, radius: float) -> np.ndarray:
    """Two passes of a box filter: close to a Gaussian, equally fast for any radius."""
    size = 2 * max(1, round(radius)) + 1
    return ndimage.uniform_filter(ndimage.uniform_filter(field, size), size)


def tone(rng: Generator, *ranges: tuple[float, float]) -> np.ndarray:
    """RGB float32 [3] from ranges of hue, saturation and value, all in 0..1; hues go round."""
    hue, saturation, value = (rng.uniform(*each) for each in ranges)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def soft(outlines: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The share of each pixel that polygons cover, float32 [H,W]."""
    canvas = fill(outlines, [255] * len(outlines), "L", 0, size)
    return np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / 255


def cover(outlines: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The pixels, bool [H,W], of which polygons cover at least half."""
    return soft(outlines, size) > 0.5


def lay(image: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> None:
    """Lays a colour ([3] or [H,W,3]) over an image with an opacity [H,W], in place."""
    image += np.clip(opacity, 0, 1)[..., None] * (colour - image)


def expose(rng: Generator, image: np.ndarray) -> np.ndarray:
    """A photograph, uint8 [H,W,3], of an image, float32 0..1: lamp, colour cast, camera noise."""
    size = image.shape[:2]
    y, x = np.linspace(-1, 1, size[0])[:, None], np.linspace(-1, 1, size[1])
    slope = rng.uniform(-0.14, 0.14, 2)
    lamp = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.1) * (x**2 + y**2)
    ripples = 0.05 * noise(rng, size, 28)
    cast = rng.uniform(0.78, 1.16) * rng.uniform(0.93, 1.07, 3)
    image *= (lamp + ripples)[..., None].astype(np.float32) * cast.astype(np.float32)
    image += rng.uniform(0.004, 0.02) * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def fill(
    outlines: Sequence[np.ndarray], values: Sequence, mode: str, blank, size: tuple[int, int]
) -> Image.Image:
    """Paints polygons one over the other, at SUPERSAMPLE times `size`."""
    canvas = Image.new(mode, (size[1] * SUPERSAMPLE, size[0] * SUPERSAMPLE), blank)
    pen = ImageDraw.Draw(canvas)
    for outline, value in zip(outlines, values, strict=True):
        pen.polygon((outline * SUPERSAMPLE).ravel().tolist(), fill=value)
    return canvas


def pattern(rng: Generator, size: tuple[int, int], angle: float, length: float) -> np.ndarray:
    """Brightness factors [h,w]: plain, spotted or striped, with a fine grain, in any class."""
    kind, strength = rng.integers(3), rng.uniform(0.1, 0.28)
    field = 1 + 0.08 * noise(rng, size, 2.5)
    if kind == 1:
        field = field - strength * (noise(rng, size, max(3.0, length / 16)) > 0.35)
    elif kind == 2:
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        along = x * np.cos(angle) + y * np.sin(angle)
        along = along + 0.05 * length * noise(rng, size, 20)
        field = field + strength * np.sin(along * (2 * np.pi * rng.uniform(5, 9) / length))
    return field


def render(
    rng: Generator, parts: list[Part], scale: float, angle: float, light: np.ndarray
) -> Sprite:
    """Turns, scales, mirrors (by chance) and shades an animal.

    `scale` is in pixels per unit, `angle` in radians; `light` [2] is the way (x, y) the light goes.
    """
    cos, sin, flip = np.cos(angle), np.sin(angle), rng.choice((-1.0, 1.0))
    turn = scale * np.array([[flip * cos, flip * sin], [-sin, cos]])
    outlines = [part.outline @ turn for part in parts]
    corners = np.concatenate(outlines)
    margin = 4
    low = np.floor(corners.min(0)) - margin
    width, height = (int(n) for n in np.ceil(corners.max(0) - low) + margin)
    size = height, width
    outlines = [outline - low for outline in outlines]

    inks = np.array([(*part.colour, part.opacity) for part in parts])
    inks = [tuple(ink) for ink in (255 * np.clip(inks, 0, 1)).astype(int).tolist()]
    painted = fill(outlines, inks, "RGBA", (*inks[0][:3], 0), size).reduce(SUPERSAMPLE)
    painted = np.asarray(painted, np.float32) / 255
    heights = [int(255 * part.height) for part in parts]
    relief = fill(outlines, heights, "L", 0, size).reduce(SUPERSAMPLE)
    mask = cover([out for out, part in zip(outlines, parts) if part.solid], size)

    bulk, (right, down) = float(np.sqrt(mask.sum())), light.tolist()
    radius = bulk / 14  # of the rounding of the whole body; edges of parts are a pixel wide
    form = smooth(np.asarray(relief, np.float32), 1) / 255
    form += (0.55 + 0.45 * radius) * smooth(mask.astype(np.float32), radius)
    slope = np.gradient(form)
    shade = 1 - right * slope[1] - down * slope[0]
    shade = np.clip(shade, 0.5, 1.5) * pattern(rng, size, angle, 3 * bulk)
    colour = np.minimum(painted[..., :3] * shade[..., None], 1)

    organs = {part.organ: out for out, part in zip(outlines, parts) if part.organ}
    numbers = range(1, len(organs) + 1)
    seen = np.asarray(fill(list(organs.values()), numbers, "L", 0, size))
    seen = seen[::SUPERSAMPLE, ::SUPERSAMPLE]  # numbers cannot be averaged, so they are picked
    masks = {name: (seen == number) & mask for number, name in enumerate(organs, start=1)}
    return Sprite(colour, painted[..., 3], mask, masks)


def unit_area(parts: list[Part]) -> float:
    """Area of an animal's mask at scale 1, measured on a small drawing."""
    scale = 32
    outlines = [scale * part.outline for part in parts if part.solid]
    corners = np.concatenate(outlines)
    low, high = corners.min(0), corners.max(0)
    width, height = (int(n) + 1 for n in high - low)
    return float(cover([outline - low for outline in outlines], (height, width)).sum() / scale**2)
