"""Charts: what is drawn where, and that no length of a run makes them large."""

import re

import numpy as np
import pytest

from engine.report import charts
from engine.report.charts import Axis, Line


def paths(chart, kind):
    """The points [N,2] of the lines of a kind, in units of the drawing."""
    found = re.findall(
        rf'<path d="M([^"]*)" class="{kind}"|<path class="{kind}" d="M([^"]*)"', chart
    )
    return [
        np.array([point.split() for point in (one or other).split("L")], float)
        for one, other in found
    ]


def test_points_lie_where_the_axes_put_them():
    chart = charts.lines("AP", [Line("val", [0, 5, 10], [0.0, 0.5, 1.0], points=True)], "epoch")
    (found,) = paths(chart, "line h0")
    across = Axis(0, 10, charts.LEFT, charts.WIDTH - charts.RIGHT)
    upward = Axis(0, 1.05, charts.HEIGHT - charts.BOTTOM, charts.TOP)
    expected = np.stack([across.place([0, 5, 10]), upward.place([0, 0.5, 1])], 1)
    assert found == pytest.approx(expected, abs=0.06)
    assert chart.count("<circle") == 3 and "val 0.500 at 5" in chart
    assert across.place(5) == (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 40, [0, 10, 20, 30, 40]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.00105, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
        (0, 123456, [0, 50000, 100000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert Axis(low, high, 0, 1).ticks() == pytest.approx(expected)


def test_texts_of_ticks_are_short():
    values = (0, 0.2, 0.0008, 0.00001, 0.001, 5, 20_000, 100_000, 3_000_000, 150)
    expected = ["0", "0.2", "8e-4", "1e-5", "0.001", "5", "20k", "100k", "3M", "150"]
    assert [charts.tick_text(value) for value in values] == expected


def test_a_long_line_is_thinned_and_keeps_its_ends_and_spikes():
    x, y = np.arange(100_000) / 1000, np.full(100_000, 2.0)
    y[51_234], y[0], y[-1] = 90.0, 3.0, 1.0
    chart = charts.lines("loss", [Line("loss", x, y, noisy=True)], "epoch", log=True)
    assert len(chart) < 20_000
    (thin,) = paths(chart, "line h0 thin")
    assert len(thin) <= 2 * charts.MOST_POINTS
    upward = Axis(1 / 1.1, 99, charts.HEIGHT - charts.BOTTOM, charts.TOP, True)
    assert thin[:, 1].min() == pytest.approx(float(upward.place(90)), abs=0.1)
    (smooth,) = paths(chart, "line h0")
    assert len(smooth) == charts.MOST_POINTS
    assert smooth[[0, -1], 0] == pytest.approx([charts.LEFT, charts.WIDTH - charts.RIGHT], abs=0.1)


@pytest.mark.parametrize("y", [[], [5.0], [float("nan")] * 3, [float("inf")] * 3])
def test_a_line_without_values_gives_no_chart(y):
    assert not charts.lines("AP", [Line("a", range(len(y)), y)], "epoch")


@pytest.mark.parametrize("y", [[0.0, 0.0], [-1.0, 2.0], [1e-30, 1e30]])
def test_odd_values_are_drawn(y):
    chart = charts.lines("x", [Line("a", range(len(y)), y, noisy=True)], "epoch", log=True)
    assert "nan" not in chart and "inf" not in chart and "<path" in chart


def test_names_are_text():
    chart = charts.lines("<b>", [Line("<i>&", [0, 1], [0, 1])], "<u>", mark=(0.9, "<s>"))
    assert not any(each in chart for each in ("<i>", "<u>", "<s>"))
    assert all(f"&lt;{each}&gt;" in chart for each in "bius") and "&amp;" in chart
