"""What a shrimp lies on while it is photographed: a tray, a net, a palm, or the water it swims in.

Every ground is an image, float32 [H,W,3] in 0..1. Everything here is our own choice.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from data.demo.drawing import blob, curve, lay, mix, noise, ribbon, smooth, soft, tone

TRAYS = ((0.82, 0.83, 0.8), (0.55, 0.68, 0.78), (0.2, 0.22, 0.25), (0.3, 0.42, 0.36))
SKINS = ((0.86, 0.66, 0.53), (0.74, 0.52, 0.4), (0.5, 0.33, 0.24), (0.9, 0.74, 0.64))
WATERS = ((0.22, 0.42, 0.4), (0.35, 0.4, 0.25), (0.12, 0.25, 0.33), (0.55, 0.6, 0.52))
NETS = ((0.15, 0.3, 0.25), (0.75, 0.75, 0.68), (0.12, 0.13, 0.15), (0.2, 0.3, 0.5))
Size = tuple[int, int]  # height, width


def draw_ground(rng: Generator, size: Size) -> np.ndarray:
    """One of the grounds, with crumbs on it, somewhat out of focus."""
    ground = GROUNDS[rng.integers(len(GROUNDS))](rng, size).astype(np.float32)
    scatter_crumbs(rng, ground)
    if rng.random() < 0.5:
        ground = np.stack([smooth(channel, 1) for channel in np.moveaxis(ground, -1, 0)], -1)
    return ground


def tray(rng: Generator, size: Size) -> np.ndarray:
    """Smooth plastic, scratched and wet; often its wall is in the image."""
    base = pick(rng, TRAYS)
    shade = 1 + 0.12 * noise(rng, size, 90) + 0.02 * noise(rng, size, 2)
    image = base * shade[..., None]
    starts, ways = rng.uniform(0, size[::-1], (6, 2)), rng.normal(0, 70, (6, 2))
    scratches = [
        ribbon(curve(start, start + way / 2 + rng.normal(0, 6, 2), start + way), 0.8)
        for start, way in zip(starts, ways)
    ]
    lay(image, mix(base, np.ones(3), 0.6), 0.35 * soft(scratches, size))
    add_drops(image, scatter(rng, rng.integers(0, 12), (2, 8), size))
    if rng.random() < 0.5:
        beyond = across(rng, size) - rng.uniform(0.28, 0.5)
        lay(image, base * rng.uniform(0.5, 0.8), 0.5 + 0.5 * np.tanh(45 * beyond))
    return image


def net(rng: Generator, size: Size) -> np.ndarray:
    """Knotted threads that cross over something dark or bright, pulled out of square."""
    below = pick(rng, WATERS) * (1 + 0.3 * noise(rng, size, 60))[..., None]
    thread = pick(rng, NETS) * (1 + 0.15 * noise(rng, size, 3))[..., None]
    cell, wide = rng.uniform(8, 18), rng.uniform(1.0, 2.0)
    turn, skew = rng.uniform(0, np.pi), rng.uniform(1.1, 2.0)
    opacity = np.zeros(size, np.float32)
    for angle in (turn, turn + skew):
        place = along(angle, size) + 0.3 * cell * noise(rng, size, 70)
        nearest = np.abs((place / cell) % 1 - 0.5) * cell
        opacity = np.maximum(opacity, np.exp(-((nearest / wide) ** 2)))
    image = below * (1 - 0.4 * np.roll(opacity, (2, 2), (0, 1)))[..., None]
    lay(image, thread, 0.95 * opacity)
    return image


def palm(rng: Generator, size: Size) -> np.ndarray:
    """Skin: fingers side by side, or the palm with its lines."""
    skin = pick(rng, SKINS)
    blush = skin * (0.95, 0.72, 0.7)
    mottled = 0.3 + 0.4 * noise(rng, size, 25) + 0.2 * noise(rng, size, 7)
    image = mix(skin, blush, np.clip(mottled, 0, 1)[..., None])
    angle = rng.uniform(0, np.pi)
    fine = noise(rng, size, 2) * noise(rng, size, 5)
    image *= (1 + 0.1 * fine)[..., None]
    if rng.random() < 0.5:
        finger = rng.uniform(70, 110)
        place = along(angle, size) + 8 * noise(rng, size, 120)
        round_ = np.abs(((place / finger + rng.random()) % 1) * 2 - 1)  # 0 on top, 1 in the gap
        image *= (1.05 - 0.75 * round_**6)[..., None]
        image *= (1 - 0.15 * round_**2)[..., None]
    folds = []
    for _ in range(rng.integers(3, 7)):
        start, way = rng.uniform(0, size[::-1]), rng.normal(0, 110, 2)
        bow = start + way / 2 + rng.normal(0, 25, 2)
        folds.append(ribbon(curve(start, bow, start + way), (0.6, 2.2, 0.6)))
    lay(image, blush * 0.6, 0.5 * smooth(soft(folds, size), 1))
    return image


def water(rng: Generator, size: Size) -> np.ndarray:
    """Clear to murky water over a blurred bottom, with a web of light and floating specks."""
    near, far = pick(rng, WATERS), pick(rng, WATERS) * 0.7
    blend = 0.5 + across(rng, size) + 0.3 * noise(rng, size, 50)
    image = mix(near, far, np.clip(blend, 0, 1)[..., None])
    web = np.abs(noise(rng, size, 34) + 0.4 * noise(rng, size, 15))
    lay(image, np.ones(3), rng.uniform(0.0, 0.3) * np.exp(-((web / 0.08) ** 2)))
    add_drops(image, scatter(rng, rng.integers(0, 10), (1.5, 5), size))
    specks = scatter(rng, 25, (0.5, 1.5), size)
    lay(image, near * 1.6, 0.5 * soft(specks, size))
    return image


GROUNDS = (tray, net, palm, water)


def scatter_crumbs(rng: Generator, image: np.ndarray) -> None:
    """Feed, droppings and stains, in place, in the colours that organs have."""
    for outline in scatter(rng, rng.integers(0, 8), (2, 9), image.shape[:2]):
        area = soft([outline], image.shape[:2])
        image *= 1 - 0.3 * np.roll(area, (2, 1), (0, 1))[..., None]
        colour = tone(rng, (-0.03, 0.2), (0.3, 0.8), (0.12, 0.7))
        lay(image, colour, rng.uniform(0.5, 0.95) * smooth(area, 1))


def add_drops(image: np.ndarray, drops: list[np.ndarray]) -> None:
    """Drops or bubbles, in place: bright below, dark above, with a gleam."""
    size = image.shape[:2]
    area = soft(drops, size)
    rim = area - smooth(area, 1) * area
    lay(image, np.zeros(3), 0.35 * np.clip(rim, 0, 1))
    inner = soft([0.5 * drop + 0.5 * drop.mean(0) + (0, 1) for drop in drops], size)
    lay(image, np.ones(3), 0.15 * smooth(inner, 1) + 0.1 * area)
    spots = [0.15 * drop + 0.85 * drop.mean(0) - 0.25 * np.ptp(drop, axis=0) for drop in drops]
    lay(image, np.ones(3), 0.8 * soft(spots, size))


def scatter(rng: Generator, count: int, radii: tuple[float, float], size: Size) -> list[np.ndarray]:
    """Uneven discs, in pixels, anywhere in the image."""
    discs = []
    for _ in range(count):
        radius = rng.uniform(*radii)
        centre, stretch = rng.uniform(0, size[::-1]), rng.uniform(0.6, 1.0)
        discs.append(blob(rng, centre, (radius, radius * stretch), rng.uniform(0, 3)))
    return discs


def pick(rng: Generator, colours) -> np.ndarray:
    """One of the colours, somewhat lighter, darker, or more colourful."""
    return np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.1, 3)


def along(angle: float, size: Size) -> np.ndarray:
    """Each pixel's place [H,W] along a direction, in pixels from the upper left corner."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))


def across(rng: Generator, size: Size) -> np.ndarray:
    """A slope [H,W] in a random direction: 0 in the middle of the image, 1 a width away."""
    place = along(rng.uniform(0, 2 * np.pi), size)
    return (place - place[size[0] // 2, size[1] // 2]) / size[1]
