"""Launchers of the convolutions, from a thread a number to an implicit matrix product on tensor cores.

The kernels are in `kernels/conv2d`, each with a header that says what it does and what it costs. Weights stay as they lie in memory:
[KH, KW, C, O], which is the checkpoint's [O, C, KH, KW] stored channels-last.
"""

import math

from ...backend import array_module
from ..dispatch import rung
from .device import device
from .kernel import OF_DTYPE, Kernel
from .linear import linear_cublas, refuses_all_but_half, refuses_slower, total
from .norm import HALF_OR_FLOAT, refuses_wide
from .tiles import BK, LARGE, SMALL, TILES, WIDE, describe, parts_of, plan, predicted

DIRECT = Kernel("conv2d/1_direct.cu", "conv2d_direct", HALF_OR_FLOAT)
# BM, BN, WM, WN, whether C and O are multiples of 8
TILES_AND_ALIGNED = ((*SMALL.sizes, False), *((*tile.sizes, True) for tile in (SMALL, LARGE, WIDE)))
IMPLICIT = Kernel("conv2d/2_implicit_gemm.cu", "conv2d_implicit", TILES_AND_ALIGNED[:2])
FUSED = Kernel("conv2d/3_fused.cu", "conv2d_fused", TILES_AND_ALIGNED)
UPSAMPLED = Kernel("conv2d/4_upsampled.cu", "conv2d_upsampled", TILES_AND_ALIGNED)
PARTS = Kernel("conv2d/5_split_k.cu", "conv2d_parts", tuple((*tile.sizes, scale) for tile in TILES for scale in (1, 2)))

PATCH_BYTES = 64 << 20  # of the patches that im2col writes at a time


def shape_of(x, w, stride, padding) -> tuple[int, ...]:
    """B, H, W, C, O, KH, KW, stride, top, left, HO, WO: the numbers that the kernels are given."""
    (top, bottom), (left, right) = padding
    B, H, W, C = x.shape
    O, _, KH, KW = w.shape
    return B, H, W, C, O, KH, KW, stride, top, left, (H + top + bottom - KH) // stride + 1, (W + left + right - KW) // stride + 1


def prepared(x, w, *rest):
    """The arrays in the order of the kernels: w as [KH, KW, C, O], which is a view of how weights are stored."""
    dev = device()
    return tuple(None if a is None else dev.contiguous(a) for a in (x, w.transpose(2, 3, 1, 0), *rest))


def plan_for(M: int, w, **limits):
    """The tile and the parts of K for M output pixels and weights [O, C, KH, KW]."""
    O, C, KH, KW = w.shape
    return plan(M, O, KH * KW * math.ceil(C / BK), device().multiprocessors, **limits)


def tile_for(M: int, w):
    """The fastest tile where every sum is whole; the large ones load 16 bytes at a time."""
    return SMALL if w.shape[0] % 8 or w.shape[1] % 8 else plan_for(M, w, most_parts=1)[0]


def pixels(x, w, stride, padding) -> int:
    """Of the result, in all images."""
    B, *_, HO, WO = shape_of(x, w, stride, padding)
    return B * HO * WO


def launch_tiles(kernel: Kernel, pointers, w, y, shape, tile=None):
    """One block for each tile of y [B, HO, WO, O]."""
    O, C = w.shape[:2]
    M = y.size // O
    aligned = C % 8 == 0 and O % 8 == 0
    tile = tile or (SMALL if kernel is IMPLICIT else tile_for(M, w))
    grid = (math.ceil(M / tile.BM), math.ceil(O / tile.BN))
    device().launch(kernel(*tile.sizes, aligned), grid, tile.threads, *pointers, y, *shape, shared=tile.shared_bytes(by_k=True))
    return y


def launch_parts(scale: int, x, w, b, embedding, skip, y, shape, tile, parts: int):
    """One block for each part of each tile, then the kernel that adds the parts and the epilogue.        shape: the twelve numbers of `shape_of`"""
    dev, (O, C, KH, KW) = device(), w.shape
    x, w = prepared(x, w)
    M = y.size // O
    slices, parts = parts_of(KH * KW * math.ceil(C / BK), parts)
    sums = dev.empty((parts, M, O), "float32")
    grid = (math.ceil(M / tile.BM), math.ceil(O / tile.BN), parts)
    dev.launch(PARTS(*tile.sizes, scale), grid, tile.threads, x, w, sums, *shape, slices, shared=tile.shared_bytes(by_k=True))
    return total(sums, b, embedding, skip, y, images=len(y))


