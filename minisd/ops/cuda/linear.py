"""Launchers of the matrix product y = x Wᵀ + b: the lesson from a thread a number to tensor cores, and cuBLAS, which is what one uses.

The kernels are in `kernels/gemm`, each with a header that says what it does and what it costs.
"""

import math

from ..dispatch import rung
from .cublas import product
from .device import device
from .kernel import OF_DTYPE, Kernel
from .norm import HALF_OR_FLOAT, refuses_wide

NAIVE = Kernel("gemm/1_naive.cu", "gemm_naive", HALF_OR_FLOAT)
SHARED = Kernel("gemm/2_shared.cu", "gemm_shared", HALF_OR_FLOAT)
REGISTERS = Kernel("gemm/3_registers.cu", "gemm_registers", HALF_OR_FLOAT)
SMALL, LARGE, WIDE = (64, 64, 32, 32), (128, 128, 64, 32), (128, 160, 64, 40)  # BM, BN, WM, WN
MMA = Kernel("gemm/4_mma.cu", "gemm_mma", ((*SMALL, False), (*SMALL, True), (*LARGE, True), (*WIDE, True)))  # last: whether N is even

STAGES, BK, PAD = 4, 32, 8  # as in mma_tile.cuh
MULTIPROCESSORS = 132  # of an H100: a larger tile is taken where it still gives every one a block


def tile_for(M: int, N: int) -> tuple[int, int, int, int]:
    """128×160 where 160 divides N (all widths of Stable Diffusion), else 128×128; 64×64 where these would leave processors idle."""
    tile = WIDE if N % 160 == 0 else LARGE
    return tile if math.ceil(M / tile[0]) * math.ceil(N / tile[1]) >= MULTIPROCESSORS // 2 else SMALL


def threads(tile) -> int:
    BM, BN, WM, WN = tile
    return BM // WM * (BN // WN) * 32


def tile_bytes(tile, *, by_k: bool) -> int:
    """Shared memory of an MmaTile; by_k: its B has rows of k."""
    BM, BN, _, _ = tile
    return 2 * STAGES * (BM * (BK + PAD) + (BK * (BN + PAD) if by_k else BN * (BK + PAD)))


def _product(kernel, x, w, b, block, tile):
    """Launches one thread block for each tile = (rows, columns) of y."""
    dev = device()
    x, w, b = (None if a is None else dev.contiguous(a) for a in (x, w, b))
    N, K = w.shape
    M = x.size // K
    y = dev.empty((*x.shape[:-1], N), x.dtype)
    dev.launch(kernel(OF_DTYPE[x.dtype]), (math.ceil(N / tile), math.ceil(M / tile)), block, x, w, b, y, M, N, K)
    return y


@rung("linear", "naive", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_naive(x, w, b):
    """CUDA: one thread for one number of y."""
    return _product(NAIVE, x, w, b, (16, 16), 16)


@rung("linear", "shared", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_shared(x, w, b):
    """CUDA: tiles of 16 × 16 numbers, operands read once a tile into shared memory."""
    return _product(SHARED, x, w, b, (16, 16), 16)


@rung("linear", "registers", owner="cupy", refuses=refuses_wide, lesson=True)
def linear_registers(x, w, b):
    """CUDA: tiles of 64 × 64, each thread keeps 4 × 4 sums in registers."""
    return _product(REGISTERS, x, w, b, 256, 64)


def refuses_no_mma(x, w, b):
    if OF_DTYPE.get(x.dtype) != "half":
        return "takes float16: that is what the tensor cores multiply"
    return None if w.shape[1] % 8 == 0 else "needs a multiple of 8 channels: a load is 16 bytes"


def product_mma(x, w, b, *, tile=None):
    """y = x Wᵀ + b on tensor cores, in tiles of a given or a fitting size."""
    dev = device()
    x, w, b = (None if a is None else dev.contiguous(a) for a in (x, w, b))
    N, K = w.shape
    M = x.size // K
    tile = tile or (tile_for(M, N) if N % 2 == 0 else SMALL)
    y = dev.empty((*x.shape[:-1], N), x.dtype)
    grid = (math.ceil(N / tile[1]), math.ceil(M / tile[0]))
    dev.launch(MMA(*tile, N % 2 == 0), grid, threads(tile), x, w, b, y, M, N, K, shared=tile_bytes(tile, by_k=False))
    return y


@rung("linear", "mma", owner="cupy", refuses=refuses_no_mma)
def linear_mma(x, w, b):
    """CUDA: tensor cores on tiles of up to 128 × 160, four slices of 32 on their way; float32 sums, bias added on the way out."""
    return product_mma(x, w, b)


def refuses_all_but_half(x, *args, **kwargs):
    return None if OF_DTYPE.get(x.dtype) == "half" else "takes float16: in float32 it is the reference"


@rung("linear", "cublas", owner="cupy", refuses=refuses_all_but_half)
def linear_cublas(x, w, b):
    """cuBLAS: float16 operands, float32 sums; the bias in a second pass."""
    y = product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], len(w))  # one product, not one for each image
    return y if b is None else y + b
