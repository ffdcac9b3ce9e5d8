"""Convolution as a matrix product over patches (im2col), cut into row blocks so that the patches never fill the memory.

Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..dispatch import dispatch, rung
from .arena import empty
from .linear import DEPTH, product, refuses_half
from .parallel import blocks, parallel_for, scratch

PATCH_BYTES = 4 << 20  # one block of patches; 128 channels at 512×512 would need 0.4 GB at once


def refuses_larger_kernels(x, w, *args, stride, padding, embedding=None, **kwargs):
    if w.shape[2:] != (1, 1) or stride != 1 or padding != ((0, 0), (0, 0)):
        return "is for 1×1 kernels, stride 1, no padding"
    return "adds no embedding" if embedding is not None else refuses_half(x)


def gather(x, images, top, height, left, width):
    """[b, height, width, C]: the window of x that begins at (top, left), zero where it leaves the image. In this thread's scratch."""
    H, W, C = x.shape[1:]
    out = scratch("window", (images.stop - images.start, height, width, C), x.dtype)
    y0, y1 = max(top, 0), min(top + height, H)
    x0, x1 = max(left, 0), min(left + width, W)
    out[:, : y0 - top] = 0.0
    out[:, y1 - top :] = 0.0
    out[:, :, : x0 - left] = 0.0
    out[:, :, x1 - left :] = 0.0
    out[:, y0 - top : y1 - top, x0 - left : x1 - left] = x[images, y0:y1, x0:x1]
    return out


def pieces(B, tall, wide, size):
    """A grid of B images, tall × wide, cut into (images, rows) of about `size` cells: several small images, or rows of a large one."""
    per_image, per_block = max(1, size // (tall * wide)), max(1, size // wide)
    return [(images, rows) for images in blocks(B, per_image) for rows in blocks(tall, per_block)]


def add_in_place(y, images, rows, embedding, skip):
    """y[images, rows] += embedding + skip, one after the other as diffusers does, while this block of y is in the cache."""
    if embedding is not None:
        y[images, rows] += embedding[images, None, None]
    if skip is not None:
        y[images, rows] += skip[images, rows]


def by_rows(x, w, b, stride, padding, embedding, skip, depth):
    """Σ over kernel rows of patches [H′·W′, KW·C] @ W [KW·C, C′], by blocks of output rows.

    In [B, H, W, C] the KW·C numbers under one kernel row lie side by side: a patch is one run. The rows are multiplied one after the
    other because three sums of KW·C terms round less than one sum of 3·KW·C terms, and their patches take a third of the memory.
    """
    C_out, C, KH, KW = w.shape
    (top, bottom), (left, right) = padding
    H, W = ((n + sum(side) - k) // stride + 1 for n, side, k in zip(x.shape[1:3], padding, (KH, KW)))
    weights = w.transpose(2, 3, 1, 0).reshape(KH, KW * C, C_out)  # free: weights are stored channels-last
    y = empty((len(x), H, W, C_out), x.dtype)

    def block(piece):
        images, rows = piece
        tall, wide = (rows.stop - rows.start - 1) * stride + KH, (W - 1) * stride + KW
        window = gather(x, images, rows.start * stride - top, tall, -left, wide)
        out = y[images, rows].reshape(-1, C_out)
        sb, sh, sw, sc = window.strides
        patches = scratch("patches", (*y[images, rows].shape[:3], KW * C), x.dtype)
        for i in range(KH):
            patches[...] = as_strided(window[:, i:], patches.shape, (sb, stride * sh, stride * sw, sc), writeable=False)
            if i == 0:
                product(patches.reshape(-1, KW * C), weights[0], b, out=out, depth=depth)
            else:
                out += product(patches.reshape(-1, KW * C), weights[i], out=scratch("part", out.shape, x.dtype), depth=depth)
        add_in_place(y, images, rows, embedding, skip)

    parallel_for(pieces(len(x), H, W, PATCH_BYTES // (KW * C * x.itemsize)), block)
    return y


@rung("conv2d", "short_sums", owner="numpy", refuses=refuses_half)
def short_sums(x, w, b, *, stride, padding, embedding=None, skip=None):
    """As im2col, with the products summed 160 at a time: as near to the truth as torch's convolutions."""
    return by_rows(x, w, b, stride, padding, embedding, skip, DEPTH)


@rung("conv2d", "im2col", owner="numpy", numerics="fast", refuses=refuses_half)
def im2col(x, w, b, *, stride, padding, embedding=None, skip=None):
    """Patches times weights: for each row of the kernel one matrix product, by blocks of output rows.

    Numerics: fast. BLAS sums in longer runs than torch's convolutions do: relative L2 error against float64 at most 6e-7 on random images and weights.
    """
    return by_rows(x, w, b, stride, padding, embedding, skip, None)


@rung("conv2d", "pointwise", owner="numpy", refuses=refuses_larger_kernels)
def pointwise(x, w, b, *, stride, padding, embedding=None, skip=None):
    """A 1×1 convolution is a linear layer on every pixel: no patches at all."""
    return dispatch("linear", x, w.reshape(w.shape[:2]), b, skip=skip)
