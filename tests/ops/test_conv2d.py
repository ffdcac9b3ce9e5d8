"""The blocks of im2col, their memory, and what goes to the pointwise rung. Values on every case: `test_ladder.py`."""

import tracemalloc

import numpy as np
import pytest

from minisd import ops
from minisd.errors import UsageError
from minisd.ops.cpu import conv2d
from tests.numerics import assert_close_f64, relative_l2

ONE, NONE, VAE_DOWN = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
BOUND = 6e-7  # of im2col, as its docstring says
ROW_BYTES = 5 * 3 * 3 * 2 * 8  # the patches of one output row below: W′ = 5, 3×3 taps, 2 channels, float64


@pytest.mark.parametrize("H", range(1, 9))
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 100])
def test_every_split_into_row_blocks(H, rows, monkeypatch):
    """H′ a multiple of the block, one more, one less, smaller than one block."""
    random = np.random.RandomState(H)
    x, w, b = random.randn(2, H, 5, 2), random.randn(3, 2, 3, 3), random.randn(3)
    with ops.using(conv2d="reference"):
        truth = ops.conv2d(x, w, b, padding=1)
    monkeypatch.setattr(conv2d, "PATCH_BYTES", rows * ROW_BYTES + ROW_BYTES // 2)
    with ops.using(conv2d="im2col"):
        assert_close_f64(ops.conv2d(x, w, b, padding=1), truth, name=f"{H} rows in blocks of {rows}", tolerance=1e-14)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("padding", [ONE, VAE_DOWN])
@pytest.mark.parametrize("H, W", [(8, 8), (7, 5), (9, 6)])
def test_stride_2_in_blocks(H, W, padding, rows, monkeypatch):
    random = np.random.RandomState(H + W)
    x, w = random.randn(1, H, W, 2), random.randn(3, 2, 3, 3)
    with ops.using(conv2d="reference"):
        truth = ops.conv2d(x, w, stride=2, padding=padding)
    monkeypatch.setattr(conv2d, "PATCH_BYTES", rows * truth.shape[2] * 18 * 8)
    with ops.using(conv2d="im2col"):
        assert_close_f64(ops.conv2d(x, w, stride=2, padding=padding), truth, name="stride 2", tolerance=1e-14)


@pytest.mark.parametrize("C", [3, 128, 640, 1280])
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1)])
def test_errors_of_long_and_of_short_sums(C, kernel, padding):
    random = np.random.RandomState(C)
    x, w = random.randn(1, 5, 6, C).astype("float32"), random.randn(64, C, kernel, kernel).astype("float32")
    with ops.using(conv2d="reference"):
        truth = ops.conv2d(x.astype("float64"), w.astype("float64"), padding=padding)
    errors = {}
    for rung in ("im2col", "short_sums"):
        with ops.using(conv2d=rung):
            errors[rung] = relative_l2(ops.conv2d(x, w, padding=padding), truth)
    assert errors["im2col"] <= BOUND
    assert errors["short_sums"] <= errors["im2col"] or C == 3  # which is two sums of two and one products
    assert errors["short_sums"] <= 2.5e-7


def test_a_kernel_with_one_tap_moves_the_picture():
    """Which way is up: tap (i, j) reads the pixel i rows below and j columns right of the padded corner."""
    x = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    w = np.zeros((1, 1, 3, 3), dtype="float32")
    w[0, 0, 0, 2] = 1.0  # one row above, one column right
    for rung in ("reference", "short_sums", "im2col"):
        with ops.using(conv2d=rung):
            y = ops.conv2d(x, w, padding=1)[0, :, :, 0]
        assert y.tolist() == [[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]]


def test_integer_padding_is_padding_on_all_sides():
    random = np.random.RandomState(0)
    x, w = random.randn(1, 4, 5, 2), random.randn(3, 2, 3, 3)
    assert np.array_equal(ops.conv2d(x, w, padding=1), ops.conv2d(x, w, padding=ONE))
    assert np.array_equal(ops.conv2d(x, w, padding=0), ops.conv2d(x, w, padding=NONE))


