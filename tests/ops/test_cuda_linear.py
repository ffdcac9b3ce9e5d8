"""The matrix product kernels in the simulator: every tile, ragged on all sides, with and without bias."""

import numpy as np
import pytest

from minisd.ops.cuda import linear
from minisd.ops.cuda.device import MAX_SHARED, on_device
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import relative_l2

kernels = needs_simulator
RUNGS = {"naive": linear.linear_naive, "shared": linear.linear_shared, "registers": linear.linear_registers, "mma": linear.linear_mma}


def inputs(M, N, K, dtype="float16"):
    random = np.random.RandomState(M + N + K)
    return random.randn(M, K).astype(dtype), (random.randn(N, K) / K**0.5).astype(dtype), random.randn(N).astype(dtype)


def check(f, x, w, b, bound):
    truth = x.astype("float64") @ w.astype("float64").T + (0.0 if b is None else b.astype("float64"))
    with on_device(Simulator()):
        y = f(x, w, b)
    assert y.dtype == x.dtype and relative_l2(y, truth) <= bound


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("shape", [(1, 1, 8), (17, 33, 40), (64, 64, 32), (65, 63, 264), (3, 130, 1280)])
@pytest.mark.parametrize("name", RUNGS)
def test_half(name, shape):
    check(RUNGS[name], *inputs(*shape), bound=1e-3)


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("tile", [linear.SMALL, linear.LARGE, linear.WIDE], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (129, 162, 72)])
def test_every_tile(tile, shape):
    x, w, b = inputs(*shape)
    check(lambda *a: linear.product_mma(*a, tile=tile), x, w, b, bound=1e-3)
    check(lambda *a: linear.product_mma(*a, tile=tile), x, w, None, bound=1e-3)


@kernels[0]
@kernels[1]
def test_leading_axes_are_rows():
    x, w, b = inputs(6, 5, 16)
    with on_device(Simulator()):
        y = linear.linear_mma(x.reshape(2, 3, 16), w, b)
        assert y.shape == (2, 3, 5) and np.array_equal(y.reshape(6, 5), linear.linear_mma(x, w, b))


def test_tiles_follow_the_size():
    assert linear.tile_for(8192, 320) == linear.WIDE, "64 × 64 pixels of two images: 64 × 2 blocks"
    assert linear.tile_for(8192, 768) == linear.LARGE
    assert linear.tile_for(128, 1280) == linear.SMALL, "8 blocks of the large tile would leave most processors idle"


@pytest.mark.parametrize("tile", [linear.SMALL, linear.LARGE, linear.WIDE], ids=str)
def test_tiles_fit_into_every_gpus_shared_memory(tile):
    assert linear.tile_bytes(tile, by_k=True) <= MAX_SHARED and linear.tile_bytes(tile, by_k=False) <= MAX_SHARED
    assert linear.threads(tile) in (128, 256)


def test_cublas_is_one_product_with_the_leading_axes_folded():
    """Its arithmetic is CuPy's; here NumPy's stands in for it."""
    x, w, b = inputs(6, 5, 16, "float32")
    assert relative_l2(linear.linear_cublas(x.reshape(2, 3, 16), w, b).reshape(6, 5), x.astype("float64") @ w.T.astype("float64") + b) <= 1e-6
    assert linear.linear_cublas(x[0], w, None).shape == (5,)
    assert linear.refuses_all_but_half(x) and linear.refuses_all_but_half(x.astype("float16")) is None


def test_the_constants_are_those_of_the_kernel():
    from minisd.ops.cuda.kernel import source

    text = source("gemm/4_mma.cu")
    assert f"BK = {linear.BK}, STAGES = {linear.STAGES}, PAD = {linear.PAD}" in text
