"""Convolution to very few channels (the 3 of a picture, the 4 of a latent): product first, shifts afterwards."""

import numpy as np

from ..dispatch import rung
from .arena import empty
from .conv2d import add_in_place, gather, pieces
from .linear import refuses_half
from .parallel import parallel_for

PIXELS = 4096  # of one block


def refuses_many_channels(x, w, *args, stride, **kwargs):
    C_out, C = w.shape[:2]
    if stride != 1 or w.shape[2:] == (1, 1):
        return "is for kernels wider than 1 with stride 1"
    if C_out > 8 or C < 4 * C_out:
        return "is for at most 8 output channels from many"
    return refuses_half(x)


@rung("conv2d", "planes", owner="numpy", refuses=refuses_many_channels)
def planes(x, w, b, *, stride, padding, embedding=None, skip=None):
    """For a few output channels: all KH·KW·C′ products of a pixel at once [KH·KW·C′, C] @ [C, H·W], then shifted sums of planes.

    im2col would copy each pixel nine times to multiply it by a matrix of three columns, which costs more than the product itself.
    """
    C_out, C, KH, KW = w.shape
    (top, bottom), (left, right) = padding
    B, H, W = len(x), x.shape[1] + top + bottom - KH + 1, x.shape[2] + left + right - KW + 1
    taps = np.ascontiguousarray(w.transpose(2, 3, 0, 1)).reshape(KH * KW * C_out, C)
    y = empty((B, H, W, C_out), x.dtype)

    def block(piece):
        images, rows = piece
        count = images.stop - images.start, rows.stop - rows.start
        tall, wide = count[1] + KH - 1, W + KW - 1
        window = gather(x, images, rows.start - top, tall, -left, wide)
        products = np.matmul(taps, window.reshape(-1, C).T).reshape(KH, KW, C_out, count[0], tall, wide)
        total = np.zeros((C_out, *count, W), dtype=x.dtype)
        for i in range(KH):
            for j in range(KW):
                total += products[i, j, :, :, i : i + count[1], j : j + W]
        np.add(total.transpose(1, 2, 3, 0), 0.0 if b is None else b, out=y[images, rows])
        add_in_place(y, images, rows, embedding, skip)

    parallel_for(pieces(B, H, W, PIXELS), block)
    return y
