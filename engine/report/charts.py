"""Charts of a page: lines over an axis and histograms, as SVG in the colours of the page.

Long lines are thinned, so that a chart has a few kB whatever the length of a run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from engine.report.page import Html, element, joined, number

WIDTH, HEIGHT = 460, 240  # of a chart, in units of its view box
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 20, 28  # margins around the axes
MOST_POINTS = 200  # of a line
MOST_DOTS = 40  # of a line whose points are marked
SMOOTHED = 40  # a smoothed line is a mean over this part of its points
LOG_RANGE = 5  # largest / smallest value from which an axis may be logarithmic
MOST_BINS = 20
BARS_HEIGHT = 110  # of a histogram, 320 wide


class Line(NamedTuple):
    """A line of a chart: what is not finite in `y` is a gap.

    hue: the number of its colour. noisy: drawn thin, under its running mean. value: for the legend.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    hue: int = 0
    dashed: bool = False
    points: bool = False
    noisy: bool = False
    value: str = ""


class Axis(NamedTuple):
    """A range in the units of the data, on a range in those of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: Sequence[float] | np.ndarray | float) -> np.ndarray:
        values = np.asarray(values, float)
        if self.log:
            low, high, values = math.log(self.low), math.log(self.high), np.log(values)
        else:
            low, high = self.low, self.high
        return self.start + (self.end - self.start) * (values - low) / (high - low)

    def ticks(self) -> list[float]:
        """At most seven round values."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for digits, step in ((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 5):
                powers = range(first - first % step, last + 1, step)
                found = [digit * 10.0**power for power in powers for digit in digits]
                found = [tick for tick in found if self.low <= tick <= self.high]
                if len(found) <= 6:
                    break
            return found
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 5))
        step *= next(each for each in (1, 2, 5, 10) if (self.high - self.low) / step / each <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [each * step for each in range(first, last + 1)]


def lines(
    title: str,
    shown: Sequence[Line],
    x: str,
    *,
    log: bool = False,
    unit: bool = False,
    mark: tuple[float, str] | None = None,
) -> Html:
    """A chart of lines with a legend; empty if no line has two points.

    Args:
        x: name of the horizontal axis.
        log: a logarithmic vertical axis where the values differ much.
        unit: both axes are 0..1.
        mark: a place on the horizontal axis, and its label.
    """
    drawn = []
    for line in shown:
        xs, ys = (np.asarray(values, float) for values in (line.x, line.y))
        kept = np.isfinite(xs) & np.isfinite(ys)
        drawn += [line._replace(x=xs[kept], y=ys[kept])] * bool(kept.any())
    if max((len(line.x) for line in drawn), default=0) < 2:
        return Html()
    across, upward = axes(drawn, log, unit)
    parts = [grid(across, upward, x)]
    if mark:  # a dotted upright line
        at = float(across.place(mark[0]))
        parts.append(element("path", d=f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}", kind="mark-line"))
        anchor = "start" if at < LEFT + 40 else "end" if at > WIDTH - 40 else "middle"
        parts.append(text(mark[1], at, TOP - 6, anchor))
    parts += [curve(line, across, upward) for line in drawn]
    size = f"0 0 {WIDTH} {HEIGHT}"
    drawing = element(
        "svg", *parts, kind="lines", viewBox=size, role="img", **{"aria-label": title}
    )
    below = [element("figcaption", "logarithmic scale")] if upward.log else []
    return element("figure", element("b", title), legend(drawn), drawing, *below, kind="chart")


def axes(shown: Sequence[Line], log: bool, unit: bool) -> tuple[Axis, Axis]:
    across, upward = (np.concatenate(values) for values in zip(*((one.x, one.y) for one in shown)))
    right, top, bottom = across.max(), upward.max(), upward.min()
    log = log and bottom > 0 and top > LOG_RANGE * bottom
    low, high = (bottom / 1.1, top * 1.1) if log else (min(bottom, 0), top * 1.05 if top > 0 else 1)
    if unit:
        right, low, high = 1, 0, 1
    return (
        Axis(0, right or 1, LEFT, WIDTH - RIGHT),
        Axis(low, high, HEIGHT - BOTTOM, TOP, log),
    )


def grid(across: Axis, upward: Axis, x: str) -> Html:
    """The lines behind a chart, and what they stand for."""
    parts, base = [], HEIGHT - BOTTOM
    for tick in upward.ticks():
        y = f"{float(upward.place(tick)):.1f}"
        parts.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", kind="grid"))
        parts.append(text(tick_text(tick), LEFT - 7, float(y) + 4, "end"))
    for tick in across.ticks():
        place = float(across.place(tick))
        anchor = "end" if place > WIDTH - RIGHT - 8 else "middle"
        parts.append(
            text(tick_text(tick), place + (6 if anchor == "end" else 0), base + 18, anchor)
        )
    parts.append(element("path", d=f"M{LEFT} {base}H{WIDTH - RIGHT}", kind="axis"))
    return joined([*parts, text(x, 0, base + 18)])


def text(content: str, x: float, y: float, anchor: str = "start") -> Html:
    return element("text", content, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor})


def tick_text(value: float) -> str:
    """0.0002 is 2e-4, 20000 is 20k."""
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}".replace("e-0", "e-") if abs(value) < 1e-4 else f"{value * 1e4:.2g}e-4"
    if abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.6g}"


