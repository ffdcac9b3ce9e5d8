"""The feed-forward by blocks of rows computes what its three ops compute one after the other."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import feed_forward


@pytest.mark.parametrize("rows", [1, 5, 512])
@pytest.mark.parametrize("tokens", [(1,), (2, 7), (1, 33)], ids=str)
def test_equals_linear_geglu_linear(tokens, rows, monkeypatch):
    monkeypatch.setattr(feed_forward, "ROWS", rows)
    random = np.random.RandomState(4)
    x, w_in, b_in, w_out, b_out = (random.randn(*s).astype("float32") for s in ((*tokens, 12), (30, 12), (30,), (12, 15), (12,)))
    y = ops.feed_forward(x, w_in, b_in, w_out, b_out)
    with ops.using(profile="exact"):
        steps = ops.linear(ops.geglu(ops.linear(x, w_in, b_in)), w_out, b_out)
    assert y.shape == (*tokens, 12) and y.dtype == np.float32
    assert np.abs(y - steps).max() <= 2e-6 * np.abs(steps).max()
