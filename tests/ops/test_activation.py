"""SiLU and the GELUs point by point: tails, signs of zero, denormals, infinities. Values on every case: `test_ladder.py`."""

import math

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import activation

ULP = 2.0**-23
TINY = float(np.finfo("float32").smallest_normal)
POINTS = (0.0, -0.0, 1e-40, -1e-40, TINY, -TINY, 1e-6, -1e-6, 1e-3, -1e-3, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 5.0, -5.0,
          6.0, -6.0, 10.0, -10.0, 20.0, -20.0, 40.0, -40.0, 80.0, -80.0, 100.0, -100.0, 1e4, -1e4, 1e15, -1e15)  # fmt: skip


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


TRUTH = {
    "silu": lambda x: x * sigmoid(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "gelu": lambda x: x * 0.5 * math.erfc(-x * math.sqrt(0.5)),
}


def tolerance(op, x, y):
    """What float32 allows: 3 ulp of the result, and

    silu, quick_gelu    the rounding of the exponent, which exp enlarges; anything down to 0 where e⁻ˣ overflows (x < −88)
    gelu                8e-8 · |x|: erf itself is rounded near −1, in torch as in every form that computes 1 + erf
    """
    if op == "gelu":
        return 3 * ULP * abs(y) + 8e-8 * abs(x) + TINY
    slope = {"silu": 1.0, "quick_gelu": 1.702}[op]
    rounded_exponent = 0.0 if op == "silu" else slope * abs(x)
    flushed = abs(y) if slope * x < -88.0 else 0.0
    return (3 + rounded_exponent) * ULP * abs(y) + flushed + TINY


RUNGS = [pytest.param(op, rung.name, id=f"{op}/{rung.name}") for op in TRUTH for rung in ops.RUNGS[op] if rung.owner in ("any", "numpy")]
every_rung = pytest.mark.parametrize("op, rung", RUNGS)


def run(op, rung, values, dtype="float32"):
    with ops.using(**{op: rung}):
        return getattr(ops, op)(np.array(values, dtype=dtype))


@every_rung
@pytest.mark.parametrize("x", POINTS)
def test_point_by_point(op, rung, x):
    x = float(np.float32(x))
    y, truth = float(run(op, rung, [x])[0]), TRUTH[op](x)
    assert abs(y - truth) <= tolerance(op, x, truth), f"{op}({x}) = {y}, not {truth}"
    assert y == 0.0 or math.copysign(1.0, y) == math.copysign(1.0, x)


@every_rung
def test_every_float_between_minus_30_and_30(op, rung):
    """A fine net instead of points: no pole, no jump, no wrong branch."""
    x = np.linspace(-30, 30, 100_001, dtype="float32")
    y = run(op, rung, x).astype("float64")
    wrong = [(v, w) for v, w in zip(x.tolist(), y.tolist()) if not abs(w - TRUTH[op](v)) <= tolerance(op, v, TRUTH[op](v))]
    assert not wrong, f"{len(wrong)} points, the first is {op}({wrong[0][0]}) = {wrong[0][1]}, not {TRUTH[op](wrong[0][0])}"


@every_rung
def test_the_ends_of_the_line(op, rung):
    """+∞ stays, NaN stays. (−∞ is no number a network survives: −∞ · 0 is NaN here as in torch.)"""
    assert run(op, rung, [math.inf])[0] == math.inf
    assert np.isnan(run(op, rung, [math.nan, 1.0])).tolist() == [True, False]


def test_erf_as_tanh_is_as_near_as_its_docstring_says():
    """6e-8 on the fitted range, in exact arithmetic; beyond it the argument of tanh only grows, so that erf stays ±1."""
    u = np.linspace(0.0, 5.0, 200_001)
    p = np.polynomial.polynomial.polyval(u * u, activation.ERF_AS_TANH)
    erf = np.array([math.erf(v) for v in u])
    assert np.abs(np.tanh(u * p) - erf).max() <= 6.0e-8
    far = np.linspace(4.0, 5.0, 1001)
    argument = far * np.polynomial.polynomial.polyval(far * far, activation.ERF_AS_TANH)
    assert (np.diff(argument) > 0).all() and argument[0] > 9.0


@pytest.mark.parametrize("size", [1, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("op", sorted(TRUTH))
def test_blocks_of_64(op, size, monkeypatch):
    monkeypatch.setattr(activation, "BLOCK", 64)
    x = np.random.RandomState(size).randn(size).astype("float32")
    whole = getattr(ops, op)(x)
    assert np.array_equal(whole, [getattr(ops, op)(x[i : i + 1])[0] for i in range(size)])


def test_quick_gelu_is_not_gelu_and_gelu_is_not_its_tanh_form():
    x = np.linspace(-4, 4, 1001, dtype="float64")
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert 1e-4 < np.abs(ops.gelu(x) - tanh_form).max() < 1e-3
    assert 1e-2 < np.abs(ops.gelu(x) - ops.quick_gelu(x)).max() < 1e-1


def test_geglu_gates_with_the_second_half():
    x = np.array([[3.0, 5.0, 0.0, 40.0]], dtype="float32")
    assert ops.geglu(x).tolist() == [[0.0, 200.0]]
