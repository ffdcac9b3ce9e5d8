"""Launchers of the norms: which kernel, how many blocks, how much shared memory.

The kernels are in `kernels/group_norm` and `kernels/layer_norm`, each with a header that says what it does and what it costs.
"""

import math

from ..dispatch import rung
from .device import device
from .kernel import OF_DTYPE, Kernel

HALF_OR_FLOAT = (("half",), ("float",))
GROUP_NAIVE = Kernel("group_norm/1_naive.cu", "group_norm_naive", HALF_OR_FLOAT)
GROUP_SHUFFLES = Kernel("group_norm/2_shuffles.cu", "group_norm_shuffles", HALF_OR_FLOAT)
GROUP_STATISTICS = Kernel("group_norm/3_two_kernels.cu", "group_norm_statistics", HALF_OR_FLOAT)
GROUP_APPLY = Kernel("group_norm/3_two_kernels.cu", "group_norm_apply", HALF_OR_FLOAT)
GROUP_ONE_PASS = Kernel("group_norm/4_one_pass.cu", "group_norm_one_pass", HALF_OR_FLOAT)
LAYER_NAIVE = Kernel("layer_norm/1_naive.cu", "layer_norm_naive", HALF_OR_FLOAT)
LAYER_WARP = Kernel("layer_norm/2_warp.cu", "layer_norm_warp", HALF_OR_FLOAT)
LAYER_VECTORS = Kernel("layer_norm/3_vectors.cu", "layer_norm_vectors", HALF_OR_FLOAT)

KEPT = 20480  # elements of x in the shared memory of one block of the one-pass rung; more of them would keep few processors busy for long
BUNDLE = 8  # groups of one block there
CHUNKS = 264  # blocks that the two-kernel rung aims at: two for each of 132 multiprocessors,
THREADS = 512  # each of about as many threads: 16 bytes of 1024 threads on their way, and more where loads are unrolled


def refuses_wide(x, *args, **kwargs):
    """float64 is the reference's; launchers take half and float."""
    return None if x.dtype in OF_DTYPE and x.dtype.itemsize <= 4 else "takes float16 and float32"


def image_shape(x) -> tuple[int, int, int]:
    """[B, ..., C] as B, S, C."""
    return x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]


def vector_size(x) -> int:
    """Elements in 16 bytes."""
    return 16 // x.dtype.itemsize


def _group_per_block(kernel, x, w, b, groups, eps, act):
    dev = device()
    x, w, b = (dev.contiguous(a) for a in (x, w, b))
    y = dev.empty(x.shape, x.dtype)
    B, S, C = image_shape(x)
    dev.launch(kernel(OF_DTYPE[x.dtype]), (groups, B), 256, x, w, b, y, S, C, groups, eps, int(act == "silu"))
    return y


@rung("group_norm", "naive", owner="cupy", refuses=refuses_wide)
def group_norm_naive(x, w, b, *, groups, eps, act):
    """CUDA: one block for one group of one image, three passes, sums through shared memory."""
    return _group_per_block(GROUP_NAIVE, x, w, b, groups, eps, act)


@rung("group_norm", "shuffles", owner="cupy", refuses=refuses_wide)
def group_norm_shuffles(x, w, b, *, groups, eps, act):
    """CUDA: the same split, mean and variance in one pass by Welford's recurrence, lanes exchange them by shuffles."""
    return _group_per_block(GROUP_SHUFFLES, x, w, b, groups, eps, act)


def refuses_ragged(x, *args, **kwargs):
    C, V = x.shape[-1], vector_size(x)
    if C % V or C // V > 1024:
        return f"needs a multiple of {V} channels, at most {1024 * V}: a load is 16 bytes"
    return refuses_wide(x)


