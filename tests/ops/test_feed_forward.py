"""The feed-forward by blocks of rows computes what its three ops compute one after the other; so does the GPU's, with GEGLU in an epilogue."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops import reference
from minisd.ops.cpu import feed_forward
from minisd.ops.cuda import feed_forward as cuda
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.kernel import source
from minisd.ops.cuda.tiles import SMALL, TILES
from tests.cudasim import simulator
from tests.cudasim.simulator import FORWARD, Simulator, SimulatorError, compile_text, gpu_ladder, needs_simulator
from tests.numerics import relative_l2


@pytest.mark.parametrize("rung", ["short_sums", "row_blocks"])
@pytest.mark.parametrize("rows", [1, 5, 512])
@pytest.mark.parametrize("tokens", [(1,), (2, 7), (1, 33)], ids=str)
def test_equals_linear_geglu_linear(tokens, rows, rung, monkeypatch):
    monkeypatch.setattr(feed_forward, "ROWS", rows)
    random = np.random.RandomState(4)
    x, w_in, b_in, w_out, b_out = (random.randn(*s).astype("float32") for s in ((*tokens, 12), (30, 12), (30,), (12, 15), (12,)))
    with ops.using(feed_forward=rung):
        y = ops.feed_forward(x, w_in, b_in, w_out, b_out)
    with ops.using(profile="exact"):
        steps = ops.linear(ops.geglu(ops.linear(x, w_in, b_in)), w_out, b_out)
    assert y.shape == (*tokens, 12) and y.dtype == np.float32
    assert np.abs(y - steps).max() <= 2e-6 * np.abs(steps).max()


@pytest.mark.parametrize("rung", ["reference", "short_sums", "row_blocks"])
def test_the_skip_is_added_last(rung):
    random = np.random.RandomState(4)
    x, w_in, b_in, w_out, b_out, skip = (random.randn(*s).astype("float32") for s in ((3, 7, 12), (30, 12), (30,), (12, 15), (12,), (3, 7, 12)))
    before = skip.copy()
    with ops.using(feed_forward=rung):
        y = ops.feed_forward(x, w_in, b_in, w_out, b_out, skip=skip)
        assert np.array_equal(y, ops.feed_forward(x, w_in, b_in, w_out, b_out) + skip) and np.array_equal(skip, before)


BOUND = 1e-6  # of the fast rung


@pytest.mark.parametrize("rung, bound", [("short_sums", 5e-7), ("row_blocks", BOUND)])
def test_the_error_keeps_its_bound(rung, bound):
    random = np.random.RandomState(5)
    shapes = (64, 320), (2560, 320), (2560,), (320, 1280), (320,)
    x, w_in, b_in, w_out, b_out = (random.standard_normal(s) / (s[-1] ** 0.5 if len(s) == 2 and s[0] > 64 else 1.0) for s in shapes)
    given = [a.astype("float32") for a in (x, w_in, b_in, w_out, b_out)]
    truth = ops.feed_forward(*(a.astype("float64") for a in given))
    with ops.using(feed_forward=rung):
        assert relative_l2(ops.feed_forward(*given), truth) <= bound


# ----- the GPU's ---------------------------------------------------------------------------------------------------------------------

kernels = needs_simulator


def halves(M, K, D, C_out=8):
    random = np.random.RandomState(M + K + D)
    arrays = random.randn(M, K), random.randn(2 * D, K) / K**0.5, random.randn(2 * D), random.randn(C_out, D) / D**0.5, random.randn(C_out)
    return [a.astype("float16") for a in arrays]


def gated(x, w, b):
    return reference.geglu(reference.linear(*(a.astype("float64") for a in (x, w, b))))


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (131, 72, 88)], ids=str)
def test_geglu_on_the_way_out(shape, tile):
    """A single row; rows, columns and slices that end inside a tile."""
    x, w, b, *_ = halves(*shape)
    with on_device(Simulator()):
        y = cuda.product_geglu(x, w, b, tile=tile)
    assert y.shape == (shape[0], shape[2]) and y.dtype == np.float16 and relative_l2(y, gated(x, w, b)) <= 1e-3


@kernels[0]
@kernels[1]
def test_the_gpus_feed_forward():
    args = halves(33, 40, 160, 40)
    x, *rest = args
    skip = np.random.RandomState(0).randn(3, 11, 40).astype("float16")
    truth = reference.feed_forward(*(a.astype("float64") for a in (x.reshape(3, 11, 40), *rest)), skip=skip.astype("float64"))
    with gpu_ladder(Simulator()) as device:
        y = ops.feed_forward(x.reshape(3, 11, 40), *rest, skip=skip)
    assert relative_l2(y, truth) <= 1e-3
    assert [e.partition("<")[0] for e in device.launches] == ["gemm_geglu", "gemm_mma"]


def test_ragged_widths_are_refused():
    for C, D in ((12, 16), (16, 12)):
        assert "multiples of 8" in cuda.refuses_ragged(*halves(3, C, D))
    assert cuda.refuses_ragged(*halves(3, 16, 24)) is None
    assert "float16" in cuda.refuses_ragged(*(a.astype("float32") for a in halves(3, 16, 24)))


PLANTED = {  # a change of the text -> what gives it away
    "value and gate exchanged": ("row % 2 ? n + D : n", "row % 2 ? n : n + D", None),
    "the gate's bias of the value": ("gate + to_float(b[n + D])", "gate + to_float(b[n])", None),
    "results over a slice that is still read": ("    __syncthreads();  // everyone has left", "    // everyone has left", "a race"),
    "results read before they are there": ("    __syncthreads();\n    for (int i = t; i < BM", "    for (int i = t; i < BM", "a race"),
    "columns beyond D": ("if (m < M && n0 + column < D)", "if (m < M)", "out of bounds|beside"),
}


@kernels[0]
@kernels[1]
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_found(bug, monkeypatch):
    old, new, complaint = PLANTED[bug]
    text = source("gemm/5_geglu.cu")
    assert text.count(old) == 1
    library = compile_text(text.replace(old, new), (cuda.GEGLU(*SMALL.sizes),))
    monkeypatch.setattr(simulator, "function", lambda instance: getattr(library, simulator.symbol(instance)))
    x, w, b, *_ = halves(65, 136, 40)  # five slices: the last one lies where the results go

    def error(ways):
        with on_device(Simulator(ways)):
            return relative_l2(cuda.product_geglu(x, w, b, tile=SMALL), gated(x, w, b))

    if complaint:
        with pytest.raises(SimulatorError, match=complaint):
            error(Simulator().ways)
    else:
        wrong = error([FORWARD])
        assert np.isnan(wrong) or wrong > 1e-2, "nobody noticed"
