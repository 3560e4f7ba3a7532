"""The animals of the pond set, each a list of polygons in its own coordinates.

Colours and patterns come from one source shared by the classes, so only shape separates them.
Everything here is our own choice.
"""

from __future__ import annotations

import colorsys
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from data.demo.drawing import Part, Spine, blob, curve, ellipse, mix, profile, ribbon


class Inks(NamedTuple):
    """The colours of one animal."""

    base: np.ndarray
    light: np.ndarray
    dark: np.ndarray


# Hue (0..1, centre and spread) and saturation that a class leans to. Neighbours overlap widely, and
# every second animal is of any colour: colour is a hint, as in nature, never an answer.
LEANINGS = {
    "shrimp": (0.06, 0.05, (0.3, 0.6)),
    "fish": (0.45, 0.15, (0.15, 0.45)),
    "crab": (0.00, 0.05, (0.3, 0.65)),
    "starfish": (0.12, 0.06, (0.25, 0.6)),
    "shell": (0.09, 0.08, (0.08, 0.3)),
}


def paint_inks(rng: Generator, animal: str) -> Inks:
    """Colours for one animal: near the leaning of its class, or any at all."""
    hue, spread, saturations = LEANINGS[animal]
    hue, saturation = rng.normal(hue, spread), rng.uniform(*saturations)
    if rng.random() < 0.5:
        hue, saturation = rng.uniform(-0.1, 0.65), rng.uniform(0.1, 0.6)
    base = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, rng.uniform(0.45, 0.9)))
    light = mix(base, (1.0, 0.97, 0.9), rng.uniform(0.3, 0.5))
    return Inks(base, light, base * rng.uniform(0.42, 0.58))


def shrimp(rng: Generator, inks: Inks) -> list[Part]:
    """Side view: antennae, legs, tail fan, six abdominal rings, carapace, four organs, eye."""
    bend, stout = rng.uniform(0.2, 2.7), rng.uniform(0.9, 1.15)
    spine = Spine(lambda t: bend * np.clip((t - 0.3) / 0.7, 0, 1) ** 1.2)
    half = profile((0, 0.035), (0.06, 0.066), (0.2, 0.1), (0.34, 0.105), (0.5, 0.092), (0.7, 0.074))
    tail = profile((0, 1), (0.7, 1), (0.9, 0.68), (1, 0.42))

    def back(t):
        return stout * half(t) * tail(t)

    def belly(t):
        return 0.92 * back(t)

    clear = rng.uniform(0.8, 0.95)  # the body is translucent: some of the ground shines through
    parts = []
    for reach in (0.6, 0.45):
        lift, start = rng.uniform(-0.1, 0.4), spine.at(0.01, 0.01)
        feeler = curve(start, start + (-0.3, -lift), start + (rng.uniform(-0.3, 0.5), -reach))
        parts.append(Part(ribbon(feeler, (0.013, 0.006)), inks.dark, solid=False))
    stride = rng.uniform(-0.08, 0.08)
    for t in np.linspace(0.1, 0.32, 5):
        hip = spine.at(t, -0.8 * belly(t))
        knee = hip + (rng.uniform(-0.03, 0.02) + stride, 0.11)
        leg = curve(hip, knee, knee + (rng.uniform(0.0, 0.06) - stride, 0.1))
        parts.append(Part(ribbon(leg, (0.034, 0.022)), mix(inks.base, inks.dark, 0.5), 0.3))
    rings = np.linspace(0.36, 0.97, 7)
    for t in (rings[:-2] + rings[1:-1]) / 2:
        angle = spine.direction(t) + np.pi / 2 - rng.uniform(0.1, 0.5)
        foot = ellipse(spine.at(t, -1.25 * belly(t)), (0.055, 0.024), angle)
        parts.append(Part(foot, mix(inks.base, inks.dark, 0.4), 0.3))
    for spread in (-0.75, 0.75, -0.38, 0.38, 0.0):
        angle = spine.direction(1.0) + spread
        lobe = spine.at(0.97) + 0.09 * np.array([np.cos(angle), np.sin(angle)])
        parts.append(Part(ellipse(lobe, (0.105, 0.036), angle), inks.dark, 0.4))
        parts.append(Part(ellipse(lobe, (0.09, 0.024), angle), inks.light, 0.5, clear))
    for start, stop in list(pairwise(rings))[::-1]:
        plate = mix(inks.base, inks.light, rng.uniform(0.0, 0.35))
        edge = spine.band(start - 0.03, stop + 0.006, back, belly, 0.02)
        inner = spine.band(start - 0.03, stop - 0.01, back, belly, 0.02)
        parts += [Part(edge, inks.dark, 0.3), Part(inner, plate, 0.75, clear)]
    shield = spine.band(0.0, 0.37, back, belly, 0.03)
    spike = np.array([spine.at(0.13, back(0.13)), spine.at(-0.13, 0.075), spine.at(0.0, 0.0)])
    parts.append(Part(spine.band(0.0, 0.38, back, belly, 0.03), inks.dark, 0.4))
    parts.append(Part(spike, mix(inks.base, inks.dark, 0.3), 0.6))
    parts.append(Part(shield, mix(inks.base, inks.light, 0.2), 0.85, clear))
    parts += shrimp_organs(rng, spine, inks, stout)
    parts.append(Part(ellipse(spine.at(0.035, 0.035), (0.027, 0.027)), np.full(3, 0.06), 0.9))
    parts.append(Part(ellipse(spine.at(0.03, 0.043), (0.008, 0.008)), np.full(3, 0.95), 0.9))
    return parts