def _output(x, shape):
    return device().empty((shape[0], *shape[-2:], shape[4]), x.dtype)


def plus(y, embedding, skip):
    """y + embedding[:, None, None] + skip in passes of their own: what the higher rungs save."""
    y = y if embedding is None else y + embedding[:, None, None]
    return y if skip is None else y + skip


@rung("conv2d", "direct", owner="cupy", refuses=refuses_wide, lesson=True)
def direct(x, w, b, *, stride, padding, embedding=None, skip=None):
    """CUDA: one thread for one number of y."""
    shape = shape_of(x, w, stride, padding)
    x, w, b = prepared(x, w, b)
    y = _output(x, shape)
    M, O = y.size // shape[4], shape[4]
    device().launch(DIRECT(OF_DTYPE[x.dtype]), (math.ceil(M / 8), math.ceil(O / 32)), (32, 8), x, w, b, y, *shape)
    return plus(y, embedding, skip)


@rung("conv2d", "im2col_cublas", owner="cupy", refuses=refuses_all_but_half, lesson=True)
def im2col(x, w, b, *, stride, padding, embedding=None, skip=None):
    """cuBLAS on patches that are written to memory, by blocks of output rows: nine times the image is written and read."""
    xp = array_module(x)
    B, _, _, C, O, KH, KW, _, _, _, HO, WO = shape_of(x, w, stride, padding)
    weights = w.transpose(2, 3, 1, 0).reshape(KH * KW * C, O)  # free: weights are stored channels-last
    padded = xp.ascontiguousarray(xp.pad(x, ((0, 0), *padding, (0, 0))))
    sb, sh, sw, _ = padded.strides
    y = xp.empty((B, HO, WO, O), x.dtype)
    rows = max(1, PATCH_BYTES // (B * WO * len(weights) * x.itemsize))
    for first in range(0, HO, rows):
        count = min(rows, HO - first)
        patches = xp.lib.stride_tricks.as_strided(  # in [B, H, W, C] the KW · C numbers under one row of the kernel lie side by side
            padded[:, first * stride :], (B, count, WO, KH, KW * C), (sb, stride * sh, stride * sw, sh, x.itemsize)
        )
        y[:, first : first + count] = (patches.reshape(-1, len(weights)) @ weights).reshape(B, count, WO, O)
    return plus(y if b is None else y + b, embedding, skip)


@rung("conv2d", "implicit_gemm", owner="cupy", refuses=refuses_all_but_half)
def implicit_gemm(x, w, b, *, stride, padding, embedding=None, skip=None):
    """CUDA: a matrix product on tensor cores whose patches are gathered by cp.async and never stored."""
    shape = shape_of(x, w, stride, padding)
    return plus(launch_tiles(IMPLICIT, prepared(x, w, b), w, _output(x, shape), shape), embedding, skip)


def conv2d_fused(x, w, b=None, embedding=None, skip=None, *, stride, padding, tile=None):
    """y = W ∗ x + b + embedding[:, None, None] + skip, added in float32 and rounded once; in tiles of a given or a fitting size.

    x [B, H, W, C], w [C′, C, KH, KW], b [C′], embedding [B, C′], skip [B, H′, W′, C′], all float16 -> [B, H′, W′, C′]
    """
    shape = shape_of(x, w, stride, padding)
    return launch_tiles(FUSED, prepared(x, w, b, embedding, skip), w, _output(x, shape), shape, tile)


def details_fused(x, w, b, *, stride, padding, **sums):
    M = pixels(x, w, stride, padding)
    return describe(tile_for(M, w), 1, M, len(w), device().multiprocessors)


@rung("conv2d", "fused", owner="cupy", refuses=refuses_all_but_half, details=details_fused)
def fused(x, w, b, *, stride, padding, embedding=None, skip=None):
    """CUDA: the same on tiles of up to 128 × 160; bias, embedding and skip are added while the sums are in registers."""
    return conv2d_fused(x, w, b, embedding, skip, stride=stride, padding=padding)


def refuses_whole_sums(M: int, x, w):
    """Where one block a tile is predicted to be the best."""
    reason = refuses_all_but_half(x)
    if reason or w.shape[0] % 8 or w.shape[1] % 8:
        return reason or "needs multiples of 8 channels: a load is 16 bytes"
    return f"is predicted to gain nothing: {details_parts(M, w)}" if plan_for(M, w)[1] == 1 else None


def details_parts(M: int, w):
    return describe(*plan_for(M, w), M, len(w), device().multiprocessors)


def refuses_whole_convolution(x, w, b, *, stride, padding, **sums):
    return refuses_whole_sums(pixels(x, w, stride, padding), x, w)


def details_split(x, w, b, *, stride, padding, **sums):
    return details_parts(pixels(x, w, stride, padding), w)


def conv2d_split(x, w, b=None, embedding=None, skip=None, *, stride, padding, tile, parts):
    """conv2d_fused with the sum over K in so many parts, which are added in float32."""
    shape = shape_of(x, w, stride, padding)
    return launch_parts(1, x, w, b, embedding, skip, _output(x, shape), shape, tile, parts)


@rung("conv2d", "split_k", owner="cupy", refuses=refuses_whole_convolution, details=details_split)
def split_k(x, w, b, *, stride, padding, embedding=None, skip=None):
    """CUDA: the sum over K in 2 to 32 parts, so that few tiles make blocks for all multiprocessors; a second kernel adds the parts."""
    tile, parts = plan_for(pixels(x, w, stride, padding), w)
    return conv2d_split(x, w, b, embedding, skip, stride=stride, padding=padding, tile=tile, parts=parts)


def refuses_gathering(x, w, b, *, stride, padding, embedding=None, skip=None):
    if w.shape[2:] != (1, 1) or stride != 1 or padding != ((0, 0), (0, 0)):
        return "is for 1×1 kernels, stride 1, no padding"
    (O, C), M, reason = w.shape[:2], x.size // x.shape[-1], refuses_all_but_half(x)
    if reason or embedding is not None or O % 8 or C % 8:
        return reason or ("adds no embedding" if embedding is not None else None)
    size = (M, O, math.ceil(C / BK), device().multiprocessors)
    return refuses_slower(predicted(*plan(*size), *size), M, O, C, b, skip)


@rung("conv2d", "cublas", owner="cupy", refuses=refuses_gathering)
def pointwise(x, w, b, *, stride, padding, embedding=None, skip=None):
    """cuBLAS: a 1×1 convolution is a linear layer on every pixel, with the weights as they lie in memory."""
    return linear_cublas(x, w.reshape(w.shape[:2]), b, skip=skip)


def _upsampled_shape(x, w, size) -> tuple[int, ...]:
    """`shape_of` behind a doubling: 3 × 3, stride 1, padding 1."""
    B, H, W, C = x.shape
    return B, H, W, C, len(w), 3, 3, 1, 1, 1, *size


@rung("upsample_conv2d", "shifted_address", owner="cupy", refuses=refuses_all_but_half)
def upsampled(x, w, b, *, size):
    """CUDA: the implicit matrix product reads pixel (h/2, w/2) of the small image; the doubled one is never made."""
    B, H, W, C = x.shape
    return launch_tiles(UPSAMPLED, prepared(x, w, b), w, _output(x, _upsampled_shape(x, w, size)), (B, H, W, C, len(w), *size))


def refuses_whole_upsampling(x, w, b, *, size):
    return refuses_whole_sums(len(x) * size[0] * size[1], x, w)


def details_upsampling(x, w, b, *, size):
    return details_parts(len(x) * size[0] * size[1], w)


@rung("upsample_conv2d", "split_k", owner="cupy", refuses=refuses_whole_upsampling, details=details_upsampling)
def upsampled_split_k(x, w, b, *, size):
    """CUDA: the same with the sum over K in parts, as conv2d's split_k."""
    shape = _upsampled_shape(x, w, size)
    return launch_parts(2, x, w, b, None, None, _output(x, shape), shape, *plan_for(len(x) * size[0] * size[1], w))
