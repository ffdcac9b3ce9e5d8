"""The convolution kernels in the simulator: kernels, strides, padding on one side, ragged widths, every tile, the fused epilogue."""

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import conv2d
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.linear import LARGE, SMALL, WIDE
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import relative_l2

pytestmark = needs_simulator
RUNGS = {"direct": conv2d.direct, "implicit_gemm": conv2d.implicit_gemm, "fused": conv2d.fused}
ONE, NONE, VAE_DOWN = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
# x, C', KH, KW, stride, padding
SHAPES = {
    "3x3": ((2, 7, 9, 40), 24, 3, 3, 1, ONE), "stride_2": ((1, 9, 8, 16), 72, 3, 3, 2, ONE), "vae_down": ((1, 8, 7, 16), 16, 3, 3, 2, VAE_DOWN),
    "1x1": ((2, 5, 5, 64), 80, 1, 1, 1, NONE), "conv_in": ((1, 6, 5, 4), 40, 3, 3, 1, ONE), "conv_out": ((1, 6, 5, 40), 4, 3, 3, 1, ONE),
    "odd_widths": ((1, 5, 4, 13), 7, 3, 3, 1, ONE), "no_padding": ((1, 5, 6, 8), 8, 3, 3, 1, NONE), "one_pixel": ((1, 1, 1, 8), 8, 3, 3, 1, ONE),
    "3x1": ((1, 6, 5, 8), 8, 3, 1, 1, ((1, 1), (0, 0))), "skip_concat": ((1, 4, 4, 96), 32, 3, 3, 1, ONE),
}  # fmt: skip


def inputs(x, C_out, KH, KW, dtype="float16"):
    """x, w as the checkpoint has it and as it lies in memory, b."""
    random = np.random.RandomState(sum(x) + C_out)
    w = random.randn(KH, KW, x[3], C_out) / (KH * KW * x[3]) ** 0.5
    return random.randn(*x).astype(dtype), w.astype(dtype).transpose(3, 2, 0, 1), random.randn(C_out).astype(dtype)


def wide(*arrays):
    return (None if a is None else a.astype("float64") for a in arrays)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RUNGS)
def test_half(name, shape):
    size, C_out, KH, KW, stride, padding = SHAPES[shape]
    x, w, b = inputs(size, C_out, KH, KW)
    truth = reference.conv2d(*wide(x, w, b), stride=stride, padding=padding)
    with on_device(Simulator()):
        y = RUNGS[name](x, w, b, stride=stride, padding=padding)
    assert y.shape == truth.shape and y.dtype == np.float16 and relative_l2(y, truth) <= 1e-3


@pytest.mark.parametrize("tile", [SMALL, LARGE, WIDE], ids=str)
def test_the_epilogue_adds_bias_embedding_and_skip(tile):
    x, w, b = inputs((2, 8, 9, 24), 168, 3, 3)
    random = np.random.RandomState(0)
    embedding, skip = random.randn(2, 168).astype("float16"), random.randn(2, 8, 9, 168).astype("float16")
    truth = reference.conv2d(*wide(x, w, b), stride=1, padding=ONE) + embedding.astype("float64")[:, None, None] + skip
    with on_device(Simulator()):
        y = conv2d.conv2d_fused(x, w, b, embedding, skip, stride=1, padding=ONE, tile=tile)
        plain = conv2d.conv2d_fused(x, w, stride=1, padding=ONE, tile=tile)
    assert relative_l2(y, truth) <= 1e-3
    assert relative_l2(plain, reference.conv2d(*wide(x, w, None), stride=1, padding=ONE)) <= 1e-3


def test_the_epilogue_of_odd_widths():
    x, w, b = inputs((1, 4, 3, 5), 7, 3, 3)
    skip = np.random.RandomState(0).randn(1, 4, 3, 7).astype("float16")
    with on_device(Simulator()):
        y = conv2d.conv2d_fused(x, w, b, b[None], skip, stride=1, padding=ONE)
    assert relative_l2(y, reference.conv2d(*wide(x, w, b), stride=1, padding=ONE) + b.astype("float64") + skip) <= 1e-3


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (7, 10)])
@pytest.mark.parametrize("widths", [(16, 40), (6, 5)])
def test_upsampled(size, widths):
    x, w, b = inputs((2, 4, 5, widths[0]), widths[1], 3, 3)
    truth = reference.conv2d(reference.upsample_nearest(x.astype("float64"), size=size), *wide(w, b), stride=1, padding=ONE)
    with on_device(Simulator()):
        y = conv2d.upsampled(x, w, b, size=size)
    assert relative_l2(y, truth) <= 1e-3


def test_weights_are_used_where_they_lie(monkeypatch):
    """Channels-last weights go to the kernel as they are; others are brought into that order first."""
    device = Simulator()
    x, w, b = inputs((1, 4, 4, 8), 8, 3, 3)
    seen = []
    monkeypatch.setattr(device, "run", lambda instance, grid, block, arguments, shared: seen.append(arguments[1]))
    with on_device(device):
        conv2d.fused(x, w, b, stride=1, padding=ONE)
        conv2d.fused(x, np.ascontiguousarray(w), b, stride=1, padding=ONE)
    assert np.shares_memory(seen[0], w) and not np.shares_memory(seen[1], w) and np.array_equal(seen[0], seen[1])