def curve(line: Line, across: Axis, upward: Axis) -> Html:
    """The line, over what it smooths. Of a long one, few points are drawn."""
    kind, parts = f"line h{line.hue}" + " dashed" * line.dashed, []
    x, y = line.x, line.y
    if line.noisy:
        parts.append(path(*extremes(x, y), across, upward, f"{kind} thin"))
        y = ndimage.uniform_filter1d(y, max(3, len(y) // SMOOTHED), mode="nearest")
    places = np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int)
    x, y = x[places], y[places]
    parts.append(path(x, y, across, upward, kind))
    if line.points and len(x) <= MOST_DOTS or len(x) == 1:
        for place, value in zip(x, y):
            hint = element("title", f"{line.name} {value:.3f} at {number(float(place))}")
            where = {"cx": f"{across.place(place):.1f}", "cy": f"{upward.place(value):.1f}"}
            parts.append(element("circle", hint, r=3, kind=f"h{line.hue}", **where))
    return joined(parts)


def path(x: np.ndarray, y: np.ndarray, across: Axis, upward: Axis, kind: str) -> Html:
    places = zip(across.place(x).tolist(), upward.place(y).tolist())
    return element("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places), kind=kind)


def extremes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each of MOST_POINTS parts, in their order, so that no
    spike is lost.
    """
    parts = np.array_split(np.arange(len(x)), min(len(x), MOST_POINTS))
    ends = [sorted({part[y[part].argmin()], part[y[part].argmax()]}) for part in parts]
    kept = np.concatenate(ends).astype(int)
    return x[kept], y[kept]


def legend(shown: Sequence[Line]) -> Html:
    keys = []
    for line in shown:
        swatch = element("i", kind=f"h{line.hue}" + " dashed" * line.dashed)
        keys.append(element("span", swatch, line.name, element("b", line.value), kind="key"))
    return element("div", *keys, kind="legend")


def histogram(
    values: Sequence[float] | np.ndarray, title: str, log: bool = False, about: str = ""
) -> Html:
    """Numbers as bars with their range below; `log`: bins of equal ratio. Empty without numbers."""
    values = np.asarray(values, float)
    if not len(values):
        return Html()
    edges = bin_edges(values, log)
    counts = np.histogram(values, edges)[0].tolist()
    step, top, bars = 320 / len(counts), max(counts), []
    for place, count in enumerate(counts):
        height = BARS_HEIGHT * count / top
        low, high = (number(edge) for edge in edges[place : place + 2])
        hint = element("title", f"{low} to {high}: {count:,}")
        bars.append(
            element(
                "rect", hint, x=f"{step * place + 1:.1f}", y=f"{14 + BARS_HEIGHT - height:.1f}",
                width=f"{step - 2:.1f}", height=f"{max(height, 1 if count else 0):.1f}", rx=1,
            )
        )  # fmt: skip
    base, middle = BARS_HEIGHT + 28, len(counts) // 2
    marks = {middle: (320 * middle / len(counts), "middle")} if len(counts) > 4 else {}
    marks |= {0: (0, "start"), len(counts): (320, "end")}
    edges[-1] = values.max()
    texts = [text(number(edges[place]), x, base, anchor) for place, (x, anchor) in marks.items()]
    texts.append(text(f"{top:,}", 0, 10))
    size = f"0 0 320 {base + 4}"
    drawing = element("svg", *bars, *texts, viewBox=size, role="img", **{"aria-label": title})
    median = f"{len(values):,} values, median {number(float(np.median(values)))}"
    about = f"{about}; {median}" if about else median
    return element(
        "figure", element("b", title), drawing, element("figcaption", about), kind="chart"
    )


def bin_edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Whole numbers of few values get a bin each."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == values.round()).all())
    if log and low > 0 and high > 1.5 * low:
        return np.geomspace(low, high * (1 + 1e-9), MOST_BINS + 1)
    if whole:
        step = math.ceil((high - low + 1) / MOST_BINS)
        return np.arange(low, high + step + 1, step)
    return np.linspace(low, high if high > low else low + 1, MOST_BINS + 1)
