"""Launchers of the convolutions, from a thread a number to an implicit matrix product on tensor cores.

The kernels are in `kernels/conv2d`, each with a header that says what it does and what it costs. Weights stay as they lie in memory:
[KH, KW, C, O], which is the checkpoint's [O, C, KH, KW] stored channels-last.
"""

import math

from ..dispatch import rung
from .device import device
from .kernel import OF_DTYPE, Kernel
from .linear import LARGE, SMALL, WIDE, refuses_all_but_half, threads, tile_bytes, tile_for
from .norm import HALF_OR_FLOAT, refuses_wide

DIRECT = Kernel("conv2d/1_direct.cu", "conv2d_direct", HALF_OR_FLOAT)
TILES = ((*SMALL, False), (*SMALL, True), (*LARGE, True), (*WIDE, True))  # BM, BN, WM, WN, whether C and O are multiples of 8
IMPLICIT = Kernel("conv2d/2_implicit_gemm.cu", "conv2d_implicit", TILES[:2])
FUSED = Kernel("conv2d/3_fused.cu", "conv2d_fused", TILES)
UPSAMPLED = Kernel("conv2d/4_upsampled.cu", "conv2d_upsampled", TILES)


def shape_of(x, w, stride, padding) -> tuple[int, ...]:
    """B, H, W, C, O, KH, KW, stride, top, left, HO, WO: the numbers that the kernels are given."""
    (top, bottom), (left, right) = padding
    B, H, W, C = x.shape
    O, _, KH, KW = w.shape
    return B, H, W, C, O, KH, KW, stride, top, left, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1


def prepared(x, w, *rest):
    """The arrays in the order of the kernels: w as [KH, KW, C, O], which is a view of how weights are stored."""
    dev = device()
    return (None if a is None else dev.contiguous(a) for a in (x, w.transpose(2, 3, 1, 0), *rest))


def instance_for(kernel: Kernel, M: int, C: int, O: int, tile=None):
    """The kernel for M pixels and these widths, and its tile."""
    aligned = C % 8 == 0 and O % 8 == 0
    tile = tile or (tile_for(M, O) if aligned else SMALL)
    if (*tile, aligned) not in kernel.instances:
        tile = SMALL
    return kernel(*tile, aligned), tile


def launch_tiles(kernel: Kernel, pointers, y, shape, C: int, tile=None):
    """One block for each tile of y [B, HO, WO, O]."""
    O = y.shape[-1]
    M = y.size // O
    instance, tile = instance_for(kernel, M, C, O, tile)
    grid = (math.ceil(M / tile[0]), math.ceil(O / tile[1]))
    device().launch(instance, grid, threads(tile), *pointers, y, *shape, shared=tile_bytes(tile, by_k=True))
    return y


def _output(x, shape):
    return device().empty((shape[0], *shape[-2:], shape[4]), x.dtype)


@rung("conv2d", "direct", owner="cupy", refuses=refuses_wide, lesson=True)
def direct(x, w, b, *, stride, padding):
    """CUDA: one thread for one number of y."""
    shape = shape_of(x, w, stride, padding)
    x, w, b = prepared(x, w, b)
    y = _output(x, shape)
    pixels, O = y.size // shape[4], shape[4]
    device().launch(DIRECT(OF_DTYPE[x.dtype]), (math.ceil(pixels / 8), math.ceil(O / 32)), (32, 8), x, w, b, y, *shape)
    return y


@rung("conv2d", "implicit_gemm", owner="cupy", refuses=refuses_all_but_half)
def implicit_gemm(x, w, b, *, stride, padding):
    """CUDA: a matrix product on tensor cores whose patches are gathered by cp.async and never stored."""
    shape = shape_of(x, w, stride, padding)
    pointers = (x, *_) = tuple(prepared(x, w, b))
    return launch_tiles(IMPLICIT, pointers, _output(x, shape), shape, shape[3])


def conv2d_fused(x, w, b=None, embedding=None, skip=None, *, stride, padding, tile=None):
    """y = W ∗ x + b + embedding[:, None, None] + skip, added in float32 and rounded once.

    x [B, H, W, C], w [C′, C, KH, KW], b [C′], embedding [B, C′], skip [B, H′, W′, C′], all float16 -> [B, H′, W′, C′]
    """
    shape = shape_of(x, w, stride, padding)
    pointers = (x, *_) = tuple(prepared(x, w, b, embedding, skip))
    return launch_tiles(FUSED, pointers, _output(x, shape), shape, shape[3], tile)


@rung("conv2d", "fused", owner="cupy", refuses=refuses_all_but_half)
def fused(x, w, b, *, stride, padding):
    """CUDA: the same on tiles of up to 128 × 160, with room for the time embedding and the skip in the epilogue."""
    return conv2d_fused(x, w, b, stride=stride, padding=padding)


@rung("upsample_conv2d", "shifted_address", owner="cupy", refuses=refuses_all_but_half)
def upsampled(x, w, b, *, size):
    """CUDA: the implicit matrix product reads pixel (h/2, w/2) of the small image; the doubled one is never made."""
    B, H, W, C = x.shape
    pointers = (x, *_) = tuple(prepared(x, w, b))
    y = device().empty((B, *size, len(w)), x.dtype)
    return launch_tiles(UPSAMPLED, pointers, y, (B, H, W, C, len(w), *size), C)
