"""A shrimp under a macro lens: clear flesh, the organs in it, the shell and its gleam on top.

`Shrimp` is the shape alone, `paint` lays it over an image. Everything here is our own choice; the
organs follow the anatomy of a penaeid shrimp seen from the side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from data.demo.drawing import (
    SUPERSAMPLE,
    Spine,
    blob,
    cover,
    curve,
    ellipse,
    fill,
    lay,
    mix,
    noise,
    profile,
    ribbon,
    smooth,
    soft,
    tone,
)

ORGANS = ("eye", "stomach", "hepatopancreas", "heart", "intestine")

# Hue (0..1), saturation and value from which each animal draws its own. The organs lie
# in flesh, food and blood: their colours overlap, so place and shape separate them.
FLESH = ((0.02, 0.14), (0.05, 0.35), (0.5, 0.95))
STAINS = {
    "stomach": ((0.03, 0.2), (0.3, 0.8), (0.15, 0.5)),
    "hepatopancreas": ((0.02, 0.13), (0.45, 0.9), (0.22, 0.68)),
    "heart": ((-0.05, 0.06), (0.2, 0.65), (0.5, 0.9)),
    "intestine": ((0.02, 0.25), (0.3, 0.75), (0.12, 0.5)),
}
COVER = (0.58, 0.92)  # how much an organ hides of what is behind it
HALF_WIDTHS = (  # of the body, at places along its axis, both in body lengths
    (0, 0.025), (0.015, 0.046), (0.05, 0.07), (0.16, 0.1), (0.3, 0.107), (0.6, 0.085), (1, 0.03),
)  # fmt: skip
Width = Callable[[np.ndarray | float], np.ndarray]
THIN = 0.25  # a smaller thickness of the flesh counts as rim


@dataclass(frozen=True)
class Shrimp:
    """Outlines [P,2] of one animal in pixels of the image, x right, y down.

    The mask of the animal is `trunk`, `paddles` and the eye: `threads` (feelers, walking legs) are
    drawn but are too thin to be outlined by hand. `seams` are the rear edges of the shell's plates.
    """

    length: float
    trunk: list[np.ndarray]
    paddles: list[np.ndarray]
    threads: list[np.ndarray]
    seams: list[np.ndarray]
    organs: dict[str, np.ndarray]

    def moved(self, by: np.ndarray) -> Shrimp:
        """The same animal `by` pixels (x, y) farther right and down."""
        names = ("trunk", "paddles", "threads", "seams")
        lists = {name: [outline + by for outline in getattr(self, name)] for name in names}
        organs = {name: outline + by for name, outline in self.organs.items()}
        return Shrimp(self.length, organs=organs, **lists)

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """The animal's pixels, bool [H,W], in an image of `size` (height, width)."""
        return cover([*self.trunk, *self.paddles, self.organs["eye"]], size)

    def organ_masks(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The pixels of each organ, bool [H,W]; they lie inside the animal's, and on no other."""
        animal = self.mask(size)
        masks, free = {}, animal
        for name in ORGANS:
            masks[name] = cover([self.organs[name]], size) & free
            free = free & ~masks[name]
        return masks


def shrimp(rng: Generator, length: float, centre: np.ndarray, angle: float) -> Shrimp:
    """A shrimp in a random posture.

    Args:
        length: from the front of the carapace to the tail fan along the body, in pixels.
        centre: where the middle of the body lies, (x, y).
        angle: in radians, clockwise; the head looks to the left or, mirrored by chance, the right.
    """
    bend, stout = rng.uniform(0.1, 2.0), rng.uniform(0.98, 1.25)
    spine = Spine(lambda t: bend * np.clip((t - 0.3) / 0.7, 0, 1) ** 1.3 - 0.3 * bend)
    back = profile(*((t, stout * half) for t, half in HALF_WIDTHS))
    belly = profile(*((t, 0.95 * stout * half) for t, half in HALF_WIDTHS))
    rings = np.linspace(0.37, 0.98, 7) + np.append(rng.normal(0, 0.006, 6), 0)
    cos, sin, flip = np.cos(angle), np.sin(angle), rng.choice((-1.0, 1.0))
    turn = length * np.array([[flip * cos, flip * sin], [-sin, cos]])

    def placed(outline: np.ndarray) -> np.ndarray:
        return (outline - spine.at(0.45)) @ turn + centre

    plates = [spine.band(a - 0.03, b, back, belly, 0.02) for a, b in pairwise(rings)]
    plates += [spine.band(0.0, rings[0], back, belly, 0.03), spike(rng, spine, back)]
    return Shrimp(
        length,
        trunk=[placed(outline) for outline in plates],
        paddles=[placed(outline) for outline in paddles(rng, spine, belly, rings)],
        threads=[placed(outline) for outline in threads(rng, spine, belly)],
        seams=[placed(seam(spine, t, back, belly)) for t in rings[:-1]],
        organs={name: placed(outline) for name, outline in organs(rng, spine, stout).items()},
    )


def spike(rng: Generator, spine: Spine, back: Width) -> np.ndarray:
    """The toothed rostrum above the eyes."""
    reach, lift = rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.09)
    t = np.linspace(0.2, -reach, 15)
    upper = np.interp(t, (-reach, 0.2), (lift, back(0.2)))
    teeth = 0.006 * (np.arange(15) % 2)
    lower = spine.at(np.array([-reach, -0.02, 0.05]), np.array([lift - 0.008, 0.02, 0.0]))
    return np.concatenate([spine.at(t, upper + teeth), lower])


