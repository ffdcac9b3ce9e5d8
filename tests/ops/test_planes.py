"""Convolution to few channels: the default where it applies, and the project's rule over blocks and paddings (more in test_ladder)."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import planes
from tests.numerics import relative_l2


@pytest.mark.parametrize("pixels", [1, 30, 4096])
@pytest.mark.parametrize("padding, kernel", [(1, (3, 3)), (0, (3, 3)), (((2, 0), (1, 3)), (5, 2))])
def test_equals_im2col(pixels, padding, kernel, monkeypatch):
    monkeypatch.setattr(planes, "PIXELS", pixels)
    random = np.random.RandomState(3)
    x, w, b = (random.randn(*s).astype("float32") for s in ((2, 9, 11, 24), (3, 24, *kernel), (3,)))
    assert "RUNS" in next(line for line in ops.explain("conv2d", x, w, b, padding=padding).splitlines() if "planes" in line)
    y = ops.conv2d(x, w, b, padding=padding)
    truth = ops.conv2d(*(a.astype("float64") for a in (x, w, b)), padding=padding)
    with ops.using(conv2d="im2col"):
        neighbour = ops.conv2d(x, w, b, padding=padding)
    assert relative_l2(y, truth) <= 2 * relative_l2(neighbour, truth) + 2e-7
