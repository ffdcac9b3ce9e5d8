"""SVG plots by number: every point of a curve can be read back from the file, and every tick stands where its number belongs."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from minisd import DDIMScheduler, LMSDiscreteScheduler
from minisd.errors import UsageError
from minisd.viz import line_plot, plot, schedule_plot, schedule_table

SD1 = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def parse(svg: str):
    """(points of every curve, [(text, x, y)]) of a plot."""
    root = ET.fromstring(svg)
    tags = [(element.tag.rpartition("}")[2], element) for element in root.iter()]
    curves = [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for tag, e in tags if tag == "polyline"]
    return curves, [(e.text or "", float(e.get("x")), float(e.get("y"))) for tag, e in tags if tag == "text"]


def words(svg: str) -> set:
    return {text for text, _, _ in parse(svg)[1]}


def values_of(svg: str, curve: int, log: bool = False) -> np.ndarray:
    """A curve's points as values again, by two ticks of each axis: [N, 2]."""
    curves, texts = parse(svg)
    numbers = [(float(text), x, y) for text, x, y in texts if re.fullmatch(r"-?[\d.]+(e[-+]\d+)?", text)]
    row = max(y for _, _, y in numbers)
    xs = sorted((x, v) for v, x, y in numbers if y == row)
    ys = sorted((y - 4, math.log10(v) if log else v) for v, x, y in numbers if y < row)
    assert len(xs) >= 2 and len(ys) >= 2

    def read(pixel, ticks):
        (p, v), (q, w) = ticks[0], ticks[-1]
        return v + (pixel - p) * (w - v) / (q - p)

    return np.array([(read(x, xs), 10 ** read(y, ys) if log else read(y, ys)) for x, y in curves[curve]])


def test_points_can_be_read_back():
    svg = line_plot({"a": ([0, 1, 2.5], [-3, 0, 7]), "b": ([0.5], [2])}, title="t", x_label="x", y_label="y")
    np.testing.assert_allclose(values_of(svg, 0), [(0, -3), (1, 0), (2.5, 7)], atol=0.01)
    np.testing.assert_allclose(values_of(svg, 1), [(0.5, 2)], atol=0.01)
    assert {"a", "b", "t", "x", "y"} <= words(svg)


@pytest.mark.parametrize("high", [30, 1e5])
def test_a_logarithmic_axis_leaves_out_what_is_not_positive(high):
    svg = line_plot({"a": ([0, 1, 2, 3], [high, 1, 0.1, 0])}, log=True)
    np.testing.assert_allclose(values_of(svg, 0, log=True), [(0, high), (1, 1), (2, 0.1)], rtol=2e-3, atol=0.01)


def test_a_plot_begins_at_zero_where_that_is_near_and_has_room_around_a_constant():
    assert plot._range([0.1, 10.0], False) == (0.0, 10.0) and plot._range([0.1, 10.0], True) == (0.1, 10.0)
    assert plot._range([4.0, 4.0], False) == (3.0, 5.0) and plot._range([4.0, 4.0], True) == (2.0, 8.0)
    assert plot._range([5.0, 10.0], False) == (5.0, 10.0)


def test_ticks_are_round_numbers_inside_the_axis():
    assert plot.Axis(0, 14.6, 0, 1).ticks() == [0, 5, 10]
    assert plot.Axis(-0.05, 0.31, 0, 1).ticks() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert plot.Axis(0.03, 14, 0, 1, log=True).ticks() == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert plot.Axis(1e-4, 1e4, 0, 1, log=True).ticks() == pytest.approx([10.0**k for k in range(-4, 5)])


def test_names_are_escaped():
    assert "a<b & c" in words(line_plot({"a<b & c": ([0, 1], [0, 1])}))


@pytest.mark.parametrize("curves", [{}, {"a": ([], [])}, {"a": ([0, 1], [0, math.nan])}, {"a": ([0], [math.inf])}])
def test_nothing_to_plot_is_refused(curves):
    with pytest.raises(UsageError, match="plot|NaN"):
        line_plot(curves)


def test_more_curves_than_fit_beside_each_other_share_the_row():
    _, texts = parse(line_plot({f"curve {i}": ([0, 1], [0, i]) for i in range(9)}))
    assert max(x for _, x, _ in texts) < plot.WIDTH


# ----- schedules -----------------------------------------------------------------------------------------------------------


def samplers(n: int) -> dict:
    made = {"lms": LMSDiscreteScheduler(**SD1), "ddim": DDIMScheduler(**SD1, steps_offset=1)}
    for scheduler in made.values():
        scheduler.set_timesteps(n)
    return made


def test_the_table_has_the_numbers_of_the_notebooks():
    rows = schedule_table(samplers(15)["lms"])
    assert [row["index"] for row in rows] == list(range(15))
    np.testing.assert_allclose([row["timestep"] for row in rows[:3]], [999, 927.6429, 856.2857], atol=1e-4)
    np.testing.assert_allclose([row["sigma"] for row in rows[:4]], [14.6146, 9.6826, 6.6780, 4.7746], atol=1e-4)
    assert rows[-1]["alpha"] == pytest.approx(0.99915, abs=1e-6)


@pytest.mark.parametrize("quantity", ["sigma", "alpha", "timestep"])
def test_a_comparison_of_samplers_plots_their_tables(quantity):
    schedulers = samplers(10)
    svg = schedule_plot(schedulers, quantity)
    for i, scheduler in enumerate(schedulers.values()):
        expected = [(row["index"], row[quantity]) for row in schedule_table(scheduler)]
        np.testing.assert_allclose(values_of(svg, i), expected, rtol=1e-3, atol=0.03 * max(y for _, y in expected) / 10)
    assert {"lms", "ddim", "10 model calls"} <= words(svg)


def test_an_unknown_quantity_is_refused():
    with pytest.raises(UsageError, match="sigma, alpha, timestep"):
        schedule_plot(samplers(5), "beta")
