"""The measures of two arrays at their edges: zeros, layouts, precisions."""

import math

import numpy as np
import pytest

from minisd.measures import coarser, cosine, like, ratio, relative


def test_relative_distance():
    assert relative(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative(np.zeros(2), np.zeros(2)) == 0.0 and relative(np.ones(2), np.zeros(2)) == math.inf
    big = np.array([2.0**30, 1.0], dtype="float32")
    assert relative(big + np.float32(0), big) == 0.0 and 0 < relative(big * np.float32(1 + 2**-20), big) < 1e-6
    assert math.isnan(relative(np.array([np.nan]), np.ones(1)))


def test_ratio():
    assert (ratio(1.0, 2.0), ratio(0.0, 0.0), ratio(1.0, 0.0)) == (0.5, 0.0, math.inf)


def test_cosine():
    x = np.array([1.0, 2.0])
    assert cosine(x, 2 * x) == pytest.approx(1.0) and cosine(x, -x) == pytest.approx(-1.0)
    assert cosine(np.zeros(2), np.zeros(2)) == 1.0 and cosine(np.zeros(2), x) == 0.0


def test_coarser():
    half, single, whole = (np.zeros(1, dtype) for dtype in ("float16", "float32", "int64"))
    assert coarser(half, single) == coarser(single, half) == "float16" and coarser(whole, single.astype("float64")) == "float32"


@pytest.mark.parametrize("a, b", [((2, 3, 4, 5), (2, 3, 20)), ((1, 7, 4), (7, 4)), ((7, 4), (7, 1, 4))])
def test_one_order_of_values_in_two_shapes(a, b):
    x = np.arange(math.prod(a)).reshape(a)
    np.testing.assert_array_equal(like(x, np.zeros(b)), x.reshape(b))


def test_tokens_are_an_image_in_ldms_vae():
    image = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # [B, C, H, W]
    tokens = image.reshape(2, 3, 20).swapaxes(1, 2)
    np.testing.assert_array_equal(like(tokens, image), image)


def test_other_shapes_stay_what_they_are():
    assert like(np.zeros((2, 3)), np.zeros((3, 2))).shape == (2, 3)
