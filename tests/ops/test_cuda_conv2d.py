"""The convolution kernels in the simulator: kernels, strides, padding on one side, ragged widths, every tile, the epilogue, parts of K."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops import reference
from minisd.ops.cuda import conv2d, linear
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.kernel import source
from minisd.ops.cuda.tiles import LARGE, SMALL, WIDE
from tests.cudasim import simulator
from tests.cudasim.simulator import FORWARD, Simulator, SimulatorError, compile_text, gpu_ladder, needs_simulator
from tests.numerics import relative_l2

pytestmark = needs_simulator
RUNGS = {"direct": conv2d.direct, "im2col": conv2d.im2col, "implicit_gemm": conv2d.implicit_gemm, "fused": conv2d.fused}
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


@pytest.mark.parametrize("name", RUNGS)
def test_every_rung_ends_in_the_same_sums(name):
    x, w, b = inputs((2, 5, 4, 8), 24, 3, 3)
    random = np.random.RandomState(0)
    embedding, skip = random.randn(2, 24).astype("float16"), random.randn(2, 5, 4, 24).astype("float16")
    truth = reference.conv2d(*wide(x, w, b), stride=1, padding=ONE, embedding=embedding.astype("float64"), skip=skip.astype("float64"))
    with on_device(Simulator()):
        y = RUNGS[name](x, w, b, stride=1, padding=ONE, embedding=embedding, skip=skip)
    assert y.dtype == np.float16 and relative_l2(y, truth) <= 1e-3


def test_im2col_keeps_its_patches_small(monkeypatch):
    """One output row at a time gives what all at once give."""
    x, w, b = inputs((2, 7, 6, 8), 8, 3, 3)
    whole = conv2d.im2col(x, w, b, stride=2, padding=VAE_DOWN)
    monkeypatch.setattr(conv2d, "PATCH_BYTES", 1)
    assert np.array_equal(conv2d.im2col(x, w, b, stride=2, padding=VAE_DOWN), whole)


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


# ----- the sum over K in parts -----------------------------------------------------------------------------------------------------

# x, C', KH, KW, stride, padding, parts: parts that share the slices evenly and not, one slice a part, more parts than slices
SPLITS = {
    "even": ((2, 4, 5, 64), 40, 3, 3, 1, ONE, 2), "ragged": ((1, 5, 3, 40), 24, 3, 3, 1, ONE, 4), "stride_2": ((1, 9, 8, 16), 72, 3, 3, 2, ONE, 3),
    "one_slice_each": ((1, 3, 3, 32), 8, 3, 3, 1, ONE, 9), "more_than_slices": ((1, 3, 3, 8), 8, 3, 3, 1, VAE_DOWN, 16),
    "an_empty_last_part": ((1, 2, 2, 24), 16, 5, 1, 1, ((2, 2), (0, 0)), 4), "1x1": ((2, 4, 4, 96), 80, 1, 1, 1, NONE, 2),
}  # fmt: skip


def sums_of(y):
    random = np.random.RandomState(y.size)
    return random.randn(len(y), y.shape[-1]).astype("float16"), random.randn(*y.shape).astype("float16")


@pytest.mark.parametrize("split, tile", [*((split, SMALL) for split in SPLITS), ("ragged", LARGE), ("ragged", WIDE), ("stride_2", WIDE)], ids=str)
def test_parts_add_up(split, tile):
    size, C_out, KH, KW, stride, padding, parts = SPLITS[split]
    x, w, b = inputs(size, C_out, KH, KW)
    plain = reference.conv2d(*wide(x, w, b), stride=stride, padding=padding)
    embedding, skip = sums_of(plain)
    truth = plain + embedding.astype("float64")[:, None, None] + skip
    with on_device(Simulator()):
        y = conv2d.conv2d_split(x, w, b, embedding, skip, stride=stride, padding=padding, tile=tile, parts=parts)
        bare = conv2d.conv2d_split(x, w, stride=stride, padding=padding, tile=tile, parts=parts)
    assert y.dtype == np.float16 and relative_l2(y, truth) <= 1e-3
    assert relative_l2(bare, plain - b.astype("float64")) <= 1e-3


def test_the_unets_smallest_level_as_an_h100_would_cut_it():
    """8 × 8 pixels of two images, 320 channels of the 1280: a tile of 128 × 160 has all pixels, and 15 parts are 6 slices each, as 16 would be."""
    x, w, b = inputs((2, 8, 8, 320), 320, 3, 3)
    plain = reference.conv2d(*wide(x, w, b), stride=1, padding=ONE)
    embedding, skip = sums_of(plain)
    with on_device(Simulator(ways=[FORWARD])):
        y = conv2d.conv2d_split(x, w, b, embedding, skip, stride=1, padding=ONE, tile=WIDE, parts=16)
    assert relative_l2(y, plain + embedding.astype("float64")[:, None, None] + skip) <= 1e-3


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_upsampled_in_parts(size):
    x, w, b = inputs((2, 4, 5, 40), 24, 3, 3)
    truth = reference.conv2d(reference.upsample_nearest(x.astype("float64"), size=size), *wide(w, b), stride=1, padding=ONE)
    with on_device(Simulator()):
        y = conv2d.upsampled_split_k(x, w, b, size=size)
    assert relative_l2(y, truth) <= 1e-3


def test_the_parts_follow_the_number_of_multiprocessors():
    """The same convolution on GPUs of different size: as many parts as make blocks for all, and as many partial sums in memory."""
    x, w, b = inputs((1, 4, 4, 320), 8, 3, 3)
    launched = {}
    for processors in (1, 8, 132):
        device = Simulator(ways=[FORWARD])
        device.multiprocessors = processors
        with gpu_ladder(device):
            ops.conv2d(x, w, b, padding=1)
            text = ops.explain("conv2d", x, w, b, padding=1)
        launched[processors] = [e.partition("<")[0] for e in device.launches]
        assert "RUNS" in next(line for line in text.splitlines() if line.split()[0] == ("fused" if processors == 1 else "split_k"))
    assert launched == {1: ["conv2d_fused"], 8: ["conv2d_parts", "conv2d_total"], 132: ["conv2d_parts", "conv2d_total"]}
    device.multiprocessors = 1
    with gpu_ladder(device):
        assert "RUNS: 1 tiles of 64×64 for 1 multiprocessors" in ops.explain("conv2d", x, w, b, padding=1)
    x, w = (np.broadcast_to(np.float16(0.0), shape) for shape in ((2, 8, 8, 1280), (1280, 1280, 3, 3)))
    device.multiprocessors = 132
    with gpu_ladder(device):
        text = ops.explain("conv2d", x, w, padding=1)
        assert "RUNS: 8 tiles of 128×160 in 16 parts are 128 blocks for 132 multiprocessors" in text


PLANTED = {  # a change of the text -> what gives it away
    "a part that reads all slices": ("min(first + slices, s.slices<tile.BK>())", "s.slices<tile.BK>()", None),
    "a part that begins at the first slice": ("blockIdx.z * slices, M", "0 * slices, M", None),
    "the last part beyond the end": ("min(first + slices, s.slices<tile.BK>())", "first + slices", "out of bounds"),
    "parts on top of each other": ("((long long)blockIdx.z * M + m)", "((long long)m)", None),
    "a wrong first tap": ("first / blocks % s.KW", "first % s.KW", None),
    "no bounds in the second kernel": ("if (at >= size) return;", "", "out of bounds"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_found(bug, monkeypatch):
    old, new, complaint = PLANTED[bug]
    text = source("conv2d/5_split_k.cu")
    assert text.count(old) == 1
    instances = (conv2d.PARTS(*SMALL.sizes, 1), linear.TOTAL("float"))
    library = compile_text(text.replace(old, new), instances)
    monkeypatch.setattr(simulator, "function", lambda instance: getattr(library, simulator.symbol(instance)))
    x, w, b = inputs((1, 5, 3, 40), 24, 3, 3)
    truth = reference.conv2d(*wide(x, w, b), stride=1, padding=ONE)

    def error():
        with on_device(Simulator()):
            return relative_l2(conv2d.conv2d_split(x, w, b, stride=1, padding=ONE, tile=SMALL, parts=4), truth)

    if complaint:
        with pytest.raises(SimulatorError, match=complaint):
            error()
    else:
        wrong = error()
        assert np.isnan(wrong) or wrong > 1e-2, "nobody noticed"


# ----- 1 × 1 through cuBLAS --------------------------------------------------------------------------------------------------------


def test_a_pointwise_convolution_is_one_product_without_a_copy():
    """Its arithmetic is CuPy's; here NumPy's stands in for it."""
    x, w, b = inputs((2, 3, 4, 24), 16, 1, 1, "float32")
    assert np.shares_memory(w.reshape(w.shape[:2]), w), "channels-last weights are [C, O] in memory: a transposed operand, not a copy"
    _, skip = sums_of(np.empty((2, 3, 4, 16), "float32"))
    y = conv2d.pointwise(x, w, b, stride=1, padding=NONE, skip=skip.astype("float32"))
    assert relative_l2(y, reference.conv2d(*wide(x, w, b), stride=1, padding=NONE) + skip) <= 1e-6


def test_what_goes_to_cublas():
    """Not what gathers, not what an epilogue saves more for."""
    def refuses(side, C, *, k=1, stride=1, bias=False, skip=False, dtype="float16", **sums):
        x, w = np.empty((2, side, side, C), dtype), np.empty((C, C, k, k), dtype)
        sums |= dict(skip=x) if skip else {}
        with on_device(Simulator()):
            return conv2d.refuses_gathering(x, w, w[:, 0, 0, 0] if bias else None, stride=stride, padding=NONE, **sums)

    assert refuses(64, 320) is None and refuses(16, 1280, bias=True) is None
    assert "predicted" in refuses(64, 320, bias=True) and "predicted" in refuses(64, 320, bias=True, skip=True)
    assert refuses(8, 13, bias=True, skip=True) is None, "ragged widths are slow in a kernel"
    assert "1×1" in refuses(8, 320, k=3) and "1×1" in refuses(8, 320, stride=2)
    assert "embedding" in refuses(8, 320, embedding=np.empty((2, 320), "float16"))
    assert "float16" in refuses(8, 320, dtype="float32")