@rung("group_norm", "two_kernels", owner="cupy", refuses=refuses_ragged)
def group_norm_two_kernels(x, w, b, *, groups, eps, act):
    """CUDA: chunks of pixels with all their channels, 16 bytes a load; one kernel measures, a second one scales."""
    dev, T = device(), OF_DTYPE[x.dtype]
    x, w, b = (dev.contiguous(a) for a in (x, w, b))
    B, S, C = image_shape(x)
    across = C // vector_size(x)
    rows = max(1, THREADS // across)
    chunk = max(rows, math.ceil(S * B / CHUNKS))
    chunks = math.ceil(S / chunk)
    parts = dev.empty((B, groups, chunks, 3), "float32")
    y = dev.empty(x.shape, x.dtype)
    dev.launch(GROUP_STATISTICS(T), (chunks, B), (across, rows), x, parts, S, C, groups, chunk, shared=8 * rows * C)
    dev.launch(GROUP_APPLY(T), (chunks, B), (across, rows), x, w, b, parts, y, S, C, groups, chunk, eps, int(act == "silu"), shared=12 * groups)
    return y


def bundle_of(C: int, groups: int, V: int) -> int:
    """The fewest groups whose channels are whole vectors of V elements; 0 if there is no such number up to BUNDLE that divides `groups`."""
    return next((n for n in range(1, BUNDLE + 1) if groups % n == 0 and n * (C // groups) % V == 0), 0)


def refuses_large_groups(x, w, b, *, groups, eps, act):
    reason = refuses_wide(x)
    if reason:
        return reason
    B, S, C = image_shape(x)
    n = bundle_of(C, groups, vector_size(x))
    if not n:
        return f"finds no bundle of up to {BUNDLE} groups of {C // groups} channels that is whole vectors of {vector_size(x)}"
    stripe = n * (C // groups)
    if stripe * S > KEPT or stripe // vector_size(x) > 512:
        return f"would keep {stripe} channels of {S} pixels in the shared memory of a block, more than {KEPT} numbers"
    return None


@rung("group_norm", "one_pass", owner="cupy", refuses=refuses_large_groups)
def group_norm_one_pass(x, w, b, *, groups, eps, act):
    """CUDA: a block keeps a bundle of groups in shared memory between measuring and scaling: x is read once."""
    dev = device()
    x, w, b = (dev.contiguous(a) for a in (x, w, b))
    B, S, C = image_shape(x)
    n = bundle_of(C, groups, vector_size(x))
    y = dev.empty(x.shape, x.dtype)
    stripe = n * (C // groups)
    shared = S * stripe * x.dtype.itemsize + 4 * (512 // (stripe // vector_size(x)) * (stripe + 1) + n)
    dev.launch(GROUP_ONE_PASS(OF_DTYPE[x.dtype]), (groups // n, B), 512, x, w, b, y, S, C, groups, n, eps, int(act == "silu"), shared=shared)
    return y


def _rows(kernel, x, w, b, eps, rows_per_block):
    dev = device()
    x, w, b = (dev.contiguous(a) for a in (x, w, b))
    y = dev.empty(x.shape, x.dtype)
    C = x.shape[-1]
    rows = x.size // C
    dev.launch(kernel(OF_DTYPE[x.dtype]), math.ceil(rows / rows_per_block), 128, x, w, b, y, rows, C, eps)
    return y


@rung("layer_norm", "naive", owner="cupy", refuses=refuses_wide)
def layer_norm_naive(x, w, b, *, eps):
    """CUDA: one thread for one token, three passes over its channels."""
    return _rows(LAYER_NAIVE, x, w, b, eps, 128)


@rung("layer_norm", "warp", owner="cupy", refuses=refuses_wide)
def layer_norm_warp(x, w, b, *, eps):
    """CUDA: one warp for one token: neighbouring lanes read neighbouring channels, sums by shuffles."""
    return _rows(LAYER_WARP, x, w, b, eps, 4)


def refuses_long_rows(x, *args, **kwargs):
    C, V = x.shape[-1], vector_size(x)
    if C % V or C > 1280 * (V // 4):
        return f"keeps a row in registers: a multiple of {V} channels, at most {1280 * (V // 4)}"
    return refuses_wide(x)


@rung("layer_norm", "vectors", owner="cupy", refuses=refuses_long_rows)
def layer_norm_vectors(x, w, b, *, eps):
    """CUDA: the same with 16-byte loads, and the row in registers: x is read once."""
    return _rows(LAYER_VECTORS, x, w, b, eps, 4)