def shrimp_organs(rng: Generator, spine: Spine, inks: Inks, stout: float) -> list[Part]:
    """The organs seen through the shell: a gut along the back, and three blobs in the carapace."""
    t = np.linspace(0.27, 0.94, 20)
    wave = 0.008 * np.sin(t * rng.uniform(15, 30))
    along = spine.at(t, stout * np.interp(t, (0.27, 0.45, 0.94), (0.02, 0.035, 0.0)) + wave)
    gland = blob(rng, spine.at(0.215, -0.012), (0.07, 0.047 * stout), 0.1)
    stomach = blob(rng, spine.at(0.115, 0.004), (0.04, 0.034 * stout), 0.0)
    heart = blob(rng, spine.at(0.31, 0.047 * stout), (0.036, 0.03 * stout), 0.2)
    strength = rng.uniform(0.7, 0.88)
    stained = (
        ("intestine", ribbon(along, 0.036), (0.2, 0.16, 0.1)),
        ("hepatopancreas", gland, (0.62, 0.33, 0.08)),
        ("stomach", stomach, (0.3, 0.24, 0.08)),
        ("heart", heart, (0.75, 0.16, 0.16)),
    )
    return [
        Part(outline, mix(inks.base, stain * rng.uniform(0.8, 1.2, 3), strength), 0.85, organ=name)
        for name, outline, stain in stained
    ]


