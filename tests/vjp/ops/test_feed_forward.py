"""The feed-forward half, backwards, by blocks of rows."""

import sys

import numpy as np
import pytest

from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check

module = sys.modules["minisd.vjp.ops.feed_forward"]  # the package has a function of that name


@pytest.mark.parametrize("rows", [2, 512])
def test_feed_forward(rows, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    inputs = arrays("feed_forward", (2, 3, 5), (14, 5), (14,), (4, 7), (4,))
    check(lambda x: vjp.feed_forward(x, *inputs[1:]), inputs[0], name="feed_forward")
    check(vjp.feed_forward, *inputs, name="feed_forward with parameters", wrt_params=True)


def test_it_is_its_three_parts():
    x, w_in, b_in, w_out, b_out, dy = arrays("parts", (3, 5), (14, 5), (14,), (4, 7), (4,), (3, 4))
    h, pull_in = vjp.linear(x, w_in, b_in)
    g, pull_geglu = vjp.geglu(h)
    _, pull_out = vjp.linear(g, w_out, b_out)
    assert np.allclose(vjp.feed_forward(x, w_in, b_in, w_out, b_out)[1](dy), pull_in(pull_geglu(pull_out(dy))), rtol=1e-12, atol=1e-14)
