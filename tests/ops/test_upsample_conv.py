"""Doubling and convolving in nine products: against the two ops one after the other, within its bound."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import upsample_conv
from tests.numerics import relative_l2

BOUND = 1e-6  # as the docstring of the rung says


@pytest.mark.parametrize("pixels", [1, 20, 512])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (1, 8, 8), (3, 2, 13)], ids=str)
def test_stays_within_its_bound(size, pixels, monkeypatch):
    monkeypatch.setattr(upsample_conv, "PIXELS", pixels)
    random = np.random.RandomState(2)
    x, w, b = (random.randn(*s).astype("float32") for s in ((*size, 64), (67, 64, 3, 3), (67,)))
    big = (2 * size[1], 2 * size[2])
    with ops.using(upsample_conv2d="nine_products"):
        y = ops.upsample_conv2d(x, w, b, size=big)
    truth = ops.conv2d(ops.upsample_nearest(x.astype("float64"), size=big), w.astype("float64"), b.astype("float64"), padding=1)
    assert y.dtype == np.float32 and y.shape == truth.shape
    assert relative_l2(y, truth) <= BOUND
    assert np.abs(y - truth).max() <= 10 * BOUND * np.abs(truth).max()


def test_says_when_it_is_not_for_an_input():
    x, w = np.zeros((1, 4, 4, 64), dtype="float32"), np.zeros((64, 64, 3, 3), dtype="float32")
    for args, size, reason in [((x, w), (7, 8), "cuts a row"), ((x[..., :4], w[:, :4]), (8, 8), "channels on either side")]:
        (line,) = [line for line in ops.explain("upsample_conv2d", *args, None, size=size).splitlines() if line.split()[0] == "nine_products"]
        assert reason in line