def fish(rng: Generator, inks: Inks) -> list[Part]:
    """Side view: forked tail, back and belly fins, body with a pale belly, gill, eye."""
    sway, deep = rng.uniform(-0.6, 0.6), rng.uniform(0.14, 0.23)
    spine = Spine(lambda t: sway * np.sin(np.pi * (1.6 * t - 0.3)))
    half = profile(
        (0, 0.12), (0.05, 0.42), (0.15, 0.75), (0.32, 1), (0.5, 0.94), (0.75, 0.5), (0.95, 0.22)
    )

    def side(t):
        return deep * half(t)

    fin, edge = mix(inks.base, inks.dark, 0.4), mix(inks.base, inks.dark, 0.8)
    fork, wide = rng.uniform(0.06, 0.14), rng.uniform(0.13, 0.2)
    tail = [(0.92, 0.04), (1.2, wide), (1.2 - fork, 0.0), (1.18, -wide), (0.92, -0.04)]
    crest = [(0.28, 0.8 * deep), (0.4, 1.55 * deep), (0.55, 1.35 * deep), (0.74, 0.4 * deep)]
    keel = [(0.55, -0.7 * deep), (0.66, -1.35 * deep), (0.72, -1.1 * deep), (0.8, -0.3 * deep)]
    parts = [Part(spine.at(*np.array(knots).T), fin, 0.3, 0.95) for knots in (tail, crest, keel)]
    for lift in (-0.09, 0.0, 0.09):
        ray = spine.at(np.linspace(0.97, 1.12, 4), np.linspace(0.3, 1, 4) * lift)
        parts.append(Part(ribbon(ray, 0.012), edge, 0.3))
    t = np.linspace(0, 0.97, 30)
    body = np.concatenate([spine.at(t, side(t)), spine.at(t[::-1], -side(t[::-1]))])
    pale = np.concatenate([spine.at(t, -0.3 * side(t)), spine.at(t[::-1], -0.97 * side(t[::-1]))])
    parts += [Part(body, inks.base, 0.8), Part(pale, mix(inks.base, inks.light, 0.8), 0.8)]
    for start in np.arange(0.34, 0.86, 0.075):  # rows of scales
        across = np.linspace(-0.8, 0.8, 7)
        row = spine.at(start + 0.035 * across**2, across * side(start))
        parts.append(Part(ribbon(row, 0.008), mix(inks.base, inks.dark, 0.35), 0.7))
    gill = spine.at(
        0.25 + 0.035 * np.cos(np.linspace(-1.5, 1.5, 9)), np.linspace(-0.7, 0.7, 9) * deep
    )
    flap = spine.at(np.array([0.3, 0.44, 0.47, 0.4]), deep * np.array([-0.1, 0.05, -0.2, -0.4]))
    parts += [Part(ribbon(gill, 0.016), edge, 0.5), Part(flap, fin, 0.95)]
    mouth = spine.at(np.array([0.0, 0.05]), np.array([-0.02, -0.03]))
    parts.append(Part(ribbon(mouth, 0.012), edge))
    eye, size = spine.at(0.115, 0.28 * deep), rng.uniform(0.026, 0.036)
    parts.append(Part(ellipse(eye, (size, size)), np.array([0.93, 0.9, 0.8]), 0.9))
    parts.append(Part(ellipse(eye, (0.6 * size, 0.6 * size)), np.full(3, 0.05), 0.9))
    return parts


def crab(rng: Generator, inks: Inks) -> list[Part]:
    """From above, front towards -y: eight jointed legs, two claws, a broad shell, two eyes."""
    limb, joint = mix(inks.base, inks.dark, 0.25), mix(inks.base, inks.dark, 0.8)
    parts = []
    for side in (-1, 1):
        for angle in np.array([-0.22, 0.15, 0.5, 0.9]) + rng.normal(0, 0.05, 4):
            out = np.array([side * np.cos(angle), np.sin(angle)])
            down = np.array([0.0, 1.0])
            hip, knee = 0.36 * out, (0.82 + rng.uniform(-0.04, 0.04)) * out - 0.06 * down
            tip = knee + 0.24 * out + rng.uniform(0.14, 0.3) * down
            shin = ribbon(curve(knee, (knee + tip) / 2 + 0.04 * out, tip), (0.085, 0.03))
            parts.append(Part(shin, joint, 0.4))
            parts.append(Part(ribbon(np.linspace(hip, knee, 6), (0.12, 0.1)), limb, 0.6))
        parts += crab_claw(rng, inks, side)
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    round_x, round_y = np.cos(turn), np.sin(turn)
    x = 0.55 * np.sign(round_x) * np.abs(round_x) ** 0.8 * (1 - 0.22 * round_y)  # broader in front
    teeth = 1 + 0.035 * np.sign(np.sin(9 * turn)) * (round_y < 0)
    shell = np.stack([x * teeth, 0.4 * round_y * teeth], 1)
    for side in (-1, 1):
        stalk = np.array([[side * 0.13, -0.33], [side * 0.15, -0.44]])
        parts.append(Part(ribbon(stalk, 0.06), limb))
        parts.append(Part(ellipse(stalk[1], (0.055, 0.055)), np.full(3, 0.05), 0.9))
    parts += [Part(shell * 1.04, inks.dark, 0.5), Part(shell, inks.base, 0.85)]
    groove = curve((-0.25, -0.08), (-0.12, 0.16), (0.12, 0.16), (0.25, -0.08))
    parts.append(Part(ribbon(groove, 0.03), mix(inks.base, inks.dark, 0.6), 0.6))
    for x, y in rng.uniform((0.08, -0.25), (0.38, 0.22), (4, 2)):
        for side in (-1, 1):
            parts.append(Part(ellipse((side * x, y), (0.028, 0.028)), inks.light, 0.95))
    return parts


