"""Convolution as a matrix product over patches (im2col), cut into row blocks so that the patches never fill the memory.

Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..dispatch import rung
from .linear import linear, refuses_half

PATCH_BYTES = 16 << 20  # one block of patches; 128 channels at 512×512 would need 1.2 GB at once


def refuses_larger_kernels(x, w, *args, stride, padding, **kwargs):
    if w.shape[2:] != (1, 1) or stride != 1 or padding != ((0, 0), (0, 0)):
        return "is for 1×1 kernels, stride 1, no padding"
    return refuses_half(x)


@rung("conv2d", "im2col", owner="numpy", refuses=refuses_half)
def im2col(x, w, b, *, stride, padding):
    """patches [H′·W′, KH·KW·C] @ W [KH·KW·C, C′], by blocks of output rows.

    In [B, H, W, C] the KW·C numbers under one kernel row lie side by side, so a patch is copied in KH runs.
    """
    C_out, C, KH, KW = w.shape
    weights = w.transpose(2, 3, 1, 0).reshape(KH * KW * C, C_out)  # free: weights are stored channels-last
    x = np.ascontiguousarray(np.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x)
    B = x.shape[0]
    H = (x.shape[1] - KH) // stride + 1
    W = (x.shape[2] - KW) // stride + 1
    sb, sh, sw, sc = x.strides
    windows = as_strided(x, (B, H, W, KH, KW * C), (sb, stride * sh, stride * sw, sh, sc), writeable=False)

    y = np.empty((B, H, W, C_out), dtype=x.dtype)
    rows = min(H, max(1, PATCH_BYTES // (W * KH * KW * C * x.itemsize)))
    patches = np.empty((rows, W, KH, KW * C), dtype=x.dtype)
    for image, out in zip(windows, y):
        for top in range(0, H, rows):
            block = patches[: min(rows, H - top)]
            np.copyto(block, image[top : top + rows])
            np.matmul(block.reshape(-1, KH * KW * C), weights, out=out[top : top + rows].reshape(-1, C_out))
    if b is not None:
        y += b
    return y


@rung("conv2d", "pointwise", owner="numpy", refuses=refuses_larger_kernels)
def pointwise(x, w, b, *, stride, padding):
    """A 1×1 convolution is a linear layer on every pixel: no patches at all."""
    return linear(x, w.reshape(w.shape[:2]), b)
