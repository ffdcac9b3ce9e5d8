"""Launchers of the matrix product y = x Wᵀ + b + skip: the lesson from a thread a number to tensor cores, and cuBLAS.

The kernels are in `kernels/gemm`, each with a header that says what it does and what it costs.
"""

import math

from ..dispatch import rung
from .cublas import product
from .device import device
from .kernel import OF_DTYPE, Kernel
from .norm import HALF_OR_FLOAT, refuses_wide
from .tiles import BIAS, BK, LARGE, NOTHING, SKIP, SMALL, WIDE, describe, plan, predicted, predicted_library

NAIVE = Kernel("gemm/1_naive.cu", "gemm_naive", HALF_OR_FLOAT)
SHARED = Kernel("gemm/2_shared.cu", "gemm_shared", HALF_OR_FLOAT)
REGISTERS = Kernel("gemm/3_registers.cu", "gemm_registers", HALF_OR_FLOAT)
TILES_AND_EVEN = ((*SMALL.sizes, False), *((*tile.sizes, True) for tile in (SMALL, LARGE, WIDE)))  # last: whether N is even
MMA = Kernel("gemm/4_mma.cu", "gemm_mma", TILES_AND_EVEN)
TOTAL = Kernel("conv2d/5_split_k.cu", "conv2d_total", HALF_OR_FLOAT)


def _product(kernel, x, w, b, skip, block, side):
    """Launches one thread block for each side × side numbers of y; the skip is added by a second pass."""
    dev = device()
    x, w, b = (None if a is None else dev.contiguous(a) for a in (x, w, b))
    N, K = w.shape
    M = x.size // K
    y = dev.empty((*x.shape[:-1], N), x.dtype)
    dev.launch(kernel(OF_DTYPE[x.dtype]), (math.ceil(N / side), math.ceil(M / side)), block, x, w, b, y, M, N, K)
    return y if skip is None else y + skip


@rung("linear", "naive", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_naive(x, w, b, *, skip=None):
    """CUDA: one thread for one number of y."""
    return _product(NAIVE, x, w, b, skip, (16, 16), 16)


@rung("linear", "shared", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_shared(x, w, b, *, skip=None):
    """CUDA: tiles of 16 × 16 numbers, operands read once a tile into shared memory."""
    return _product(SHARED, x, w, b, skip, (16, 16), 16)


@rung("linear", "registers", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_registers(x, w, b, *, skip=None):
    """CUDA: tiles of 64 × 64, each thread keeps 4 × 4 sums in registers."""
    return _product(REGISTERS, x, w, b, skip, 256, 64)


def total(sums, b, embedding, skip, y, *, images: int):
    """y = Σ sums + b + embedding of each image + skip, one after the other in float32.        sums [parts, …], y [images, …, O], O a multiple of 8"""
    dev, O = device(), y.shape[-1]
    arrays = (None if a is None else dev.contiguous(a) for a in (sums, b, embedding, skip))
    rows = y.size // (images * O)
    dev.launch(TOTAL(OF_DTYPE[sums.dtype]), math.ceil(y.size / 2048), 256, *arrays, y, len(sums), images, rows, O)
    return y


def refuses_no_mma(x, w, *args, **kwargs):
    if OF_DTYPE.get(x.dtype) != "half":
        return "takes float16: that is what the tensor cores multiply"
    return None if w.shape[1] % 8 == 0 else "needs a multiple of 8 channels: a load is 16 bytes"


def tile_for(M: int, N: int, K: int):
    """The tile that is predicted to be the fastest; the large ones store pairs."""
    return SMALL if N % 2 else plan(M, N, math.ceil(K / BK), device().multiprocessors, most_parts=1)[0]


def product_mma(x, w, b, skip=None, *, tile=None):
    """y = x Wᵀ + b + skip on tensor cores, in tiles of a given or a fitting size."""
    dev = device()
    x, w, b, skip = (None if a is None else dev.contiguous(a) for a in (x, w, b, skip))
    N, K = w.shape
    M = x.size // K
    tile = tile or tile_for(M, N, K)
    y = dev.empty((*x.shape[:-1], N), x.dtype)
    grid = (math.ceil(N / tile.BN), math.ceil(M / tile.BM))
    dev.launch(MMA(*tile.sizes, N % 2 == 0), grid, tile.threads, x, w, b, skip, y, M, N, K, shared=tile.shared_bytes(by_k=False))
    return y


def details_mma(x, w, *args, **kwargs):
    (N, K), M = w.shape, x.size // w.shape[1]
    return describe(tile_for(M, N, K), 1, M, N, device().multiprocessors)


@rung("linear", "mma", owner="cupy", refuses=refuses_no_mma, details=details_mma)
def linear_mma(x, w, b, *, skip=None):
    """CUDA: tensor cores on tiles of up to 128 × 160, four slices of 32 on their way; float32 sums, bias and skip added on the way out."""
    return product_mma(x, w, b, skip)


def refuses_all_but_half(x, *args, **kwargs):
    return None if OF_DTYPE.get(x.dtype) == "half" else "takes float16: in float32 it is the reference"


def refuses_slower(own: float, M: int, N: int, K: int, b, skip):
    """cuBLAS multiplies faster, but what is added needs a pass behind it. own: the predicted time of the kernel that adds it itself."""
    added = SKIP if skip is not None else BIAS if b is not None else NOTHING
    library = predicted_library(M, N, K, device().multiprocessors, added)
    return f"is predicted to take {library:.0f} with the pass for bias and skip, mma {own:.0f}" if own <= library else None


def refuses_where_mma_is_faster(x, w, b, *, skip=None):
    (N, K), reason = w.shape, refuses_all_but_half(x)
    if reason or refuses_no_mma(x, w):
        return reason
    size = (x.size // K, N, math.ceil(K / BK), device().multiprocessors)
    return refuses_slower(predicted(tile_for(*size[:2], K), 1, *size), *size[:2], K, b, skip)


@rung("linear", "cublas", owner="cupy", refuses=refuses_where_mma_is_faster)
def linear_cublas(x, w, b, *, skip=None):
    """cuBLAS: float16 operands, float32 sums; bias and skip in a second pass."""
    y = product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], len(w))  # one product, not one for each image
    if b is None and skip is None:
        return y
    if y.size and len(w) % 8 == 0 and OF_DTYPE[y.dtype] == "half":
        return total(y[None], b, None, skip, device().empty(y.shape, y.dtype), images=1)
    for term in (b, skip):
        y = y if term is None else y + term
    return y
