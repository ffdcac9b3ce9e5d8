"""The matrix product kernels in the simulator: every tile, ragged on all sides, with and without bias."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cuda import linear
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.tiles import TILES
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
@pytest.mark.parametrize("tile", TILES, ids=str)
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


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("N", [6, 33])
@pytest.mark.parametrize("name", RUNGS)
def test_the_skip_is_added(name, N):
    x, w, b = inputs(19, N, 40)
    skip = np.random.RandomState(0).randn(19, N).astype("float16")
    truth = x.astype("float64") @ w.astype("float64").T + b + skip
    with on_device(Simulator()):
        y = RUNGS[name](x, w, b, skip=skip)
        alone = RUNGS[name](x, w, None, skip=skip)
    assert y.dtype == np.float16 and relative_l2(y, truth) <= 1e-3 and relative_l2(alone, truth - b) <= 1e-3


def test_cublas_is_one_product_with_the_leading_axes_folded():
    """Its arithmetic is CuPy's; here NumPy's stands in for it."""
    x, w, b = inputs(6, 5, 16, "float32")
    assert relative_l2(linear.linear_cublas(x.reshape(2, 3, 16), w, b).reshape(6, 5), x.astype("float64") @ w.T.astype("float64") + b) <= 1e-6
    assert linear.linear_cublas(x[0], w, None).shape == (5,)
    skip = np.ones((6, 5), "float32")
    assert np.array_equal(linear.linear_cublas(x, w, b, skip=skip), linear.linear_cublas(x, w, b) + 1.0) and (skip == 1.0).all()
    assert linear.refuses_all_but_half(x) and linear.refuses_all_but_half(x.astype("float16")) is None


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("N", [40, 6])
def test_behind_cublas_bias_and_skip_are_one_pass(N):
    """With ragged widths two, by CuPy."""
    x, w, b = inputs(70, N, 40)
    skip = np.random.RandomState(0).randn(7, 10, N).astype("float16")
    truth = (x.astype("float64") @ w.astype("float64").T).reshape(7, 10, N)
    device = Simulator()
    with on_device(device):
        y = linear.linear_cublas(x.reshape(7, 10, 40), w, b, skip=skip)
        biased = linear.linear_cublas(x.reshape(7, 10, 40), w, b)
        bare = linear.linear_cublas(x.reshape(7, 10, 40), w, None)
    assert y.dtype == np.float16 and relative_l2(y, truth + b + skip) <= 1e-3
    assert relative_l2(biased, truth + b) <= 1e-3 and relative_l2(bare, truth) <= 1e-3
    assert device.launches == ["conv2d_total<half>"] * 2 * (N % 8 == 0)


def test_the_epilogue_is_worth_more_where_the_sum_is_short_and_y_is_large():
    def refuses(M, N, K, bias=False, skip=False, dtype="float16"):
        x, w, b, s = (np.empty(shape, dtype) for shape in ((M, K), (N, K), (N,), (M, N)))
        with on_device(Simulator()):
            return linear.refuses_where_mma_is_faster(x, w, b if bias else None, skip=s if skip else None)

    assert refuses(8192, 320, 320) is None, "without bias and skip there is no second pass: q, k and v"
    assert refuses(8192, 320, 320, bias=True) and refuses(2048, 640, 640, bias=True) is None
    assert "pass for bias and skip" in refuses(8192, 320, 640, bias=True, skip=True) and refuses(8192, 320, 1280, bias=True, skip=True) is None
    assert refuses(512, 1280, 1280, bias=True, skip=True) is None, "40 tiles: most multiprocessors would watch"
    assert refuses(8192, 320, 324, bias=True, skip=True) is None, "mma does not take it, so there is nothing to leave it for"
    assert "float16" in refuses(8, 8, 8, bias=True, dtype="float32")


def test_explain_says_which_one_and_why(monkeypatch):
    module = import_module("minisd.ops.dispatch")  # `minisd.ops.dispatch` is the function
    monkeypatch.setattr(module, "array_module", lambda *arrays, names=None: SimpleNamespace(__name__="cupy"))
    x, w, b, skip = (np.empty(shape, "float16") for shape in ((8192, 320), (320, 320), (320,), (8192, 320)))
    with on_device(Simulator()):
        fused, bare = ops.explain("linear", x, w, b, skip=skip), ops.explain("linear", x, w)
    lines = {line.split()[0]: line for line in fused.splitlines()}
    assert lines["mma"].endswith("RUNS: 128 tiles of 128×160 for 132 multiprocessors")
    assert lines["cublas"].endswith("is predicted to take 23 with the pass for bias and skip, mma 15")
    lines = {line.split()[0]: line for line in bare.splitlines()}
    assert lines["cublas"].endswith("RUNS") and lines["mma"].endswith("slower than the one that runs")