def seam(spine: Spine, t: float, back: Width, belly: Width) -> np.ndarray:
    """The rear edge of a plate, as a thin ribbon."""
    across = np.linspace(0.96, -0.96, 9)
    half = np.where(across > 0, back(t), belly(t))
    return ribbon(spine.at(t + 0.02 * (1 - across**2), half * across), (0.003, 0.01, 0.003))


def paddles(rng: Generator, spine: Spine, belly: Width, rings: np.ndarray) -> list[np.ndarray]:
    """Swimmerets below the abdomen, and the tail fan."""
    shapes = []
    for t in (rings[:-2] + rings[1:-1]) / 2:
        angle = spine.direction(t) + np.pi / 2 - rng.uniform(0.1, 0.8)
        foot = spine.at(t, -1.2 * belly(t))
        shapes.append(ellipse(foot, (rng.uniform(0.045, 0.065), 0.022), angle))
    wide = rng.uniform(0.5, 1.0)
    for spread in wide * np.array([-0.9, 0.9, -0.45, 0.45, 0.0]):
        angle = spine.direction(1.0) + spread
        lobe = spine.at(0.96) + 0.085 * np.array([np.cos(angle), np.sin(angle)])
        shapes.append(ellipse(lobe, (0.1, 0.033 if spread else 0.024), angle))
    return shapes


def threads(rng: Generator, spine: Spine, belly: Width) -> list[np.ndarray]:
    """Feelers at the head, walking legs below the carapace."""
    lines = []
    for reach in (0.75, 0.6, 0.3):
        start, lift = spine.at(0.0, -0.01), rng.uniform(-0.3, 0.4)
        bow, end = (-0.25, -lift), (rng.uniform(-0.5, 0.4), rng.uniform(-reach, reach))
        lines.append(ribbon(curve(start, start + bow, start + end), (0.012, 0.003)))
    stride = rng.uniform(-0.1, 0.1)
    for t in np.linspace(0.1, 0.33, 5):
        hip = spine.at(t, -0.9 * belly(t))
        knee = hip + (rng.uniform(-0.03, 0.03) + stride, rng.uniform(0.07, 0.11))
        foot = knee + (rng.uniform(-0.04, 0.06) - stride, rng.uniform(0.03, 0.1))
        lines.append(ribbon(curve(hip, knee, foot), (0.02, 0.008)))
    return lines


def organs(rng: Generator, spine: Spine, stout: float) -> dict[str, np.ndarray]:
    """The eye, three blobs in the carapace, and the gut along the back, under the names ORGANS."""
    shift = rng.normal(0, 0.007, (4, 2))
    swell = rng.uniform(0.85, 1.15, 4)
    places = ((0.03, 0.04), (0.12, 0.018), (0.225, -0.012), (0.315, 0.05))
    eye, stomach, gland, heart = (
        spine.at(t + along, stout * back + off) for (t, back), (along, off) in zip(places, shift)
    )
    t = np.linspace(0.3, rng.uniform(0.86, 0.95), 24)
    wave = rng.uniform(0.002, 0.008) * np.sin(t * rng.uniform(12, 30) + rng.uniform(0, 6))
    height = stout * np.interp(t, (0.3, 0.45, 0.7, 0.95), (0.0, 0.042, 0.035, 0.0)) + wave
    widths = rng.uniform(0.022, 0.036) * rng.uniform(0.75, 1.25, 6)
    return {
        "eye": ellipse(eye, np.array([0.036, 0.031]) * swell[0], rng.uniform(0, 3)),
        "stomach": blob(rng, stomach, np.array([0.045, 0.036]) * stout * swell[1], 0.2),
        "hepatopancreas": blob(rng, gland, np.array([0.08, 0.056]) * stout * swell[2], -0.15, 0.16),
        "heart": blob(rng, heart, np.array([0.042, 0.032]) * stout * swell[3], 0.3, 0.16),
        "intestine": ribbon(spine.at(t, height), widths),
    }


