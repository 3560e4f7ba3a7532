"""A self-contained HTML page: tables, images as data URIs, light and dark. Charts: charts.py.

Every function returns HTML; what is no `Html` is escaped. Nothing is loaded from elsewhere, and
nothing runs on the page.
"""

import base64
import html
import io
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from PIL import Image

from data.errors import printable

QUALITY = 82  # of JPEGs
TAG = re.compile("<[^>]*>")
NUMBER = re.compile(r"-|[-+]?[\d.,]+%?")
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


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


def section(title: str, *parts: object, note: str = "", **attributes: object) -> Html:
    """A heading, a faint sentence, content; empty without content."""
    parts = [part for part in parts if part]
    about = [element("p", note, kind="faint")] if note else []
    return joined([element("h2", title, **attributes), *about, *parts]) if parts else Html()


def details(title: str, *parts: object) -> Html:
    """Content that opens at a click; empty without content."""
    parts = [part for part in parts if part]
    return element("details", element("summary", title), *parts) if parts else Html()


def cards(numbers: Sequence[tuple[object, str]]) -> Html:
    """Large numbers with what they count."""
    cells = [element("div", element("b", value), what, kind="card") for value, what in numbers]
    return element("div", *cells, kind="cards")


def table(
    header: Sequence[object], rows: Sequence[Sequence[object]], long: Collection[int] = ()
) -> Html:
    """Numbers and columns of digits are flush right; the columns `long` are wrapped. Empty without
    rows.
    """
    if not rows:
        return Html()
    columns = [all(map(is_number, column)) for column in zip(*rows, strict=True)]
    kinds = ["" if right else "left" + " long" * (i in long) for i, right in enumerate(columns)]

    def line(name: str, values: Sequence[object]) -> Html:
        cells = zip(values, kinds, strict=True)
        return element("tr", *(element(name, value, kind=kind) for value, kind in cells))

    body = element("tbody", *(line("td", row) for row in rows))
    return element(
        "div", element("table", element("thead", line("th", header)), body), kind="scroll"
    )


def is_number(value: object) -> bool:
    """Whether digits alone are shown, whatever elements are around them."""
    return not isinstance(value, str) or NUMBER.fullmatch(TAG.sub("", value)) is not None


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def picture(image: Image.Image, caption: str, quality: int = QUALITY, kind: str = "") -> Html:
    """An image in the page at its size, as JPEG of this quality."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    shown = element("img", src=source, alt=caption, width=image.width).removesuffix("</img>")
    return element("figure", Html(shown), element("figcaption", caption), kind=kind)


def pictures(figures: Sequence[Html], kind: str = "pictures") -> Html:
    figures = [one for one in figures if one]
    return element("div", *figures, kind=kind) if figures else Html()


def charts(figures: Sequence[Html]) -> Html:
    return pictures(figures, "charts")
