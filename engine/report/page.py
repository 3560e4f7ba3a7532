"""A self-contained HTML page: tables, histograms as SVG, images as data URIs, light and dark.

Every function returns HTML; what is no `Html` is escaped. Nothing is loaded from elsewhere, and
nothing runs on the page.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from data.errors import printable

MOST_BINS = 20
BAR_WIDTH, BARS_HEIGHT = 16, 110  # of a histogram, in units of its view box
QUALITY = 82  # of JPEGs

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2126; --faint: #626a74;
  --line: #dfe3e8; --panel: #f5f7f9; --bar: #3f7cc4; --good: #1a7f4b; --look: #9a6200;
  --bad: #c02b2b; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e9ed; --faint: #9aa3ad;
  --line: #2e343b; --panel: #1d2126; --bar: #6aa5ea; --good: #58c48b; --look: #e0a940;
  --bad: #ff7d76; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 4px; overflow-wrap: anywhere; }
p { margin: 4px 0 10px; max-width: 80ch; overflow-wrap: anywhere; }
.faint, figcaption, .note { color: var(--faint); }
.good { color: var(--good); } .look { color: var(--look); } .bad { color: var(--bad); }
.mark { font-weight: 600; white-space: nowrap; }
.verdict { border-left: 4px solid currentColor; background: var(--panel); padding: 10px 14px;
  margin: 12px 0; max-width: none; font-weight: 600; border-radius: 0 6px 6px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; }
.tile { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--faint); }
.left { text-align: left; } td.long { white-space: normal; min-width: 190px; max-width: 560px;
  overflow-wrap: anywhere; }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
.chart { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.chart svg { display: block; width: 100%; height: auto; }
.pictures img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.pictures figure { width: min-content; min-width: 120px; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 3px; overflow-wrap: anywhere; }
rect { fill: var(--bar); } text { fill: var(--faint); font-size: 11px; }
a { color: inherit; }
@media (max-width: 600px) { body { padding: 16px 12px 40px; } h1 { font-size: 20px; }
  .tile b { font-size: 19px; } th, td { padding-right: 10px; }
  td.left { white-space: normal; overflow-wrap: anywhere; min-width: 64px; }
  td.long { min-width: 130px; } }
"""


class Html(str):
    """Text that is HTML already."""


def escaped(value: object) -> Html:
    """Text or a number as HTML; None is empty."""
    if isinstance(value, Html):
        return value
    text = number(value) if type(value) in (int, float) else "" if value is None else str(value)
    return Html(html.escape(printable(text)))


def joined(parts: Iterable[object]) -> Html:
    return Html("\n".join(map(escaped, parts)))


def element(name: str, *parts: object, kind: str = "", **attributes: object) -> Html:
    """An element with its content; `kind` is its class."""
    given = ({"class": kind} if kind else {}) | attributes
    listed = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{listed}>{joined(parts)}</{name}>")


def page(title: str, *parts: object) -> str:
    """The whole file."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    )
    title = element("title", title)
    return f"{head}{title}<style>{STYLE}</style></head>\n<body>\n{joined(parts)}\n</body></html>\n"


def section(title: str, *parts: object, note: str = "") -> Html:
    """A heading, a faint sentence, content; empty without content."""
    parts = [part for part in parts if part]
    about = [element("p", note, kind="faint")] if note else []
    return joined([element("h2", title), *about, *parts]) if parts else Html()


def tiles(numbers: Sequence[tuple[object, str]]) -> Html:
    """Large numbers with what they count."""
    cells = [element("div", element("b", value), what, kind="tile") for value, what in numbers]
    return element("div", *cells, kind="tiles")


def table(header: Sequence[object], rows: Sequence[Sequence[object]], long: int = -1) -> Html:
    """Texts are flush left, numbers right; the column `long` is wrapped. Empty without rows."""
    if not rows:
        return Html()
    texts = [isinstance(value, str) for value in rows[0]]

    kinds = [("left" if text else "") + " long" * (i == long) for i, text in enumerate(texts)]

    def line(name: str, values: Sequence[object]) -> Html:
        cells = zip(values, kinds, strict=True)
        return element("tr", *(element(name, value, kind=kind) for value, kind in cells))

    body = element("tbody", *(line("td", row) for row in rows))
    return element(
        "div", element("table", element("thead", line("th", header)), body), kind="scroll"
    )


def histogram(values: Sequence[float] | np.ndarray, title: str, log: bool = False) -> Html:
    """Numbers as bars with their range below; `log`: bins of equal ratio. Empty without numbers."""
    values = np.asarray(values, float)
    if not len(values):
        return Html()
    edges = bin_edges(values, log)
    counts = np.histogram(values, edges)[0].tolist()
    width = BAR_WIDTH * len(counts)
    scale = 320 / width
    top, bars = max(counts), []
    for place, count in enumerate(counts):
        height = BARS_HEIGHT * count / top
        low, high = (number(edge) for edge in edges[place : place + 2])
        hint = element("title", f"{low} to {high}: {count:,}")
        bars.append(
            element(
                "rect", hint, x=f"{scale * BAR_WIDTH * place + 1:.1f}",
                y=f"{14 + BARS_HEIGHT - height:.1f}", width=f"{scale * BAR_WIDTH - 2:.1f}",
                height=f"{max(height, 1 if count else 0):.1f}", rx=1,
            )
        )  # fmt: skip
    base, middle = BARS_HEIGHT + 28, len(counts) // 2
    marks = {middle: (320 * middle / len(counts), "middle")} if len(counts) > 4 else {}
    marks |= {0: (0, "start"), len(counts): (320, "end")}
    edges[-1] = values.max()
    texts = [
        element("text", number(edges[place]), x=f"{x:.1f}", y=base, **{"text-anchor": anchor})
        for place, (x, anchor) in marks.items()
    ]
    texts.append(element("text", f"{top:,}", x=0, y=10))
    drawing = element(
        "svg", *bars, *texts, viewBox=f"0 0 320 {base + 4}", role="img", **{"aria-label": title}
    )  # fmt: skip
    about = f"{len(values):,} values, median {number(float(np.median(values)))}"
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


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def picture(image: Image.Image, caption: str = "") -> Html:
    """An image in the page, as JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    shown = element("img", src=f"data:image/jpeg;base64,{data}", alt=caption, width=image.width)
    return element("figure", Html(shown.removesuffix("</img>")), element("figcaption", caption))


def pictures(figures: Sequence[Html]) -> Html:
    return element("div", *figures, kind="pictures") if figures else Html()


def charts(figures: Sequence[Html]) -> Html:
    figures = [one for one in figures if one]
    return element("div", *figures, kind="charts") if figures else Html()