def crab_claw(rng: Generator, inks: Inks, side: int) -> list[Part]:
    """One arm with its pincer, opened by a random amount; `side` is -1 (left) or 1 (right)."""
    size, gape = rng.uniform(0.85, 1.2), rng.uniform(0.25, 0.6)
    mirror = np.array([side, 1.0])
    elbow, wrist = np.array([0.74, -0.42]), np.array([0.66, -0.62]) + rng.normal(0, 0.03, 2)
    arm = ribbon(curve((0.38, -0.2), elbow, wrist) * mirror, (0.14, 0.12))
    parts = [Part(arm, mix(inks.base, inks.dark, 0.3), 0.55)]
    angle = -np.pi / 2 - rng.uniform(0.1, 0.6)  # pincers lean towards the middle
    ahead = np.array([np.cos(angle), np.sin(angle)])
    palm = wrist + 0.1 * size * ahead
    for bow in (-1, 1):
        way = angle + bow * gape
        root = palm + 0.06 * size * np.array([np.cos(way), np.sin(way)])
        middle = root + 0.2 * size * np.array([np.cos(way), np.sin(way)])
        tip = palm + (0.38 * size) * ahead + 0.25 * (middle - palm)
        finger = ribbon(curve(root, middle, tip) * mirror, (0.14 * size, 0.03))
        parts.append(Part(finger, inks.dark if bow > 0 else mix(inks.base, inks.dark, 0.6), 0.6))
    parts.append(Part(ellipse(palm, (0.16 * size, 0.12 * size), angle) * mirror, inks.base, 0.8))
    return parts


def starfish(rng: Generator, inks: Inks) -> list[Part]:
    """From above: five tapering arms around a disc, each with a ridge of knobs."""
    wide = rng.uniform(0.36, 0.5)
    rims, arms, knobs = [], [], []
    for turn in np.arange(5) * 2 * np.pi / 5 + rng.normal(0, 0.08, 5):
        reach, lean = rng.uniform(0.85, 1.08), rng.normal(0, 0.22)
        ahead, aside = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        tip = reach * (np.cos(lean) * ahead + np.sin(lean) * aside)
        line = curve((0, 0), 0.5 * reach * ahead, tip)
        for layer, grow, ink, height in ((rims, 0.05, inks.dark, 0.4), (arms, 0, inks.base, 0.8)):
            widths = wide * np.array([1.15, 0.85, 0.55, 0.3]) + grow
            layer.append(Part(ribbon(line, widths), ink, height))
            layer.append(Part(ellipse(tip, (0.15 * wide + grow / 2,) * 2), ink, height))
        spots = [(spot, 0.032) for spot in line[2::2]]
        pairs = [(i, shift * wide * aside) for i in (5, 8) for shift in (-0.22, 0.22)]
        spots += [(line[i] + shift, 0.022) for i, shift in pairs]
        knobs += [Part(ellipse(spot, (size, size)), inks.light, 1.0) for spot, size in spots]
    disc = Part(ellipse((0, 0), (0.62 * wide, 0.62 * wide)), inks.base, 0.8)
    return [*rims, *arms, disc, *knobs, Part(ellipse((0, 0), (0.06, 0.06)), inks.light, 1.0)]


