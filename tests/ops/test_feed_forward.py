"""The feed-forward by blocks of rows computes what its three ops compute one after the other."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import feed_forward
from tests.numerics import relative_l2


@pytest.mark.parametrize("rung", ["short_sums", "row_blocks"])
@pytest.mark.parametrize("rows", [1, 5, 512])
@pytest.mark.parametrize("tokens", [(1,), (2, 7), (1, 33)], ids=str)
def test_equals_linear_geglu_linear(tokens, rows, rung, monkeypatch):
    monkeypatch.setattr(feed_forward, "ROWS", rows)
    random = np.random.RandomState(4)
    x, w_in, b_in, w_out, b_out = (random.randn(*s).astype("float32") for s in ((*tokens, 12), (30, 12), (30,), (12, 15), (12,)))
    with ops.using(feed_forward=rung):
        y = ops.feed_forward(x, w_in, b_in, w_out, b_out)
    with ops.using(profile="exact"):
        steps = ops.linear(ops.geglu(ops.linear(x, w_in, b_in)), w_out, b_out)
    assert y.shape == (*tokens, 12) and y.dtype == np.float32
    assert np.abs(y - steps).max() <= 2e-6 * np.abs(steps).max()


BOUND = 1e-6  # of the fast rung


@pytest.mark.parametrize("rung, bound", [("short_sums", 5e-7), ("row_blocks", BOUND)])
def test_the_error_keeps_its_bound(rung, bound):
    random = np.random.RandomState(5)
    shapes = (64, 320), (2560, 320), (2560,), (320, 1280), (320,)
    x, w_in, b_in, w_out, b_out = (random.standard_normal(s) / (s[-1] ** 0.5 if len(s) == 2 and s[0] > 64 else 1.0) for s in shapes)
    given = [a.astype("float32") for a in (x, w_in, b_in, w_out, b_out)]
    truth = ops.feed_forward(*(a.astype("float64") for a in given))
    with ops.using(feed_forward=rung):
        assert relative_l2(ops.feed_forward(*given), truth) <= bound
