"""Doubling, with and without a convolution, backwards; odd sizes are cut."""

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (5, 7)], ids=str)
def test_upsampling(size):
    x, w, b = arrays(f"upsample {size}", (2, 3, 4, 5), (6, 5, 3, 3), (6,))
    check(lambda x: vjp.upsample_nearest(x, size=size), x, name="upsample_nearest")
    assert np.array_equal(vjp.upsample_conv2d(x, w, b, size=size)[0], ops.upsample_conv2d(x, w, b, size=size))
    check(lambda x: vjp.upsample_conv2d(x, w, b, size=size), x, name="upsample_conv2d")
    check(lambda x, w, b: vjp.upsample_conv2d(x, w, b, size=size), x, w, b, name="upsample_conv2d with parameters", wrt_params=True)
