"""The folded GEMM. Values on every case: `test_ladder.py`."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu.linear import DEPTH, linear, refuses_half, short_sums
from tests.numerics import assert_close_f64, relative_l2


def test_leading_axes_are_folded_into_rows():
    random = np.random.RandomState(0)
    x, w, b = random.randn(2, 3, 5, 7), random.randn(4, 7), random.randn(4)
    y = linear(x, w, b)
    assert y.shape == (2, 3, 5, 4)
    rows = [w @ row + b for row in x.reshape(-1, 7)]
    assert_close_f64(y.reshape(-1, 4), np.array(rows), name="gemm", tolerance=1e-14)


def test_no_rows_make_no_rows():
    assert linear(np.zeros((0, 7), "float32"), np.zeros((4, 7), "float32"), np.zeros(4, "float32")).shape == (0, 4)


def test_half_goes_to_the_reference():
    half = np.ones((2, 4096), dtype="float16")
    assert "float32" in refuses_half(half)
    assert refuses_half(half.astype("float32")) is None
    assert ops.linear(half, half, None).tolist() == [[4096.0, 4096.0]] * 2
    assert ops.linear(half, half, None).dtype == np.float16


@pytest.mark.parametrize("K", [1, DEPTH, 1279, 1280, 1281])
@pytest.mark.parametrize("f", [linear, short_sums])
def test_a_constant_sum_is_exact(f, K):
    """Whole numbers below 2²⁴ have no rounding, in whatever order they are summed, and none is summed twice."""
    x, w = np.full((3, K), 2.0, "float32"), np.full((2, K), 3.0, "float32")
    assert (f(x, w, np.ones(2, "float32")) == 6.0 * K + 1).all()


BOUND = 5e-7  # of the fast rung


@pytest.mark.parametrize("K", [320, 1280, 5120])
def test_short_sums_round_less_than_one_product(K):
    """The depths of Stable Diffusion's linear layers; the bound of the fast rung is that of its docstring."""
    random = np.random.RandomState(K)
    x, w = random.standard_normal((64, K)).astype("float32"), random.standard_normal((96, K)).astype("float32")
    truth = x.astype("float64") @ w.astype("float64").T
    short, plain = (relative_l2(f(x, w, None), truth) for f in (short_sums, linear))
    assert short <= 2.5e-7 and plain <= BOUND and short <= plain


@pytest.mark.parametrize("shape", [(3, 40), (2, 700, 40), (1030, 40)])
@pytest.mark.parametrize("rung", ["reference", "short_sums", "gemm"])
def test_the_skip_is_added_last(rung, shape):
    """To the last bit what an addition behind the layer gives, whether the work is cut by rows or by columns."""
    random = np.random.RandomState(0)
    x, w, b, skip = (random.randn(*s).astype("float32") for s in (shape, (330, 40), (330,), (*shape[:-1], 330)))
    before = skip.copy()
    with ops.using(linear=rung):
        assert np.array_equal(ops.linear(x, w, b, skip=skip), ops.linear(x, w, b) + skip) and np.array_equal(skip, before)
        assert np.array_equal(ops.linear(x, w, skip=skip), ops.linear(x, w) + skip)
