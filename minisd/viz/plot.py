"""Line plots as SVG text: axes, ticks, a legend, and curves whose points can be read back from the file.

    scheduler.set_timesteps(15)
    Path("lms.svg").write_text(schedule_plot({"lms": scheduler}))
"""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from ..errors import UsageError

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 66, 56  # margins
# Okabe and Ito's colours, told apart by everyone; dashes for print in black and white.
STROKES = (("#0072B2", ""), ("#D55E00", "7 3"), ("#009E73", "2 3"), ("#CC79A7", "9 3 2 3"), ("#E69F00", "12 4"), ("#56B4E9", "4 4"), ("#000000", "1 4"))
QUANTITIES = {
    "sigma": ("noise to signal σ", lambda t, a, s: s / a),
    "alpha": ("ᾱ = 1/(σ² + 1), the share of the picture", lambda t, a, s: a * a / (a * a + s * s)),
    "timestep": ("timestep t", lambda t, a, s: t),
}


@dataclass(frozen=True)
class Axis:
    """Values low … high at pixels start … end, evenly, or evenly in their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers inside the axis: powers of ten where it is logarithmic (with 2 and 5 if there are few), else 1, 2 or 5 of one apart."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            heads = (1,) if self.high / self.low > 1e3 else (1, 2, 5)
            marks = [head * 10.0**power for power in powers for head in heads]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(head * power for head in (1, 2, 5, 10) if head * power >= rough)
            marks = [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        return [mark for mark in marks if self.low * (1 - 1e-9) <= mark <= self.high * (1 + 1e-9) or abs(mark) < 1e-12]


def line_plot(curves: dict, *, title: str = "", x_label: str = "", y_label: str = "", log: bool = False) -> str:
    """Curves {name: (xs, ys)} -> SVG text. log: a logarithmic y axis; values that are not positive are then left out.

    Each curve is a polyline with a marker on every point; the legend names them. Raises UsageError for NaN and for nothing to draw.
    """
    points = {name: [(float(x), float(y)) for x, y in zip(xs, ys, strict=True) if not log or y > 0] for name, (xs, ys) in curves.items()}
    every = [p for curve in points.values() for p in curve]
    if not every or not all(math.isfinite(v) for p in every for v in p):
        raise UsageError("there is nothing to plot" if not every else "a curve holds NaN or infinity", "", "give each curve one or more finite points")
    x_axis = Axis(*_range([x for x, _ in every], False), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_range([y for _, y in every], log), HEIGHT - BOTTOM, TOP, log)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 24, title, size=16),
        *_frame(x_axis, y_axis),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label),
        f'<g transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)">{_text(0, 0, y_label)}</g>',
        *(line for i, name in enumerate(points) for line in _curve(STROKES[i % len(STROKES)], points[name], x_axis, y_axis)),
        *(line for i, name in enumerate(points) for line in _legend(STROKES[i % len(STROKES)], name, i * min(130, (WIDTH - LEFT - RIGHT) / len(points)))),
        "</svg>", "",
    ])  # fmt: skip


def _range(values: list, log: bool) -> tuple[float, float]:
    """From the smallest to the largest value; from 0 where that is near, and with room on both sides where they are the same."""
    low, high = min(values), max(values)
    if low == high:
        return (low / 2, high * 2) if log else (low - 1, high + 1)
    return (0.0 if not log and 0 < low < 0.2 * high else low), high


def _frame(x_axis: Axis, y_axis: Axis) -> list:
    """Grid lines with their numbers, and the two axes."""
    left, right, bottom, top = x_axis.start, x_axis.end, y_axis.start, y_axis.end
    lines = []
    for mark in x_axis.ticks():
        x = x_axis(mark)
        lines += [f'<path d="M{x:.2f} {bottom}V{top}" stroke="#ddd"/>', _text(x, bottom + 18, f"{mark:g}")]
    for mark in y_axis.ticks():
        y = y_axis(mark)
        lines += [f'<path d="M{left} {y:.2f}H{right}" stroke="#ddd"/>', _text(left - 8, y + 4, f"{mark:g}", anchor="end")]
    return [*lines, f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>']


def _curve(stroke: tuple, curve: list, x_axis: Axis, y_axis: Axis) -> list:
    """The polyline and its markers."""
    colour, dash = stroke
    pixels = [(x_axis(x), y_axis(y)) for x, y in curve]
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in pixels)
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    return [line, *(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.5" fill="{colour}"/>' for x, y in pixels)]


def _legend(stroke: tuple, name: str, offset: float) -> list:
    """A piece of the line and the name of its curve, in the row above the plot."""
    colour, dash = stroke
    line = f'<path d="M{LEFT + offset:.2f} 46h34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    return [line, _text(LEFT + offset + 42, 50, name, anchor="start")]


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 0) -> str:
    large = f' font-size="{size}"' if size else ""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{large}>{escape(text)}</text>'


# ----- schedules -----------------------------------------------------------------------------------------------------------


def schedule_table(scheduler) -> list[dict]:
    """Every entry of the timesteps that are set: index, timestep, sigma = s/a and alpha = a²/(a² + s²), of x = a·x0 + s·ε."""
    rows = []
    for index, t in enumerate(scheduler.timesteps.tolist()):
        a, s = scheduler.scales(t)
        rows.append({"index": index, **{name: float(value(t, a, s)) for name, (_, value) in QUANTITIES.items()}})
    return rows


def schedule_plot(schedulers: dict, quantity: str = "sigma", log: bool = False) -> str:
    """How noise falls from step to step: {name: scheduler with its timesteps set} -> SVG text. quantity: "sigma", "alpha" or "timestep"."""
    if quantity not in QUANTITIES:
        raise UsageError(f"there is no quantity {quantity!r}", "", f"use one of {', '.join(QUANTITIES)}")
    curves = {}
    for name, scheduler in schedulers.items():
        rows = schedule_table(scheduler)
        curves[name] = [row["index"] for row in rows], [row[quantity] for row in rows]
    steps = sorted({len(xs) for xs, _ in curves.values()})
    calls = " and ".join(map(str, steps))
    return line_plot(curves, title=f"{calls} model calls", x_label="index of the step", y_label=QUANTITIES[quantity][0], log=log)
