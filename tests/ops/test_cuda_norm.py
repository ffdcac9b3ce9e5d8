"""The norm kernels in the simulator at Stable Diffusion's widths: many groups, far means, more pixels than a chunk."""

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import norm
from minisd.ops.cuda.device import on_device
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import relative_l2

GROUP = {"naive": norm.group_norm_naive, "shuffles": norm.group_norm_shuffles, "two_kernels": norm.group_norm_two_kernels,
         "one_pass": norm.group_norm_one_pass}  # fmt: skip
LAYER = {"naive": norm.layer_norm_naive, "warp": norm.layer_norm_warp, "vectors": norm.layer_norm_vectors}
# x, groups, mean, act
SHAPES = {
    "sd_320": ((2, 3, 5, 320), 32, 0.0, "silu"), "one_pixel_640": ((1, 1, 1, 640), 32, 0.0, None), "concat_960": ((1, 2, 3, 960), 32, 1.0, None),
    "many_pixels": ((1, 37, 19, 32), 4, 0.0, "silu"), "tokens": ((2, 50, 64), 8, 0.0, None), "far_mean": ((1, 9, 7, 64), 32, 100.0, None),
}  # fmt: skip


def inputs(shape, mean, dtype):
    random = np.random.RandomState(sum(shape))
    return [a.astype(dtype) for a in (random.randn(*shape) + mean, 1 + 0.2 * random.randn(shape[-1]), random.randn(shape[-1]))]


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GROUP)
@needs_simulator[0]
@needs_simulator[1]
def test_group_norm(name, shape, dtype, bound):
    size, groups, mean, act = SHAPES[shape]
    x, w, b = inputs(size, mean, dtype)
    keywords = dict(groups=groups, eps=1e-5, act=act)
    truth = reference.group_norm(*(a.astype("float64") for a in (x, w, b)), **keywords)
    with on_device(Simulator()):
        y = GROUP[name](x, w, b, **keywords)
    assert y.dtype == x.dtype and relative_l2(y, truth) <= bound


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", [(5, 320), (2, 3, 1280), (1, 8), (130, 24)])
@pytest.mark.parametrize("name", LAYER)
@needs_simulator[0]
@needs_simulator[1]
def test_layer_norm(name, shape, dtype, bound):
    x, w, b = inputs(shape, 10.0, dtype)
    truth = reference.layer_norm(*(a.astype("float64") for a in (x, w, b)), eps=1e-5)
    with on_device(Simulator()):
        y = LAYER[name](x, w, b, eps=1e-5)
    assert y.dtype == x.dtype and relative_l2(y, truth) <= bound


@pytest.mark.parametrize("C, groups, V, bundle", [(320, 32, 8, 4), (640, 32, 8, 2), (1280, 32, 8, 1), (960, 32, 8, 4), (320, 32, 4, 2), (96, 32, 8, 8)])
def test_the_smallest_bundle_of_whole_vectors(C, groups, V, bundle):
    assert norm.bundle_of(C, groups, V) == bundle
    assert bundle * (C // groups) % V == 0


def test_no_bundle():
    assert norm.bundle_of(32, 32, 16) == 0 and norm.bundle_of(21, 7, 8) == 0


def test_one_pass_refuses_what_does_not_fit():
    x = np.zeros((1, 64, 64, 320), "float16")
    assert "more than 90 KiB" in norm.refuses_large_groups(x, x[0, 0, 0], x[0, 0, 0], groups=32, eps=1e-5, act=None)
    assert norm.refuses_large_groups(x[:, :32, :32], x[0, 0, 0], x[0, 0, 0], groups=32, eps=1e-5, act=None) is None
