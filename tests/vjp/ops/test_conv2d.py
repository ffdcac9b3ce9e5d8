"""Convolution, backwards."""

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check

CASES = [  # H, W, KH, KW, stride, padding
    (1, 1, 1, 1, 1, 0), (5, 7, 3, 3, 1, 1), (5, 7, 3, 3, 2, 1), (6, 8, 3, 3, 2, ((0, 1), (0, 1))), (7, 5, 3, 3, 2, ((0, 1), (0, 1))),
    (6, 9, 2, 4, 3, ((2, 0), (1, 3))), (4, 3, 1, 1, 1, 2), (5, 5, 1, 1, 2, 0), (9, 8, 5, 3, 2, 0), (3, 3, 3, 3, 5, 4), (4, 6, 4, 4, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv2d(case):
    H, W, KH, KW, stride, padding = case
    x, w, b = arrays(f"conv2d {case}", (2, H, W, 3), (4, 3, KH, KW), (4,))
    options = dict(stride=stride, padding=padding)
    assert np.array_equal(vjp.conv2d(x, w, b, **options)[0], ops.conv2d(x, w, b, **options))
    check(lambda x: vjp.conv2d(x, w, b, **options), x, name="conv2d")
    check(lambda x, w, b: vjp.conv2d(x, w, b, **options), x, w, b, name="conv2d with parameters", wrt_params=True)


def test_the_gradient_of_the_image_takes_the_fast_rungs():
    """It is an ordinary convolution: with 128 channels and 64 tiles Winograd's rung, whose answer differs in the last digits."""
    x, w, dy = (a.astype("float32") for a in arrays("winograd", (1, 32, 32, 128), (128, 128, 3, 3), (1, 32, 32, 128)))
    _, pullback = vjp.conv2d(x, w, padding=1)
    fast = pullback(dy)
    with ops.using(profile="exact"):
        exact = pullback(dy)
    assert 0 < np.linalg.norm(fast - exact) <= 1e-5 * np.linalg.norm(exact)