@pytest.mark.parametrize(
    "kernel, stride, padding, runs",
    [(1, 1, NONE, "pointwise"), (1, 2, NONE, "im2col"), (1, 1, ONE, "im2col"), (3, 1, NONE, "im2col")],
)
def test_only_a_bare_1x1_is_pointwise(kernel, stride, padding, runs):
    x, w = np.zeros((1, 4, 4, 2), "float32"), np.zeros((3, 2, kernel, kernel), "float32")
    (line,) = [s for s in ops.explain("conv2d", x, w, stride=stride, padding=padding).splitlines() if s.endswith("RUNS")]
    assert line.split()[0] == runs


def peak_bytes(f) -> tuple:
    """The result of f() and the largest sum of all allocations while it ran, the result's own included."""
    tracemalloc.start()
    try:
        y = f()
        return y, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("padding", [ONE, NONE])
@pytest.mark.parametrize("rung", [r.name for r in ops.RUNGS["conv2d"] if r.owner == "numpy" and r.name != "pointwise"])
def test_memory_of_the_largest_convolution_of_the_vae(rung, padding):
    """128 channels at 512×512: all patches together would be 1.2 GB. (Two output channels instead of 128, for time.)"""
    x = np.zeros((1, 512, 512, 128), dtype="float32")
    w = np.zeros((2, 128, 3, 3), dtype="float32")
    with ops.using(conv2d=rung):
        try:
            y, peak = peak_bytes(lambda: ops.conv2d(x, w, np.zeros(2, "float32"), padding=padding))
        except UsageError as refusal:
            (line,) = [line for line in refusal.why.splitlines() if line.split()[0] == rung]
            pytest.skip(f"{rung} {line.rpartition(' · ')[2]}")
    padded = 514 * 514 * 128 * 4 if padding == ONE else 0
    assert peak - y.nbytes - padded <= 40 << 20


# ----- what is added behind the convolution ------------------------------------------------------------------------------------------

CPU = [r for r in ops.RUNGS["conv2d"] if r.owner != "cupy"]
KERNELS = {"3x3": (136, 136, 3, 1, ONE), "stride_2": (136, 136, 3, 2, VAE_DOWN), "1x1": (136, 136, 1, 1, NONE), "few_channels": (136, 3, 3, 1, ONE)}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rung", CPU, ids=lambda r: r.name)
def test_embedding_and_skip_are_added_one_after_the_other(rung, kernel, monkeypatch):
    """To the last bit what two additions behind the convolution give, in that order; also when the image is cut into blocks."""
    C, C_out, k, stride, padding = KERNELS[kernel]
    random = np.random.RandomState(0)
    x, w, b, embedding = (random.randn(*s).astype("float32") for s in ((2, 25, 26, C), (C_out, C, k, k), (C_out,), (2, C_out)))
    if rung.refuses(x, w, b, stride=stride, padding=padding):
        return
    monkeypatch.setattr(conv2d, "PATCH_BYTES", 1 << 18)
    with ops.using(conv2d=rung.name):
        plain = ops.conv2d(x, w, b, stride=stride, padding=padding)
        skip = random.randn(*plain.shape).astype("float32")
        before = skip.copy()
        assert np.array_equal(ops.conv2d(x, w, b, stride=stride, padding=padding, skip=skip), plain + skip) and np.array_equal(skip, before)
        if rung.name != "pointwise":
            both = ops.conv2d(x, w, b, stride=stride, padding=padding, embedding=embedding, skip=skip)
            assert np.array_equal(both, plain + embedding[:, None, None] + skip)


def test_every_rung_takes_one_of_the_kernels():
    taken = set()
    for C, C_out, k, stride, padding in KERNELS.values():
        x, w = np.empty((2, 25, 26, C), "float32"), np.empty((C_out, C, k, k), "float32")
        taken |= {r.name for r in CPU if not r.refuses(x, w, None, stride=stride, padding=padding)}
    assert taken == {r.name for r in CPU}


def test_pointwise_adds_no_embedding():
    x, w, e = np.zeros((1, 2, 2, 8), "float32"), np.zeros((8, 8, 1, 1), "float32"), np.ones((1, 8), "float32")
    with ops.using(conv2d="pointwise"), pytest.raises(UsageError):
        ops.conv2d(x, w, padding=0, embedding=e)
    assert (ops.conv2d(x, w, padding=0, embedding=e) == 1.0).all()