def paint(rng: Generator, image: np.ndarray, animal: Shrimp, light: np.ndarray) -> None:
    """Lays an animal over an image, float32 [H,W,3] in 0..1, in place, as light meets its layers.

    `light` [2] is the way (x, y) the light goes.
    """
    # Work on the part of the image, a view, that the animal and its shadow touch.
    outlines = np.concatenate([*animal.trunk, *animal.paddles, *animal.threads])
    margin, limits = 0.1 * animal.length, image.shape[1::-1]
    low = np.clip(outlines.min(0) - margin, 0, np.subtract(limits, 1)).astype(int)
    high = np.clip(outlines.max(0) + margin, low + 1, limits).astype(int)
    animal, image = animal.moved(-low), image[low[1] : high[1], low[0] : high[0]]

    length, size, flesh = animal.length, image.shape[:2], tone(rng, *FLESH)
    trunk = soft(animal.trunk, size)
    # How deep the flesh is, 0..1: a round body.
    depth = np.minimum(ndimage.distance_transform_edt(trunk > 0.5) / (0.085 * length), 1)
    thick = smooth(np.sqrt(1 - (1 - depth) ** 2).astype(np.float32), 1)
    # The shadow is faint, because light goes through the animal.
    whole = np.maximum(trunk, soft(animal.paddles, size))
    reach = np.round(0.03 * length * light[::-1])
    image *= 1 - 0.35 * ndimage.shift(smooth(whole, 0.02 * length), reach, order=0)[..., None]
    paint_limbs(rng, image, animal, flesh)
    # What is behind shines through, blurred and tinted; thick flesh is milky.
    behind = ndimage.uniform_filter(image, (7, 7, 0)) * mix(np.ones(3, np.float32), flesh, 0.5)
    haze = rng.uniform(0.35, 0.85) * (0.45 + 0.55 * thick)
    haze *= 1 + 0.15 * noise(rng, size, 14)
    lay(behind, flesh, haze)
    lay(image, behind, trunk)
    # Organs behind the shell: blurred at the edge, uneven inside.
    for name in ("intestine", "heart", "hepatopancreas", "stomach"):
        area = smooth(soft([animal.organs[name]], size) * trunk, 1)
        colour = tone(rng, *STAINS[name])
        colour = colour * (1 + 0.3 * noise(rng, size, 0.03 * length)[..., None])
        cloud = 1 + 0.25 * noise(rng, size, 0.06 * length)
        lay(image, colour, rng.uniform(*COVER) * area * cloud)
    paint_shell(rng, image, animal, trunk, flesh)
    paint_light(rng, image, length, trunk, thick, light)
    # The eye is a dark ball with a gleam.
    outline, radius = animal.organs["eye"], 0.008 * length
    lay(image, tone(rng, (0.0, 0.15), (0.1, 0.6), (0.03, 0.3)), 0.95 * soft([outline], size))
    spot = outline.mean(0) + rng.uniform(-0.012, 0.012, 2) * length
    lay(image, np.ones(3, np.float32), 0.9 * soft([ellipse(spot, (radius, radius))], size))


def paint_limbs(rng: Generator, image: np.ndarray, animal: Shrimp, flesh: np.ndarray) -> None:
    """Feelers, legs, swimmerets and tail fan: thin, so clear, with a darker rim."""
    size, dark = image.shape[:2], flesh * rng.uniform(0.3, 0.6)
    lay(image, dark, rng.uniform(0.4, 0.8) * soft(animal.threads, size))
    tip = tone(rng, (0.0, 0.14), (0.3, 0.8), (0.3, 0.8))
    inner = [0.82 * paddle + 0.18 * paddle.mean(0) for paddle in animal.paddles]
    layers = [shape for pair in zip(animal.paddles, inner) for shape in pair]
    rims = fill(layers, [255, 128] * len(inner), "L", 0, size).reduce(SUPERSAMPLE)
    rims = np.asarray(rims, np.float32) / 127.5  # 0 outside, 1 inside, 2 on a rim
    lay(image, mix(flesh, tip, 0.4), rng.uniform(0.4, 0.7) * np.minimum(rims, 1))
    lay(image, dark, 0.6 * np.maximum(rims - 1, 0))


def paint_shell(
    rng: Generator, image: np.ndarray, animal: Shrimp, trunk: np.ndarray, flesh: np.ndarray
) -> None:
    """The plates' edges, and specks of pigment, more of them in some places."""
    size = trunk.shape
    lay(image, flesh * 0.45, rng.uniform(0.25, 0.6) * soft(animal.seams, size))
    dots = noise(rng, size, rng.uniform(1.8, 3.0)) > rng.uniform(0.45, 0.8)
    where = np.clip(0.6 + noise(rng, size, 0.15 * animal.length), 0, 1)
    specks = smooth(dots.astype(np.float32), 1) * where * trunk
    lay(image, tone(rng, (-0.04, 0.1), (0.4, 0.9), (0.1, 0.45)), rng.uniform(0.2, 0.7) * specks)


def paint_light(
    rng: Generator, image: np.ndarray, length: float, trunk: np.ndarray, thick: np.ndarray, light
) -> None:
    """Shading, a bright rim, and the broken gleam of the lamp on a wet shell."""
    down, right = np.gradient(0.09 * length * smooth(thick, 0.015 * length))
    slope = right * np.float32(light[0]) + down * np.float32(light[1])
    image *= 1 - (0.25 * np.clip(slope, -1, 1) * trunk)[..., None]
    white = np.ones(3, np.float32)
    lay(image, white, rng.uniform(0.1, 0.35) * np.clip(1 - thick / THIN, 0, 1) * trunk)
    broken = np.clip(0.4 + noise(rng, trunk.shape, 0.08 * length), 0, 1)
    gleam = np.exp(-(((slope + 0.45) / 0.12) ** 2)) * broken
    lay(image, white, rng.uniform(0.3, 0.9) * gleam * trunk)
