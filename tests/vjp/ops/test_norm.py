"""Group norm and layer norm, backwards."""

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check


@pytest.mark.parametrize("act", [None, "silu"])
@pytest.mark.parametrize("shape, groups", [((2, 3, 5, 6), 3), ((1, 6), 2), ((1, 70, 13, 96), 4), ((2, 3, 4), 4)], ids=str)
def test_group_norm(shape, groups, act):
    """(1, 70, 13, 96) is cut into two blocks of pixels; in (2, 3, 4) each channel is a group."""
    x, w, b = arrays(f"group_norm {shape} {act}", shape, shape[-1:], shape[-1:])
    options = dict(groups=groups, eps=1e-3, act=act)
    assert np.array_equal(vjp.group_norm(x, w, b, **options)[0], ops.group_norm(x, w, b, **options))
    check(lambda x: vjp.group_norm(x, w, b, **options), x, name="group_norm")
    check(lambda x, w, b: vjp.group_norm(x, w, b, **options), x, w, b, name="group_norm with parameters", wrt_params=True)


def test_a_large_mean_costs_no_digits():
    """mean 1000, deviation 1, in float32: the gradient is that of float64 to the digits that x itself has."""
    x, w, b, dy = arrays("large mean", (1, 9, 7, 8), (8,), (8,), (1, 9, 7, 8))
    x = (x + 1000.0).astype("float32")
    w, b, dy = (a.astype("float32") for a in (w, b, dy))
    wide = [a.astype("float64") for a in (x, w, b, dy)]
    for norm, options in ((vjp.group_norm, dict(groups=2, eps=1e-6, act="silu")), (vjp.layer_norm, dict(eps=1e-5))):
        ours, truth = norm(x, w, b, **options)[1](dy), norm(*wide[:3], **options)[1](wide[3])
        assert np.linalg.norm(ours - truth) <= 1e-4 * np.linalg.norm(truth)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1, 1, 2)], ids=str)
def test_layer_norm(shape):
    x, w, b = arrays(f"layer_norm {shape}", shape, shape[-1:], shape[-1:])
    check(lambda x: vjp.layer_norm(x, w, b, eps=1e-3), x, name="layer_norm")
    check(lambda x, w, b: vjp.layer_norm(x, w, b, eps=1e-3), x, w, b, name="layer_norm with parameters", wrt_params=True)