def shell(rng: Generator, inks: Inks) -> list[Part]:
    """A fan (scallop) or a spiral (snail), equally often."""
    return fan_shell(rng, inks) if rng.random() < 0.5 else spiral_shell(rng, inks)


def fan_shell(rng: Generator, inks: Inks) -> list[Part]:
    """Ribs that spread from a hinge with two ears, crossed by growth lines."""
    ribs, open_ = int(rng.integers(7, 12)), rng.uniform(1.05, 1.3)
    hinge = np.array([0.0, 0.55])
    ears = np.array([(-0.34, 0.42), (-0.3, 0.62), (0.3, 0.62), (0.34, 0.42), (0.0, 0.2)])
    parts = [Part(ears, mix(inks.base, inks.dark, 0.4), 0.4)]

    def rim(turn, share):
        reach = share * (1.15 - 0.22 * (turn / open_) ** 2)
        return hinge + np.stack([reach * np.sin(turn), -reach * np.cos(turn)], -1)

    edges = np.linspace(-open_, open_, ribs + 1)
    for left, right in pairwise(edges):
        turn = np.linspace(left, right, 9)
        bump = 1 + 0.05 * np.sin(np.linspace(0, np.pi, 9))
        wedge = np.concatenate([hinge[None], rim(turn, bump)])
        turn = np.linspace(0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, 9)
        inner = np.concatenate([hinge[None], rim(turn, 0.99 * bump)])
        parts += [Part(wedge, inks.dark, 0.4), Part(inner, mix(inks.base, inks.light, 0.4), 0.9)]
    for share in rng.uniform(0.5, 0.92, 3):
        line = ribbon(rim(np.linspace(-open_, open_, 30), share), rng.uniform(0.02, 0.06))
        parts.append(Part(line, mix(inks.base, inks.dark, 0.35), 0.7))
    return parts


def spiral_shell(rng: Generator, inks: Inks) -> list[Part]:
    """A tube that widens while it winds; discs from the centre outwards, then the mouth."""
    turns, growth = rng.uniform(2.3, 2.9), rng.uniform(0.15, 0.19)
    inner = 0.62 * np.exp(-growth * turns * 2 * np.pi)  # reach of the first disc
    parts = [Part(ellipse((0, 0), (inner, inner)), inks.dark, 0.3)]
    bands = rng.integers(3, 5)
    for step, turn in enumerate(np.linspace(0, turns * 2 * np.pi, int(turns * 20))):
        reach = 0.62 * np.exp(growth * (turn - turns * 2 * np.pi))
        centre = reach * np.array([np.cos(turn), np.sin(turn)])
        ink = inks.light if step % bands else inks.base
        parts.append(Part(ellipse(centre, (0.56 * reach, 0.56 * reach)), inks.dark, 0.3))
        parts.append(Part(ellipse(0.96 * centre, (0.5 * reach, 0.5 * reach)), ink, 0.85))
    end = parts[-1].outline.mean(0)
    angle = np.arctan2(end[1], end[0])
    ahead = end + 0.1 * np.array([-np.sin(angle), np.cos(angle)])
    parts.append(Part(ellipse(ahead, (0.34, 0.24), angle), inks.light, 0.9))
    mouth = ellipse(ahead + (ahead - end) * 0.3, (0.26, 0.16), angle)
    return [*parts, Part(mouth, inks.dark * 0.6, 0.2)]


DRAW = {"shrimp": shrimp, "fish": fish, "crab": crab, "starfish": starfish, "shell": shell}
