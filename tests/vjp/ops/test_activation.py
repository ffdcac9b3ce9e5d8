"""The curves and the softmax, backwards."""

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check


@pytest.mark.parametrize("op", ["silu", "gelu", "quick_gelu", "geglu", "softmax"])
@pytest.mark.parametrize("shape", [(2,), (3, 1, 14)], ids=str)
def test_against_differences(op, shape):
    (x,) = arrays(f"{op} {shape}", shape)
    assert np.array_equal(getattr(vjp, op)(x)[0], getattr(ops, op)(x))
    check(getattr(vjp, op), x, name=op)


@pytest.mark.parametrize("op, far_left", [("silu", 0.0), ("gelu", 0.0), ("quick_gelu", 0.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_slopes_at_the_ends_and_at_zero(op, far_left, dtype):
    x = np.array([-1e4, -200.0, 0.0, 200.0, 1e4], dtype=dtype)
    y, pullback = getattr(vjp, op)(x)
    slope = pullback(np.ones_like(x))
    assert slope.dtype == dtype and np.allclose(slope, [far_left, far_left, 0.5, 1.0, 1.0], rtol=0, atol=1e-12)
